"""One DNS question to the configured servers: failover, EDNS and TCP fallback, deadlines, a bounded number at once.

What one server cannot answer, the next is asked; what none answers within the deadline is `LookupTrouble`. Nothing is
kept here: `net/resolver.py` has the cache and joins equal questions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import assert_never

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.interfaces import IReactorTime

from relaycluster.net.dns_exchange import IOReactor, ask_tcp, ask_udp
from relaycluster.net.dns_wire import (
    MOST_CNAMES,
    Continues,
    Final,
    Found,
    NoData,
    NoName,
    Question,
    Reading,
    ServerTrouble,
    Stray,
    Truncated,
    encode_query,
    read_packet,
)
from relaycluster.policy.routing import HostPort


@frozen
class ClientSettings:
    """`try_seconds`: how long one server is waited for in the first round; twice as long in each further one.
    `deadline_seconds`: the longest that one lookup takes, waiting for its turn included. `avoid_seconds`: how long a
    server that is down is asked last, before one lookup tries it again. `lookups_at_once` and `lookups_waiting`: beyond both, a lookup is trouble
    at once."""

    servers: tuple[HostPort, ...]
    try_seconds: float = 2.0
    deadline_seconds: float = 10.0
    avoid_seconds: float = 30.0
    lookups_at_once: int = 200
    lookups_waiting: int = 20_000


@frozen
class LookupTrouble:
    """No server gave a usable answer; `reason` names each and what it did."""

    reason: str


Lookup = Found | NoData | NoName | LookupTrouble


MOST_SILENCES = 3
"""So many tries in a row without an answer, and a server counts as down. One is not enough: a server is also silent
while it waits for the dead servers of one domain, which must not cost it its place for all others."""


class DNSClient:
    """Asks. `reactor` has the sockets, `clock` the time; `random_bits` as `secrets.randbits`: query ids must not be
    guessable."""

    def __init__(
        self,
        reactor: IOReactor,
        clock: IReactorTime,
        settings: ClientSettings,
        random_bits: Callable[[int], int],
    ) -> None:
        if not settings.servers:
            raise ValueError("a DNS client needs at least one server")
        self._reactor = reactor
        self._clock = clock
        self._settings = settings
        self._random_bits = random_bits
        self._turns = _Turns(settings.lookups_at_once, settings.lookups_waiting)
        self._silences: dict[HostPort, int] = {}
        self._avoided_until: dict[HostPort, float] = {}

    def lookup(self, name: str, record_type: int) -> Deferred[Lookup]:
        """Ask for the records of `record_type` at `name`, a host name in lower case. Never fails, except with the
        CancelledError of the one who cancels, which ends all work for it at once."""
        troubles: dict[HostPort, str] = {}
        seconds = self._settings.deadline_seconds
        answer: Deferred[Lookup] = Deferred.fromCoroutine(self._in_turn(Question(name, record_type), troubles))
        answer.addTimeout(seconds, self._clock)

        def too_late(_: object) -> Lookup:
            seen = _sentence(troubles) or "no turn to ask"
            return LookupTrouble(f"no answer within {seconds:g} s: {seen}")

        return answer.addErrback(lambda failure: failure.trap(TookTooLong) and too_late(failure))

    async def _in_turn(self, question: Question, troubles: dict[HostPort, str]) -> Lookup:
        turn = self._turns.take()
        if turn is None:
            return LookupTrouble("too many lookups are waiting")
        await turn
        try:
            return await self._chase(question, troubles)
        finally:
            self._turns.give_back()

    async def _chase(self, question: Question, troubles: dict[HostPort, str]) -> Lookup:
        """A server that resolves for us brings the whole chain of CNAMEs; others leave a rest to ask for."""
        ttl_seconds: int | None = None
        for _ in range(MOST_CNAMES):
            answer = await self._ask_all(question, troubles)
            if not isinstance(answer, Continues):
                return answer if ttl_seconds is None else _no_longer_than(answer, ttl_seconds)
            ttl_seconds = answer.ttl_seconds if ttl_seconds is None else min(ttl_seconds, answer.ttl_seconds)
            question = Question(answer.name, question.record_type)
        return LookupTrouble("CNAME chain too long")

    async def _ask_all(self, question: Question, troubles: dict[HostPort, str]) -> Final | Continues | LookupTrouble:
        """In rounds over the servers: one that said something unusable has had its say, one that was silent is asked
        again. Ends by the deadline, which cancels it."""
        servers = self._in_order()
        seconds = self._settings.try_seconds
        while servers:
            silent = []
            for server in servers:
                reading = await self._ask(server, question, seconds)
                if reading is None:
                    troubles[server] = "timed out"
                    silent.append(server)
                    self._silences[server] = self._silences.get(server, 0) + 1
                    if self._silences[server] >= MOST_SILENCES:
                        self._avoid(server)
                elif isinstance(reading, ServerTrouble):
                    troubles[server] = reading.reason
                    if reading.is_down:
                        self._avoid(server)
                else:
                    return reading
            servers = silent
            seconds *= 2
        return LookupTrouble(_sentence(troubles))

    async def _ask(
        self, server: HostPort, question: Question, seconds: float
    ) -> Final | Continues | ServerTrouble | None:
        """One try with one server; None when it said nothing within `seconds`."""
        attempt = Deferred.fromCoroutine(self._converse(server, question))
        try:
            return await attempt.addTimeout(seconds, self._clock)
        except TookTooLong:
            return None

    async def _converse(self, server: HostPort, question: Question) -> Final | Continues | ServerTrouble:
        reading = await self._exchange(ask_udp, server, question)
        if not (isinstance(reading, ServerTrouble) and reading.is_down):
            self._silences.pop(server, None)
            self._avoided_until.pop(server, None)
        with_edns = True
        if isinstance(reading, ServerTrouble) and reading.without_edns:  # RFC 6891 6.2.2
            with_edns = False
            reading = await self._exchange(ask_udp, server, question, with_edns)
        if isinstance(reading, Truncated):
            reading = await self._exchange(ask_tcp, server, question, with_edns)
        match reading:
            case Found() | NoData() | NoName() | Continues() | ServerTrouble():
                return reading
            case Truncated() | Stray():
                return ServerTrouble("no usable answer")
            case _:
                assert_never(reading)

    def _exchange(
        self,
        ask: Callable[[IOReactor, HostPort, bytes, Callable[[bytes], Reading]], Deferred[Reading]],
        server: HostPort,
        question: Question,
        with_edns: bool = True,
    ) -> Deferred[Reading]:
        query_id = self._random_bits(16)
        query = encode_query(question, query_id, with_edns)
        return ask(self._reactor, server, query, lambda packet: read_packet(packet, question, query_id))

    def _avoid(self, server: HostPort) -> None:
        self._avoided_until[server] = self._clock.seconds() + self._settings.avoid_seconds

    def _in_order(self) -> list[HostPort]:
        """The configured order; those that are down come last. When a server's time of avoidance is over, the first
        lookup that comes tries it in its place, and the others go on avoiding it until that one has its answer."""
        avoided = self._avoided_until
        if not avoided:
            return list(self._settings.servers)
        now = self._clock.seconds()
        order = sorted(self._settings.servers, key=lambda server: avoided.get(server, now) > now)
        for server in order:
            if avoided.get(server, now + 1.0) <= now:
                self._avoid(server)
        return order


class _Turns:
    """So many lookups at once, so many waiting, first come first served."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._free = at_once
        self._most_waiting = waiting
        self._waiting: deque[Deferred[None]] = deque()
        self._is_handing_out = False

    def take(self) -> Deferred[None] | None:
        """Fires when it is our turn; None when too many wait already."""
        if self._free:
            self._free -= 1
            turn: Deferred[None] = Deferred()
            turn.callback(None)
            return turn
        if len(self._waiting) >= self._most_waiting:
            return None
        turn = Deferred(self._waiting.remove)
        self._waiting.append(turn)
        return turn

    def give_back(self) -> None:
        self._free += 1
        if self._is_handing_out:
            return  # a lookup that ended at once, inside the loop below: no recursion, however many do
        self._is_handing_out = True
        try:
            while self._free and self._waiting:
                self._free -= 1
                self._waiting.popleft().callback(None)
        finally:
            self._is_handing_out = False


def _no_longer_than(answer: Lookup, seconds: int) -> Lookup:
    match answer:
        case Found(exchangers, addresses, ttl_seconds, _):
            return Found(exchangers, addresses, min(ttl_seconds, seconds), False)
        case NoData(ttl_seconds):
            return NoData(min(ttl_seconds, seconds))
        case NoName(ttl_seconds):
            return NoName(min(ttl_seconds, seconds))
        case LookupTrouble():
            return answer
        case _:
            assert_never(answer)


def _sentence(troubles: dict[HostPort, str]) -> str:
    return "; ".join(f"{server}: {reason}" for server, reason in troubles.items())
