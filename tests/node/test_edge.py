"""The edge: 250 only for what is queued, and for all that is queued; whatever the store does, the client hears the truth."""

from __future__ import annotations

import gc
from ipaddress import ip_network
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.interfaces import Login
from relaycluster.mail import queue_id
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import Envelope
from relaycluster.mail.reply import Reply
from relaycluster.mail.session import Session
from relaycluster.node.access import Access
from relaycluster.node.edge import Edge, EdgeSettings
from relaycluster.node.message import PIECE
from relaycluster.node.spread import DEADLINE_SECONDS
from tests.node.world import World, result

SESSION = Session("s1", "127.0.0.1:587", "submission", "192.0.2.1", 4000, "127.0.0.1", 25, "client.example", True)
SENDER = Address("s@example.net", "example.net")
CONTENT = b"Subject: x\r\n\r\nbody\r\n"


def to(*domains: str) -> Envelope:
    return Envelope(SENDER, tuple(Address(f"r{n}@{domain}", domain) for n, domain in enumerate(domains)))


def code(answer: Any) -> int:
    """The reply's code, 0 for yes."""
    return answer.code if answer is not None else 0


class EdgeTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.refusal: Reply | None = None
        self.throttled: list[bool] = []
        numbers = iter(range(1, 1000))
        self.edge = Edge(
            self.world.clock,
            self.world.queue,
            Access.of({SESSION.listener: [ip_network("192.0.2.0/24")]}, ["relay.example"]),
            EdgeSettings("us.example", {}),
            lambda: self.world.cluster.clock_ms() / 1000,
            lambda: next(numbers),
            self.world.log,
            lambda: self.refusal,
            None,
        )

    def sink(self, envelope: Envelope) -> Any:
        return self.edge.data(SESSION, envelope, self.throttled.append)

    def give(self, envelope: Envelope, content: bytes = CONTENT) -> Any:
        sink = self.sink(envelope)
        sink.write(content)
        return sink.finish()

    def all_items(self) -> list[Any]:
        return [item for place in self.world.cluster.partitions for item in place.items.values()]

    def stored(self, item: Any) -> bytes:
        """The whole content, as it will be sent."""
        if not item.chunks:
            found = [place.bodies[item.id] for place in self.world.cluster.partitions if item.id in place.bodies]
            return bytes(found[0])
        return b"".join(result(self.world.queue.content(item, n)) for n in range(item.chunks + 1))

    def test_who_may_send(self) -> None:
        """For submission our networks to anywhere, strangers nothing at all; on an mx listener anybody to relay domains only, and
        whoever is asked about twice gets the same answer."""
        stranger = evolve(SESSION, peer_address="198.51.100.1")
        balanced = evolve(SESSION, via="10.0.0.1")
        balancer = evolve(SESSION, via=SESSION.peer_address)
        mx = evolve(SESSION, mode="mx")
        for _ in range(2):
            for session, at_mail, at_rcpt in (
                (SESSION, 0, [0, 0]),
                (balanced, 0, [0, 0]),
                (stranger, 530, [530, 530]),
                (balancer, 530, [530, 530]),
                (mx, 0, [0, 554]),
                (evolve(stranger, mode="mx"), 0, [0, 554]),
            ):
                self.assertEqual(code(self.edge.mail(session, SENDER, None)), at_mail, session)
                replies = [
                    self.edge.recipient(session, SENDER, Address(f"x@{domain}", domain))
                    for domain in ("relay.example", "example.com")
                ]
                self.assertEqual([code(reply) for reply in replies], at_rcpt, session)
        self.edge.use(Access.of({}, []))
        self.assertEqual(code(self.edge.mail(SESSION, SENDER, None)), 530)
        self.assertEqual(code(self.edge.recipient(mx, SENDER, Address("x@relay.example", "relay.example"))), 554)

    def test_nobody_authenticates(self) -> None:
        """Where there are no users AUTH is refused, on mx listeners always; a user without accounts may do nothing."""
        login = Login("PLAIN", "ann", b"secret")
        self.assertEqual(result(self.edge.authenticate(SESSION, login)).code, 503)
        ann = evolve(SESSION, user="ann")
        self.assertEqual(code(self.edge.mail(ann, SENDER, None)), 530)
        self.assertEqual(code(self.edge.recipient(ann, SENDER, SENDER)), 530)
        self.assertEqual(self.edge.data(ann, to("example.com"), self.throttled.append).code, 530)

    def test_refusal(self) -> None:
        """Where no mail is taken, neither MAIL nor DATA is."""
        self.refusal = Reply.of(451, "4.3.0", "no")
        self.assertEqual(self.edge.mail(SESSION, SENDER, None), self.refusal)
        self.assertEqual(self.sink(to("example.com")), self.refusal)

    def test_queued(self) -> None:
        """One item with our trace field and the content as it came, then 250 with its id; not before the store has answered."""
        self.world.queue.holding.add("enqueue")
        reply = self.give(to("example.com"))
        self.assertNoResult(reply)
        self.world.queue.let_go()
        (item,) = self.all_items()
        self.assertEqual(result(reply).lines, (f"queued as {item.id}",))
        body = self.world.partition().bodies[item.id]
        self.assertTrue(body.startswith(b"Received:") and body.endswith(CONTENT) and item.id.encode() in body)
        self.assertEqual(item.size, len(body))

    def test_loop(self) -> None:
        """Too many Received fields: 554 5.4.6, and nothing is queued, also when the content is large."""
        loop = b"Received: from a by b; x\r\n" * 120
        spaced = b"Received \t: from a by b; x\r\n" * 50
        for content in (loop + CONTENT, loop + CONTENT + b"x" * (2 * PIECE), spaced + CONTENT):
            reply = result(self.give(to("example.com"), content))
            self.assertEqual((reply.code, reply.enhanced), (554, "5.4.6"))
        self.assertEqual(self.all_items(), [])
        for few in (spaced[:-30], b"Received-SPF: x\r\n" * 60):
            self.assertEqual(result(self.give(to("example.com"), few + CONTENT)).code, 250)

    def test_small_pieces(self) -> None:
        """A client that sends two octets at a time does not make them cost many times their size; nothing is lost or moved, whatever the
        sizes are."""
        sink = self.sink(to("example.com"))
        sink.write(CONTENT)
        small = b"".join(b"%x" % (n % 16) + b"y" for n in range(100_000))
        for at in range(0, len(small), 2):
            sink.write(small[at : at + 2])
        self.assertLess(len(sink._pieces), len(small) // 64)
        for size in (1, 3, 5000, PIECE - 1, PIECE + 1, 2):
            for _ in range(70 if size < 100 else 2):
                small += b"z" * size
                sink.write(b"z" * size)
        self.assertEqual(result(sink.finish()).code, 250)
        (item,) = self.all_items()
        stored = self.stored(item)
        self.assertTrue(stored.endswith(CONTENT + small))
        self.assertEqual(len(stored), item.size)

    def test_header_limits(self) -> None:
        """A header that is too large is 552 5.3.4, one with too many fields 554 5.6.0, whatever the body; up to the limit it passes,
        and folded lines are no fields."""
        settings = EdgeSettings("us.example", {}, header_size=4096, header_fields=100)
        self.edge.use(self.edge.access, settings)
        fields = b"X: y\r\n" * 98
        for header, expected in (
            (b"X: " + b"y" * 4089 + b"\r\n\r\n", 250),
            (b"X: " + b"y" * 4092 + b"\r\n\r\n", 552),
            (b"X: " + b"y" * 5000, 552),  # and no body at all
            (fields + b"X: y\r\n\r\n", 250),
            (fields + b"X: y\r\n" * 2 + b"\r\n", 554),
            (fields + b" folded\r\n" * 50 + b"\r\n", 250),
        ):
            for body in (b"", b"Y: z\r\n" * 200, b"z" * (2 * PIECE)):
                if expected == 250 or b"\r\n\r\n" in header or not body:
                    reply = result(self.give(to("example.com"), header + body))
                    self.assertEqual(reply.code, expected, (header[:20], len(header), len(body)))
        for header in (
            b"X: " + b"y" * (2 * PIECE),
            b"X: y\r\n" * (PIECE // 2),
        ):  # its end is not even in the first piece
            self.assertEqual(result(self.give(to("example.com"), header)).code, 552)

    def test_what_a_refusal_leaves(self) -> None:
        """A large message that is refused for its header is read to its end, and no octet of it is stored."""
        before = self.world.queue.count("put_chunk")
        sink = self.sink(to("example.com"))
        for _ in range(5):
            sink.write(b"Received: by a\r\n" * (PIECE // 16))
        self.assertEqual(result(sink.finish()).code, 552)
        self.assertEqual(self.world.queue.count("put_chunk"), before)

    def test_no_header(self) -> None:
        """Content that begins with white space can not go on with our trace field: an empty line ends the header before it."""
        for body in (b" for <forged@example.com>;\r\nX: y\r\n\r\nbody", b"\tx\r\n", b"\r\nbody\r\n"):
            for session in (SESSION, evolve(SESSION, mode="mx")):
                for more in (b"", b"x" * (2 * PIECE)):
                    sink = self.edge.data(session, to("example.com"), self.throttled.append)
                    sink.write(body + more)
                    self.assertEqual(result(sink.finish()).code, 250)
        for item in self.all_items():
            stored = self.stored(item)
            header = stored.partition(b"\r\n\r\n")[0]
            self.assertFalse(b"forged" in header or b"\tx" in header or b"body" in header, header)
            self.assertEqual(len(stored), item.size)

    def test_several_domains(self) -> None:
        """One content, one item a domain with its recipients, each once, in order; then the record is gone."""
        reply = result(self.give(to("a.example", "b.example", "a.example", "c.example")))
        self.assertEqual(reply.code, 250)
        items = {item.domain: item for item in self.all_items()}
        self.assertEqual([who.text for who in items["a.example"].envelope.recipients], ["r0@a.example", "r2@a.example"])
        self.assertEqual(sorted(items), ["a.example", "b.example", "c.example"])
        (home,) = {item.home for item in items.values()}
        message = queue_id.message_id(items["a.example"].id)
        self.assertEqual((len(self.world.cluster.partitions[home].parts[message]), len(items)), (3, 3))
        self.assertEqual(self.world.cluster.partitions[home].spread, {})

    def test_one_recipient_twice(self) -> None:
        """A recipient that was given twice gets one message."""
        one = to("example.com").recipients
        result(self.give(Envelope(SENDER, one + one)))
        (item,) = self.all_items()
        self.assertEqual(item.envelope.recipients, one)

    def test_large(self) -> None:
        """Content beyond a piece goes to the store while it comes, whatever its cuts, and comes out as it went in."""
        content = CONTENT + bytes(range(32, 127)) * 12_000
        sink = self.sink(to("example.com"))
        for at in range(0, len(content), 70_001):
            sink.write(content[at : at + 70_001])
        self.assertEqual(result(sink.finish()).code, 250)
        (item,) = self.all_items()
        self.assertTrue(item.chunks >= 4)
        stored = b"".join(result(self.world.queue.content(item, n)) for n in range(item.chunks + 1))
        self.assertTrue(stored.endswith(content))
        self.assertEqual(len(stored), item.size)

    def test_backpressure(self) -> None:
        """While the store is slow the client is asked to wait, and to go on afterwards; 250 comes after the last piece."""
        self.world.queue.holding.add("put_chunk")
        sink = self.sink(to("example.com"))
        sink.write(CONTENT)
        for _ in range(5):
            sink.write(b"x" * PIECE)
        self.assertEqual(self.throttled[-1:], [True])
        reply = sink.finish()
        self.assertNoResult(reply)
        self.world.queue.let_go()
        self.assertEqual((self.throttled[-1], result(reply).code), (False, 250))

    def test_abort(self) -> None:
        """Half a message is no message."""
        sink = self.sink(to("example.com"))
        sink.write(CONTENT + b"x" * (2 * PIECE))
        sink.abort()
        self.assertEqual(self.all_items(), [])

    def test_pieces_that_cannot_be_written(self) -> None:
        """A full store is 452, one that is away 451; nothing is half-queued."""
        for name, code in (("full", 452), ("down", 451)):
            setattr(self.world.cluster, name, True)
            reply = result(self.give(to("example.com"), CONTENT + b"x" * (3 * PIECE)))
            setattr(self.world.cluster, name, False)
            self.assertEqual(reply.code, code)
        self.assertEqual(self.all_items(), [])

    def test_full(self) -> None:
        """452 4.3.1 at once, for one domain and for several."""
        self.world.cluster.full = True
        for envelope in (to("example.com"), to("a.example", "b.example")):
            reply = result(self.give(envelope))
            self.assertEqual((reply.code, reply.enhanced), (452, "4.3.1"))

    def test_a_short_outage(self) -> None:
        """The same id is repeated, and the client hears 250 in the end."""
        for envelope in (to("example.com"), to("a.example", "b.example")):
            self.world.cluster.down = True
            reply = self.give(envelope)
            self.world.advance(5)
            self.assertNoResult(reply)
            self.world.cluster.down = False
            self.world.advance(1)
            self.assertEqual(result(reply).code, 250)
        self.assertEqual(len(self.all_items()), 3)

    def test_lost_answers(self) -> None:
        """It was queued, and nobody heard: the repeat finds it, one item, 250."""
        self.world.queue.losing.add("enqueue")
        reply = self.give(to("example.com"))
        self.world.advance(1)
        self.world.queue.losing.clear()
        self.world.advance(1)
        self.assertEqual((result(reply).code, len(self.all_items())), (250, 1))
        self.assertEqual(len({arguments[0].id for name, arguments in self.world.queue.calls if name == "enqueue"}), 1)

    def test_the_deadline(self) -> None:
        """After 451 the item is taken back as soon as the store answers again, however long that takes."""
        self.world.queue.losing.update(("enqueue", "cancel"))
        reply = self.give(to("example.com"))
        self.world.advance(DEADLINE_SECONDS + 1)
        self.assertEqual((result(reply).code, len(self.all_items())), (451, 1))
        self.world.cluster.down = True
        self.world.advance(60, 0.5)
        self.world.cluster.down = False
        self.world.queue.losing.clear()
        self.world.advance(2)
        self.assertEqual((self.all_items(), self.world.clock.getDelayedCalls()), ([], []))

    def test_too_late_to_take_back(self) -> None:
        """Somebody sends it already: the log says that there will be two."""
        self.world.queue.losing.add("enqueue")
        reply = self.give(to("example.com"))
        self.world.advance(DEADLINE_SECONDS + 0.5)
        (item,) = self.all_items()
        result(self.world.queue.claim(self.world.own(), item.domain, 1, 1))
        self.world.advance(2)
        self.assertEqual(result(reply).code, 451)
        self.assertEqual(len(self.world.events("possible_duplicate")), 1)

    def test_lost_and_then_full(self) -> None:
        """The first try was taken, its answer lost; the repeat finds the store full. After 452 the message must not be sent."""
        self.world.queue.losing.add("enqueue")
        reply = self.give(to("example.com"))
        self.world.queue.losing.clear()
        self.world.cluster.full = True
        self.world.advance(3)
        self.assertEqual(result(reply).code, 452)
        self.assertEqual(self.all_items(), [])

    def test_fan_out_fails_in_silence(self) -> None:
        """The store goes away between the record and the items: 250 stands, the owner of home goes on, and nothing is reported
        as an unhandled error."""
        self.world.queue.losing.add("enqueue")
        self.assertEqual(result(self.give(to("a.example", "b.example", "c.example"))).code, 250)
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])
