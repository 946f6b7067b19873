"""A node's life in the cluster: it joins, beats, and knows by its own clock how long it may act on the last beat."""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from relaycluster.interfaces import IMembership, QueueError
from relaycluster.policy.cluster import Member, Snapshot

RETRY_SECONDS = 0.25


class Heart:
    """Keeps one member alive.

    `beat_seconds` is the interval, `trusted_seconds` how long after *sending* a beat its answer may be relied on.
    `on_snapshot` is called with each answer. `on_over` is called when this incarnation has ended, and is given the chance to
    settle what it holds (it may return a Deferred) before the node joins anew.
    """

    def __init__(
        self,
        clock: IReactorTime,
        membership: IMembership,
        member: Member,
        beat_seconds: float,
        trusted_seconds: float,
    ) -> None:
        self._clock = clock
        self._membership = membership
        self._beat_seconds = beat_seconds
        self._trusted_seconds = trusted_seconds
        self._trusted_until = float("-inf")
        self._mine = b""
        self._timer: IDelayedCall | None = None
        self._beating = False
        self._again = False
        self._stopped = True
        self.member = member
        self.snapshot: Snapshot | None = None
        self.on_snapshot: Callable[[Snapshot], None] = lambda _snapshot: None
        self.on_over: Callable[[], Deferred[None] | None] = lambda: None
        self.on_trouble: Callable[[BaseException], None] = lambda _error: None

    def valid(self) -> bool:
        """Whether the lease is proven right now. Without it a node claims nothing and writes no final dot."""
        return self._clock.seconds() < self._trusted_until

    def proves(self, token: bytes) -> bool:
        """Whether what was claimed with this token may still be finished: the lease is proven, and it is the one of the life that
        claimed it."""
        return self._clock.seconds() < self._trusted_until and token.startswith(self._mine)

    async def join(self) -> None:
        """Enter the cluster and begin to beat. Fails as `IMembership.join` does."""
        self.member = await self._membership.join(self.member)
        self._mine = b"%d:" % self.member.incarnation
        self._stopped = False
        await self._beat()

    def hurry(self) -> None:
        """Something changed: beat now instead of at the next interval."""
        if self._stopped:
            return
        if self._beating:
            self._again = True
            return
        self._cancel()
        Deferred.fromCoroutine(self._beat()).addErrback(self._trouble)

    def set_draining(self) -> None:
        """Tell the cluster that this node takes no partitions any more."""
        self.member = evolve(self.member, draining=True)
        self.hurry()

    async def leave(self) -> None:
        """Stop beating and go at once, if Redis can be told; else the lease runs out."""
        self._stopped = True
        self._cancel()
        self._trusted_until = float("-inf")
        try:
            await self._membership.leave(self.member)
        except QueueError as error:
            self.on_trouble(error)

    def _trouble(self, failure: Failure) -> None:
        if failure.value is not None:
            self.on_trouble(failure.value)

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    async def _beat(self) -> None:
        self._beating, self._again = True, False
        pause = self._beat_seconds
        try:
            sent = self._clock.seconds()
            snapshot = await self._membership.beat(self.member)
            if self._stopped:
                return  # we left meanwhile: the answer is about a life that is over
            if snapshot is None:
                await self._over()
            else:
                self._trusted_until = sent + self._trusted_seconds
                self.snapshot = snapshot
                self.on_snapshot(snapshot)
        except QueueError as error:
            pause = RETRY_SECONDS
            self.on_trouble(error)
        finally:
            self._beating = False
            if not self._stopped:
                self._timer = self._clock.callLater(0 if self._again else pause, self.hurry)

    async def _over(self) -> None:
        """This incarnation has ended. What it holds is settled first, while its tokens may still be good; then a new life begins."""
        self._trusted_until = float("-inf")
        done = self.on_over()
        if done is not None:
            await done
        self.member = await self._membership.join(self.member)
        self._mine = b"%d:" % self.member.incarnation
        self._again = True
