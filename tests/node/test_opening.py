"""How a lane comes to its connections: how many at once, which host first, and what hosts that hang may cost."""

from __future__ import annotations

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from relaycluster.interfaces import IMXResolver
from relaycluster.mail import outcome
from relaycluster.mail.outcome import Stage
from relaycluster.net.outbound import ConnectFailed, Target
from relaycluster.node.crowd import LimitReached
from relaycluster.node.lane import Lane
from relaycluster.node.opening import IN_ALL_SECONDS, SILENT_SECONDS
from relaycluster.node.routes import NoRoute, Route, Routes
from relaycluster.policy.pace import SlowDown
from relaycluster.policy.rate import Rate
from relaycluster.policy.reply_rules import ReplyRule, ReplyRules
from relaycluster.policy.routing import MX, Addresses, DestinationSettings, Exchangers, HostPort, MXAnswer, RouteTable
from relaycluster.policy.text_pattern import TextPattern
from tests.node.test_lane import MAIN, REFUSED, FakeConnection, Node
from tests.support.replies import heard

GREETING_SECONDS = 300.0
NO_GREETING = ConnectFailed(evolve(REFUSED, stage=Stage.GREETING))


def hosts(*addresses: int) -> tuple[Target, ...]:
    """Targets at hosts with so many addresses each."""
    return tuple(
        evolve(MAIN, limit="L", host=f"mx{number}.example", address=f"192.0.{number}.{n}")
        for number, count in enumerate(addresses, 1)
        for n in range(count)
    )


