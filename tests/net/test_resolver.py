"""The resolver against a fake server on real loopback sockets: what each answer means, and what is kept.

Time is a `Clock`: nothing here waits. Where a lookup must be in the middle of something, the test waits for the
question to reach the server.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from relaycluster.interfaces import IMXResolver
from relaycluster.net.dns_client import ClientSettings
from relaycluster.net.resolver import CacheSettings, Resolver, parse_resolv_conf, server_addresses, system_servers
from relaycluster.policy.routing import (
    MX,
    Addresses,
    DNSTrouble,
    Exchangers,
    HostPort,
    NoAddress,
    NoSuchDomain,
    NullMX,
)
from tests.support.dns import FakeDNS


class ResolverCase(TestCase):
    """Servers and resolvers that end with the test."""

    timeout = 60

    def setUp(self) -> None:
        self.clock = Clock()
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    def serve(self, *lines: str) -> FakeDNS:
        """A server with these zone lines."""
        server = FakeDNS("\n".join(lines), on_query=lambda _: reactor.callFromThread(self._look))
        server.start()
        self.addCleanup(server.stop)
        return server

    def resolver(self, *servers: FakeDNS | HostPort, **more: Any) -> Resolver:
        """A resolver that asks these servers; `client` holds further client settings."""
        addresses = tuple(
            server if isinstance(server, HostPort) else HostPort(server.host, server.port) for server in servers
        )
        client = ClientSettings(addresses, **more.pop("client", {}))
        more.setdefault("random_bits", secrets.randbits)
        resolver = Resolver(reactor, self.clock, client, **more)  # type: ignore[arg-type]
        self.addCleanup(resolver.stop)
        return resolver

    def until(self, condition: Callable[[], bool]) -> Deferred[None]:
        """Fires once the condition holds; looked at whenever a question reaches a server."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append((condition, waiting))
        self._look()
        return waiting

    def _look(self) -> None:
        for entry in list(self._waiting):
            if entry[0]():
                self._waiting.remove(entry)
                entry[1].callback(None)

    async def asked(self, server: FakeDNS, number: int) -> None:
        """The server has seen so many questions."""
        await self.until(lambda: len(server.queries) >= number)


