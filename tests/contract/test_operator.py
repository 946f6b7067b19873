"""What operators see and do, over the memory store and every real Redis: each act from each state, what it binds, and what it leaves."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from relaycluster.interfaces import ItemState, Operated, Settled, Wanted
from relaycluster.mail import history, queue_id
from relaycluster.mail.history import Act, Attempt, Spread, Via
from relaycluster.mail.item import Claim, Item, Notice
from relaycluster.policy.cluster import Ownership
from relaycluster.policy.lifecycle import OPERATOR_WORK
from relaycluster.policy.pause import Why
from relaycluster.policy.ring import partition_of
from relaycluster.policy.suspension import Suspensions
from tests.contract.backends import PARTITIONS, over_all_backends
from tests.contract.test_queue import ALICE, BOB, EVERYBODY, an_id, an_item, snapshot

WHO, WHY = "alice@console", "because"


def an_attempt(reply: str = "451 4.7.1 later", at_ms: int = 1, result: str = "deferred") -> Attempt:
    via = Via("mx.example.com", "192.0.2.1:25", "TLSv1.3 TLS_AES_256_GCM_SHA384", "192.0.2.9")
    return Attempt(at_ms, via, "rcpt", result, reply, 0.25, ("r0@example.com",))


class OperatorContract:
    backend: Any
    queue: Any
    assertEqual: Any
    assertTrue: Any
    assertFalse: Any
    assertIn: Any

    async def own(self, domain: str = "example.com", who: int = ALICE, view: Any = EVERYBODY) -> Ownership:
        owner: Ownership = await self.queue.acquire(partition_of(domain, PARTITIONS), who, view)
        return owner

    async def claim_one(self, owner: Ownership, number: int = 100) -> Claim:
        claim: Claim
        (claim,) = await self.queue.claim(owner, "example.com", 5, number)
        return claim

    async def due(self, partition: int) -> list[str]:
        """What the poll of a partition finds."""
        return [found for _, found in await self.queue.due([partition], {})]

    async def state(self, item: Item) -> ItemState | None:
        self.assertEqual(await self.backend.violations(), [])
        found = await self.backend.operator.show(item.id)
        return found[0].state if found else None

    async def act(self, verb: str, item: Item) -> Operated:
        answer: Operated = await getattr(self.backend.operator, verb)(item.id, WHO, WHY)
        self.assertEqual(await self.backend.violations(), [])
        return answer

    async def put(self, where: str, number: int = 1) -> tuple[Item, Ownership]:
        """An item in this state, alone."""
        for each in await self.backend.operator.items(Wanted(), 10):
            await self.backend.operator.hold(each.item.id, WHO, WHY)
            await self.backend.operator.delete(each.item.id, WHO, WHY)
        item, owner = an_item(number), await self.own()
        await self.queue.enqueue(item, b"x", None)
        if where == "scheduled":
            claim = await self.claim_one(owner)
            item = evolve(item, attempts=1, last_reply="451 no")
            await self.queue.defer(claim, item, 60_000, None)
        elif where == "leased":
            await self.claim_one(owner)
        elif where in ("held", "bouncing"):
            await self.act("hold" if where == "held" else "bounce", item)
        elif where == "gone":
            await self.queue.finish(await self.claim_one(owner), True, None)
        return item, owner

    async def test_each_act_from_each_state(self) -> None:
        """The table of docs/design/queue.md: what an act answers, and where the item is then."""
        table = {
            "hold": ("held", "held", "held", "held", Operated.BOUNCING, Operated.UNKNOWN),
            "release": ("ready", "scheduled", Operated.LEASED, "ready", Operated.BOUNCING, Operated.UNKNOWN),
            "bounce": ("bouncing", "bouncing", Operated.LEASED, "bouncing", "bouncing", Operated.UNKNOWN),
            "delete": (None, None, Operated.LEASED, None, None, Operated.UNKNOWN),
            "requeue": ("ready", "ready", Operated.LEASED, Operated.HELD, Operated.BOUNCING, Operated.UNKNOWN),
        }
        states = ("ready", "scheduled", "leased", "held", "bouncing", "gone")
        number = 0
        for verb, results in table.items():
            for before, wanted in zip(states, results, strict=True):
                number += 1
                item, _ = await self.put(before, number)
                if verb == "requeue":
                    shown = await self.backend.operator.show(item.id)
                    if not shown:
                        continue
                    answer = await self.backend.operator.requeue(shown[0], False, WHO, WHY)
                else:
                    answer = await self.act(verb, item)
                after = await self.state(item)
                where = f"{verb} of what is {before}"
                if isinstance(wanted, Operated):
                    self.assertEqual(
                        (answer, after and after.value), (wanted, before if before != "gone" else None), where
                    )
                else:
                    self.assertEqual((answer, after and after.value), (Operated.DONE, wanted), where)

    async def test_a_held_item_is_not_sent(self) -> None:
        """Neither claimed nor counted as waiting until it is released; then it is due at once, and its holders' deaths are forgotten."""
        item, owner = await self.put("scheduled")
        await self.act("hold", item)
        await self.backend.advance(120_000)
        self.assertEqual(await self.queue.claim(owner, "example.com", 5, 200), [])
        self.assertEqual((await self.queue.tally(range(PARTITIONS))).held, 1)
        await self.act("release", item)
        claim = await self.claim_one(owner, 300)
        self.assertEqual(claim.item, item)

    async def test_poison_may_be_tried_again(self) -> None:
        """What killed its holders and was held for that starts anew when it is released: the next death does not hold it."""
        item, owner = await self.put("ready")
        for life in range(5):
            await self.queue.claim(owner, "example.com", 5, 100)
            owner = await self.own(who=BOB + life, view=snapshot(BOB + life))
            await self.queue.recover(owner, snapshot(BOB + life))
        self.assertEqual(await self.state(item), ItemState.HELD)
        await self.act("release", item)
        claim = await self.claim_one(owner, 900)
        self.assertEqual((claim.item.holder_deaths, claim.item.possible_duplicate), (0, True))

    async def test_held_out_of_a_holders_hands(self) -> None:
        """What the holder still delivers is a fact: the item leaves. What it defers or fails changes nothing: the item stays held, marked
        as a possible duplicate."""
        for number, delivers in enumerate((True, False)):
            item = an_item(number)
            await self.queue.enqueue(item, b"x", None)
            claim = await self.claim_one(await self.own())
            await self.act("hold", item)
            self.assertEqual(await self.queue.defer(claim, claim.item, 5, None), Settled.STALE)
            self.assertEqual(await self.queue.put_back(claim), Settled.STALE)
            settled = await self.queue.finish(claim, delivers, None)
            self.assertEqual(settled, Settled.DONE if delivers else Settled.STALE)
            found = await self.backend.operator.show(item.id)
            self.assertEqual([each.item.possible_duplicate for each in found], [] if delivers else [True])

    async def test_deleted_out_of_a_holders_hands(self) -> None:
        """Held, then deleted, then the host refuses it: that is no failure, and nobody is told; what it took is a fact."""
        item = an_item()
        await self.queue.enqueue(item, b"x", None)
        claim = await self.claim_one(await self.own())
        for verb in ("hold", "delete"):
            await self.act(verb, item)
        notice = Notice(an_item(5, "example.net"), b"in vain")
        self.assertEqual(await self.queue.finish(claim, False, notice), Settled.STALE)
        self.assertEqual(list(await self.queue.notices(claim.partition)), [])
        self.assertEqual(await self.queue.finish(claim, True, None), Settled.DONE)
        self.assertEqual(await self.state(item), None)

    async def test_bounced_out_of_a_holders_hands(self) -> None:
        """Held, then bounced: what the former holder still delivers counts as delivered, also while the owner settles the bounce."""
        for number, claimed_before in enumerate((False, True)):
            item, owner = an_item(number), await self.own()
            await self.queue.enqueue(item, b"x", None)
            former = await self.claim_one(owner)
            for verb in ("hold", "bounce"):
                await self.act(verb, item)
            if claimed_before:
                ((claim, _),) = await self.backend.operations.claim_bounces(owner, 5, 500)
                self.assertEqual(await self.queue.finish(former, True, None), Settled.STALE)
                self.assertEqual(await self.queue.finish(claim, False, None), Settled.NOTED)
                self.assertEqual(await self.queue.notes(claim), ("r0@example.com",))
                self.assertEqual(await self.queue.finish(claim, True, None), Settled.DONE)
            else:
                self.assertEqual(await self.queue.finish(former, True, None), Settled.DONE)
                self.assertEqual(await self.backend.operations.claim_bounces(owner, 5, 500), [])
            self.assertEqual(await self.state(item), None)

    async def test_requeue_with_reset(self) -> None:
        """As if it had never been tried; refused when it was attempted since it was looked at."""
        item, owner = await self.put("scheduled")
        (shown,) = await self.backend.operator.show(item.id)
        await self.backend.advance(60_000)
        again = evolve(item, attempts=2)
        await self.queue.defer(await self.claim_one(owner, 200), again, 60_000, None)
        self.assertEqual(await self.backend.operator.requeue(shown, True, WHO, WHY), Operated.CHANGED)
        (shown,) = await self.backend.operator.show(item.id)
        self.assertEqual((shown.state, shown.item), (ItemState.SCHEDULED, again))
        self.assertEqual(await self.backend.operator.requeue(shown, True, WHO, WHY), Operated.DONE)
        claim = await self.claim_one(owner, 300)
        self.assertEqual(claim.item, evolve(again, attempts=0))

    async def test_due_now_is_never_later(self) -> None:
        """Whoever hurries what is due already does not send it to the end of the line: by requeue, with and without reset, flush, and a
        release of what is not held."""
        items, owner = [an_item(9 - number) for number in range(3)], await self.own()
        for item in items:
            await self.queue.enqueue(item, b"x", None)
            await self.backend.advance(1000)
        operator = self.backend.operator
        before = [each.at_ms for item in items for each in await operator.show(item.id)]
        for reset in (False, True):
            (shown,) = await operator.show(items[0].id)
            self.assertEqual(await operator.requeue(shown, reset, WHO, WHY), Operated.DONE)
            self.assertEqual(await self.backend.violations(), [])
        await operator.flush("example.com", WHO, WHY)
        await self.act("release", items[0])
        self.assertEqual([each.at_ms for item in items for each in await operator.show(item.id)], before)
        claims = await self.queue.claim(owner, "example.com", 5, 100)
        self.assertEqual([claim.item for claim in claims], items)

    async def test_bounce(self) -> None:
        """The owner gets it with its reason, under a token of its own, and settles it; nobody sends it meanwhile, also not after the
        owner died with it in hand, or gave it back."""
        item, owner = await self.put("scheduled")
        await self.act("bounce", item)
        self.assertIn(OPERATOR_WORK, await self.due(owner.partition))
        ((claim, reason),) = await self.backend.operations.claim_bounces(owner, 5, 500)
        self.assertEqual((claim.item, claim.content, reason), (item, b"x", WHY))
        self.assertEqual(await self.state(item), ItemState.LEASED)
        await self.queue.put_back(claim)
        self.assertEqual(await self.state(item), ItemState.BOUNCING)
        await self.backend.operations.claim_bounces(owner, 5, 600)
        heir = await self.own(who=BOB, view=snapshot(BOB))
        await self.queue.recover(heir, snapshot(BOB))
        self.assertEqual(await self.state(item), ItemState.BOUNCING)
        await self.backend.advance(120_000)
        self.assertEqual(await self.queue.claim(heir, "example.com", 5, 700), [])
        ((claim, reason),) = await self.backend.operations.claim_bounces(heir, 5, 800)
        self.assertEqual(reason, WHY)
        self.assertEqual(await self.queue.finish(claim, False, None), Settled.DONE)
        self.assertEqual(await self.state(item), None)
        self.assertEqual(await self.queue.finish(claim, False, None), Settled.DONE)

    async def test_delete_takes_the_content_along(self) -> None:
        """Pieces and all; of a message for several domains the content at home stays until its last item is gone."""
        item = an_item(1, chunks=2)
        for number in (1, 2):
            await self.queue.put_chunk(partition_of(item.domain, PARTITIONS), item.id, number, b"x")
        await self.queue.enqueue(item, b"head", None)
        await self.act("delete", item)
        self.assertEqual((await self.backend.counts())["bodies"], 0)
        parts = await self.spread()
        await self.act("delete", parts[0])
        self.assertEqual((await self.backend.counts())["bodies"], 1)
        await self.act("delete", parts[1])
        self.assertEqual(await self.backend.counts(), {"items": 0, "bodies": 0, "waiting": 0, "leased": 0, "done": 4})
        # A repeat of its enqueue, which may still be on its way, changes nothing.
        await self.queue.enqueue(item, b"head", None)
        self.assertEqual((await self.backend.counts())["items"], 0)

    async def spread(self) -> list[Item]:
        home = partition_of("example.com", PARTITIONS)
        message = an_id(50, home)
        items = [
            an_item(50, domain, id=queue_id.item_id(message, number), home=home)
            for number, domain in enumerate(("example.com", "example.org"), 1)
        ]
        await self.queue.enqueue_spread(items, b"for both")
        for item in items:
            await self.queue.enqueue(item, b"", None)
        await self.queue.spread_done(message)
        return items

    async def test_a_message_for_several_domains(self) -> None:
        """Its id leads to all of its items, an item's id to that one."""
        items = await self.spread()
        operator = self.backend.operator
        shown = await operator.show(queue_id.message_id(items[0].id))
        self.assertEqual([each.item for each in shown], items)
        self.assertEqual([each.item for each in await operator.show(items[1].id)], [items[1]])
        self.assertEqual(await operator.show(f"{items[0].id}9"), [])
        await self.act("hold", items[1])
        shown = await operator.show(queue_id.message_id(items[0].id))
        self.assertEqual([each.state for each in shown], [ItemState.READY, ItemState.HELD])

    async def test_flush(self) -> None:
        """All of the domain is due now, also out of a pause; other domains stay as they are."""
        owner = await self.own()
        for number in range(3):
            await self.queue.enqueue(an_item(number), b"x", None)
        for claim in await self.queue.claim(owner, "example.com", 5, 1):
            await self.queue.defer(claim, claim.item, 60_000, None)
        await self.queue.enqueue(an_item(9), b"x", None)
        await self.queue.pause(owner, "example.com", 3_600_000)
        self.assertEqual(await self.backend.operator.flush("example.com", WHO, WHY), 3)
        self.assertEqual(await self.backend.violations(), [])
        state = await self.backend.operator.domain("example.com")
        self.assertEqual((state.waiting, state.ready, state.paused_until_ms), (4, 4, 0))
        self.assertTrue(state.next_ms <= self.queue.now_ms())
        self.assertEqual(await self.backend.operator.flush("example.org", WHO, WHY), 0)

    async def test_each_change_leaves_an_event(self) -> None:
        """What was done is owed to the log from the same instant on, in its order, until the owner has told it; what changed nothing
        leaves none."""
        item, owner = await self.put("ready")
        await self.act("hold", item)
        await self.act("hold", item)
        await self.act("release", item)
        await self.backend.operator.flush("example.com", WHO, WHY)
        await self.act("delete", item)
        await self.act("delete", item)
        found = await self.backend.operations.acts(owner.partition)
        acts = [act for act, _ in found]
        self.assertEqual([act.verb for act in acts], ["hold", "release", "flush", "delete"])
        self.assertEqual({(act.who, act.reason) for act in acts}, {(WHO, WHY)})
        self.assertEqual([act.subject for act in acts], [item.id, item.id, "example.com", item.id])
        self.assertIn(OPERATOR_WORK, await self.due(owner.partition))
        self.assertEqual([act.domain for act in acts], ["", "", "example.com", ""])
        told = self.backend.operations.told
        self.assertTrue(await told(owner, found[:3]))
        self.assertFalse(await told(owner, found[:3]))
        left = await self.backend.operations.acts(owner.partition)
        self.assertEqual([act.verb for act, _ in left], ["delete"])
        heir = await self.own(who=BOB, view=snapshot(BOB))
        self.assertFalse(await told(owner, left))
        self.assertTrue(await told(heir, left))
        self.assertEqual(await self.due(owner.partition), [])

    async def test_a_requeue_keeps_what_is_known(self) -> None:
        """The domain's last reply stays, though it is its only item; its owner is told what to try."""
        item, owner = await self.put("scheduled")
        (shown,) = await self.backend.operator.show(item.id)
        await self.backend.operator.requeue(shown, False, WHO, WHY)
        self.assertEqual(await self.backend.violations(), [])
        self.assertEqual((await self.backend.operator.domain("example.com")).last_reply, "451 no")
        act, _ = (await self.backend.operations.acts(owner.partition))[-1]
        self.assertEqual((act.verb, act.domain), ("requeue", "example.com"))
        tally = await self.queue.tally(range(PARTITIONS))
        self.assertEqual((tally.waiting, tally.ready, tally.domains), (1, 1, (("example.com", 1),)))

    async def test_acts_work_when_full(self) -> None:
        """An operator can empty a full queue."""
        item, owner = await self.put("scheduled")
        await self.backend.fill()
        try:
            self.assertEqual(await self.act("hold", item), Operated.DONE)
            self.assertEqual(await self.act("release", item), Operated.DONE)
            await self.backend.operator.flush("example.com", WHO, WHY)
            self.assertEqual(await self.act("bounce", item), Operated.DONE)
            self.assertEqual(len(await self.backend.operations.claim_bounces(owner, 5, 9)), 1)
            await self.backend.operations.told(owner, await self.backend.operations.acts(owner.partition))
            await self.backend.suspensions.suspend("example.com", 60, WHO, WHY)
        finally:
            await self.backend.empty()

    # History

    async def test_history(self) -> None:
        """Each attempt and each act, in their order, field by field; of a first attempt as of later ones, and after the item has gone. What a
        stale holder or a repeat says does not stand there twice."""
        item, owner = an_item(), await self.own()
        await self.queue.enqueue(item, b"x", None)
        first, second = an_attempt(at_ms=1), an_attempt("250 ok", 3, "delivered")
        packed = history.pack_attempt(item.id, first)
        claim = await self.claim_one(owner)
        later = evolve(item, attempts=1)
        await self.queue.defer(claim, later, 0, None, packed)
        self.assertEqual(await self.queue.defer(claim, later, 0, None, packed), Settled.STALE)
        await self.act("hold", item)
        await self.act("release", item)
        await self.backend.advance(5)
        claim = await self.claim_one(owner, 200)
        packed = history.pack_attempt(item.id, second)
        for _ in range(2):
            self.assertEqual(await self.queue.finish(claim, True, None, packed), Settled.DONE)
        self.assertEqual(await self.backend.violations(), [])
        found = await self.backend.operator.trace(item.id)
        self.assertEqual({name for name, _ in found}, {item.id})
        records = [record for _, record in found]
        self.assertEqual([each for each in records if isinstance(each, Attempt)], [first, second])
        self.assertEqual([each.verb for each in records if isinstance(each, Act)], ["hold", "release"])

    async def test_history_of_the_plain_way(self) -> None:
        """Many items of the same time share their place, and each finds its own."""
        owner = await self.own()
        items = [an_item(number) for number in range(4)]
        for item in items:
            await self.queue.enqueue(item, b"x", None)
        for at, claim in enumerate(await self.queue.claim(owner, "example.com", 5, 1)):
            packed = history.pack_attempt(claim.item.id, an_attempt(f"250 {at}"))
            await self.queue.finish(claim, True, None, packed)
        replies = [(await self.backend.operator.trace(item.id))[0][1].reply for item in items]
        self.assertEqual(replies, ["250 0", "250 1", "250 2", "250 3"])
        self.assertEqual(await self.backend.operator.trace(an_id(77, owner.partition)), [])

    async def test_history_of_a_message_for_several_domains(self) -> None:
        """Its id still leads to all of it when its items are gone, wherever their domains' partitions are."""
        items = await self.spread()
        for item in items:
            (claim,) = await self.queue.claim(await self.own(item.domain), item.domain, 5, 1)
            await self.queue.finish(claim, True, None, history.pack_attempt(item.id, an_attempt(item.domain)))
            await self.queue.leave_home(item)
        found = await self.backend.operator.trace(queue_id.message_id(items[0].id))
        attempts = {(name, record.reply) for name, record in found if isinstance(record, Attempt)}
        self.assertEqual(attempts, {(item.id, item.domain) for item in items})
        (spread,) = [record for _, record in found if isinstance(record, Spread)]
        self.assertEqual([domain for _, _, domain in spread.parts], ["example.com", "example.org"])
        alone = await self.backend.operator.trace(items[1].id)
        self.assertEqual([record.reply for _, record in alone if isinstance(record, Attempt)], ["example.org"])

    async def test_history_is_capped(self) -> None:
        """The oldest leaves, and no more of it than must."""
        owner = await self.own()
        ids = []
        for number in range(8):
            # Far apart: each has a place of its own.
            item = an_item(number, id=an_id(number * 100_000, owner.partition))
            ids.append(item.id)
            await self.queue.enqueue(item, b"x", None)
            packed = history.pack_attempt(item.id, an_attempt("250 " + "x" * 200))
            await self.queue.finish(await self.claim_one(owner, 100 + number), True, None, packed)
            await self.backend.advance(1000)
        everywhere = range(PARTITIONS)
        self.assertEqual(await self.backend.operations.trim_traces(everywhere, 1_000_000), 0)
        freed = await self.backend.operations.trim_traces(everywhere, 1300)
        self.assertTrue(freed > 0)
        self.assertEqual(await self.backend.violations(), [])
        kept = [bool(await self.backend.operator.trace(each)) for each in ids]
        self.assertEqual(kept, sorted(kept))
        self.assertTrue(kept[-1])
        self.assertFalse(kept[0])
        self.assertEqual(await self.backend.operations.trim_traces(everywhere, 1300), 0)

    # Looking

    async def test_lists(self) -> None:
        """By domain, state, class, sender, recipient and age; all that is given must hold; never more than asked for."""
        owner = await self.own()
        for number in range(6):
            await self.queue.enqueue(an_item(number, recipients=1 + number), b"x", None)
        await self.queue.enqueue(an_item(7, "example.org"), b"x", None)
        claims = await self.queue.claim(owner, "example.com", 2, 1)
        await self.queue.defer(claims[0], claims[0].item, 60_000, None)
        await self.act("hold", an_item(5))

        async def ids(limit: int = 100, **wanted: Any) -> list[str]:
            return sorted(each.item.id for each in await self.backend.operator.items(Wanted(**wanted), limit))

        everything = sorted([an_id(n, owner.partition) for n in range(6)] + [an_item(7, "example.org").id])
        self.assertEqual(await ids(), everything)
        self.assertEqual(await ids(domain="example.org"), [an_item(7, "example.org").id])
        self.assertEqual(await ids(states=frozenset({ItemState.HELD})), [an_item(5).id])
        self.assertEqual(await ids(states=frozenset({ItemState.LEASED})), [claims[1].item.id])
        self.assertEqual(await ids(states=frozenset({ItemState.SCHEDULED})), [claims[0].item.id])
        self.assertEqual(await ids(recipient="R3@EXAMPLE"), [an_item(n).id for n in (3, 4, 5)])
        self.assertEqual(await ids(sender="nobody"), [])
        self.assertEqual(await ids(sender="sender@", domain="example.com", recipient="r5@"), [an_item(5).id])
        self.assertEqual(await ids(before_ms=1_600_000_000_000), [])
        self.assertEqual(len(await ids(3)), 3)

    async def test_the_oldest_is_the_one_that_arrived_first(self) -> None:
        """A notice's id has the time of the message that it tells of, days before the notice came to be: what counts is when an item
        arrived, be there one notice alone, or many with older mail behind them."""
        start, day = 1_700_000_000_000, 86_400_000

        async def oldest() -> tuple[int, bool]:
            state = await self.backend.operator.domain("example.com")
            return state.oldest_ms - start, state.oldest_exact

        await self.queue.enqueue(an_item(0, arrived_ms=start + 5 * day), b"x", None)
        self.assertEqual(await oldest(), (5 * day, True))
        for number in range(1, 15):
            await self.queue.enqueue(an_item(number, arrived_ms=start + 5 * day - number), b"x", None)
        self.assertEqual(await oldest(), (5 * day - 14, True))
        for days, late in ((4, 900), (3, 2000), (2, 700)):
            await self.queue.enqueue(an_item(days * day, arrived_ms=start + days * day + late), b"x", None)
        self.assertEqual(await oldest(), (2 * day + 700, True))
        (state,) = await self.backend.operator.domains(5)
        self.assertEqual(state, await self.backend.operator.domain("example.com"))

    async def test_queues_in_numbers(self) -> None:
        """The largest first; what is ready, when the next is due, the oldest arrival, the last reply and when, and the owner."""
        owner = await self.own()
        for domain, count in (("example.com", 3), ("example.org", 2), ("example.net", 1)):
            for number in range(count):
                await self.queue.enqueue(an_item(number, domain), b"x", None)
        claims = await self.queue.claim(owner, "example.com", 2, 1)
        await self.queue.defer(claims[1], evolve(claims[1].item, last_reply="451 4.7.1 dö"), 60_000, None)
        states = await self.backend.operator.domains(2)
        self.assertEqual(
            [(each.domain, each.waiting, each.ready) for each in states], [("example.com", 2, 1), ("example.org", 2, 2)]
        )
        first, second = states
        self.assertEqual((first.last_reply, second.last_reply), ("451 4.7.1 dö", ""))
        self.assertTrue(0 < first.last_reply_ms <= self.queue.now_ms())
        self.assertEqual((first.oldest_ms, first.oldest_exact), (1_700_000_000_000, True))
        self.assertEqual((first.owner, second.owner), (ALICE, 0 if second.partition != first.partition else ALICE))
        self.assertEqual(len(await self.backend.operator.domains(50)), 3)
        nothing = await self.backend.operator.domain("nothing.example")
        self.assertEqual((nothing.waiting, nothing.next_ms, nothing.oldest_ms), (0, 0, 0))

    async def test_a_last_reply_leaves_with_the_last_item(self) -> None:
        """Nothing is kept of domains for which nothing waits."""
        _, owner = await self.put("scheduled")
        self.assertEqual((await self.backend.operator.domain("example.com")).last_reply, "451 no")
        await self.backend.advance(60_000)
        await self.claim_one(owner, 300)
        self.assertEqual((await self.backend.operator.domain("example.com")).last_reply, "")
        self.assertEqual(await self.backend.violations(), [])

    async def test_the_cluster_from_outside(self) -> None:
        """Members with what their leases have left, and the owners; nobody's lease is renewed by looking."""
        from relaycluster.policy.cluster import Member

        member = await self.backend.membership.join(Member(0, "one", "key-1", ("delivery",)))
        await self.queue.acquire(3, member.incarnation, snapshot(member.incarnation))
        state = await self.backend.operator.cluster()
        self.assertEqual(state.snapshot.members, (member,))
        self.assertTrue(0 < state.lease_left_ms[0] <= 10_000)
        self.assertEqual([number for number, owner in enumerate(state.owners) if owner], [3])
        await self.backend.advance(11_000)
        self.assertEqual((await self.backend.operator.cluster()).lease_left_ms in ((0,), ()), True)

    async def test_a_limit_from_outside(self) -> None:
        """Who holds how many connections."""
        view = snapshot(ALICE, BOB)
        await self.backend.throttle.hold("example.com", ALICE, 3, 5, view)
        await self.backend.throttle.hold("example.com", BOB, 3, 5, view)
        state = await self.backend.operator.limit("example.com", 0, 1)
        self.assertEqual(state.connections, ((ALICE, 3), (BOB, 2)))

    # Suspensions

    async def test_a_suspension_binds_the_cluster(self) -> None:
        """One write; each node has it as soon as it sees the version that the beat tells, and it ends by itself."""
        from relaycluster.policy.cluster import Member

        here, there = self.backend.suspensions, self.backend.elsewhere
        changes: list[tuple[Suspensions, Suspensions]] = []
        there.on_change = lambda before, now: changes.append(before.changes(now, self.queue.now_ms()))
        member = await self.backend.membership.join(Member(0, "one", "key-1", ("delivery",)))
        before = (await self.backend.membership.beat(member)).suspensions
        said = await here.suspend("example.com", 60, WHO, WHY)
        self.assertEqual(
            (said.subject, said.who, said.reason, said.until_ms - said.since_ms), ("example.com", WHO, WHY, 60_000)
        )
        self.assertEqual(there.suspended("example.com", "example.com"), None)
        version = (await self.backend.membership.beat(member)).suspensions
        self.assertTrue(version > before)
        await there.see(version)
        self.assertEqual(there.suspended("example.com", "example.com"), said)
        self.assertEqual(there.suspended("example.org", "example.org"), None)
        self.assertEqual([list(begun) for begun, _ in changes], [[said]])
        await there.see(version)
        self.assertEqual(len(changes), 1)
        self.assertEqual(await here.all(), [said])
        await self.backend.advance(60_001)
        self.assertEqual(there.suspended("example.com", "example.com"), None)
        self.assertEqual(await here.all(), [])

    async def test_resume(self) -> None:
        """Before its time, by name; every node hears who ended it. What is not suspended can not be resumed."""
        here, there = self.backend.suspensions, self.backend.elsewhere
        await here.suspend("*.example.com", 0, WHO, WHY)
        await there.see(1)
        self.assertTrue(there.suspended("a.b.example.com", "") is not None)
        self.assertFalse(await here.resume("example.com", WHO, WHY))
        changes: list[Any] = []
        there.on_change = lambda before, now: changes.append(before.changes(now, self.queue.now_ms()))
        self.assertTrue(await here.resume("*.example.com", "bob", "mended"))
        self.assertFalse(await here.resume("*.example.com", "bob", "mended"))
        await there.see(2)
        self.assertEqual(there.suspended("a.b.example.com", ""), None)
        ((begun, ended),) = changes
        self.assertEqual(([*begun], [(each.subject, each.who) for each in ended]), ([], [("*.example.com", "bob")]))

    async def test_whose_word_holds(self) -> None:
        """An operator's replaces what was said; a rule's never shortens it."""
        here = self.backend.suspensions
        await here.suspend("example.com", 600, WHO, WHY)
        kept = await here.suspend("example.com", 60, "rule", "TSS04", at_least=True)
        self.assertEqual((kept.who, kept.until_ms - kept.since_ms), (WHO, 600_000))
        longer = await here.suspend("example.com", 6000, "rule", "TSS04", at_least=True)
        self.assertEqual(longer.who, "rule")
        await here.suspend("example.com", 0, WHO, WHY)
        self.assertEqual((await here.suspend("example.com", 9000, "rule", "", at_least=True)).until_ms, 0)
        shorter = await here.suspend("example.com", 1, WHO, WHY)
        self.assertEqual(shorter.until_ms - shorter.since_ms, 1000)

    async def test_paused_domains(self) -> None:
        """An owner finds what it kept back."""
        owner = await self.own()
        await self.queue.enqueue(an_item(), b"x", None)
        await self.queue.pause(owner, "example.com", 60_000, Why.SUSPENDED, "limit:a:b ö")
        ((partition, domain, pause),) = await self.backend.operations.paused(range(PARTITIONS))
        self.assertEqual((partition, domain), (owner.partition, "example.com"))
        self.assertEqual((pause.why, pause.detail), (Why.SUSPENDED, "limit:a:b ö"))
        self.assertTrue(pause.until_ms > self.queue.now_ms())
        self.assertEqual((await self.backend.operator.domain("example.com")).pause, pause)
        await self.queue.pause(owner, "example.com", 0)
        self.assertEqual((await self.backend.operator.domain("example.com")).pause, None)

    async def test_a_pause_leaves_with_the_last_item(self) -> None:
        """Nothing is kept of domains for which nothing waits."""
        item, owner = await self.put("scheduled")
        await self.queue.pause(owner, "example.com", 60_000)
        await self.act("hold", item)
        self.assertEqual(await self.backend.operations.paused(range(PARTITIONS)), [])
        await self.queue.pause(owner, "example.com", 60_000)
        self.assertEqual(await self.backend.operations.paused(range(PARTITIONS)), [])
        await self.act("release", item)
        self.assertEqual((await self.backend.operator.domain("example.com")).ready, 1)


over_all_backends(OperatorContract, globals())
