"""The cluster's limits as one process uses them: connections are leases, slots of a rate are stamped with their time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from attrs import Factory, define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from relaycluster.interfaces import IThrottle, QueueError
from relaycluster.policy.cluster import Snapshot
from relaycluster.policy.rate import Rate

SHARE_SECONDS = 1.0
"""How often a process asks whether others wish for connections of a limit that it uses."""
SETTLE_SECONDS = 0.5
"""How long a connection's place is kept for the next one before the cluster hears that it is free."""
GIVEN_WAY_SECONDS = 1.5
"""Who gave a place up, since there are fewer than nodes that want one, does not ask for it before so long: the others try once a
second."""
MOST_SLOTS = 40
"""So many slots are asked for at once."""
DEALT = 5
"""Slots for one lane, before the next gets some."""
LONGEST_LINE_SECONDS = 1.0
"""Whoever would have to stand in line for longer is sent away, and the domain leaves the candidates meanwhile."""
SLOT_GRACE_SECONDS = 0.1
"""A slot that was not used so long after its time is forfeited: it must not bunch with later ones."""


@define
class _Held:
    """Connections of one limit: `open` here, with those that are about to be, `granted` by the cluster, or -1: unknown, it must be told.

    One question at a time is under way (`is_asking`). So the cluster never counts fewer than `granted`, in whatever order answers come;
    who comes meanwhile is in `waiting` for the next one, which is about all of them.
    """

    open: int = 0
    granted: int = 0
    maximum: int = 0
    is_asking: bool = False
    waiting: list[Deferred[None]] = Factory(list)


