"""What inbound sessions do, as metrics and events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from twisted.python.failure import Failure

from relaycluster import events
from relaycluster.events import EventLog
from relaycluster.interfaces import Login
from relaycluster.mail.reply import Reply
from relaycluster.mail.session import Session
from relaycluster.metrics import AuthResult, Metrics, ProxyResult, TLSVersion
from relaycluster.node.login import LoginResult

_TLS_VERSIONS: Final[Mapping[str, TLSVersion]] = {"TLSv1.2": "TLSv1.2", "TLSv1.3": "TLSv1.3"}
_PROXY_TROUBLE: Final[Mapping[str, str]] = {
    "proxy_untrusted": "the peer is not in proxy_protocol_from",
    "proxy_malformed": "what it sent is not a PROXY header",
    "proxy_timeout": "no PROXY header came in time",
}
_LOGINS: Final[Mapping[LoginResult, AuthResult]] = {
    LoginResult.ACCEPTED: "accepted",
    LoginResult.CREDENTIALS: "refused",
    LoginResult.IDENTITY: "refused",
    LoginResult.BACKOFF: "backoff",
    LoginResult.BUSY: "unavailable",
    LoginResult.UNAVAILABLE: "unavailable",
}
_HANDSHAKES: Final = frozenset({"tls", "tls_timeout"})
_BEFORE_ANY_COMMAND: Final = (
    frozenset({"draining", "connections", "connections_per_client", "connection_rate"})
    | _HANDSHAKES
    | _PROXY_TROUBLE.keys()
)
MOST_TOLD_A_SECOND: Final = 20
"""So many connections that were refused before they said anything have a line of their own: a flood of them is no flood of the log."""


class Observer:
    """See `net.inbound_observer.InboundObserver` and `node.login.LoginObserver`. `seconds` is a clock that never goes back."""

    def __init__(self, metrics: Metrics, log: EventLog, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._second = self._told = self._untold = 0
        self._metrics = metrics
        self._log = log
        self.command = metrics.smtp_command

    def connection_opened(self, session: Session) -> None:
        """One more."""
        self._metrics.smtp_connections[session.listener].inc()
        self._metrics.smtp_sessions.inc()

    def connection_closed(self, session: Session, seconds: float, messages: int, refused: int, why: str) -> None:
        """One less, and its line. `refused` counts the commands that were refused, `why` says how it ended."""
        tls = session.tls
        version = "none" if tls is None else _TLS_VERSIONS.get(tls.version, "other")
        self._metrics.smtp_tls_sessions[version].inc()
        self._metrics.smtp_sessions.dec()
        self._log.emit(
            events.SessionClosed(
                session.id,
                session.listener,
                _peer(session),
                session.helo,
                _tls(session),
                session.user,
                messages,
                refused,
                seconds,
                why,
                session.via,
            )
        )

    def message(self, session: Session, reply: Reply, size: int, seconds: float, reverse_path: str) -> None:
        """A whole message was answered."""
        metrics = self._metrics
        if reply.code == 250:
            metrics.smtp_messages["queued"].inc()
            metrics.smtp_accept_seconds.observe(seconds)
        else:
            metrics.smtp_messages["deferred" if reply.is_transient else "refused"].inc()
            metrics.smtp_reject(reply)
            self._refused(session, "content", reply, reverse_path, size=size)

    def rejected(
        self, session: Session, reason: str, reply: Reply, reverse_path: str = "", forward_path: str = ""
    ) -> None:
        """Something was refused."""
        if reason not in _PROXY_TROUBLE:
            if reason in _HANDSHAKES:
                self._metrics.smtp_tls_failures.inc()
            else:
                self._metrics.smtp_reject(reply)
        if reason in _BEFORE_ANY_COMMAND and not self._may_tell():
            return
        if reason in _PROXY_TROUBLE:
            self._log.emit(events.ProxyRefused(session.listener, _peer(session), _PROXY_TROUBLE[reason]))
            return
        if reason != "auth":  # `login` has told it, with the name
            self._refused(session, reason, reply, reverse_path, forward_path)

    def _may_tell(self) -> bool:
        second = int(self._seconds())
        if second != self._second:
            if self._untold:
                text = f"{self._untold} more connections were refused before they said anything; the metrics have counted them"
                self._log.emit(events.Warning(text, "listener"))
            self._second, self._told, self._untold = second, 0, 0
        self._told += 1
        if self._told > MOST_TOLD_A_SECOND:
            self._untold += 1
            return False
        return True

    def login(self, session: Session, login: Login, result: LoginResult, seconds: float) -> None:
        """A login was answered."""
        self._metrics.smtp_auth[_LOGINS[result]].inc()
        if result is not LoginResult.ACCEPTED:
            self._log.emit(
                events.AuthFailed(
                    session.id,
                    _peer(session),
                    login.user,
                    login.mechanism,
                    result.value,
                    session.via,
                    _tls(session),
                )
            )

    def shut(self, session: Session, subject: str, seconds: float) -> None:
        """After failures, logins of a client or for a user are refused unseen."""
        self._log.emit(events.AuthLockedOut(session.id, _peer(session), subject, seconds, session.via))

    def proxied(self, result: ProxyResult) -> None:
        """What a PROXY header said."""
        self._metrics.smtp_proxy[result].inc()

    def stressed(self, under_stress: bool, sessions: int, limit: int) -> None:
        """Session slots began to run out, or there is room again."""
        self._metrics.smtp_stress.set(1 if under_stress else 0)
        self._log.emit(
            events.StressBegan(sessions, limit) if under_stress else events.StressEnded(sessions, limit),
        )

    def _refused(
        self, session: Session, stage: str, reply: Reply, reverse_path: str, forward_path: str = "", size: int = 0
    ) -> None:
        self._log.emit(
            events.MessageRefused(
                session.id,
                _peer(session),
                stage,
                str(reply),
                session.user,
                reverse_path,
                forward_path,
                tls=_tls(session),
                via=session.via,
                size=size,
            )
        )

    def failed(self, session: Session, failure: Failure) -> None:
        """A fault of our own."""
        self._log.emit(events.Error.of(failure, f"session {session.id}"))


def _peer(session: Session) -> str:
    address = session.peer_address
    return f"[{address}]:{session.peer_port}" if ":" in address else f"{address}:{session.peer_port}"


def _tls(session: Session) -> str:
    return str(session.tls) if session.tls is not None else ""
