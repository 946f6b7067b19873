"""From outcomes to the queue: everything is written, once, whatever the store does meanwhile."""

from __future__ import annotations

import re
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.mail.address import NULL
from relaycluster.mail.envelope import Notify, NotifyRequest, Ret
from relaycluster.mail.item import Claim
from relaycluster.mail.outcome import Deferred, Delivered, Failed, Outcome, Stage
from relaycluster.node.settle import RetrySettings, Settlement
from relaycluster.policy.cluster import Ownership
from relaycluster.store.memory_operator import MemoryOperator
from tests.node.world import World, result, run, snapshot
from tests.support.replies import heard

OK = Delivered(heard("250 2.0.0 taken"), "mx.example")
LATER = Deferred(heard("451 4.7.1 come again"), Stage.RCPT, "mx.example")
NEVER = Failed(heard("550 5.1.1 no such user"), Stage.RCPT, "mx.example")
ASKED_FOR_NOTHING = NotifyRequest(frozenset())
FAILURES, DELAYS, SUCCESSES = (
    NotifyRequest(frozenset({each})) for each in (Notify.FAILURE, Notify.DELAY, Notify.SUCCESS)
)
CONTENT = b"Subject: x\r\n\r\nbody\r\n"
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

    def test_stale_and_failed(self) -> None:
        """The item was held, or went to another, while it was being sent: it has not failed, whatever a host said; nobody is told so."""
        claim = self.world.claimed(self.world.item())
        self.taken_over(claim, claim_anew=False)
        self.settle(claim, NEVER)
        self.assertEqual((self.kinds(), self.notices()), ([], []))
        self.assertIn(claim.item.id, self.world.partition().items)
        self.assertEqual(sum(each.value for each in self.world.metrics.bounces.values()), 0)

    def test_failed_after_it_was_settled(self) -> None:
        """…and when the other has delivered it already, or an operator deleted it, the sender hears of no failure either."""
        for settle_it in (self.delivered_by_another, self.deleted):
            self.world.lines.clear()
            claim = self.world.claimed(self.world.item())
            settle_it(claim)
            self.assertNotIn(claim.item.id, self.world.partition().items)
            self.settled.clear()
            self.settle(claim, NEVER)
            self.assertEqual((self.world.events("failed"), self.notices(), self.settled), ([], [], [claim]))
            self.world.partition().release(Ownership(claim.partition, 2, self.world.partition().fence))

    def delivered_by_another(self, claim: Claim) -> None:
        anew = self.taken_over(claim, claim_anew=True)
        assert anew is not None
        self.settlement.delivered(anew, anew.item.envelope.recipients, (OK,))

    def deleted(self, claim: Claim) -> None:
        operator = MemoryOperator(self.world.cluster, self.world.queue)
        for act in (operator.hold, operator.delete):
            result(act(claim.item.id, "alice", "spam"))

    def test_sorted_out(self) -> None:
        """Whoever can not be told of the delay is not looked at again and again; nothing else of the item changes."""
        item = evolve(self.world.item(), attempts=2, last_reply="451 first", holder_deaths=1)
        null = evolve(item, envelope=evolve(item.envelope, reverse_path=NULL))
        claim = self.world.claimed(null)
        self.world.clock.advance(1001)
        result(self.settlement.sort_out(claim, [(who, LATER) for who in null.envelope.recipients]))
        place = self.world.partition()
        self.assertEqual(place.items[item.id], evolve(null, delay_notified=True))
        self.assertTrue(place.waiting[item.id] <= self.world.queue.now_ms())
        self.assertEqual((self.kinds(), len(self.settled)), ([], 1))

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

    def test_failed_for_whom_a_stale_holder_reached(self) -> None:
        """The new holder's host refused all; whom the stale holder reached has not failed, and when these are all, nothing has."""
        for outcomes, failures in (((OK, OK), []), ((OK, NEVER), ["r1@example.com"])):
            self.world.lines.clear()
            stale = self.world.claimed(self.world.item(recipients=2))
            anew = self.taken_over(stale, claim_anew=True)
            assert anew is not None
            if not failures:
                self.settlement.delivered(stale, stale.item.envelope.recipients, outcomes)
            else:
                self.settle(stale, *outcomes)
            self.settle(anew, NEVER, NEVER)
            self.assertEqual([each["recipients"] for each in self.world.events("failed")], [failures] * len(failures))
            self.assertEqual(len(self.notices()), len(failures))
            self.assertNotIn(stale.item.id, self.world.partition().items)
            self.assertEqual(len(self.settled), 2)
            self.settled.clear()
            self.world.partition().release(Ownership(stale.partition, 2, self.world.partition().fence))

    def test_a_lost_answer_to_a_failure_of_those_that_are_left(self) -> None:
        """It happened: the repeat is of what was left, not of everybody."""
        stale = self.world.claimed(self.world.item(recipients=2))
        anew = self.taken_over(stale, claim_anew=True)
        assert anew is not None
        result(self.world.queue.note(stale, ["r0@example.com"]))
        self.world.queue.holding.add("finish")
        self.settle(anew, NEVER, NEVER)
        self.world.queue.losing.add("finish")
        self.world.queue.let_go()
        self.assertEqual((self.world.queue.count("finish"), self.settled), (2, []))
        self.world.queue.losing.clear()
        self.world.advance(2)
        self.assertEqual([each["recipients"] for each in self.world.events("failed")], [["r1@example.com"]])
        (notice,) = self.notices()
        content = self.world.partition(notice.domain).bodies[notice.id]
        self.assertEqual((b"r0@example.com" in content, b"r1@example.com" in content), (False, True))
        self.assertEqual(len(self.settled), 1)

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

    # What the sender asked for (RFC 3461)

    def wishing(self, *requests: NotifyRequest | None, content: bytes = CONTENT, **changes: Any) -> Claim:
        """A claim for as many recipients, with what was asked for each."""
        item = self.world.item(recipients=len(requests))
        named = {who.text: each for who, each in zip(item.envelope.recipients, requests, strict=True) if each}
        item = evolve(item, envelope=evolve(item.envelope, requests=named, **changes))
        return self.world.claimed(item, content)

    def content(self, notice: Any) -> bytes:
        return self.world.partition(notice.domain).bodies[notice.id]  # type: ignore[no-any-return]

    def told(self) -> list[list[tuple[str, str]]]:
        """What each notice says: recipient and action."""
        found = []
        for notice in self.notices():
            content = self.content(notice).decode()
            recipients = re.findall(r"^Final-Recipient: rfc822; (\S+)@example.com\r$", content, re.MULTILINE)
            found.append(list(zip(recipients, re.findall(r"^Action: (\S+)\r$", content, re.MULTILINE), strict=True)))
        return found

    def test_never(self) -> None:
        """NOTIFY=NEVER: no notice of failure, delay or success; the log tells."""
        for each in (OK, NEVER, LATER):
            claim = self.wishing(ASKED_FOR_NOTHING)
            self.world.clock.advance(1001)
            self.settle(claim, each)
        self.settlement.delivered(claim := self.wishing(ASKED_FOR_NOTHING), claim.item.envelope.recipients, (OK,))
        self.assertEqual(self.notices(), [])
        (dropped,) = self.world.events("notice_dropped")
        self.assertIn("NOTIFY", dropped["why"])

    def test_failure_but_no_delay(self) -> None:
        """Who asked for failures hears of no delay; who asked for delays hears of no failure; who asked for nothing of both."""
        cases = [(FAILURES, LATER, False), (FAILURES, NEVER, True), (DELAYS, LATER, True), (DELAYS, NEVER, False)]
        for asked, each, is_told in [*cases, (None, LATER, True), (None, NEVER, True)]:
            claim = self.wishing(asked, None)
            self.world.clock.advance(1001)
            before = len(self.notices())
            self.settle(claim, each, OK)
            self.assertEqual(len(self.notices()) - before, is_told, (asked, each))

    def test_success_is_the_next_hops_to_tell(self) -> None:
        """It speaks DSN and got the wish: nothing from us, on the hot path or beside it."""
        taken = evolve(OK, dsn=True)
        claim = self.wishing(SUCCESSES, None)
        self.settlement.delivered(claim, claim.item.envelope.recipients, (taken, taken))
        self.settle(self.wishing(SUCCESSES, None), taken, NEVER)
        self.assertEqual(self.told(), [[("r1", "failed")]])

    def test_success_through_a_host_without_dsn(self) -> None:
        """RFC 3461 5.2.2: it was relayed, for those who asked; the item is settled, told once, and counted as delivered."""
        claim = self.wishing(SUCCESSES, None, FAILURES)
        self.settlement.delivered(claim, claim.item.envelope.recipients, (OK, OK, OK))
        self.assertEqual(self.told(), [[("r0", "relayed")]])
        self.assertIn(claim.item.id, self.world.partition().done)
        self.assertEqual(self.kinds(), ["delivered", "notice_queued"])
        self.assertEqual(self.world.events("notice_queued")[0]["kind"], "relayed")
        self.assertEqual(self.settled, [claim])

    def test_no_success_for_the_null_reverse_path(self) -> None:
        """Nothing is ever sent there."""
        claim = self.wishing(SUCCESSES, reverse_path=NULL)
        self.settlement.delivered(claim, claim.item.envelope.recipients, (OK,))
        self.assertEqual((self.notices(), self.kinds()), ([], ["delivered"]))

    def test_success_failure_and_delay_at_once(self) -> None:
        """One notice for the attempt, the failures first; the delay comes with the next."""
        claim = self.wishing(SUCCESSES, FAILURES, DELAYS)
        self.world.clock.advance(1001)
        self.settle(claim, OK, NEVER, LATER)
        self.assertEqual(self.told(), [[("r1", "failed"), ("r0", "relayed")]])
        item = self.world.partition().items[claim.item.id]
        self.assertFalse(item.delay_notified)
        self.assertEqual(dict(item.envelope.requests), dict(claim.item.envelope.requests))

    def test_a_stale_holder_tells_of_success(self) -> None:
        """Its delivery is a fact, and nobody else knows of it; told once, whoever holds the item."""
        claim = self.wishing(SUCCESSES, None)
        anew = self.taken_over(claim, claim_anew=True)
        assert anew is not None
        self.settle(claim, OK, LATER)
        self.settle(anew, LATER, LATER)
        self.assertEqual(self.told(), [[("r0", "relayed")]])

    def test_a_lost_answer_to_a_success(self) -> None:
        """The repeat makes the same notice under the same id."""
        claim = self.wishing(SUCCESSES)
        self.world.queue.losing.add("finish")
        self.settlement.delivered(claim, claim.item.envelope.recipients, (OK,))
        self.world.queue.losing.clear()
        self.world.advance(2)
        self.assertEqual((self.told(), self.settlement.unwritten), ([[("r0", "relayed")]], 0))

    def test_how_much_comes_back(self) -> None:
        """RET (RFC 3461 4.3): all of it with a failure when asked for, else its header; and never all of it without a failure."""
        cases = [(Ret.FULL, NEVER, True), (Ret.HEADERS, NEVER, False), (None, NEVER, False), (Ret.FULL, OK, False)]
        for ret, each, whole in cases:
            self.settle(self.wishing(NotifyRequest(frozenset(Notify)), ret=ret), each)
            content = self.content(self.notices()[-1])
            self.assertEqual((b"Content-Type: message/rfc822" in content, b"\r\nbody\r\n" in content), (whole, whole))

    def test_of_a_message_in_pieces_the_header_comes_back(self) -> None:
        """RET=FULL or not: a notice is queued in one piece."""
        item = self.world.item()
        item = evolve(item, chunks=1, envelope=evolve(item.envelope, ret=Ret.FULL))
        result(self.world.queue.put_chunk(self.world.partition().number, item.id, 1, b"more\r\n"))
        self.settle(self.world.claimed(item), NEVER)
        self.assertIn(b"text/rfc822-headers", self.content(self.notices()[0]))

    def test_the_senders_names_come_back(self) -> None:
        """ENVID and ORCPT, decoded (RFC 3464 2.2.1 and 2.3.1)."""
        claim = self.wishing(NotifyRequest(None, "rfc822;Bob+2Btag@example.org"), envelope_id="QQ+3D1")
        self.settle(claim, NEVER)
        content = self.content(self.notices()[0])
        self.assertIn(b"\r\nOriginal-Envelope-Id: QQ=1\r\n", content)
        self.assertIn(b"\r\nOriginal-Recipient: rfc822; Bob+tag@example.org\r\n", content)

    def test_an_internationalized_notice(self) -> None:
        """For a message that declared SMTPUTF8 and needed it (RFC 6533), with an envelope that says so."""
        for header, needed in (("Subject: \u00fc", True), ("Subject: u", False)):
            self.settle(self.wishing(None, content=f"{header}\r\n\r\nx\r\n".encode(), smtputf8=True), NEVER)
            notice = self.notices()[-1]
            content = self.content(notice)
            self.assertEqual(b"message/global-delivery-status" in content, needed)
            self.assertEqual((notice.envelope.smtputf8, notice.size), (needed, len(content)))

    def test_notices_are_signed(self) -> None:
        """What is queued is what the signer gave back; a signer that fails costs no notice."""

        def sign(content: bytes) -> bytes:
            return b"DKIM-Signature: x\r\n" + content

        def broken(content: bytes) -> bytes:
            raise RuntimeError("no key")

        world = self.world
        for signer in (sign, broken):
            settlement = Settlement(
                world.clock, world.queue, world.metrics, world.log, RETRY, "us.example", lambda: 0.5, signer
            )
            settlement.settle(claim := self.wishing(None), [(claim.item.envelope.recipients[0], NEVER)])
        signed, unsigned = self.notices()
        self.assertTrue(self.content(signed).startswith(b"DKIM-Signature: x\r\nFrom: "))
        self.assertEqual(signed.size, len(self.content(signed)))
        self.assertTrue(self.content(unsigned).startswith(b"From: "))
        self.assertEqual([each["message"] for each in world.events("error")], ["no key"])

    def test_stop(self) -> None:
        """No timer is left behind."""
        claim = self.world.claimed(self.world.item())
        self.world.cluster.down = True
        self.settlement.delivered(claim, claim.item.envelope.recipients, (OK,))
        self.settlement.stop()
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
