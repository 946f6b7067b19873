"""What does not go the plain way: other hosts, recipients that are left, slots, and faults on the way."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.interfaces import QueueUnavailable
from relaycluster.mail import outcome
from relaycluster.mail.outcome import Delivered, Stage
from relaycluster.mail.reply import Reply
from relaycluster.net.outbound import ConnectFailed, Target
from relaycluster.node import sending
from relaycluster.node.crowd import LimitReached
from relaycluster.node.limits import ConnectionLimits
from relaycluster.node.routes import Route
from relaycluster.policy.rate import Rate
from relaycluster.policy.routing import DestinationSettings
from tests.node.lanes import LATER, MAIN, NEVER, NO_UTF8, REFUSED, SHUTTING_DOWN, FakeConnection, Node
from tests.node.world import result, snapshot

TOO_MANY = outcome.Deferred(Reply.of(452, "4.5.3", "too many"), Stage.RCPT, "mx1.example")
TAKEN = Delivered(Reply.of(250, "2.0.0", "ok"), "mx1.example")


def queued(node: Node, recipients: int = 1) -> Any:
    """One item that is waiting, whose lane was woken."""
    item = node.world.item(recipients=recipients)
    result(node.world.queue.enqueue(item, b"Subject: x\r\n\r\n", None))
    node.lane.wake()
    return item


def said(connection: FakeConnection, *outcomes: Any) -> None:
    """The host's words to each recipient; it stays."""
    connection.usable = True
    connection.transactions_done += 1
    connection.sent[-1][1].callback(outcomes)


class NextHostTest(SynchronousTestCase):
    def test_what_a_host_lacks_takes_nothing_back(self) -> None:
        """The first host said 421, the next one has no SMTPUTF8, or refuses the connection: the first may take it tomorrow."""
        for second in (NO_UTF8, evolve(SHUTTING_DOWN, stage=Stage.GREETING)):
            node = Node()
            item = queued(node)
            node.opened().answer(SHUTTING_DOWN, stays=False)
            node.opened().answer(second)
            self.assertEqual(node.world.partition().items[item.id].attempts, 1)
            self.assertNotIn(item.id, node.done())

    def test_what_the_next_host_says_of_the_mail(self) -> None:
        """It holds: a recipient that is unknown there fails, one that is deferred waits with these words."""
        node = Node()
        item = queued(node)
        node.opened().answer(SHUTTING_DOWN, stays=False)
        node.opened().answer(NEVER)
        self.assertIn(item.id, node.done())
        node = Node()
        queued(node)
        node.opened().answer(SHUTTING_DOWN, stays=False)
        node.opened().answer(LATER)
        (deferred,) = node.world.events("deferred")
        self.assertIn("come again", str(deferred))

    def test_the_content_cannot_be_read(self) -> None:
        """The queue is away when the next host's connection stands: the mail is tried later, and the connection is kept for others."""
        node = Node()
        item = queued(node)

        async def away(*_: object) -> bytes:
            raise QueueUnavailable("away")

        self.patch(sending, "head_of", away)
        node.opened().answer(SHUTTING_DOWN, stays=False)
        node.opened()
        self.assertEqual((node.pool.counts.busy, node.pool.counts.idle), (0, 1))
        self.assertEqual((node.world.partition().items[item.id].attempts, node.lane.in_hand), (1, 0))

    def test_a_fault_of_our_own(self) -> None:
        """It is told; the connection is given back; who has the message does not get it again, the others do, marked."""

        async def broken(*_: object) -> Any:
            raise RuntimeError("a bug")

        for left in ("over the same connection", "elsewhere"):
            node = Node()
            item = queued(node, recipients=3)
            connection = node.opened()
            self.patch(sending, "carry", broken)
            if left == "elsewhere":
                said(connection, TAKEN, evolve(SHUTTING_DOWN), evolve(SHUTTING_DOWN))
                node.opened()
            else:
                said(connection, TAKEN, TOO_MANY, TOO_MANY)
            self.assertEqual((len(node.lane.carrying), node.lane.in_hand, node.pool.counts.busy), (0, 0, 0))
            waiting = node.world.partition().items[item.id]
            self.assertEqual([who.text for who in waiting.envelope.recipients], ["r1@example.com", "r2@example.com"])
            self.assertEqual(len(node.world.events("error")), 1)
            self.flushLoggedErrors()

    def test_plain_recipients_are_not_failed_for_others(self) -> None:
        """They had failed only because another needs SMTPUTF8; their turn over the same connection is cut short: they wait."""

        async def away(*_: object) -> Any:
            raise QueueUnavailable("away")

        node = Node()
        node.targets = node.targets[:1]
        item = node.world.item(recipients=2)
        first, second = item.envelope.recipients
        item = evolve(item, envelope=evolve(item.envelope, recipients=(evolve(first, text="ü@example.com"), second)))
        result(node.world.queue.enqueue(item, b"Subject: x\r\n\r\n", None))
        node.lane.wake()
        connection = node.opened()
        self.patch(sending, "carry", away)
        connection.answer(NO_UTF8)
        waiting = node.world.partition().items[item.id]
        self.assertEqual(waiting.envelope.recipients, (second,))


