"""The reference implementation of the queue, the membership and the limits: everything in this process.

For tests, and to read beside docs/design/queue.md. It is `policy/lifecycle.py` behind the interfaces, with the clock passed in;
several nodes of a test share one `MemoryCluster`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from attrs import evolve
from twisted.internet.defer import Deferred, execute
from zope.interface import implementer

from relaycluster.interfaces import (
    MOST_DUE,
    ContentMissing,
    IAttempts,
    IMembership,
    IQueue,
    IThrottle,
    NameTaken,
    NotOwner,
    QueueFull,
    QueueUnavailable,
    Recovered,
    Settled,
    Tally,
)
from relaycluster.mail import history, queue_id
from relaycluster.mail.envelope import MessageClass
from relaycluster.mail.item import Claim, Item, Notice
from relaycluster.policy import backoff, concurrency, throttle
from relaycluster.policy.cluster import Member, Ownership, Snapshot
from relaycluster.policy.lifecycle import Partition
from relaycluster.policy.pause import Why
from relaycluster.policy.ring import partition_of
from relaycluster.policy.suspension import Suspension

T = TypeVar("T")

WISH_MS = 3000
"""So long somebody who got fewer connections than wanted is remembered."""
SHORT_REPLY = 200


class MemoryCluster:
    """What the nodes of a test share. `full` makes it refuse to grow, as Redis at `maxmemory` does; `down` makes every call
    fail, as a Redis that is away does."""

    def __init__(self, clock_ms: Callable[[], int], partitions: int = 64) -> None:
        self.clock_ms = clock_ms
        self.partitions = [Partition(number) for number in range(partitions)]
        self.full = False
        self.down = False
        self.version = 0
        self.next_incarnation = 1
        self.suspensions: dict[str, Suspension] = {}
        self.suspensions_version = 0
        self.members: dict[int, tuple[Member, int]] = {}  # incarnation → member, alive until
        self.rates: dict[str, int] = {}
        self.slots: dict[str, dict[int, int]] = {}
        self.wishes: dict[str, dict[int, int]] = {}
        self.attempts: dict[str, backoff.Record] = {}

    def answer(self, transition: Callable[[], T], grows: bool = False) -> Deferred[T]:
        """A transition's result as a Deferred; refused while full or down."""

        def run() -> T:
            if self.down:
                raise QueueUnavailable("the store is down")
            if grows and self.full:
                raise QueueFull("the store is full")
            return transition()

        return execute(run)


