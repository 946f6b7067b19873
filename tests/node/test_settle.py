"""From outcomes to the queue: everything is written, once, whatever the store does meanwhile."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.mail.item import Claim
from relaycluster.mail.outcome import Deferred, Delivered, Failed, Outcome, Stage
from relaycluster.mail.reply import Reply
from relaycluster.node.settle import RetrySettings, Settlement
from tests.node.world import World, result, run, snapshot

OK = Delivered(Reply.of(250, "2.0.0", "taken"), "mx.example")
LATER = Deferred(Reply.of(451, "4.7.1", "come again"), Stage.RCPT, "mx.example")
NEVER = Failed(Reply.of(550, "5.1.1", "no such user"), Stage.RCPT, "mx.example")
RETRY = RetrySettings((300.0, 600.0), 3600.0, 1000.0)


class SettlementTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.settlement = Settlement(
            self.world.clock, self.world.queue, self.world.metrics, self.world.log, RETRY, "us.example", lambda: 0.5
        )
        self.settled: list[Claim] = []
        self.settlement.on_settled = self.settled.append

    def settle(self, claim: Claim, *outcomes: Outcome) -> None:
        self.settlement.settle(claim, list(zip(claim.item.envelope.recipients, outcomes, strict=True)))

    def notices(self) -> list[Any]:
        """DSNs that are queued."""
        return [
            item
            for place in self.world.cluster.partitions
            for item in place.items.values()
            if item.envelope.reverse_path.is_null
        ]

    def kinds(self) -> list[str]:
        return [event["event"] for event in self.world.events()]

    def test_all_delivered(self) -> None:
        """Settled for good, one line, and the lane hears of it."""
        claim = self.world.claimed(self.world.item(recipients=2))
        self.settlement.delivered(claim, claim.item.envelope.recipients, (OK, OK))
        self.assertIn(claim.item.id, self.world.partition().done)
        self.assertEqual((len(self.kinds()), self.settled), (1, [claim]))

    def test_delivered_while_the_store_is_away(self) -> None:
        """Kept, and written once it is back: exactly once, told once."""
        claim = self.world.claimed(self.world.item())
        self.world.cluster.down = True
        self.settlement.delivered(claim, claim.item.envelope.recipients, (OK,))
        self.world.advance(3)
        self.assertEqual((self.settlement.unwritten, self.settled), (1, []))
        self.world.cluster.down = False
        self.world.advance(1)
        self.assertEqual((self.settlement.unwritten, self.settled, len(self.kinds())), (0, [claim], 1))
        asked = self.world.queue.count("finish")
        self.world.advance(5)
        self.assertEqual((self.world.queue.count("finish"), self.world.clock.getDelayedCalls()), (asked, []))

    def test_mixed(self) -> None:
        """One delivered, one deferred, one failed: the item waits with the one, and the sender hears of the other at once."""
        claim = self.world.claimed(self.world.item(recipients=3))
        self.settle(claim, OK, LATER, NEVER)
        item = self.world.partition().items[claim.item.id]
        self.assertEqual([who.text for who in item.envelope.recipients], ["r1@example.com"])
        self.assertEqual((item.attempts, item.last_reply), (1, "451 4.7.1 come again"))
        due = self.world.partition().waiting[claim.item.id]
        self.assertEqual(due, self.world.cluster.clock_ms() + 300_000)
        (notice,) = self.notices()
        self.assertEqual([who.text for who in notice.envelope.recipients], ["s@example.net"])
        self.assertEqual([dict(place.notices) for place in self.world.cluster.partitions if place.notices], [])
        self.assertEqual(len(self.settled), 1)

    def test_no_notice_about_a_notice(self) -> None:
        """The null reverse-path fails in silence, but for the log (RFC 5321 6.1)."""
        item = self.world.item()
        item = evolve(
            item, envelope=evolve(item.envelope, reverse_path=evolve(item.envelope.reverse_path, text="", domain=""))
        )
        claim = self.world.claimed(item)
        self.settle(claim, NEVER)
        self.assertEqual((self.notices(), len(self.settled)), ([], 1))
        self.assertIn(claim.item.id, self.world.partition().done)

    def test_expiry(self) -> None:
        """A deferral after the lifetime is a failure, with the last reply in the notice."""
        claim = self.world.claimed(self.world.item())
        self.world.clock.advance(3601)
        self.settle(claim, LATER)
        self.assertIn(claim.item.id, self.world.partition().done)
        (notice,) = self.notices()
        content = self.world.partition(notice.domain).bodies[notice.id]
        self.assertIn(b"5.4.7", content)
        self.assertIn(b"come again", content)

    def test_the_last_attempt_is_at_the_expiry(self) -> None:
        """The schedule's delay ends where the lifetime does."""
        claim = self.world.claimed(self.world.item())
        self.world.clock.advance(3500)
        self.settle(claim, LATER)
        self.assertEqual(self.world.partition().waiting[claim.item.id], claim.item.arrived_ms + 3_600_000)

    def test_one_delay_notice(self) -> None:
        """The sender of what waits hears of it once."""
        item = self.world.item()
        for _ in range(3):
            self.world.clock.advance(600)
            owner = self.world.own()
            if item.id in self.world.partition().items:
                (claim,) = result(self.world.queue.claim(owner, item.domain, 1, 1)) or [None]
            else:
                claim = self.world.claimed(item)
            self.settle(claim, LATER)
        self.assertEqual(len(self.notices()), 1)
        self.assertTrue(self.world.partition().items[item.id].delay_notified)

    def test_may_have_arrived(self) -> None:
        """The reply to the final dot never came: the next attempt can make a duplicate, and the item says so."""
        claim = self.world.claimed(self.world.item())
        self.settle(claim, evolve(LATER, stage=Stage.FINAL_DOT, may_have_arrived=True))
        self.assertTrue(self.world.partition().items[claim.item.id].possible_duplicate)

    def taken_over(self, claim: Claim, claim_anew: bool) -> Claim | None:
        """Another node thinks that the holder died."""
        partition = self.world.partition()
        owner = self.world.own(incarnation=2)
        partition.recover(snapshot(2), 5, self.world.cluster.clock_ms())
        if not claim_anew:
            return None
        (anew,) = result(self.world.queue.claim(owner, claim.item.domain, 1, 7))
        return anew  # type: ignore[no-any-return]

    def test_stale_and_delivered(self) -> None:
        """A stale holder's delivery counts: the item that waits again goes."""
        claim = self.world.claimed(self.world.item())
        self.taken_over(claim, claim_anew=False)
        self.settlement.delivered(claim, claim.item.envelope.recipients, (OK,))
        self.assertIn(claim.item.id, self.world.partition().done)

    def test_stale_with_a_part_delivered(self) -> None:
        """…a part of it is noted, and nothing else of a stale holder is believed: no notice, no new due time."""
        claim = self.world.claimed(self.world.item(recipients=3))
        self.taken_over(claim, claim_anew=False)
        self.settle(claim, OK, LATER, NEVER)
        place = self.world.partition()
        self.assertEqual(place.notes, {claim.item.id: ("r0@example.com",)})
        self.assertEqual((self.notices(), place.waiting[claim.item.id]), ([], self.world.cluster.clock_ms()))

    def test_noted(self) -> None:
        """The new holder deferred everybody, and hears that one has it already: the item waits for the other only."""
        stale = self.world.claimed(self.world.item(recipients=2))
        anew = self.taken_over(stale, claim_anew=True)
        assert anew is not None
        result(self.world.queue.note(stale, ["r0@example.com"]))
        self.settle(anew, LATER, LATER)
        item = self.world.partition().items[stale.item.id]
        self.assertEqual([who.text for who in item.envelope.recipients], ["r1@example.com"])

    def test_noted_by_everybody(self) -> None:
        """The stale holder reached all: the new holder's deferral settles the item, and no notice goes out."""
        stale = self.world.claimed(self.world.item(recipients=2))
        anew = self.taken_over(stale, claim_anew=True)
        assert anew is not None
        self.settlement.delivered(stale, stale.item.envelope.recipients, (OK, OK))
        self.settle(anew, LATER, LATER)
        self.assertIn(stale.item.id, self.world.partition().done)
        self.assertEqual(self.notices(), [])

    def test_a_part_leaves_home(self) -> None:
        """The last part of a message for several domains takes the content along."""
        first, second = self.world.item("a.example"), self.world.item("b.example")
        home = self.world.partition("a.example").number
        items = [evolve(first, id=f"{first.id}-1", home=home), evolve(second, id=f"{first.id}-2", home=home)]
        result(self.world.queue.enqueue_spread(items, b"Subject: x\r\n\r\n"))
        claims = [self.world.claimed(item, b"") for item in items]
        self.settlement.delivered(claims[0], items[0].envelope.recipients, (OK,))
        self.assertIn(first.id, self.world.cluster.partitions[home].bodies)
        self.settle(claims[1], NEVER)
        self.assertNotIn(first.id, self.world.cluster.partitions[home].bodies)
        self.assertEqual(len(self.notices()), 1)

    def test_mixed_outcomes_survive_an_outage(self) -> None:
        """Written once the store is back: one notice, one deferral, one line for each."""
        claim = self.world.claimed(self.world.item(recipients=2))
        self.world.cluster.down = True
        self.settle(claim, LATER, NEVER)
        self.world.advance(2)
        self.world.cluster.down = False
        self.world.advance(2)
        self.assertEqual((len(self.notices()), self.settled, self.settlement.unwritten), (1, [claim], 0))
        self.assertEqual(self.world.partition().items[claim.item.id].attempts, 1)

    def test_a_lost_answer_to_a_deferral(self) -> None:
        """It happened: the repeat finds a token that is not valid any more, and changes nothing."""
        claim = self.world.claimed(self.world.item())
        self.world.queue.losing.add("defer")
        self.settle(claim, LATER)
        self.world.queue.losing.clear()
        self.world.advance(2)
        item = self.world.partition().items[claim.item.id]
        self.assertEqual((item.attempts, self.settled, self.settlement.unwritten), (1, [claim], 0))

    def test_a_lost_answer_to_a_failure(self) -> None:
        """It happened, and the notice is owed: the repeat and the janitor together make one notice, under one id."""
        claim = self.world.claimed(self.world.item())
        self.world.queue.losing.add("finish")
        self.settle(claim, NEVER)
        self.world.queue.losing.clear()
        self.world.advance(2)
        for notice in result(self.world.queue.notices(claim.partition)):
            run(self.settlement.send_notice(claim.partition, notice, "", "failed"))
        self.assertEqual(len(self.notices()), 1)

    def test_a_notice_that_cannot_be_queued_stays_owed(self) -> None:
        """The store is full: the failure is written, the notice waits for its owner."""
        claim = self.world.claimed(self.world.item())
        self.world.cluster.full = True
        self.settle(claim, NEVER)
        self.assertIn(claim.item.id, self.world.partition().done)
        self.assertEqual((len(self.world.partition().notices), self.notices(), self.settled), (1, [], [claim]))

    def test_stop(self) -> None:
        """No timer is left behind."""
        claim = self.world.claimed(self.world.item())
        self.world.cluster.down = True
        self.settlement.delivered(claim, claim.item.envelope.recipients, (OK,))
        self.settlement.stop()
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
