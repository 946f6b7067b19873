"""A certificate, its chain and its key out of PEM files, or what is wrong with them: which file, which line, and why."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from attrs import field, frozen
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from OpenSSL import SSL

from relaycluster.interfaces import FileTrouble
from relaycluster.net.tls import reason

_BLOCK: Final = re.compile(rb"^-----BEGIN ([A-Z0-9 ]+)-----\s*$.*?^-----END \1-----", re.MULTILINE | re.DOTALL)
_BEGIN: Final = re.compile(rb"^-----BEGIN ([A-Z0-9 ]+)-----", re.MULTILINE)

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
_PRIVATE_KEYS: Final = (
    rsa.RSAPrivateKey,
    ec.EllipticCurvePrivateKey,
    ed25519.Ed25519PrivateKey,
    ed448.Ed448PrivateKey,
)


@frozen
class CertificateFiles:
    """Where a certificate lies. `certificate` is a PEM file with the host's certificate first and its chain behind it; `key` one
    with the private key, without a passphrase. `names` are the host names for which it is shown, `*.example.com` for any one label;
    empty for those that the certificate itself bears."""

    names: tuple[str, ...]
    certificate: str
    key: str


@frozen
class Certificate:
    """What the files held. `chain` begins with the host's certificate; `expires_at` is when the first of it ends, in seconds since
    the epoch; `names` are the DNS names that it bears, lower case; `label` one name for metrics and logs."""

    chain: tuple[x509.Certificate, ...]
    key: PrivateKey = field(repr=False)
    expires_at: float
    names: tuple[str, ...]
    label: str

    def use_in(self, context: SSL.Context) -> None:
        """Put it into a context. Raises `SSL.Error` for a key that OpenSSL finds too weak."""
        context.use_certificate(self.chain[0])
        for certificate in self.chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(self.key)


def read_certificate(files: CertificateFiles, now_epoch_seconds: float, *, also_expired: bool = False) -> Certificate:
    """Read and check one certificate: complete, of this key, valid now (or, with `also_expired`, at some time before), and for the
    names for which it is meant. Raises `FileTrouble`."""
    path = files.certificate
    blocks = [(line, block) for line, kind, block in _blocks(path) if kind == b"CERTIFICATE"]
    if not blocks:
        raise FileTrouble(path, 0, "no certificate is in it: PEM is wanted, with a line -----BEGIN CERTIFICATE-----")
    lines = [line for line, _ in blocks]
    chain = tuple(_certificate(path, line, block) for line, block in blocks)
    key = _read_key(files.key)
    _check_key(files, lines, chain, key)
    _check_chain(path, lines, chain)
    _check_time(path, lines, chain, now_epoch_seconds, also_expired)
    names = _names(chain[0])
    for name in files.names:
        if not is_named(name.lower().rstrip("."), names):
            borne = ", ".join(names) or "no host at all"
            raise FileTrouble(
                path, lines[0], f"the certificate does not name {name}, for which it is to be shown, but {borne}"
            )
    certificate = Certificate(
        chain, key, min(each.not_valid_after_utc.timestamp() for each in chain), names, names[0] if names else path
    )
    try:
        certificate.use_in(SSL.Context(SSL.TLS_SERVER_METHOD))
    except SSL.Error as error:
        raise FileTrouble(path, lines[0], f"OpenSSL refuses it: {reason(error)}") from error
    return certificate


def _blocks(path: str) -> Iterator[tuple[int, bytes, bytes]]:
    """The PEM blocks of a file: the line where each begins, its kind, its octets."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise FileTrouble(path, 0, f"it cannot be read: {error.strerror or error}") from error
    begin = _BEGIN.search(content)
    while begin is not None:
        line = content.count(b"\n", 0, begin.start()) + 1
        block = _BLOCK.match(content, begin.start())
        if block is None:
            kind = begin[1].decode("ascii")
            raise FileTrouble(
                path, line, f"this -----BEGIN {kind}----- has no -----END {kind}-----: the file is cut off"
            )
        yield line, begin[1], block[0]
        begin = _BEGIN.search(content, block.end())


def _certificate(path: str, line: int, block: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(block)
    except ValueError as error:
        raise FileTrouble(path, line, f"the certificate that begins here is damaged ({_first_line(error)})") from error


def _read_key(path: str) -> PrivateKey:
    for line, kind, block in _blocks(path):
        if not kind.endswith(b"PRIVATE KEY"):
            continue
        if kind.startswith(b"ENCRYPTED") or b"Proc-Type: 4,ENCRYPTED" in block:
            raise FileTrouble(
                path, line, "the key is encrypted: store it without a passphrase, readable by this service only"
            )
        try:
            key = load_pem_private_key(block, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise FileTrouble(path, line, f"the key that begins here is damaged ({_first_line(error)})") from error
        if not isinstance(key, _PRIVATE_KEYS):
            raise FileTrouble(path, line, "a key of this kind is not for TLS: use ECDSA P-256, RSA or Ed25519")
        return key
    raise FileTrouble(path, 0, "no private key is in it: PEM is wanted, with a line -----BEGIN PRIVATE KEY-----")


def _check_key(files: CertificateFiles, lines: list[int], chain: tuple[x509.Certificate, ...], key: PrivateKey) -> None:
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for line, certificate in zip(lines, chain, strict=True):
        try:
            other = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        except (ValueError, UnsupportedAlgorithm):
            continue
        if other == public:
            if certificate is chain[0]:
                return
            raise FileTrouble(
                files.certificate, line, f"the certificate of {files.key} stands here: it must be the first in the file"
            )
    raise FileTrouble(files.key, 0, f"the key does not belong to the certificate in {files.certificate}")


def _check_chain(path: str, lines: list[int], chain: tuple[x509.Certificate, ...]) -> None:
    for line, certificate, issuer in zip(lines[1:], chain, chain[1:], strict=False):
        if certificate.issuer != issuer.subject:
            raise FileTrouble(
                path, line, "the certificate that begins here did not issue the one before it: put the chain in order"
            )


def _check_time(
    path: str, lines: list[int], chain: tuple[x509.Certificate, ...], now_epoch_seconds: float, also_expired: bool
) -> None:
    now = datetime.fromtimestamp(now_epoch_seconds, UTC)
    for line, certificate in zip(lines, chain, strict=True):
        if certificate.not_valid_after_utc < now and not also_expired:
            raise FileTrouble(
                path, line, f"the certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            )
        if certificate.not_valid_before_utc > now:
            raise FileTrouble(
                path, line, f"the certificate is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
            )


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names of the certificate; the common name only where there are none (RFC 6125 6.4.4)."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):
        names = []
    if not names:
        common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        names = [str(common[-1].value)] if common else []
    return tuple(name.lower().rstrip(".") for name in names)


def is_named(name: str, names: Container[str]) -> bool:
    """Whether a host name is one of those that a certificate bears; all in lower case. A wildcard stands for exactly one label, the
    leftmost (RFC 6125 6.4.3)."""
    return name in names or (not name.startswith("*.") and f"*.{name.partition('.')[2]}" in names)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
