"""Limits as one process uses them: never above the cluster's maximum, never lost to an answer that did not come."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.interfaces import QueueError
from relaycluster.node.limits import ConnectionLimits, Pace
from relaycluster.node.membership import Heart
from relaycluster.policy.cluster import Snapshot
from relaycluster.policy.rate import Rate
from tests.node.world import World, a_member, result, run, snapshot

MOST = 3


class Process:
    """One process' limits; `incarnation` may change."""

    def __init__(self, world: World, incarnation: int, view: Snapshot | None, most: int = MOST) -> None:
        self.incarnation, self.view, self.most = incarnation, view, most
        self.limits = ConnectionLimits(world.clock, world.throttle, self.membership)
        self.open = 0

    def membership(self) -> tuple[Snapshot, int] | None:
        return (self.view, self.incarnation) if self.view is not None else None

    def reserve(self) -> bool:
        granted: bool = run(self.limits.reserve("big.example", self.most, True))
        self.open += granted
        return granted

    def start(self) -> Deferred[bool]:
        """Reserve one; the answer may come later."""
        return Deferred.fromCoroutine(self.limits.reserve("big.example", self.most, True)).addCallback(self._reserved)

    def _reserved(self, granted: bool) -> bool:
        self.open += granted
        return granted

    def free(self) -> None:
        self.limits.free("big.example")
        self.open -= 1


class Line:
    """One process' way to the store: what it asks arrives later, and so do the answers, each in its order."""

    def __init__(self, throttle: Any) -> None:
        self._throttle = throttle
        self.slow = True
        self._asked: deque[tuple[str, tuple[Any, ...], Deferred[int]]] = deque()
        self._answers: deque[tuple[Deferred[int], Deferred[int]]] = deque()

    def hold(self, *arguments: Any) -> Deferred[int]:
        return self._ask("hold", arguments)

    def share(self, *arguments: Any) -> Deferred[int]:
        return self._ask("share", arguments)

    def _ask(self, name: str, arguments: tuple[Any, ...]) -> Deferred[int]:
        answer: Deferred[int] = Deferred()
        self._asked.append((name, arguments, answer))
        if not self.slow:
            self.catch_up()
        return answer

    def arrive(self) -> None:
        """The oldest question reaches the store."""
        if self._asked:
            name, arguments, answer = self._asked.popleft()
            self._answers.append((answer, getattr(self._throttle, name)(*arguments)))

    def deliver(self, lost: bool = False) -> None:
        """The oldest answer reaches the process, or the news that there will be none."""
        if self._answers:
            waiting, answer = self._answers.popleft()
            if lost:
                answer.addErrback(lambda _: None)
                waiting.errback(QueueError("the answer was lost"))
            else:
                answer.chainDeferred(waiting)

    def catch_up(self) -> None:
        """From now on all is quick."""
        self.slow = False
        while self._asked or self._answers:
            self.arrive()
            self.deliver()


class ConnectionLimitsTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.one, self.two = (Process(self.world, n, snapshot(1, 2)) for n in (1, 2))

    @settings(max_examples=80, deadline=None)
    @given(
        st.lists(st.tuples(st.sampled_from(("reserve", "reserve", "free", "pass", "lose")), st.booleans()), max_size=40)
    )
    def test_never_above_the_maximum(self, steps: list[tuple[str, bool]]) -> None:
        """Two processes take and free as they like, answers get lost: together they never have more; when all are free and it is
        quiet, the cluster counts none."""
        world = World()
        processes = [Process(world, n, snapshot(1, 2)) for n in (1, 2)]
        for operation, which in steps:
            process = processes[which]
            if operation == "reserve":
                process.reserve()
            elif operation == "free" and process.open:
                process.free()
            elif operation == "pass":
                world.clock.advance(0.6)
            elif operation == "lose":
                world.throttle.losing.add("hold")
                self.assertFalse(process.reserve() and process.limits.open_of("big.example") > MOST)
                world.throttle.losing.clear()
            self.assertTrue(sum(each.open for each in processes) <= MOST)
            self.assertEqual([each.limits.open_of("big.example") for each in processes], [p.open for p in processes])
        for process in processes:
            while process.open:
                process.free()
        world.advance(3, 0.5)
        self.assertEqual(world.cluster.slots.get("big.example", {}), {})
        self.assertEqual(world.clock.getDelayedCalls(), [])

    @settings(max_examples=250, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(
                    [
                        "reserve",
                        "reserve",
                        "free",
                        "free",
                        "arrive",
                        "deliver",
                        "deliver",
                        "lose",
                        "give_up",
                        "pass",
                        "pass",
                        "doubt",
                        "prove",
                    ]
                ),
                st.booleans(),
            ),
            max_size=60,
        ),
        st.integers(1, 4),
    )
    def test_questions_and_answers_cross(self, steps: list[tuple[str, bool]], most: int) -> None:
        """Two processes whose questions and answers are on their way while connections come and go, and whose lease is in doubt now and
        then: together they never have more than the maximum. When it is quiet, the cluster counts what is open, whoever wants one
        gets it if there is room, and of what is closed nothing is left."""
        world = World()
        view = snapshot(1, 2)
        processes = [Process(world, n, view, most) for n in (1, 2)]
        lines = [Line(world.throttle) for _ in processes]
        under_way: list[list[Deferred[bool]]] = [[], []]
        for process, line in zip(processes, lines, strict=True):
            process.limits = ConnectionLimits(world.clock, line, process.membership)  # type: ignore[arg-type]
        for operation, which in steps:
            process, line, started = processes[which], lines[which], under_way[which]
            if operation == "reserve":
                started.append(process.start().addErrback(lambda _: False))
            elif operation == "give_up" and started:
                started.pop().cancel()
            elif operation == "free" and process.open:
                process.free()
            elif operation == "arrive":
                line.arrive()
            elif operation in ("deliver", "lose"):
                line.deliver(operation == "lose")
            elif operation == "pass":
                world.clock.advance(0.6)
            elif operation in ("doubt", "prove"):
                process.view = view if operation == "prove" else None
            self.assertTrue(sum(each.open for each in processes) <= most)
        for process, line in zip(processes, lines, strict=True):
            process.view = view
            line.catch_up()
            self.assertTrue(sum(each.open for each in processes) <= most)
        world.advance(8, 0.25)  # wishes are forgotten, and places are not given way any more
        counted = world.cluster.slots.get("big.example", {})
        self.assertEqual(counted, {process.incarnation: process.open for process in processes if process.open})
        self.assertEqual([process.limits.open_of("big.example") for process in processes], [p.open for p in processes])
        while sum(each.open for each in processes) < most:
            self.assertTrue(processes[sum(each.open for each in processes) % 2].reserve())
        for process in processes:
            while process.open:
                process.free()
        world.advance(8, 0.25)
        self.assertEqual(world.cluster.slots.get("big.example", {}), {})
        self.assertEqual([process.limits._held for process in processes], [{}, {}])
        self.assertEqual(world.clock.getDelayedCalls(), [])

    def test_freed_while_one_more_is_asked_for(self) -> None:
        """Three are open, a fourth is asked for, and one ends before the answer: the cluster hears that it is three, and another process
        gets the fourth."""
        one, two = (Process(self.world, n, snapshot(1, 2), 4) for n in (1, 2))
        for _ in range(3):
            one.reserve()
        self.world.throttle.holding.add("hold")
        asking = one.start()
        one.free()
        self.world.clock.advance(0.6)
        self.world.throttle.let_go()
        self.assertTrue(result(asking))
        self.world.advance(2, 0.5)
        self.assertEqual(self.world.cluster.slots["big.example"], {1: 3})
        self.assertTrue(two.reserve())

    def test_given_back_while_one_more_is_asked_for(self) -> None:
        """Three are open, a fourth is asked for, two end and their places would be given back before the answer: what the answer grants is
        not used by both processes."""
        one, two = (Process(self.world, n, snapshot(1, 2), 4) for n in (1, 2))
        for _ in range(3):
            one.reserve()
        self.world.throttle.holding.add("hold")
        asking = one.start()
        one.free()
        one.free()
        self.world.clock.advance(0.6)
        held, self.world.throttle.held = self.world.throttle.held, []
        self.world.throttle.holding.clear()
        for n, (waiting, answer) in enumerate(held):
            answer.chainDeferred(waiting)
            if n == 0:
                self.assertTrue(result(asking))
                for _ in range(3):
                    two.reserve()
                one.start()
                one.start()
            self.assertTrue(one.open + two.open <= 4)
        self.world.advance(6, 0.5)
        self.assertEqual(self.world.cluster.slots["big.example"], {1: 4})

    def test_taken_again_while_it_is_given_back(self) -> None:
        """What the cluster is just told that we do not have any more must be asked for anew."""
        for _ in range(MOST):
            self.one.reserve()
        self.one.free()
        self.world.throttle.holding.add("hold")
        self.world.clock.advance(0.6)
        asking = self.one.start()
        self.assertEqual(self.one.open, MOST - 1)
        self.world.throttle.holding.clear()
        self.assertTrue(self.two.reserve())
        self.world.throttle.let_go()
        self.assertFalse(result(asking))

    def test_some_at_once(self) -> None:
        """Three begin at once and there is room for all: all get one, with two questions."""
        self.world.throttle.holding.add("hold")
        starting = [self.one.start() for _ in range(MOST)]
        self.world.throttle.let_go()
        self.assertEqual([result(each) for each in starting], [True] * MOST)
        self.assertEqual(self.world.throttle.count("hold"), 2)

    def test_the_store_is_away_from_all_who_wait(self) -> None:
        """Who waits for its turn to ask hears it with the one whose question failed."""
        self.world.throttle.holding.add("hold")
        starting = [self.one.start() for _ in range(2)]
        [(waiting, _)] = self.world.throttle.held
        waiting.errback(QueueError("no answer"))
        self.assertEqual([result(each) for each in starting], [False, False])
        self.assertEqual(self.one.limits.open_of("big.example"), 0)

    def test_given_up_while_it_waits(self) -> None:
        """A reservation that waits for its turn to ask is given up: the next question is not about it."""
        self.world.throttle.holding.add("hold")
        first, second = self.one.start(), self.one.start()
        second.addErrback(lambda _: False)
        second.cancel()
        self.world.throttle.let_go()
        self.assertEqual((result(first), result(second)), (True, False))
        self.assertEqual((self.world.cluster.slots["big.example"], self.world.throttle.count("hold")), ({1: 1}, 1))

    def test_nothing_is_left_of_a_refusal(self) -> None:
        """Destinations that had no place for us are forgotten, as those are whose connections ended."""
        for n in range(10):
            self.assertTrue(run(self.two.limits.reserve(f"d{n}.example", 1)))
            self.assertFalse(run(self.one.limits.reserve(f"d{n}.example", 1)))
        self.world.advance(2, 0.5)
        self.assertEqual(self.one.limits._held, {})

    def test_what_the_dead_held_is_free(self) -> None:
        """A process dies with all connections: as soon as the other sees it, it gets them."""
        self.assertEqual([self.one.reserve() for _ in range(MOST)], [True] * MOST)
        self.assertFalse(self.two.reserve())
        self.two.view = snapshot(2)
        self.assertEqual([self.two.reserve() for _ in range(MOST)], [True] * MOST)

    def test_a_freed_place_is_kept_for_a_moment_and_then_given_back(self) -> None:
        """The next connection of a busy process costs no question; an idle one's place is the others'."""
        for _ in range(MOST):
            self.one.reserve()
        asked = self.world.throttle.count("hold")
        self.one.free()
        self.assertTrue(self.one.reserve())
        self.assertEqual(self.world.throttle.count("hold"), asked)
        self.one.free()
        self.assertFalse(self.two.reserve())
        self.world.clock.advance(0.6)
        self.assertTrue(self.two.reserve())

    def test_renew(self) -> None:
        """Under a new incarnation what is held is said again; what the others took meanwhile is not taken from them."""
        self.one.reserve()
        self.one.reserve()
        self.one.incarnation, self.one.view = 3, snapshot(2, 3)
        self.two.view = snapshot(2, 3)
        self.assertEqual([self.two.reserve() for _ in range(MOST)], [True] * MOST)  # ours are the dead's
        self.one.limits.see(3)
        self.world.clock.advance(0)
        self.one.free()
        self.assertFalse(self.one.reserve())
        self.world.clock.advance(0.6)
        self.assertEqual(self.world.cluster.slots["big.example"], {2: MOST})

    def test_surplus(self) -> None:
        """Under a new incarnation we hold more than is left for us: an idle connection ends at once, others when they are free, until it
        fits."""
        idle: list[str] = []
        self.one.limits.on_surplus = idle.append  # there is none
        self.one.reserve()
        self.one.reserve()
        self.assertFalse(self.one.limits.is_surplus("big.example"))
        self.one.incarnation, self.one.view = 3, snapshot(2, 3)
        self.two.view = snapshot(2, 3)
        self.assertEqual([self.two.reserve() for _ in range(MOST - 1)], [True] * (MOST - 1))
        self.one.limits.see(3)
        self.world.clock.advance(0)
        self.assertEqual(idle, ["big.example"])
        self.assertTrue(self.one.limits.is_surplus("big.example"))
        self.one.free()
        self.assertFalse(self.one.limits.is_surplus("big.example"))

    def test_renew_says_it(self) -> None:
        """…and where there is room, the cluster counts them under the new number."""
        self.one.reserve()
        self.one.incarnation, self.one.view = 3, snapshot(2, 3)
        self.one.limits.see(3)
        self.world.clock.advance(0)
        self.assertEqual(self.world.cluster.slots["big.example"][3], 1)

    def test_a_new_life(self) -> None:
        """The lease ran out, and joining takes a while. Nothing is said under the old number, or granted to it; when the cluster has shown
        itself to the new one, it counts what stands."""
        world = self.world
        heart = Heart(world.clock, world.membership, a_member("n1"), 1.0, 3.0)  # type: ignore[arg-type]
        one = Process(world, 0, None)

        def membership() -> tuple[Snapshot, int] | None:
            return (heart.snapshot, heart.member.incarnation) if heart.snapshot is not None and heart.valid() else None

        one.limits = ConnectionLimits(world.clock, world.throttle, membership)  # type: ignore[arg-type]
        heart.on_snapshot = lambda _snapshot: one.limits.see(heart.member.incarnation)
        self.assertFalse(one.reserve())
        run(heart.join())
        first = heart.member.incarnation
        self.assertEqual([one.reserve() for _ in range(MOST - 1)], [True] * (MOST - 1))
        one.free()
        world.throttle.holding.add("hold")
        asked = Deferred.fromCoroutine(one.limits.reserve("big.example", MOST))  # its old place: granted already
        asking = Deferred.fromCoroutine(one.limits.reserve("big.example", MOST))
        world.membership.holding.add("join")
        result(world.membership._store.leave(heart.member))  # the cluster takes us for dead
        heart.hurry()
        self.assertFalse(heart.valid())
        self.assertFalse(one.reserve())
        world.throttle.let_go()
        self.assertEqual((result(asked), result(asking)), (True, False))
        world.clock.advance(0.6)
        self.assertEqual(world.throttle.count("hold"), 3)
        world.membership.let_go()
        world.advance(3, 0.5)
        second = heart.member.incarnation
        self.assertNotEqual(first, second)
        self.assertEqual(world.cluster.slots["big.example"][second], 2)

    def test_joined_anew_while_the_cluster_was_asked(self) -> None:
        """The answer is about a life that is over: it is asked again."""
        for _ in range(MOST - 1):
            self.two.reserve()
        self.world.throttle.holding.add("hold")
        asking = Deferred.fromCoroutine(self.one.limits.reserve("big.example", MOST))
        self.one.incarnation, self.one.view = 3, snapshot(2, 3)
        self.world.throttle.let_go()
        self.assertTrue(result(asking))
        self.world.clock.advance(0)
        self.assertEqual(self.world.cluster.slots["big.example"], {2: MOST - 1, 3: 1})

    def test_fewer_connections_than_nodes(self) -> None:
        """One connection and two nodes with mail, or two and three: each node has it for a good part of the time, never more
        than there are, and whoever's turn it is need not wait for long."""
        for nodes, most in ((2, 1), (3, 2)):
            world = World()
            processes = [Process(world, n, snapshot(*range(1, nodes + 1)), most) for n in range(1, nodes + 1)]
            had = [0] * nodes
            unused = 0
            for n in range(1200):
                for which, process in enumerate(processes):
                    if n % 5 == 0 and process.open and process.limits.is_surplus("big.example"):
                        process.free()  # after a few messages
                        process.reserve()  # it would have the next at once
                    elif process.open or n % 10 == 3 * which:  # who has none tries once a second
                        process.reserve()
                    had[which] += process.open > 0
                world.clock.advance(0.1)
                self.assertTrue(sum(each.open for each in processes) <= most)
                unused += most - sum(each.open for each in processes)
            self.assertTrue(min(had) >= 1200 * most / nodes / 2, had)
            self.assertTrue(unused <= 1200 * most / 2, unused)

    def test_a_share_that_comes_late(self) -> None:
        """The connection ended while the cluster was asked for our share, which is none: we may have another one later."""
        self.one.most = self.two.most = 1
        self.one.reserve()
        self.two.reserve()
        self.world.throttle.holding.add("share")
        self.world.clock.advance(1)
        self.world.clock.advance(0.9)
        self.one.free()
        self.world.clock.advance(0.2)
        self.world.throttle.let_go()
        self.world.advance(5, 0.5)
        self.assertTrue(self.one.reserve())

    def test_a_share_of_none_ends_also_after_a_doubt(self) -> None:
        """Our share is none, the lease is in doubt when it would be looked at again, and the connection ends: we do not ask for another
        before the others had their turn, and then we may have one."""
        self.one.most = self.two.most = 1
        self.one.reserve()
        self.two.reserve()
        self.world.clock.advance(1.05)
        self.assertEqual(self.one.limits.shares, {"big.example": 0})
        view, self.one.view = self.one.view, None
        self.world.clock.advance(1.05)
        self.one.view = view
        self.one.free()
        self.world.advance(1.4, 0.1)
        self.assertFalse(self.one.reserve())
        self.world.advance(0.2, 0.1)
        self.assertTrue(self.one.reserve())

    def test_a_share_of_what_is_not_shared_any_more(self) -> None:
        """The operator gave the limit to one domain alone while our share was asked for: the answer does not bind what nobody looks at."""
        self.one.most = self.two.most = 1
        self.one.reserve()
        self.two.reserve()
        self.world.throttle.holding.add("share")
        self.world.clock.advance(1)
        self.one.free()
        self.world.clock.advance(1)
        self.assertTrue(run(self.one.limits.reserve("big.example", 1)))
        self.world.throttle.let_go()
        self.one.free()
        self.world.advance(2, 0.5)
        self.assertTrue(run(self.one.limits.reserve("big.example", 1)))

    def test_shares_leave_nobody_out(self) -> None:
        """Four connections, two nodes that hold them all, a third that wishes: all four are used, each node has one."""
        processes = [Process(self.world, n, snapshot(1, 2, 3), 4) for n in (1, 2, 3)]
        for process in processes[:2]:
            self.assertEqual([process.reserve(), process.reserve()], [True, True])
        for _ in range(100):
            for process in processes:
                while process.limits.is_surplus("big.example"):
                    process.free()
                process.reserve()
            self.world.clock.advance(0.1)
        self.assertEqual(sum(each.open for each in processes), 4)
        self.assertTrue(all(each.open for each in processes))

    def test_two_at_once(self) -> None:
        """Two reservations on their way for one place: one gets it."""
        self.two.reserve()
        self.two.reserve()
        self.world.throttle.holding.add("hold")
        both = [Deferred.fromCoroutine(self.one.limits.reserve("big.example", MOST)) for _ in range(2)]
        self.world.throttle.let_go()
        self.assertEqual(sorted(result(each) for each in both), [False, True])
        self.assertEqual(self.one.limits.open_of("big.example"), 1)

    def test_a_lost_answer_leaves_no_place_behind(self) -> None:
        """The cluster counted the connection, and we did not hear of it: it is told that there is none."""
        self.world.throttle.losing.add("hold")
        self.assertFalse(self.one.reserve())
        self.world.throttle.losing.clear()
        self.world.advance(3, 0.5)
        self.assertEqual(self.world.cluster.slots.get("big.example", {}), {})

    def test_stop(self) -> None:
        """No timer is left."""
        self.one.reserve()
        self.one.free()
        self.one.limits.stop()
        self.assertEqual(self.world.clock.getDelayedCalls(), [])


