"""What an owner does for the operator: acts are told, bounces settled, resumed domains let go; and the history that settling writes."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.interfaces import Settled
from relaycluster.mail.address import NULL
from relaycluster.mail.history import Attempt, Via
from relaycluster.mail.item import Claim
from relaycluster.mail.outcome import Deferred, Delivered, Failed, Stage
from relaycluster.node.operations import Operations
from relaycluster.node.settle import Settlement
from relaycluster.policy.lifecycle import OPERATOR_WORK
from relaycluster.policy.pause import Why
from relaycluster.policy.ring import partition_of
from relaycluster.policy.suspension import Suspension, Suspensions
from relaycluster.store.memory_operator import MemoryOperator
from tests.node.test_settle import RETRY
from tests.node.world import PARTITIONS, Unsteady, World, counting, result, run
from tests.support.replies import heard

OK = heard("250 2.0.0 queued as X")
LATER = heard("451 4.7.1 later")


class OperationsTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = world = World()
        self.operator = MemoryOperator(world.cluster, world.queue)  # type: ignore[arg-type]
        self.settlement = Settlement(
            world.clock, world.queue, world.metrics, world.log, RETRY, "us.example", lambda: 0.5
        )
        self.owner = world.own()
        self.taken: list[Claim] = []
        self.settled: list[Claim] = []
        self.settlement.on_settled = self.settled.append
        self.table = Suspensions()
        self.tried: list[str] = []
        self.operations = Operations(
            world.queue,
            self.operator,
            self.settlement,
            world.log,
            lambda number: self.owner if number == self.owner.partition else None,
            counting(),
            self.taken.append,
            lambda: self.table,
            self.tried.append,
            lambda: 0.5,
        )

    def look(self) -> None:
        result(self.operations.look_at(self.owner.partition))

    def change(self, *now: Suspension) -> None:
        """The table of suspensions is this now."""
        before, self.table = self.table, Suspensions.build(now)
        self.operations.changed(before, self.table, [self.owner.partition])

    def suspended(self, subject: str, seconds: int = 900) -> None:
        """The domain was paused for this."""
        result(self.world.queue.pause(self.owner, "example.com", seconds * 1000, Why.SUSPENDED, subject))

    def paused(self) -> float:
        """For how many seconds the domain is."""
        pause = self.world.partition().paused["example.com"]
        return float(pause.until_ms - self.world.queue.now_ms()) / 1000

    def queued(self, **changes: Any) -> Any:
        item = evolve(self.world.item(recipients=2), **changes)
        result(self.world.queue.enqueue(item, b"Subject: x\r\n\r\nbody\r\n", None))
        return item

    def records(self, item_id: str) -> list[Any]:
        return [record for _, record in result(self.operator.trace(item_id))]

    # Acts

    def test_acts_are_told_once(self) -> None:
        """Who, what and why, in their order; when that was, not when it is told; and then no more."""
        item = self.queued()
        result(self.operator.hold(item.id, "alice@console", "why\nnot"))
        result(self.operator.release(item.id, "bob@console", ""))
        self.look()
        self.look()
        told = self.world.events("operator_acted")
        self.assertEqual(
            [(each["verb"], each["subject"], each["who"]) for each in told],
            [("hold", item.id, "alice@console"), ("release", item.id, "bob@console")],
        )
        self.assertEqual((told[0]["why"], told[0]["at"]), ("why\nnot", "2023-11-14T22:13:20Z"))
        self.assertNotIn(OPERATOR_WORK, self.world.partition().index())

    def test_no_act_is_lost(self) -> None:
        """A second look while the first is under way tells nothing twice; a former owner, which does not know it yet, forgets nothing that
        the new one has not told; and an answer that is lost costs a repetition, no more."""
        for number in range(150):
            result(self.operator.hold(self.queued().id, "alice", str(number)))
        self.operations._operations = slow = Unsteady(self.operator)
        slow.holding = {"acts"}
        first = self.operations.look_at(self.owner.partition)
        self.look()
        slow.let_go()
        result(first)
        self.assertEqual(
            [each["why"] for each in self.world.events("operator_acted")], [str(number) for number in range(150)]
        )
        for number in range(3):
            result(self.operator.flush("example.com", "alice", str(number)))
        acts = result(self.operator.acts(self.owner.partition))
        for _ in range(2):
            result(self.operator.told(self.owner, acts[:1]))
        self.assertEqual(result(self.operator.acts(self.owner.partition)), acts[1:])
        self.world.partition().release(self.owner)
        self.world.own(incarnation=2)
        self.assertFalse(result(self.operator.told(self.owner, acts[1:])))
        self.assertEqual(result(self.operator.acts(self.owner.partition)), acts[1:])

    def test_what_shall_be_tried_now(self) -> None:
        """A flush, and a requeue, reach the lane of the domain, which may know its hosts as dead; and end its pause."""
        item = self.queued()
        (shown,) = result(self.operator.show(item.id))
        for act in (
            lambda: self.operator.flush("example.com", "alice", ""),
            lambda: self.operator.requeue(shown, False, "alice", ""),
        ):
            result(act())
            result(self.world.queue.pause(self.owner, "example.com", 200_000, Why.PARKED))
            self.look()
            self.assertEqual((self.tried, self.world.partition().paused), (["example.com"], {}))
            self.tried.clear()
        result(self.operator.hold(item.id, "alice", ""))
        self.look()
        self.assertEqual(self.tried, [])

    def test_many_bounces(self) -> None:
        """All in one go, a batch after the other: while one is not settled, no more are claimed."""
        items = [self.queued() for _ in range(120)]
        for item in items:
            result(self.operator.bounce(item.id, "alice", ""))
        self.world.queue.holding = {"finish"}
        looking = self.operations.look_at(self.owner.partition)
        self.assertEqual((len(self.taken), self.settled), (50, []))
        self.world.queue.let_go()
        result(looking)
        self.assertEqual(
            (len(self.settled), self.world.partition().items.keys() & {each.id for each in items}), (120, set())
        )

    def test_a_lost_answer_of_claim_bounces(self) -> None:
        """Nobody has the items in hand: they are bounced by the next look."""
        item = self.queued()
        result(self.operator.bounce(item.id, "alice", "why"))
        self.operations._operations = lossy = Unsteady(self.operator)
        lossy.losing = {"claim_bounces"}
        self.world.queue.losing = {"unclaim"}
        self.look()
        lossy.losing.clear()
        self.assertIn(item.id, self.world.partition().bouncing)
        self.world.queue.losing.clear()
        self.world.advance(1)
        self.look()
        self.assertNotIn(item.id, self.world.partition().items)
        self.assertEqual(len(self.world.events("failed")), 2)

    def test_a_bounce(self) -> None:
        """It fails for all its recipients, with the reason; its sender gets a notice; it counts as in hand until it is settled."""
        item = self.queued()
        result(self.operator.bounce(item.id, "alice", "the list was wrong"))
        self.look()
        self.assertNotIn(item.id, self.world.partition().items)
        self.assertEqual(len(self.taken), 1)
        self.assertEqual(self.settled, self.taken)
        failed = self.world.events("failed")
        self.assertEqual({each["recipients"][0] for each in failed}, {"r0@example.com", "r1@example.com"})
        self.assertIn("gave the message up: the list was wrong", failed[0]["reply"])
        (notice,) = self.world.events("notice_queued")
        self.assertEqual(notice["to"], "s@example.net")
        self.assertIn(
            b"Diagnostic-Code: X-Relaycluster; 554 5.0.0", self.world.partition("example.net").bodies[notice["id"]]
        )
        self.assertEqual([type(each).__name__ for each in self.records(item.id)], ["Act", "Attempt"])

    def test_a_bounce_of_a_notice_tells_nobody(self) -> None:
        """Its reverse-path is null."""
        item = self.queued()
        self.world.partition().items[item.id] = evolve(item, envelope=evolve(item.envelope, reverse_path=NULL))
        result(self.operator.bounce(item.id, "alice", ""))
        self.look()
        self.assertEqual(self.world.events("notice_queued"), [])
        self.assertEqual(len(self.world.events("notice_dropped")), 1)

    def test_a_bounce_after_a_stale_delivery(self) -> None:
        """Recipients that a former holder reached do not fail; when these are all, nothing does."""
        for reached, failures in ((1, 1), (2, 0)):
            self.world.lines.clear()
            item = self.queued()
            (claim,) = result(self.world.queue.claim(self.owner, "example.com", 5, 1))
            result(self.operator.hold(item.id, "alice", ""))
            result(self.world.queue.note(claim, [f"r{n}@example.com" for n in range(reached)]))
            result(self.operator.bounce(item.id, "alice", ""))
            self.look()
            self.assertNotIn(item.id, self.world.partition().items)
            self.assertEqual(len(self.world.events("failed")), failures)

    def test_a_stale_delivery_while_a_bounce_is_settled(self) -> None:
        """What was held out of a node's hands and bounced, and is delivered before the bounce is written, has not failed; nobody is told."""
        item = self.queued()
        (claim,) = result(self.world.queue.claim(self.owner, "example.com", 5, 1))
        result(self.operator.hold(item.id, "alice", ""))
        result(self.operator.bounce(item.id, "alice", ""))
        finish = self.world.queue.finish

        def deliver_first(*arguments: Any) -> Any:
            self.world.queue.finish = finish
            self.assertEqual(result(finish(claim, True, None)), Settled.STALE)
            return finish(*arguments)

        self.world.queue.finish = deliver_first
        self.look()
        self.assertNotIn(item.id, self.world.partition().items)
        self.assertEqual((self.world.events("failed"), self.world.events("notice_queued")), ([], []))
        self.assertEqual(len(self.settled), 1)

    def test_not_ours(self) -> None:
        """Who is not the owner any more settles nothing."""
        item = self.queued()
        result(self.operator.bounce(item.id, "alice", ""))
        self.world.partition().release(self.owner)
        self.world.own(incarnation=2)
        self.look()
        self.assertIn(item.id, self.world.partition().bouncing)

    # Suspensions

    def test_resumed_domains_come_back(self) -> None:
        """Those that were paused for what was resumed, some seconds apart, whatever their limits are called; others stay paused."""
        self.queued()
        now = self.world.queue.now_ms()
        for subject in ("example.com", "*.com", "limit:provider"):
            self.table = Suspensions.build([Suspension(subject, 0, now - 5), Suspension("other", 0, now - 5)])
            self.suspended(subject)
            self.change(Suspension(subject, now, now, "bob", "mended"), Suspension("other", 0, now - 5))
            self.assertEqual(self.paused(), 5, subject)
            self.suspended("other")
            self.change(Suspension("third", 0, now), Suspension("other", 0, now - 5))
            self.assertEqual(self.paused(), 900)
        told = self.world.events("delivery_resumed")
        self.assertEqual((told[0]["subject"], told[0]["who"], told[0]["why"]), ("example.com", "bob", "mended"))

    def test_a_shorter_word(self) -> None:
        """A suspension until it is resumed becomes one for a minute: its domains do not wait for longer."""
        self.queued()
        now = self.world.queue.now_ms()
        self.change(Suspension("example.com", 0, now))
        self.suspended("example.com")
        self.change(Suspension("example.com", now + 60_000, now))
        self.assertEqual(self.paused(), 5)

    def test_resumed_while_nobody_looked(self) -> None:
        """The node that paused it died before the suspension was resumed: who takes the partition over lets the domain go. Who resumed it is
        told by whoever did not know that it held, when that was just now."""
        self.queued()
        now = self.world.queue.now_ms()
        self.suspended("example.com")
        self.operations.let_go([self.owner.partition])
        self.assertEqual(self.paused(), 5)
        self.suspended("example.com")
        self.change(Suspension("example.com", now, now, "bob"))
        self.assertEqual(self.paused(), 5)
        self.assertEqual([each["who"] for each in self.world.events("delivery_resumed")], ["bob"])

    def test_other_pauses_stay(self) -> None:
        """What is paused for its rate, or as its hosts are away, is none of this."""
        self.queued()
        for why in (Why.RATE, Why.PARKED, Why.RESTING):
            result(self.world.queue.pause(self.owner, "example.com", 900_000, why))
            self.change(Suspension("example.org", 0, 1))
            self.assertEqual(self.paused(), 900)

    def test_resumed_while_the_store_is_away(self) -> None:
        """They come back as soon as it is back, many at once."""
        domains = [name for name in (f"d{n}.example" for n in range(5000)) if self.here(name)][:250]
        for domain in domains:
            result(self.world.queue.enqueue(self.world.item(domain), b"x", None))
            result(self.world.queue.pause(self.owner, domain, 900_000, Why.SUSPENDED, "*"))
        self.operations._queue = lossy = Unsteady(self.world.queue)
        lossy.losing = {"pause"}
        self.change()
        lossy.losing.clear()
        self.world.advance(1)
        place = self.world.partition()
        self.assertEqual({place.paused[domain].why for domain in domains}, {Why.SPREAD})

    def here(self, domain: str) -> bool:
        return partition_of(domain, PARTITIONS) == self.owner.partition

    def test_what_begins_is_told(self) -> None:
        """With how long it still lasts."""
        now = self.world.queue.now_ms()
        self.change(Suspension("example.com", now + 60_000, now, "alice", "listed"), Suspension("*", 0, now))
        told = self.world.events("delivery_suspended")
        self.assertEqual(
            [(each["subject"], each["seconds"], each["why"]) for each in told],
            [("example.com", 60, "listed"), ("*", 0, "")],
        )

    def test_the_share_of_the_history(self) -> None:
        """What is over our part of the memory leaves, when the janitor says so."""
        item = self.queued()
        result(self.operator.hold(item.id, "alice", ""))
        run(self.operations.trim([self.owner.partition]))
        self.assertEqual(self.records(item.id), [])

    # History

    def test_the_plain_way(self) -> None:
        """One attempt, with how it was reached."""
        claim = self.world.claimed(self.world.item())
        via = Via("mx.example.com", "192.0.2.1:25", "TLSv1.3 X", "192.0.2.9")
        self.settlement.delivered(claim, claim.item.envelope.recipients, (Delivered(OK, "mx.example.com"),), via, 0.25)
        (attempt,) = self.records(claim.item.id)
        self.assertEqual(
            (attempt.via, attempt.result, attempt.seconds, attempt.reply), (via, "delivered", 0.25, str(OK))
        )

    def test_several_hosts(self) -> None:
        """What was tried before stands before what came of it, once, though the first write was lost."""
        claim = self.world.claimed(self.world.item())
        first, second = Via("mx1.example.com", "192.0.2.1:25"), Via("mx2.example.com", "192.0.2.2:25")
        self.settlement.tried.add(claim, first, Deferred(LATER, Stage.CONNECT, "mx1.example.com"), 0.1)
        self.world.queue.losing.add("finish")
        self.settlement.delivered(claim, claim.item.envelope.recipients, (Delivered(OK),), second, 0.2)
        self.world.queue.losing.clear()
        self.world.advance(1)
        self.assertEqual(
            [(each.via, each.result) for each in self.records(claim.item.id)],
            [(first, "deferred"), (second, "delivered")],
        )

    def test_outcomes_alone(self) -> None:
        """Where no attempt was told, the outcomes say what they know, each with its recipients when they differ."""
        claim = self.world.claimed(self.world.item(recipients=2))
        one, two = claim.item.envelope.recipients
        deferred, failed = Deferred(LATER, Stage.RCPT, "mx"), Failed(heard("550 5.1.1 no"), Stage.RCPT, "mx")
        self.settlement.settle(claim, [(one, deferred), (two, failed)])
        found = [each for each in self.records(claim.item.id) if isinstance(each, Attempt)]
        self.assertEqual(
            [(each.result, each.recipients, each.via.host) for each in found],
            [("deferred", (one.text,), "mx"), ("failed", (two.text,), "mx")],
        )

    def test_switched_off(self) -> None:
        """Nothing is packed where nothing is kept."""
        self.world.queue._store.traces = False
        claim = self.world.claimed(self.world.item())
        self.settlement.tried.add(claim, Via("mx"), Deferred(LATER, Stage.RCPT), 0.1)
        self.settlement.delivered(claim, claim.item.envelope.recipients, (Delivered(OK),))
        self.assertEqual(self.records(claim.item.id), [])
