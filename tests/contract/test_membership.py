"""The membership's contract: lives and deaths of nodes, over the memory store and every real Redis."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from relaycluster.interfaces import NameTaken
from relaycluster.policy.cluster import Member
from tests.contract.backends import over_all_backends


def a_member(name: str, key: str = "", **changes: Any) -> Member:
    return Member(0, name, key or f"key-of-{name}", ("edge", "delivery"), hostname=f"{name}.example", **changes)


class MembershipContract:
    backend: Any
    assertEqual: Any
    assertTrue: Any
    assertFalse: Any

    async def test_join_and_beat(self) -> None:
        """Each life has a new incarnation, and each beat shows the same cluster."""
        one = await self.backend.membership.join(a_member("one"))
        two = await self.backend.membership.join(a_member("two", weight=2.5, draining=True))
        first, second = [await self.backend.membership.beat(member) for member in (one, two)]
        self.assertEqual(first.members, (one, two))
        self.assertEqual((second.version, second.members), (first.version, first.members))
        self.assertEqual((one.incarnation < two.incarnation < second.next_incarnation), True)

    async def test_a_change_of_a_member_is_a_new_version(self) -> None:
        """When a member begins to drain, everybody sees a newer version; a beat without change is none."""
        one = await self.backend.membership.join(a_member("one"))
        before = await self.backend.membership.beat(one)
        again = await self.backend.membership.beat(one)
        after = await self.backend.membership.beat(evolve(one, draining=True))
        self.assertEqual((before.version, before.version < after.version), (again.version, True))
        self.assertTrue(after.members[0].draining)

    async def test_silence_ends_a_life_for_good(self) -> None:
        """Who does not beat for a lease is dead to all, and cannot come back under the same incarnation."""
        silent = await self.backend.membership.join(a_member("silent"))
        living = await self.backend.membership.join(a_member("living"))
        for _ in range(5):
            await self.backend.advance(2500)
            view = await self.backend.membership.beat(living)
        self.assertEqual(view.members, (living,))
        self.assertTrue(view.is_dead(silent.incarnation))
        self.assertEqual(await self.backend.membership.beat(silent), None)
        reborn = await self.backend.membership.join(a_member("silent"))
        view = await self.backend.membership.beat(reborn)
        self.assertFalse(view.is_dead(reborn.incarnation))

    async def test_restart_under_the_same_name_and_key(self) -> None:
        """The holder of the state directory's lock proves that its former life is over: nobody waits for the lease."""
        former = await self.backend.membership.join(a_member("one"))
        reborn = await self.backend.membership.join(a_member("one"))
        view = await self.backend.membership.beat(reborn)
        self.assertEqual((view.members, view.is_dead(former.incarnation)), ((reborn,), True))

    async def test_a_name_is_taken(self) -> None:
        """Two hosts with one node id: the second is refused, by name, while the first lives, and may come afterwards."""
        first = await self.backend.membership.join(a_member("one"))
        try:
            await self.backend.membership.join(a_member("one", key="of another host"))
        except NameTaken as refusal:
            self.assertTrue("one.example" in str(refusal))
        else:
            raise AssertionError("two nodes share a name")
        await self.backend.membership.leave(first)
        await self.backend.membership.join(a_member("one", key="of another host"))

    async def test_leaving_is_at_once(self) -> None:
        """A member that leaves is dead in the next snapshot."""
        one = await self.backend.membership.join(a_member("one"))
        two = await self.backend.membership.join(a_member("two"))
        await self.backend.membership.leave(one)
        view = await self.backend.membership.beat(two)
        self.assertEqual((view.members, view.is_dead(one.incarnation)), ((two,), True))


class RedisClockContract:
    """What only a real clock can do: jump, and stand still while Redis is away."""

    backend: Any
    assertEqual: Any
    assertTrue: Any

    async def test_an_outage_costs_nobody_its_life(self) -> None:
        """After an hour without Redis the first beat does not expire the others: they have time to beat."""
        one = await self.backend.membership.join(a_member("one"))
        two = await self.backend.membership.join(a_member("two"))
        await self.backend.advance(3_600_000)
        self.assertEqual((await self.backend.membership.beat(one)).members, (one, two))
        self.assertEqual((await self.backend.membership.beat(two)).members, (one, two))

    async def test_a_clock_that_is_set_back(self) -> None:
        """Queue time never runs backwards: the offset makes up for it."""
        one = await self.backend.membership.join(a_member("one"))
        before = await self.backend.membership.beat(one)
        await self.backend.advance(-3_600_000)
        after = await self.backend.membership.beat(one)
        self.assertEqual(before.offset_ms, 0)
        self.assertTrue(3_500_000 < after.offset_ms <= 3_600_000)


over_all_backends(MembershipContract, globals())
over_all_backends(RedisClockContract, globals())
del globals()["RedisClockMemoryTest"]
