"""The certificates of our listeners: read from files, chosen by the name that the client asks for, replaced while sessions are open.

TLS 1.2 at least (RFC 8996). `load` takes all files or none: what is wrong with one of them is a `FileTrouble`, and what was loaded
before stays. Sessions that are open keep what they began with; a client's ticket stays good across a `load`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from attrs import field, frozen
from OpenSSL import SSL

from relaycluster.net.certificate_files import Certificate, CertificateFiles, read_certificate
from relaycluster.net.tls_channel import TLSChannel

__all__ = ["CertificateFiles", "ServerTLS"]

_MINIMUM: Final = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}

_CIPHERS_1_2: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:!aNULL:!eNULL:!PSK"
"""Of TLS 1.2 only what has forward secrecy; CBC last, for mail servers of ten years ago. Those of 1.3 are all good."""

TICKET_KEY_SECONDS: Final = 12 * 3600.0
"""So long a key encrypts session tickets: whoever learns it can read the TLS 1.2 sessions that were resumed under it."""


@frozen
class _Shown:
    """What may be shown to clients: contexts by name, and the one for everybody else."""

    default: SSL.Context
    by_name: Mapping[str, SSL.Context] = field(factory=dict)
    expiry: tuple[tuple[str, float], ...] = ()

    def choose(self, name: str) -> SSL.Context:
        """For this name: itself, else a wildcard for its first label (RFC 6125 6.4.3), else the default."""
        by_name = self.by_name
        return by_name.get(name) or by_name.get(f"*.{name.partition('.')[2]}") or self.default


class ServerTLS:
    """TLS for all listeners of a process.

    `minimum` is "1.2" or "1.3"; `epoch_seconds` gives the time of day, against which certificates are held. Connections can be
    made after the first `load`.

    Every connection is made from one context that has no certificate: it holds the key of the session tickets, which so outlives a
    `load`. The certificate's context is put in its place when the client has said which name it wants.
    """

    def __init__(self, minimum: str, epoch_seconds: Callable[[], float]) -> None:
        self._minimum = _MINIMUM[minimum]
        self._epoch_seconds = epoch_seconds
        self._shown: _Shown | None = None
        self._front = self._new_front()
        self._front_until = epoch_seconds() + TICKET_KEY_SECONDS

    def load(
        self, default: CertificateFiles, sni: Sequence[CertificateFiles] = (), *, also_expired: bool = False
    ) -> None:
        """Read the files and use them for connections from now on. `default` is shown to clients that name no host, or one that no
        other has; its own `names` are ignored. Where two of `sni` have a name, the first is shown. Raises `FileTrouble`; then
        nothing has changed. With `also_expired` those that have ended are taken too: where there is nothing better, a session that the
        client may refuse is more than none."""
        now = self._epoch_seconds()
        first = read_certificate(default, now, also_expired=also_expired)
        others = [(files, read_certificate(files, now, also_expired=also_expired)) for files in sni]
        by_name: dict[str, SSL.Context] = {}
        for files, certificate in others:
            context = _certificate_context(certificate)
            for name in files.names or certificate.names:
                by_name.setdefault(name.lower().rstrip("."), context)
        expiry: dict[str, float] = {}
        for certificate in (first, *(certificate for _, certificate in others)):
            expiry[certificate.label] = min(
                certificate.expires_at, expiry.get(certificate.label, certificate.expires_at)
            )
        self._shown = _Shown(_certificate_context(first), by_name, tuple(expiry.items()))

    def require(self, minimum: str) -> None:
        """Another minimum, "1.2" or "1.3", for connections from now on. A change of it makes the tickets void that are out."""
        if _MINIMUM[minimum] != self._minimum:
            self._minimum = _MINIMUM[minimum]
            self._front = self._new_front()

    def expiry(self) -> Sequence[tuple[str, float]]:
        """Of each certificate that was loaded: its first name, and when it or one of its chain ends, in seconds since the epoch."""
        return self._shown.expiry if self._shown is not None else ()

    def channel(self) -> TLSChannel:
        """TLS for one new connection."""
        if self._shown is None:
            raise RuntimeError("no certificate was loaded")
        if self._epoch_seconds() >= self._front_until:
            self._front = self._new_front()
            self._front_until = self._epoch_seconds() + TICKET_KEY_SECONDS
        return TLSChannel(SSL.Connection(self._front, None))

    def _new_front(self) -> SSL.Context:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(self._minimum)
        context.set_cipher_list(_CIPHERS_1_2)
        context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
        # An idle connection keeps no 34 KB of record buffers.
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        # Tickets hold the whole session at the client: nothing is kept here.
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_session_id(b"relaycluster")
        context.set_tlsext_servername_callback(self._named)
        return context

    def _named(self, connection: SSL.Connection) -> None:
        """The client's first message is here, whether it names a host (RFC 6066 3) or not."""
        shown = self._shown
        assert shown is not None
        name = connection.get_servername()
        if name is None or not shown.by_name:
            connection.set_context(shown.default)
        else:
            connection.set_context(shown.choose(name.decode("ascii", "replace").lower().rstrip(".")))


def _certificate_context(certificate: Certificate) -> SSL.Context:
    """A context from which nothing but the certificate, its chain and its key are taken."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_session_id(b"relaycluster")
    certificate.use_in(context)
    return context