class OpeningTest(SynchronousTestCase):
    def test_as_many_at_once_as_carry_mail(self) -> None:
        """Twice as many each round, not one more."""
        node = Node(connections=20)
        node.queue(200)
        node.lane.wake()
        for standing in (1, 2, 4):
            for _ in range(len(node.attempts)):
                node.opened()
            for _ in range(8):
                for connection in node.busy:
                    connection.answer()
            self.assertEqual((len(node.busy), len(node.attempts)), (standing, standing))

    def test_the_first_host_hangs(self) -> None:
        """It has taken the connection and says nothing. A little later the other host is asked, and the mail goes there."""
        node = Node(connections=20)
        items = node.queue(1)
        node.lane.wake()
        node.world.advance(SILENT_SECONDS - 1)
        self.assertEqual([target.host for target, _ in node.attempts], ["mx1.example"])
        node.world.advance(2)
        self.assertEqual([target.host for target, _ in node.attempts], ["mx1.example", "mx2.example"])
        node.world.advance(200, 1)
        self.assertEqual(len(node.attempts), 2)
        node.attempts.append(node.attempts.pop(0))
        node.opened().answer()
        self.assertEqual(node.done(), {item.id for item in items})

    def test_who_waits_for_a_place_does_not_hang(self) -> None:
        """The process has all its connections in use: no second one is asked for, and no host is passed over."""
        node = Node(("a.example", "b.example"), connections=20)
        node.pool._most = 1
        targets = dict(zip(("a.example", "b.example"), (hosts(1), hosts(0, 1, 1)), strict=True))

        async def found(domain: str, settings: DestinationSettings) -> Route:
            return Route(targets[domain], float("inf"), settings)

        node.find = found  # type: ignore[method-assign]
        node.queue(1, "a.example")
        node.queue(3, "b.example")
        for lane in node.lanes:
            lane.wake()
        node.world.advance(4)
        self.assertEqual((len(node.attempts), node.pool.counts.waiting), (1, 1))
        connection = node.opened()
        connection.transactions_done = 1  # a host that never answered one would be given up for those who wait
        node.world.advance(3 * SILENT_SECONDS, 1)
        self.assertEqual(node.pool.counts.waiting, 1)
        connection.answer()
        self.assertEqual([target.host for target, _ in node.attempts], ["mx2.example"])

    def test_all_hosts_hang(self) -> None:
        """Each takes the connection and says nothing for five minutes: the mail is deferred after two of them."""
        node = Node(connections=1)
        node.targets = hosts(1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
        node.queue(5)
        node.lane.wake()
        tried = 0
        while node.attempts:
            node.world.clock.advance(GREETING_SECONDS)
            node.refused(NO_GREETING)
            tried += 1
        self.assertEqual((tried, node.world.clock.seconds()), (2, IN_ALL_SECONDS))
        self.assertTrue(node.world.events("deferred"))

    def test_hosts_that_refuse_at_once(self) -> None:
        """All are tried, whatever their number."""
        node = Node()
        node.targets = hosts(2, 2, 2, 2, 2, 2, 2, 2, 2, 2)
        node.queue(1)
        node.lane.wake()
        tried = 0
        while node.attempts:
            node.refused()
            tried += 1
        self.assertEqual(tried, 20)

    def test_the_next_host_before_more_addresses_of_one_that_hangs(self) -> None:
        """A host of three addresses takes connections and says nothing: the second try is at the next host. One that cannot be connected
        to may have another address that can."""
        for error, order in ((NO_GREETING, ["mx1.example", "mx2.example"]), (None, ["mx1.example", "mx1.example"])):
            node = Node(connections=1)
            node.targets = hosts(3, 1)
            node.queue(1)
            node.lane.wake()
            tried = []
            for _ in range(2):
                tried.append(node.attempts[0][0].host)
                node.world.clock.advance(30)
                node.refused(error)
            self.assertEqual(tried, order)

    def test_slow_down_in_the_greeting(self) -> None:
        """Whoever says so is no dead host: nothing is sent for a moment, then half of it; no probe, no fresh start."""
        node = Node(connections=20)
        node.rules = ReplyRules([ReplyRule("r", TextPattern("slow"), SlowDown())])
        node.queue(60)
        node.lane.wake()
        said = outcome.Deferred(heard("421 4.7.0 slow down"), Stage.GREETING, "mx1.example")
        node.refused(ConnectFailed(said))
        self.assertEqual((node.attempts, node.lane.in_hand), ([], 0))
        window = node.lane.opening.reach.window
        self.assertEqual((window.failures, window.starting, window.requests), (0, False, 1))
        node.at_once = node.connection
        node.world.advance(10)
        node.lane.wake()
        most = 0
        for _ in range(40):
            carrying: list[FakeConnection] = node.busy
            most = max(most, len(carrying))
            for connection in carrying:
                connection.answer()
        self.assertEqual(most, 1)


@implementer(IMXResolver)
class SlowAnswers:
    """A resolver whose answers come when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Deferred[MXAnswer]] = []

    def mx(self, domain: str) -> Deferred[MXAnswer]:
        self.asked.append(Deferred())
        return self.asked[-1]

    def addresses(self, host: str) -> Deferred[Addresses]:
        return succeed(Addresses(("192.0.2.1",), 60))

    def answer(self) -> None:
        self.asked.pop(0).callback(Exchangers((MX(10, "a.mx.example"),), 60))


def table(changed: DestinationSettings) -> RouteTable:
    """Example.com is routed by its name, or by its MX host."""
    return RouteTable.build(DestinationSettings(), [(() if changed.mx_suffix else ("example.com",), changed)])


class ReloadTest(SynchronousTestCase):
    def test_while_dns_is_asked(self) -> None:
        """The settings that were lowered while DNS was asked are those that hold when it has answered, never again the former ones: be it
        the name that decides which they are, or the MX host."""
        for suffix in ((), ("mx.example",)):
            former = DestinationSettings(name="big", mx_suffix=suffix, rate=Rate.of(100), tls="may")
            lowered = evolve(former, rate=Rate.of(1), tls="verify", connections=2)
            node, resolver = Node(), SlowAnswers()
            routes = Routes(resolver, list.reverse, lambda *_: False, node.world.clock.seconds)
            routes.use(table(former))
            means = evolve(node.means, routes=routes)
            lane = Lane("example.com", node.lane.partition, table(former).lookup("example.com"), means)
            node.queue(1)
            lane.wake()
            self.assertEqual(len(resolver.asked), 1)
            routes.use(table(lowered))
            lane.use(table(lowered).lookup("example.com"))
            while resolver.asked:
                resolver.answer()
                self.assertNotEqual(lane.settings.rate, former.rate)
            self.assertEqual(lane.settings, lowered)
            self.assertEqual([target.tls for target, _ in node.attempts], ["verify"])


class SharedHostsTest(SynchronousTestCase):
    """Domains that a limit, and perhaps the hosts, are common to."""

    DOMAINS = tuple(f"d{n}.example" for n in range(6))

    def node(self, most: int, has_hosts: bool = True) -> Node:
        node = Node(self.DOMAINS, name="L", hosts=(HostPort(MAIN.host, 25),) if has_hosts else (), connections=most)
        node.targets = (evolve(MAIN, limit="L"),)
        node.at_once = lambda target: LimitReached("L") if node.crowd.open("L") >= most else node.connection(target)
        return node

    def one_after_the_other(self, node: Node, domains: tuple[str, ...]) -> None:
        for domain in domains:
            node.queue(1, domain)
            next(lane for lane in node.lanes if lane.domain == domain).wake()
            for _ in range(20):
                node.world.advance(0.05)
                for connection in node.busy:
                    connection.answer()

    def test_an_idle_connection_serves_a_new_domain(self) -> None:
        """The only connection there may be is idle: each domain that comes uses it, and none closes it to open its own."""
        node = self.node(1)
        self.one_after_the_other(node, self.DOMAINS)
        self.assertEqual((len(node.made), len(node.done())), (1, 6))

    def test_an_idle_connection_serves_when_the_route_was_too_old(self) -> None:
        """The same when DNS must be asked again before each message."""
        node = self.node(1)

        async def found(domain: str, settings: DestinationSettings) -> Route:
            return Route(node.targets, node.world.clock.seconds() - 0.001)  # a TTL of 0, seen a moment later

        node.find = found  # type: ignore[method-assign]
        self.one_after_the_other(node, self.DOMAINS + self.DOMAINS)
        self.assertEqual((len(node.made), len(node.done())), (1, 12))

    def test_an_idle_connection_serves_under_a_provider_that_was_slowed_down(self) -> None:
        """The domains have hosts of their own, which are the same; what is left of the provider's window is one connection."""
        node = self.node(20, has_hosts=False)
        group = node.lane.opening.group
        group.become(group.window.slowed(1, 0.0, 0.5))
        node.world.advance(6)
        self.one_after_the_other(node, self.DOMAINS)
        self.assertEqual((len(node.made), len(node.done())), (1, 6))

    def test_dns_slower_than_all(self) -> None:
        """All domains ask DNS at once, and have the answer at once: no more connections are made than the window allows."""
        node = self.node(20)
        asked: list[Deferred[None]] = []

        async def found(domain: str, settings: DestinationSettings) -> Route:
            asked.append(Deferred())
            await asked[-1]
            return Route(node.targets, float("inf"))

        node.find = found  # type: ignore[method-assign]
        for domain, lane in zip(self.DOMAINS, node.lanes, strict=True):
            node.queue(1, domain)
            lane.wake()
        self.assertEqual(len(asked), 6)
        for each in asked:
            each.callback(None)
        self.assertEqual((len(node.busy), len(node.made)), (2, 2))
        for _ in range(40):
            node.world.advance(0.1)
            for connection in node.busy:
                connection.answer()
        self.assertEqual(len(node.done()), 6)

    def test_dns_fails_while_the_hosts_are_in_use(self) -> None:
        """Whoever asks DNS for the hosts of a connection that carries mail, in vain, waits for his turn: the window stays."""
        node = self.node(1)
        first, second = self.DOMAINS[:2]
        node.queue(1, first)
        node.lanes[0].wake()
        node.no_route = NoRoute(REFUSED)
        node.queue(1, second)
        window = node.lane.opening.reach.window
        node.lanes[1].wake()
        node.world.advance(3)
        self.assertEqual((node.lane.opening.reach.window, node.world.events("deferred")), (window, []))
        node.no_route = None
        for _ in range(40):
            for connection in node.busy:
                connection.answer()
            node.world.advance(0.1)
        self.assertEqual(len(node.done()), 2)

    def test_a_turn_is_not_lost_to_dns(self) -> None:
        """A domain whose route is too old at each of its turns: the connection is not taken again, while DNS is asked, by who left it."""
        node = self.node(1)
        clock = node.world.clock

        class Closing(FakeConnection):
            """It ends a moment after it was told to."""

            def close(self) -> None:
                self.usable = False
                clock.callLater(0.1, self.go)

        def connected(target: Target) -> LimitReached | FakeConnection:
            if node.crowd.open("L"):
                return LimitReached("L")
            node.made.append(Closing(target, clock=clock))
            return node.made[-1]

        node.at_once = connected
        answers: list[Deferred[None]] = []

        async def found(domain: str, settings: DestinationSettings) -> Route:
            if domain == self.DOMAINS[0]:
                return Route(node.targets, float("inf"))
            answers.append(Deferred())
            await answers[-1]
            return Route(node.targets, node.world.clock.seconds())

        node.find = found  # type: ignore[method-assign]
        node.queue(200, self.DOMAINS[0])
        node.lanes[0].wake()
        node.queue(1, self.DOMAINS[1])
        node.lanes[1].wake()
        for _ in range(60):
            node.world.advance(0.2, 0.05)
            for connection in node.busy:
                connection.answer()
            while answers:
                answers.pop().callback(None)
        self.assertFalse(node.lanes[1].in_hand)
        self.assertTrue(node.lanes[0].in_hand)
