"""Certificates of listeners and the TLS channel, against the standard library's client; no sockets."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relaycluster.interfaces import FileTrouble
from relaycluster.net.server_tls import TICKET_KEY_SECONDS, CertificateFiles, ServerTLS
from relaycluster.net.tls_channel import TLSChannel, TLSTrouble
from tests.net.certificates import Authority, Issued
from tests.net.tls_clients import MemoryClient, client_context, shake_hands

ROOT = Authority()
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
NOW = x509.load_pem_x509_certificate(ROOT.certificate).not_valid_before_utc.timestamp() + 86400.0


class Shelf:
    """Certificates in files, and a `ServerTLS` with a time of day in hand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = NOW
        self.tls = ServerTLS("1.2", lambda: self.now)
        self.count = 0

    def put(self, issued: Issued, names: tuple[str, ...] = ()) -> CertificateFiles:
        self.count += 1
        certificate, key = self.directory / f"{self.count}.pem", self.directory / f"{self.count}.key"
        certificate.write_bytes(issued.certificate)
        key.write_bytes(issued.key)
        return CertificateFiles(names, str(certificate), str(key))

    def issue(self, *names: str) -> CertificateFiles:
        return self.put(ROOT.issue(*names))

    def shown(self, name: str | None, version: ssl.TLSVersion | None = None) -> set[str]:
        """The names on the certificate that a client gets who asks for `name`."""
        client = MemoryClient(client_context(None, version), name)
        shake_hands(self.tls.channel(), client)
        der = client.tls.getpeercert(binary_form=True)
        assert der is not None
        certificate = x509.load_der_x509_certificate(der)
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return set(extension.value.get_values_for_type(x509.DNSName))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.fixture
def ready(shelf: Shelf) -> Shelf:
    shelf.tls.load(shelf.issue("mx.example.org"))
    return shelf


def opened(tls: ServerTLS, client: MemoryClient, cut: int = 1 << 20) -> TLSChannel:
    channel = tls.channel()
    shake_hands(channel, client, cut)
    return channel


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
def test_a_conversation(ready: Shelf, version: ssl.TLSVersion, cut: int) -> None:
    """Handshake, octets both ways, close_notify both ways, at any cut; the certificate verifies and the facts are true."""
    client = MemoryClient(client_context(ROOT.certificate, version), "mx.example.org")
    channel = opened(ready.tls, client, cut)
    facts = channel.facts()
    assert facts.version == client.tls.version()
    cipher = client.tls.cipher()
    assert cipher is not None
    assert facts.cipher == cipher[0]
    assert client.feed(channel.encrypt(b"220 hello\r\n")) == b"220 hello\r\n"
    wire = client.say(b"EHLO x\r\n")
    assert b"".join(channel.receive(wire[at : at + cut]) for at in range(0, len(wire), cut)) == b"EHLO x\r\n"
    assert not channel.peer_closed
    client.feed(channel.close())
    assert client.is_closed
    channel.receive(client.close())
    assert channel.peer_closed


def test_long_pieces(ready: Shelf) -> None:
    """More than a record at once, both ways, and several records in one piece."""
    client = MemoryClient(client_context())
    channel = opened(ready.tls, client)
    long = bytes(range(256)) * 1000
    assert client.feed(channel.encrypt(long)) == long
    assert client.feed(channel.encrypt(long[:16384])) == long[:16384]
    assert channel.receive(client.say(long)) == long
    assert channel.receive(client.say(b"a") + client.say(b"b") + client.close()) == b"ab"
    assert channel.peer_closed


def test_the_greeting_goes_out_with_the_end_of_the_handshake(ready: Shelf) -> None:
    """What TLS 1.3 sends behind the handshake is not written by itself: the first reply takes it along."""
    client = MemoryClient(client_context(None, ssl.TLSVersion.TLSv1_3))
    channel = ready.tls.channel()
    client.feed(b"")
    channel.receive(client.take())
    client.feed(channel.outgoing())
    channel.receive(client.take())
    assert channel.is_open
    assert client.feed(channel.encrypt(b"220 hello\r\n")) == b"220 hello\r\n"
    assert channel.outgoing() == b""


@pytest.mark.parametrize("octets", [b"EHLO x\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", bytes(100)])
def test_what_is_no_handshake(ready: Shelf, octets: bytes) -> None:
    """Trouble with a reason, and no octet of it is taken for something that was said."""
    channel = ready.tls.channel()
    with pytest.raises(TLSTrouble) as trouble:
        channel.receive(octets)
    assert str(trouble.value)
    assert not channel.is_open
    assert channel.close() == b""


