"""Reading the queue while it moves, and items that this release can not read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import gatherResults

from relaycluster.interfaces import ItemState, Operated, Shown, Wanted
from relaycluster.mail.item import Item
from relaycluster.policy.cluster import Ownership
from relaycluster.policy.ring import partition_of
from relaycluster.store.redis import codec, keys
from relaycluster.store.redis.items import PAGE
from tests.contract.backends import PARTITIONS, ContractTestCase
from tests.contract.test_queue import ALICE, EVERYBODY, an_item

WAITING = frozenset({ItemState.READY, ItemState.SCHEDULED})


class ItemsTest(ContractTestCase):
    major = 6
    timeout = 60

    async def own(self, domain: str = "example.com") -> Ownership:
        owner: Ownership = await self.queue.acquire(partition_of(domain, PARTITIONS), ALICE, EVERYBODY)
        return owner

    async def fill(self, count: int, *domains: str) -> list[Item]:
        items = [an_item(number, domain) for domain in domains for number in range(count)]
        await gatherResults([self.queue.enqueue(item, b"x", None) for item in items])
        return items

    async def read(self, wanted: Wanted, besides: Sequence[str] = ()) -> list[str]:
        return [each.item.id async for page in self.backend.operator.pages(wanted, besides) for each in page]

    async def test_what_leaves_moves_nobody(self) -> None:
        """A node delivers from the front of a long queue while it is read: what stays is seen all the same, and once."""
        await self.fill(3 * PAGE, "example.com")
        owner, seen, number = await self.own(), [], 64
        async for page in self.backend.operator.pages(Wanted(domain="example.com", states=WAITING)):
            seen += [each.item.id for each in page]
            for claim in await self.queue.claim(owner, "example.com", 40, number):
                await self.queue.finish(claim, True, None)
            number += 64
        left = await self.read(Wanted(domain="example.com"))
        self.assertTrue(0 < len(left) < 3 * PAGE - 40)
        self.assertEqual(set(left) - set(seen), set())
        self.assertEqual(len(seen), len(set(seen)))

    async def test_what_is_claimed_meanwhile_comes_once(self) -> None:
        """It was seen where it waited; so it is not seen again among those in hand."""
        await self.fill(PAGE + 50, "example.com")
        owner, seen = await self.own(), []
        async for page in self.backend.operator.pages(Wanted(domain="example.com")):
            if not seen:
                await self.queue.claim(owner, "example.com", 90, 64)
            seen += page
        self.assertEqual(len({each.item.id for each in seen}), PAGE + 50)
        self.assertEqual(len(seen), PAGE + 50)

    async def test_many_of_one_time(self) -> None:
        """A flush makes hundreds due at the same instant; pages of them go on all the same."""
        items = await self.fill(2 * PAGE + 50, "example.com")
        owner = await self.own()
        claims = await self.queue.claim(owner, "example.com", len(items), 64)
        await gatherResults([self.queue.defer(each, each.item, 60_000, None) for each in claims])
        await self.backend.operator.flush("example.com", "a", "")
        tag = keys.partition_tag(owner.partition)
        due = keys.key(tag, "DUE", b"1:example.com")
        times = (await self.backend.redis.request("ZRANGE", due, 0, -1, "WITHSCORES"))[1::2]
        self.assertTrue(max(times.count(each) for each in times) > PAGE)
        self.assertEqual(sorted(await self.read(Wanted(states=WAITING))), sorted(item.id for item in items))

    async def test_all_states_of_all_domains(self) -> None:
        """In the hands of a node, held and bounced: more of each than a page, and without those that are known already."""
        names = ("example.com", "example.org", "example.net")
        items = await self.fill(PAGE + 20, *names)
        first, second, _ = names
        await self.queue.claim(await self.own(first), first, len(items), 64)
        for item in items:
            if item.domain == second:
                await self.backend.operator.hold(item.id, "a", "")
        everything = sorted(item.id for item in items)
        self.assertEqual(sorted(await self.read(Wanted())), everything)
        self.assertEqual(sorted(await self.read(Wanted(), everything[:500])), everything[500:])
        held = await self.read(Wanted(states=frozenset({ItemState.HELD})))
        self.assertEqual(len(held), PAGE + 20)
        limited = await self.backend.operator.items(Wanted(states=frozenset({ItemState.HELD})), 10)
        self.assertEqual([each.item.id for each in limited], held[:10])

    async def test_one_that_moves_between_two_looks(self) -> None:
        """It is claimed just then: it is shown in the hands of its holder, and not missed."""
        (item,) = await self.fill(1, "example.com")
        owner = await self.own()
        ask, asked = self.backend.redis.request_all, []

        async def request_all(commands: Any, operation: str) -> Any:
            answers = await ask(commands, operation)
            asked.append(operation)
            if asked.count("show") == 1:
                asked.append("show")
                await self.queue.claim(owner, "example.com", 1, 64)
            return answers

        self.backend.redis.request_all = request_all
        (shown,) = await self.backend.operator.show(item.id)
        self.assertEqual(shown.state, ItemState.LEASED)

    # What this release can not read

    async def unreadable(self, number: int) -> Item:
        """An item of a later release, as a node that could not read it left it."""
        item = an_item(number)
        await self.queue.enqueue(item, b"x", None)
        owner = await self.own()
        name = keys.key(keys.partition_tag(owner.partition), "ITEM", item.id.encode())
        await self.backend.redis.request("SETRANGE", name, 0, bytes([codec.VERSION + 1]))
        self.assertEqual(await self.queue.claim(owner, "example.com", 5, 64 * number), [])
        return item

    async def shown(self) -> Shown:
        (shown,) = await self.backend.operator.items(Wanted(states=frozenset({ItemState.HELD})), 10)
        return shown

    async def test_what_can_not_be_read_is_seen(self) -> None:
        """With all that its head tells, and why; it is never found by what nobody can read of it."""
        item = await self.unreadable(1)
        shown = await self.shown()
        self.assertEqual(
            (shown.item.id, shown.item.domain, shown.item.size, shown.state),
            (item.id, item.domain, item.size, ItemState.HELD),
        )
        self.assertIn("format version", shown.unreadable)
        self.assertEqual(await self.backend.operator.show(item.id), [shown])
        self.assertEqual(await self.read(Wanted(domain="example.com")), [item.id])
        for wanted in (
            Wanted(sender="<>"),
            Wanted(sender="sender"),
            Wanted(recipient="r0"),
            Wanted(domain="a.example"),
        ):
            self.assertEqual(await self.read(wanted), [])

    async def test_what_can_not_be_read_is_operated(self) -> None:
        """By its id: released, for a node that can read it; or deleted. Its attempts can not be forgotten."""
        item = await self.unreadable(1)
        operator = self.backend.operator
        self.assertEqual(
            await operator.requeue(await self.shown(), reset=True, who="a", reason=""), Operated.UNREADABLE
        )
        self.assertEqual(await operator.release(item.id, "a", ""), Operated.DONE)
        self.assertEqual(await self.read(Wanted(states=WAITING)), [item.id])
        self.assertEqual(await operator.delete(item.id, "a", ""), Operated.DONE)
        self.assertEqual(await self.read(Wanted()), [])
        self.assertEqual(await self.backend.violations(), [])

    async def test_even_rubbish(self) -> None:
        """Whatever the octets are: shown, and deleted."""
        for number, rubbish in enumerate(
            (b"", b"\x01", b"\xff" * 5, b"\x01\x00\x00\x09\x0bexample.com\x00\x00\x00\x01\xc1"), 1
        ):
            item = await self.unreadable(number)
            tag = keys.partition_tag(partition_of("example.com", PARTITIONS))
            await self.backend.redis.request("SET", keys.key(tag, "ITEM", item.id.encode()), rubbish)
            self.assertTrue((await self.shown()).unreadable)
            self.assertEqual(await self.backend.operator.delete(item.id, "a", ""), Operated.DONE)
            self.assertEqual(await self.read(Wanted()), [])
