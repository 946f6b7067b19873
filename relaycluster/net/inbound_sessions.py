"""All inbound sessions of the process: how many there may be, when there are almost too many, and how they end when it stops."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Final, Protocol

from attrs import field, frozen
from twisted.internet.defer import Deferred

from relaycluster.mail.reply import Reply
from relaycluster.net.client_rates import ClientRates
from relaycluster.policy.client import client_of
from relaycluster.policy.rate import Rate


@frozen
class SessionLimits:
    """Limits on sessions in this process, whatever the listener.

    `command_timeout_seconds` runs from our last reply to the end of the next command, `data_timeout_seconds` from one
    piece of content to the next (RFC 5321 4.5.3.2.7), `transaction_seconds` from MAIL to the final dot.
    `minimum_data_rate` in octets per second is an average over the content so far, with `data_rate_grace_seconds` before
    it counts and without the time in which we kept the client waiting. `close_timeout_seconds` is what a client has to
    take the last reply, `handshake_seconds` what it has for the whole TLS handshake.

    `connections_per_client` and `connection_rate_per_client` (None: no limit) count an IPv6 network of 64 bits as one client.

    From `stress_at` of `connections` on, slots are about to run out: until seven eighths of that are open, a command must come within
    `stress_seconds`, and new sessions are closed after more than `stress_errors` errors. Above 1 there is no stress.
    """

    connections: int = 2000
    connections_per_client: int = 100
    command_timeout_seconds: float = 300.0
    data_timeout_seconds: float = 600.0
    transaction_seconds: float = 1800.0
    minimum_data_rate: float = 500.0
    data_rate_grace_seconds: float = 30.0
    close_timeout_seconds: float = 10.0
    handshake_seconds: float = 30.0
    connection_rate_per_client: Rate | None = None
    stress_at: float = 0.8
    stress_seconds: float = 10.0
    stress_errors: int = 1
    shortest_seconds: float = field(init=False)
    """No deadline of a session is nearer than this when its state changes: as often its one timer looks at it."""
    stress_from: float = field(init=False)
    """So many connections are stress."""

    @shortest_seconds.default
    def _(self) -> float:
        return min(
            self.command_timeout_seconds,
            self.data_timeout_seconds,
            self.transaction_seconds,
            self.data_rate_grace_seconds,
            self.handshake_seconds,
        )

    @stress_from.default
    def _(self) -> float:
        return max(1.0, self.connections * self.stress_at)


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
_TOO_OFTEN: Final = Refusal(
    "connection_rate", 421, "4.7.0", "Too many connections from your address in a short time, try again later"
)


class OpenSession(Protocol):
    """A session as this module sees it."""

    def drain(self) -> None:
        """Close with 421 as soon as no transaction is open."""

    def abandon(self) -> None:
        """Close with 421 now."""


class InboundSessions:
    """The sessions of all listeners of the process; one object, given to every `InboundFactory`.

    `limits` may be replaced: what is open stays open. `on_stress`, when set, is called with True when stress begins and with False
    when it is over.
    """

    def __init__(self, limits: SessionLimits) -> None:
        self.limits = limits
        self.connections = 0
        self.draining = False
        self.is_stressed = False
        self.on_stress: Callable[[bool], None] | None = None
        self._by_client: dict[str, int] = {}
        self._rates = ClientRates()
        self._sessions: set[OpenSession] = set()
        self._waiting: list[Deferred[None]] = []
        self._numbers = count(1)

    def __len__(self) -> int:
        """Sessions that are not over: connected, or with a message whose fate is not yet known."""
        return len(self._sessions)

    def next_id(self) -> str:
        """An id for a new session, short and unique within the process's life."""
        return f"{next(self._numbers):x}"

    def admit(self, session: OpenSession, address: str, now_seconds: float) -> Refusal | None:
        """Count a new connection in, or say why it is turned away. `address` is the client's; empty for one that is nobody's: a
        balancer's own check, which must not fail because there are many of them, or a UNIX socket."""
        limits = self.limits
        if self.draining:
            return DRAINING
        if self.connections >= limits.connections:
            return _TOO_MANY
        if address:
            client = client_of(address)
            count = self._by_client.get(client, 0)
            if count >= limits.connections_per_client:
                return _TOO_MANY_OF_CLIENT
            rate = limits.connection_rate_per_client
            if rate is not None and not self._rates.spend(client, rate, now_seconds):
                return _TOO_OFTEN
            self._by_client[client] = count + 1
        self.connections += 1
        self._sessions.add(session)
        if not self.is_stressed and self.connections >= limits.stress_from:
            self._stress(True)
        return None

    def disconnected(self, address: str) -> None:
        """The connection of an admitted session is gone."""
        self.connections -= 1
        if address:
            client = client_of(address)
            count = self._by_client[client] - 1
            if count:
                self._by_client[client] = count
            else:
                del self._by_client[client]
        if self.is_stressed and self.connections < self.limits.stress_from * 0.875:
            self._stress(False)

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

    def _stress(self, begins: bool) -> None:
        self.is_stressed = begins
        if self.on_stress is not None:
            self.on_stress(begins)

    def _tell_if_gone(self) -> None:
        if not self._sessions:
            waiting, self._waiting = self._waiting, []
            for gone in waiting:
                gone.callback(None)
