"""The lane: it sends what is due as far as the limits allow, and whatever waits is always on its way to something.

The pool is the real one; the connections are fakes that do what the test says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.mail import outcome
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import BodyType, MessageClass
from relaycluster.mail.item import Claim, Item
from relaycluster.mail.outcome import Delivered, Failed, Outcome, Stage
from relaycluster.mail.reply import Reply
from relaycluster.net.outbound import ConnectFailed, OutboundConnection, Target
from relaycluster.net.pool import ConnectionPool
from relaycluster.node.crowd import Crowd, LimitReached
from relaycluster.node.hands import Hands
from relaycluster.node.lane import TURN, Lane
from relaycluster.node.limits import Pace
from relaycluster.node.means import Means
from relaycluster.node.reach import Reaches
from relaycluster.node.routes import NoRoute, Route
from relaycluster.node.settle import Settlement
from relaycluster.policy.cluster import Ownership
from relaycluster.policy.pace import SlowDown, Suspend
from relaycluster.policy.pause import Why
from relaycluster.policy.rate import Rate
from relaycluster.policy.reply_rules import NO_RULES, ReplyRule, ReplyRules
from relaycluster.policy.ring import partition_of
from relaycluster.policy.routing import DestinationSettings, HostPort
from relaycluster.policy.suspension import Suspension, Suspensions
from relaycluster.policy.text_pattern import TextPattern
from relaycluster.policy.trouble import LOCAL_REPLIES, LocalTrouble, judge_local
from relaycluster.smtp.client_events import Transaction
from tests.node.test_settle import RETRY
from tests.node.world import PARTITIONS, World, counting, result
from tests.support.replies import heard

LATER = outcome.Deferred(heard("451 4.7.1 come again"), Stage.RCPT, "mx.example")
SHUTTING_DOWN = outcome.Deferred(heard("421 4.3.2 going down"), Stage.MAIL, "mx.example")
NEVER = Failed(heard("550 5.1.1 no such user"), Stage.RCPT, "mx.example")
REFUSED = outcome.Deferred(LOCAL_REPLIES[LocalTrouble.CONNECTION_REFUSED], Stage.CONNECT, "mx.example")
NO_UTF8 = judge_local(Stage.MAIL, LocalTrouble.SMTPUTF8_NOT_OFFERED, "mx.example").outcome
MAIN, BACKUP = (Target(f"{name}.example", address) for name, address in (("mx1", "192.0.2.1"), ("mx2", "192.0.2.2")))


@define(eq=False)
class FakeConnection(OutboundConnection):
    """As much of an outbound connection as a lane and a pool see."""

    target: Target
    sent: list[tuple[Transaction, Deferred[Any], float]] = field(factory=list)
    usable: bool = True
    is_gone: bool = False
    went_stale: bool = False
    transactions_done: int = 0
    tls: Any = None
    tls_used: str = ""
    on_closed: Any = None
    clock: Any = None
    is_seven_bit: bool = False

    def serve(self, target: Target) -> None:
        self.target = target

    def needs_seven_bit(self, transaction: Transaction) -> bool:
        return self.is_seven_bit and transaction.envelope.body is BodyType.EIGHT_BIT

    def send(self, transaction: Transaction) -> Deferred[Any]:
        assert self.usable, "sent over a connection that is not usable"
        self.usable = False
        answer: Deferred[Any] = Deferred()
        self.sent.append((transaction, answer, self.clock.seconds()))
        return answer

    def answer(self, each: Outcome | None = None, stays: bool = True) -> None:
        """The transaction under way ends; the connection stays, or is gone."""
        transaction, answer, _ = self.sent[-1]
        assert not answer.called
        self.usable = stays
        self.transactions_done += 1
        outcomes = (each or Delivered(heard("250 2.0.0 ok"), self.target.host),)
        answer.callback(outcomes * len(transaction.envelope.recipients))
        if not stays:
            self.go()

    @property
    def silent_since(self) -> float | None:
        return self.sent[-1][2] if self.busy and not self.transactions_done else None

    def give_up(self, reply: Reply) -> None:
        if self.busy:
            self.answer(outcome.Deferred(reply, Stage.MAIL, self.target.host), stays=False)
        else:
            self.go()

    def stale(self) -> None:
        """The server had let go of it."""
        self.went_stale, self.usable = True, False
        self.sent[-1][1].callback((LATER,))
        self.go()

    @property
    def busy(self) -> bool:
        return bool(self.sent) and not self.sent[-1][1].called

    def close(self) -> None:
        self.go()

    def go(self) -> None:
        self.usable, self.is_gone = False, True
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed(self)


class Node:
    """A lane, or several, with everything around them."""

    def __init__(self, domains: Sequence[str] = ("example.com",), **changes: Any) -> None:
        self.world = World()
        self.settings = DestinationSettings(**changes)
        self.targets: tuple[Target, ...] = (evolve(MAIN, limit="L"), evolve(BACKUP, limit="L"))
        self.made: list[FakeConnection] = []
        self.attempts: list[tuple[Target, Deferred[Any]]] = []
        self.at_once: Callable[[Target], Any] | None = None  # what an attempt gives at once; None: the test answers
        self.no_route: NoRoute | None = None
        self.is_valid = True
        self.is_draining = False
        self.taken: list[Claim] = []
        self.lost: list[Ownership] = []
        self.settled: list[Claim] = []
        self.suspensions = Suspensions()
        self.rules = NO_RULES
        self.placed = True
        self.owned = True
        world = self.world
        self.pool = ConnectionPool(world.clock, self.connect)
        self.crowd = Crowd(lambda limit: len(self.attempts) + len([each for each in self.made if not each.is_gone]))
        self.pool.on_gone = lambda connection: self.crowd.freed(connection.target.limit)
        self.settlement = Settlement(
            world.clock, world.queue, world.metrics, world.log, RETRY, "us.example", lambda: 0.5
        )
        self.hands = Hands(world.clock, 1000, lambda: self.pool.is_wanted)
        self.settlement.on_settled = self.on_settled
        self.means = Means(
            clock=world.clock,
            queue=world.queue,
            pool=self.pool,
            routes=self,  # type: ignore[arg-type]
            settlement=self.settlement,
            metrics=world.metrics,
            log=world.log,
            valid=lambda: self.is_valid,
            proves=lambda _token: self.is_valid,
            owner_of=self.owner_of,
            number=counting(),
            pace=self.pace,
            lost=self.lost.append,
            taken=self.take,
            crowd=self.crowd,
            draining=lambda: self.is_draining,
            sign_anew=lambda content: content,
            reaches=Reaches(),
            suspended=lambda domain, limit: self.suspensions.lookup(domain, limit, world.queue.now_ms()),
            suspend=self.suspend,
            jitter=lambda: 0.5,
            rules=lambda: self.rules,
            hands=self.hands,
        )
        for domain in domains:
            world.own(domain)
        self.lanes = [Lane(domain, partition_of(domain, PARTITIONS), self.settings, self.means) for domain in domains]
        self.lane = self.lanes[0]

    def take(self, claim: Claim) -> None:
        self.taken.append(claim)
        self.hands.held.add(claim.token)

    def on_settled(self, claim: Claim) -> None:
        self.settled.append(claim)
        self.hands.done(claim.token)

    def is_placed(self, domain: str) -> bool:
        return self.placed

    def suspend(self, limit: str, seconds: float, reason: str) -> None:
        until_ms = self.world.queue.now_ms() + int(seconds * 1000)
        self.suspensions = Suspensions.build([*self.suspensions, Suspension(limit, until_ms, reason=reason)])

    async def find(self, domain: str, settings: DestinationSettings) -> Route | NoRoute:
        return self.no_route or Route(self.targets, float("inf"))

    def owner_of(self, partition: int) -> Ownership | None:
        return None if not self.owned else Ownership(partition, 1, self.world.cluster.partitions[partition].fence)

    def pace(self, domain: str, settings: DestinationSettings) -> Pace | None:
        if settings.rate is None:
            return None
        return Pace(self.world.clock, self.world.throttle, settings.limit_key(domain), settings.rate)

    def connect(self, target: Target) -> Deferred[Any]:
        if self.at_once is not None:
            given = self.at_once(target)
            return fail(given) if isinstance(given, Exception) else succeed(given)
        attempt: Deferred[Any] = Deferred()
        self.attempts.append((target, attempt))
        return attempt

    def connection(self, target: Target) -> FakeConnection:
        self.made.append(FakeConnection(target, clock=self.world.clock))
        return self.made[-1]

    def up_to(self, most: int) -> Callable[[Target], Any]:
        """Attempts succeed at once, while fewer connections than so many stand."""

        def attempt(target: Target) -> Any:
            standing = sum(not each.is_gone for each in self.made)
            return self.connection(target) if standing < most else LimitReached("L")

        return attempt

    def opened(self) -> FakeConnection:
        """The oldest attempt succeeds."""
        target, attempt = self.attempts.pop(0)
        connection = self.connection(target)
        attempt.callback(connection)
        return connection

    def refused(self, error: Exception | None = None) -> None:
        """The oldest attempt fails."""
        self.attempts.pop(0)[1].errback(error or ConnectFailed(REFUSED))

    def queue(self, count: int, domain: str = "example.com") -> list[Item]:
        """Items that wait."""
        items = [self.world.item(domain) for _ in range(count)]
        for item in items:
            result(self.world.queue.enqueue(item, b"Subject: x\r\n\r\n", None))
        return items

    @property
    def busy(self) -> list[FakeConnection]:
        return [each for each in self.made if each.busy]

    def done(self) -> set[str]:
        return {name for place in self.world.cluster.partitions for name in place.done}

    def work_off(self) -> None:
        """Whatever is asked is answered well, until nothing is asked."""
        while self.attempts or self.busy:
            if self.attempts:
                self.opened()
            for connection in self.busy:
                connection.answer()

    def stuck(self) -> list[str]:
        """Lanes in which something waits that is neither being sent, nor opened for, nor has a timer."""
        return [
            lane.domain
            for lane in self.lanes
            if lane.waiting and not (lane.carrying or lane.opening.count or lane._timer)
        ]


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

    # How many connections, and which

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

    def test_slow_down(self) -> None:
        """A rule of the operator's: who says so gets nothing for a moment, then half of the connections; the message is deferred, and
        no other host is asked."""
        node = Node(connections=8)
        rule = ReplyRule("r", TextPattern("rate limit"), SlowDown())
        node.rules = ReplyRules([rule])
        node.at_once = node.connection
        node.queue(400)
        node.lane.wake()
        while len(node.busy) < 8:
            node.busy[0].answer()
        asked = evolve(LATER, reply=heard("421 4.7.0 rate limit"), stage=Stage.MAIL)
        for connection in node.busy:
            connection.answer(asked, stays=False)
        self.assertEqual((node.busy, node.lane.in_hand), ([], 0))
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
        node = Node(connections=8)
        node.rules = ReplyRules([ReplyRule("r", TextPattern("rate limit"), SlowDown())])
        node.at_once = node.connection
        node.queue(400)
        node.lane.wake()
        while len(node.busy) < 8:
            node.busy[0].answer()
        asked = evolve(LATER, reply=heard("450 4.7.0 rate limit"), stage=Stage.MAIL)
        for connection in node.busy:
            connection.answer(asked)
        self.assertEqual((node.busy, node.lane.in_hand), ([], 0))
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
