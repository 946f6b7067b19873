"""What a node does by the clock: the poll that no hint can replace, work that a dead process left, numbers for the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from relaycluster import events
from relaycluster.events import EventLog
from relaycluster.interfaces import MOST_DUE, IQueue, QueueError
from relaycluster.metrics import Metrics
from relaycluster.net.pool import ConnectionPool
from relaycluster.node.delivery import Delivery
from relaycluster.node.operations import Operations
from relaycluster.node.partitions import Partitions
from relaycluster.node.settle import Settlement
from relaycluster.node.spread import fan_out
from relaycluster.policy.lifecycle import NOTICE_WORK, OPERATOR_WORK, SPREAD_WORK

POLL_SECONDS = 1.0
POLL_SLICES = 4
TALLY_SECONDS = 10.0
SWEEP_SECONDS = 60.0
SWEEP_AFTER_MS = 10 * 60_000
ROOM_SECONDS = 0.25
LAG_SECONDS = 0.5


class Repeating:
    """A coroutine function that runs again and again, `seconds` after its last run ended. It survives its own failures."""

    def __init__(self, clock: IReactorTime, seconds: float, run: Callable[[], Awaitable[None]], log: EventLog) -> None:
        self._clock = clock
        self._seconds = seconds
        self._run = run
        self._log = log
        self._timer: IDelayedCall | None = None
        self._stopped = False

    def start(self) -> None:
        """Begin, after one interval."""
        self._timer = self._clock.callLater(self._seconds, self._once)

    def stop(self) -> None:
        """No further run begins."""
        self._stopped = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _once(self) -> None:
        async def run() -> None:
            await self._run()

        Deferred.fromCoroutine(run()).addErrback(self._failed).addCallback(self._next)

    def _failed(self, failure: Failure) -> None:
        if not failure.check(QueueError):  # Redis being away is told elsewhere, once
            self._log.emit(events.Error.of(failure, "janitor"))

    def _next(self, _: None) -> None:
        if not self._stopped:
            self._timer = self._clock.callLater(self._seconds, self._once)


class Janitor:
    """The rounds of one delivery node."""

    def __init__(
        self,
        clock: IReactorTime,
        queue: IQueue,
        partitions: Partitions,
        delivery: Delivery,
        settlement: Settlement,
        pool: ConnectionPool,
        metrics: Metrics,
        log: EventLog,
        operations: Operations | None = None,
    ) -> None:
        self._clock = clock
        self._queue = queue
        self._operations = operations
        self._partitions = partitions
        self._delivery = delivery
        self._settlement = settlement
        self._pool = pool
        self._metrics = metrics
        self._slice = 0
        self._passed_over: dict[int, int] = {}
        self._rounds = [
            Repeating(clock, POLL_SECONDS / POLL_SLICES, self.poll, log),
            Repeating(clock, TALLY_SECONDS, self.count, log),
            Repeating(clock, SWEEP_SECONDS, self.sweep, log),
        ]

    def start(self) -> None:
        """Begin the rounds."""
        for each in self._rounds:
            each.start()

    def stop(self) -> None:
        """End them."""
        for each in self._rounds:
            each.stop()

    async def poll(self) -> None:
        """A slice of the owned partitions: which domains are due?"""
        self._slice = (self._slice + 1) % POLL_SLICES
        await self.look_at([number for number in self._partitions.owned if number % POLL_SLICES == self._slice])
        counts = self._pool.counts
        connections = self._metrics.delivery_connections
        for state, level in connections.items():
            level.set(getattr(counts, state, 0))

    async def look_at(self, partitions: Sequence[int]) -> None:
        """What is due in these partitions goes to its lanes; what a dead process left is finished."""
        found = await self._queue.due(partitions, self._passed_over)
        counts = Counter(partition for partition, _ in found)
        for each in partitions:
            # Behind fifty domains that can send nothing now there may be one that can: the next look begins there.
            if counts[each] == MOST_DUE:
                self._passed_over[each] = self._passed_over.get(each, 0) + MOST_DUE
            else:
                self._passed_over.pop(each, None)
        for partition, domain in found:
            if domain in (SPREAD_WORK, NOTICE_WORK, OPERATOR_WORK):
                try:
                    await self._finish(partition, domain)
                except QueueError:
                    continue  # full, perhaps: what is due behind it must still be delivered, which makes room
            else:
                self._delivery.wake(domain)

    async def _finish(self, partition: int, work: str) -> None:
        if work == OPERATOR_WORK:
            if self._operations is not None:
                self._operations.look_at(partition)  # what is due behind it need not wait for a long list of bounces
            return
        if work == SPREAD_WORK:
            for items in await self._queue.spreads(partition):
                await fan_out(self._queue, items)
        else:
            for notice in await self._queue.notices(partition):
                await self._settlement.send_notice(partition, notice, "", "failed")

    async def count(self) -> None:
        """The gauges of what this process owns."""
        tally = await self._queue.tally(list(self._partitions.owned))
        now = self._queue.now_ms()
        self._metrics.queue_snapshot(
            scheduled=tally.waiting - tally.ready,
            ready=tally.ready,
            leased=tally.leased,
            held=tally.held,
            size_bytes=tally.bytes,
            oldest_seconds=max(0, now - tally.oldest_ms) / 1000 if tally.oldest_ms else 0.0,
            domains=tally.domains,
        )
        self._delivery.forget_idle_lanes()

    async def sweep(self) -> None:
        """Contents that nobody needs any more."""
        for owner in list(self._partitions.owned.values()):
            await self._queue.sweep(owner, SWEEP_AFTER_MS)
        if self._operations is not None:
            await self._operations.trim(list(self._partitions.owned))


class Room:
    """Whether the queue has room: above the watermark of its memory, no new mail is taken."""

    def __init__(self, clock: IReactorTime, queue: IQueue, watermark: float, metrics: Metrics, log: EventLog) -> None:
        self._queue = queue
        self._watermark = watermark
        self._log = log
        self.is_full = False
        self._round = Repeating(clock, ROOM_SECONDS, self.look, log)
        self.start, self.stop = self._round.start, self._round.stop

    async def look(self) -> None:
        """How full is it now?"""
        used, limit = await self._queue.room()
        is_full = limit > 0 and used > self._watermark * limit
        if is_full != self.is_full:
            self.is_full = is_full
            self._log.emit(events.QueueFull(used, limit) if is_full else events.QueueRoom(used, limit))


class Lag:
    """How late the event loop is."""

    def __init__(self, clock: IReactorTime, metrics: Metrics) -> None:
        self._clock = clock
        self._observe = metrics.reactor_lag_seconds.observe
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Measure from now on."""
        self._timer = self._clock.callLater(LAG_SECONDS, self._fired, self._clock.seconds() + LAG_SECONDS)

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _fired(self, due: float) -> None:
        self._observe(max(0.0, self._clock.seconds() - due))
        self.start()
