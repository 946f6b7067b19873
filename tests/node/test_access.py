"""Who may relay: by network and by domain, never anybody else."""

from __future__ import annotations

from ipaddress import ip_network

from twisted.trial.unittest import SynchronousTestCase

from relaycluster.mail.address import Address
from relaycluster.node.access import Access
from relaycluster.smtp.grammar import GrammarError, parse_forward_path

LISTENER = "0.0.0.0:25"


class AccessTest(SynchronousTestCase):
    def setUp(self) -> None:
        networks = [ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"), ip_network("fe80::/10")]
        self.access = Access.of({LISTENER: networks}, ["example.com", "*.example.net"])

    def test_networks(self) -> None:
        """IPv4, IPv6, IPv4 in IPv6's clothes and link-local with its zone; another listener has its own networks."""
        for address in ("192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7", "fe80::1%eth0"):
            self.assertTrue(self.access.may_relay(LISTENER, address), address)
            self.assertFalse(self.access.may_relay("127.0.0.1:2525", address), address)
            self.assertEqual(self.access.client(LISTENER, address), None)
        for address in ("192.0.3.7", "2001:db9::7", "::ffff:192.0.3.7", "::c000:207", ""):
            self.assertFalse(self.access.may_relay(LISTENER, address), address)
            refusal = self.access.client(LISTENER, address)
            self.assertEqual((refusal.code, refusal.enhanced), (530, "5.7.0"))

    def test_balancers(self) -> None:
        """Behind a balancer the client's address counts, whatever the balancer's is; the balancer itself is nobody, however its address
        is written."""
        self.assertTrue(self.access.may_relay(LISTENER, "192.0.2.7", "10.0.0.1"))
        self.assertTrue(self.access.may_relay(LISTENER, "192.0.2.7", "192.0.2.8"))
        self.assertFalse(self.access.may_relay(LISTENER, "10.0.0.1", "192.0.2.7"))
        for via in ("192.0.2.7", "::ffff:192.0.2.7", "::FFFF:c000:207"):
            self.assertFalse(self.access.may_relay(LISTENER, "192.0.2.7", via), via)

    def test_other_balancers(self) -> None:
        """A balancer of the listener that another one names as the client is no client; a network may hold both, and other listeners
        know nothing of it."""
        networks = {LISTENER: [ip_network("192.0.2.0/24")], "127.0.0.1:2525": [ip_network("192.0.2.0/24")]}
        proxies = [ip_network("192.0.2.7/32"), ip_network("192.0.2.64/26"), ip_network("2001:db8::7/128")]
        access = Access.of(networks, [], {LISTENER: proxies})
        for address, may in (
            ("192.0.2.7", False),
            ("::ffff:192.0.2.7", False),
            ("192.0.2.8", True),
            ("192.0.2.70", True),
        ):
            self.assertEqual(access.may_relay(LISTENER, address, "10.0.0.1"), may, address)
            self.assertEqual(access.may_relay(LISTENER, address), may, address)
        self.assertTrue(access.may_relay("127.0.0.1:2525", "192.0.2.7"))

    def test_domains(self) -> None:
        """Anyone may send to a relay domain; a suffix means subdomains at a label's border only."""
        for domain in ("example.com", "a.example.net", "b.a.example.net"):
            self.assertEqual(self.access.stranger(Address(f"x@{domain}", domain)), None)
        for domain in ("a.example.com", "example.net", "badexample.net", "example.org", "net", "[192.0.2.7]"):
            refusal = self.access.stranger(Address(f"x@{domain}", domain))
            self.assertEqual((refusal.code, refusal.enhanced), (554, "5.7.1"), domain)

    def test_no_domain(self) -> None:
        """An address without a domain is nobody's here."""
        self.assertEqual(self.access.stranger(Address("postmaster", "")).code, 550)

    def test_closed_by_default(self) -> None:
        """Without rules nobody relays."""
        nobody = Access.of({}, [])
        self.assertFalse(nobody.may_relay(LISTENER, "127.0.0.1"))
        self.assertEqual(nobody.stranger(Address("x@example.com", "example.com")).code, 554)

    def test_the_battery(self) -> None:
        """The ways in which relays were opened: each path is refused by the grammar or here, with a permanent reply; and what a
        source route hides is the last mailbox, which alone decides."""
        for path in (
            "<victim%elsewhere.example@example.com>",
            "<victim%elsewhere.example>",
            "<victim%elsewhere.example@[192.0.2.1]>",
            "<elsewhere.example!victim>",
            "<elsewhere.example!victim@example.com>",
            "<elsewhere.example!victim@a.example.net>",
            '<"victim@elsewhere.example"@example.com>',
            '<"victim@elsewhere.example">',
            '<"victim%elsewhere.example"@example.com>',
            '<"elsewhere.example!victim"@example.com>',
            '<"@elsewhere.example:victim"@example.com>',
            "<@example.com:victim@elsewhere.example>",
            "<@example.com,@a.example.net:victim@elsewhere.example>",
            "<victim@elsewhere.example@example.com>",
            "<victim@example.com@elsewhere.example>",
            "<victim@[192.0.2.1]>",
            "<victim@[IPv6:2001:db8::1]>",
            "<victim@[example.com]>",
            "<victim@elsewhere.example.>",
            "<victim@example.com.>",
            "<victim@ELSEWHERE.example>",
            "<victim@localhost>",
            "<victim>",
            "<>",
            "victim@elsewhere.example",
            "<example.com:victim@elsewhere.example>",
        ):
            try:
                address, rest = parse_forward_path(path.encode())
            except GrammarError as error:
                self.assertTrue(error.reply.is_permanent, path)
            else:
                self.assertEqual(rest, b"")
                refusal = self.access.stranger(address)
                self.assertTrue(refusal is not None and refusal.is_permanent, path)
        for path in ("<user@EXAMPLE.com>", "<USER@a.Example.NET>", "<@elsewhere.example:user@example.com>"):
            self.assertEqual(self.access.stranger(parse_forward_path(path.encode())[0]), None, path)
