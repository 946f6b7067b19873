"""TLS of outbound connections: who is spoken to, which certificate is believed, which session is taken up again.

TLS 1.2 at least (RFC 8996). Under "may" and "encrypt" any certificate is taken: encryption without authentication is
better than clear text, and MX hosts' certificates often name something else (RFC 7435). Under "verify" the chain must end
in a trusted root, and the certificate must name the host (RFC 7817 section 3; wildcards as RFC 6125).
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import ip_address
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from attrs import frozen
from OpenSSL import SSL
from service_identity import VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from zope.interface import implementer

from relaycluster.mail.outcome import Outcome
from relaycluster.mail.session import TLSFacts
from relaycluster.smtp.replies import printable

if TYPE_CHECKING:
    from twisted.protocols.tls import TLSMemoryBIOProtocol

MOST_SESSIONS = 1024

BROKEN_SECONDS = 300.0
"""So long a host that broke off in TLS is asked in clear under "may"; twice as long each time that TLS still breaks…"""
LONGEST_BROKEN_SECONDS = 3600.0
"""…up to this."""
MOST_BROKEN = 4096

_CERTIFICATE_TROUBLES = {
    7: "the certificate's signature is not its issuer's",
    9: "the certificate is not yet valid",
    10: "the certificate has expired",
    18: "the certificate is self-signed",
    19: "the certificate's chain ends in an unknown root",
    20: "the certificate's issuer is unknown",
    21: "the certificate's issuer is unknown",
    23: "the certificate is revoked",
}
"""OpenSSL's numbers (X509_V_ERR_…) for what happens; it tells the others by its general "certificate verify failed"."""


class NotTrusted(Exception):
    """The certificate does not belong to the host that we meant. The text says why, fit for a log and a notice."""


