"""All inbound sessions of the process: how many there may be, and how they end when the process stops."""

from __future__ import annotations

from itertools import count
from typing import Final, Protocol

from attrs import field, frozen
from twisted.internet.defer import Deferred

from relaycluster.mail.reply import Reply


@frozen
class SessionLimits:
    """Limits on sessions in this process, whatever the listener.

    `command_timeout_seconds` runs from our last reply to the end of the next command, `data_timeout_seconds` from one
    piece of content to the next (RFC 5321 4.5.3.2.7), `transaction_seconds` from MAIL to the final dot.
    `minimum_data_rate` in octets per second is an average over the content so far, with `data_rate_grace_seconds` before
    it counts and without the time in which we kept the client waiting. `close_timeout_seconds` is what a client has to
    take the last reply.
    """

    connections: int = 2000
    connections_per_client: int = 100
    command_timeout_seconds: float = 300.0
    data_timeout_seconds: float = 600.0
    transaction_seconds: float = 1800.0
    minimum_data_rate: float = 500.0
    data_rate_grace_seconds: float = 30.0
    close_timeout_seconds: float = 10.0
    shortest_seconds: float = field(init=False)
    """No deadline of a session is nearer than this when its state changes: as often its one timer looks at it."""

    @shortest_seconds.default
    def _(self) -> float:
        return min(
            self.command_timeout_seconds,
            self.data_timeout_seconds,
            self.transaction_seconds,
            self.data_rate_grace_seconds,
        )


@frozen
class Refusal:
    """Why a new connection is turned away: a reason for the metrics, and code, enhanced code and text of the reply."""

    reason: str
    code: int
    enhanced: str
    text: str

    def reply(self, hostname: str) -> Reply:
        """The reply in place of the greeting (RFC 5321 4.2.3: 421 begins with the host's name)."""
        return Reply.of(self.code, self.enhanced, f"{hostname} {self.text}")


DRAINING: Final = Refusal("draining", 421, "4.3.2", "Service is stopping, try again later")
_TOO_MANY: Final = Refusal("connections", 421, "4.3.2", "Too many connections, try again later")
_TOO_MANY_OF_CLIENT: Final = Refusal(
    "connections_per_client", 421, "4.7.0", "Too many connections from your address, try again later"
)


class OpenSession(Protocol):
    """A session as this module sees it."""

    def drain(self) -> None:
        """Close with 421 as soon as no transaction is open."""

    def abandon(self) -> None:
        """Close with 421 now."""


class InboundSessions:
    """The sessions of all listeners of the process; one object, given to every `InboundFactory`."""

    def __init__(self, limits: SessionLimits) -> None:
        self.limits = limits
        self.connections = 0
        self.draining = False
        self._by_client: dict[str, int] = {}
        self._sessions: set[OpenSession] = set()
        self._waiting: list[Deferred[None]] = []
        self._numbers = count(1)

    def __len__(self) -> int:
        """Sessions that are not over: connected, or with a message whose fate is not yet known."""
        return len(self._sessions)

    def next_id(self) -> str:
        """An id for a new session, short and unique within the process's life."""
        return f"{next(self._numbers):x}"

    def admit(self, session: OpenSession, client: str) -> Refusal | None:
        """Count a new connection in, or say why it is turned away."""
        if self.draining:
            return DRAINING
        if self.connections >= self.limits.connections:
            return _TOO_MANY
        count = self._by_client.get(client, 0)
        if count >= self.limits.connections_per_client:
            return _TOO_MANY_OF_CLIENT
        self._by_client[client] = count + 1
        self.connections += 1
        self._sessions.add(session)
        return None

    def disconnected(self, client: str) -> None:
        """The connection of an admitted session is gone."""
        self.connections -= 1
        count = self._by_client[client] - 1
        if count:
            self._by_client[client] = count
        else:
            del self._by_client[client]

    def over(self, session: OpenSession) -> None:
        """Nothing of the session is left."""
        self._sessions.discard(session)
        self._tell_if_gone()

    def drain(self) -> Deferred[None]:
        """Turn new connections away, close idle sessions with 421, let open transactions come to their reply and close them
        then. Fires when no session is left; never fails. The listeners themselves are closed by whoever opened them."""
        self.draining = True
        gone: Deferred[None] = Deferred()
        self._waiting.append(gone)
        for session in list(self._sessions):
            session.drain()
        self._tell_if_gone()
        return gone

    def abandon(self) -> None:
        """Close what is left with 421, whatever it is doing: the drain's deadline has passed."""
        self.draining = True
        for session in list(self._sessions):
            session.abandon()

    def _tell_if_gone(self) -> None:
        if not self._sessions:
            waiting, self._waiting = self._waiting, []
            for gone in waiting:
                gone.callback(None)