def test_a_changed_octet(ready: Shelf) -> None:
    """Ciphertext that somebody changed on the way is trouble; the client is sent an alert."""
    client = MemoryClient(client_context())
    channel = opened(ready.tls, client)
    wire = bytearray(client.say(b"MAIL FROM:<a@example.net>\r\n"))
    wire[-1] ^= 1
    with pytest.raises(TLSTrouble):
        channel.receive(bytes(wire))
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
        client.feed(channel.outgoing())
    assert channel.close() == b""


def test_versions(shelf: Shelf) -> None:
    """A minimum of 1.3 refuses 1.2; 1.1 is always refused."""
    shelf.tls = ServerTLS("1.3", lambda: shelf.now)
    shelf.tls.load(shelf.issue("mx.example.org"))
    opened(shelf.tls, MemoryClient(client_context(None, ssl.TLSVersion.TLSv1_3)))
    with pytest.raises(TLSTrouble):
        opened(shelf.tls, MemoryClient(client_context(None, ssl.TLSVersion.TLSv1_2)))
    shelf.tls = ServerTLS("1.2", lambda: shelf.now)
    shelf.tls.load(shelf.issue("mx.example.org"))
    old = client_context()
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((TLSTrouble, ssl.SSLError)):
        opened(shelf.tls, MemoryClient(old))


def test_another_minimum(ready: Shelf) -> None:
    """Holds from the next connection on; the same again keeps the tickets."""
    old = client_context(None, ssl.TLSVersion.TLSv1_2)
    open_client = MemoryClient(old)
    channel = opened(ready.tls, open_client)
    ready.tls.require("1.2")
    again = MemoryClient(old, None, open_client.tls.session)
    opened(ready.tls, again)
    assert again.tls.session_reused
    ready.tls.require("1.3")
    assert open_client.feed(channel.encrypt(b"still here")) == b"still here"
    with pytest.raises(TLSTrouble):
        opened(ready.tls, MemoryClient(old, None, again.tls.session))
    ready.tls.require("1.2")
    opened(ready.tls, MemoryClient(old))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_name_that_is_asked_for(shelf: Shelf, version: ssl.TLSVersion) -> None:
    """Exact names before wildcards, wildcards for one label only, names from the certificate or from the settings, case and the
    final dot without meaning; everybody else gets the default."""
    shelf.tls.load(
        shelf.issue("mx.example.org"),
        [
            shelf.issue("mail.example.com", "smtp.example.com"),
            shelf.issue("*.example.com"),
            shelf.put(ROOT.issue("a.example.net", "b.example.net"), ("B.example.net",)),
            shelf.issue("mail.example.com", "late.example"),
        ],
    )
    default = {"mx.example.org"}
    for name, expected in {
        None: default,
        "mx.example.org": default,
        "other.example": default,
        "a.example.net": default,
        "b.example.net": {"a.example.net", "b.example.net"},
        "mail.example.com": {"mail.example.com", "smtp.example.com"},
        "SMTP.Example.COM": {"mail.example.com", "smtp.example.com"},
        "x.example.com": {"*.example.com"},
        "x.y.example.com": default,
        "example.com": default,
        "late.example": {"mail.example.com", "late.example"},
    }.items():
        assert shelf.shown(name, version) == expected, name


@pytest.mark.parametrize("version", VERSIONS)
def test_resumption(ready: Shelf, version: ssl.TLSVersion) -> None:
    """A client that comes back takes its session up again, also after a `load`; after the ticket's key has gone it shakes hands in
    full, and nothing fails."""
    ready.tls.load(ready.issue("mx.example.org"), [ready.issue("mail.example.com")])
    context = client_context(None, version)

    def visit(name: str, session: ssl.SSLSession | None = None) -> MemoryClient:
        client = MemoryClient(context, name, session)
        channel = opened(ready.tls, client)
        assert client.feed(channel.encrypt(b"220 hello\r\n")) == b"220 hello\r\n"
        return client

    first = visit("mail.example.com")
    assert not first.tls.session_reused
    second = visit("mail.example.com", first.tls.session)
    assert second.tls.session_reused
    ready.tls.load(ready.issue("mx.example.org"), [ready.issue("mail.example.com")])
    third = visit("mail.example.com", second.tls.session)
    assert third.tls.session_reused
    ready.now += TICKET_KEY_SECONDS + 1
    assert not visit("mail.example.com", third.tls.session).tls.session_reused