class MXMeaningTests(ResolverCase):
    """What the records of a domain mean (RFC 5321 5.1)."""

    async def test_exchangers(self) -> None:
        """MX records, by preference, names in lower case."""
        dns = self.serve("example.test 77 MX 20 B.test", "example.test 77 MX 10 a.test")
        resolver = self.resolver(dns)
        verifyObject(IMXResolver, resolver)
        self.assertEqual(
            await resolver.mx("example.test"), Exchangers((MX(10, "a.test"), MX(20, "b.test")), ttl_seconds=77)
        )

    async def test_implicit_mx(self) -> None:
        """Without MX records a domain with an address of either family is its own host; those are kept already."""
        dns = self.serve("four.test A 127.0.0.2", "six.test AAAA ::1")
        resolver = self.resolver(dns)
        for name in ("four.test", "six.test"):
            answer = await resolver.mx(name)
            self.assertIsInstance(answer, Exchangers)
            self.assertEqual((answer.records, answer.implicit), ((MX(0, name),), True))
            self.assertIsInstance(resolver.cached_addresses(name), Addresses)

    async def test_null_mx(self) -> None:
        """RFC 7505: a lone "." refuses mail, though the domain has an address; beside other records it does not,
        not even beside one that can be no host."""
        dns = self.serve(
            *("null.test MX 0 .", "null.test A 127.0.0.2", "odd.test MX 0 .", "odd.test MX 10 a.test"),
            *("wrong.test MX 0 .", "wrong.test MX 10 192.0.2.1"),
        )
        resolver = self.resolver(dns)
        self.assertEqual(await resolver.mx("null.test"), NullMX())
        self.assertEqual(dns.count("null.test", "A"), 0)
        answer = await resolver.mx("odd.test")
        self.assertEqual(answer, Exchangers((MX(10, "a.test"),), 300))
        self.assertIsInstance(await resolver.mx("wrong.test"), DNSTrouble)

    async def test_no_such_domain(self) -> None:
        """NXDOMAIN; and a name that is there without MX and addresses, which says that it exists."""
        dns = self.serve("a.deep.test A 127.0.0.2")
        resolver = self.resolver(dns)
        self.assertEqual(await resolver.mx("nowhere.test"), NoSuchDomain(exists=False))
        self.assertEqual(await resolver.mx("deep.test"), NoSuchDomain(exists=True))

    async def test_trouble_with_mx_is_never_implicit_mx(self) -> None:
        """A domain whose MX cannot be looked up waits; its web server must not get its mail."""
        dns = self.serve("half.test SERVFAIL MX", "half.test A 127.0.0.2", "flip.test SERVFAIL A", "flip.test AAAA ::1")
        resolver = self.resolver(dns)
        self.assertIsInstance(await resolver.mx("half.test"), DNSTrouble)
        self.assertIsInstance(await resolver.mx("flip.test"), Exchangers)

    async def test_trouble_with_the_addresses_of_an_implicit_mx(self) -> None:
        """No MX and addresses unknown: trouble, not "no such domain"."""
        dns = self.serve("bad.test SERVFAIL A AAAA")
        answer = await self.resolver(dns).mx("bad.test")
        self.assertIsInstance(answer, DNSTrouble)
        self.assertIn("SERVFAIL", answer.reason)

    async def test_cnames(self) -> None:
        """A domain that is an alias has its target's exchangers; an exchanger that is one, its target's addresses; and
        an alias without MX is implicit under its own name."""
        dns = self.serve(
            *("alias.test CNAME b.test", "b.test CNAME example.test", "example.test MX 10 mx.test"),
            *("mx.test CNAME real.test", "real.test A 127.0.0.2", "web.test CNAME real.test"),
        )
        resolver = self.resolver(dns)
        self.assertEqual(await resolver.mx("alias.test"), Exchangers((MX(10, "mx.test"),), 300))
        answer = await resolver.addresses("mx.test")
        self.assertEqual(answer, Addresses(("127.0.0.2",), 60))
        implicit = await resolver.mx("web.test")
        self.assertEqual(implicit.records, (MX(0, "web.test"),))

    async def test_a_loop_of_cnames_is_trouble(self) -> None:
        """It ends."""
        dns = self.serve("a.test CNAME b.test", "b.test CNAME a.test")
        self.assertIsInstance(await self.resolver(dns).mx("a.test"), DNSTrouble)

    async def test_exchangers_that_cannot_be_hosts(self) -> None:
        """An address as an exchanger is a mistake of the domain's owner: trouble, so that there is time to mend it."""
        dns = self.serve("wrong.test MX 10 192.0.2.1")
        answer = await self.resolver(dns).mx("wrong.test")
        self.assertIsInstance(answer, DNSTrouble)
        self.assertIn("no record names a possible host", answer.reason)

    async def test_literals_and_impossible_names_ask_nobody(self) -> None:
        """An address literal is its own host; what cannot be a name cannot be a domain."""
        dns = self.serve()
        resolver = self.resolver(dns)
        for literal, address in (("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:DB8::1]", "2001:db8::1")):
            answer = await resolver.mx(literal)
            self.assertEqual((answer.records, answer.implicit), ((MX(0, address),), True))
            self.assertEqual((await resolver.addresses(address)).addresses, (address,))
        for name in ("", ".", "[x]", "a..b", "bücher.test", "192.0.2.1", "a" * 64 + ".test", "a b.test", "\0"):
            self.assertEqual(await resolver.mx(name), NoSuchDomain())
        self.assertEqual(await resolver.addresses("a b.test"), NoAddress())
        self.assertEqual(dns.queries, [])

    async def test_names_in_any_case(self) -> None:
        """A caller that forgot to write lower case gets the answer, not a bounce."""
        dns = self.serve("example.test MX 10 a.test")
        self.assertIsInstance(await self.resolver(dns).mx("Example.TEST."), Exchangers)


