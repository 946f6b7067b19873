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
from relaycluster.node.lane import Lane
from relaycluster.node.opening import IN_ALL_SECONDS, SILENT_SECONDS
from relaycluster.node.routes import Route, Routes
from relaycluster.policy.pace import SlowDown
from relaycluster.policy.rate import Rate
from relaycluster.policy.reply_rules import ReplyRule, ReplyRules
from relaycluster.policy.routing import MX, Addresses, DestinationSettings, Exchangers, HostPort, MXAnswer, RouteTable
from relaycluster.policy.text_pattern import TextPattern
from tests.node.lanes import MAIN, REFUSED, FakeConnection, Node
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
    def test_an_idle_connection_serves_a_new_domain(self) -> None:
        """All connections to a smarthost that there may be stand idle: each domain that comes uses them, and none ends one to open its own."""
        domains = [f"d{n}.example" for n in range(12)]
        for most in (1, 2):
            node = Node(domains, name="L", hosts=(HostPort(MAIN.host, 25),), connections=most)
            node.targets = (evolve(MAIN, limit="L"),)
            node.at_once = node.up_to(most)
            for at in range(0, len(domains), most):
                for lane in node.lanes[at : at + most]:
                    node.queue(1, lane.domain)
                    lane.wake()
                for _ in range(20):
                    node.world.advance(0.05)
                    for connection in node.busy:
                        connection.answer()
            self.assertEqual((len(node.made), len(node.done())), (most, len(domains)))
