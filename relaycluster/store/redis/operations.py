"""What the owner of a partition does for the operator, in Redis: `IOperations` (docs/design/queue.md, "The operator")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from relaycluster.interfaces import IOperations, NotOwner
from relaycluster.mail import history
from relaycluster.mail.history import Act
from relaycluster.mail.item import Claim
from relaycluster.policy.cluster import Ownership
from relaycluster.store.redis import keys
from relaycluster.store.redis.connection import RedisConnection, pack
from relaycluster.store.redis.queue import BODY_WITH_CLAIM, RedisQueue
from relaycluster.store.redis.scripts import script

MOST_ACTS = 100
LEAVING_AT_ONCE = 64
"""So many keys of history leave in one step."""


@implementer(IOperations)
class RedisOperations:
    """See `IOperations`."""

    def __init__(self, connection: RedisConnection, queue: RedisQueue) -> None:
        self._redis = connection
        self._queue = queue

    def acts(self, partition: int) -> Deferred[Sequence[Act]]:
        def read(found: list[bytes]) -> Sequence[Act]:
            # What can not be read is told, too: a count that is wrong would tell others twice or never.
            records = [next(iter(history.unpack(data)), ("", None))[1] for data in found]
            return [each if isinstance(each, Act) else Act(0, "unknown", "", "", "") for each in records]

        name = keys.key(keys.partition_tag(partition), "ACTS")
        return self._redis.request(b"LRANGE", name, 0, MOST_ACTS - 1).addCallback(read)

    def told(self, partition: int, count: int) -> Deferred[None]:
        done = self._redis.run(script("operator_told"), keys.partition_tag(partition), count)
        return done.addCallback(lambda _: None)

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

    def paused(self, partitions: Sequence[int]) -> Deferred[Sequence[tuple[int, str, int]]]:
        commands = [pack(b"HGETALL", keys.key(keys.partition_tag(each), "PAUSED")) for each in partitions]

        def read(answers: list[list[bytes]]) -> Sequence[tuple[int, str, int]]:
            return [
                (each, domain.decode(), int(until))
                for each, found in zip(partitions, answers, strict=True)
                for domain, until in zip(found[::2], found[1::2], strict=True)
            ]

        return self._redis.request_all(commands, "paused").addCallback(read)

    def trim_traces(self, partitions: Sequence[int], most_bytes: int) -> Deferred[int]:
        return Deferred.fromCoroutine(self._trim(partitions, most_bytes))

    async def _trim(self, partitions: Sequence[int], most_bytes: int) -> int:
        tags = [keys.partition_tag(each) for each in partitions]
        sizes = await self._redis.request_all(
            [pack(b"HGET", keys.key(tag, "COUNTS"), b"trace") for tag in tags], "trim"
        )
        total = sum(int(size or 0) for size in sizes)
        freed = 0
        while total - freed > most_bytes:
            commands = [pack(b"ZRANGE", keys.key(tag, "TRACES"), 0, LEAVING_AT_ONCE - 1, b"WITHSCORES") for tag in tags]
            answers = await self._redis.request_all(commands, "trim")
            oldest = sorted(
                (float(score), tag, name)
                for tag, found in zip(tags, answers, strict=True)
                for name, score in zip(found[::2], found[1::2], strict=True)
            )[:LEAVING_AT_ONCE]
            if not oldest:
                break
            for _, tag, name in oldest:
                freed += await self._redis.run(script("trim_traces"), tag, name)
                if total - freed <= most_bytes:
                    break
        return freed