class AddressTests(ResolverCase):
    """A and AAAA together."""

    async def test_families_alternate_and_the_function_says_which_leads(self) -> None:
        """v6 first or v4 first, then in turn."""
        lines = ("h.test A 127.0.0.2", "h.test A 127.0.0.3", "h.test AAAA ::1", "h.test AAAA ::2")
        for leads, start in ((True, "::1"), (False, "127.0.0.2")):
            answer = await self.resolver(self.serve(*lines), v6_first=lambda leads=leads: leads).addresses("h.test")
            self.assertEqual(answer.addresses[0], start)
            self.assertEqual([":" in address for address in answer.addresses], [leads, not leads] * 2)

    async def test_one_family_failing_leaves_the_other(self) -> None:
        """SERVFAIL for AAAA, as broken servers give: the A records are used, and kept for a minute only."""
        dns = self.serve("h.test SERVFAIL AAAA", "h.test 3000 A 127.0.0.2")
        self.assertEqual(await self.resolver(dns).addresses("h.test"), Addresses(("127.0.0.2",), 60))

    async def test_one_family_silent_does_not_hold_up_the_other(self) -> None:
        """Once A has answered, AAAA has one more second; it is not asked on after that."""
        dns = self.serve("h.test TIMEOUT AAAA", "h.test A 127.0.0.2")
        resolver = self.resolver(dns)
        lookup = resolver.addresses("h.test")
        while not any(call.getTime() == 1.0 for call in self.clock.getDelayedCalls()):
            await self.turn()  # until the A records are here
        self.assertFalse(lookup.called)
        self.clock.advance(1)
        self.assertEqual(await lookup, Addresses(("127.0.0.2",), 60))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(dns.count("h.test", "AAAA"), 1)

    def turn(self) -> Deferred[None]:
        """One turn of the reactor."""
        turned: Deferred[None] = Deferred()
        reactor.callLater(0, turned.callback, None)
        return turned

    async def test_no_address(self) -> None:
        """No such host; a host with neither; one with addresses that mean no host."""
        dns = self.serve("mail.test MX 10 a.test", "zero.test A 0.0.0.0", "zero.test AAAA ::")
        resolver = self.resolver(dns)
        for name in ("nowhere.test", "mail.test", "zero.test"):
            self.assertEqual(await resolver.addresses(name), NoAddress())

    async def test_no_addresses_in_one_family_and_trouble_with_the_other(self) -> None:
        """Nothing is known then: the host may have an address."""
        dns = self.serve("h.test SERVFAIL A", "h.test MX 10 a.test")
        self.assertIsInstance(await self.resolver(dns).addresses("h.test"), DNSTrouble)

    async def test_no_such_name_in_one_family_and_trouble_with_the_other(self) -> None:
        """RFC 4074 4.2: servers that know no AAAA say that the name does not exist. Whether it does is not known while the other lookup
        fails, or hears nothing: such mail waits."""
        dns = self.serve(
            *("six.test NXDOMAIN AAAA", "six.test SERVFAIL A", "four.test NXDOMAIN A", "four.test SERVFAIL AAAA"),
            *("mute.test NXDOMAIN AAAA", "mute.test TIMEOUT A"),
        )
        resolver = self.resolver(dns)
        for name in ("six.test", "four.test"):
            answer = await resolver.addresses(name)
            self.assertIsInstance(answer, DNSTrouble)
            self.assertIn("SERVFAIL", answer.reason)
        self.assertIsInstance(await resolver.mx("six.test"), DNSTrouble)
        lookup = resolver.addresses("mute.test")
        while len(self.clock.getDelayedCalls()) > 2:
            await self.turn()  # until the AAAA answer is here: the deadline of A and of its only try are left
        self.clock.pump([1.0] * 10)
        self.assertIsInstance(await lookup, DNSTrouble)

    async def test_no_such_name_in_one_family(self) -> None:
        """With an address in the other family that one counts; with an empty answer there is none."""
        dns = self.serve("h.test NXDOMAIN AAAA", "h.test A 127.0.0.2", "e.test NXDOMAIN AAAA", "e.test MX 10 a.test")
        resolver = self.resolver(dns)
        self.assertEqual((await resolver.addresses("h.test")).addresses, ("127.0.0.2",))
        self.assertEqual(await resolver.addresses("e.test"), NoAddress())

    async def test_both_families_are_asked_for_at_once(self) -> None:
        """Neither waits for the other."""
        dns = self.serve("h.test TIMEOUT")
        lookup = self.resolver(dns).addresses("h.test")
        await self.asked(dns, 2)
        self.assertEqual({query.record_type for query in dns.queries}, {"A", "AAAA"})
        self.assertFalse(lookup.called)


