"""Who may relay: by network and by domain, never anybody else."""

from __future__ import annotations

from ipaddress import ip_network

from twisted.trial.unittest import SynchronousTestCase

from relaycluster.mail.address import Address
from relaycluster.node.access import Access

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
        for address in ("192.0.3.7", "2001:db9::7", "::ffff:192.0.3.7", "::c000:207", ""):
            self.assertFalse(self.access.may_relay(LISTENER, address), address)

    def test_domains(self) -> None:
        """Anyone may send to a relay domain; a suffix means subdomains at a label's border only."""
        for domain in ("example.com", "a.example.net", "b.a.example.net"):
            self.assertEqual(self.access.recipient(False, Address(f"x@{domain}", domain)), None)
        for domain in ("a.example.com", "example.net", "badexample.net", "example.org", "net", "[192.0.2.7]"):
            refusal = self.access.recipient(False, Address(f"x@{domain}", domain))
            self.assertEqual((refusal.code, refusal.enhanced), (554, "5.7.1"), domain)
            self.assertEqual(self.access.recipient(True, Address(f"x@{domain}", domain)), None)

    def test_no_domain(self) -> None:
        """An address without a domain is nobody's here, not even for those who may relay."""
        for may_relay in (False, True):
            self.assertEqual(self.access.recipient(may_relay, Address("postmaster", "")).code, 550)

    def test_closed_by_default(self) -> None:
        """Without rules nobody relays."""
        nobody = Access.of({}, [])
        self.assertFalse(nobody.may_relay(LISTENER, "127.0.0.1"))
        self.assertEqual(nobody.recipient(False, Address("x@example.com", "example.com")).code, 554)