class PaceTest(SynchronousTestCase):
    def test_slots_are_times_of_our_clock(self) -> None:
        """At 50/s: five slots a fifth of a tenth apart, beginning now; then: ask again later."""
        world = World()
        world.clock.advance(1000)
        pace = Pace(world.clock, world.throttle, "slow.example", Rate.of(50))
        slots, retry_seconds = result(pace.take(5))
        self.assertEqual([round(slot - 1000, 6) for slot in slots], [0, 0.02, 0.04, 0.06, 0.08])
        slots, retry_seconds = result(pace.take(5))
        self.assertEqual((len(slots), retry_seconds > 0), (1, True))

    def test_the_rate_holds_over_two_processes(self) -> None:
        """Whatever two processes ask for, in no second are there more slots than the rate and its burst allow."""
        world = World()
        paces = [Pace(world.clock, world.throttle, "slow.example", Rate.of(20)) for _ in range(2)]
        slots: list[float] = []
        for n in range(300):
            paces[n % 2].take(7).addCallback(lambda answer: slots.extend(answer[0]))
            world.clock.advance(0.03)
        slots.sort()
        for at in slots:
            self.assertTrue(sum(at <= other < at + 1 for other in slots) <= 21)
        self.assertTrue(len(slots) >= 8.9 * 20)

    def test_lanes_of_one_limit_take_turns(self) -> None:
        """Ten lanes want as much as they can get of 50/s: all get the same, but for the slots that were there before the line was; and
        the cluster is asked some twenty times a second, not twenty times for each."""
        world = World()
        pace = Pace(world.clock, world.throttle, "provider", Rate.of(50))
        got = dict.fromkeys(range(10), 0)

        def take(lane: int) -> None:
            pace.take(40).addCallback(taken, lane)

        def taken(answer: tuple[list[float], float], lane: int) -> None:
            got[lane] += len(answer[0])
            world.clock.callLater(answer[1], take, lane)

        for lane in got:
            take(lane)
        world.advance(10, 0.005)
        self.assertTrue(sum(got.values()) >= 0.95 * 500, got)
        self.assertTrue(max(got.values()) - min(got.values()) <= 6, got)
        self.assertTrue(world.throttle.count("take") <= 10 * 30, world.throttle.count("take"))

    def test_a_share_of_the_rate(self) -> None:
        """While the provider wants less of us, less is taken."""
        world = World()
        pace = Pace(world.clock, world.throttle, "provider", Rate.of(100), lambda _now: 0.25)
        slots: list[float] = []
        for _ in range(200):
            pace.take(40).addCallback(lambda answer: slots.extend(answer[0]))
            world.clock.advance(0.02)
        self.assertTrue(0.9 * 100 <= len(slots) <= 105, len(slots))

    def test_a_long_wait_is_not_spent_in_line(self) -> None:
        """One in a minute: whoever comes second is told when to come again."""
        world = World()
        pace = Pace(world.clock, world.throttle, "slow.example", Rate.of(1, 60))
        self.assertEqual(len(result(pace.take(5))[0]), 1)
        slots, retry_seconds = result(pace.take(5))
        self.assertEqual((slots, 50 < retry_seconds < 61), ([], True))

    def test_the_store_is_away(self) -> None:
        """All in line hear it, and the next question is asked."""
        world = World()
        pace = Pace(world.clock, world.throttle, "slow.example", Rate.of(50))
        world.cluster.down = True
        self.assertRaises(QueueError, result, pace.take(1))
        world.cluster.down = False
        self.assertEqual(len(result(pace.take(1))[0]), 1)
