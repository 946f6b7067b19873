"""Aliases: many to one, one to many, whole domains; always an end, never a lost recipient, and a wrong file says what and where."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.interfaces import FileTrouble
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import Envelope, Notify, NotifyRequest
from relaycluster.mail.reply import Reply
from relaycluster.node import aliases as module
from relaycluster.node.aliases import DEEPEST, FAN_OUT, MOST_RECIPIENTS, MOST_STEPS, Aliases, Crowd

SENDER = Address("s@example.net", "example.net")

FILE = b"""\
# who reads what
postmaster:         admin@example.com
Root:               postmaster
sales@Example.com:  alice@example.com, bob@example.net,
                    "carol, c"@example.org
  # a comment within
@old.example.com:   @example.com
@lists.example.com: lists@example.org
news@lists.example.com: root, lists@example.org
"""


def address(text: str) -> Address:
    return Address(text, text.rpartition("@")[2].lower() if "@" in text else "")


def aliases(text: bytes) -> Aliases:
    found = Aliases("relay.example.com")
    with TemporaryDirectory() as directory:
        path = Path(directory, "aliases")
        path.write_bytes(text)
        found.load(str(path))
    return found


def texts(book: Aliases, *recipients: str) -> list[str]:
    expanded = book.expand(Envelope(SENDER, tuple(map(address, recipients))), True)
    assert isinstance(expanded, Envelope), expanded
    assert all(each.domain == address(each.text).domain != "" for each in expanded.recipients)
    return [each.text for each in expanded.recipients]


class AliasesTest(SynchronousTestCase):
    def test_expansion(self) -> None:
        """Names at our own host, mailboxes, whole domains with and without their local-part; in order, each once."""
        book = aliases(FILE)
        for recipient, expected in {
            "postmaster": ["admin@example.com"],
            "PostMaster@relay.Example.com": ["admin@example.com"],
            "root@localhost": ["admin@example.com"],
            "SALES@example.com": ["alice@example.com", "bob@example.net", '"carol, c"@example.org'],
            "Ann+x@old.example.com": ["Ann+x@example.com"],
            "sales@old.example.com": ["alice@example.com", "bob@example.net", '"carol, c"@example.org'],
            "any@lists.example.com": ["lists@example.org"],
            "news@lists.example.com": ["admin@example.com", "lists@example.org"],
            "root@example.com": ["root@example.com"],
            "postmaster@sub.relay.example.com": ["postmaster@sub.relay.example.com"],
        }.items():
            self.assertEqual(texts(book, recipient), expected, recipient)
            self.assertEqual(book.knows(address(recipient)), expected != [recipient])
        self.assertEqual(
            texts(book, "z@example.org", "root@localhost", "bob@example.net", "sales@example.com", "z@example.org"),
            ["z@example.org", "admin@example.com", "bob@example.net", "alice@example.com", '"carol, c"@example.org'],
        )

    def test_nothing_to_do(self) -> None:
        """Without an alias in it the envelope is the same object."""
        envelope = Envelope(SENDER, (address("a@example.net"),))
        for book in (Aliases("relay.example.com"), aliases(FILE)):
            self.assertIs(book.expand(envelope, False), envelope)

    def test_circles(self) -> None:
        """What stands for itself is final: mail to a circle goes to who was asked for, and to everybody on the way outside of it."""
        book = aliases(
            b"a@x.example: b@x.example\nb@x.example: c@x.example, out@y.example\nc@x.example: a@x.example\n"
            b"me@x.example: me@x.example, copy@y.example\n@z.example: all@z.example\n"
        )
        self.assertEqual(texts(book, "a@x.example"), ["a@x.example", "out@y.example"])
        self.assertEqual(texts(book, "c@x.example"), ["c@x.example", "out@y.example"])
        self.assertEqual(texts(book, "me@x.example"), ["me@x.example", "copy@y.example"])
        self.assertEqual(texts(book, "who@z.example"), ["all@z.example"])

    def test_requests(self) -> None:
        """NOTIFY and ORCPT go with what an alias stands for; without ORCPT the alias becomes it; who is reached twice gets what
        either asked."""
        book = aliases(b"one@x.example: a@y.example\nmany@x.example: a@y.example, b@y.example\n")
        never = NotifyRequest(frozenset(), "rfc822;first@w.example")
        success = NotifyRequest(frozenset({Notify.SUCCESS}))
        envelope = Envelope(
            SENDER,
            tuple(map(address, ("one@x.example", "many@x.example", "c@y.example"))),
            requests={"one@x.example": never, "many@x.example": success, "c@y.example": never},
        )
        expanded = book.expand(envelope, True)
        assert isinstance(expanded, Envelope)
        self.assertEqual(
            expanded.requests,
            {
                "a@y.example": NotifyRequest(frozenset({Notify.SUCCESS}), "rfc822;first@w.example"),
                "b@y.example": NotifyRequest(frozenset({Notify.SUCCESS}), "rfc822;many@x.example"),
                "c@y.example": never,
            },
        )
        plain = book.expand(
            Envelope(SENDER, tuple(map(address, ("a@y.example", "one@x.example", "+=\u00fc@z.example")))), True
        )
        assert isinstance(plain, Envelope)
        self.assertEqual(plain.requests, {})
        wanted = Envelope(
            SENDER,
            tuple(map(address, ("one@x.example", "a@y.example"))),
            requests={"one@x.example": never},
        )
        expanded = book.expand(wanted, True)
        assert isinstance(expanded, Envelope)
        # Asked directly, it hears of failures and delays, whatever the alias' sender did not want to hear.
        self.assertEqual(expanded.requests["a@y.example"].notify, {Notify.FAILURE, Notify.DELAY})

    def test_success_is_not_told_to_strangers(self) -> None:
        """Who is behind an alias with several targets is nothing that a stranger's NOTIFY=SUCCESS finds out; for one target, and for our
        own people, the request stays."""
        book = aliases(b"one@x.example: a@y.example\n@x.example: b@y.example, c@y.example\n")
        success = NotifyRequest(frozenset({Notify.SUCCESS, Notify.FAILURE}), "rfc822;asked@x.example")
        for trusted, of_several in ((True, success.notify), (False, frozenset({Notify.FAILURE}))):
            texts_asked = ("one@x.example", "any@x.example", "d@y.example")
            envelope = Envelope(SENDER, tuple(map(address, texts_asked)), requests=dict.fromkeys(texts_asked, success))
            expanded = book.expand(envelope, trusted)
            assert isinstance(expanded, Envelope)
            notify = {text: request.notify for text, request in expanded.requests.items()}
            self.assertEqual(
                notify,
                {
                    "a@y.example": success.notify,
                    "b@y.example": of_several,
                    "c@y.example": of_several,
                    "d@y.example": success.notify,
                },
            )
            self.assertEqual(
                {request.original_recipient for request in expanded.requests.values()}, {"rfc822;asked@x.example"}
            )
        only = Envelope(
            SENDER, (address("x@x.example"),), requests={"x@x.example": NotifyRequest(frozenset({Notify.SUCCESS}))}
        )
        expanded = book.expand(only, False)
        assert isinstance(expanded, Envelope)
        self.assertEqual(expanded.requests["b@y.example"].notify, frozenset())  # of failures nobody asked to hear

    def test_gone_meanwhile(self) -> None:
        """`<postmaster>` without its alias leads to no mailbox: the message waits with its client, who asks again."""
        for book in (aliases(FILE), aliases(b"a@x.example: b@x.example\n"), Aliases("relay.example.com")):
            for others in ((), ("a@x.example",)):
                envelope = Envelope(SENDER, tuple(map(address, ("postmaster", *others))))
                expanded = book.expand(envelope, False)
                if book.knows(address("postmaster")):
                    assert isinstance(expanded, Envelope)
                else:
                    assert isinstance(expanded, Reply)
                    self.assertEqual(expanded.code, 451)

    # What it costs

    def walks(self, book: Aliases) -> list[str]:
        """Who is followed from now on."""
        followed: list[str] = []
        walk = book._walk

        def counted(name: str, recipient: Address) -> Any:
            followed.append(recipient.text)
            return walk(name, recipient)

        self.patch(book, "_walk", counted)
        return followed

    def test_one_alias_is_followed_once(self) -> None:
        """A thousand addresses of one whole domain, or one name in all its spellings, cost and count as one."""
        members = [f"m{n}@y.example" for n in range(FAN_OUT - 1)]
        book = aliases(f"@x.example: {', '.join(members)}\nsales@z.example: a@y.example, b@y.example\n".encode())
        followed = self.walks(book)
        self.assertEqual(texts(book, *(f"r{n}@x.example" for n in range(1000))), members)
        self.assertEqual(texts(book, "Sales@z.example", "sALES@z.example"), ["a@y.example", "b@y.example"])
        self.assertEqual(followed, ["r0@x.example", "Sales@z.example"])
        crowd = Crowd()
        self.assertTrue(all(book.joins(address(f"r{n}@x.example"), crowd) for n in range(1000)))
        self.assertEqual((crowd.size, len(followed)), (FAN_OUT - 1, 2))

    def test_a_local_part_that_is_kept(self) -> None:
        """It makes a difference, so nothing is remembered, and each counts."""
        book = aliases(b"@x.example: @y.example, all@y.example\n")
        crowd = Crowd()
        for n in range(100):
            self.assertEqual(texts(book, f"r{n}@x.example"), [f"r{n}@y.example", "all@y.example"])
            self.assertTrue(book.joins(address(f"r{n}@x.example"), crowd))
        self.assertEqual(crowd.size, 200)
        self.assertEqual(book._known, {})

    def test_a_crowd_that_is_full(self) -> None:
        """RCPT already refuses what would be too much, and from then on follows no alias of that message; others still pass."""
        book = aliases(b"".join(b"@x.example: @y.example\n" if not n else b"l%d@z.example: %s\n" % (
            n, b", ".join(b"m%d@y%d.example" % (m, n) for m in range(FAN_OUT))
        ) for n in range(MOST_RECIPIENTS // FAN_OUT + 2)))  # fmt: skip
        crowd = Crowd()
        answers = [book.joins(address(f"l{n}@z.example"), crowd) for n in range(1, MOST_RECIPIENTS // FAN_OUT + 2)]
        self.assertEqual(answers, [True] * (MOST_RECIPIENTS // FAN_OUT) + [False])
        followed = self.walks(book)
        self.assertFalse(book.joins(address("any@x.example"), crowd))
        self.assertTrue(book.joins(address("l@z.example"), crowd))
        self.assertEqual(followed, [])

    def test_work_without_recipients(self) -> None:
        """However few stand at the end, a way with too many turns is told when the file is read, and a long one counts."""
        names = [b"n%d@x.example" % n for n in range(200)]
        tangle = b"".join(b"%s: %s\n" % (name, b", ".join(names)) for name in names)
        self.assertGreater(len(names) ** 2, MOST_STEPS)
        self.assertRaises(FileTrouble, aliases, tangle)
        book = aliases(
            b"@x.example: %s\n" % b", ".join(b"@x%d.example" % n for n in range(400))
            + b"".join(b"@x%d.example: one@y.example\n" % n for n in range(400))
        )
        recipients = tuple(address(f"r{n}@x.example") for n in range(60))
        self.assertIsInstance(book.expand(Envelope(SENDER, recipients), True), Reply)
        self.assertIsInstance(book.expand(Envelope(SENDER, recipients[:40]), True), Envelope)

    def test_memory_has_an_end(self) -> None:
        """What is remembered is forgotten when it becomes too much, and the answers stay the same."""
        self.patch(module, "_MOST_REMEMBERED", 10)
        book = aliases(FILE)
        for _ in range(3):
            for name, expected in (("root@localhost", 1), ("sales@example.com", 3), ("news@lists.example.com", 2)):
                self.assertEqual(len(texts(book, name)), expected)
                self.assertLessEqual(sum(len(each.targets or ()) + 1 for each in book._known.values()), 10)

    def test_orcpt_is_xtext(self) -> None:
        """RFC 3461 4: what would end the parameter is hidden."""
        book = aliases(b'"a b=+"@x.example: a@y.example\n')
        expanded = book.expand(Envelope(SENDER, (Address('"a b=+"@x.example', "x.example"),)), True)
        assert isinstance(expanded, Envelope)
        self.assertEqual(expanded.requests["a@y.example"].original_recipient, 'rfc822;"a+20b+3D+2B"@x.example')

    def test_too_many(self) -> None:
        """A message that becomes too large a crowd is refused for now, whole."""
        lists = b"".join(
            b"l%d@x.example: %s\n" % (n, b", ".join(b"m%d@y%d.example" % (m, n) for m in range(FAN_OUT)))
            for n in range(MOST_RECIPIENTS // FAN_OUT + 1)
        )
        book = aliases(lists)
        recipients = tuple(address(f"l{n}@x.example") for n in range(MOST_RECIPIENTS // FAN_OUT + 1))
        self.assertEqual(len(texts(book, *(each.text for each in recipients[1:]))), MOST_RECIPIENTS)
        refusal = book.expand(Envelope(SENDER, recipients), True)
        assert isinstance(refusal, Reply)
        self.assertEqual((refusal.code, refusal.enhanced), (452, "4.5.3"))

    def test_troubles(self) -> None:
        """Each kind of wrong line is told with its number and the fix, and what held before still holds."""
        chain = b"".join(b"c%d@x.example: c%d@x.example\n" % (n, n + 1) for n in range(DEEPEST + 1))
        crowd = b"all@x.example: " + b", ".join(b"m%d@y.example" % n for n in range(FAN_OUT + 1)) + b"\n"
        book = aliases(FILE)
        for text, line, reason in (
            (b"a: b@x.example\njust words\n", 2, "no alias"),
            (b"\n\n  goes: on@x.example\n", 3, "margin"),
            (b"a:\n", 1, "nobody"),
            (b"a: , ,\n", 1, "nobody"),
            (b"a: b@x.example\nA@localhost: c@x.example\n", 2, "line 1 already"),
            (b"a: |/bin/sh\n", 1, "no commands"),
            (b'a: "|/bin/sh -c x"\n', 1, "no commands"),
            (b"a: /dev/null\n", 1, "no commands"),
            (b"a: :include:/etc/list\n", 1, "no commands"),
            (b"a: b@x.example\nc: d\n", 2, "d has no domain"),
            (b"a: a\n", 1, "a has no domain"),
            (b"@x.example: nobody\n", 1, "has no domain"),
            (b"a: b@x_y.example\n", 1, "is no mailbox"),
            (b"a: Bob <b@x.example>\n", 1, "is no mailbox"),
            (b"a: b@x.example c@x.example\n", 1, "is no mailbox"),
            (b"a@x.example: @y.example\n", 1, "whole domain"),
            (b"a@@x.example: b@y.example\n", 1, "is no mailbox"),
            (b"@: b@y.example\n", 1, "is no mailbox"),
            (b"ok: b@y.example\n\xff: b@y.example\n", 2, "UTF-8"),
            ("\u00fc@x.example: b@y.example\n".encode(), 1, "is no mailbox"),
            (chain, 1, "more than"),
            (b"ok: b@y.example\n" + crowd, 2, "more than"),
        ):
            path = Path(self.mktemp())
            path.write_bytes(text)
            trouble = self.assertRaises(FileTrouble, book.load, str(path))
            self.assertEqual((trouble.path, trouble.line), (str(path), line), text[:60])
            self.assertIn(reason, trouble.reason)
            self.assertEqual(texts(book, "root@localhost"), ["admin@example.com"])
        trouble = self.assertRaises(FileTrouble, book.load, self.mktemp())
        self.assertEqual((trouble.line, texts(book, "root@localhost")), (0, ["admin@example.com"]))

    def test_reading_again(self) -> None:
        """A new file takes the place of the old one as a whole; no file, no aliases. CRLF and a byte order mark do not matter."""
        path = Path(self.mktemp())
        book = aliases(FILE)
        path.write_bytes(b"\xef\xbb\xbfbob: b@x.example\r\n# end\r\n")
        book.load(str(path))
        self.assertEqual(texts(book, "bob@localhost", "root@localhost"), ["b@x.example", "root@localhost"])
        path.write_bytes(b"bob: c@x.example\n")
        book.load(str(path))
        self.assertEqual(texts(book, "bob@localhost"), ["c@x.example"])
        book.load("")
        self.assertFalse(book.knows(address("bob@localhost")))


NODES = [f"n{number}@x.example" for number in range(6)]


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*NODES, "@x.example", "@z.example"]),
        st.lists(st.sampled_from([*NODES, "n1@z.example", "out@y.example"]), min_size=1, max_size=4),
        max_size=6,
    ),
    st.booleans(),
    st.permutations([*NODES, "N1@x.example", "n1@z.example", "stranger@x.example", "other@x.example", "w@z.example"]),
)
def test_what_is_remembered_is_right(graph: dict[str, list[str]], keeps: bool, asked: list[str]) -> None:
    """Whatever was asked before, in any order: an alias stands for the same as when it is the first that is asked."""
    if keeps and "@z.example" in graph:
        graph["@z.example"].append("@x.example")
    text = "".join(f"{left}: {', '.join(right)}\n" for left, right in graph.items()).encode()
    book, forgetful = aliases(text), aliases(text)
    for each in asked:
        forgetful._forget()
        assert set(texts(book, each)) == set(texts(forgetful, each)), each


@given(
    st.dictionaries(
        st.sampled_from(NODES), st.lists(st.sampled_from([*NODES, "out@y.example"]), min_size=1), max_size=6
    )
)
def test_any_graph(graph: dict[str, list[str]]) -> None:
    """Whatever points to what: expansion ends, nobody comes twice, somebody is always left, and all who are left can be reached from who
    was asked for."""
    book = aliases("".join(f"{left}: {', '.join(right)}\n" for left, right in graph.items()).encode())
    for start in NODES:
        reachable, todo = {start}, [start]
        while todo:
            for each in graph.get(todo.pop(), []):
                if each not in reachable:
                    reachable.add(each)
                    todo.append(each)
        found = texts(book, start)
        assert found
        assert len(set(found)) == len(found)
        assert set(found) <= reachable
        assert {each for each in reachable if each not in graph} <= set(found)
