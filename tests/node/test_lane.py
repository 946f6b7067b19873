"""The lane: it sends what is due as far as the limits allow, and whatever waits is always on its way to something.

The pool is the real one; the connections are fakes that do what the test says.
"""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.mail import outcome
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import BodyType
from relaycluster.mail.item import Item
from relaycluster.mail.outcome import Failed, Stage
from relaycluster.net.outbound import ConnectFailed, Target
from relaycluster.node.crowd import LimitReached
from relaycluster.node.lane import Lane
from relaycluster.node.routes import NoRoute, Route
from relaycluster.policy.cluster import Ownership
from relaycluster.policy.rate import Rate
from relaycluster.policy.routing import DestinationSettings
from relaycluster.policy.trouble import LOCAL_REPLIES, LocalTrouble
from tests.node.lanes import LATER, MAIN, NEVER, NO_UTF8, REFUSED, SHUTTING_DOWN, FakeConnection, Node
from tests.node.world import result
from tests.support.replies import heard


class LaneTest(SynchronousTestCase):
    def test_the_plain_way(self) -> None:
        """It is woken, opens a connection, sends all over it in order, and has nothing left."""
        node = Node()
        items = node.queue(3)
        node.lane.wake()
        connection = node.opened()
        order = []
        while node.attempts or node.busy:
            if node.busy:
                order.append(connection.sent[-1][0].envelope.recipients)
                connection.answer()
            else:
                node.refused()
        self.assertEqual(node.done(), {item.id for item in items})
        self.assertEqual((len(node.settled), len(node.taken), node.lane.in_hand), (3, 3, 0))

    def test_slow_start(self) -> None:
        """One connection first; each that carries mail may bring one more along, up to the destination's number."""
        node = Node(connections=4)
        node.queue(40)
        node.lane.wake()
        self.assertEqual(len(node.attempts), 1)
        most = 1
        while node.attempts or node.busy:
            self.assertTrue(len(node.attempts) <= max(1, len(node.busy)), "more are opened than carry mail")
            while node.attempts:
                node.opened()
            most = max(most, len(node.busy))
            node.busy[0].answer()
        self.assertEqual((most, len(node.done())), (4, 40))

    def test_nothing_is_claimed_without_a_valid_lease(self) -> None:
        """The lease is in doubt: nothing is claimed; a transaction that is under way may not finish; then it goes on."""
        node = Node()
        node.queue(2)
        node.is_valid = False
        node.lane.wake()
        node.world.advance(2)
        self.assertEqual((node.taken, node.attempts), ([], []))
        node.is_valid = True
        node.lane.pump()
        connection = node.opened()
        transaction = connection.sent[0][0]
        self.assertTrue(transaction.may_finish())
        node.is_valid = False
        self.assertFalse(transaction.may_finish())

    def test_not_owner(self) -> None:
        """The queue says that the partition is somebody else's: that is told, and nothing is claimed."""
        node = Node()
        node.queue(1)
        node.world.partition().fence += 1
        node.owner_of = lambda partition: Ownership(partition, 1, 1)  # type: ignore[method-assign]
        node.means = evolve(node.means, owner_of=node.owner_of)
        lane = Lane("example.com", node.lane.partition, node.settings, node.means)
        lane.wake()
        self.assertEqual((len(node.lost), node.taken), (1, []))

    def test_the_store_away_while_claiming(self) -> None:
        """Asked again a moment later, without a hint."""
        node = Node()
        items = node.queue(1)
        node.world.cluster.down = True
        node.lane.wake()
        node.world.advance(2)
        node.world.cluster.down = False
        node.world.advance(1.2)
        node.work_off()
        self.assertEqual(node.done(), {items[0].id})

    def test_unreachable(self) -> None:
        """No host takes a connection: all that waits is deferred, each host was tried, and the destination is left alone for a
        while."""
        node = Node()
        node.queue(2)
        node.lane.wake()
        self.assertEqual(node.attempts[0][0].host, "mx1.example")
        node.refused()
        self.assertEqual(node.attempts[0][0].host, "mx2.example")
        node.refused()
        place = node.world.partition()
        self.assertEqual([item.attempts for item in place.items.values()], [1, 1])
        self.assertFalse(node.lane.has_room())
        node.queue(1)
        node.lane.wake()
        node.world.advance(10)
        self.assertEqual(node.attempts, [])
        node.world.advance(6)
        self.assertEqual(len(node.attempts), 1)

    def test_no_route(self) -> None:
        """The domain does not exist: what waits fails at once, nobody is connected."""
        node = Node()
        node.no_route = NoRoute(Failed(LOCAL_REPLIES[LocalTrouble.NO_SUCH_DOMAIN], Stage.ROUTING))
        items = node.queue(2)
        node.lane.wake()
        self.assertTrue(node.done() >= {item.id for item in items})
        self.assertEqual(node.attempts, [])

    def test_the_next_host(self) -> None:
        """A host that goes down for everybody is left for the next one at once; the recipient is delivered there."""
        node = Node()
        (item,) = node.queue(1)
        node.lane.wake()
        node.opened().answer(SHUTTING_DOWN, stays=False)
        self.assertEqual(node.attempts[0][0].host, "mx2.example")
        node.opened().answer()
        self.assertEqual((node.done(), node.lane.in_hand), ({item.id}, 0))

    def test_a_recipient_that_is_deferred_or_refused(self) -> None:
        """…but what a host says of a recipient holds: no other host is asked."""
        node = Node()
        items = node.queue(2)
        node.lane.wake()
        connection = node.opened()
        connection.answer(LATER)
        while node.attempts:
            node.refused()
        connection.answer(NEVER)
        self.assertEqual([item.attempts for item in node.world.partition().items.values()], [1])
        self.assertTrue(node.done() & {item.id for item in items})
        self.assertEqual(node.attempts, [])

    def to(self, *recipients: str, hosts: int = 2, **changes: Any) -> tuple[Node, Item]:
        """A node, and an item for these recipients that is queued."""
        node = Node()
        node.targets = node.targets[:hosts]
        item = node.world.item()
        addresses = tuple(Address(f"{each}@example.com", "example.com") for each in recipients)
        item = evolve(item, envelope=evolve(item.envelope, recipients=addresses, **changes))
        result(node.world.queue.enqueue(item, "Subject: x\r\n\r\nü\r\n".encode(), None))
        node.lane.wake()
        return node, item

    def notices(self, node: Node) -> list[bytes]:
        return [
            place.bodies[item.id]
            for place in node.world.cluster.partitions
            for item in place.items.values()
            if item.envelope.reverse_path.is_null
        ]

    def test_a_host_without_smtputf8(self) -> None:
        """The next one is asked; the message fails when none has it, once, in our own words."""
        for last in (None, NO_UTF8):
            node, item = self.to("dörte")
            node.opened().answer(NO_UTF8)
            self.assertEqual(node.attempts[0][0].host, "mx2.example")
            node.opened().answer(last)
            self.assertIn(item.id, node.done())
            self.assertEqual(len(self.notices(node)), 1 if last else 0)
            self.assertEqual(node.lane.in_hand, 0)

    def test_a_host_without_smtputf8_and_one_that_is_away(self) -> None:
        """The other host may take it: not failed, but tried again."""
        for error in (ConnectFailed(REFUSED), LimitReached("L")):
            node, item = self.to("dörte")
            node.opened().answer(NO_UTF8)
            while node.attempts:
                node.refused(error)
            self.assertEqual(node.world.partition().items[item.id].attempts, 1)
            self.assertEqual(self.notices(node), [])

    def test_plain_recipients_beside_one_that_needs_smtputf8(self) -> None:
        """They get it at once, over the same connection, in a transaction of their own."""
        node, item = self.to("r0", "dörte", "r1", hosts=1)
        connection = node.opened()
        connection.answer(NO_UTF8)
        transaction = connection.sent[-1][0]
        self.assertEqual([who.text for who in transaction.envelope.recipients], ["r0@example.com", "r1@example.com"])
        connection.answer()
        self.assertIn(item.id, node.done())
        (notice,) = self.notices(node)
        self.assertEqual(notice.count(b"Final-Recipient:"), 1)
        self.assertIn(b"Diagnostic-Code: X-Relaycluster; 553 5.6.7", notice)

    def test_a_host_without_8bitmime(self) -> None:
        """It gets the converted content, as a message that is 7-bit and says so."""
        node, item = self.to("r0", body=BodyType.EIGHT_BIT)
        target, attempt = node.attempts.pop(0)
        connection = node.connection(target)
        connection.is_seven_bit = True
        attempt.callback(connection)
        transaction = connection.sent[-1][0]
        assert isinstance(transaction.content, bytes)
        self.assertTrue(transaction.content.isascii())
        self.assertEqual((transaction.envelope.body, transaction.size), (BodyType.SEVEN_BIT, len(transaction.content)))
        connection.answer()
        self.assertIn(item.id, node.done())

    def test_a_long_message_that_declared_smtputf8(self) -> None:
        """Its header is looked at here, since the conversation has not got it: plain when that is ASCII."""
        for header, declared in ((b"Subject: x", False), ("Subject: ü".encode(), True)):
            node = Node()
            item = node.world.item()
            item = evolve(item, envelope=evolve(item.envelope, smtputf8=True), chunks=1)
            result(node.world.queue.put_chunk(node.lane.partition, item.id, 1, "ü".encode() * 9))
            result(node.world.queue.enqueue(item, header + b"\r\n\r\n" + "ü".encode() * 9, None))
            node.lane.wake()
            connection = node.opened()
            self.assertEqual(connection.sent[-1][0].envelope.smtputf8, declared)
            connection.answer()

    def test_a_stale_connection(self) -> None:
        """The server had closed the idle connection: the message goes over a new one, without an attempt on its record."""
        node = Node()
        (first,) = node.queue(1)
        node.lane.wake()
        connection = node.opened()
        connection.answer()
        (second,) = node.queue(1)
        node.lane.wake()
        self.assertTrue(connection.busy)
        connection.stale()
        node.opened().answer()
        self.assertEqual(node.done(), {first.id, second.id})
        self.assertEqual(len(node.settled), 2)

    def test_draining(self) -> None:
        """What was not tried goes back as it was; what is being sent is sent; nothing is claimed."""
        node = Node(connections=1)
        owner = node.owner_of(node.lane.partition)
        claims = [
            result(node.world.queue.enqueue(node.world.item(), b"Subject: x\r\n\r\n", (owner, n))) for n in (1, 2, 3)
        ]
        for claim in claims:
            node.lane.offer(claim)
        connection = node.opened()
        node.is_draining = True
        node.lane.pump()
        place = node.world.partition()
        self.assertEqual((len(place.waiting), len(place.leased), node.lane.in_hand), (2, 1, 1))
        connection.answer()
        self.assertEqual((len(node.settled), node.lane.in_hand, node.attempts), (3, 0, []))

    def test_draining_while_the_store_is_away(self) -> None:
        """What could not be put back is put back as soon as it can."""
        node = Node()
        node.lane.offer(node.world.claimed(node.world.item()))
        node.world.cluster.down = node.is_draining = True
        node.lane.pump()
        self.assertEqual(node.settled, [])
        node.world.cluster.down = False
        node.world.advance(1)
        self.assertEqual((len(node.settled), len(node.world.partition().waiting)), (1, 1))

    def test_the_limit_is_used_up_elsewhere(self) -> None:
        """The cluster's other connections leave no room, and we have none: others shall have the items; later we look again."""
        node = Node()
        (item,) = node.queue(1)
        node.lane.wake()
        node.refused(LimitReached("L"))
        self.assertEqual(list(node.world.partition().waiting), [item.id])
        node.world.advance(1.2)
        node.work_off()
        self.assertEqual(node.done(), {item.id})

    def test_the_last_connection_goes_while_none_may_be_opened(self) -> None:
        """One more could not be opened, so that none is tried for a moment; in that moment the only one that stands is lost. Nobody
        would look again, if there were no timer."""
        node = Node(connections=2)
        owner = node.owner_of(node.lane.partition)
        for number in range(1, 4):
            claim = result(node.world.queue.enqueue(node.world.item(), b"Subject: x\r\n\r\n", (owner, number)))
            node.lane.offer(claim)
        connection = node.opened()
        while node.attempts:
            node.refused()
        connection.answer(evolve(LATER, may_have_arrived=True), stays=False)
        self.assertEqual((node.attempts, node.stuck()), ([], []))
        node.world.advance(0.5)
        node.work_off()
        self.assertEqual((len(node.done()), node.lane.in_hand), (2, 0))

    def test_lanes_of_one_limit_take_turns(self) -> None:
        """Two domains share one connection's worth of limit: a long queue does not shut out a short one."""
        node = Node(("a.example", "b.example"), connections=1)
        node.at_once = node.up_to(1)
        node.queue(30, "a.example")
        short = node.queue(2, "b.example")
        for lane in node.lanes:
            lane.wake()
        for _ in range(12):
            node.world.advance(0.5)
            for connection in node.busy:
                connection.answer()
            self.assertEqual(node.stuck(), [])
        self.assertTrue(node.done() >= {item.id for item in short})

    def test_customers_of_one_provider_share_a_connection(self) -> None:
        """Each domain has a name of its own for the same host, and one connection is allowed: it is opened once, they take turns over it,
        and each delivery names the domain's own host."""
        node = self.customers_of_one_provider()
        items = {item.id: item for domain in ("a.example", "b.example") for item in node.queue(12, domain)}
        for lane in node.lanes:
            lane.wake()
        while node.busy:
            for connection in node.busy:
                connection.answer()
            node.world.advance(0.1)
        delivered = {event["item"]: event["host"] for event in node.world.events("delivered")}
        self.assertEqual(delivered, {each: f"{item.domain}.provider.example" for each, item in items.items()})
        self.assertEqual(len(node.made), 1)

    def test_a_host_that_refused_for_itself_is_not_asked_again_under_its_name(self) -> None:
        """The connection over which it did is another domain's by then, and bears that one's name."""
        node = self.customers_of_one_provider()
        node.queue(1, "a.example")
        node.queue(1, "b.example")
        for lane in node.lanes:
            lane.wake()
        asked = []
        for _ in range(10):
            for connection in node.busy:
                asked.append(connection.target.host)
                full = outcome.Deferred(heard("452 4.3.1 out of disk"), Stage.MAIL, connection.target.host)
                connection.answer(full if asked[-1].startswith("a.") else None)
            node.world.advance(0.1)
        self.assertEqual(asked, ["a.example.provider.example", "b.example.provider.example"])

    def customers_of_one_provider(self) -> Node:
        """Two domains that have names of their own for one host, which takes one connection."""
        node = Node(("a.example", "b.example"), connections=1)

        async def find(domain: str, settings: DestinationSettings) -> Route:
            return Route((Target(f"{domain}.provider.example", "192.0.2.9", limit="L"),), float("inf"))

        node.find, node.at_once = find, node.up_to(1)  # type: ignore[method-assign]
        return node

    def test_rate(self) -> None:
        """At 10/s nothing is sent before its slot, and in no second more than the rate and its burst; about as many as are due."""
        node = Node(rate=Rate.of(10), connections=5)
        node.queue(60)
        node.at_once = node.connection
        node.lane.wake()
        starts: list[float] = []
        for _ in range(500):
            node.world.clock.advance(0.01)
            for connection in node.busy:
                starts.append(connection.sent[-1][2])
                connection.answer()
        for at in starts:
            self.assertTrue(sum(at <= other < at + 1 for other in starts) <= 11)
        self.assertTrue(len(starts) >= 45, len(starts))

    def test_rate_with_slow_connections(self) -> None:
        """Connections that take their time do not bunch what was due meanwhile."""
        node = Node(rate=Rate.of(10), connections=5)
        node.queue(60)
        node.lane.wake()
        starts: list[float] = []
        for n in range(600):
            node.world.clock.advance(0.01)
            if n % 50 == 49:
                while node.attempts:
                    node.opened()
            for connection in node.busy:
                starts.append(connection.sent[-1][2])
                connection.answer()
        for at in starts:
            self.assertTrue(sum(at <= other < at + 1 for other in starts) <= 11)
        self.assertTrue(starts)

    def test_a_parked_lane_sends_what_it_has(self) -> None:
        """The rate says "nothing more for a minute"; what is in hand already does not wait that long for its connection."""
        node = Node(rate=Rate.of(1, 60), connections=2)
        node.queue(3)
        node.lane.wake()
        node.made.append(
            FakeConnection(MAIN, clock=node.world.clock)
        )  # another lane's, so that somebody could be freed
        node.refused(LimitReached("L"))
        node.world.advance(5)
        self.assertTrue(node.attempts, "no connection was tried for five seconds")

    def test_a_fault_while_opening_does_not_spin(self) -> None:
        """A bug in the search for a route: told, and tried again at a human pace; nothing is lost."""
        node = Node()
        (item,) = node.queue(1)
        tries = 0

        async def broken(domain: str, settings: DestinationSettings) -> Route:
            nonlocal tries
            tries += 1
            if tries > 20:
                node.no_route = NoRoute(REFUSED)
                raise SystemError("it spins")
            raise ValueError("a bug")

        node.find = broken  # type: ignore[method-assign]
        node.lane.wake()
        self.assertTrue(tries < 20)
        self.assertTrue(item.id in node.world.partition().items)

    def test_content_cannot_be_read(self) -> None:
        """The store is away when a large content is to be fetched: the claim goes back, and is sent later."""
        node = Node()
        item = evolve(node.world.item(), chunks=1)
        result(node.world.queue.put_chunk(node.world.partition().number, item.id, 1, b"rest"))
        result(node.world.queue.enqueue(item, b"Subject: x\r\n\r\n", None))
        node.world.partition().bodies[item.id] = None  # as Redis, which keeps a large head to itself
        node.lane.wake()
        node.world.queue.losing.add("content")
        connection = node.opened()
        self.assertEqual((connection.sent, list(node.world.partition().waiting)), ([], [item.id]))
        node.world.queue.losing.clear()
        node.world.partition().bodies[item.id] = b"Subject: x\r\n\r\n"
        node.lane.wake()
        self.assertTrue(connection.busy)

    def test_a_note_comes_with_the_claim(self) -> None:
        """A recipient that has the message already is not sent to again; when all have it, nobody is."""
        node = Node()
        node.lane.offer(evolve(node.world.claimed(node.world.item(recipients=2)), delivered=("r0@example.com",)))
        connection = node.opened()
        self.assertEqual([who.text for who in connection.sent[0][0].envelope.recipients], ["r1@example.com"])
        connection.answer()
        node.lane.offer(evolve(node.world.claimed(node.world.item()), delivered=("r0@example.com",)))
        self.assertEqual((len(connection.sent), len(node.done()), node.lane.in_hand), (1, 2, 0))
