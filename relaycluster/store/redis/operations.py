"""What the owner of a partition does for the operator, in Redis: `IOperations` (docs/design/queue.md, "The operator")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, FirstError, gatherResults
from zope.interface import implementer

from relaycluster.interfaces import IOperations, NotOwner
from relaycluster.mail import history
from relaycluster.mail.history import Act
from relaycluster.mail.item import Claim
from relaycluster.policy.cluster import Ownership
from relaycluster.policy.pause import Pause, unpack_pause
from relaycluster.store.redis import keys
from relaycluster.store.redis.connection import RedisConnection, pack
from relaycluster.store.redis.queue import BODY_WITH_CLAIM, RedisQueue
from relaycluster.store.redis.scripts import script

MOST_ACTS = 100
LEAVING_AT_ONCE = 256
"""So many keys of history leave in one step."""
OLDEST_AT_ONCE, MOST_AT_ONCE = 8, 1024
"""So many of a partition's keys of history are looked at first; and at most, where a few partitions have most of what is old."""


@implementer(IOperations)
class RedisOperations:
    """See `IOperations`."""

    def __init__(self, connection: RedisConnection, queue: RedisQueue) -> None:
        self._redis = connection
        self._queue = queue

    def acts(self, partition: int) -> Deferred[Sequence[tuple[Act, bytes]]]:
        def read(found: list[bytes]) -> Sequence[tuple[Act, bytes]]:
            # What can not be read is told, too: a count that is wrong would tell others twice or never.
            records = [next(iter(history.unpack(data)), ("", None))[1] for data in found]
            acts = [each if isinstance(each, Act) else Act(0, "unknown", "", "", "") for each in records]
            return list(zip(acts, found, strict=True))

        name = keys.key(keys.partition_tag(partition), "ACTS")
        return self._redis.request(b"LRANGE", name, 0, MOST_ACTS - 1).addCallback(read)

    def told(self, owner: Ownership, acts: Sequence[tuple[Act, bytes]]) -> Deferred[bool]:
        tag = keys.partition_tag(owner.partition)
        answer = self._redis.run(script("operator_told"), tag, owner.text, len(acts), acts[-1][1])
        return answer.addCallback(lambda said: said == b"done")

    def claim_bounces(self, owner: Ownership, limit: int, number: int) -> Deferred[Sequence[tuple[Claim, str]]]:
        def read(answer: list[Any]) -> Sequence[tuple[Claim, str]]:
            if answer[0] == b"lost":
                raise NotOwner(f"partition {owner.partition} has another owner")
            found = []
            for at in range(1, len(answer), 6):
                claim = self._queue.claim_of(owner.partition, *answer[at : at + 5])
                if claim is not None:
                    found.append((claim, (answer[at + 5] or b"").decode("utf-8", "replace")))
            return found

        tag = keys.partition_tag(owner.partition)
        answer = self._redis.run(script("claim_bounces"), tag, owner.text, limit, number, BODY_WITH_CLAIM)
        return answer.addCallback(read)

    def paused(self, partitions: Sequence[int]) -> Deferred[Sequence[tuple[int, str, Pause]]]:
        commands = [pack(b"HGETALL", keys.key(keys.partition_tag(each), "PAUSED")) for each in partitions]

        def read(answers: list[list[bytes]]) -> Sequence[tuple[int, str, Pause]]:
            return [
                (each, domain.decode(), unpack_pause(entry))
                for each, found in zip(partitions, answers, strict=True)
                for domain, entry in zip(found[::2], found[1::2], strict=True)
            ]

        return self._redis.request_all(commands, "paused").addCallback(read)

    def trim_traces(self, partitions: Sequence[int], most_bytes: int) -> Deferred[int]:
        return Deferred.fromCoroutine(self._trim(partitions, most_bytes))

    async def _trim(self, partitions: Sequence[int], most_bytes: int) -> int:
        tags = [keys.partition_tag(each) for each in partitions]
        sizes = await self._redis.request_all(
            [pack(b"HGET", keys.key(tag, "COUNTS"), b"trace") for tag in tags], "trim"
        )
        excess = sum(int(size or 0) for size in sizes) - most_bytes
        some = [tag for tag, size in zip(tags, sizes, strict=True) if size]
        freed, most = 0, OLDEST_AT_ONCE
        while freed < excess:
            oldest, complete = await self._oldest(some, most)
            if not oldest:
                break
            for at in range(0, len(oldest), LEAVING_AT_ONCE):
                freed += await self._let_go(oldest[at : at + LEAVING_AT_ONCE], excess - freed)
                if freed >= excess:
                    return freed
            if complete:
                break
            most = min(2 * most, MOST_AT_ONCE)
        return freed

    async def _oldest(self, tags: Sequence[bytes], most: int) -> tuple[list[tuple[bytes, bytes]], bool]:
        """The oldest keys of history in all of these partitions, as (tag, name); and whether they are all that there is. `most` of each
        partition are looked at: of what is younger than the last of these, something older may be out of sight."""
        commands = [pack(b"ZRANGE", keys.key(tag, "TRACES"), 0, most - 1, b"WITHSCORES") for tag in tags]
        answers = await self._redis.request_all(commands, "trim")
        ends = [float(found[-1]) for found in answers if len(found) == 2 * most]
        horizon = min(ends, default=float("inf"))
        found = [
            (float(score), tag, name)
            for tag, answer in zip(tags, answers, strict=True)
            for name, score in zip(answer[::2], answer[1::2], strict=True)
        ]
        return [(tag, name) for score, tag, name in sorted(found) if score <= horizon], not ends

    async def _let_go(self, oldest: Sequence[tuple[bytes, bytes]], wanted: int) -> int:
        """The first of these leave, until so many octets have."""
        commands = [pack(b"STRLEN", keys.key(tag, "TRACE", name)) for tag, name in oldest]
        leaving: dict[bytes, list[bytes]] = {}
        for (tag, name), size in zip(oldest, await self._redis.request_all(commands, "trim"), strict=True):
            if wanted <= 0:
                break
            leaving.setdefault(tag, []).append(name)
            wanted -= keys.trace_octets(size)
        left = [self._redis.run(script("trim_traces"), tag, *names) for tag, names in leaving.items()]
        try:
            return sum(await gatherResults(left, consumeErrors=True))
        except FirstError as error:
            error.subFailure.raiseException()
