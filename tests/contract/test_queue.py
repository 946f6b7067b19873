"""The queue's contract, over the memory store and every real Redis: each transition, each crash of the table in
docs/design/queue.md, and what a full store may still do."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from relaycluster.interfaces import MOST_DUE, NotOwner, QueueError, QueueFull, Settled
from relaycluster.mail import queue_id
from relaycluster.mail.address import NULL, Address
from relaycluster.mail.envelope import Envelope, MessageClass, Notify, NotifyRequest, Ret
from relaycluster.mail.item import Item, Notice
from relaycluster.policy.cluster import Member, Ownership, Snapshot
from relaycluster.policy.ring import partition_of
from tests.contract.backends import PARTITIONS, over_all_backends

ALICE, BOB, CAROL = 1, 2, 3


def snapshot(*alive: int, following: int = 10) -> Snapshot:
    """A membership in which these incarnations live, and all others below `following` are dead."""
    return Snapshot(1, following, tuple(Member(n, f"node-{n}", f"key-{n}", ("delivery",)) for n in alive))


EVERYBODY = snapshot(ALICE, BOB, CAROL)


def an_id(number: int, partition: int = 0) -> str:
    return queue_id.make(1_700_000_000_000 + number, partition, 7_000_000 + number)


def an_item(number: int = 1, domain: str = "example.com", recipients: int = 1, **changes: Any) -> Item:
    addresses = tuple(Address(f"r{n}@{domain}", domain) for n in range(recipients))
    values: dict[str, Any] = {
        "id": an_id(number, partition_of(domain, PARTITIONS)),
        "domain": domain,
        "envelope": Envelope(Address("sender@example.net", "example.net"), addresses),
        "size": 11,
        "arrived_ms": 1_700_000_000_000,
    }
    return Item(**{**values, **changes})


class QueueContract:
    backend: Any
    queue: Any
    assertEqual: Any
    assertFalse: Any

    async def own(self, domain: str = "example.com", who: int = ALICE, view: Snapshot = EVERYBODY) -> Ownership:
        owner = await self.queue.acquire(partition_of(domain, PARTITIONS), who, view)
        assert owner is not None
        return owner

    async def sound(self) -> None:
        self.assertEqual(await self.backend.violations(), [])

    async def claim_one(self, owner: Ownership, domain: str = "example.com") -> Any:
        (claim,) = await self.queue.claim(owner, domain, 5, 100)
        return claim

    async def due(self, partition: int, passed_over: int = 0) -> list[str]:
        """What the poll of a partition finds."""
        return [found for _, found in await self.queue.due([partition], {partition: passed_over})]

    # Intake

    async def test_enqueue_claim_finish(self) -> None:
        """The plain way: queued, claimed with its content, delivered, and gone but for its id."""
        item = an_item()
        self.assertEqual(await self.queue.enqueue(item, b"content\r\n\r\n", None), None)
        await self.sound()
        claim = await self.claim_one(await self.own())
        self.assertEqual((claim.item, claim.content, claim.delivered), (item, b"content\r\n\r\n", ()))
        await self.sound()
        self.assertEqual(await self.queue.finish(claim, True, None), Settled.DONE)
        await self.sound()
        self.assertEqual(await self.backend.counts(), {"items": 0, "bodies": 0, "waiting": 0, "leased": 0, "done": 1})

    async def test_every_field_survives(self) -> None:
        """What is claimed is what was queued, field by field, also non-ASCII and the null reverse-path."""
        item = an_item(
            envelope=Envelope(
                NULL,
                (Address("dörte@example.com", "example.com"), Address("r@example.com", "example.com")),
                smtputf8=True,
                ret=Ret.FULL,
                envelope_id="QQ+2B1",
                requests={"dörte@example.com": NotifyRequest(frozenset({Notify.DELAY}), "utf-8;dörte@example.com")},
            ),
            message_class=MessageClass.BULK,
            attempts=3,
            last_reply="451 4.7.1 später",
            arrived_ms=1_700_000_123_456,
            delay_notified=True,
            size=4_000_000_000,
        )
        await self.queue.enqueue(item, b"x" * 5000, None)
        claim = await self.claim_one(await self.own())
        self.assertEqual((claim.item, claim.content), (item, b"x" * 5000))

    async def test_enqueue_is_idempotent(self) -> None:
        """The same id again changes nothing: while it waits, while it is leased, and after it was settled."""
        item, owner = an_item(), await self.own()
        for _ in range(2):
            self.assertEqual(await self.queue.enqueue(item, b"one", None), None)
        claim = await self.claim_one(owner)
        await self.queue.enqueue(item, b"two", None)
        self.assertEqual(await self.queue.claim(owner, "example.com", 5, 200), [])
        await self.queue.finish(claim, True, None)
        await self.queue.enqueue(item, b"three", None)
        self.assertEqual((await self.backend.counts())["items"], 0)
        await self.sound()

    async def test_order_within_a_domain(self) -> None:
        """Urgent before normal before bulk; within a class the one that was due first."""
        kinds = [MessageClass.BULK, MessageClass.NORMAL, MessageClass.URGENT, MessageClass.NORMAL]
        for number, kind in enumerate(kinds):
            await self.queue.enqueue(an_item(number, message_class=kind), b"x", None)
            await self.backend.advance(5)
        claims = await self.queue.claim(await self.own(), "example.com", 3, 1)
        self.assertEqual([claim.item.id for claim in claims], [an_item(n).id for n in (2, 1, 3)])
        await self.sound()

    async def test_a_share_for_each_class(self) -> None:
        """A claim may ask for some of bulk and of normal first; what a class does not use, the most urgent gets."""
        kinds = [*[MessageClass.URGENT] * 4, MessageClass.NORMAL, *[MessageClass.BULK] * 3]
        for number, kind in enumerate(kinds):
            await self.queue.enqueue(an_item(number, message_class=kind), b"x", None)
            await self.backend.advance(5)
        owner = await self.own()
        claims = await self.queue.claim(owner, "example.com", 3, 1, 1, 1)
        self.assertEqual([claim.item.id for claim in claims], [an_item(n).id for n in (5, 4, 0)])
        claims = await self.queue.claim(owner, "example.com", 3, 4, 2, 0)
        self.assertEqual([claim.item.id for claim in claims], [an_item(n).id for n in (1, 2, 3)])
        claims = await self.queue.claim(owner, "example.com", 5, 7, 1, 1)
        self.assertEqual([claim.item.id for claim in claims], [an_item(n).id for n in (6, 7)])
        self.assertEqual(len({claim.token for claim in claims}), 2)
        await self.sound()

    async def test_large_content_in_chunks(self) -> None:
        """Pieces that were written ahead belong to the message from its enqueue on, and leave with it."""
        item = an_item(chunks=2)
        home = partition_of(item.domain, PARTITIONS)
        await self.queue.put_chunk(home, item.id, 1, b"a" * 300_000)
        try:
            await self.queue.enqueue(item, b"head", None)
        except QueueError:
            pass
        else:
            raise AssertionError("a message with a missing piece was accepted")
        self.assertEqual((await self.backend.counts())["items"], 0)
        await self.queue.put_chunk(home, item.id, 2, b"b")
        await self.queue.enqueue(item, b"head", None)
        claim = await self.claim_one(await self.own())
        pieces = [await self.queue.content(claim.item, n) for n in (0, 1, 2)]
        self.assertEqual(pieces, [b"head", b"a" * 300_000, b"b"])
        await self.queue.finish(claim, True, None)
        self.assertEqual((await self.backend.counts())["bodies"], 0)

    async def test_cancel(self) -> None:
        """An enqueue without an answer is taken back, whether it arrived or not; a repeat that comes late changes nothing; what
        somebody holds already is left alone."""
        await self.queue.enqueue(an_item(1), b"x", None)
        for number in (1, 2):
            self.assertEqual(await self.queue.cancel(an_item(number), None), True)
            await self.queue.enqueue(an_item(number), b"x", None)
        self.assertEqual((await self.backend.counts())["items"], 0)
        owner = await self.own()
        await self.queue.enqueue(an_item(3), b"x", (owner, 1))
        self.assertEqual(await self.queue.cancel(an_item(3), None), False)
        self.assertEqual(await self.queue.cancel(an_item(3), (owner, 1)), True)
        self.assertEqual((await self.backend.counts())["items"], 0)
        await self.sound()

    # The direct lease

    async def test_direct_lease(self) -> None:
        """The owner's enqueue goes straight into its hands, and a repeat of it gives the same claim."""
        owner, item = await self.own(), an_item()
        first = await self.queue.enqueue(item, b"x", (owner, 7))
        again = await self.queue.enqueue(item, b"x", (owner, 7))
        self.assertEqual((first, first.content), (again, b"x"))
        await self.sound()
        self.assertEqual(await self.queue.claim(owner, "example.com", 5, 8), [])
        self.assertEqual(await self.queue.finish(first, True, None), Settled.DONE)
        await self.sound()

    async def test_direct_lease_needs_the_ownership(self) -> None:
        """Somebody who is not, or no longer, the owner queues like anybody else."""
        stale = await self.own()
        await self.queue.release(stale)
        await self.own(who=BOB)
        self.assertEqual(await self.queue.enqueue(an_item(), b"x", (stale, 1)), None)
        self.assertEqual((await self.backend.counts())["waiting"], 1)

    # Settling

    async def test_defer_then_due_again(self) -> None:
        """A deferred item keeps its new value, is not due before its time, and is then."""
        owner = await self.own()
        await self.queue.enqueue(an_item(), b"x", None)
        claim = await self.claim_one(owner)
        later = evolve(claim.item, attempts=1, last_reply="451 busy")
        self.assertEqual(await self.queue.defer(claim, later, 60_000, None), Settled.DONE)
        await self.sound()
        await self.backend.advance(58_000)
        self.assertEqual(await self.queue.claim(owner, "example.com", 5, 1), [])
        await self.backend.advance(3_000)
        self.assertEqual((await self.claim_one(owner)).item, later)
        await self.sound()

    async def test_content_that_waits_is_the_same(self) -> None:
        """However the store keeps it, before and after a deferral, what comes with a claim is what was queued."""
        owner = await self.own()
        content = b"Subject: x\r\n\r\n" + b"all work and no play\r\n" * 300
        await self.queue.enqueue(an_item(), content, None)
        for _ in range(3):
            claim = await self.claim_one(owner)
            self.assertEqual(claim.content, content)
            await self.queue.defer(claim, evolve(claim.item, attempts=claim.item.attempts + 1), 0, None)

    async def test_put_back(self) -> None:
        """What was not tried waits again as it was, before what came later."""
        owner = await self.own()
        await self.queue.enqueue(an_item(1), b"x", None)
        await self.backend.advance(10)
        await self.queue.enqueue(an_item(2), b"x", None)
        first, second = await self.queue.claim(owner, "example.com", 5, 1)
        self.assertEqual(await self.queue.put_back(second), Settled.DONE)
        self.assertEqual(await self.queue.put_back(first), Settled.DONE)
        await self.sound()
        claims = await self.queue.claim(owner, "example.com", 5, 3)
        self.assertEqual([claim.item for claim in claims], [first.item, second.item])

    async def test_a_claim_without_an_answer(self) -> None:
        """What it took waits again as before; other claims of the same owner are left alone, and repeating it changes nothing."""
        owner = await self.own()
        for number in (1, 2, 3):
            await self.queue.enqueue(an_item(number), b"x", None)
            await self.backend.advance(5)
        (kept,) = await self.queue.claim(owner, "example.com", 1, 64)
        await self.queue.claim(owner, "example.com", 2, 128)
        for _ in range(2):
            await self.queue.unclaim(owner, 128, 2)
        await self.sound()
        claims = await self.queue.claim(owner, "example.com", 5, 192)
        self.assertEqual([claim.item.id for claim in claims], [an_item(2).id, an_item(3).id])
        self.assertEqual(await self.queue.finish(kept, True, None), Settled.DONE)

    async def test_overdue(self) -> None:
        """Of what is due, that which expired, and that whose delay nobody thought of yet; whatever else waits is left alone, and in steps
        everything is looked at. A notice is as old as its arrival, not as its id, which is that of the message it speaks of."""
        owner, now = await self.own(), self.queue.now_ms()
        arrivals = {
            1: now - 9000,
            2: now - 9000,
            3: now - 5000,
            4: now - 5000,
            5: now - 1000,
            6: now - 1000,
            7: now - 9000,
        }
        for number, arrived in arrivals.items():
            identifier = queue_id.make(now - 9000 if number == 6 else arrived, owner.partition, number)
            changes = {"id": identifier, "arrived_ms": arrived, "delay_notified": number in (2, 4)}
            await self.queue.enqueue(evolve(an_item(number), **changes), b"x", None)
        for claim in await self.queue.claim(owner, "example.com", 9, 64):
            if claim.item.id.endswith("7"):
                await self.queue.defer(claim, claim.item, 60_000, None)
            else:
                await self.queue.put_back(claim)
        found: list[str] = []
        start, number = 0, 128
        while start >= 0:
            claims, start = await self.queue.claim_overdue(
                owner, "example.com", MessageClass.NORMAL, start, 2, number, now - 8000, now - 4000
            )
            self.assertTrue(len(claims) <= 2)
            number += 64
            found += [claim.item.id[-1] for claim in claims]
        self.assertEqual(sorted(found), ["1", "2", "3"])
        await self.sound()
        claims, start = await self.queue.claim_overdue(
            owner, "example.com", MessageClass.BULK, 0, 2, number, now - 8000, now - 4000
        )
        self.assertEqual((claims, start), ([], -1))
        await self.queue.unclaim(owner, 128, 2)
        waiting = await self.queue.claim(owner, "example.com", 9, 900)
        self.assertEqual(sorted(claim.item.id[-1] for claim in waiting), ["1", "2", "4", "5", "6"])
        with self.assertRaises(NotOwner):
            await self.queue.claim_overdue(
                evolve(owner, fence=99), "example.com", MessageClass.NORMAL, 0, 2, 1, now, now
            )

    async def test_set_aside(self) -> None:
        """What cannot be sent is held for the operator, once."""
        owner = await self.own()
        await self.queue.enqueue(an_item(), b"x", None)
        claim = await self.claim_one(owner)
        self.assertEqual(await self.queue.set_aside(claim), Settled.DONE)
        self.assertEqual(await self.queue.set_aside(claim), Settled.STALE)
        self.assertEqual(await self.queue.claim(owner, "example.com", 5, 192), [])
        self.assertEqual((await self.queue.tally(range(PARTITIONS))).held, 1)
        await self.sound()

    async def test_settling_is_idempotent(self) -> None:
        """After a lost answer the holder repeats: finish is done, and nothing else is accepted any more."""
        await self.queue.enqueue(an_item(), b"x", None)
        claim = await self.claim_one(await self.own())
        for _ in range(2):
            self.assertEqual(await self.queue.finish(claim, True, None), Settled.DONE)
        self.assertEqual(await self.queue.finish(claim, False, None), Settled.STALE)
        self.assertEqual(await self.queue.defer(claim, claim.item, 1, None), Settled.STALE)
        self.assertEqual(await self.queue.put_back(claim), Settled.STALE)

    async def test_notice_is_owed_until_it_is_queued(self) -> None:
        """A failure leaves a complete notice behind; whoever comes next finds it, due after the grace, until it is done."""
        await self.queue.enqueue(an_item(), b"x", None)
        owner = await self.own()
        claim = await self.claim_one(owner)
        notice = Notice(an_item(5, "example.net"), b"the notice")
        for _ in range(2):  # the second time because its answer was lost
            self.assertEqual(await self.queue.finish(claim, False, notice), Settled.DONE)
        self.assertEqual(list(await self.queue.notices(claim.partition)), [notice])
        self.assertEqual(await self.due(claim.partition), [])
        await self.backend.advance(4_000)
        self.assertEqual(await self.due(claim.partition), [])
        await self.backend.advance(2_000)
        self.assertEqual(await self.due(claim.partition), ["*notices"])
        await self.queue.notice_done(claim.partition, notice.item.id)
        self.assertEqual(list(await self.queue.notices(claim.partition)), [])
        self.assertEqual(await self.due(claim.partition), [])

    # Ownership

    async def test_one_owner(self) -> None:
        """While one incarnation lives nobody else gets the partition; the same one gets the same fence."""
        first = await self.own()
        self.assertEqual(await self.queue.acquire(first.partition, BOB, EVERYBODY), None)
        self.assertEqual(await self.queue.acquire(first.partition, ALICE, EVERYBODY), first)

    async def test_each_tenure_has_a_higher_fence(self) -> None:
        """Release, death and return all raise the fence; the old ownership claims nothing any more."""
        first = await self.own()
        await self.queue.release(first)
        second = await self.own(who=BOB)
        third = await self.own(who=CAROL, view=snapshot(ALICE, CAROL))
        self.assertEqual([first.fence < second.fence < third.fence], [True])
        await self.queue.enqueue(an_item(), b"x", None)
        for stale in (first, second):
            try:
                await self.queue.claim(stale, "example.com", 5, 1)
            except NotOwner:
                pass
            else:
                raise AssertionError("a stale owner claimed")
        await self.queue.release(second)  # changes nothing: it is not Bob's any more
        self.assertEqual((await self.claim_one(third)).item, an_item())

    async def test_an_unknown_incarnation_is_not_dead(self) -> None:
        """A snapshot too old to know the owner does not take over from it."""
        await self.own(who=15, view=snapshot(15, following=16))
        self.assertEqual(await self.queue.acquire(partition_of("example.com", PARTITIONS), ALICE, EVERYBODY), None)

    async def test_take_over(self) -> None:
        """The dead holder's items wait again in their order, attempts kept, marked as possible duplicates; the living holder's
        stay where they are."""
        dead, attempts = await self.own(), 2
        for number in (1, 2):
            await self.queue.enqueue(an_item(number, attempts=attempts), b"x", None)
            await self.backend.advance(5)
        await self.queue.claim(dead, "example.com", 5, 1)
        await self.queue.release(dead)
        living = await self.own(who=BOB)
        await self.queue.enqueue(an_item(3), b"x", None)
        in_hand = await self.claim_one(living)
        await self.queue.release(living)
        view = snapshot(BOB, CAROL)
        owner = await self.own(who=CAROL, view=view)
        recovered = await self.queue.recover(owner, view)
        self.assertEqual((sorted(recovered.waiting), recovered.held), ([an_item(1).id, an_item(2).id], ()))
        await self.sound()
        claims = await self.queue.claim(owner, "example.com", 5, 1)
        wanted = [evolve(an_item(n, attempts=2), possible_duplicate=True, holder_deaths=1) for n in (1, 2)]
        self.assertEqual([claim.item for claim in claims], wanted)
        self.assertEqual(await self.queue.finish(in_hand, True, None), Settled.DONE)

    async def test_poison_is_held(self) -> None:
        """An item whose holders died five times waits for the operator and is claimed by nobody."""
        await self.queue.enqueue(an_item(), b"x", None)
        for incarnation in range(1, 6):
            view = snapshot(incarnation + 1)
            owner = await self.own(who=incarnation, view=snapshot(incarnation))
            await self.claim_one(owner)
            heir = await self.own(who=incarnation + 1, view=view)
            recovered = await self.queue.recover(heir, view)
        self.assertEqual(recovered.held, (an_item().id,))
        self.assertEqual(await self.queue.claim(heir, "example.com", 5, 1), [])
        await self.sound()

    async def test_delivered_is_a_fact_while_the_item_waits(self) -> None:
        """A holder that was taken for dead reports a delivery: the item, waiting again, is settled."""
        await self.queue.enqueue(an_item(), b"x", None)
        claim = await self.claim_one(await self.own())
        view = snapshot(BOB)
        owner = await self.own(who=BOB, view=view)
        await self.queue.recover(owner, view)
        self.assertEqual(await self.queue.defer(claim, claim.item, 1000, None), Settled.STALE)
        self.assertEqual(await self.queue.finish(claim, False, None), Settled.STALE)
        self.assertEqual(await self.queue.finish(claim, True, None), Settled.DONE)
        await self.sound()
        self.assertEqual(await self.queue.claim(owner, "example.com", 5, 1), [])

    async def test_delivered_with_a_notice(self) -> None:
        """A success that we must tell is owed with the delivery, once: by the holder, by a stale one whose fact settles the item, and
        not again when the answer was lost."""
        for number, stale in ((1, False), (2, True)):
            await self.queue.enqueue(an_item(number), b"x", None)
            owner = await self.own(who=ALICE if not stale else BOB)
            claim = await self.claim_one(owner)
            if stale:
                view = snapshot(CAROL)
                await self.queue.recover(await self.own(who=CAROL, view=view), view)
            notice = Notice(an_item(5 + number, "example.net"), b"the notice")
            self.assertEqual(await self.queue.finish(claim, True, notice), Settled.DONE)
            self.assertEqual(list(await self.queue.notices(claim.partition)), [notice])
            await self.queue.notice_done(claim.partition, notice.item.id)
            self.assertEqual(await self.queue.finish(claim, True, notice), Settled.DONE)
            self.assertEqual(list(await self.queue.notices(claim.partition)), [])
            await self.sound()
            await self.queue.release(owner)

    async def test_delivered_is_noted_when_claimed_anew(self) -> None:
        """…and when somebody else holds it already, that holder can neither defer nor fail it without having seen the note. What it delivered
        needs none."""
        await self.queue.enqueue(an_item(recipients=2), b"x", None)
        stale = await self.claim_one(await self.own())
        view = snapshot(BOB)
        owner = await self.own(who=BOB, view=view)
        await self.queue.recover(owner, view)
        claim = await self.claim_one(owner)
        self.assertEqual(await self.queue.finish(stale, True, None), Settled.STALE)
        self.assertEqual(await self.queue.defer(claim, claim.item, 1000, None), Settled.NOTED)
        self.assertEqual(await self.queue.notes(claim), ("r0@example.com", "r1@example.com"))
        notice = Notice(an_item(5, "example.net"), b"the notice")
        for _ in range(2):
            self.assertEqual(await self.queue.finish(claim, False, notice), Settled.NOTED)
        self.assertEqual(list(await self.queue.notices(claim.partition)), [])
        await self.sound()
        self.assertEqual(await self.queue.finish(claim, True, None), Settled.DONE)
        await self.sound()

    async def test_a_failure_of_those_that_are_left(self) -> None:
        """A stale holder reached one of two while the other node failed both: that one fails the other, once it knows; again when another
        note came meanwhile, and the answer to it can be lost as any other."""
        await self.queue.enqueue(an_item(recipients=3), b"x", None)
        stale = await self.claim_one(await self.own())
        view = snapshot(BOB)
        owner = await self.own(who=BOB, view=view)
        await self.queue.recover(owner, view)
        claim = await self.claim_one(owner)
        notice = Notice(an_item(5, "example.net"), b"the notice")
        for reached in ("r1@example.com", "r0@example.com"):
            await self.queue.note(stale, [reached])
            self.assertEqual(await self.queue.finish(claim, False, notice), Settled.NOTED)
            claim = evolve(claim, delivered=await self.queue.notes(claim))
        self.assertEqual(set(claim.delivered), {"r0@example.com", "r1@example.com"})
        for _ in range(2):
            self.assertEqual(await self.queue.finish(claim, False, notice), Settled.DONE)
        self.assertEqual(list(await self.queue.notices(claim.partition)), [notice])
        await self.sound()

    async def test_a_stale_failure_of_what_is_settled(self) -> None:
        """Whoever settled it, and however: a host's refusal that comes to a former holder afterwards is no failure, and no notice is owed;
        what that one delivered is a fact. Who settled it may repeat itself."""
        for number, delivered in ((1, True), (2, False)):
            await self.queue.enqueue(an_item(number), b"x", None)
            former = await self.own(who=ALICE)
            stale = await self.claim_one(former)
            view = snapshot(BOB)
            owner = await self.own(who=BOB, view=view)
            await self.queue.recover(owner, view)
            claim = await self.claim_one(owner)
            late = Notice(an_item(7 + number, "example.net"), b"in vain")
            for _ in range(2):
                self.assertEqual(await self.queue.finish(claim, delivered, None), Settled.DONE)
                self.assertEqual(await self.queue.finish(stale, False, late), Settled.STALE)
                self.assertEqual(await self.queue.finish(stale, True, None), Settled.DONE)
            self.assertEqual(await self.queue.finish(claim, True, None), Settled.DONE)
            self.assertEqual(await self.queue.finish(claim, False, late), Settled.STALE if delivered else Settled.DONE)
            self.assertEqual(list(await self.queue.notices(claim.partition)), [])
            await self.sound()
            await self.queue.release(owner)

    async def test_a_failure_is_remembered_whatever_follows(self) -> None:
        """The edge, which never heard that the item was queued, takes it back after it failed: the repeat of the failure is one still."""
        item = an_item()
        await self.queue.enqueue(item, b"x", None)
        claim = await self.claim_one(await self.own())
        self.assertEqual(await self.queue.finish(claim, False, None), Settled.DONE)
        self.assertEqual(await self.queue.cancel(item, None), True)
        self.assertEqual(await self.queue.finish(claim, False, None), Settled.DONE)
        await self.sound()

    async def test_partial_note_comes_with_the_next_claim(self) -> None:
        """A stale holder that reached one recipient of two leaves a note, and the next claim carries it."""
        await self.queue.enqueue(an_item(recipients=2), b"x", None)
        stale = await self.claim_one(await self.own())
        view = snapshot(BOB)
        owner = await self.own(who=BOB, view=view)
        await self.queue.recover(owner, view)
        for _ in range(2):
            await self.queue.note(stale, ["r1@example.com"])
        claim = await self.claim_one(owner)
        self.assertEqual(claim.delivered, ("r1@example.com",))
        self.assertEqual(await self.queue.defer(claim, claim.item, 0, None), Settled.DONE)
        await self.sound()

    # Pausing and the poll

    async def test_the_poll_shows_what_is_due_first(self) -> None:
        """One entry a domain, from when it has something to do."""
        owner = await self.own()
        self.assertEqual(await self.due(owner.partition), [])
        await self.queue.enqueue(an_item(1), b"x", None)
        await self.queue.enqueue(an_item(2), b"x", None)
        self.assertEqual(await self.due(owner.partition), ["example.com"])
        for claim in await self.queue.claim(owner, "example.com", 5, 1):
            await self.queue.defer(claim, claim.item, 5_000, None)
        self.assertEqual(await self.due(owner.partition), [])
        await self.backend.advance(6_000)
        self.assertEqual(await self.due(owner.partition), ["example.com"])

    async def test_the_poll_in_parts(self) -> None:
        """So many at once, the longest due first, and those behind them when these were seen."""
        domains = [f"d{n}.example" for n in range(2 * MOST_DUE * PARTITIONS)]
        domains = [domain for domain in domains if partition_of(domain, PARTITIONS) == 3]
        self.assertGreater(len(domains), MOST_DUE)
        for number, domain in enumerate(domains):
            await self.queue.enqueue(an_item(number, domain), b"x", None)
            await self.backend.advance(10)
        found = [await self.due(3, passed_over) for passed_over in range(0, len(domains) + MOST_DUE, MOST_DUE)]
        self.assertEqual([each for some in found for each in some], domains)
        self.assertLessEqual(max(map(len, found)), MOST_DUE)

    async def test_a_paused_domain_is_not_woken(self) -> None:
        """While a domain is paused, what arrives for it does not make it due; after the pause it is."""
        owner = await self.own()
        await self.queue.enqueue(an_item(1), b"x", None)
        await self.queue.pause(owner, "example.com", 10_000)
        await self.queue.enqueue(an_item(2), b"x", None)
        self.assertEqual(await self.due(owner.partition), [])
        await self.backend.advance(9_000)
        self.assertEqual(await self.due(owner.partition), [])
        await self.backend.advance(2_000)
        self.assertEqual(await self.due(owner.partition), ["example.com"])
        self.assertEqual(len(await self.queue.claim(owner, "example.com", 5, 1)), 2)
        await self.sound()

    # Messages for several domains

    def spread_items(self, *domains: str) -> list[Item]:
        message, home = an_id(9, 3), 3
        return [
            an_item(domain=domain, id=queue_id.item_id(message, n), home=home) for n, domain in enumerate(domains, 1)
        ]

    async def test_spread(self) -> None:
        """One content for several domains; it stays at home until the last item is settled."""
        items = self.spread_items("a.example", "b.example")
        await self.queue.enqueue_spread(items, b"the content")
        self.assertEqual([list(each) for each in await self.queue.spreads(3)], [items])
        for item in items:
            await self.queue.enqueue(item, b"", None)
        await self.queue.spread_done(queue_id.message_id(items[0].id))
        self.assertEqual(list(await self.queue.spreads(3)), [])
        for item in items:
            claim = await self.claim_one(await self.own(item.domain), item.domain)
            self.assertEqual((claim.item, claim.content), (item, None))
            self.assertEqual(await self.queue.content(claim.item, 0), b"the content")
            await self.queue.finish(claim, True, None)
            await self.queue.leave_home(item)
        await self.sound()
        self.assertEqual(await self.backend.counts(), {"items": 0, "bodies": 0, "waiting": 0, "leased": 0, "done": 3})

    async def test_spread_after_the_edge_died(self) -> None:
        """The owner of home finds the record, and queues again only what is not settled."""
        items = self.spread_items("a.example", "b.example")
        for _ in range(2):
            await self.queue.enqueue_spread(items, b"the content")
        await self.queue.enqueue(items[0], b"", None)
        claim = await self.claim_one(await self.own("a.example"), "a.example")
        await self.queue.finish(claim, True, None)
        await self.queue.leave_home(items[0])
        await self.backend.advance(6_000)
        self.assertEqual(await self.due(3), ["*spread"])
        self.assertEqual([list(each) for each in await self.queue.spreads(3)], [items[1:]])
        await self.sound()

    async def test_the_janitor_finds_parts_whose_holder_died(self) -> None:
        """An item was settled and its holder died before home knew: the content goes, though nobody said so."""
        items = self.spread_items("a.example")
        await self.queue.enqueue_spread(items, b"the content")
        await self.queue.enqueue(items[0], b"", None)
        await self.queue.spread_done(queue_id.message_id(items[0].id))
        home = await self.queue.acquire(3, ALICE, EVERYBODY)
        self.assertEqual(await self.queue.sweep(home, 60_000), 0)
        await self.backend.advance(61_000)
        self.assertEqual(await self.queue.sweep(home, 60_000), 0)  # it still waits
        claim = await self.claim_one(await self.own("a.example"), "a.example")
        await self.queue.finish(claim, True, None)
        self.assertEqual(await self.queue.sweep(home, 60_000), 1)
        self.assertEqual((await self.backend.counts())["bodies"], 0)

    # A full store

    async def test_a_full_store_still_empties(self) -> None:
        """Intake is refused and leaves nothing behind; claim, defer, finish with a notice, put back, recover, own and pause all work."""
        for number in (1, 2, 3):
            await self.queue.enqueue(an_item(number), b"x" * 100, None)
        direct_owner = await self.own()
        await self.backend.fill()
        before = await self.backend.counts()
        attempts = [
            lambda: self.queue.enqueue(an_item(4), b"x", None),
            lambda: self.queue.enqueue(an_item(5), b"x", (direct_owner, 1)),
            lambda: self.queue.enqueue_spread(self.spread_items("a.example"), b"x"),
            lambda: self.queue.put_chunk(0, an_item(6).id, 1, b"x"),
        ]
        for attempt in attempts:
            try:
                await attempt()
            except QueueFull:
                continue
            raise AssertionError("a full store took a message")
        self.assertEqual(await self.backend.counts(), before)
        view = snapshot(BOB)
        await self.queue.claim(direct_owner, "example.com", 1, 1)
        owner = await self.own(who=BOB, view=view)
        self.assertEqual(len((await self.queue.recover(owner, view)).waiting), 1)
        first, second, third = await self.queue.claim(owner, "example.com", 5, 1)
        await self.queue.pause(owner, "example.com", 5)
        notice = Notice(an_item(8, "example.net"), b"a notice")
        self.assertEqual(await self.queue.finish(first, False, notice), Settled.DONE)
        self.assertEqual(await self.queue.defer(second, second.item, 1000, None), Settled.DONE)
        self.assertEqual(await self.queue.put_back(third), Settled.DONE)
        await self.queue.release(owner)
        await self.sound()
        await self.backend.empty()

    async def test_tally(self) -> None:
        """The numbers of the metrics agree with what was done."""
        for number in range(4):
            await self.queue.enqueue(an_item(number), b"x", None)
        owner = await self.own()
        claims = await self.queue.claim(owner, "example.com", 2, 1)
        await self.queue.defer(claims[0], claims[0].item, 60_000, None)
        tally = await self.queue.tally(range(PARTITIONS))
        self.assertEqual((tally.waiting, tally.ready, tally.leased, tally.held, tally.bytes), (3, 2, 1, 0, 33))
        self.assertEqual(tally.domains, (("example.com", 3),))


over_all_backends(QueueContract, globals())