class LimitTest(SynchronousTestCase):
    def limited(self, most: int) -> Node:
        """A node whose limit allows so many connections, counted until they are gone."""
        node = Node(connections=most)
        limits = ConnectionLimits(node.world.clock, node.world.throttle, lambda: (snapshot(1), 1))

        async def reserved(target: Target) -> FakeConnection:
            if not await limits.reserve(target.limit, most):
                raise LimitReached(target.limit)
            if target.host in self.dead:
                limits.free(target.limit)
                raise ConnectFailed(REFUSED)
            connection = node.connection(target)
            # As a real one: it is gone a moment after its last word.
            connection.close = lambda: node.world.clock.callLater(0.01, connection.go)  # type: ignore[method-assign]
            return connection

        def gone(connection: Any) -> None:
            limits.free(connection.target.limit)
            node.crowd.freed(connection.target.limit)

        self.dead: set[str] = set()
        node.pool._connect = lambda target: Deferred.fromCoroutine(reserved(target))
        node.pool.on_gone = gone
        node.crowd.open = limits.open_of
        return node

    def test_the_next_host_when_the_limit_is_used_up(self) -> None:
        """One connection is allowed. The first host shuts down, or has no SMTPUTF8 and stays: its place is the next host's."""
        for words in (SHUTTING_DOWN, NO_UTF8):
            node = self.limited(1)
            item = queued(node)
            (connection,) = node.busy
            said(connection, words)
            if words is SHUTTING_DOWN:
                connection.close()
            node.world.advance(0.2)
            self.assertEqual([each.target.host for each in node.busy], ["mx2.example"])
            node.busy[0].answer()
            self.assertEqual((node.done(), node.lane.in_hand), ({item.id}, 0))

    def test_a_place_that_does_not_come(self) -> None:
        """The other connection carries on: after a second the mail is deferred, and whoever stands in line behind is told when
        the place is free at last."""
        node = self.limited(2)
        node.settings = evolve(node.settings, connections=2)
        items = [queued(node), queued(node)]
        while len(node.busy) < 2:
            node.busy[0].answer()
            items.append(queued(node))
        first, second = node.busy
        first.close = lambda: None  # type: ignore[method-assign]
        first.usable = False
        first.transactions_done += 1
        first.sent[-1][1].callback((SHUTTING_DOWN,))
        node.world.advance(1.2)
        self.assertEqual(len(node.world.events("deferred")), 1)
        told: list[str] = []

        class Next:
            wants_turn = True

            def take_turn(self) -> None:
                told.append("next")

        self.assertTrue(node.crowd.wait("L", Next()))
        second.answer()
        self.assertEqual(told, ["next"])

    def test_the_place_is_passed_on(self) -> None:
        """The next host cannot be reached: the place that came is the next one's in line."""
        node = self.limited(1)
        self.dead.add("mx2.example")
        queued(node)
        told: list[str] = []

        class Next:
            wants_turn = True

            def take_turn(self) -> None:
                told.append("next")

        (connection,) = node.busy
        said(connection, SHUTTING_DOWN)
        node.crowd.wait("L", Next())
        connection.close()
        node.world.advance(0.2)
        self.assertEqual(told, ["next"])