class KeepingTests(ResolverCase):
    """What is kept, and how long."""

    async def test_an_answer_is_kept_for_its_ttl(self) -> None:
        """The trap of twisted.names, whose cache is never filled: two lookups are one question; then it expires."""
        dns = self.serve("example.test 300 MX 10 a.test")
        resolver = self.resolver(dns)
        self.assertIsNone(resolver.cached_mx("example.test"))
        first = await resolver.mx("example.test")
        self.clock.advance(299)
        hit = resolver.mx("example.test")
        self.assertTrue(hit.called)
        self.assertIs(await hit, first)
        self.assertIs(resolver.cached_mx("example.test"), first)
        self.assertEqual(len(dns.queries), 1)
        self.clock.advance(1)
        self.assertIsNone(resolver.cached_mx("example.test"))
        await resolver.mx("example.test")
        self.assertEqual(len(dns.queries), 2)

    async def test_addresses_are_kept(self) -> None:
        """As long as the shorter of the two families' TTLs."""
        dns = self.serve("h.test 200 A 127.0.0.2", "h.test 100 AAAA ::1")
        resolver = self.resolver(dns)
        await resolver.addresses("h.test")
        self.clock.advance(99)
        await resolver.addresses("h.test")
        self.assertEqual(len(dns.queries), 2)
        self.clock.advance(1)
        await resolver.addresses("h.test")
        self.assertEqual(len(dns.queries), 4)

    async def test_lifetimes_have_bounds(self) -> None:
        """A TTL of 0 lives 10 s, one of a week a day, a negative answer of a week a quarter of an hour."""
        dns = self.serve("zero.test 0 MX 10 a.test", "week.test 604800 MX 10 a.test", "gone SOA 604800")
        resolver = self.resolver(dns)
        for name, seconds in (("zero.test", 10), ("week.test", 86_400), ("x.gone", 900)):
            await resolver.mx(name)
            self.clock.advance(seconds - 1)
            self.assertIsNotNone(resolver.cached_mx(name), name)
            self.clock.advance(1)
            self.assertIsNone(resolver.cached_mx(name), name)

    async def test_negative_answers_are_kept_as_their_soa_says(self) -> None:
        """RFC 2308: NXDOMAIN and an empty answer, for the SOA's minimum."""
        dns = self.serve("test SOA 120", "a.deep.test MX 10 a.test")
        resolver = self.resolver(dns)
        for name in ("nowhere.test", "deep.test"):
            await resolver.mx(name)
            asked = len(dns.queries)
            self.clock.advance(119)
            self.assertIsInstance(await resolver.mx(name), NoSuchDomain)
            self.assertEqual(len(dns.queries), asked)
            self.clock.advance(1)
            self.assertIsNone(resolver.cached_mx(name))

    async def test_an_implicit_mx_is_kept_no_longer_than_its_address(self) -> None:
        """Nor longer than the absence of MX records holds."""
        dns = self.serve("test SOA 60", "a.test 20 A 127.0.0.2", "a.test 20 AAAA ::1", "b.test 900 A 127.0.0.2")
        resolver = self.resolver(dns)
        for name, seconds in (("a.test", 20), ("b.test", 60)):
            answer = await resolver.mx(name)
            self.assertEqual(answer.ttl_seconds, seconds)
            self.clock.advance(seconds)
            self.assertIsNone(resolver.cached_mx(name))

    async def test_trouble_is_kept_for_a_moment(self) -> None:
        """RFC 9520: a thousand messages for a broken domain are not a thousand questions; and it heals soon."""
        dns = self.serve("bad.test SERVFAIL")
        resolver = self.resolver(dns)
        self.assertIsInstance(await resolver.mx("bad.test"), DNSTrouble)
        dns.set_zone("bad.test MX 10 a.test")
        self.clock.advance(9)
        self.assertIsInstance(await resolver.mx("bad.test"), DNSTrouble)
        self.assertEqual(len(dns.queries), 1)
        self.clock.advance(1)
        self.assertIsInstance(await resolver.mx("bad.test"), Exchangers)

    async def test_the_cache_is_bounded(self) -> None:
        """The domains that were longest not asked for go first."""
        dns = self.serve("*.bulk.test MX 10 a.test")
        resolver = self.resolver(dns, cache=CacheSettings(entries=5))
        for number in range(8):
            await resolver.mx(f"d{number}.bulk.test")
        kept = [number for number in range(8) if resolver.cached_mx(f"d{number}.bulk.test") is not None]
        self.assertEqual(kept, [3, 4, 5, 6, 7])


