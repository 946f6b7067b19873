"""What the node's tests share: a queue in memory that can lose answers, members, items, and events as a list."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from relaycluster.events import EventLog
from relaycluster.interfaces import QueueUnavailable
from relaycluster.mail import queue_id
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import Envelope
from relaycluster.mail.item import Claim, Item
from relaycluster.metrics import Metrics
from relaycluster.policy.cluster import Member, Ownership, Snapshot
from relaycluster.policy.ring import partition_of
from relaycluster.store.memory import MemoryCluster, MemoryMembership, MemoryQueue, MemoryThrottle

PARTITIONS = 16
START_MS = 1_700_000_000_000


class Unsteady:
    """A store whose answers the test holds back or loses; everything else is the store's own."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.losing: set[str] = set()  # it happens, but nobody hears of it
        self.holding: set[str] = set()  # it happens, and the answer comes with `let_go`
        self.held: list[tuple[Deferred[Any], Deferred[Any]]] = []
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if not callable(real) or name == "now_ms":
            return real

        def call(*arguments: Any) -> Any:
            self.calls.append((name, arguments))
            answer = real(*arguments)
            if name in self.losing:
                answer.addErrback(lambda _: None)
                return fail(QueueUnavailable("the answer was lost"))
            if name in self.holding:
                waiting: Deferred[Any] = Deferred()
                self.held.append((waiting, answer))
                return waiting
            return answer

        return call

    def count(self, name: str) -> int:
        """How often something was asked."""
        return sum(each == name for each, _ in self.calls)

    def let_go(self) -> None:
        """The answers arrive, in order."""
        held, self.held = self.held, []
        self.holding.clear()
        for waiting, answer in held:
            answer.chainDeferred(waiting)


class World:
    """One store in memory and a clock that the test moves; nodes share it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.cluster = MemoryCluster(lambda: START_MS + int(self.clock.seconds() * 1000), PARTITIONS)
        self.queue = Unsteady(MemoryQueue(self.cluster))
        self.membership = Unsteady(MemoryMembership(self.cluster))
        self.throttle = Unsteady(MemoryThrottle(self.cluster))
        self.lines: list[bytes] = []
        self.log = EventLog(self.lines.append, lambda: self.cluster.clock_ms() / 1000)
        self.metrics = Metrics(CollectorRegistry(), version="test", listeners=["127.0.0.1:25"])
        self._number = 0

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """The events so far, as their log lines say."""
        found = [json.loads(line) for line in self.lines]
        return [each for each in found if not kind or each["event"] == kind]

    def advance(self, seconds: float, step: float = 0.05) -> None:
        """Time passes in steps, as a reactor sees it."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)

    def item(self, domain: str = "example.com", recipients: int = 1, sender: str = "s@example.net") -> Item:
        """A new item for a domain."""
        self._number += 1
        return Item(
            queue_id.make(START_MS, partition_of(domain, PARTITIONS), self._number),
            domain,
            Envelope(
                Address(sender, sender.rpartition("@")[2]),
                tuple(Address(f"r{n}@{domain}", domain) for n in range(recipients)),
            ),
            10,
            self.cluster.clock_ms(),
        )

    def own(self, domain: str = "example.com", incarnation: int = 1) -> Ownership:
        """The domain's partition belongs to an incarnation."""
        partition = self.cluster.partitions[partition_of(domain, PARTITIONS)]
        fence = partition.acquire(incarnation, snapshot(incarnation))
        return Ownership(partition.number, incarnation, fence)

    def claimed(self, item: Item, content: bytes = b"Subject: x\r\n\r\nbody\r\n", incarnation: int = 1) -> Claim:
        """An item that is in an incarnation's hands."""
        owner = self.own(item.domain, incarnation)
        self._number += 1
        claim = result(self.queue.enqueue(item, content, (owner, self._number)))
        assert isinstance(claim, Claim)
        return claim

    def partition(self, domain: str = "example.com") -> Any:
        """The model's partition of a domain."""
        return self.cluster.partitions[partition_of(domain, PARTITIONS)]


def a_member(name: str, roles: tuple[str, ...] = ("edge", "delivery")) -> Member:
    return Member(0, name, f"key-of-{name}", roles)


def snapshot(*alive: int, following: int = 100, version: int = 1) -> Snapshot:
    """A membership in which these incarnations live, and all others below `following` are dead."""
    return Snapshot(version, following, tuple(Member(n, f"node-{n}", f"key-{n}", ("delivery",)) for n in alive))


def result(deferred: Deferred[Any]) -> Any:
    """The answer that is there already; its failure is raised."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    assert results, "there is no answer yet"
    if hasattr(results[0], "raiseException"):
        results[0].raiseException()
    return results[0]


def run(coroutine: Any) -> Any:
    """What a coroutine returns that need not wait."""
    return result(Deferred.fromCoroutine(coroutine))


def counting() -> Callable[[], int]:
    """Claim numbers."""
    numbers = iter(range(64, 1 << 30, 64))
    return lambda: next(numbers)
