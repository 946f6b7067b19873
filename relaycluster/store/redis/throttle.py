"""Limits that hold over the whole cluster, kept in Redis: `IThrottle` (docs/design/throttle.md)."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from zope.interface import implementer

from relaycluster.interfaces import IThrottle
from relaycluster.policy.cluster import Snapshot
from relaycluster.store.redis import keys
from relaycluster.store.redis.connection import RedisConnection
from relaycluster.store.redis.queue import alive_text
from relaycluster.store.redis.scripts import script

HORIZON_US = 100_000
"""A grant reaches at most so far ahead: what a dead node held is lost soon, and nobody bursts."""


@implementer(IThrottle)
class RedisThrottle:
    """See `IThrottle`."""

    def __init__(self, connection: RedisConnection) -> None:
        self._redis = connection

    def take(self, limit: str, interval_ns: int, burst: int, wanted: int) -> Deferred[tuple[Sequence[int], int]]:
        result = self._redis.run(script("take"), keys.limit_tag(limit), interval_ns, burst, wanted, HORIZON_US)
        return result.addCallback(lambda answer: (answer[1:], answer[0]))

    def spend(self, limit: str, interval_ns: int, burst: int, wanted: int) -> Deferred[int]:
        return self._redis.run(script("spend"), keys.limit_tag(limit), interval_ns, burst, wanted)

    def hold(self, limit: str, incarnation: int, wanted: int, maximum: int, snapshot: Snapshot) -> Deferred[int]:
        return self._redis.run(
            script("hold_slots"),
            keys.limit_tag(limit),
            incarnation,
            wanted,
            maximum,
            snapshot.next_incarnation,
            alive_text(snapshot),
        )

    def share(self, limit: str, incarnation: int, maximum: int, snapshot: Snapshot) -> Deferred[int]:
        return self._redis.run(
            script("share"),
            keys.limit_tag(limit),
            incarnation,
            maximum,
            snapshot.next_incarnation,
            alive_text(snapshot),
        )
