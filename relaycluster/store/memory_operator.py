"""What operators see and do, in the reference implementation: beside `store/memory.py`, which has the queue itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Container, Sequence

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from relaycluster.interfaces import (
    ClusterState,
    DomainState,
    IOperations,
    IOperator,
    ISuspensions,
    ItemState,
    LimitState,
    NotOwner,
    Operated,
    Shown,
    Wanted,
)
from relaycluster.mail import history, queue_id
from relaycluster.mail.history import Act, Record
from relaycluster.mail.item import Claim
from relaycluster.policy import operation
from relaycluster.policy.cluster import Ownership, Snapshot
from relaycluster.policy.lifecycle import Partition
from relaycluster.policy.pause import Pause
from relaycluster.policy.ring import partition_of
from relaycluster.policy.suspension import Suspension, Suspensions
from relaycluster.store.memory import MemoryCluster, MemoryQueue


@implementer(IOperator, IOperations)
class MemoryOperator:
    """See `IOperator` and `IOperations`."""

    def __init__(self, cluster: MemoryCluster, queue: MemoryQueue) -> None:
        self._cluster = cluster
        self._queue = queue

    # Acts

    def _act(
        self, verb: str, item_id: str, who: str, reason: str, transition: Callable[[Partition, Act, int], str]
    ) -> Deferred[Operated]:
        def act() -> Operated:
            now = self._cluster.clock_ms()
            for place in self._cluster.partitions:
                if item_id in place.items:
                    return Operated(transition(place, Act(now, verb, item_id, who, reason), now))
            return Operated.UNKNOWN

        return self._cluster.answer(act)

    def hold(self, item_id: str, who: str, reason: str) -> Deferred[Operated]:
        return self._act("hold", item_id, who, reason, operation.hold)

    def release(self, item_id: str, who: str, reason: str) -> Deferred[Operated]:
        return self._act("release", item_id, who, reason, operation.release)

    def requeue(self, shown: Shown, reset: bool, who: str, reason: str) -> Deferred[Operated]:
        def transition(place: Partition, act: Act, now: int) -> str:
            return operation.requeue(place, evolve(act, domain=shown.item.domain), shown.item, reset, now)

        verb = "requeue --reset" if reset else "requeue"
        return self._act(verb, shown.item.id, who, reason, transition)

    def bounce(self, item_id: str, who: str, reason: str) -> Deferred[Operated]:
        return self._act("bounce", item_id, who, reason, operation.bounce)

    def delete(self, item_id: str, who: str, reason: str) -> Deferred[Operated]:
        def transition(place: Partition, act: Act, _: int) -> str:
            item = place.items[item_id]
            result = operation.delete(place, act)
            if result == "done" and item.home >= 0:
                home = self._cluster.partitions[item.home]
                home.leave_home(queue_id.message_id(item_id), [item_id], item.chunks)
            return result

        return self._act("delete", item_id, who, reason, transition)

    def flush(self, domain: str, who: str, reason: str) -> Deferred[int]:
        def transition() -> int:
            now = self._cluster.clock_ms()
            return operation.flush(self._of(domain), Act(now, "flush", domain, who, reason, domain), now)

        return self._cluster.answer(transition)

    def _of(self, domain: str) -> Partition:
        return self._cluster.partitions[partition_of(domain, len(self._cluster.partitions))]

    # Looking

    def _all(self) -> list[Shown]:
        now = self._cluster.clock_ms()
        found = []
        for place in self._cluster.partitions:
            for item_id, item in place.items.items():
                shown = Shown(item, place.number, ItemState.READY, 0)
                if item_id in place.leased:
                    token = place.leased[item_id]
                    shown = evolve(shown, state=ItemState.LEASED, at_ms=token.due_ms, incarnation=token.incarnation)
                elif item_id in place.held:
                    shown = evolve(shown, state=ItemState.HELD, at_ms=place.held[item_id])
                elif item_id in place.bouncing:
                    shown = evolve(shown, state=ItemState.BOUNCING, at_ms=place.bouncing[item_id])
                else:
                    due = place.waiting[item_id]
                    shown = evolve(shown, at_ms=due, state=ItemState.READY if due <= now else ItemState.SCHEDULED)
                found.append(shown)
        return sorted(found, key=lambda shown: shown.item.id)

    def items(self, wanted: Wanted, limit: int) -> Deferred[Sequence[Shown]]:
        return self._cluster.answer(lambda: [shown for shown in self._all() if wanted.fits(shown)][:limit])

    async def pages(self, wanted: Wanted, besides: Container[str] = ()) -> AsyncIterator[Sequence[Shown]]:
        found = await self.items(wanted, len(self._all()))
        if left := [shown for shown in found if shown.item.id not in besides]:
            yield left

    def show(self, identifier: str) -> Deferred[Sequence[Shown]]:
        return self._cluster.answer(
            lambda: [
                shown
                for shown in self._all()
                if shown.item.id == identifier or queue_id.message_id(shown.item.id) == identifier
            ]
        )

    def trace(self, identifier: str) -> Deferred[Sequence[tuple[str, Record]]]:
        def read() -> Sequence[tuple[str, Record]]:
            records = [
                entry
                for place in self._cluster.partitions
                for name in sorted(place.traces)
                for entry in history.of(identifier, place.traces[name])
                if name[:23] == identifier[:23]
            ]
            return sorted(records, key=lambda entry: entry[1].at_ms)

        return self._cluster.answer(read)

    def domains(self, limit: int) -> Deferred[Sequence[DomainState]]:
        def count() -> Sequence[DomainState]:
            names = {place.items[item_id].domain for place in self._cluster.partitions for item_id in place.waiting}
            states = [self._state(name) for name in names]
            return sorted(states, key=lambda state: (-state.waiting, state.domain))[:limit]

        return self._cluster.answer(count)

    def domain(self, domain: str) -> Deferred[DomainState]:
        return self._cluster.answer(lambda: self._state(domain))

    def _state(self, domain: str) -> DomainState:
        now, place = self._cluster.clock_ms(), self._of(domain)
        dues = {item_id: due for item_id, due in place.waiting.items() if place.items[item_id].domain == domain}
        said, text = place.replies.get(domain, (0, ""))
        pause = place.paused.get(domain)
        return DomainState(
            domain,
            place.number,
            len(dues),
            sum(due <= now for due in dues.values()),
            place.index().get(domain, 0),
            pause if pause is not None and pause.until_ms > now else None,
            min((place.items[item_id].arrived_ms for item_id in dues), default=0),
            True,
            text,
            said,
            place.owner,
        )

    def limit(self, name: str, interval_ns: int, burst: int) -> Deferred[LimitState]:
        return succeed(LimitState(0, tuple(sorted(self._cluster.slots.get(name, {}).items()))))

    def cluster(self) -> Deferred[ClusterState]:
        def look() -> ClusterState:
            cluster, now = self._cluster, self._cluster.clock_ms()
            numbers = sorted(cluster.members)
            snapshot = Snapshot(
                cluster.version,
                cluster.next_incarnation,
                tuple(cluster.members[number][0] for number in numbers),
                suspensions=cluster.suspensions_version,
            )
            left = tuple(max(0, cluster.members[number][1] - now) for number in numbers)
            return ClusterState(snapshot, left, tuple(place.owner for place in cluster.partitions), now)

        return self._cluster.answer(look)

    # The owner's part

    def acts(self, partition: int) -> Deferred[Sequence[tuple[Act, bytes]]]:
        return self._cluster.answer(
            lambda: [(act, history.pack_act("", act)) for act in self._cluster.partitions[partition].acts[:100]]
        )

    def told(self, owner: Ownership, acts: Sequence[tuple[Act, bytes]]) -> Deferred[bool]:
        place = self._cluster.partitions[owner.partition]

        def transition() -> bool:
            return place.owned_by(owner) and operation.told(place, [act for act, _ in acts])

        return self._cluster.answer(transition)

    def claim_bounces(self, owner: Ownership, limit: int, number: int) -> Deferred[Sequence[tuple[Claim, str]]]:
        place = self._cluster.partitions[owner.partition]

        def transition() -> Sequence[tuple[Claim, str]]:
            if not place.owned_by(owner):
                raise NotOwner(f"partition {owner.partition} has another owner")
            return place.claim_bounces(limit, number)

        return self._cluster.answer(transition)

    def paused(self, partitions: Sequence[int]) -> Deferred[Sequence[tuple[int, str, Pause]]]:
        return self._cluster.answer(
            lambda: [
                (number, domain, pause)
                for number in partitions
                for domain, pause in self._cluster.partitions[number].paused.items()
            ]
        )

    def trim_traces(self, partitions: Sequence[int], most_bytes: int) -> Deferred[int]:
        def transition() -> int:
            sizes = [
                (name, len(data), self._cluster.partitions[number].traces)
                for number in partitions
                for name, data in self._cluster.partitions[number].traces.items()
            ]
            total, freed = sum(size for _, size, _ in sizes), 0
            for name, size, traces in sorted(sizes, key=lambda each: each[0]):
                if total - freed <= most_bytes:
                    break
                del traces[name]
                freed += size
            return freed

        return self._cluster.answer(transition)


@implementer(ISuspensions)
class MemorySuspensions:
    """See `ISuspensions`; one for each node of a test."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster
        self._version = 0
        self.table = Suspensions()
        self.on_change: Callable[[Suspensions, Suspensions], None] = lambda _before, _now: None

    def suspended(self, domain: str, limit: str) -> Suspension | None:
        return self.table.lookup(domain, limit, self._cluster.clock_ms())

    def all(self) -> Deferred[Sequence[Suspension]]:
        now = self._cluster.clock_ms()
        return self._cluster.answer(lambda: [each for each in self._cluster.suspensions.values() if each.holds(now)])

    def suspend(
        self, subject: str, seconds: float, who: str, reason: str, at_least: bool = False
    ) -> Deferred[Suspension]:
        def transition() -> Suspension:
            now = self._cluster.clock_ms()
            new = Suspension(subject, now + max(1, int(seconds * 1000)) if seconds else 0, now, who, reason)
            old = self._cluster.suspensions.get(subject)
            if at_least and old is not None and old.holds(now):
                longer = not old.until_ms or (new.until_ms and old.until_ms >= new.until_ms)
                if longer:
                    return old
            return self._set(new)

        return self._cluster.answer(transition)

    def _set(self, new: Suspension) -> Suspension:
        self._cluster.suspensions[new.subject] = new
        self._cluster.suspensions_version += 1
        return new

    def resume(self, subject: str, who: str, reason: str) -> Deferred[bool]:
        def transition() -> bool:
            now = self._cluster.clock_ms()
            old = self._cluster.suspensions.get(subject)
            if old is None or not old.holds(now):
                return False
            self._set(Suspension(subject, now, now, who, reason))
            return True

        return self._cluster.answer(transition)

    def see(self, version: int) -> Deferred[None]:
        def read() -> None:
            if version != self._version:
                self._version = version
                before, self.table = self.table, Suspensions.build(self._cluster.suspensions.values())
                self.on_change(before, self.table)

        return self._cluster.answer(read)
