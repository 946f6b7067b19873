"""The resolver and misfortune: servers that fail, stay silent, cut, flood or lie, on real loopback sockets.

These are the traps that twisted.names' resolver was seen to fall into, and those that an attacker would set.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from relaycluster.net.resolver import Resolver
from relaycluster.policy.routing import MX, Addresses, DNSTrouble, Exchangers, HostPort
from tests.net.test_resolver import ResolverCase
from tests.support.dns import FORGED_ADDRESS, FakeDNS

GOOD = ("good.test MX 10 a.test", "a.test A 127.0.0.2")
FOUND = Exchangers((MX(10, "a.test"),), 300)


def closed_port() -> HostPort:
    """An address where nobody listens on UDP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return HostPort(*probe.getsockname())


class FailoverTests(ResolverCase):
    """What one server cannot answer, the next is asked."""

    async def test_error_codes_fail_over(self) -> None:
        """SERVFAIL is not final while another server would answer; nor is any other refusal, at no loss of time."""
        for misfortune in ("SERVFAIL", "REFUSED", "FORMERR", "NOTIMP", "REFERRAL", "TRUNCATE-CLOSED"):
            first, second = self.serve(f"good.test {misfortune}"), self.serve(*GOOD)
            self.assertEqual(await self.resolver(first, second).mx("good.test"), FOUND)
            self.assertGreaterEqual(len(first.queries), 1, misfortune)

    async def test_nobody_listening_fails_over_at_once(self) -> None:
        """The kernel tells a connected socket that the port is closed: no second is lost."""
        second = self.serve(*GOOD)
        self.assertEqual(await self.resolver(closed_port(), second).mx("good.test"), FOUND)

    async def test_the_reason_names_each_server_and_what_it_did(self) -> None:
        """An operator sees from the deferral where to look."""
        first, second, third = self.serve("bad.test SERVFAIL"), self.serve("bad.test REFUSED"), closed_port()
        answer = await self.resolver(first, second, third).mx("bad.test")
        expected = f"MX of bad.test: {first.address}: SERVFAIL; {second.address}: REFUSED; {third}: Connection refused"
        self.assertEqual(answer, DNSTrouble(expected))

    async def test_silence_fails_over_after_one_try(self) -> None:
        """Two seconds, not sixty."""
        first, second = self.serve("good.test TIMEOUT"), self.serve(*GOOD)
        lookup = self.resolver(first, second).mx("good.test")
        await self.asked(first, 1)
        self.clock.advance(1.9)
        self.assertEqual(second.queries, [])
        self.clock.advance(0.1)
        self.assertEqual(await lookup, FOUND)

    async def test_a_lost_datagram_is_sent_again(self) -> None:
        """With a single server too: after 2 s, then 4, until the deadline."""
        dns = self.serve("good.test TIMEOUT")
        lookup = self.resolver(dns).mx("good.test")
        await self.asked(dns, 1)
        dns.set_zone("\n".join(GOOD))
        self.clock.advance(2)
        self.assertEqual(await lookup, FOUND)
        self.assertEqual(len(dns.queries), 2)
        self.assertEqual(len({query.query_id for query in dns.queries} | {query.port for query in dns.queries}), 4)

    async def test_later_tries_have_more_time(self) -> None:
        """The second try of a server lasts four seconds, since one that is slow is not helped by haste."""
        dns = self.serve("slow.test TIMEOUT")
        self.resolver(dns).mx("slow.test")
        await self.asked(dns, 1)
        self.clock.advance(2)
        await self.asked(dns, 2)
        self.clock.advance(3.9)
        await self.resolver(dns).mx("nowhere.test")  # all that was sent before has been seen then
        self.assertEqual(dns.count("slow.test", "MX"), 2)
        self.clock.advance(0.1)
        await self.until(lambda: dns.count("slow.test", "MX") == 3)

    async def test_the_deadline_bounds_a_lookup_and_nothing_is_stuck(self) -> None:
        """Servers that are all silent: trouble after ten seconds, named; the next lookup after that asks anew."""
        first, second = self.serve("good.test TIMEOUT"), self.serve("good.test TIMEOUT")
        resolver = self.resolver(first, second)
        lookup = resolver.mx("good.test")
        for asked_first, asked_second, seconds in ((1, 0, 2), (1, 1, 2), (2, 1, 4), (2, 2, 2)):
            await self.asked(first, asked_first)
            await self.asked(second, asked_second)
            self.assertFalse(lookup.called)
            self.clock.advance(seconds)
        answer = await lookup
        reason = f"no answer within 10 s: {first.address}: timed out; {second.address}: timed out"
        self.assertEqual(answer, DNSTrouble(f"MX of good.test: {reason}"))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        first.set_zone("\n".join(GOOD))
        second.set_zone("\n".join(GOOD))
        self.clock.advance(10)
        self.assertEqual(await resolver.mx("good.test"), FOUND)

    async def test_a_dead_server_is_avoided_and_tried_again(self) -> None:
        """After three silences it is asked last, so that lookups lose no time; after half a minute one lookup tries it,
        and when it answers it has its place again."""
        first, second = self.serve("*.bulk.test TIMEOUT"), self.serve("*.bulk.test MX 10 a.test")
        resolver = self.resolver(first, second)
        for number in range(1, 4):
            lookup = resolver.mx(f"a{number}.bulk.test")
            await self.asked(first, number)
            self.clock.advance(2)
            await lookup
        await gatherResults([resolver.mx(f"b{number}.bulk.test") for number in range(10)])
        self.assertEqual((len(first.queries), len(second.queries)), (3, 13))
        first.set_zone("*.bulk.test MX 10 a.test")
        self.clock.advance(30)
        probing = resolver.mx("c1.bulk.test")
        await gatherResults([resolver.mx("c2.bulk.test"), probing])
        self.assertEqual((len(first.queries), len(second.queries)), (4, 14))
        await resolver.mx("c3.bulk.test")
        self.assertEqual((len(first.queries), len(second.queries)), (5, 14))

    async def test_a_slow_domain_does_not_cost_a_server_its_place(self) -> None:
        """A resolver is silent while it waits for one domain's dead servers; as long as it answers for others it is
        not taken for dead."""
        lines = ("*.slow.test MX 10 a.test", "*.bulk.test MX 10 a.test")
        first, second = self.serve("*.slow.test TIMEOUT", *lines), self.serve(*lines)
        resolver = self.resolver(first, second)
        for number in range(6):
            lookup = resolver.mx(f"d{number}.slow.test")
            await self.asked(first, 2 * number + 1)
            self.clock.advance(2)
            self.assertEqual(await lookup, FOUND)
            await resolver.mx(f"d{number}.bulk.test")
            self.assertEqual(first.count(f"d{number}.bulk.test", "MX"), 1)
        self.assertEqual(len(second.queries), 6)


