"""Is the TLS of a listener sound: versions, certificate, and what stands in clear behind STARTTLS."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from cryptography import x509

from relaycluster.cli.doctor.client import NoReply
from relaycluster.cli.doctor.examination import Examination, reason, unverified
from relaycluster.cli.doctor.findings import Finding, failed, ok, skipped, warning
from relaycluster.cli.doctor.targets import Target
from relaycluster.net.certificate_files import is_named

EXPIRY_DAYS = 14


def tls(examination: Examination) -> Iterator[Finding]:
    """Everything about one listener's TLS."""
    target = examination.target
    if target.tls == "none":
        yield ok(target.subject, "TLS", "not configured")
        return
    try:
        with _handshake(examination, unverified()) as connection:
            version, cipher = connection.version(), connection.cipher()
            encoded = connection.getpeercert(binary_form=True)
    except (OSError, ssl.SSLError) as error:
        if target.tls:
            yield failed(target.subject, "TLS", reason(error))
        else:
            yield warning(target.subject, "TLS", f"not offered ({reason(error)})")
        return
    yield ok(target.subject, "TLS", f"{version} {cipher[0] if cipher else ''}")
    if encoded is not None:
        yield from _certificate(target, x509.load_der_x509_certificate(encoded))
        yield _chain(examination)
    yield _old_version(examination)
    if target.tls != "implicit":
        yield _injection(examination)


@contextmanager
def _handshake(examination: Examination, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """A TLS connection to the listener, whichever way it is made."""
    with examination.connect(under_tls=False) as client:
        if examination.target.tls != "implicit":
            if client.reply().code != 220:
                raise NoReply("not greeted")
            if "STARTTLS" not in client.ehlo():
                raise NoReply("STARTTLS is not offered")
            if (said := client.command("STARTTLS")).code != 220:
                raise NoReply(f"STARTTLS was answered {said}")
        client.start_tls(context)
        assert isinstance(client.socket, ssl.SSLSocket)
        yield client.socket


def _certificate(target: Target, certificate: x509.Certificate) -> Iterator[Finding]:
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    until = f"valid until {certificate.not_valid_after_utc:%Y-%m-%d}"
    if left.total_seconds() <= 0:
        yield failed(target.subject, "certificate", f"expired: {until}")
    elif certificate.not_valid_before_utc > datetime.now(UTC):
        yield failed(target.subject, "certificate", f"not yet valid: from {certificate.not_valid_before_utc:%Y-%m-%d}")
    elif left.days < EXPIRY_DAYS:
        yield warning(target.subject, "certificate", f"{until}: {left.days} days are left")
    else:
        yield ok(target.subject, "certificate", until)
    names = _names(certificate)
    if not target.hostname:
        yield ok(target.subject, "certificate's names", ", ".join(names) or "none")
    elif is_named(target.hostname.lower(), [name.lower() for name in names]):
        yield ok(target.subject, "certificate's names", f"{target.hostname} is among them")
    else:
        yield warning(
            target.subject,
            "certificate's names",
            f"{target.hostname} is not among {', '.join(names) or 'its names: none'}",
        )


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return found.get_values_for_type(x509.DNSName)


def _chain(examination: Examination) -> Finding:
    target = examination.target
    context = ssl.create_default_context()
    if not target.hostname:
        context.check_hostname = False
    try:
        with _handshake(examination, context):
            pass
    except ssl.SSLCertVerificationError as error:
        return warning(target.subject, "certificate's chain", f"not trusted by this machine: {error.verify_message}")
    except (OSError, ssl.SSLError) as error:
        return warning(target.subject, "certificate's chain", f"not verified: {reason(error)}")
    return ok(target.subject, "certificate's chain", "trusted by this machine")


def _old_version(examination: Examination) -> Finding:
    """RFC 8996, and `tls.minimum`."""
    target = examination.target
    newest = ssl.TLSVersion.TLSv1_2 if target.minimum == "1.3" else ssl.TLSVersion.TLSv1_1
    check = "old TLS versions"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context = unverified(ssl.TLSVersion.TLSv1)
            context.maximum_version = newest
            context.set_ciphers("ALL:@SECLEVEL=0")
        with _handshake(examination, context) as connection:
            version = connection.version()
    except (OSError, ssl.SSLError, ValueError) as error:
        if "NO_PROTOCOLS_AVAILABLE" in str(error) or isinstance(error, ValueError):
            return skipped(target.subject, check, "this machine's OpenSSL does not speak them")
        return ok(target.subject, check, f"refused below TLS {target.minimum}")
    return failed(target.subject, check, f"{version} is spoken")


def _injection(examination: Examination) -> Finding:
    """CVE-2011-0411: what comes in clear behind STARTTLS must not run inside of TLS."""
    target = examination.target
    check = "commands injected behind STARTTLS"
    try:
        with examination.connect() as client:
            client.reply()
            client.ehlo()
            client.send(b"STARTTLS\r\nVRFY injected\r\nNOOP\r\n")
            if (said := client.reply()).code != 220:
                return ok(target.subject, check, f"refused: {said}")
            client.start_tls(unverified())
            client.send(b"QUIT\r\n")
            said = client.reply()
    except (OSError, ssl.SSLError) as error:
        return ok(target.subject, check, f"the session ended: {reason(error)}")
    if said.code == 221:
        return ok(target.subject, check, "thrown away")
    return failed(target.subject, check, f"they were answered inside of TLS: {said}")