class ClientTLS:
    """Makes TLS connections to servers. One for the process: its two contexts are costly to make, it keeps one
    resumable session for each host and policy, the least recently used dropped first, and remembers whose TLS is broken.

    `ca_file` (PEM) takes the place of the system's trusted roots.
    """

    def __init__(self, ca_file: str | None = None, most_sessions: int = MOST_SESSIONS) -> None:
        self._opportunistic = _context()
        self._opportunistic.set_verify(SSL.VERIFY_NONE)
        self._verifying = _context()
        self._verifying.set_verify(SSL.VERIFY_PEER, self._note_trouble)
        if ca_file is None:
            self._verifying.set_default_verify_paths()
        else:
            self._verifying.load_verify_locations(ca_file)
        self._sessions: OrderedDict[tuple[str, int, bool], SSL.Session] = OrderedDict()
        self._most_sessions = most_sessions
        self._troubles: WeakKeyDictionary[SSL.Connection, int] = WeakKeyDictionary()
        self._broken: OrderedDict[tuple[str, int], _Broken] = OrderedDict()

    def connection_to(self, host: str, port: int, *, verify: bool) -> ConnectionCreator:
        """What Twisted's `startTLS` takes, once. `host` is a domain name (A-labels) or an IP address. With `verify`, a
        chain that is not trusted fails the handshake; after it, call `verify_host`. Raises ValueError, TypeError or
        SSL.Error for a name that can not be one."""
        connection = SSL.Connection(self._verifying if verify else self._opportunistic, None)
        # RFC 6066 section 3: names only, without the trailing dot.
        if not _is_ip_address(host):
            connection.set_tlsext_host_name(host.rstrip(".").encode("ascii"))
        session = self._sessions.get((host, port, verify))
        if session is not None:
            connection.set_session(session)
        return ConnectionCreator(connection)

    def verify_host(self, connection: SSL.Connection, host: str) -> None:
        """Raise `NotTrusted` unless the server's certificate names the host."""
        try:
            if _is_ip_address(host):
                verify_ip_address(connection, host)
            else:
                verify_hostname(connection, host.rstrip("."))
        except VerificationError as error:
            # The exceptions of service_identity show their fields, not a sentence.
            raise NotTrusted(f"the certificate does not name {host} ({type(error).__name__})") from error
        except Exception as error:
            # No names in it (a common name is none, RFC 9525 2), wildcards where none may be, or what no parser takes.
            why = printable(" ".join(str(error).split()).encode()[:200])
            raise NotTrusted(f"the certificate has no usable names: {why}") from error

    def remember(self, connection: SSL.Connection, host: str, port: int, *, verify: bool) -> None:
        """Keep the session for the next connection to the host (RFC 8446 2.2, RFC 5077). To be called once the first
        reply came: TLS 1.3 sends its tickets behind the handshake."""
        session = connection.get_session()
        if session is None:
            return
        key = (host, port, verify)
        self._sessions[key] = session
        self._sessions.move_to_end(key)
        if len(self._sessions) > self._most_sessions:
            self._sessions.popitem(last=False)

    def forget(self, host: str, port: int, *, verify: bool) -> None:
        """Let the session go: the handshake failed, and it should not be for a ticket's sake."""
        self._sessions.pop((host, port, verify), None)

    def certificate_trouble(self, connection: SSL.Connection) -> str:
        """What OpenSSL found wrong with the server's chain, in words for an operator; empty when that was not it."""
        return _CERTIFICATE_TROUBLES.get(self._troubles.get(connection, 0), "")

    def _note_trouble(
        self, connection: SSL.Connection, _certificate: object, number: int, _depth: int, is_good: int
    ) -> bool:
        """OpenSSL asks about each certificate of the chain. Its own judgement stands; what it says first is kept."""
        if not is_good:
            self._troubles.setdefault(connection, number)
        return bool(is_good)

    def note_broken(self, address: str, port: int, why: str, now: float) -> None:
        """The host breaks off in TLS, and works in clear. `now` is in seconds on the caller's clock."""
        known = self._broken.pop((address, port), None)
        seconds = BROKEN_SECONDS
        if known is not None:
            # Connections that break at the same time are one piece of news.
            seconds = known.seconds if now < known.until else min(2 * known.seconds, LONGEST_BROKEN_SECONDS)
        self._broken[address, port] = _Broken(why, now + seconds, seconds)
        if len(self._broken) > MOST_BROKEN:
            self._broken.popitem(last=False)

    def note_wanted(self, address: str, port: int) -> None:
        """TLS with the host works, or it takes nothing without: what was known of it counts no more."""
        self._broken.pop((address, port), None)

    def broken(self, address: str, port: int, now: float) -> str:
        """Why TLS with the host is not worth trying at present; empty when it is."""
        found = self._broken.get((address, port))
        return found.why if found is not None and now < found.until else ""


@frozen
class _Broken:
    """A host that broke off in TLS: why, and until when, for `seconds`, it is asked in clear."""

    why: str
    until: float
    seconds: float


def is_required_by(said: Outcome) -> bool:
    """Whether a host refused because the session is in clear: 530 (RFC 3207 4), or in so many words ("451 5.7.3 STARTTLS is required")."""
    reply = said.reply
    return reply.code == 530 or (reply.code >= 400 and reply.heard and "starttls" in str(reply).lower())


@implementer(IOpenSSLClientConnectionCreator)
class ConnectionCreator:
    """Made beforehand, so that what can go wrong goes wrong before Twisted has put TLS on the transport. `connection` is what
    it gives to Twisted, which forgets it when it fails."""

    def __init__(self, connection: SSL.Connection) -> None:
        self.connection = connection

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See `IOpenSSLClientConnectionCreator`."""
        return self.connection


def facts(connection: SSL.Connection) -> TLSFacts:
    """What was negotiated."""
    return TLSFacts(connection.get_protocol_version_name(), connection.get_cipher_name() or "")


def reason(error: BaseException | None) -> str:
    """Why TLS failed, in one line for logs and notices."""
    if isinstance(error, SSL.Error) and error.args and isinstance(error.args[0], list):
        texts = [entry[-1] for entry in error.args[0] if entry and entry[-1]]
        if texts:
            return ", ".join(texts)
    return " ".join(str(error).split()) or type(error).__name__


def _context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    # An idle connection keeps no 34 KB of record buffers.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    return context


def _is_ip_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
