"""A node's life: how long it trusts a beat, what ends it, and how it begins again."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.interfaces import NameTaken
from relaycluster.node.membership import Heart
from tests.node.world import World, a_member, run

BEAT, TRUSTED = 2.5, 7.0


class HeartTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.heart = self.a_heart("one")

    def a_heart(self, name: str) -> Heart:
        heart = Heart(self.world.clock, self.world.membership, a_member(name), BEAT, TRUSTED)
        self.troubles: list[BaseException] = []
        heart.on_trouble = self.troubles.append
        return heart

    def test_the_lease_counts_from_sending(self) -> None:
        """An answer that takes three seconds is worth three seconds less."""
        run(self.heart.join())
        self.world.membership.holding.add("beat")
        self.world.clock.advance(BEAT)
        sent = self.world.clock.seconds()
        self.world.clock.advance(3)
        self.world.membership.let_go()
        self.world.membership.holding.add("beat")
        self.world.clock.advance(sent + TRUSTED - 0.01 - self.world.clock.seconds())
        self.assertTrue(self.heart.valid())
        self.world.clock.advance(0.02)
        self.assertFalse(self.heart.valid())

    def test_never_valid_before_the_first_beat(self) -> None:
        """A node that has not joined may do nothing."""
        self.assertFalse(self.heart.valid())
        self.world.membership.holding.add("join")
        Deferred.fromCoroutine(self.heart.join())
        self.assertFalse(self.heart.valid())

    def test_beats_keep_it_alive(self) -> None:
        """For a minute, at every instant, the lease is proven, and the cluster counts one member."""
        run(self.heart.join())
        for _ in range(600):
            self.world.clock.advance(0.1)
            self.assertTrue(self.heart.valid())
        self.assertEqual(list(self.world.cluster.members), [self.heart.member.incarnation])

    def test_trouble_is_tried_again(self) -> None:
        """Redis is away for five seconds: soon after it is back the lease is proven."""
        run(self.heart.join())
        self.world.cluster.down = True
        self.world.advance(8)
        self.assertFalse(self.heart.valid())
        self.assertTrue(self.troubles)
        self.world.cluster.down = False
        self.world.advance(0.3)
        self.assertTrue(self.heart.valid())

    def test_over(self) -> None:
        """A life that ended is followed by another; in between it is told, and nothing is valid."""
        run(self.heart.join())
        first = self.heart.member.incarnation
        told: list[bool] = []
        settled: Deferred[None] = Deferred()

        def over() -> Deferred[None]:
            told.append(self.heart.valid())
            return settled

        self.heart.on_over = over
        self.world.cluster.down = True
        self.world.advance(11)
        self.world.cluster.down = False
        self.world.advance(0.5)
        self.assertEqual((told, self.heart.valid(), self.heart.member.incarnation), ([False], False, first))
        settled.callback(None)
        self.world.advance(0.1)
        self.assertTrue(self.heart.valid())
        self.assertTrue(self.heart.member.incarnation > first)

    def test_hurry_coalesces(self) -> None:
        """Many changes while a beat is on its way cause one more beat, and the interval goes on."""
        run(self.heart.join())
        self.world.membership.holding.add("beat")
        before = self.world.membership.count("beat")
        for _ in range(10):
            self.heart.hurry()
        self.assertEqual(self.world.membership.count("beat"), before + 1)
        self.world.membership.let_go()
        self.world.advance(0.1)
        self.assertEqual(self.world.membership.count("beat"), before + 2)
        self.assertEqual(len(self.world.clock.getDelayedCalls()), 1)

    def test_draining_is_told_at_once(self) -> None:
        """The cluster sees it without waiting for the interval."""
        run(self.heart.join())
        self.heart.set_draining()
        ((member, _),) = self.world.cluster.members.values()
        self.assertTrue(member.draining)

    def test_leave(self) -> None:
        """Gone at once, no timer left, also when Redis cannot be told."""
        for down in (False, True):
            heart = self.a_heart(f"leaver {down}")
            run(heart.join())
            self.world.cluster.down = down
            run(heart.leave())
            self.assertFalse(heart.valid())
            self.assertEqual(self.world.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.troubles), 1)

    def test_an_answer_after_leaving_changes_nothing(self) -> None:
        """A beat that was on its way while the node left does not make its lease good again, nor bring the node back."""
        for ended in (False, True):
            heart = self.a_heart(f"leaver {ended}")
            run(heart.join())
            seen: list[Any] = []
            heart.on_snapshot = seen.append
            if ended:
                self.world.cluster.members.clear()
            self.world.membership.holding.add("beat")
            heart.hurry()
            run(heart.leave())
            self.world.membership.let_go()
            self.world.advance(1)
            self.assertEqual((heart.valid(), seen), (False, []))
            self.assertEqual((dict(self.world.cluster.members), self.world.clock.getDelayedCalls()), ({}, []))

    def test_a_name_that_is_taken(self) -> None:
        """Two hosts with one name: the second does not start."""
        run(self.heart.join())
        other = Heart(self.world.clock, self.world.membership, a_member("two"), BEAT, TRUSTED)
        other.member = type(other.member)(0, "one", "another key", ("edge",))
        self.assertRaises(NameTaken, run, other.join())
        self.assertFalse(other.valid())