def test_load_while_a_session_is_open(ready: Shelf) -> None:
    """It goes on with what it began with, even one in the middle of its handshake; the next one sees the new certificate."""
    client, slow = MemoryClient(client_context()), MemoryClient(client_context())
    channel, shaking = opened(ready.tls, client), ready.tls.channel()
    slow.feed(b"")
    shaking.receive(slow.take())
    ready.tls.load(ready.issue("new.example.org"))
    assert client.feed(channel.encrypt(b"still here")) == b"still here"
    slow.feed(shaking.outgoing())
    shaking.receive(slow.take())
    assert slow.feed(shaking.encrypt(b"here, too")) == b"here, too"
    assert ready.shown(None) == {"new.example.org"}


def test_expiry(shelf: Shelf) -> None:
    """Each certificate by its first name, the earliest of its chain, the earliest of two with one name."""
    soon = ROOT.issue("soon.example", ends=timedelta(hours=5))
    later = ROOT.issue("later.example", ends=timedelta(hours=50))
    chain = Issued(later.certificate + ROOT.certificate, later.key)
    assert shelf.tls.expiry() == ()
    shelf.tls.load(shelf.put(soon), [shelf.put(chain), shelf.put(ROOT.issue("soon.example", ends=timedelta(hours=9)))])
    expiry = dict(shelf.tls.expiry())
    assert expiry.keys() == {"soon.example", "later.example"}
    ends = [
        x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
        for pem in (soon.certificate, ROOT.certificate)
    ]
    assert [expiry["soon.example"], expiry["later.example"]] == ends


def test_a_chain_is_sent(shelf: Shelf) -> None:
    """What stands behind the certificate in its file reaches the client."""
    issued = ROOT.issue("mx.example.org")
    shelf.tls.load(shelf.put(Issued(b"a comment\n" + issued.certificate + b"\n" + ROOT.certificate, issued.key)))
    client = MemoryClient(client_context(ROOT.certificate, ssl.TLSVersion.TLSv1_2), "mx.example.org")
    channel = shelf.tls.channel()
    client.feed(b"")
    channel.receive(client.take())
    flight = channel.outgoing()
    der = x509.load_pem_x509_certificate(ROOT.certificate).public_bytes(Encoding.DER)
    assert der in flight


GOOD = ROOT.issue("mx.example.org")
OTHER = ROOT.issue("other.example")
ENCRYPTED = load_pem_private_key(GOOD.key, None).private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
)
WEAK = rsa.generate_private_key(65537, 1024)
CRLF = GOOD.certificate.replace(b"\n", b"\r\n")