class TransportTests(ResolverCase):
    """UDP, TCP and EDNS."""

    async def test_a_truncated_answer_is_fetched_over_tcp(self) -> None:
        """From the same server."""
        dns = self.serve("good.test TRUNCATE", *GOOD)
        self.assertEqual(await self.resolver(dns).mx("good.test"), FOUND)
        self.assertEqual([query.transport for query in dns.queries], ["udp", "tcp"])

    async def test_an_answer_that_does_not_fit_a_datagram(self) -> None:
        """Hundreds of records arrive by TCP; the preferred hundred are kept."""
        dns = self.serve(*(f"big.test MX {number} m{number}.example.test" for number in range(400)))
        answer = await self.resolver(dns).mx("big.test")
        self.assertEqual([record.preference for record in answer.records], list(range(100)))

    async def test_edns_lets_more_than_512_bytes_through_by_udp(self) -> None:
        """Thirty records need no TCP."""
        dns = self.serve(*(f"mid.test MX {number} m{number}.example.test" for number in range(30)))
        answer = await self.resolver(dns).mx("mid.test")
        self.assertEqual(len(answer.records), 30)
        self.assertEqual([query.transport for query in dns.queries], ["udp"])

    async def test_a_silent_tcp_peer_is_bounded(self) -> None:
        """The try's two seconds cover both transports; then the next server is asked, and no connection stays."""
        first, second = self.serve("good.test TRUNCATE-SILENT"), self.serve(*GOOD)
        lookup = self.resolver(first, second).mx("good.test")
        await self.asked(first, 2)
        self.assertEqual(first.queries[1].transport, "tcp")
        self.clock.advance(2)
        self.assertEqual(await lookup, FOUND)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_a_server_without_edns(self) -> None:
        """FORMERR for the OPT record: asked again without it (RFC 6891 6.2.2)."""
        dns = self.serve("good.test NO-EDNS", *GOOD)
        self.assertEqual(await self.resolver(dns).mx("good.test"), FOUND)
        self.assertEqual(len(dns.queries), 2)

    async def test_a_server_on_ipv6(self) -> None:
        """Over UDP and TCP."""
        try:
            dns = FakeDNS("\n".join(("six.test TRUNCATE", "six.test MX 10 a.test", *GOOD)), "[::1]:0").start()
        except OSError:
            self.skipTest("no IPv6 on this machine")
        self.addCleanup(dns.stop)
        resolver = self.resolver(dns)
        for name in ("good.test", "six.test"):
            self.assertEqual(await resolver.mx(name), FOUND)


