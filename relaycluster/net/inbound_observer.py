"""Who hears what inbound sessions do: the promise, and one who says nothing."""

from __future__ import annotations

from typing import Protocol

from twisted.logger import Logger
from twisted.python.failure import Failure

from relaycluster.mail.reply import Reply
from relaycluster.mail.session import Session
from relaycluster.metrics import ProxyResult


class InboundObserver(Protocol):
    """Hears what happens, for metrics and the event log. Reasons and verbs come from fixed sets; calls must be cheap."""

    def connection_opened(self, session: Session) -> None:
        """A client connected and was counted in."""

    def connection_closed(self, session: Session, seconds: float, messages: int, refused: int, why: str) -> None:
        """It is gone, after so long, so many messages with a positive reply and so many refused commands. `why`: `quit`, `lost`,
        `timeout`, `tls`, or the reply that ended it."""

    def command(self, verb: str, code: int) -> None:
        """A reply was given. `verb` is a command's name, or OTHER, NOT IMPLEMENTED, FOREIGN, CONNECT, DOT, FAREWELL."""

    def message(self, session: Session, reply: Reply, size: int, seconds: float, reverse_path: str) -> None:
        """A whole message of `size` octets was answered, `seconds` after its final dot."""

    def rejected(
        self, session: Session, reason: str, reply: Reply, reverse_path: str = "", forward_path: str = ""
    ) -> None:
        """Something was refused. `reason`: draining, connections, connections_per_client, connection_rate, connect, auth, mail,
        recipient, data, content, command_timeout, data_timeout, transaction_time, data_rate, internal; and, where the client could
        not be told `reply` any more: tls, tls_timeout, proxy_untrusted, proxy_malformed, proxy_timeout."""

    def proxied(self, result: ProxyResult) -> None:
        """A listener for the PROXY protocol knows what to think of a connection."""

    def failed(self, session: Session, failure: Failure) -> None:
        """An exception inside; the client was told 4yz."""


class SilentObserver:
    """Counts nothing; internal errors go to Twisted's log."""

    _log = Logger()

    def connection_opened(self, session: Session) -> None:
        """Nothing."""

    def connection_closed(self, session: Session, seconds: float, messages: int, refused: int, why: str) -> None:
        """Nothing."""

    def command(self, verb: str, code: int) -> None:
        """Nothing."""

    def message(self, session: Session, reply: Reply, size: int, seconds: float, reverse_path: str) -> None:
        """Nothing."""

    def rejected(
        self, session: Session, reason: str, reply: Reply, reverse_path: str = "", forward_path: str = ""
    ) -> None:
        """Nothing."""

    def proxied(self, result: ProxyResult) -> None:
        """Nothing."""

    def failed(self, session: Session, failure: Failure) -> None:
        """Log it."""
        self._log.failure("inbound session {session_id}", failure, session_id=session.id)
