"""The cluster's limits as one process uses them: connections are leases, slots of a rate are stamped with their time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from relaycluster.interfaces import IThrottle, QueueError
from relaycluster.policy.cluster import Snapshot
from relaycluster.policy.rate import Rate

SETTLE_SECONDS = 0.5
"""How long a connection's place is kept for the next one before the cluster hears that it is free."""
SLOT_GRACE_SECONDS = 0.1
"""A slot that was not used so long after its time is forfeited: it must not bunch with later ones."""


@define
class _Held:
    """Connections of one limit: `open` here, `granted` by the cluster."""

    open: int = 0
    granted: int = 0
    maximum: int = 0


class ConnectionLimits:
    """How many connections this process has for each limit. Reserve before connecting, free when the connection is gone."""

    def __init__(
        self, clock: IReactorTime, throttle: IThrottle, snapshot: Callable[[], tuple[Snapshot, int] | None]
    ) -> None:
        self._clock = clock
        self._throttle = throttle
        self._snapshot = snapshot
        self._held: dict[str, _Held] = {}
        self._surplus: set[str] = set()
        self._timer: IDelayedCall | None = None

    async def reserve(self, limit: str, maximum: int) -> bool:
        """One more connection, if the cluster's other connections of the limit leave room for it."""
        held = self._held.setdefault(limit, _Held())
        held.maximum = maximum
        if held.open >= maximum:
            return False
        held.open += 1
        if held.open <= held.granted:
            return True
        view = self._snapshot()
        try:
            if view is None:
                raise QueueError("no membership yet")
            held.granted = await self._throttle.hold(limit, view[1], held.open, maximum, view[0])
        except QueueError:
            held.granted = -1  # unknown: the cluster may count it, and must hear that it is not there
            self.free(limit)
            return False
        if held.open <= held.granted:
            return True
        self.free(limit)
        return False

    def open_of(self, limit: str) -> int:
        """How many connections of the limit this process has."""
        held = self._held.get(limit)
        return held.open if held is not None else 0

    def free(self, limit: str) -> None:
        """A connection is gone, or was not made."""
        held = self._held[limit]
        held.open -= 1
        self._surplus.add(limit)
        if self._timer is None:
            self._timer = self._clock.callLater(SETTLE_SECONDS, self._give_back)

    def renew(self) -> None:
        """We have a new incarnation: say again what is held."""
        for limit, held in self._held.items():
            held.granted = 0
            self._surplus.add(limit)
        if self._surplus and self._timer is None:
            self._timer = self._clock.callLater(0, self._give_back)

    def stop(self) -> None:
        """No timer is left behind."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _give_back(self) -> None:
        self._timer = None
        surplus, self._surplus = self._surplus, set()
        view = self._snapshot()
        for limit in surplus:
            held = self._held.get(limit)
            if view is None or held is None or held.open == held.granted:
                continue
            held.granted = min(held.granted, held.open)
            done = self._throttle.hold(limit, view[1], held.open, held.maximum, view[0])
            done.addCallbacks(partial(setattr, held, "granted"), self._not_told, errbackArgs=(limit,))
            if not held.open:
                del self._held[limit]

    def _not_told(self, failure: object, limit: str) -> None:
        """Redis is away: the lease would end with us, but say it again when we can."""
        held = self._held.setdefault(limit, _Held())
        held.granted = -1
        self._surplus.add(limit)
        if self._timer is None:
            self._timer = self._clock.callLater(1.0, self._give_back)


class Pace:
    """The rate of one limit. `take` gives the times, by our clock, of the next slots, or when to ask again."""

    def __init__(self, clock: IReactorTime, throttle: IThrottle, limit: str, rate: Rate) -> None:
        self._clock = clock
        self._throttle = throttle
        self._limit = limit
        self._interval_ns = rate.interval_ns
        self._burst = rate.burst

    def take(self, wanted: int) -> Deferred[tuple[list[float], float]]:
        """Up to `wanted` slots as times, and the seconds for which asking again is useless."""

        def stamp(answer: tuple[Sequence[int], int]) -> tuple[list[float], float]:
            delays, retry_us = answer
            now = self._clock.seconds()
            return [now + delay / 1e6 for delay in delays], retry_us / 1e6

        return self._throttle.take(self._limit, self._interval_ns, self._burst, wanted).addCallback(stamp)