class ForgeryTests(ResolverCase):
    """Who does not see the question cannot answer it."""

    async def test_forged_answers_are_ignored(self) -> None:
        """Wrong id, question, type, port, a damaged packet: the true answer that comes after them is believed."""
        dns = self.serve(
            *("forged.test FORGED", "forged.test MX 10 a.test", "forged.test A 127.0.0.2"),
            "forged.test AAAA ::1",
        )
        resolver = self.resolver(dns)
        self.assertEqual(await resolver.mx("forged.test"), FOUND)
        answer = await resolver.addresses("forged.test")
        self.assertEqual(answer, Addresses(("::1", "127.0.0.2"), 300))
        self.assertNotIn(FORGED_ADDRESS, answer.addresses)

    async def test_a_flood_of_forgeries_moves_the_question_to_tcp(self) -> None:
        """Guessing goes on until it hits; so it is not waited for."""
        dns = self.serve("flood.test FLOOD", "flood.test MX 10 a.test")
        self.assertEqual(await self.resolver(dns).mx("flood.test"), FOUND)
        self.assertEqual([query.transport for query in dns.queries], ["udp", "tcp"])

    async def test_garbage_and_cut_answers_are_no_answers(self) -> None:
        """They neither raise nor end the lookup: the next server is asked in time."""
        for misfortune in ("GARBAGE", "CUT"):
            first, second = self.serve(f"good.test {misfortune}", *GOOD), self.serve(*GOOD)
            lookup = self.resolver(first, second).mx("good.test")
            await self.asked(first, 1)
            self.clock.advance(2)
            self.assertEqual(await lookup, FOUND)

    async def test_garbage_over_tcp_fails_over(self) -> None:
        """There nobody else can have sent it: the server is in trouble."""
        first, second = self.serve("good.test TRUNCATE-GARBAGE", *GOOD), self.serve(*GOOD)
        self.assertEqual(await self.resolver(first, second).mx("good.test"), FOUND)
        self.assertEqual((len(first.queries), len(second.queries)), (2, 1))

    async def test_ids_and_ports_are_fresh_for_every_question(self) -> None:
        """The ids are those that the passed-in source gave, and each question leaves from a port of its own."""
        ids = iter(range(1000, 2000))
        dns = self.serve("*.bulk.test MX 10 a.test")
        resolver = self.resolver(dns, random_bits=lambda bits: next(ids) if bits == 16 else self.fail("16 bits"))
        await gatherResults([resolver.mx(f"d{number}.bulk.test") for number in range(50)])
        self.assertEqual({query.query_id for query in dns.queries}, set(range(1000, 1050)))
        self.assertEqual(len({query.port for query in dns.queries}), 50)


