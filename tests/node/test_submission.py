"""Mail of our own users and machines: who may send as whom, how much, in which class; what is added, taken out and signed."""

from __future__ import annotations

import gc
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.interfaces import Login
from relaycluster.mail import trace
from relaycluster.mail.address import NULL, Address
from relaycluster.mail.envelope import Envelope, MessageClass, Notify, NotifyRequest
from relaycluster.mail.header import HeaderField, split_fields
from relaycluster.mail.reply import Reply
from relaycluster.mail.session import Session, TLSFacts
from relaycluster.node.access import Access
from relaycluster.node.aliases import Aliases
from relaycluster.node.allowance import wait
from relaycluster.node.edge import Edge, EdgeSettings
from relaycluster.node.message import PIECE
from relaycluster.node.submission import AUTHOR_OCTETS, MOST_AUTHORS, MOST_IDN, Submitted, submitted
from relaycluster.policy.account import Account
from relaycluster.policy.rate import Rate
from tests.node.dkim_world import Keys, verified
from tests.node.world import World, result

LISTENER = "127.0.0.1:587"
OURS = Session("s1", LISTENER, "submission", "192.0.2.1", 4000, "127.0.0.1", 587, "client.example", True)
USER = evolve(
    OURS, peer_address="198.51.100.1", user="ann", tls=TLSFacts("TLSv1.3", "TLS_AES_256_GCM_SHA384"), via="10.0.0.1"
)
MX = evolve(OURS, mode="mx", listener="127.0.0.1:25")
ANN = Account("ann", ("ann@example.net", "@.example.net"))
SENDER = Address("ann@example.net", "example.net")
WHOLE = b"Date: Thu, 1 Jan 1970 00:00:00 +0000\r\nMessage-ID: <1@example.net>\r\n"


def to(*texts: str) -> Envelope:
    return Envelope(SENDER, tuple(Address(text, text.rpartition("@")[2]) for text in texts))


class Accounts:
    """Users of a test."""

    def __init__(self, *accounts: Account) -> None:
        self.known = {each.name: each for each in accounts}

    def check(self, name: str, password: bytes) -> Deferred[bool]:
        return succeed(True)

    def account(self, name: str) -> Account | None:
        return self.known.get(name)


class Logins:
    """Everybody is Ann."""

    def authenticate(self, session: Session, login: Login) -> Deferred[str | Reply]:
        return succeed("ann")


class OpenSigner:
    """Signs by showing what it was given."""

    def __init__(self) -> None:
        self.fields: list[HeaderField] = []
        self.author = ""
        self.body = b""
        self.names = ("s1._domainkey.example.net",)
        self.has_keys = True
        self.broken = False

    def begin(self, fields: Any, author: str, /) -> OpenSigner | None:
        self.fields, self.author, self.body = list(fields), author, b""
        return self if author == "example.net" else None

    def update(self, body: bytes) -> None:
        self.body += body

    def finish(self, epoch_seconds: float) -> bytes:
        if self.broken:
            raise RuntimeError("the key is gone")
        return b"DKIM-Signature: t=%d\r\n" % epoch_seconds


class SubmissionTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.accounts = Accounts(ANN, Account("bob", message_class=MessageClass.BULK))
        self.signer = OpenSigner()
        self.aliases = Aliases("us.example")
        self.settings = EdgeSettings("us.example", {"127.0.0.1:587": MessageClass.URGENT})
        self.edge = self.an_edge()

    def an_edge(self, **more: Any) -> Edge:
        numbers = iter(range(1, 1000))
        return Edge(
            self.world.clock,
            self.world.queue,
            Access.of({LISTENER: [ip_network("192.0.2.0/24")]}, ["relay.example"]),
            self.settings,
            lambda: self.world.cluster.clock_ms() / 1000,
            lambda: next(numbers),
            self.world.log,
            lambda: None,
            None,
            login=Logins(),
            accounts=self.accounts,
            throttle=self.world.throttle,
            aliases=self.aliases,
            **more,
        )

    def send(self, session: Session, content: bytes, *recipients: str, cut: int = 1 << 20) -> Reply:
        sink = self.edge.data(session, to(*(recipients or ("r@example.com",))), lambda _: None)
        if isinstance(sink, Reply):
            return sink
        for at in range(0, len(content), cut):
            sink.write(content[at : at + cut])
        reply: Reply = result(sink.finish())
        return reply

    def stored(self) -> tuple[Any, bytes]:
        """The one message that is queued, which goes."""
        (item,) = [item for place in self.world.cluster.partitions for item in place.items.values()]
        whole = b"".join(result(self.world.queue.content(item, n)) for n in range(item.chunks + 1))
        self.assertEqual(len(whole), item.size)
        for each in self.world.cluster.partitions:
            each.items.clear()
            each.bodies.clear()
        return item, whole

    # The header

    def test_date_and_message_id(self) -> None:
        """Added for submission where they are missing, behind our trace field and before everything else; never on an mx listener."""
        for header, added in (
            (b"Subject: x\r\n", ["date", "message-id"]),
            (b"date : Thu, 1 Jan 1970 00:00:00 +0000\r\n", ["message-id"]),
            (b"X: y\r\n Date: z\r\nMESSAGE-ID:\r\n <1@x>\r\n", ["date"]),
            (WHOLE, []),
            (b"", ["date", "message-id"]),
        ):
            for body in (b"\r\nbody\r\n", b"\r\n" + b"x" * (2 * PIECE)):
                for session, expected in ((OURS, added), (USER, added), (MX, [])):
                    content = header + body
                    self.assertEqual(self.send(session, content, "r@relay.example").code, 250)
                    item, stored = self.stored()
                    self.assertTrue(stored.endswith(content))
                    fields = split_fields(stored[: len(stored) - len(content)])
                    self.assertEqual([field.name.decode() for field in fields], ["received", *expected])
                    values = {field.name: field.value for field in fields}
                    if "date" in expected:
                        date = trace.date_time(self.world.cluster.clock_ms() / 1000)
                        self.assertEqual(values[b"date"], date.encode())
                    if "message-id" in expected:
                        self.assertEqual(values[b"message-id"], f"<{item.id}@us.example>".encode())

    def test_class(self) -> None:
        """The listener's, before it the user's, before that what an authenticated sender's header says; that field never leaves. A
        stranger's word on it stays where it is and means nothing."""
        bob = evolve(USER, user="bob")
        said = b"Relay-Class: bulk\r\nRELAY-CLASS :\r\n urgent\r\n"
        for session, header, expected in (
            (OURS, b"", MessageClass.URGENT),
            (USER, b"", MessageClass.URGENT),
            (bob, b"", MessageClass.BULK),
            (USER, said, MessageClass.BULK),
            (bob, b"Relay-Class:  Normal \r\n", MessageClass.NORMAL),
            (bob, b"Relay-Class: at once\r\n", MessageClass.BULK),
            (OURS, said, MessageClass.URGENT),
            (MX, said, MessageClass.NORMAL),
            (evolve(MX, user="bob"), said, MessageClass.NORMAL),
        ):
            for body in (b"\r\nRelay-Class: x\r\n", b"\r\n" + b"x" * (2 * PIECE)):
                self.assertEqual(self.send(session, header + WHOLE + body, "r@relay.example").code, 250)
                item, stored = self.stored()
                self.assertEqual(item.message_class, expected, (session.user, header))
                left = header if session in (OURS, MX) or session.mode == "mx" else b""
                self.assertTrue(stored.endswith(b"\r\n" + left + WHOLE + body))
                self.assertEqual(b"relay-class" in stored[: -len(body)].lower(), bool(left))
        self.assertEqual(self.world.events("message_queued")[6]["message_class"], "bulk")

    def test_envelope_sender(self) -> None:
        """MAIL FROM is one of the user's addresses, or null; others hear 553 5.7.1, also after a change of the users file."""
        for text, code in (
            ("ann@example.net", 0),
            ("ANN@EXAMPLE.NET", 0),
            ("any@sub.example.net", 0),
            ("", 0),
            ("bob@example.net", 553),
            ("ann@example.com", 553),
            ("ann%example.net@example.com", 553),
        ):
            reverse_path = Address(text, text.rpartition("@")[2].lower()) if text else NULL
            answer = self.edge.mail(USER, reverse_path, None)
            self.assertEqual(answer.code if isinstance(answer, Reply) else 0, code, text)
        self.assertEqual(self.edge.mail(OURS, Address("who@ever.example", "ever.example"), None), None)
        del self.accounts.known["ann"]
        for answer in (
            self.edge.mail(USER, SENDER, None),
            self.edge.recipient(USER, SENDER, SENDER),
            self.edge.data(USER, to("r@example.com"), lambda _: None),
        ):
            self.assertEqual((answer.code, answer.enhanced), (530, "5.7.0"))

    def test_author(self) -> None:
        """Every mailbox of every From must be the user's; what cannot be read is nobody's. Nothing of a refused message is queued."""
        for header, code in (
            (b"From: Ann <ann@example.net>\r\n", 250),
            (b"From: =?utf-8?q?Boss?= <Ann@Example.NET>, x@a.example.net\r\n", 250),
            ("From: \u00fc@a.example.net\r\n".encode(), 250),
            (b"", 250),
            (b"Sender: boss@example.com\r\n", 553),
            (b"Resent-From: boss@example.com\r\nSender: ann@example.net\r\n", 553),
            (b"Sender: Ann <ann@example.net>\r\n", 250),
            (b"Sender: boss@example.com\r\nFrom: ann@example.net\r\n", 250),
            (b'From: "Boss, the" =?utf-8?q?x?= (c (d)) <ann@example.net>, T: x@a.example.net;\r\n', 250),
            (b"From:\r\n\tAnn\r\n <ann@example.net>\r\n", 250),
            (b"From: [<boss@example.com>] <ann@example.net>\r\n", 553),
            (b"From: <ann@example.net> [, boss@example.com, ]\r\n", 553),
            (b"From: <@x,boss@example.com:ann@example.net>\r\n", 553),
            (b'From: a\\" <boss@example.com>, " <ann@example.net>\r\n', 553),
            (b"From: ann@example.net (, boss@example.com\r\n", 553),
            (b"From: =?utf-8?q?boss=40example.com?=@a.example.net\r\n", 553),
            (b"From: boss@example.com\r\n", 553),
            (b"From: ann@example.net, boss@example.com\r\n", 553),
            (b"From: ann@example.net\r\nFROM : boss@example.com\r\n", 553),
            (b"From:\r\n\tann@example.net,\r\n boss@example.com\r\n", 553),
            (b'From: "ann@example.net" <boss@example.com>\r\n', 553),
            (b"From: boss@example.com <ann@example.net>\r\n", 553),
            (b"From: boss@example.com ann@a.example.net\r\n", 553),
            (b'From: "boss@example.com ann"@a.example.net, b@c\r\n', 553),
            (b"From: (ann@example.net\r\n", 553),
            (b"From: ann\r\n", 553),
            (b"From:\r\n", 553),
            (b"From: undisclosed:;\r\n", 553),
            (b"From: \xff@a.example.net\r\n", 553),
            (b"From: ann@[192.0.2.1]\r\n", 553),
            (b"From: ann@example.net\0\r\n", 553),
        ):
            for body in (b"\r\nFrom: boss@example.com\r\n", b"\r\n" + b"x" * (2 * PIECE)):
                reply = self.send(USER, header + body)
                self.assertEqual(reply.code, code, header)
                if code == 250:
                    self.stored()
                else:
                    self.assertEqual(reply.enhanced, "5.7.1")
                self.assertFalse(
                    any(place.items or place.bodies for place in self.world.cluster.partitions) and code != 250
                )
        # Of machines, and of users who may send as anybody, nothing is asked.
        for session in (OURS, evolve(USER, user="bob")):
            self.assertEqual(self.send(session, b"From: boss@example.com, x\r\n\r\n").code, 250)
            self.stored()

    def test_lines_that_are_no_fields(self) -> None:
        """In which another reader may find an author: of a user who may not send as anybody they are refused; of others they stay,
        and such a header is never signed."""
        directory = Path(self.mktemp())
        directory.mkdir()
        keys = Keys(directory)
        keys.add("s1._domainkey.example.net")
        for signer in (None, keys.signer()):
            self.edge = self.an_edge(signer=signer)
            for line in (
                b"From\r\n : boss@example.com",
                b"From\0: x@y",
                b"\0From: x@y",
                b"From\x0b: x@y",
                b"From\xa0: x@y",
                b"x",
            ):
                for header in (line + b"\r\nFrom: ann@example.net\r\n", b"From: ann@example.net\r\n" + line + b"\r\n"):
                    reply = self.send(USER, header + b"\r\nbody\r\n")
                    self.assertEqual((reply.code, reply.enhanced), (554, "5.6.0"), line)
                    for session in (OURS, evolve(USER, user="bob")):
                        self.assertEqual(self.send(session, header + b"\r\nbody\r\n").code, 250)
                        self.assertNotIn(b"DKIM-Signature", self.stored()[1])

    def test_authors_have_a_limit(self) -> None:
        """What it costs to look at them is bounded; up to that they are looked at, all of them."""
        many = b", ".join(b"a%d@a.example.net" % n for n in range(MOST_AUTHORS))
        for header, code in (
            (b"From: " + many + b"\r\n", 250),
            (b"From: " + many + b", ann@example.net\r\n", 554),
            (b"From: " + many + b"\r\nFROM: ann@example.net\r\n", 554),
            (b"From: " + many.replace(b"a999@a", b"a999@b") + b"\r\n", 250),
            (b"From: " + many.replace(b"a999@a.", b"a999@") + b"\r\n", 553),
            (b"From: (" + b"x" * AUTHOR_OCTETS + b") ann@example.net\r\n", 554),
            (b"From: ann@example.net\r\n" * 2000, 554),
            (b"From: " + b"<" * 120_000 + b"\r\n", 554),
            ("From: " + ", ".join(f"a@\u00fc{n % MOST_IDN}.example.net" for n in range(900)) + "\r\n", 250),
            ("From: " + ", ".join(f"a@\u00fc{n}.example.net" for n in range(MOST_IDN + 1)) + "\r\n", 554),
        ):
            self.settings = evolve(self.settings, header_fields=5000)
            self.edge.use(self.edge.access, self.settings)
            octets = header.encode() if isinstance(header, str) else header
            self.assertEqual(self.send(USER, octets + b"\r\nbody\r\n").code, code, header[-60:])
            if code == 250:
                self.stored()

    # Signatures

    def test_signed(self) -> None:
        """The signature is over the header as it is sent and the whole body, and stands before everything; at any cut."""
        self.edge = self.an_edge(signer=self.signer)
        header = b"Relay-Class: bulk\r\nFrom: ann@example.net\r\nSubject: x\r\n"
        for body in (b"body\r\n", b"", b"y" * 70_000 + bytes(range(256)) * 3000):
            for cut in (1 << 20, 50_021):
                self.assertEqual(self.send(USER, header + b"\r\n" + body, cut=cut).code, 250)
                item, stored = self.stored()
                end = trace.header_end(stored)
                fields = split_fields(stored[:end])
                self.assertEqual(fields[0].raw, b"DKIM-Signature: t=%d\r\n" % (self.world.cluster.clock_ms() // 1000))
                self.assertEqual(fields[1:], self.signer.fields)
                self.assertEqual(
                    [field.name for field in fields[1:]], [b"received", b"date", b"message-id", b"from", b"subject"]
                )
                self.assertEqual((self.signer.body, stored[end + 2 :]), (body, body))
                self.assertEqual(item.envelope.body.value == "8BITMIME", len(body) > PIECE)
        event = self.world.events("message_queued")[-1]
        self.assertEqual(event["signed"], ["s1._domainkey.example.net"])
        self.assertEqual((event["tls"], event["via"]), ("TLSv1.3 TLS_AES_256_GCM_SHA384", "10.0.0.1"))

    def test_signatures_verify(self) -> None:
        """With real keys of both kinds, stock dkimpy finds both signatures good over what is stored, whatever was added and taken out
        and however the content was cut."""
        directory = Path(self.mktemp())
        directory.mkdir()
        keys = Keys(directory)
        keys.add("s1._domainkey.example.net")
        keys.add("ed._domainkey.example.net", "ed25519")
        self.edge = self.an_edge(signer=keys.signer())
        header = b"Relay-Class: bulk\r\nFrom: Ann\r\n <ann@example.net>\r\nSubject:  x \r\n"
        for content in (
            header + b"\r\nbody \r\n\r\n\r\n",
            header + WHOLE + b"\r\n",
            header,
            header + b"\r\n" + b"a line of text\r\n" * 40_000 + b"\r\n\r\n",
        ):
            for cut in (1 << 20, 65_537):
                self.assertEqual(self.send(USER, content, cut=cut).code, 250)
                self.assertEqual(verified(self.stored()[1], keys.records), [True, True], content[:90])

    def test_not_signed(self) -> None:
        """Not on mx listeners, not without a key for the author's domain, and not without any; then no octet differs from mail
        without keys."""
        self.edge = self.an_edge(signer=self.signer)
        for session, author, has_keys in (
            (MX, b"ann@example.net", True),
            (OURS, b"x@example.com", True),
            (OURS, b"ann@example.net", False),
        ):
            self.signer.has_keys = has_keys
            content = b"From: " + author + b"\r\n" + WHOLE + b"\r\nbody\r\n"
            self.assertEqual(self.send(session, content).code, 250)
            _, stored = self.stored()
            self.assertTrue(stored.startswith(b"Received:") and stored.endswith(content))

    def test_signing_breaks(self) -> None:
        """A fault in signing is 451, told in the log; nothing goes out unsigned or half."""
        self.edge = self.an_edge(signer=self.signer)
        self.signer.broken = True
        for body in (b"body", b"x" * (3 * PIECE)):
            reply = self.send(USER, b"From: ann@example.net\r\n\r\n" + body)
            self.assertEqual((reply.code, reply.enhanced), (451, "4.3.0"))
        self.assertEqual(len(self.world.events("error")), 2)
        self.assertFalse(any(place.items or place.bodies for place in self.world.cluster.partitions))

    # Rates

    def code(self, answer: Any) -> int:
        answer = result(answer) if isinstance(answer, Deferred) else answer
        return answer.code if answer is not None else 0

    def test_messages_of_a_client(self) -> None:
        """Each address has its rate, an IPv6 network of 64 bits is one; on every kind of listener. It is told when to come again, and
        then it may."""
        self.settings = evolve(self.settings, messages_per_client=Rate.parse_allowance("3/min"))
        self.edge.use(self.edge.access, self.settings)
        others = (MX, evolve(MX, peer_address="2001:db8:1::1"))
        for session in (OURS, *others[1:]):
            self.assertEqual([self.code(self.edge.mail(session, SENDER, None)) for _ in range(4)], [0, 0, 0, 450])
        refusal = result(self.edge.mail(MX, SENDER, None))  # the same address as OURS
        self.assertEqual((refusal.code, refusal.enhanced), (450, "4.7.1"))
        self.assertIn("3/min", refusal.lines[0])
        self.assertIn("20 seconds", refusal.lines[0])
        self.assertEqual(self.code(self.edge.mail(evolve(MX, peer_address="2001:db8:1::ffff"), SENDER, None)), 450)
        self.assertEqual(self.code(self.edge.mail(evolve(MX, peer_address="2001:db8:1:1::1"), SENDER, None)), 0)
        self.assertEqual(self.code(self.edge.mail(evolve(MX, peer_address="::ffff:192.0.2.1"), SENDER, None)), 450)
        self.world.advance(20, 1)
        self.assertEqual(self.code(self.edge.mail(OURS, SENDER, None)), 0)

    def test_messages_of_a_user(self) -> None:
        """A user is counted wherever they come from; their own rate goes before everybody's; who may not send costs nothing."""
        self.settings = evolve(self.settings, messages_per_client=Rate.parse_allowance("1/h"))
        self.edge.use(self.edge.access, self.settings)
        self.accounts.known["ann"] = evolve(ANN, messages=Rate.parse_allowance("2/h"))
        for _ in range(5):
            self.assertEqual(self.code(self.edge.mail(USER, Address("x@example.com", "example.com"), None)), 553)
            self.assertEqual(self.code(self.edge.mail(evolve(OURS, peer_address="203.0.113.1"), SENDER, None)), 530)
        answers = [self.edge.mail(evolve(USER, peer_address=f"203.0.113.{n}"), SENDER, None) for n in range(3)]
        self.assertEqual([self.code(each) for each in answers], [0, 0, 450])
        bob = evolve(USER, user="bob")
        self.assertEqual([self.code(self.edge.mail(bob, SENDER, None)) for _ in range(2)], [0, 450])

    def test_recipients_of_a_user(self) -> None:
        """452 4.5.3 for those beyond the rate: the client sends them later. Users without a rate cost no question."""
        self.accounts.known["ann"] = evolve(ANN, recipients=Rate.parse_allowance("2/h"))
        answers = [result(self.edge.recipient(USER, SENDER, Address(f"r{n}@x.example", "x.example"))) for n in range(3)]
        self.assertEqual([self.code(each) for each in answers], [0, 0, 452])
        self.assertEqual(answers[2].enhanced, "4.5.3")
        asked = self.world.throttle.count("spend")
        for session in (OURS, MX, evolve(USER, user="bob")):
            self.edge.mail(session, SENDER, None)
            self.assertEqual(self.edge.recipient(session, SENDER, Address("r@relay.example", "relay.example")), None)
        self.assertEqual((asked, self.world.throttle.count("spend")), (3, 3))

    def test_nobody_can_count(self) -> None:
        """While the store is away, who has a rate hears 451; who has none is not asked about."""
        self.accounts.known["ann"] = evolve(ANN, messages=Rate.of(1), recipients=Rate.of(1))
        self.world.cluster.down = True
        self.assertEqual(self.code(self.edge.mail(USER, SENDER, None)), 451)
        self.assertEqual(self.code(self.edge.recipient(USER, SENDER, SENDER)), 451)
        self.assertEqual(self.edge.mail(OURS, SENDER, None), None)

    # Aliases

    def test_aliases(self) -> None:
        """Expanded before it is queued: items for the domains behind, and what the client said in our trace field. They open no
        relay: `<postmaster>` alone is taken because of them."""
        path = self.mktemp()
        postmaster = Address("postmaster", "")
        root = Address("root@us.example", "us.example")
        self.assertEqual(self.code(self.edge.recipient(MX, SENDER, postmaster)), 550)
        with open(path, "w") as file:
            file.write("postmaster: a@x.example\nroot: postmaster, b@y.example\nr@relay.example: root\n")
        self.aliases.load(path)
        self.assertEqual(self.code(self.edge.recipient(MX, SENDER, postmaster)), 0)
        self.assertEqual(self.code(self.edge.recipient(OURS, SENDER, postmaster)), 0)
        self.assertEqual(
            self.code(self.edge.recipient(evolve(OURS, peer_address="203.0.113.1"), SENDER, postmaster)), 530
        )
        self.assertEqual(self.code(self.edge.recipient(MX, SENDER, root)), 554)
        self.assertEqual(self.code(self.edge.recipient(MX, SENDER, Address("a@x.example", "x.example"))), 554)
        self.assertEqual(self.send(MX, WHOLE + b"\r\n", "r@relay.example").code, 250)
        items = {item.domain: item for place in self.world.cluster.partitions for item in place.items.values()}
        self.assertEqual(
            {domain: [each.text for each in item.envelope.recipients] for domain, item in items.items()},
            {"x.example": ["a@x.example"], "y.example": ["b@y.example"]},
        )
        for domain, item in items.items():
            (request,) = item.envelope.requests.items()
            self.assertEqual((request[0][2:], request[1].original_recipient), (domain, "rfc822;r@relay.example"))
        head = result(self.world.queue.content(items["x.example"], 0))
        self.assertIn(b"for <r@relay.example>", head)

    def test_too_many_behind_aliases(self) -> None:
        """RCPT is answered 452 as soon as what is behind is too much for one message; what the client refused is not counted for the
        next message of the session, nor for another session."""
        path = self.mktemp()
        with open(path, "w") as file:
            for number in range(11):
                file.write(
                    f"l{number}@relay.example: " + ", ".join(f"m{n}@y{number}.example" for n in range(1000)) + "\n"
                )
        self.aliases.load(path)

        def answers(session: Session) -> list[int]:
            self.edge.mail(session, SENDER, None)
            asked = [
                Address(f"{name}@relay.example", "relay.example")
                for name in (*(f"l{n}" for n in range(11)), "l10", "x")
            ]
            return [self.code(self.edge.recipient(session, SENDER, each)) for each in asked]

        expected = [0] * 10 + [452, 452, 0]
        for session in (OURS, MX, evolve(MX), evolve(USER), evolve(MX, id="s2")):
            self.assertEqual(answers(session), expected)
        self.assertEqual(answers(MX), expected)
        other = evolve(MX, id="s3")
        self.assertEqual(
            self.code(self.edge.recipient(other, SENDER, Address("l10@relay.example", "relay.example"))), 0
        )
        # Who is not asked about costs no rate.
        self.accounts.known["ann"] = evolve(ANN, recipients=Rate.parse_allowance("11/h"))
        self.assertEqual(answers(USER), expected)

    def test_counting_ends_with_the_session(self) -> None:
        """Nothing of a session stays that goes without a word."""
        path = self.mktemp()
        with open(path, "w") as file:
            file.write("l@relay.example: a@x.example\n")
        self.aliases.load(path)
        session = evolve(MX, id="s9")
        self.edge.recipient(session, SENDER, Address("l@relay.example", "relay.example"))
        self.assertEqual(len(self.edge._crowds), 1)
        del session
        gc.collect()
        self.assertEqual(len(self.edge._crowds), 0)

    def test_success_of_an_alias(self) -> None:
        """A stranger does not hear who is behind an alias; who submits does."""
        path = self.mktemp()
        with open(path, "w") as file:
            file.write("all@relay.example: a@x.example, b@x.example\n")
        self.aliases.load(path)
        success = frozenset({Notify.SUCCESS, Notify.FAILURE})
        for session, expected in ((MX, {Notify.FAILURE}), (OURS, success), (USER, success)):
            envelope = evolve(to("all@relay.example"), requests={"all@relay.example": NotifyRequest(success)})
            sink = self.edge.data(session, envelope, lambda _: None)
            assert not isinstance(sink, Reply)
            sink.write(WHOLE + b"\r\n")
            self.assertEqual(result(sink.finish()).code, 250)
            item, _ = self.stored()
            self.assertEqual([request.notify for request in item.envelope.requests.values()], [expected] * 2)

    def test_changes_before_data(self) -> None:
        """DATA asks again: an alias that is gone leaves `<postmaster>` nowhere, and a network that is gone may not send."""
        path = self.mktemp()
        with open(path, "w") as file:
            file.write("postmaster: a@x.example\n")
        self.aliases.load(path)
        self.assertEqual(self.code(self.edge.recipient(MX, SENDER, Address("postmaster", ""))), 0)
        self.assertEqual(self.send(MX, WHOLE + b"\r\n", "r@relay.example").code, 250)
        self.stored()
        self.aliases.load("")
        envelope = Envelope(SENDER, (Address("postmaster", ""),))
        answer = self.edge.data(MX, envelope, lambda _: None)
        assert isinstance(answer, Reply)
        self.assertEqual(answer.code, 451)
        self.edge.use(Access.of({}, ["relay.example"]))
        self.assertEqual(self.send(OURS, WHOLE + b"\r\n").code, 530)
        for session in (MX, USER):
            self.assertEqual(self.send(session, WHOLE + b"\r\n", "r@relay.example").code, 250)
            self.stored()

    def test_authenticate(self) -> None:
        """AUTH is the login's to answer for submission, and nobody's on an mx listener."""
        login = Login("PLAIN", "ann", b"x")
        self.assertEqual(result(self.edge.authenticate(OURS, login)), "ann")
        self.assertEqual(result(self.edge.authenticate(MX, login)).code, 503)


class WordsTest(SynchronousTestCase):
    def test_wait(self) -> None:
        """Rounded up, so that who waits so long is not refused again."""
        self.assertEqual(
            [wait(us) for us in (1, 1_000_000, 1_000_001, 120_000_000, 121_000_000, 7_200_000_000, 7_201_000_000)],
            ["1 second", "1 second", "2 seconds", "120 seconds", "3 minutes", "120 minutes", "3 hours"],
        )

    def test_junk_in_the_header(self) -> None:
        """Lines that are no fields stay where they are."""
        header = b"Received: ours\r\nnot a field\r\nX: y\r\n"
        found = submitted(header, None, "us.example", "ID", "now")
        assert isinstance(found, Submitted)
        raw = b"".join(field.raw for field in found.fields)
        self.assertEqual(raw, b"Received: ours\r\nDate: now\r\nMessage-ID: <ID@us.example>\r\nnot a field\r\nX: y\r\n")
