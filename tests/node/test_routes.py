"""Routes: which targets are tried for a domain, in which order, and what it means when there are none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from relaycluster.interfaces import IMXResolver
from relaycluster.mail import outcome
from relaycluster.node.routes import NoRoute, Route, Routes
from relaycluster.policy.routing import (
    MX,
    AddressAnswer,
    Addresses,
    DestinationSettings,
    DNSTrouble,
    Exchangers,
    HostPort,
    MXAnswer,
    NoAddress,
)
from relaycluster.policy.sources import Source
from tests.node.world import run

OURS = "192.0.2.9"
SERVFAIL = DNSTrouble("SERVFAIL")


def at(*addresses: str) -> Addresses:
    return Addresses(addresses, 60)


@implementer(IMXResolver)
class Answers:
    """A resolver that knows its answers."""

    def __init__(self, records: Sequence[MX], hosts: Mapping[str, AddressAnswer]) -> None:
        self._records = tuple(records)
        self._hosts = hosts

    def mx(self, domain: str) -> Deferred[MXAnswer]:
        return succeed(Exchangers(self._records, 60))

    def addresses(self, host: str) -> Deferred[AddressAnswer]:
        return succeed(self._hosts[host])


def unmoved(_: list[Any]) -> None:
    """A shuffle that leaves the order alone."""


SHUFFLES: tuple[Callable[[list[Any]], None], ...] = (unmoved, list.reverse)


def route(
    exchangers: Mapping[str, tuple[int, AddressAnswer]],
    settings: DestinationSettings | None = None,
    shuffle: Callable[[list[Any]], None] = unmoved,
    known: Sequence[Sequence[str]] = (),
) -> Route | NoRoute:
    """The route to a domain with these exchangers, their preferences and addresses; one address is ours, and the names that were
    `known` one after the other."""
    records = [MX(preference, host) for host, (preference, _) in exchangers.items()]
    resolver = Answers(records, {host: answer for host, (_, answer) in exchangers.items()})
    routes = Routes(resolver, shuffle, lambda address, _port: address == OURS, lambda: 0.0)
    for names in known:
        routes.know(names)
    found = run(routes.find("d.example", settings or DestinationSettings()))
    assert isinstance(found, Route | NoRoute)
    return found


def hosts_of(found: Route | NoRoute) -> list[str]:
    assert isinstance(found, Route), found
    return list(dict.fromkeys(target.host for target in found.targets))


class RoutesTest(SynchronousTestCase):
    def test_ourselves_by_address(self) -> None:
        """RFC 5321 5.1: a host with an address of ours goes, with all that are not preferred to it, wherever the shuffle put them."""
        exchangers = {
            "first.example": (10, at("192.0.2.1")),
            "beside.example": (20, at("192.0.2.2")),
            "us.example": (20, at(OURS)),
            "behind.example": (30, at("192.0.2.3")),
        }
        for shuffle in SHUFFLES:
            self.assertEqual(hosts_of(route(exchangers, shuffle=shuffle)), ["first.example"])
            del exchangers["first.example"]
            found = route(exchangers, shuffle=shuffle)
            assert isinstance(found, NoRoute)
            self.assertEqual((type(found.outcome), found.outcome.reply.enhanced), (outcome.Failed, "5.4.6"))
            exchangers["first.example"] = (10, at("192.0.2.1"))

    def test_ourselves_by_name(self) -> None:
        """RFC 5321 5.1: an exchanger that is another node of the cluster is ourselves, however its name is written, and also after it
        left: whoever is not preferred to it goes, and whoever is stays."""
        exchangers = {
            "primary.example": (10, at("192.0.2.1")),
            "mx1.example": (20, at("192.0.2.2")),
            "mx2.example": (30, at("192.0.2.3")),
        }
        self.assertEqual(hosts_of(route(exchangers)), list(exchangers))
        both = ["MX1.example.", "mx2.example"]
        for known in ([both], [["mx2.example"], both], [both, ["mx2.example"]], [both, []]):
            self.assertEqual(hosts_of(route(exchangers, known=known)), ["primary.example"])
        self.assertEqual(hosts_of(route(exchangers, known=[["mx2.example"]])), ["primary.example", "mx1.example"])
        found = route({"mx1.example": exchangers["mx1.example"]}, known=[both])
        assert isinstance(found, NoRoute)
        self.assertEqual((type(found.outcome), found.outcome.reply.enhanced), (outcome.Failed, "5.4.6"))

    def test_backup_of_a_host_that_is_not_known_just_now(self) -> None:
        """We are the backup; the primary's address cannot be looked up, or no source fits it: the mail waits and is not bounced."""
        v4_only = DestinationSettings(sources=(Source("192.0.2.50", "us.example"),))
        for primary, settings in ((SERVFAIL, None), (at("2001:db8::1"), v4_only)):
            found = route({"primary.example": (10, primary), "us.example": (20, at(OURS))}, settings)
            assert isinstance(found, NoRoute)
            self.assertIsInstance(found.outcome, outcome.Deferred)

    def test_trouble_behind_ourselves(self) -> None:
        """What is not preferred to us does not count, also when nothing is known of it."""
        for shuffle in SHUFFLES:
            found = route({"beside.example": (10, SERVFAIL), "us.example": (10, at(OURS))}, shuffle=shuffle)
            assert isinstance(found, NoRoute)
            self.assertIsInstance(found.outcome, outcome.Failed)

    def test_ourselves_among_configured_hosts(self) -> None:
        """They have an order instead of preferences: those before ours are tried."""
        configured = DestinationSettings(hosts=(HostPort("a.example", 25), HostPort("us.example", 25)))
        answers = {"a.example": (0, at("192.0.2.1")), "us.example": (0, at(OURS))}
        self.assertEqual(hosts_of(route(answers, configured)), ["a.example"])
        answers["a.example"] = (0, SERVFAIL)
        found = route(answers, configured)
        assert isinstance(found, NoRoute)
        self.assertIsInstance(found.outcome, outcome.Deferred)

    def test_a_host_that_cannot_be_looked_up(self) -> None:
        """It is left out while others can; when none can, the trouble of the best counts."""
        exchangers: dict[str, tuple[int, AddressAnswer]] = {
            "a.example": (10, SERVFAIL),
            "b.example": (20, at("192.0.2.2")),
        }
        self.assertEqual(hosts_of(route(exchangers)), ["b.example"])
        exchangers["b.example"] = (20, NoAddress())
        found = route(exchangers)
        assert isinstance(found, NoRoute)
        self.assertIsInstance(found.outcome, outcome.Deferred)

    def test_many_addresses(self) -> None:
        """A host with twenty addresses does not hide the next one; alone it may have them all. Idle connections are looked for at
        those that are not tried, too."""
        many = at(*(f"192.0.2.{n}" for n in range(101, 121)))
        found = route({"a.example": (10, many), "b.example": (20, at("198.51.100.1"))})
        self.assertEqual(hosts_of(found), ["a.example", "b.example"])
        assert isinstance(found, Route)
        self.assertEqual((len(found.targets), len(found.kept)), (6, 20))
        self.assertLessEqual(set(found.targets), set(found.kept))
        alone = route({"a.example": (10, many)})
        assert isinstance(alone, Route)
        self.assertEqual(len(alone.targets), 20)
