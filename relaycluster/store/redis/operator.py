"""What an operator sees and does, in Redis: `IOperator` (docs/design/queue.md, "The operator").

Acts are one script each, on the partition that the item's id leads to. Reading takes pages and counters, and never a command that
keeps Redis from its work.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from relaycluster.interfaces import (
    ClusterState,
    DomainState,
    IOperator,
    LimitState,
    Operated,
    Shown,
    Wanted,
)
from relaycluster.mail import history, queue_id
from relaycluster.mail.history import Act, Record, Spread
from relaycluster.policy.cluster import Snapshot
from relaycluster.policy.pause import unpack_pause
from relaycluster.policy.ring import partition_of
from relaycluster.store.redis import codec, keys
from relaycluster.store.redis.connection import Argument, RedisConnection, pack
from relaycluster.store.redis.items import QueuedItems
from relaycluster.store.redis.queue import RedisQueue
from relaycluster.store.redis.scripts import script

FLUSHED_AT_ONCE = 500
ENDS = 20
"""So many items at each end of a queue are looked at for its oldest."""
EARLIEST = 5
"""So many of these, by their ids, are read first for when they arrived."""
TAT_EPOCH = 1_577_836_800
"""Slots of a rate are counted in microseconds from 2020 on (lua/take.lua)."""

_CLASSES = (0, 1, 2)


@implementer(IOperator)
class RedisOperator:
    """See `IOperator`. Acts leave the queue by the queue's own transitions, and go by its clock."""

    def __init__(self, connection: RedisConnection, queue: RedisQueue, done_retention_ms: int = 30 * 60_000) -> None:
        self._redis = connection
        self._queue = queue
        self._partitions = queue.partitions
        self._retention = done_retention_ms
        self._items_of = QueuedItems(connection, queue)

    # Acts

    def hold(self, item_id: str, who: str, reason: str) -> Deferred[Operated]:
        return Deferred.fromCoroutine(self._act("hold", item_id, who, reason))

    def release(self, item_id: str, who: str, reason: str) -> Deferred[Operated]:
        return Deferred.fromCoroutine(self._act("release", item_id, who, reason))

    def bounce(self, item_id: str, who: str, reason: str) -> Deferred[Operated]:
        return Deferred.fromCoroutine(self._act("bounce", item_id, who, reason, reason))

    def requeue(self, shown: Shown, reset: bool, who: str, reason: str) -> Deferred[Operated]:
        if reset and shown.unreadable:
            return succeed(Operated.UNREADABLE)
        new = codec.pack_item(evolve(shown.item, attempts=0)) if reset else b""
        verb = "requeue" if not reset else "requeue --reset"
        return Deferred.fromCoroutine(
            self._act("requeue", shown.item.id, who, reason, shown.packed, new, verb=verb, domain=shown.item.domain)
        )

    def delete(self, item_id: str, who: str, reason: str) -> Deferred[Operated]:
        return Deferred.fromCoroutine(self._delete(item_id, who, reason))

    async def _delete(self, item_id: str, who: str, reason: str) -> Operated:
        found = await self._shown(item_id)
        slot, field = keys.done_slot(item_id), keys.done_field(item_id)
        result = await self._act("delete", item_id, who, reason, slot, field, self._retention)
        for each in found:
            if result is Operated.DONE and each.item.id == item_id and each.item.home >= 0:
                await self._queue.leave_home(each.item)
        return result

    async def _act(
        self, name: str, item_id: str, who: str, reason: str, *arguments: Argument, verb: str = "", domain: str = ""
    ) -> Operated:
        partition = await self._partition(item_id)
        if partition is None:
            return Operated.UNKNOWN
        act = history.pack_act(item_id, Act(self._queue.now_ms(), verb or name, item_id, who, reason, domain))
        answer: bytes = await self._redis.run(
            script(f"operator_{name}"),
            keys.partition_tag(partition),
            self._queue.offset_ms,
            item_id,
            act,
            item_id if self._queue.traces else b"",
            *arguments,
        )
        return Operated(answer.decode())

    def flush(self, domain: str, who: str, reason: str) -> Deferred[int]:
        return Deferred.fromCoroutine(self._flush(domain, who, reason))

    async def _flush(self, domain: str, who: str, reason: str) -> int:
        tag = keys.partition_tag(partition_of(domain, self._partitions))
        act = history.pack_act("", Act(self._queue.now_ms(), "flush", domain, who, reason, domain))
        total = 0
        while True:
            moved: int = await self._redis.run(
                script("operator_flush"), tag, self._queue.offset_ms, domain, act, FLUSHED_AT_ONCE
            )
            total += moved
            act = b""
            if moved < FLUSHED_AT_ONCE:
                return total

    # Finding items

    async def _partition(self, item_id: str) -> int | None:
        """Where an item lives: its own partition is its message's home, unless the message went to several domains."""
        return next((partition for found, partition in await self._places(item_id) if found == item_id), None)

    async def _places(self, identifier: str) -> list[tuple[str, int]]:
        """The ids and partitions of an item, or of all items of a message; what is settled may be among them."""
        if not queue_id.is_valid(identifier):
            return []
        message, home = queue_id.message_id(identifier), queue_id.partition(identifier)
        if home >= self._partitions:
            return []
        places = [(message, home)] if message == identifier else []
        for part in await self._redis.request(
            b"SMEMBERS", keys.key(keys.partition_tag(home), "PARTS", message.encode())
        ):
            number, _, partition = part.partition(b":")
            item_id = queue_id.item_id(message, int(number))
            if identifier in (message, item_id):
                places.append((item_id, int(partition)))
        return sorted(places, key=lambda place: (len(place[0]), place[0]))

    def show(self, identifier: str) -> Deferred[Sequence[Shown]]:
        return Deferred.fromCoroutine(self._shown(identifier))

    async def _shown(self, identifier: str) -> list[Shown]:
        places = await self._places(identifier)
        return await self._items_of.look([(partition, item_id.encode()) for item_id, partition in places])

    def items(self, wanted: Wanted, limit: int) -> Deferred[Sequence[Shown]]:
        return Deferred.fromCoroutine(self._items(wanted, limit))

    async def _items(self, wanted: Wanted, limit: int) -> list[Shown]:
        found: list[Shown] = []
        async for page in self.pages(wanted):
            found += page
            if len(found) >= limit:
                break
        return found[:limit]

    def pages(self, wanted: Wanted, besides: Container[str] = ()) -> AsyncIterator[Sequence[Shown]]:
        return self._items_of.pages(wanted, besides)

    # History

    def trace(self, identifier: str) -> Deferred[Sequence[tuple[str, Record]]]:
        return Deferred.fromCoroutine(self._trace(identifier))

    async def _trace(self, identifier: str) -> list[tuple[str, Record]]:
        if not queue_id.is_valid(identifier) or queue_id.partition(identifier) >= self._partitions:
            return []
        message, home = queue_id.message_id(identifier), queue_id.partition(identifier)
        slot = keys.trace_name(message, 0)
        shared = await self._redis.request(b"GET", keys.key(keys.partition_tag(home), "TRACE", slot)) or b""
        found = list(history.of(identifier, shared))
        places = {*await self._places(identifier), (identifier, home)}
        for _, record in history.of(message, shared):
            if isinstance(record, Spread):
                places |= {(queue_id.item_id(message, number), partition) for number, partition, _ in record.parts}
        places = {place for place in places if identifier in (message, place[0])}
        elsewhere = sorted({partition for _, partition in places} - {home})
        asked = [(keys.partition_tag(partition), slot) for partition in elsewhere]
        asked += [(keys.partition_tag(partition), item_id.encode()) for item_id, partition in sorted(places)]
        commands = [pack(b"GET", keys.key(tag, "TRACE", name)) for tag, name in asked]
        for data in await self._redis.request_all(commands, "trace"):
            found += history.of(identifier, data or b"")
        return sorted(found, key=lambda entry: entry[1].at_ms)

    # Queues in numbers

    def domains(self, limit: int) -> Deferred[Sequence[DomainState]]:
        return Deferred.fromCoroutine(self._domains(limit))

    async def _domains(self, limit: int) -> list[DomainState]:
        first = max(4, 4 * limit // self._partitions)
        tops = await self._tops(range(self._partitions), first)
        counts = sorted((count for top in tops.values() for _, count in top), reverse=True)
        least = counts[limit - 1] if len(counts) >= limit else 0
        # A partition whose last answer still ranks may have more that do.
        more = [each for each, top in tops.items() if len(top) == first and top[-1][1] >= least]
        tops.update(await self._tops(more, limit))
        ranked = sorted(
            ((count, name) for top in tops.values() for name, count in top), key=lambda pair: (-pair[0], pair[1])
        )
        return await self._states([name for _, name in ranked[:limit]])

    async def _tops(self, partitions: Sequence[int], number: int) -> dict[int, list[tuple[str, int]]]:
        commands = [
            pack(b"ZREVRANGE", keys.key(keys.partition_tag(each), "BACKLOG"), 0, number - 1, b"WITHSCORES")
            for each in partitions
        ]
        answers = await self._redis.request_all(commands, "queue")
        return {
            each: [(name.decode(), int(count)) for name, count in zip(top[::2], top[1::2], strict=True)]
            for each, top in zip(partitions, answers, strict=True)
        }

    def domain(self, domain: str) -> Deferred[DomainState]:
        return Deferred.fromCoroutine(self._states([domain])).addCallback(lambda found: found[0])

    async def _states(self, domains: Sequence[str]) -> list[DomainState]:
        now = self._queue.now_ms()
        each = 14
        commands: list[bytes] = []
        for domain in domains:
            tag = keys.partition_tag(partition_of(domain, self._partitions))
            commands += [
                pack(b"ZSCORE", keys.key(tag, "BACKLOG"), domain),
                pack(b"ZSCORE", keys.key(tag, "INDEX"), domain),
                pack(b"HGET", keys.key(tag, "PAUSED"), domain),
                pack(b"HGET", keys.key(tag, "REPLIES"), domain),
                pack(b"GET", keys.key(tag, "OWNER")),
            ]
            for kind in _CLASSES:
                due = keys.key(tag, "DUE", b"%d:%s" % (kind, domain.encode()))
                commands.append(pack(b"ZCOUNT", due, b"-inf", now))
                commands.append(pack(b"ZRANGE", due, 0, ENDS - 1))
                commands.append(pack(b"ZRANGE", due, -ENDS, -1))
        answers = await self._redis.request_all(commands, "queue")
        parts = [answers[at * each : (at + 1) * each] for at in range(len(domains))]
        ids = [sorted({found for at in (6, 7, 9, 10, 12, 13) for found in part[at]}) for part in parts]
        oldest = await self._oldest(domains, ids)
        return [self._state(*found, now) for found in zip(domains, parts, map(len, ids), oldest, strict=True)]

    async def _oldest(self, domains: Sequence[str], ids: Sequence[Sequence[bytes]]) -> list[int]:
        """The earliest arrival among these items of each domain, by rising ids; 0 where none is left. No item arrived before its id was
        made, but some long after: the id of a notice has the time of the message that it tells of. Two steps, whatever the ids are: the
        earliest of each domain, then whatever could still be earlier than what those brought."""
        tags = [keys.partition_tag(partition_of(domain, self._partitions)) for domain in domains]
        oldest: dict[int, int] = {}
        for step in (slice(EARLIEST), slice(EARLIEST, None)):
            sought = [
                (at, early)
                for at, some in enumerate(ids)
                if (early := [each for each in some[step] if at not in oldest or _made(each) < oldest[at]])
            ]
            commands = [pack(b"MGET", *(keys.key(tags[at], "ITEM", each) for each in some)) for at, some in sought]
            for (at, some), items in zip(sought, await self._redis.request_all(commands, "queue"), strict=True):
                arrived = [_arrived(each, item) for each, item in zip(some, items, strict=True) if item is not None]
                if arrived:
                    oldest[at] = min(*arrived, oldest.get(at, arrived[0]))
        return [oldest.get(at, 0) for at in range(len(domains))]

    def _state(self, domain: str, answers: Sequence[Any], seen: int, oldest_ms: int, now: int) -> DomainState:
        backlog, due, paused, reply, owner = answers[:5]
        waiting = int(backlog or 0)
        pause = unpack_pause(paused) if paused else None
        said, _, text = (reply or b"0:").partition(b":")
        return DomainState(
            domain,
            partition_of(domain, self._partitions),
            waiting,
            sum(answers[5::3]),
            _ms(due) if due is not None else 0,
            pause if pause is not None and pause.until_ms > now else None,
            oldest_ms,
            seen >= waiting,
            text.decode("utf-8", "surrogateescape"),
            int(said),
            int((owner or b"").partition(b":")[0] or 0),
        )

    # The cluster

    def limit(self, name: str, interval_ns: int, burst: int) -> Deferred[LimitState]:
        return Deferred.fromCoroutine(self._limit(name, interval_ns, burst))

    async def _limit(self, name: str, interval_ns: int, burst: int) -> LimitState:
        tag = keys.limit_tag(name)
        stored, held, time = await self._redis.request_all(
            [pack(b"GET", keys.key(tag, "RATE")), pack(b"HGETALL", keys.key(tag, "SLOTS")), pack(b"TIME")], "explain"
        )
        now_us = (int(time[0]) - TAT_EPOCH) * 1_000_000 + int(time[1])
        free_us = float(stored or 0) - interval_ns / 1000 * (burst - 1) - now_us
        pairs = zip(map(int, held[::2]), map(int, held[1::2]), strict=True)
        return LimitState(max(0, int(free_us)) if interval_ns else 0, tuple(sorted(pairs)))

    def cluster(self) -> Deferred[ClusterState]:
        return Deferred.fromCoroutine(self._cluster())

    async def _cluster(self) -> ClusterState:
        ask = [
            pack(b"HGETALL", keys.key(keys.CLUSTER, "MEMBERS")),
            pack(b"ZRANGE", keys.key(keys.CLUSTER, "BEATS"), 0, -1, b"WITHSCORES"),
            pack(
                b"HMGET", keys.key(keys.CLUSTER, "CLOCK"), "version", "next", "offset", "seen", "lease", "suspensions"
            ),
            pack(b"HGET", keys.key(keys.CLUSTER, "SCHEMA"), "cluster"),
            pack(b"TIME"),
            *(pack(b"GET", keys.key(keys.partition_tag(each), "OWNER")) for each in range(self._partitions)),
        ]
        members, beats, clock, name, time, *owners = await self._redis.request_all(ask, "status")
        version, following, offset, seen, lease, suspensions = (int(each or 0) for each in clock)
        now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
        lease += max(0, now_ms - seen)
        until = {int(each): _ms(score) for each, score in zip(beats[::2], beats[1::2], strict=True)}
        found = sorted(
            (codec.unpack_member(int(each), data) for each, data in zip(members[::2], members[1::2], strict=True)),
            key=lambda member: member.incarnation,
        )
        snapshot = Snapshot(version, following + 1, tuple(found), offset, (name or b"").decode(), suspensions)
        left = tuple(max(0, until.get(member.incarnation, 0) - lease) for member in found)
        held = tuple(int((owner or b"").partition(b":")[0] or 0) for owner in owners)
        return ClusterState(snapshot, left, held, now_ms + offset)


def _made(item_id: bytes) -> int:
    """The time of an id."""
    return queue_id.time_ms(item_id.decode())


def _arrived(item_id: bytes, packed: bytes) -> int:
    """When an item arrived; of one that this release can not read, the time of its id."""
    try:
        return codec.unpack_item(packed).arrived_ms
    except Exception:  # a newer release's, or damaged
        return _made(item_id)


def _ms(score: bytes) -> int:
    """A score as the time that it is."""
    return int(float(score))
