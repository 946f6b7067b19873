"""The rounds: what a dead process left is finished, and no trouble of one kind of work stops another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.interfaces import MOST_DUE
from relaycluster.mail import queue_id
from relaycluster.mail.item import Notice
from relaycluster.net.pool import PoolCounts
from relaycluster.node.janitor import Janitor, Repeating, Room
from relaycluster.node.settle import Settlement
from relaycluster.policy.ring import partition_of
from tests.node.test_settle import RETRY
from tests.node.world import PARTITIONS, World, result


class JanitorTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = world = World()
        settlement = Settlement(world.clock, world.queue, world.metrics, world.log, RETRY, "us.example", lambda: 0.5)
        self.woken: list[str] = []
        delivery: Any = SimpleNamespace(wake=self.woken.append, forget_idle_lanes=lambda: None)
        partitions: Any = SimpleNamespace(owned={n: self.owned(n) for n in range(PARTITIONS)})
        pool: Any = SimpleNamespace(counts=PoolCounts(0, 0, 0, 0, 0))
        self.janitor = Janitor(
            world.clock, world.queue, partitions, delivery, settlement, pool, world.metrics, world.log
        )
        self.janitor.start()

    def owned(self, number: int) -> Any:
        place = self.world.cluster.partitions[number]
        place.owner, place.fence = 1, 1
        return SimpleNamespace(partition=number, incarnation=1, fence=1, text=b"1:1")

    def spread(self) -> list[Any]:
        first = self.world.item("a.example")
        home = self.world.partition("a.example").number
        items = [
            evolve(self.world.item(f"{name}.example"), id=queue_id.item_id(first.id, n), home=home)
            for n, name in enumerate("abc", 1)
        ]
        result(self.world.queue.enqueue_spread(items, b"x"))
        return items

    def test_due_domains_are_woken(self) -> None:
        """Within a second each owned partition was looked at; what is not due is left alone."""
        for n in range(30):
            result(self.world.queue.enqueue(self.world.item(f"d{n}.example"), b"x", None))
        self.world.advance(1.1)
        self.assertEqual(set(self.woken), {f"d{n}.example" for n in range(30)})

    def test_many_due_domains_of_a_partition(self) -> None:
        """Those that can send nothing stay due, and do not hide the others."""
        domains = [f"d{n}.example" for n in range(4 * MOST_DUE * PARTITIONS)]
        domains = [domain for domain in domains if partition_of(domain, PARTITIONS) == 1]
        self.assertGreater(len(domains), 3 * MOST_DUE)
        for domain in domains:
            result(self.world.queue.enqueue(self.world.item(domain), b"x", None))
        self.world.advance(6)
        self.assertEqual(set(self.woken), set(domains))
        self.woken.clear()
        self.world.advance(6)
        self.assertEqual(set(self.woken), set(domains))

    def test_the_spread_of_a_dead_edge(self) -> None:
        """Some items were queued when the edge died: the rest follows after the grace, none twice."""
        items = self.spread()
        result(self.world.queue.enqueue(items[1], b"", None))
        self.world.advance(4)
        self.assertNotIn(items[0].id, self.world.partition("a.example").items)
        self.world.advance(3)
        for item in items:
            self.assertIn(item.id, self.world.partition(item.domain).items)
        self.assertEqual(self.world.partition("a.example").spread, {})

    def test_notices_owed(self) -> None:
        """The holder died between the failure and its notice: the notice goes, once."""
        claim = self.world.claimed(self.world.item())
        notice = Notice(self.world.item("example.net"), b"a notice")
        result(self.world.queue.finish(claim, False, notice))
        self.world.advance(7)
        self.assertIn(notice.item.id, self.world.partition("example.net").items)
        self.assertEqual(self.world.partition().notices, {})

    def test_a_full_store_is_still_emptied(self) -> None:
        """A spread that cannot be fanned out, since the store is full, does not keep what is due behind it from delivery: only
        delivery makes room."""
        self.spread()
        for n in range(30):
            result(self.world.queue.enqueue(self.world.item(f"d{n}.example"), b"x", None))
        self.world.cluster.full = True
        self.world.advance(6)
        self.woken.clear()
        self.world.advance(1.2)
        self.assertEqual(set(self.woken), {f"d{n}.example" for n in range(30)})

    def test_a_round_survives_failure(self) -> None:
        """The store is away for a while, then the rounds go on."""
        self.world.cluster.down = True
        self.world.advance(5)
        self.world.cluster.down = False
        result(self.world.queue.enqueue(self.world.item(), b"x", None))
        self.world.advance(1.2)
        self.assertEqual(set(self.woken), {"example.com"})
        self.assertEqual(self.world.events("error"), [])

    def test_stop(self) -> None:
        """No timer is left, also when a round was under way."""
        self.world.queue.holding.add("due")
        self.world.advance(0.3)
        self.janitor.stop()
        self.world.queue.let_go()
        self.assertEqual(self.world.clock.getDelayedCalls(), [])


class RepeatingTest(SynchronousTestCase):
    def test_a_fault_is_told_and_survived(self) -> None:
        """A bug in a round is one event a time; runs never overlap."""
        world = World()
        runs: list[Deferred[None]] = []

        async def once() -> None:
            runs.append(Deferred())
            await runs[-1]

        repeating = Repeating(world.clock, 1.0, once, world.log)
        repeating.start()
        world.clock.pump([1, 1, 1])
        self.assertEqual(len(runs), 1)
        runs[0].errback(ValueError("a bug"))
        self.assertEqual(len(world.events("error")), 1)
        world.clock.pump([1])
        self.assertEqual(len(runs), 2)
        repeating.stop()


class RoomTest(SynchronousTestCase):
    def test_each_change_is_told_once(self) -> None:
        """Above the watermark, and below again; while the store is away the last knowledge stands."""
        world = World()
        room = Room(world.clock, world.queue, 0.9, world.metrics, world.log)
        room.start()
        world.cluster.full = True
        world.advance(2)
        self.assertTrue(room.is_full)
        world.cluster.down = True
        world.advance(2)
        self.assertTrue(room.is_full)
        world.cluster.down = world.cluster.full = False
        world.advance(2)
        self.assertFalse(room.is_full)
        self.assertEqual([event["event"] for event in world.events()], ["queue_full", "queue_room"])
        room.stop()
        self.assertEqual(world.clock.getDelayedCalls(), [])
