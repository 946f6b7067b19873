"""Suspensions, kept in Redis under the cluster's tag, with a copy of the whole table in each node: `ISuspensions`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack
from twisted.internet.defer import Deferred
from zope.interface import implementer

from relaycluster.interfaces import ISuspensions
from relaycluster.policy.suspension import Suspension, Suspensions
from relaycluster.store.redis import keys
from relaycluster.store.redis.connection import RedisConnection
from relaycluster.store.redis.queue import RedisQueue
from relaycluster.store.redis.scripts import script

SHOWN_AFTER_MS = 3_600_000
"""An ended suspension stays in the table for so long: each node reads there who ended it."""


@implementer(ISuspensions)
class RedisSuspensions:
    """See `ISuspensions`. `on_change(before, now)` is called with both tables when the copy was read anew."""

    def __init__(self, connection: RedisConnection, queue: RedisQueue) -> None:
        self._redis = connection
        self._queue = queue
        self._version = 0
        self._reading = False
        self.table = Suspensions()
        self.on_change: Callable[[Suspensions, Suspensions], None] = lambda _before, _now: None

    def suspended(self, domain: str, limit: str) -> Suspension | None:
        return self.table.lookup(domain, limit, self._queue.now_ms()) if self.table else None

    def all(self) -> Deferred[Sequence[Suspension]]:
        def read(answer: list[bytes]) -> Sequence[Suspension]:
            now = self._queue.now_ms()
            return [each for each in _table(answer) if each.holds(now)]

        return self._redis.request(b"HGETALL", keys.key(keys.CLUSTER, "SUSPENDED")).addCallback(read)

    def suspend(
        self, subject: str, seconds: float, who: str, reason: str, at_least: bool = False
    ) -> Deferred[Suspension]:
        duration = max(1, int(seconds * 1000)) if seconds else 0
        answer = self._say(subject, duration, who, reason, at_least)
        return answer.addCallback(lambda entry: _entry(subject, entry))

    def resume(self, subject: str, who: str, reason: str) -> Deferred[bool]:
        return self._say(subject, -1, who, reason, at_least=False).addCallback(bool)

    def _say(self, subject: str, duration_ms: int, who: str, reason: str, at_least: bool) -> Deferred[bytes]:
        answer: Deferred[bytes] = self._redis.run(
            script("suspend"),
            keys.CLUSTER,
            self._queue.offset_ms,
            subject,
            duration_ms,
            msgpack.packb((who, reason)),
            b"1" if at_least else b"0",
            SHOWN_AFTER_MS,
        )
        return answer

    def see(self, version: int) -> Deferred[None]:
        return Deferred.fromCoroutine(self._see(version))

    async def _see(self, version: int) -> None:
        if version == self._version or self._reading:
            return  # a change while it is read has another version, which the next beat tells
        self._reading = True
        try:
            found = _table(await self._redis.request(b"HGETALL", keys.key(keys.CLUSTER, "SUSPENDED")))
        finally:
            self._reading = False
        self._version = version
        before, self.table = self.table, Suspensions.build(found)
        self.on_change(before, self.table)


def _table(answer: Sequence[bytes]) -> list[Suspension]:
    return [_entry(name.decode(), entry) for name, entry in zip(answer[::2], answer[1::2], strict=True)]


def _entry(subject: str, entry: bytes) -> Suspension:
    until, since, rest = entry.split(b":", 2)
    said: tuple[Any, ...] = msgpack.unpackb(rest)
    return Suspension(subject, int(until), int(since), said[0], said[1])