class ConnectionLimits:
    """How many connections this process has for each limit. Reserve before connecting, free when the connection is gone.

    `snapshot` gives the membership and our incarnation while our lease is proven: without it nothing is reserved.

    A limit that several domains share may be used on several nodes. While others wish for more, `shares` says how many of it this
    process keeps; what it has beyond ends as soon as it is free, and `on_surplus` ends one that is idle. Where there are fewer
    connections than nodes that want one that is none: the nodes take turns.
    """

    def __init__(
        self, clock: IReactorTime, throttle: IThrottle, snapshot: Callable[[], tuple[Snapshot, int] | None]
    ) -> None:
        self._clock = clock
        self._throttle = throttle
        self._snapshot = snapshot
        self._held: dict[str, _Held] = {}
        self._surplus: set[str] = set()
        self._renewed: set[str] = set()
        self._shared: set[str] = set()
        self._incarnation = 0
        self._gave_way: dict[str, float] = {}  # and until when
        self._share_timer: IDelayedCall | None = None
        self.shares: dict[str, int] = {}
        self.on_surplus: Callable[[str], object] = lambda _limit: False
        self._timer: IDelayedCall | None = None

    async def reserve(self, limit: str, maximum: int, shared: bool = False) -> bool:
        """One more connection, if the cluster's other connections of the limit leave room for it. `shared` when other nodes may
        use the limit as well."""
        view = self._snapshot()
        if view is None or self._gives_way(limit):
            return False
        held = self._held.get(limit) or _Held()
        held.maximum = maximum
        if held.open >= min(maximum, self.shares.get(limit, maximum)):
            return False
        self._held[limit] = held
        if shared:
            self._shared.add(limit)
            if self._share_timer is None:
                self._share_timer = self._clock.callLater(SHARE_SECONDS, self._look_at_shares)
        held.open += 1
        if held.open <= held.granted:
            return True
        answered: Deferred[None] = Deferred()
        held.waiting.append(answered)
        try:
            if not held.is_asking:
                self._ask(limit, held, view)
            await answered
        except QueueError:
            self.free(limit)
            return False
        except BaseException:  # given up while we waited
            if answered in held.waiting:
                held.waiting.remove(answered)
            self.free(limit)
            raise
        if held.open - len(held.waiting) <= held.granted:  # the question was not about those who wait now
            return True
        self.free(limit)
        return False

    def open_of(self, limit: str) -> int:
        """How many connections of the limit this process has."""
        held = self._held.get(limit)
        return held.open if held is not None else 0

    def is_surplus(self, limit: str) -> bool:
        """Whether we have more connections than we should: others wish for their share, or the cluster granted fewer since our
        incarnation changed. One that is free shall end."""
        if not self.shares and not self._renewed:  # nearly always
            return False
        held = self._held.get(limit)
        if limit in self.shares and held is not None and held.open > self.shares[limit]:
            return True
        if limit not in self._renewed:
            return False
        if held is not None and held.granted < held.open:
            return True
        self._renewed.discard(limit)
        return False

    def free(self, limit: str) -> None:
        """A connection is gone, or was not made."""
        held = self._held[limit]
        held.open -= 1
        if self.shares.get(limit) == 0:
            self._gave_way[limit] = self._clock.seconds() + GIVEN_WAY_SECONDS
        self._tell_of(limit)

    def see(self, incarnation: int) -> None:
        """The cluster has shown itself to us under this incarnation. If it is a new one, what is held is said again: the former one
        counts as dead, and the others may have its places."""
        if incarnation == self._incarnation:
            return
        self._incarnation = incarnation
        for limit, held in self._held.items():
            held.granted = 0
            self._surplus.add(limit)
            self._renewed.add(limit)
        if self._surplus:
            self._tell_within(0)

    def stop(self) -> None:
        """No timer is left behind."""
        for timer in (self._timer, self._share_timer):
            if timer is not None and timer.active():
                timer.cancel()
        self._timer = self._share_timer = None

    def _look_at_shares(self) -> None:
        """Do other nodes wish for connections of the limits that we use?"""
        self._share_timer = None
        view = self._snapshot()
        self._shared = {limit for limit in self._shared if self.open_of(limit)}
        for limit in self.shares.keys() - self._shared:
            del self.shares[limit]
        if not self._shared:
            return
        # Also while our lease is in doubt: a share of none, kept for ever, would leave us without a connection for ever.
        self._share_timer = self._clock.callLater(SHARE_SECONDS, self._look_at_shares)
        if view is None:
            return
        for limit in self._shared:
            asked = self._throttle.share(limit, view[1], self._held[limit].maximum, view[0])
            asked.addCallback(self._keep_share, limit).addErrback(lambda failure: failure.trap(QueueError))

    def _keep_share(self, share: int, limit: str) -> None:
        held = self._held.get(limit)
        # What is not looked at any more would keep its share for ever.
        if limit not in self._shared or held is None or not held.open or share >= held.maximum:
            self.shares.pop(limit, None)
            return
        self.shares[limit] = share
        self._end_idle(limit, held.open - share)

    def _end_idle(self, limit: str, count: int) -> None:
        for _ in range(count):
            if not self.on_surplus(limit):
                break

    def _gives_way(self, limit: str) -> bool:
        """Whether it is the others' turn."""
        until = self._gave_way.get(limit)
        if until is None:
            return False
        if self._clock.seconds() < until:
            return True
        del self._gave_way[limit]
        return False

    def _tell_of(self, limit: str) -> None:
        """We have fewer than the cluster granted, or had: at once if others wish for them."""
        self._surplus.add(limit)
        self._tell_within(0 if limit in self.shares else SETTLE_SECONDS)

    def _tell_within(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self._clock.callLater(seconds, self._give_back)
        elif self._timer.getTime() > self._clock.seconds() + seconds:
            self._timer.reset(seconds)

    def _give_back(self) -> None:
        self._timer = None
        view = self._snapshot()
        if view is None:
            self._tell_within(SHARE_SECONDS)  # the lease ends with us, or is proven again
            return
        surplus, self._surplus = self._surplus, set()
        for limit in surplus:
            held = self._held.get(limit)
            if held is None or held.is_asking:  # the answer is compared with what we have then
                continue
            if held.open != held.granted:
                self._ask(limit, held, view)
            elif not held.open:  # it was refused
                self._forget(limit)

    def _forget(self, limit: str) -> None:
        del self._held[limit]
        self._renewed.discard(limit)

    def _ask(self, limit: str, held: _Held, view: tuple[Snapshot, int]) -> None:
        """Say how many we have or want. None of this limit's questions may be under way."""
        waiting, held.waiting = held.waiting, []
        held.granted = min(held.granted, held.open)
        answer = self._throttle.hold(limit, view[1], held.open, held.maximum, view[0])
        held.is_asking = True
        answer.addCallbacks(
            self._answered,
            self._not_answered,
            callbackArgs=(limit, held, view[1], waiting),
            errbackArgs=(limit, held, waiting),
        )

    def _answered(self, granted: int, limit: str, held: _Held, incarnation: int, waiting: list[Deferred[None]]) -> None:
        view = self._snapshot()
        if view is None:
            self._not_answered(Failure(QueueError("the lease ran out meanwhile")), limit, held, waiting)
            return
        if view[1] != incarnation:  # what was granted to a former life of ours, others may have by now
            held.waiting[:0] = waiting
            held.is_asking = False
            self._ask(limit, held, view)
            return
        held.granted = granted
        for each in waiting:
            each.callback(None)
        held.is_asking = False
        if limit in self._renewed:
            self._end_idle(limit, held.open - len(held.waiting) - granted)
        if held.waiting:
            self._ask(limit, held, view)
        elif held.open < granted:
            self._tell_of(limit)
        elif not held.open:
            self._forget(limit)

    def _not_answered(self, failure: Failure, limit: str, held: _Held, waiting: list[Deferred[None]]) -> None:
        """Redis is away, or our life is over: the lease would end with us, but what the cluster counts is unknown; say it when we can."""
        waiting, held.waiting = waiting + held.waiting, []
        held.granted = -1
        held.is_asking = False
        self._surplus.add(limit)
        self._tell_within(SHARE_SECONDS)
        for each in waiting:
            each.errback(failure)


class Pace:
    """The rate of one limit, for all lanes of this process that share it. `take` gives the times, by our clock, of the next slots, or
    when to ask again. Lanes stand in line: one question at a time goes to the cluster for all of them, and its slots are dealt
    out in turn, a few at a time (each domain needs a connection for its own), so that none is served twice before each was once. `share` is the part of the rate that may be used."""

    def __init__(
        self,
        clock: IReactorTime,
        throttle: IThrottle,
        limit: str,
        rate: Rate,
        share: Callable[[float], float] = lambda _now_seconds: 1.0,
    ) -> None:
        self._clock = clock
        self._throttle = throttle
        self._limit = limit
        self._interval_ns = rate.interval_ns
        self._burst = rate.burst
        self._share = share
        self._line: deque[tuple[int, Deferred[tuple[list[float], float]]]] = deque()
        self._asking = False
        self._timer: IDelayedCall | None = None

    def take(self, wanted: int) -> Deferred[tuple[list[float], float]]:
        """Up to `wanted` slots as times, and the seconds for which asking again is useless."""
        answer: Deferred[tuple[list[float], float]] = Deferred()
        self._line.append((wanted, answer))
        self._ask()
        return answer

    def _ask(self) -> None:
        if self._asking or self._timer is not None or not self._line:
            return
        self._asking = True
        wanted = min(MOST_SLOTS, sum(each for each, _ in self._line))
        interval_ns = int(self._interval_ns / self._share(self._clock.seconds()))
        self._throttle.take(self._limit, interval_ns, self._burst, wanted).addCallbacks(self._answered, self._failed)

    def _answered(self, answer: tuple[Sequence[int], int]) -> None:
        self._asking = False
        delays, retry_us = answer
        now, retry_seconds = self._clock.seconds(), retry_us / 1e6
        line, self._line = self._line, deque()
        dealt: list[list[float]] = [[] for _ in line]
        slots = deque(now + delay / 1e6 for delay in delays)
        hungry = deque(range(len(line)))
        while slots and hungry:
            at = hungry.popleft()
            for _ in range(min(DEALT, line[at][0] - len(dealt[at]), len(slots))):
                dealt[at].append(slots.popleft())
            if len(dealt[at]) < line[at][0]:
                hungry.append(at)
        left = [entry for entry, some in zip(line, dealt, strict=True) if not some]
        if left and retry_seconds < LONGEST_LINE_SECONDS:
            # They keep their place, before all who come later.
            self._line.extend(left)
            self._timer = self._clock.callLater(retry_seconds, self._on_time)
            left = []
        for (_, waiting), some in zip(line, dealt, strict=True):
            if some:
                waiting.callback((some, retry_seconds))
        for _, waiting in left:
            waiting.callback(([], retry_seconds))
        self._ask()

    def _on_time(self) -> None:
        self._timer = None
        self._ask()

    def _failed(self, failure: Failure) -> None:
        self._asking = False
        line, self._line = self._line, deque()
        for _, waiting in line:
            waiting.errback(failure)