class SlotTest(SynchronousTestCase):
    def test_the_next_host_takes_a_slot(self) -> None:
        """Each transaction has its own, also the second one of a message."""
        node = Node(connections=20, rate=Rate.of(5))
        node.at_once = node.connection
        node.queue(40)
        node.lane.wake()
        starts: list[tuple[float, str]] = []
        for _ in range(800):
            node.world.clock.advance(0.01)
            for connection in node.busy:
                starts.append((connection.sent[-1][2], connection.target.host))
                connection.answer(SHUTTING_DOWN, stays=False)
        for at, _ in starts:
            self.assertLessEqual(sum(at <= other < at + 1 for other, _ in starts), 6)
        self.assertGreater(sum(host == "mx2.example" for _, host in starts), 10)

    def test_the_next_host_at_a_slow_rate(self) -> None:
        """A slot each four seconds: the first host takes nothing, and the next one gets the mail all the same."""
        node = Node(connections=20, rate=Rate.of(15, 60))
        node.at_once = node.connection
        items = node.queue(2)
        node.lane.wake()
        for _ in range(60):
            node.world.advance(1)
            for connection in node.busy:
                is_first = connection.target.host == "mx1.example"
                connection.answer(SHUTTING_DOWN if is_first else None, stays=not is_first)
        self.assertEqual(node.done(), {item.id for item in items})

    def test_the_rate_is_too_slow_for_the_next_host(self) -> None:
        """Without a slot the mail is deferred, never failed; the connection is given back."""
        node = Node(connections=20, rate=Rate.of(1, 60))
        item = queued(node)
        node.opened().answer(NO_UTF8)
        node.opened()
        node.world.advance(1)
        self.assertEqual((node.busy, node.pool.counts.busy), ([], 0))
        self.assertEqual(node.world.partition().items[item.id].attempts, 1)

    def test_more_recipients_take_more_slots(self) -> None:
        """Each transaction over the same connection is one; who gets none in time waits."""
        for rate, sent in ((Rate.of(5), 2), (Rate.of(1, 60), 1)):
            node = Node(connections=20, rate=rate)
            queued(node, recipients=3)
            connection = node.opened()
            said(connection, TAKEN, TOO_MANY, TOO_MANY)
            self.assertEqual(len(connection.sent), 1)
            node.world.advance(0.3)
            self.assertEqual(len(connection.sent), sent)

    def test_a_stale_connection_takes_a_new_slot(self) -> None:
        """The time of its slot is past when another connection stands, and other nodes go on taking theirs."""
        node = Node(connections=5, rate=Rate.of(1))
        queued(node)
        connection = node.opened()
        connection.answer()
        node.world.advance(3)
        queued(node)
        connection.stale()
        node.world.advance(1.5)
        result(node.world.throttle.take("example.com", Rate.of(1).interval_ns, 1, 1))
        second = node.opened()
        self.assertEqual(second.sent, [])
        node.world.advance(1)
        self.assertEqual(len(second.sent), 1)

    def test_leased_before_there_was_a_rate(self) -> None:
        """Items come into our hands without a slot; by then the domain is a provider's, who has a rate: each waits for its slot."""
        node = Node()
        provider = DestinationSettings(name="provider", rate=Rate.of(1, 60))
        node.at_once = node.connection
        node.targets = (evolve(MAIN, limit="provider"),)
        claims = [node.world.claimed(node.world.item()) for _ in range(5)]

        async def found(domain: str, settings: DestinationSettings) -> Route:
            return Route(node.targets, float("inf"), provider)

        node.find = found  # type: ignore[method-assign]
        node.lane.adopt(provider)
        for claim in claims:
            node.lane.offer(claim)
        for _ in range(30):
            node.world.advance(1)
            for connection in node.busy:
                connection.answer()
        self.assertEqual(len(node.done()), 1)

    def test_claimed_before_there_was_a_rate(self) -> None:
        """The same for a claim that was under way."""
        node = Node()
        node.at_once = node.connection
        node.queue(2)
        node.world.queue.holding.add("claim")
        node.lane.wake()
        node.lane.adopt(evolve(node.settings, rate=Rate.of(1, 60)))
        node.world.queue.let_go()
        for _ in range(10):
            for connection in node.busy:
                connection.answer()
        self.assertEqual(len(node.done()), 1)