@implementer(IQueue)
class MemoryQueue:
    """See `IQueue`."""

    def __init__(self, cluster: MemoryCluster, grace_ms: int = 5000, deaths_that_hold: int = 5) -> None:
        self._cluster = cluster
        self._grace_ms = grace_ms
        self._deaths_that_hold = deaths_that_hold
        self.partitions = len(cluster.partitions)
        self.traces = True

    def now_ms(self) -> int:
        return self._cluster.clock_ms()

    def _of(self, domain: str) -> Partition:
        return self._cluster.partitions[partition_of(domain, self.partitions)]

    def put_chunk(self, partition: int, message_id: str, number: int, data: bytes) -> Deferred[None]:
        place = self._cluster.partitions[partition]
        return self._cluster.answer(lambda: place.chunks.__setitem__((message_id, number), data), grows=True)

    def drop_chunks(self, partition: int, message_id: str, chunks: int) -> Deferred[None]:
        place = self._cluster.partitions[partition]

        def transition() -> None:
            for number in range(1, chunks + 1):
                place.chunks.pop((message_id, number), None)

        return self._cluster.answer(transition)

    def enqueue(self, item: Item, content: bytes, lease: tuple[Ownership, int] | None) -> Deferred[Claim | None]:
        place = self._of(item.domain)

        def transition() -> Claim | None:
            if item.home < 0:
                self._need_chunks(place, item.id, item.chunks)
            token = place.enqueue(item, content, lease, self.now_ms())
            return Claim(item, place.number, token, content) if token else None

        return self._cluster.answer(transition, grows=True)

    def _need_chunks(self, place: Partition, name: str, chunks: int) -> None:
        if name not in place.done and any((name, number + 1) not in place.chunks for number in range(chunks)):
            raise QueueUnavailable("pieces of the content are missing")

    def cancel(self, item: Item, lease: tuple[Ownership, int] | None) -> Deferred[bool]:
        return self._cluster.answer(lambda: self._of(item.domain).cancel(item.id, lease))

    def enqueue_spread(self, items: Sequence[Item], content: bytes) -> Deferred[None]:
        message = queue_id.message_id(items[0].id)
        place = self._cluster.partitions[items[0].home]

        def transition() -> None:
            self._need_chunks(place, message, items[0].chunks)
            is_new = message not in place.done and message not in place.parts
            place.enqueue_spread(message, items, content, self.now_ms(), self._grace_ms)
            if is_new:
                where = [
                    (int(item.id[queue_id.LENGTH + 1 :]), partition_of(item.domain, self.partitions), item.domain)
                    for item in items
                ]
                spread = history.Spread(items[0].arrived_ms, tuple(where))
                place.add_trace(message, history.pack_spread(message, spread))

        return self._cluster.answer(transition, grows=True)

    def spread_done(self, message_id: str) -> Deferred[None]:
        place = self._cluster.partitions[queue_id.partition(message_id)]
        return self._cluster.answer(lambda: place.spread_done(message_id))

    def spreads(self, partition: int) -> Deferred[Sequence[Sequence[Item]]]:
        place = self._cluster.partitions[partition]
        return self._cluster.answer(
            lambda: [
                [item for item in items if item.id in place.parts.get(message, ())]
                for message, items in place.spread.items()
            ]
        )

    def claim(
        self, owner: Ownership, domain: str, limit: int, number: int, normal_first: int = 0, bulk_first: int = 0
    ) -> Deferred[Sequence[Claim]]:
        place = self._owned(owner)

        def transition() -> Sequence[Claim]:
            if not place.owned_by(owner):
                raise NotOwner(f"partition {owner.partition} has another owner")
            return place.claim(domain, limit, number, self.now_ms(), normal_first, bulk_first)

        return self._cluster.answer(transition)

    def claim_overdue(
        self,
        owner: Ownership,
        domain: str,
        message_class: MessageClass,
        start: int,
        limit: int,
        number: int,
        expired_before_ms: int,
        delayed_before_ms: int,
    ) -> Deferred[tuple[Sequence[Claim], int]]:
        place = self._owned(owner)

        def transition() -> tuple[Sequence[Claim], int]:
            if not place.owned_by(owner):
                raise NotOwner(f"partition {owner.partition} has another owner")
            return place.claim_overdue(
                domain, message_class, start, limit, number, expired_before_ms, delayed_before_ms, self.now_ms()
            )

        return self._cluster.answer(transition)

    def _owned(self, owner: Ownership) -> Partition:
        return self._cluster.partitions[owner.partition]

    def unclaim(self, owner: Ownership, number: int, limit: int) -> Deferred[None]:
        return self._cluster.answer(lambda: self._owned(owner).unclaim(owner, number, limit))

    def set_aside(self, claim: Claim) -> Deferred[Settled]:
        place = self._cluster.partitions[claim.partition]
        return self._cluster.answer(lambda: Settled(place.set_aside(claim, self.now_ms())))

    def content(self, item: Item, chunk: int) -> Deferred[bytes]:
        home = item.home >= 0
        place = self._cluster.partitions[item.home] if home else self._of(item.domain)
        name = queue_id.message_id(item.id) if home else item.id

        def read() -> bytes:
            found = place.chunks.get((name, chunk)) if chunk else place.bodies.get(name)
            if found is None:
                raise ContentMissing(f"the content of {item.id} is not there (piece {chunk} of {item.chunks})")
            return found

        return self._cluster.answer(read)

    def finish(self, claim: Claim, delivered: bool, notice: Notice | None, attempts: bytes = b"") -> Deferred[Settled]:
        place = self._cluster.partitions[claim.partition]

        def transition() -> Settled:
            was_there = claim.item.id in place.items
            result = Settled(place.finish(claim, delivered))
            if was_there and result is Settled.DONE:
                place.owe(notice, self.now_ms(), self._grace_ms)
                place.add_trace(claim.item.id, attempts)
            return result

        return self._cluster.answer(transition)

    def defer(
        self, claim: Claim, item: Item, delay_ms: int, notice: Notice | None, attempts: bytes = b""
    ) -> Deferred[Settled]:
        place = self._cluster.partitions[claim.partition]

        def transition() -> Settled:
            result = Settled(place.defer(claim, item, self.now_ms() + delay_ms))
            if result is Settled.DONE:
                place.owe(notice, self.now_ms(), self._grace_ms)
                place.replies[item.domain] = (self.now_ms(), item.last_reply[:SHORT_REPLY])
                place.add_trace(item.id, attempts)
            return result

        return self._cluster.answer(transition)

    def put_back(self, claim: Claim) -> Deferred[Settled]:
        place = self._cluster.partitions[claim.partition]
        return self._cluster.answer(lambda: Settled(place.put_back(claim)))

    def notes(self, claim: Claim) -> Deferred[tuple[str, ...]]:
        place = self._cluster.partitions[claim.partition]
        return self._cluster.answer(lambda: place.notes.get(claim.item.id, ()))

    def note(self, claim: Claim, recipients: Sequence[str]) -> Deferred[None]:
        place = self._cluster.partitions[claim.partition]
        return self._cluster.answer(lambda: place.note(claim.item.id, recipients))

    def leave_home(self, item: Item) -> Deferred[None]:
        place = self._cluster.partitions[item.home]
        return self._cluster.answer(lambda: place.leave_home(queue_id.message_id(item.id), [item.id], item.chunks))

    def notices(self, partition: int) -> Deferred[Sequence[Notice]]:
        return self._cluster.answer(lambda: list(self._cluster.partitions[partition].notices.values()))

    def notice_done(self, partition: int, notice_id: str) -> Deferred[None]:
        return self._cluster.answer(lambda: self._cluster.partitions[partition].notice_done(notice_id))

    def acquire(self, partition: int, incarnation: int, snapshot: Snapshot) -> Deferred[Ownership | None]:
        def transition() -> Ownership | None:
            fence = self._cluster.partitions[partition].acquire(incarnation, snapshot)
            return Ownership(partition, incarnation, fence) if fence else None

        return self._cluster.answer(transition)

    def release(self, owner: Ownership) -> Deferred[None]:
        return self._cluster.answer(lambda: self._owned(owner).release(owner))

    def recover(self, owner: Ownership, snapshot: Snapshot) -> Deferred[Recovered]:
        place = self._owned(owner)

        def transition() -> Recovered:
            if not place.owned_by(owner):
                raise NotOwner(f"partition {owner.partition} has another owner")
            waiting, held = place.recover(snapshot, self._deaths_that_hold, self.now_ms())
            return Recovered(tuple(waiting), tuple(held))

        return self._cluster.answer(transition)

    def pause(
        self, owner: Ownership, domain: str, delay_ms: int, why: Why = Why.SPREAD, detail: str = ""
    ) -> Deferred[None]:
        place = self._owned(owner)

        def transition() -> None:
            if place.owned_by(owner):
                place.pause(domain, self.now_ms() + delay_ms, self.now_ms(), why, detail)

        return self._cluster.answer(transition)

    def due(self, partitions: Sequence[int], passed_over: Mapping[int, int]) -> Deferred[Sequence[tuple[int, str]]]:
        def of(number: int) -> Sequence[tuple[int, str]]:
            index = self._cluster.partitions[number].index()
            found = sorted((due, domain) for domain, due in index.items() if due <= self.now_ms())
            start = passed_over.get(number, 0)
            return [(number, domain) for _, domain in found[start : start + MOST_DUE]]

        return self._cluster.answer(lambda: [each for number in partitions for each in of(number)])

    def sweep(self, owner: Ownership, older_than_ms: int) -> Deferred[int]:
        place = self._owned(owner)

        def transition() -> int:
            left = 0
            for message, since in list(place.homes.items()):
                if since > self.now_ms() - older_than_ms or message in place.spread:
                    continue
                everywhere = {item_id for each in self._cluster.partitions for item_id in each.items}
                gone = [item_id for item_id in place.parts[message] if item_id not in everywhere]
                left += len(gone)
                pieces = max((number for name, number in place.chunks if name == message), default=0)
                place.leave_home(message, gone, pieces)
            return left

        return self._cluster.answer(transition)

    def room(self) -> Deferred[tuple[int, int]]:
        return self._cluster.answer(lambda: (1, 1) if self._cluster.full else (0, 1))

    def tally(self, partitions: Sequence[int]) -> Deferred[Tally]:
        def count() -> Tally:
            places = [self._cluster.partitions[number] for number in partitions]
            now = self.now_ms()
            backlog: dict[str, int] = {}
            for place in places:
                for item_id in place.waiting:
                    domain = place.items[item_id].domain
                    backlog[domain] = backlog.get(domain, 0) + 1
            due = [when for place in places for when in place.index().values() if when <= now]
            return Tally(
                waiting=sum(len(place.waiting) for place in places),
                ready=sum(when <= now for place in places for when in place.waiting.values()),
                leased=sum(len(place.leased) for place in places),
                held=sum(len(place.held) for place in places),
                bytes=sum(place.items[item_id].size for place in places for item_id in place.waiting),
                oldest_ms=min(due, default=0),
                domains=tuple(sorted(backlog.items(), key=lambda pair: -pair[1])),
            )

        return self._cluster.answer(count)


