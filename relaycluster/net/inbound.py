"""Inbound SMTP over sockets: what makes the sessions of a listener.

The session itself is in `inbound_protocol.py`.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory

from relaycluster.interfaces import IIntake
from relaycluster.mail.reply import Reply
from relaycluster.mail.session import Session
from relaycluster.metrics import ProxyResult
from relaycluster.net.inbound_observer import InboundObserver, SilentObserver
from relaycluster.net.inbound_protocol import InboundProtocol
from relaycluster.net.inbound_sessions import InboundSessions, SessionLimits
from relaycluster.net.peer import Origin
from relaycluster.net.server_tls import ServerTLS
from relaycluster.smtp.server_settings import Dialect, ServerSettings

__all__ = ["InboundFactory", "InboundObserver", "InboundProtocol", "InboundSessions", "SessionLimits", "SilentObserver"]


class InboundFactory(Factory):
    """Makes the sessions of one listener. `dialect`, `intake` and `tls` may be replaced; sessions that are open keep theirs."""

    noisy = False

    def __init__(
        self,
        *,
        intake: IIntake,
        settings: ServerSettings,
        sessions: InboundSessions,
        clock: IReactorTime,
        listener: str,
        mode: str,
        observer: InboundObserver | None = None,
        tls: ServerTLS | None = None,
        implicit_tls: bool = False,
    ) -> None:
        """`listener` and `mode` go into each `Session`. `sessions` is shared by all listeners of the process, `tls` may be. With
        `implicit_tls` the connection begins with the handshake (RFC 8314 3.3); else `settings.starttls` offers it. Either needs
        `tls`."""
        if tls is None and (implicit_tls or settings.starttls):
            raise ValueError("TLS on a listener needs certificates")
        self.intake = intake
        self.dialect = Dialect(settings)
        self.sessions = sessions
        self.clock = clock
        self.listener = listener
        self.mode = mode
        self.observer: InboundObserver = observer if observer is not None else SilentObserver()
        self.tls = tls
        self.implicit_tls = implicit_tls

    def buildProtocol(self, addr: IAddress | None) -> InboundProtocol:
        """A session. Who is there is learned from its transport, unless `addr` is the `Origin` that a PROXY header told."""
        return InboundProtocol(self, addr if isinstance(addr, Origin) else None)

    def turned_away(self, origin: Origin, result: ProxyResult, why: str) -> None:
        """The PROXY gate closed a connection before it came to a session."""
        self.observer.proxied(result)
        reply = Reply.of(421, "4.7.0", why)
        self.observer.rejected(self.session_of(origin), f"proxy_{result}", reply)

    def session_of(self, origin: Origin) -> Session:
        """A new session's facts."""
        return Session(
            self.sessions.next_id(),
            self.listener,
            self.mode,
            origin.peer_address,
            origin.peer_port,
            origin.local_address,
            origin.local_port,
            via=origin.via,
        )

    def drain(self) -> Deferred[None]:
        """`InboundSessions.drain`, of all listeners that share the sessions."""
        return self.sessions.drain()
