"""What inbound sessions do, as metrics and events."""

from __future__ import annotations

from twisted.python.failure import Failure

from relaycluster import events
from relaycluster.events import EventLog
from relaycluster.mail.reply import Reply
from relaycluster.mail.session import Session
from relaycluster.metrics import Metrics


class Observer:
    """See `net.inbound.InboundObserver`."""

    def __init__(self, metrics: Metrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        self.command = metrics.smtp_command

    def connection_opened(self, session: Session) -> None:
        """One more."""
        self._metrics.smtp_connections[session.listener].inc()
        self._metrics.smtp_sessions.inc()

    def connection_closed(self, session: Session, seconds: float, messages: int) -> None:
        """One less, and its line."""
        self._metrics.smtp_sessions.dec()
        self._log.emit(
            events.SessionClosed(
                session.id,
                session.listener,
                f"{session.peer_address}:{session.peer_port}",
                session.helo,
                f"{session.tls.version} {session.tls.cipher}" if session.tls else "",
                session.user,
                messages,
                0,
                seconds,
            )
        )

    def message(self, session: Session, reply: Reply, size: int, seconds: float) -> None:
        """A whole message was answered."""
        metrics = self._metrics
        if reply.code == 250:
            metrics.smtp_messages["queued"].inc()
            metrics.smtp_accept_seconds.observe(seconds)
        else:
            metrics.smtp_messages["deferred" if reply.is_transient else "refused"].inc()
            metrics.smtp_reject(reply)
            self._refused(session, "content", reply)

    def rejected(self, session: Session, reason: str, reply: Reply) -> None:
        """Something was refused."""
        self._metrics.smtp_reject(reply)
        self._refused(session, reason, reply)

    def _refused(self, session: Session, stage: str, reply: Reply) -> None:
        peer = f"{session.peer_address}:{session.peer_port}"
        self._log.emit(events.MessageRefused(session.id, peer, stage, str(reply), session.user))

    def failed(self, session: Session, failure: Failure) -> None:
        """A fault of our own."""
        kind = type(failure.value).__name__
        self._log.emit(events.Error(kind, f"session {session.id}", str(failure.value), failure.getTraceback()))