@implementer(IMembership)
class MemoryMembership:
    """See `IMembership`. The clock of a test does not jump, so this one needs no clamp."""

    def __init__(self, cluster: MemoryCluster, lease_ms: int = 10_000) -> None:
        self._cluster = cluster
        self._lease_ms = lease_ms

    def _expire(self) -> None:
        now = self._cluster.clock_ms()
        gone = [number for number, (_, until) in self._cluster.members.items() if until <= now]
        for number in gone:
            del self._cluster.members[number]
        self._cluster.version += bool(gone)

    def join(self, member: Member) -> Deferred[Member]:
        def transition() -> Member:
            self._expire()
            for number, (other, _) in list(self._cluster.members.items()):
                if other.id == member.id:
                    if other.key != member.key:
                        raise NameTaken(
                            f"node id {member.id!r} is in use by another living node ({other.hostname}): "
                            "give each node its own [node] id"
                        )
                    del self._cluster.members[number]
            joined = evolve(member, incarnation=self._cluster.next_incarnation)
            self._cluster.next_incarnation += 1
            self._cluster.members[joined.incarnation] = (joined, self._cluster.clock_ms() + self._lease_ms)
            self._cluster.version += 1
            return joined

        return self._cluster.answer(transition)

    def beat(self, member: Member) -> Deferred[Snapshot | None]:
        def transition() -> Snapshot | None:
            self._expire()
            if member.incarnation not in self._cluster.members:
                return None
            self._cluster.version += self._cluster.members[member.incarnation][0] != member
            self._cluster.members[member.incarnation] = (member, self._cluster.clock_ms() + self._lease_ms)
            living = tuple(self._cluster.members[number][0] for number in sorted(self._cluster.members))
            return Snapshot(
                self._cluster.version,
                self._cluster.next_incarnation,
                living,
                suspensions=self._cluster.suspensions_version,
            )

        return self._cluster.answer(transition)

    def leave(self, member: Member) -> Deferred[None]:
        def transition() -> None:
            self._cluster.version += self._cluster.members.pop(member.incarnation, None) is not None

        return self._cluster.answer(transition)


