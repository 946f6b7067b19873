"""Owning partitions: everything has one claimant, what the dead held comes back first, and nothing stays with nobody."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.interfaces import NotOwner
from relaycluster.node.membership import Heart
from relaycluster.node.partitions import Partitions
from tests.node.world import PARTITIONS, World, a_member, result, run


class Node:
    """A heart and its partitions, wired as the application does it."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.heart = Heart(world.clock, world.membership, a_member(name), 2.5, 7.0)
        self.partitions = Partitions(world.clock, world.queue, name)
        self.acquired: list[int] = []
        self.recovered: list[str] = []
        self.heart.on_snapshot = lambda view: self.partitions.see(view, self.heart.member.incarnation)
        self.heart.on_over = self.partitions.forget
        self.partitions.on_acquired = self.acquired.extend
        self.partitions.on_recovered = lambda waiting, held: self.recovered.extend([*waiting, *held])
        run(self.heart.join())

    @property
    def owned(self) -> set[int]:
        return set(self.partitions.owned)

    def may_claim(self) -> set[int]:
        """The partitions for which the queue would give it items now."""
        if not self.heart.valid():
            return set()
        return {
            number
            for number, owner in self.partitions.owned.items()
            if self.world.cluster.partitions[number].owned_by(owner)
        }

    def die(self) -> None:
        """The process is gone."""
        run(self.heart.leave())
        self.partitions.stop()


ALL = set(range(PARTITIONS))


class PartitionsTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()

    def test_join_leave_death(self) -> None:
        """One node owns all; two share; after one has gone the other owns all again."""
        one = Node(self.world, "one")
        self.world.advance(0.1)
        self.assertEqual(one.owned, ALL)
        two = Node(self.world, "two")
        self.world.advance(6)
        self.assertEqual((one.owned | two.owned, one.owned & two.owned), (ALL, set()))
        self.assertTrue(two.owned)
        two.die()
        self.world.advance(3)
        self.assertEqual(one.owned, ALL)

    def test_draining_gives_everything_up(self) -> None:
        """A node that drains releases at once, and says when it is done; the other has all well within a second of its beat."""
        one, two = Node(self.world, "one"), Node(self.world, "two")
        self.world.advance(6)
        one.heart.set_draining()
        done = one.partitions.all_released()
        self.assertEqual((one.owned, self.successResultOf(done)), (set(), None))
        two.heart.hurry()
        self.world.advance(0.6)
        self.assertEqual(two.owned, ALL)

    def test_recover_comes_before_the_first_claim(self) -> None:
        """What the dead holder had in hand waits again before its partition is announced."""
        one, two = Node(self.world, "one"), Node(self.world, "two")
        self.world.advance(6)
        number = min(one.owned)
        domain = next(
            name for n in range(1000) if (name := f"d{n}.example") and self.world.partition(name).number == number
        )
        item = self.world.item(domain)
        owner = one.partitions.owned[number]
        result(self.world.queue.enqueue(item, b"x", (owner, 1)))
        waiting_at_announcement: list[bool] = []
        two.partitions.on_acquired = lambda numbers: waiting_at_announcement.append(
            number not in numbers or item.id in self.world.cluster.partitions[number].waiting
        )
        one.die()
        self.world.advance(3)
        self.assertIn(number, two.owned)
        self.assertEqual((waiting_at_announcement, two.recovered), ([True], [item.id]))

    def test_lost(self) -> None:
        """NotOwner: the partition goes from the books at once, and is asked for again only through the membership."""
        one = Node(self.world, "one")
        owner = one.partitions.owned[3]
        self.world.cluster.partitions[3].fence += 5  # somebody else had it meanwhile
        lost: list[Any] = []
        one.partitions.on_lost = lost.extend
        self.assertRaises(NotOwner, result, self.world.queue.claim(owner, "x.example", 1, 1))
        one.partitions.lost(owner)
        self.assertEqual(lost, [3])
        self.assertEqual(one.partitions.owned[3].fence, owner.fence + 5)
        one.partitions.lost(owner)  # told late: the new tenure is not touched
        self.assertEqual(one.owned, ALL)

    def test_redis_away_while_acquiring(self) -> None:
        """Trouble is told, and what is missing is asked for again."""
        told: list[BaseException] = []
        self.world.cluster.down = False
        one = Node(self.world, "one")
        one.partitions.on_trouble = told.append
        one.partitions.forget()
        self.world.cluster.down = True
        one.partitions.reconcile()
        self.world.advance(1)
        self.assertTrue(told)
        self.world.cluster.down = False
        self.world.advance(1)
        self.assertEqual(one.owned, ALL)

    def test_a_release_that_failed_is_repeated(self) -> None:
        """Redis is away in the very moment of the hand-over: afterwards the other node gets the partitions, while both live."""
        one = Node(self.world, "one")
        two = Node(self.world, "two")
        self.assertEqual(one.owned, ALL)
        # One has seen the new membership, but cannot release.
        view = result(self.world.membership.beat(one.heart.member))
        self.world.cluster.down = True
        one.partitions.see(view, one.heart.member.incarnation)
        self.world.advance(2)
        self.world.cluster.down = False
        self.world.advance(4)
        self.assertTrue(two.owned)
        self.assertEqual(one.owned | two.owned, ALL)

    def test_answers_to_a_former_life_are_not_ours(self) -> None:
        """The incarnation ends while its acquires are on their way: what they win belongs to the dead, and is acquired anew."""
        one = Node(self.world, "one")
        one.partitions.forget()
        for place in self.world.cluster.partitions:
            place.owner = 0
        self.world.queue.holding.add("acquire")
        one.partitions.reconcile()
        self.world.cluster.members.clear()  # the lease ran out
        one.heart.hurry()
        self.world.clock.advance(0)
        reborn = one.heart.member.incarnation
        self.assertEqual(one.partitions.incarnation, reborn)
        self.world.queue.let_go()
        self.world.advance(2)
        self.assertEqual(
            {(owner.incarnation, number) for number, owner in one.partitions.owned.items()}, {(reborn, n) for n in ALL}
        )
        self.assertEqual(one.may_claim(), ALL)

    @settings(max_examples=20, deadline=None)
    @given(
        st.lists(
            st.tuples(st.sampled_from(("join", "die", "drain", "freeze", "outage", "wait")), st.integers(0, 9)),
            max_size=14,
        )
    )
    def test_one_claimant_at_any_time(self, steps: list[tuple[str, int]]) -> None:
        """Nodes come, go, drain, freeze, and Redis is away: nobody shares a partition, and once it is quiet all are owned."""
        world = World()
        nodes: list[Node] = [Node(world, "n0")]
        made = 1

        def check() -> None:
            claimants = [number for node in nodes for number in node.may_claim()]
            self.assertEqual(len(claimants), len(set(claimants)))

        for operation, which in steps:
            node = nodes[which % len(nodes)]
            if operation == "join" and len(nodes) < 4:
                nodes.append(Node(world, f"n{made}"))
                made += 1
            elif operation == "die" and len(nodes) > 1:
                node.die()
                nodes.remove(node)
            elif operation == "drain" and len(nodes) > 1:
                node.heart.set_draining()
            elif operation == "freeze":
                # It hears nothing for a while, and its beats do not get through.
                world.membership.holding.add("beat")
                for _ in range(which * 10):
                    world.clock.advance(0.1)
                    check()
                world.membership.let_go()
            elif operation == "outage":
                world.cluster.down = True
                for _ in range(which * 10):
                    world.clock.advance(0.1)
                    check()
                world.cluster.down = False
            for _ in range(10 * (1 + which % 4)):
                world.clock.advance(0.1)
                check()
        for node in nodes:
            node.heart.member = evolve(node.heart.member, draining=False)
        world.advance(30, 0.1)
        self.assertEqual(set().union(*(node.may_claim() for node in nodes)), ALL)
        check()
        for node in nodes:
            node.die()
