"""How a lane comes to its claims: ahead of its connections, not one by one, and never more than the process can carry."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from relaycluster.node.hands import Hands
from tests.node.lanes import Node
from tests.node.world import World


class ClaimingTest(SynchronousTestCase):
    def test_ahead_of_all_connections(self) -> None:
        """All connections that are allowed carry mail: what they carry next is in hand, and was not asked for one by one."""
        node = Node(connections=4)
        node.at_once = node.connection
        node.queue(200)
        node.lane.wake()
        while len(node.busy) < 4:
            node.busy[0].answer()
        sent, asked = len(node.settled), node.world.queue.count("claim")
        fewest = 4
        while len(node.settled) < 180:
            node.busy[0].answer()
            fewest = min(fewest, len(node.lane.waiting))
            self.assertLessEqual(node.lane.in_hand, 2 * 4)
        self.assertGreater(fewest, 0)
        self.assertLessEqual(node.world.queue.count("claim") - asked, (len(node.settled) - sent) / 2 + 1)

    def test_many_domains_and_few_places(self) -> None:
        """Hundreds of domains are due, and the process has ten connections: few items are in its hands, all domains come in turn, and
        no place stays empty."""
        domains = tuple(f"d{n}.example" for n in range(300))
        node = Node(domains)
        node.pool._most = 10
        node.at_once = node.connection
        for domain in domains:
            node.queue(3, domain)
        for lane in node.lanes:
            lane.wake()
        most = 0
        for _ in range(900):
            node.world.advance(0.05)
            most = max(most, sum(lane.in_hand for lane in node.lanes))
            if len(node.done()) < 850:
                self.assertEqual(len(node.busy), 10)
            for connection in sorted(node.busy, key=lambda each: each.sent[-1][2])[:3]:
                connection.answer()
        self.assertEqual(len(node.done()), 900)
        self.assertLessEqual(most, 50)

    def test_answers_that_take_a_moment(self) -> None:
        """Claims whose answers are on their way count: a thousand lanes that are woken at once do not all ask."""
        domains = tuple(f"d{n}.example" for n in range(100))
        node = Node(domains)
        node.hands.most = 20
        node.world.queue.holding.add("claim")
        for domain in domains:
            node.queue(2, domain)
        for lane in node.lanes:
            lane.wake()
        self.assertEqual(node.world.queue.count("claim"), 10)
        node.world.queue.let_go()
        for _ in range(300):
            node.world.advance(0.05)
            node.work_off()
        self.assertEqual((len(node.done()), node.hands.asked, node.hands.held), (200, 0, set()))

    def test_claims_that_bring_nothing(self) -> None:
        """Another took the items meanwhile, or the queue is away: those who stand in line are told all the same."""
        domains = ("a.example", "b.example")
        node = Node(domains)
        node.hands.most = 1
        node.queue(1, "b.example")
        node.world.queue.holding.add("claim")
        for lane in node.lanes:
            lane.wake()
        self.assertEqual(node.world.queue.count("claim"), 1)
        node.world.queue.let_go()
        node.world.advance(0.1)
        node.work_off()
        self.assertEqual(len(node.done()), 1)

    def test_a_lane_with_a_connection_goes_on(self) -> None:
        """However much is in hand elsewhere: its connections say how much it claims."""
        node = Node(connections=1)
        node.queue(20)
        node.lane.wake()
        connection = node.opened()
        node.hands.most = 0
        while connection.busy:
            connection.answer()
        self.assertEqual(len(node.done()), 20)
        node.queue(1)
        self.assertFalse(node.lane.has_room())


class HandsTest(SynchronousTestCase):
    def test_the_line(self) -> None:
        """Who came first begins first; each claim that is done lets two of them; who began stands in line no more."""
        world = World()
        hands = Hands(world.clock, 1, lambda: False)
        began: list[str] = []

        class Waiting:
            def __init__(self, name: str) -> None:
                self.name = name

            def pump(self) -> None:
                began.append(self.name)

        lanes = [Waiting(name) for name in "abcdef"]
        hands.held.add(b"1")
        self.assertEqual([hands.may_begin(lane) for lane in lanes], [False] * 6)
        hands.done(b"1")
        self.assertTrue(hands.may_begin(lanes[1]))
        world.clock.advance(0)
        self.assertEqual(began, ["a", "c"])
        hands.held.add(b"2")
        hands.held.add(b"3")
        hands.done(b"2")
        world.clock.advance(0)
        self.assertEqual(began, ["a", "c"])
        hands.done(b"3")
        world.clock.advance(0)
        self.assertEqual(began, ["a", "c", "d", "e"])