@implementer(IThrottle)
class MemoryThrottle:
    """See `IThrottle`."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster

    def take(self, limit: str, interval_ns: int, burst: int, wanted: int) -> Deferred[tuple[Sequence[int], int]]:
        def transition() -> tuple[Sequence[int], int]:
            now_us = self._cluster.clock_ms() * 1000
            grant = throttle.take(self._cluster.rates.get(limit, 0), now_us, interval_ns, burst, wanted)
            self._cluster.rates[limit] = grant.tat_ns
            return [slot - now_us for slot in grant.slots_us], grant.retry_after_us

        return self._cluster.answer(transition)

    def spend(self, limit: str, interval_ns: int, burst: int, wanted: int) -> Deferred[int]:
        def transition() -> int:
            now_us = self._cluster.clock_ms() * 1000
            state = throttle.spend(self._cluster.rates.get(limit, 0), now_us, interval_ns, burst, wanted)
            self._cluster.rates[limit], retry_after_us = state
            return retry_after_us

        return self._cluster.answer(transition)

    def hold(self, limit: str, incarnation: int, wanted: int, maximum: int, snapshot: Snapshot) -> Deferred[int]:
        def transition() -> int:
            slots = self._cluster.slots.setdefault(limit, {})
            for holder in [holder for holder in slots if snapshot.is_dead(holder)]:
                del slots[holder]
            mine = slots.pop(incarnation, 0)
            granted = wanted if wanted <= mine else max(mine, min(wanted, maximum - sum(slots.values())))
            if granted > 0:
                slots[incarnation] = granted
            wishes = self._cluster.wishes.setdefault(limit, {})
            wishes.pop(incarnation, None)
            if granted < wanted:
                wishes[incarnation] = self._cluster.clock_ms()
            return granted

        return self._cluster.answer(transition)

    def share(self, limit: str, incarnation: int, maximum: int, snapshot: Snapshot) -> Deferred[int]:
        def transition() -> int:
            holders, wishes = self._cluster.slots.get(limit, {}), self._cluster.wishes.get(limit, {})
            since = self._cluster.clock_ms() - WISH_MS
            return concurrency.fair_share(
                [each for each in holders if not snapshot.is_dead(each)],
                [each for each, at in wishes.items() if at > since and not snapshot.is_dead(each)],
                incarnation,
                maximum,
            )

        return self._cluster.answer(transition)


@implementer(IAttempts)
class MemoryAttempts:
    """See `IAttempts`."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster

    def wait(self, subjects: Sequence[str]) -> Deferred[float]:
        def transition() -> float:
            found = [(subject, self._record(subject)) for subject in subjects]
            return backoff.wait_ms(found, self._cluster.clock_ms()) / 1000

        return self._cluster.answer(transition)

    def failed(self, subjects: Sequence[str]) -> Deferred[Sequence[float]]:
        def transition() -> Sequence[float]:
            now_ms = self._cluster.clock_ms()
            waits = []
            for subject in subjects:
                steps = backoff.steps_of(subject)
                record = self._record(subject).failed(now_ms, steps)
                self._cluster.attempts[subject] = record
                waits.append(record.wait_ms(now_ms, steps) / 1000)
            return waits

        return self._cluster.answer(transition)

    def succeeded(self, subjects: Sequence[str]) -> Deferred[None]:
        def transition() -> None:
            now_ms = self._cluster.clock_ms()
            self._cluster.attempts.update((subject, backoff.proved(now_ms)) for subject in subjects)

        return self._cluster.answer(transition)

    def _record(self, subject: str) -> backoff.Record:
        return self._cluster.attempts.get(subject, backoff.Record())
