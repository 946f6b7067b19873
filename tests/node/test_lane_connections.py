"""How many connections a lane has, and which: windows, hosts that are dead or ask for less, suspensions; and that it never sleeps with work."""

from __future__ import annotations

from collections import deque
from typing import Any

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.mail.envelope import MessageClass
from relaycluster.mail.outcome import Stage
from relaycluster.net.outbound import ConnectFailed, Target
from relaycluster.node.crowd import LimitReached
from relaycluster.node.lane import TURN, Lane
from relaycluster.node.routes import NoRoute, Route
from relaycluster.policy.pace import SlowDown, Suspend
from relaycluster.policy.pause import Why
from relaycluster.policy.rate import Rate
from relaycluster.policy.reply_rules import ReplyRule, ReplyRules
from relaycluster.policy.routing import DestinationSettings, HostPort
from relaycluster.policy.text_pattern import TextPattern
from relaycluster.smtp.client_events import Transaction
from tests.node.lanes import BACKUP, LATER, MAIN, REFUSED, SHUTTING_DOWN, FakeConnection, Node
from tests.node.world import result
from tests.support.replies import heard


class LaneConnectionsTest(SynchronousTestCase):
    def test_a_host_that_hangs_in_the_transaction(self) -> None:
        """It takes connections and says nothing more: it gets two of them, however much waits, and all of the other domain's go."""
        node = Node(connections=20)
        node.queue(100)
        node.lane.wake()
        for _ in range(30):
            node.world.advance(1)
            while node.attempts:
                node.opened()
        self.assertEqual((len(node.made), len(node.taken) <= 10), (2, True))
        for connection in node.busy:
            connection.answer()
        self.assertEqual(len(node.busy) + len(node.attempts), 4)

    def test_refused_while_others_stand(self) -> None:
        """The host takes three connections from us: it gets three, and one more is tried ever more seldom."""
        node = Node(connections=20, messages_per_connection=10_000)
        node.queue(600)
        node.at_once = lambda target: ConnectFailed(REFUSED) if len(node.busy) >= 3 else node.connection(target)
        tries: list[float] = []
        connect = node.at_once
        node.at_once = lambda target: (tries.append(node.world.clock.seconds()), connect(target))[1]
        node.lane.wake()
        for n in range(1200):
            node.world.clock.advance(0.1)
            for connection in node.busy if n < 10 or n % 10 == 0 else ():
                connection.answer()
            self.assertTrue(len(node.busy) <= 3)
        self.assertEqual(len(node.busy), 3)
        late = [at for at in tries if at > 10]
        self.assertTrue(len(late) <= 2 * 5, late)  # two hosts are tried each time

    def test_a_dead_destination(self) -> None:
        """Each time it is left alone for twice as long, and probed with one connection; its items wait for it, untouched, and
        the queue does not show the domain meanwhile. It comes back: all is sent."""
        node = Node(connections=20)
        node.at_once = lambda target: ConnectFailed(REFUSED)
        items = node.queue(100)
        probes: list[float] = []
        real = node.find

        async def found(domain: str, settings: DestinationSettings) -> Route | NoRoute:
            probes.append(node.world.clock.seconds())
            return await real(domain, settings)

        node.find = found  # type: ignore[method-assign]
        node.lane.wake()
        node.world.advance(60)
        self.assertEqual([round(at) for at in probes], [0, 15, 45])
        place = node.world.partition()
        self.assertTrue(sum(item.attempts for item in place.items.values()) <= 2 * 3)
        node.world.advance(40)
        self.assertEqual(len(probes), 3)
        self.assertTrue(place.index()["example.com"] > node.world.queue.now_ms())
        self.assertEqual(
            (place.paused["example.com"].why, place.paused["example.com"].detail), (Why.PARKED, str(REFUSED.reply))
        )
        node.at_once = node.connection
        for _ in range(400):
            node.world.clock.advance(20)
            node.lane.wake()
            node.work_off()
        self.assertEqual(node.done(), {item.id for item in items})

    def test_dead_hosts_of_many_domains(self) -> None:
        """All domains go to one smarthost, which is dead: one of them probes it with one connection, the others wait."""
        domains = [f"d{n}.example" for n in range(8)]
        node = Node(domains, name="*", hosts=(HostPort("mx1.example", 25), HostPort("mx2.example", 25)), connections=20)
        for domain in domains:
            node.queue(3, domain)
        node.at_once = lambda target: ConnectFailed(REFUSED)
        for lane in node.lanes:
            lane.wake()
        node.at_once = None
        self.assertEqual(node.attempts, [])
        node.world.advance(14)
        self.assertEqual(node.attempts, [])
        for _ in range(200):
            node.world.advance(0.1)
            self.assertTrue(len(node.attempts) <= 1, node.attempts)
        self.assertEqual(len(node.attempts), 1)
        self.assertTrue(len(node.taken) - len(node.settled) <= 3, "the others claim, too")
        node.opened()
        for _ in range(200):
            node.world.advance(0.2)
            node.work_off()
        self.assertEqual(
            len(node.done()), 24 - sum(p.items[i].attempts > 0 for p in node.world.cluster.partitions for i in p.items)
        )

    def slowed(self, reply: str, stays: bool) -> Node:
        """All of eight connections have just heard that they are too fast."""
        node = Node(connections=8)
        node.rules = ReplyRules([ReplyRule("r", TextPattern("rate limit"), SlowDown())])
        node.at_once = node.connection
        node.queue(400)
        node.lane.wake()
        while len(node.busy) < 8:
            node.busy[0].answer()
        for connection in node.busy:
            connection.answer(evolve(LATER, reply=heard(reply), stage=Stage.MAIL), stays=stays)
        self.assertEqual((node.busy, node.lane.in_hand), ([], 0))
        return node

    def test_slow_down(self) -> None:
        """A rule of the operator's: who says so gets nothing for a moment, then half of the connections; the message is deferred, and
        no other host is asked."""
        node = self.slowed("421 4.7.0 rate limit", stays=False)
        self.assertFalse(node.lane.has_room())
        made = len(node.made)
        node.world.advance(4.5)
        self.assertEqual(node.made[made:], [])
        node.world.advance(1)
        for _ in range(30):
            for connection in node.busy:
                connection.answer()
            self.assertTrue(len(node.busy) <= 4)
        self.assertEqual({each.target.host for each in node.made}, {"mx1.example"})

    def test_slow_down_over_connections_that_stay(self) -> None:
        """Half of them after the rest, as when they had been closed with the reply."""
        node = self.slowed("450 4.7.0 rate limit", stays=True)
        node.world.advance(5.5)
        self.assertNotEqual(node.busy, [])
        for _ in range(30):
            for connection in node.busy:
                connection.answer()
            self.assertTrue(len(node.busy) <= 4)

    def test_slow_down_is_kept_by_all_lanes_of_the_limit(self) -> None:
        """Who heard it is one of ten domains: while the provider rests nothing is begun for any of them, over no connection."""
        domains = [f"d{n}.example" for n in range(10)]
        for stays in (False, True):
            node = Node(domains, connections=2, name="L")
            node.rules = ReplyRules([ReplyRule("r", TextPattern("rate limit"), SlowDown())])
            node.at_once = node.up_to(2)
            for domain in domains:
                node.queue(10, domain)
            for lane in node.lanes:
                lane.wake()
            node.world.advance(0.2)
            asked = evolve(LATER, reply=heard("421 4.7.0 rate limit"), stage=Stage.MAIL)
            began = sum(len(each.sent) for each in node.made)
            for _ in range(35):
                for connection in node.busy:
                    connection.answer(asked, stays=stays)
                node.world.advance(0.1)
            self.assertEqual(sum(len(each.sent) for each in node.made), began)
            node.world.advance(3)
            self.assertNotEqual(node.busy, [])

    def test_a_fault_in_beginning_the_next(self) -> None:
        """It is that claim's, which is tried again; not the claim's whose connection it would have had."""
        node = Node(connections=1)
        first, second, third = node.queue(3)
        node.lane.wake()
        send = FakeConnection.send

        def faulty(connection: FakeConnection, transaction: Transaction) -> Deferred[Any]:
            if transaction.envelope is second.envelope and not node.world.events("error"):
                raise RuntimeError("a bug")
            return send(connection, transaction)

        self.patch(FakeConnection, "send", faulty)
        node.opened().answer()
        node.work_off()
        self.assertEqual(node.done(), {first.id, third.id})
        self.assertEqual(node.world.partition().items[second.id].attempts, 1)
        for _ in range(200):
            node.world.advance(10)
            node.lane.wake()
            node.work_off()
        self.assertEqual(node.done(), {first.id, second.id, third.id})
        self.assertEqual(node.hands.held, set())

    def test_suspend(self) -> None:
        """A rule that suspends: the cluster is told, what waits goes back, and nothing is claimed until it is over."""
        node = Node(connections=4)
        node.rules = ReplyRules([ReplyRule("r", TextPattern("blocked"), Suspend(900))])
        node.at_once = node.connection
        node.queue(50)
        node.lane.wake()
        asked = evolve(LATER, reply=heard("550 5.7.1 blocked"), stage=Stage.MAIL)
        node.busy[0].answer(asked)
        while node.busy:
            node.busy[0].answer()
        self.assertEqual((node.lane.waiting, len(node.world.partition().leased)), (deque(), 0))
        self.assertFalse(node.lane.has_room())
        taken = len(node.taken)
        for _ in range(20):
            node.lane.wake()
            node.world.advance(40, 1)
        self.assertEqual(len(node.taken), taken)
        pause = node.world.partition().paused["example.com"]
        self.assertEqual((pause.why, pause.detail), (Why.SUSPENDED, "example.com"))
        self.assertTrue(pause.until_ms > node.world.queue.now_ms())
        node.world.advance(200, 1)
        node.lane.wake()
        self.assertTrue(len(node.taken) > taken)

    def test_suspended_by_the_operator(self) -> None:
        """What waits for a connection goes back as soon as this node knows of it."""
        node = Node()
        (item,) = node.queue(1)
        node.lane.wake()
        node.suspend("L", 60, "operator")
        node.suspend("example.com", 60, "operator")
        node.lane.look_again()
        self.assertEqual(list(node.world.partition().waiting), [item.id])
        node.opened()
        self.assertEqual(node.busy, [])

    def test_the_provider_is_known_before_the_first_claim(self) -> None:
        """Whose limits hold depends on the MX hosts: until they are known nothing is claimed or leased."""
        node = Node()
        node.placed = False
        answers: list[Deferred[Route]] = []

        async def found(domain: str, settings: DestinationSettings) -> Route:
            answers.append(Deferred())
            return await answers[-1]

        node.find = found  # type: ignore[method-assign]
        lane = Lane("example.com", node.lane.partition, node.settings, node.means)
        node.queue(3)
        lane.wake()
        self.assertEqual((node.taken, lane.has_room(), len(answers)), ([], False, 1))
        provider = DestinationSettings(name="provider", rate=Rate.of(1), mx_suffix=("example",))
        answers[0].callback(Route((evolve(MAIN, limit="provider"),), float("inf"), provider))
        self.assertEqual((lane.limit, len(node.taken)), ("provider", 1))

    def test_the_domain_moves_to_a_provider(self) -> None:
        """Its MX hosts are a provider's now: what is in hand goes back, and is claimed anew under the provider's limits."""
        node = Node()
        items = node.queue(2)
        provider = DestinationSettings(name="provider", connections=1)

        async def found(domain: str, settings: DestinationSettings) -> Route:
            return Route((evolve(MAIN, limit="provider"),), float("inf"), provider)

        node.find = found  # type: ignore[method-assign]
        node.lane.wake()
        self.assertEqual((node.lane.limit, node.lane.settings), ("provider", provider))
        self.assertEqual(len(node.attempts), 1)
        node.work_off()
        self.assertEqual(node.done(), {item.id for item in items})

    def test_an_idle_connection_gives_way(self) -> None:
        """Two domains share a limit of one connection. The one's is idle; the other's mail does not wait until it is too old."""
        node = Node(("a.example", "b.example"), connections=1, name="L")
        hosts = {"a.example": evolve(MAIN, limit="L"), "b.example": evolve(BACKUP, limit="L")}

        async def found(domain: str, settings: DestinationSettings) -> Route:
            return Route((hosts[domain],), float("inf"), settings)

        node.find = found  # type: ignore[method-assign]

        def limited(target: Target) -> Any:
            standing = [each for each in node.made if not each.is_gone]
            return LimitReached("L") if standing else node.connection(target)

        node.at_once = limited
        (first,) = node.queue(1, "a.example")
        node.lanes[0].wake()
        node.busy[0].answer()
        (second,) = node.queue(1, "b.example")
        node.lanes[1].wake()
        node.world.advance(0.5)
        self.assertEqual([each.target.host for each in node.busy], ["mx2.example"])
        node.busy[0].answer()
        self.assertEqual(node.done(), {first.id, second.id})

    def test_released(self) -> None:
        """The partition goes to another node: what waits goes back, and the connections that only the domain can use end: the idle
        ones at once, those that carry mail after it."""
        node = Node(connections=1)
        node.targets = (evolve(MAIN, limit="example.com"),)
        node.queue(3)
        node.lane.wake()
        connection, idle = node.opened(), node.connection(node.targets[0])
        node.pool._busy.add(idle)
        node.pool.release(idle)
        node.owned = False
        node.lane.release()
        self.assertTrue(connection.busy)
        self.assertTrue(idle.is_gone)
        self.assertEqual((len(node.lane.waiting), node.lane.in_hand), (0, 1))
        connection.answer()
        self.assertTrue(connection.is_gone)

    def test_a_surplus_connection_ends(self) -> None:
        """The cluster grants fewer than we have, since we joined anew: one ends after a few messages, though more wait."""
        node = Node(connections=4)
        node.queue(60)
        node.lane.wake()
        connection = node.opened()
        node.pool.is_surplus = lambda target: True
        while connection.busy:
            connection.answer()
        self.assertTrue(connection.is_gone)
        self.assertLessEqual(connection.transactions_done, TURN)

    def test_bulk_is_not_starved(self) -> None:
        """Urgent mail goes first, and there is more of it than can be sent; a tenth is bulk all the same."""
        node = Node(connections=2)
        node.at_once = node.connection
        for each in (MessageClass.URGENT, MessageClass.BULK):
            for _ in range(200):
                item = evolve(node.world.item(), message_class=each)
                result(node.world.queue.enqueue(item, b"Subject: x\r\n\r\n", None))
        node.lane.wake()
        for _ in range(100):
            node.busy[0].answer()
        classes = [claim.item.message_class for claim in node.settled[:100]]
        self.assertTrue(8 <= classes.count(MessageClass.BULK) <= 12, classes.count(MessageClass.BULK))

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(
                    (
                        *("queue", "queue", "open", "open", "refuse", "limit", "answer", "answer", "later", "down"),
                        *("lose", "stale", "pass", "pass", "outage", "back", "doubt", "sure"),
                    )
                ),
                st.integers(0, 5),
            ),
            max_size=50,
        ),
        st.sampled_from((None, Rate.of(5), Rate.of(1, 60))),
    )
    def test_liveness(self, steps: list[tuple[str, int]], rate: Rate | None) -> None:
        """Whatever happens to connections and the store, whatever waits is being sent, opened for, or has a timer; and once the
        world is well again, everything is settled."""
        node = Node(("a.example", "b.example"), connections=2, rate=rate)
        for operation, n in steps:
            lane = node.lanes[n % 2]
            if operation == "queue" and not node.world.cluster.down:
                node.queue(1 + n, lane.domain)
                lane.wake()
            elif operation in ("open", "refuse", "limit") and node.attempts:
                if operation == "open":
                    node.opened()
                else:
                    node.refused(LimitReached("L") if operation == "limit" else None)
            elif operation in ("answer", "later", "down", "lose", "stale") and node.busy:
                connection = node.busy[n % len(node.busy)]
                if operation == "stale":
                    connection.stale()
                else:
                    said = {"later": LATER, "down": SHUTTING_DOWN, "lose": evolve(LATER, may_have_arrived=True)}
                    connection.answer(said.get(operation), stays=operation in ("answer", "later"))
            elif operation == "pass":
                node.world.clock.advance((0.03, 0.1, 0.3, 1, 5, 20)[n])
            elif operation in ("outage", "back"):
                node.world.cluster.down = operation == "outage"
            elif operation in ("doubt", "sure"):
                node.is_valid = operation == "sure"
            self.assertEqual(node.stuck(), [])
            self.assertTrue(all(lane.in_hand >= 0 and lane.opening.count >= 0 for lane in node.lanes))
        node.world.cluster.down, node.is_valid = False, True
        for _ in range(60):
            node.world.clock.advance(70)
            for lane in node.lanes:
                lane.wake()  # as the poll does
            node.work_off()
            self.assertEqual(node.stuck(), [])
        places = node.world.cluster.partitions
        self.assertEqual([name for place in places for name in place.leased], [])
        self.assertEqual(
            [item for place in places for item in place.items.values() if item.domain[1:] == ".example"], []
        )
        self.assertEqual([lane.in_hand for lane in node.lanes], [0, 0])
        self.assertEqual(len(node.settled), len(node.taken))