class BoundsTests(ResolverCase):
    """How much at once."""

    def lookups(self, resolver: Resolver, number: int) -> list[Deferred[Any]]:
        return [resolver.mx(f"d{index}.bulk.test") for index in range(number)]

    async def test_lookups_at_once_are_bounded_and_the_rest_waits(self) -> None:
        """Two at once, first come first served; a finished one makes room for the next."""
        dns = self.serve("*.bulk.test TIMEOUT")
        resolver = self.resolver(dns, client={"lookups_at_once": 2})
        lookups = self.lookups(resolver, 5)
        await self.asked(dns, 2)
        await self.resolver(dns).mx("nowhere.test")  # another resolver's answer: all that was sent has been seen
        self.assertEqual([query.name for query in dns.queries[:2]], ["d0.bulk.test", "d1.bulk.test"])
        self.assertEqual(len(dns.queries), 3)
        dns.set_zone("*.bulk.test MX 10 a.test")
        self.clock.advance(2)
        answers = await gatherResults(lookups)
        self.assertEqual(answers, [FOUND] * 5)

    async def test_waiting_counts_for_the_deadline(self) -> None:
        """Who waits behind dead servers is told in time, without having asked."""
        dns = self.serve("*.bulk.test TIMEOUT")
        resolver = self.resolver(dns, client={"lookups_at_once": 1, "deadline_seconds": 1.0})
        lookups = self.lookups(resolver, 3)
        await self.asked(dns, 1)
        self.clock.advance(1)
        answers = await gatherResults(lookups)
        self.assertIn("no answer within 1 s", answers[0].reason)
        self.assertEqual(answers[1], DNSTrouble("MX of d1.bulk.test: no answer within 1 s: no turn to ask"))
        self.clock.advance(10)
        dns.set_zone("*.bulk.test MX 10 a.test")
        self.assertEqual(await resolver.mx("d1.bulk.test"), FOUND)

    async def test_waiting_lookups_are_bounded(self) -> None:
        """Beyond, the answer is trouble at once."""
        dns = self.serve("*.bulk.test TIMEOUT")
        resolver = self.resolver(dns, client={"lookups_at_once": 1, "lookups_waiting": 1})
        lookups = self.lookups(resolver, 3)
        self.assertEqual([lookup.called for lookup in lookups], [False, False, True])
        self.assertIn("too many lookups", (await lookups[2]).reason)

    async def test_lookups_that_end_at_once_do_not_pile_up(self) -> None:
        """A network that is down fails every send at once: hundreds of waiting lookups end one after the other, not
        one inside the other."""
        waiting: list[Deferred[Any]] = []

        def bits(_: int) -> int:
            if not waiting:  # in the middle of the first lookup
                waiting.extend(self.lookups(resolver, 500))
            return 1

        no_way_there = HostPort("255.255.255.255", 53)
        resolver = self.resolver(no_way_there, random_bits=bits, client={"lookups_at_once": 1})
        await resolver.mx("first.test")
        for answer in await gatherResults(waiting):
            self.assertIn("Permission denied", answer.reason)


class FakeServerTests(ResolverCase):
    """The test server as a process of its own, as scenarios use it."""

    async def test_as_a_process(self) -> None:
        """It says where it listens, and answers."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        zone = Path(directory.name, "zone")
        zone.write_text("# a zone\n*.bulk.test MX 10 a.test  # all\nexact.bulk.test MX 5 b.test\n", "utf-8")
        command = [sys.executable, "-m", "tests.support.dns", "--listen", "127.0.0.1:0", "--zone", str(zone)]
        repository = Path(__file__).resolve().parents[2]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=repository)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        word, address = process.stdout.readline().split()
        self.assertEqual(word, "listening")
        host, _, port = address.rpartition(":")
        resolver = self.resolver(HostPort(host, int(port)))
        self.assertEqual(await resolver.mx("any.bulk.test"), FOUND)
        self.assertEqual((await resolver.mx("exact.bulk.test")).records, (MX(5, "b.test"),))

    def test_a_bad_line_is_named(self) -> None:
        """Its number and text."""
        for line in ("x.test", "x.test SPF y", "x.test A", "x.test MX mx.test"):
            with self.assertRaisesRegex(ValueError, "zone line 2"):
                FakeDNS(f"ok.test A 127.0.0.1\n{line}")
