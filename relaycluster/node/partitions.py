"""Which partitions this node owns, and how they come and go as the membership changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from relaycluster.interfaces import IQueue, NotOwner, QueueError
from relaycluster.policy import ring
from relaycluster.policy.cluster import Ownership, Snapshot

RETRY_SECONDS = 0.5
"""How soon a partition that somebody else still holds is asked for again; a hint usually comes first."""


class Partitions:
    """The partitions of one delivery node.

    `on_acquired` gets the partitions that were won, `on_released` those that were given up, `on_recovered` the ids of the items
    that dead holders left: those that wait again and those that are held.
    """

    def __init__(self, clock: IReactorTime, queue: IQueue, node_id: str) -> None:
        self._clock = clock
        self._queue = queue
        self._node_id = node_id
        self._snapshot: Snapshot | None = None
        self._working = False
        self._again = False
        self._waiting: list[Deferred[None]] = []
        self._timer: IDelayedCall | None = None
        self._recovered_at = -1  # the version whose deaths were looked after
        self.incarnation = 0
        self.owned: dict[int, Ownership] = {}
        self._releasing: list[Ownership] = []  # ours no more, and the queue does not know yet
        self.on_acquired: Callable[[Sequence[int]], None] = lambda _partitions: None
        self.on_released: Callable[[Sequence[int]], None] = lambda _partitions: None
        self.on_lost: Callable[[Sequence[int]], None] = lambda _partitions: None
        self.on_recovered: Callable[[Sequence[str], Sequence[str]], None] = lambda _waiting, _held: None
        self.on_trouble: Callable[[BaseException], None] = lambda _error: None

    def see(self, snapshot: Snapshot, incarnation: int) -> None:
        """The membership as it is now; `incarnation` is ours."""
        changed = self._snapshot is None or snapshot.version != self._snapshot.version
        if incarnation != self.incarnation:
            self.forget()
            self.incarnation = incarnation
        self._snapshot = snapshot
        if changed or set(self.owned) != self.wanted():
            self.reconcile()

    def forget(self) -> None:
        """Our incarnation is over: nothing is ours any more."""
        lost = tuple(self.owned)
        self.owned.clear()
        self._recovered_at = -1
        if lost:
            self.on_lost(lost)

    def lost(self, owner: Ownership) -> None:
        """The queue said that a partition has another owner."""
        if self.owned.get(owner.partition) == owner:
            del self.owned[owner.partition]
            self.on_lost((owner.partition,))
            self.reconcile()

    def wanted(self) -> set[int]:
        """The partitions that the ring gives to this node."""
        if self._snapshot is None:
            return set()
        members = [
            ring.Member(member.id, member.weight)
            for member in self._snapshot.members
            if "delivery" in member.roles and not member.draining
        ]
        assignment = ring.assign(members, self._queue.partitions)
        return {partition for partition, key in enumerate(assignment) if key == self._node_id}

    def reconcile(self) -> None:
        """Bring what is owned to what is wanted; one run at a time."""
        if self._working:
            self._again = True
            return
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._working = True
        Deferred.fromCoroutine(self._reconcile()).addErrback(self._trouble).addCallback(self._reconciled)

    def all_released(self) -> Deferred[None]:
        """Fires when this node owns nothing and is not about to."""
        if not self.owned and not self._working:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def stop(self) -> None:
        """No more of this."""
        self._snapshot = None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _trouble(self, failure: Any) -> bool:
        self.on_trouble(failure.value)
        return True

    def _reconciled(self, incomplete: bool) -> None:
        self._working = False
        if not self.owned and not self._again:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)
        if self._snapshot is None:
            return
        if self._again:
            self._again = False
            self.reconcile()
        elif incomplete:
            self._timer = self._clock.callLater(RETRY_SECONDS, self.reconcile)

    async def _reconcile(self) -> bool:
        """Returns whether something is still missing."""
        snapshot = self._snapshot
        if snapshot is None:
            return False
        incarnation, wanted = self.incarnation, self.wanted()
        surplus = [self.owned.pop(partition) for partition in sorted(set(self.owned) - wanted)]
        if surplus:
            self.on_released([owner.partition for owner in surplus])
            self._releasing += surplus
        if self._releasing:
            await self._all([self._queue.release(owner) for owner in self._releasing])
            self._releasing = []
        if snapshot.version != self._recovered_at:
            await self._recover(list(self.owned.values()), snapshot)
            self._recovered_at = snapshot.version
        missing = sorted(wanted - set(self.owned))
        answers = await self._all([self._queue.acquire(partition, incarnation, snapshot) for partition in missing])
        won: list[Ownership] = [answer for answer in answers if answer is not None]
        if won:
            # Before the first claim: what the dead left is older than what waits.
            await self._recover(won, snapshot)
            if self._snapshot is None:
                return False
            if self.incarnation != incarnation:
                return True  # our life ended meanwhile: what it won belongs to the dead
            self.owned.update((owner.partition, owner) for owner in won)
            self.on_acquired([owner.partition for owner in won])
        return len(won) < len(missing)

    async def _recover(self, owners: Sequence[Ownership], snapshot: Snapshot) -> None:
        found = await self._all([self._queue.recover(owner, snapshot) for owner in owners])
        waiting = [identifier for each in found if each is not None for identifier in each.waiting]
        held = [identifier for each in found if each is not None for identifier in each.held]
        if waiting or held:
            self.on_recovered(waiting, held)

    async def _all(self, asked: Sequence[Deferred[Any]]) -> list[Any]:
        """All answers, None for a partition that is not ours after all; fails when Redis is away."""
        results = await DeferredList(asked, consumeErrors=True)
        answers = []
        for success, value in results:
            if not success and not value.check(NotOwner):
                raise value.value if isinstance(value.value, QueueError) else RuntimeError(str(value.value))
            answers.append(value if success else None)
        return answers