class SharingTests(ResolverCase):
    """Equal questions at the same time are one question."""

    async def test_single_flight(self) -> None:
        """A hundred lookups of one domain, and of its host: the server sees MX, A and AAAA once each."""
        dns = self.serve("example.test MX 10 mx.test", "mx.test A 127.0.0.2")
        resolver = self.resolver(dns)
        answers = await gatherResults([resolver.mx("example.test") for _ in range(100)])
        self.assertEqual(len({id(answer) for answer in answers}), 1)
        await gatherResults([resolver.addresses("mx.test") for _ in range(100)])
        self.assertEqual(sorted(query.record_type for query in dns.queries), ["A", "AAAA", "MX"])

    async def test_one_who_gives_up_does_not_disturb_the_others(self) -> None:
        """Cancelling a lookup cancels the waiting, not the lookup of the others."""
        dns = self.serve("late.test DELAY 0.05", "late.test MX 10 a.test")
        resolver = self.resolver(dns)
        impatient, patient = resolver.mx("late.test"), resolver.mx("late.test")
        impatient.cancel()
        self.assertIsInstance(await patient, Exchangers)
        await self.assertFailure(impatient, CancelledError)
        self.assertEqual(len(dns.queries), 1)

    async def test_who_asks_again_from_the_answer_gets_it_from_the_cache(self) -> None:
        """The answer is kept before anybody hears it."""
        dns = self.serve("example.test MX 10 a.test")
        resolver = self.resolver(dns)
        seen = []
        await resolver.mx("example.test").addCallback(lambda _: seen.append(resolver.cached_mx("example.test")))
        self.assertIsInstance(seen[0], Exchangers)

    async def test_our_own_mistakes_are_trouble_and_logged(self) -> None:
        """Never a failure, nor a name that is stuck."""

        def broken(_: int) -> int:
            raise ZeroDivisionError

        dns = self.serve()
        resolver = self.resolver(dns, random_bits=broken)
        for _ in range(2):
            self.assertEqual(await resolver.mx("example.test"), DNSTrouble("internal trouble"))
            self.assertEqual(await resolver.addresses("example.test"), DNSTrouble("internal trouble"))
            self.clock.advance(10)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 4)

    async def test_stop_ends_what_waits(self) -> None:
        """Trouble for who waits and for who comes later, kept answers stay, no socket and no timer is left."""
        dns = self.serve("slow.test TIMEOUT", "good.test MX 10 a.test")
        resolver = self.resolver(dns)
        await resolver.mx("good.test")
        waiting = [resolver.mx("slow.test"), resolver.mx("slow.test"), resolver.addresses("slow.test")]
        await self.asked(dns, 4)
        resolver.stop()
        for answer in await gatherResults(waiting):
            self.assertEqual(answer, DNSTrouble("the resolver is stopped"))
        self.assertEqual(await resolver.mx("other.test"), DNSTrouble("the resolver is stopped"))
        self.assertIsInstance(await resolver.mx("good.test"), Exchangers)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ServersTests(ResolverCase):
    """Which servers are asked."""

    def test_resolv_conf(self) -> None:
        """Its name servers; other lines, comments and damage are left; without any the one on this host."""
        text = "# nameserver 1.1.1.1\nsearch example.test\nnameserver 192.0.2.53\nnameserver fe80::1%eth0 # x\nnameserver\n"
        text += "nameserver dns.example.test\noptions timeout:1\n\tnameserver 2001:db8::53\n"
        hosts = [server.host for server in parse_resolv_conf(text)]
        self.assertEqual(hosts, ["192.0.2.53", "fe80::1%eth0", "2001:db8::53"])
        self.assertEqual(parse_resolv_conf(""), (HostPort("127.0.0.1", 53),))

    def test_system_servers_without_the_file(self) -> None:
        """A container may have none."""
        self.assertEqual(system_servers("/nonexistent/resolv.conf"), (HostPort("127.0.0.1", 53),))

    def test_configured_servers(self) -> None:
        """Addresses with or without port; a name would need a resolver first."""
        self.assertEqual(
            server_addresses(("127.0.0.1:5353", "::1".join("[]"), "192.0.2.53")),
            (HostPort("127.0.0.1", 5353), HostPort("::1", 53), HostPort("192.0.2.53", 53)),
        )
        for wrong in ("dns.example.test", "", "127.0.0.1:x", "::1"):
            with self.assertRaises(ValueError):
                server_addresses((wrong,))
