"""Who is in the cluster, kept in Redis: `IMembership` (docs/design/queue.md, "Ownership")."""

from __future__ import annotations

import secrets
from typing import Any, Protocol

from attrs import evolve, frozen
from twisted.internet.defer import Deferred
from zope.interface import implementer

from relaycluster.interfaces import IMembership, NameTaken
from relaycluster.policy.cluster import Member, Snapshot
from relaycluster.store.redis import codec, keys
from relaycluster.store.redis.connection import Argument, RedisConnection, RedisRefused
from relaycluster.store.redis.scripts import script

SCHEMA_VERSION = 1


@frozen
class LeaseSettings:
    """`lease_ms` without a beat ends a member's life; the cluster's lease clock advances by at most `max_step_ms` a beat, and a
    node trusts its own lease that much less."""

    lease_ms: int = 10_000

    @property
    def max_step_ms(self) -> int:
        return self.lease_ms * 3 // 10

    @property
    def beat_seconds(self) -> float:
        """How often a node beats."""
        return self.lease_ms / 4000

    @property
    def trusted_seconds(self) -> float:
        """How long after sending a beat the node may act on it."""
        return (self.lease_ms - self.max_step_ms) / 1000


class Requests(Protocol):
    """What takes commands: a connection, or one that is being approved."""

    def request(self, *arguments: Argument) -> Deferred[Any]:
        """See `RedisConnection.request`."""


async def found(connection: Requests, partitions: int, cluster: str) -> None:
    """Found the cluster, or check that it was founded with the same numbers: on each connection, as the Redis behind it may be
    another one, or empty. Raises `RedisRefused`."""
    source = script("found").source
    answer = await connection.request(b"EVAL", source, 1, keys.CLUSTER, SCHEMA_VERSION, partitions, cluster)
    version, founded_with = int(answer[0]), int(answer[1])
    if version != SCHEMA_VERSION:
        raise RedisRefused(
            f"the queue in Redis has schema version {version}, this release works with {SCHEMA_VERSION}: "
            "run the same release on all nodes"
        )
    if founded_with != partitions:
        raise RedisRefused(
            f"[redis] partitions is {partitions}, but this cluster was founded with {founded_with}: "
            f"set partitions = {founded_with}"
        )


@implementer(IMembership)
class RedisMembership:
    """See `IMembership`. After each beat `redis_time_ms` is Redis' own clock as the beat told it."""

    def __init__(self, connection: RedisConnection, settings: LeaseSettings, partitions: int) -> None:
        self._partitions = partitions
        self._redis = connection
        self._settings = settings
        self.redis_time_ms = 0

    def join(self, member: Member) -> Deferred[Member]:
        return Deferred.fromCoroutine(self._join(member))

    async def _join(self, member: Member) -> Member:
        # The Redis may have been emptied since the connection was approved.
        await found(self._redis, self._partitions, secrets.token_hex(8))
        name, key, info = codec.pack_member(member).split(b"\n", 2)
        settings = self._settings
        result = self._redis.run(script("join"), keys.CLUSTER, settings.max_step_ms, settings.lease_ms, name, key, info)

        def joined(answer: list[Any]) -> Member:
            if answer[0] == b"taken":
                other = codec.unpack_member(0, answer[1])
                raise NameTaken(
                    f"node id {member.id!r} is in use by another living node ({other.hostname}): give each node its own [node] id"
                )
            return evolve(member, incarnation=answer[1])

        return joined(await result)

    def beat(self, member: Member) -> Deferred[Snapshot | None]:
        settings = self._settings
        result = self._redis.run(
            script("beat"),
            keys.CLUSTER,
            settings.max_step_ms,
            settings.lease_ms,
            member.incarnation,
            codec.pack_member(member),
        )

        def read(answer: list[Any]) -> Snapshot | None:
            if answer[0] == b"over":
                return None
            version, following, offset, time_ms, cluster, suspensions = answer[1:7]
            if cluster is None:  # emptied under us: the schema is gone, so begin anew
                return None
            self.redis_time_ms = int(time_ms)
            members = sorted(
                (codec.unpack_member(int(n), data) for n, data in zip(answer[7::2], answer[8::2], strict=True)),
                key=lambda each: each.incarnation,
            )
            return Snapshot(
                int(version), int(following), tuple(members), int(offset), cluster.decode(), int(suspensions)
            )

        return result.addCallback(read)

    def leave(self, member: Member) -> Deferred[None]:
        return self._redis.run(script("leave"), keys.CLUSTER, self._settings.max_step_ms, member.incarnation)