BAD: dict[str, tuple[Callable[[], Issued], str, int, str]] = {
    "an empty certificate file": (lambda: Issued(b"", GOOD.key), "pem", 0, "no certificate is in it"),
    "a key in the place of the certificate": (lambda: Issued(GOOD.key, GOOD.key), "pem", 0, "no certificate is in it"),
    "a certificate in the place of the key": (lambda: Issued(GOOD.certificate, GOOD.certificate), "key", 0, "no private key"),
    "another's key": (lambda: Issued(GOOD.certificate, OTHER.key), "key", 0, "does not belong to the certificate in"),
    "a damaged certificate": (
        lambda: Issued(b"# ours\n\n" + GOOD.certificate.replace(b"\nMII", b"\nMXX", 1), GOOD.key), "pem", 3, "is damaged"
    ),
    "a certificate that is cut off": (lambda: Issued(GOOD.certificate[:-30], GOOD.key), "pem", 1, "cut off"),
    "a damaged key": (
        lambda: Issued(GOOD.certificate, b"\n" + b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        "key", 2, "is damaged",
    ),
    "a key with a passphrase": (lambda: Issued(GOOD.certificate, ENCRYPTED), "key", 1, "without a passphrase"),
    "an expired certificate": (
        lambda: ROOT.issue("mx.example.org", ends=timedelta(hours=-1)), "pem", 1, "the certificate expired on 20"
    ),
    "a certificate of tomorrow": (
        lambda: ROOT.issue("mx.example.org", starts=timedelta(hours=2)), "pem", 1, "is not valid before 20"
    ),
    "an expired chain": (
        lambda: Issued(GOOD.certificate + _expired_issuer(), GOOD.key), "pem", GOOD.certificate.count(b"\n") + 1, "expired on"
    ),
    "a chain in the wrong order": (
        lambda: Issued(ROOT.certificate + GOOD.certificate, GOOD.key),
        "pem", ROOT.certificate.count(b"\n") + 1, "it must be the first in the file",
    ),
    "a chain of somebody else": (
        lambda: Issued(CRLF + OTHER.certificate, GOOD.key), "pem", CRLF.count(b"\n") + 1, "put the chain in order"
    ),
    "a weak key": (lambda: ROOT.issue("mx.example.org", key=WEAK), "pem", 1, "key too small"),
}  # fmt: skip


def _expired_issuer() -> bytes:
    """A root of the same name and key whose time is over: only its dates matter here."""
    stale = Authority()
    return (
        stale._builder(stale._name, stale._key, timedelta(days=-2), timedelta(hours=-1))
        .sign(stale._key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


@pytest.mark.parametrize("story", BAD)
@pytest.mark.parametrize("place", ["default", "sni"])
def test_trouble_with_files(ready: Shelf, story: str, place: str) -> None:
    """The file, the line where there is one, and the reason with the fix; what was loaded before stays."""
    issue, suffix, line, why = BAD[story]
    files = ready.put(issue())
    good = ready.issue("new.example.org")
    before = ready.tls.expiry()
    default, sni = (files, [good]) if place == "default" else (good, [files])
    with pytest.raises(FileTrouble) as caught:
        ready.tls.load(default, sni)
    trouble = caught.value
    assert trouble.path == (files.certificate if suffix == "pem" else files.key)
    assert trouble.line == line
    assert why in trouble.reason
    assert str(trouble).startswith(f"{trouble.path}:{line}: " if line else f"{trouble.path}: ")
    assert ready.tls.expiry() == before
    assert ready.shown(None) == {"mx.example.org"}


def test_an_expired_certificate_is_better_than_none(ready: Shelf) -> None:
    """Where the caller says so, it is shown; who only wants good ones is refused as before."""
    files = ready.put(ROOT.issue("old.example.org", ends=timedelta(hours=-1)))
    ready.tls.load(files, also_expired=True)
    ((name, until),) = ready.tls.expiry()
    assert name == "old.example.org"
    assert until < NOW
    with pytest.raises(FileTrouble, match="expired on"):
        ready.tls.load(files)


def test_a_file_that_is_not_there(ready: Shelf) -> None:
    """Either file."""
    files = ready.issue("new.example.org")
    for missing in (files.certificate, files.key):
        Path(missing).rename(missing + ".old")
        with pytest.raises(FileTrouble, match=r"cannot be read: No such file") as caught:
            ready.tls.load(files)
        assert caught.value.path == missing
        Path(missing + ".old").rename(missing)
    ready.tls.load(files)


def test_names_that_the_certificate_does_not_bear(ready: Shelf) -> None:
    """To show it for them would only make clients turn away: say so when the files are read."""
    files = ready.put(
        ROOT.issue("mail.example.com", "*.example.net"), ("mail.example.com", "x.example.net", "y.example.org")
    )
    with pytest.raises(
        FileTrouble, match=r"does not name y\.example\.org, .* but mail\.example\.com, \*\.example\.net"
    ):
        ready.tls.load(files, [files])


def test_a_key_is_never_shown(shelf: Shelf) -> None:
    """Not in a `repr` of anything that is kept."""
    files = shelf.issue("mx.example.org")
    shelf.tls.load(files)
    assert "PRIVATE" not in repr(vars(shelf.tls))


def test_before_the_first_load(shelf: Shelf) -> None:
    """There is nothing to shake hands with."""
    with pytest.raises(RuntimeError, match="no certificate"):
        shelf.tls.channel()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.binary(min_size=1, max_size=20_000), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 60_000)),
)
def test_records_at_any_cut(ready: Shelf, version: ssl.TLSVersion, texts: list[bytes], cuts: list[int]) -> None:
    """All that came is told as soon as it is there: none of it waits for octets behind it, however the records were cut or joined."""
    client = MemoryClient(client_context(None, version))
    channel = opened(ready.tls, client)
    wire, ends = b"", {0: 0}
    for text in texts:
        wire += client.say(text)
        ends[len(wire)] = ends[max(ends)] + len(text)
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    heard = b""
    for begin, end in pairwise(edges):
        heard += channel.receive(wire[begin:end])
        assert len(heard) >= max(said for at, said in ends.items() if at <= end)
    assert heard == b"".join(texts)


def test_the_last_words_and_close_notify_are_one_piece(ready: Shelf) -> None:
    """A farewell of any length is said whole and closes; where the handshake is not over, not an octet of it is."""
    for last in (b"221 bye\r\n", bytes(40_000)):
        client = MemoryClient(client_context())
        channel = opened(ready.tls, client)
        assert client.feed(channel.close(last)) == last
        assert client.is_closed
    assert ready.tls.channel().close(b"421 bye\r\n") == b""
