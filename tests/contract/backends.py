"""The stores that the contract suites run over: memory, and each real Redis that this machine has.

A backend can `advance` its time, so that no test waits: in Redis by the offset that the transitions are given anyway, and by
setting back what the lease clock last saw.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

from twisted.internet import reactor
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.trial.unittest import SkipTest, TestCase

from relaycluster.policy.lifecycle import OPERATOR_WORK
from relaycluster.store.memory import MemoryAttempts, MemoryCluster, MemoryMembership, MemoryQueue, MemoryThrottle
from relaycluster.store.memory_operator import MemoryOperator, MemorySuspensions
from relaycluster.store.redis import checks, keys
from relaycluster.store.redis.attempts import RedisAttempts
from relaycluster.store.redis.connection import Credentials, RedisConnection
from relaycluster.store.redis.membership import LeaseSettings, RedisMembership, found
from relaycluster.store.redis.operations import RedisOperations
from relaycluster.store.redis.operator import RedisOperator
from relaycluster.store.redis.queue import QueueSettings, RedisQueue
from relaycluster.store.redis.suspensions import RedisSuspensions
from relaycluster.store.redis.throttle import RedisThrottle
from tests.contract.servers import server_for

PARTITIONS = 16


class MemoryBackend:
    """The reference implementation."""

    def __init__(self, partitions: int = PARTITIONS, deaths_that_hold: int = 5) -> None:
        self._now = 1_700_000_000_000
        self.cluster = MemoryCluster(lambda: self._now, partitions)
        self.queue = MemoryQueue(self.cluster, deaths_that_hold=deaths_that_hold)
        self.operator = self.operations = MemoryOperator(self.cluster, self.queue)
        self.suspensions, self.elsewhere = MemorySuspensions(self.cluster), MemorySuspensions(self.cluster)
        self.membership = MemoryMembership(self.cluster)
        self.throttle = MemoryThrottle(self.cluster)
        self.attempts = MemoryAttempts(self.cluster)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def advance(self, milliseconds: int) -> None:
        self._now += milliseconds

    async def fill(self) -> None:
        self.cluster.full = True

    async def empty(self) -> None:
        self.cluster.full = False

    async def go_away(self) -> None:
        """From now on the attempts are asked in vain."""
        self.cluster.down = True

    async def violations(self) -> list[str]:
        return [text for partition in self.cluster.partitions for text in partition.violations()]

    async def counts(self) -> dict[str, int]:
        places = self.cluster.partitions
        return {
            name: sum(len(getattr(place, name)) for place in places)
            for name in ("items", "bodies", "waiting", "leased", "done")
        }


class RedisBackend:
    """A real server; the database is emptied for each test."""

    def __init__(self, major: int, partitions: int = PARTITIONS, deaths_that_hold: int = 5) -> None:
        self.partitions = partitions
        server = server_for(major)
        if server is None:
            raise SkipTest(f"no Redis {major} server on this machine")
        self._endpoint = UNIXClientEndpoint(reactor, server)

        async def approve(protocol: Any) -> None:
            await checks.approve(protocol, "fsync")

        self._approve = approve
        self.redis = RedisConnection(reactor, self._endpoint, Credentials(), approve)
        self._offset = 0
        self.queue = RedisQueue(
            self.redis,
            QueueSettings(partitions=partitions, deaths_that_hold=deaths_that_hold),
            lambda: int(time.time_ns() // 1_000_000),
        )
        self.operator = RedisOperator(self.redis, self.queue)
        self.operations = RedisOperations(self.redis, self.queue)
        self.suspensions = RedisSuspensions(self.redis, self.queue)
        self.elsewhere = RedisSuspensions(self.redis, self.queue)
        self.membership = RedisMembership(self.redis, LeaseSettings(), PARTITIONS)
        self.throttle = RedisThrottle(self.redis)
        self.attempts = RedisAttempts(self.redis)

    async def start(self) -> None:
        self.redis.start()
        await self.redis.when_ready()
        await self.redis.request("CONFIG", "SET", "maxmemory", 0)
        await self.redis.request("FLUSHALL")
        await found(self.redis, self.partitions, "test")

    async def stop(self) -> None:
        await self.redis.stop()

    async def advance(self, milliseconds: int) -> None:
        self._offset += milliseconds
        self.queue.set_clock(self._offset, self._offset)
        self.attempts.set_clock(self._offset)
        if await self.redis.request("HEXISTS", keys.key(keys.CLUSTER, "CLOCK"), "seen"):
            await self.redis.request("HINCRBY", keys.key(keys.CLUSTER, "CLOCK"), "seen", -milliseconds)

    async def fill(self) -> None:
        await self.redis.request("CONFIG", "SET", "maxmemory", 1)

    async def empty(self) -> None:
        await self.redis.request("CONFIG", "SET", "maxmemory", 0)

    async def go_away(self) -> None:
        """From now on the attempts are asked in vain: on a connection that was never made."""
        self.attempts = RedisAttempts(RedisConnection(reactor, self._endpoint, Credentials(), self._approve))

    async def violations(self) -> list[str]:
        """What docs/design/queue.md calls a bug: a combination that no state has, or an index that disagrees."""
        found_bugs: list[str] = []
        for partition in range(self.partitions):
            tag = keys.partition_tag(partition)

            def name(suffix: str, rest: bytes = b"", tag: bytes = tag) -> bytes:
                return keys.key(tag, suffix, rest)

            ask = self.redis.request
            items = {each[len(name("ITEM")) :] for each in await ask("KEYS", name("ITEM", b"*").replace(b"{", b"\\{"))}
            waiting: dict[bytes, tuple[bytes, int]] = {}
            domains: dict[bytes, list[int]] = {}
            for due_key in await ask("KEYS", name("DUE", b"*")):
                domain = due_key.split(b":", 4)[4]
                found_here = await ask("ZRANGE", due_key, 0, -1, "WITHSCORES")
                for identifier, score in zip(found_here[::2], found_here[1::2], strict=True):
                    waiting[identifier] = (domain, int(score))
                    domains.setdefault(domain, []).append(int(score))
            leased = set(await ask("HKEYS", name("LEASED")))
            held = set(await ask("ZRANGE", name("HELD"), 0, -1))
            bouncing = set(await ask("ZRANGE", name("BOUNCING"), 0, -1))
            reasons = {each[1:] for each in await ask("HKEYS", name("NOTES")) if each.startswith(b"!")}
            if not bouncing <= reasons <= bouncing | leased:
                found_bugs.append(f"{partition}: bouncing {bouncing}, reasons {reasons}")
            together = len(waiting) + len(leased) + len(held) + len(bouncing)
            if together != len(items) or set(waiting) | leased | held | bouncing != items:
                places = f"waiting {waiting}, leased {leased}, held {held}, bouncing {bouncing}"
                found_bugs.append(f"{partition}: items {items}, {places}")
            acts = await ask("LLEN", name("ACTS"))
            shown_work = await ask("ZSCORE", name("INDEX"), OPERATOR_WORK) is not None
            if shown_work != bool(acts or bouncing):
                found_bugs.append(f"{partition}: {acts} acts, bouncing {bouncing}, in the index: {shown_work}")
            if not set(await ask("HKEYS", name("REPLIES"))) <= set(domains):
                found_bugs.append(f"{partition}: last replies of domains for which nothing waits")
            traces = await ask("ZRANGE", name("TRACES"), 0, -1)
            lengths = [await ask("STRLEN", name("TRACE", each)) for each in traces]
            size = sum(map(keys.trace_octets, lengths))
            if int(await ask("HGET", name("COUNTS"), "trace") or 0) != size:
                found_bugs.append(f"{partition}: the history takes {size}, and counts say otherwise")
            backlog = await ask("ZRANGE", name("BACKLOG"), 0, -1, "WITHSCORES")
            if dict(zip(backlog[::2], map(int, backlog[1::2]), strict=True)) != {d: len(s) for d, s in domains.items()}:
                found_bugs.append(f"{partition}: backlog {backlog} is not {domains}")
            counts = await ask("HGET", name("COUNTS"), "waiting")
            if int(counts or 0) != len(waiting):
                found_bugs.append(f"{partition}: counts {counts}, waiting {len(waiting)}")
            index = await ask("ZRANGE", name("INDEX"), 0, -1, "WITHSCORES")
            shown = {d: int(float(s)) for d, s in zip(index[::2], index[1::2], strict=True) if not d.startswith(b"*")}
            paused = dict(zip(*[iter(await ask("HGETALL", name("PAUSED")))] * 2, strict=True))
            wanted = {d: max(min(s), int(paused.get(d, b"0").split(b":")[0])) for d, s in domains.items()}
            if shown != wanted and not all(shown.get(d, 0) <= w for d, w in wanted.items()):
                found_bugs.append(f"{partition}: index {shown} is not {wanted}")
            if set(shown) != set(domains):
                found_bugs.append(f"{partition}: index {shown} has not the domains {domains}")
        return found_bugs

    async def counts(self) -> dict[str, int]:
        async def total(pattern: bytes, command: str = "") -> int:
            found_keys = await self.redis.request("KEYS", b"{rc:0*" + pattern)
            if not command:
                return len(found_keys)
            return sum([await self.redis.request(command, each) for each in found_keys])

        return {
            "items": await total(b":item:*"),
            "bodies": await total(b":body:*"),
            "waiting": await total(b":due:*", "ZCARD"),
            "leased": await total(b":leased", "HLEN"),
            "done": await total(b":done:*", "HLEN"),
        }


class ContractTestCase(TestCase):
    """A suite derives one class for each backend from its own tests and this."""

    major: ClassVar[int] = 0  # 0: memory
    timeout = 30
    backend: Any

    async def setUp(self) -> None:  # type: ignore[override]
        self.backend = RedisBackend(self.major) if self.major else MemoryBackend()
        self.addCleanup(lambda: _deferred(self.backend.stop()))
        await self.backend.start()
        self.queue = self.backend.queue


def _deferred(coroutine: Any) -> Any:
    from twisted.internet.defer import Deferred

    return Deferred.fromCoroutine(coroutine)


def over_all_backends(suite: type, namespace: dict[str, Any]) -> None:
    """Derive the suite's test classes: `…Memory`, `…Redis6`, `…Redis7`."""
    for label, major in (("Memory", 0), ("Redis6", 6), ("Redis7", 7)):
        name = f"{suite.__name__.removesuffix('Contract')}{label}Test"
        namespace[name] = type(name, (suite, ContractTestCase), {"major": major, "__module__": namespace["__name__"]})
