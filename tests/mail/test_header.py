"""The header's fields and the mailboxes in them: nothing lost, nothing invented, whatever stands there."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail.header import author_domain, certain_mailboxes, domain_of, mailboxes, split_fields

LISTS = [
    (b"a@example.com", ["a@example.com"]),
    (b'"Doe, John" <j@example.com>, k@example.org (home (or \\) so)),', ["j@example.com", "k@example.org"]),
    (b"Team: a@example.com, B <b@example.com>; , c@example.com", ["a@example.com", "b@example.com", "c@example.com"]),
    (b"undisclosed-recipients:;", []),
    (b"", []),
    (b"<>", [""]),
    (b"<@hop.example,@other.example:u@example.com>", ["u@example.com"]),
    (b"john . doe (he) @ example . com", ["john.doe@example.com"]),
    (b"=?utf-8?q?Boss=40corp?= <a@example.com>", ["a@example.com"]),
    (b"a@[IPv6:2001:db8::1], b@[192.0.2.1]", ["a@[IPv6:2001:db8::1]", "b@[192.0.2.1]"]),
    (b'"a b"@example.com', ['"a b"@example.com']),
    (b'"a\\"@x <"@example.com', ['"a\\"@x <"@example.com']),
    ("J\u00fcrgen <j\u00fcrgen@b\u00fccher.example>".encode(), ["j\u00fcrgen@b\u00fccher.example"]),
    (b"a@example.com\r\n\t, b@example.com", ["a@example.com", "b@example.com"]),
]

# What is no address list must never look like the one allowed mailbox alone.
TRICKS = [
    b"boss@example.com <me@example.net>",
    b"<me@example.net> boss@example.com",
    b"<boss@example.com> <me@example.net>",
    b"boss@example.com: me@example.net;",
    b"<boss@example.com:me@example.net>",
    b"<boss@example.com,me@example.net>",
    b"boss@example.com me@example.net",
    b"me@example.net; boss@example.com",
    b'"x <boss@example.com>, me@example.net',
]


@pytest.mark.parametrize(("value", "expected"), LISTS)
def test_mailboxes(value: bytes, expected: list[str]) -> None:
    """Comments, quoted strings, groups, routes, literals, obsolete spaces: the addr-specs alone, in order."""
    assert mailboxes(value) == expected


@pytest.mark.parametrize("value", TRICKS)
def test_ambiguous_lists(value: bytes) -> None:
    """Where readers may differ about who the author is, the result is never just the harmless one."""
    assert mailboxes(value) != ["me@example.net"]


@pytest.mark.parametrize("value", [b"John Doe", b'"open <a@b>', b"\xff@example.com", b"<a@b c>", b")@x"])
def test_garbage_stays_garbage(value: bytes) -> None:
    """What is no mailbox comes out as text that no list of senders has, and is not dropped."""
    (found,) = mailboxes(value)
    assert found not in ("a@b", "@example.com", "@x")


@given(st.binary(max_size=200) | st.text('a@<>,;:"\\()[]. \t', max_size=60).map(str.encode))
def test_any_octets(value: bytes) -> None:
    """No input raises; every mailbox is made of what stands there."""
    text = value.decode("utf-8", "surrogateescape")
    for found in mailboxes(value):
        assert set(found) <= {*text, " "}
        domain_of(found)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"a@example.com", ["a@example.com"]),
        (b"< a@example.com >", ["a@example.com"]),
        (
            b'J. Q. O\'Doe <j@example.com> (home (or \\) so)), "k k"@example.org(x) ,',
            ["j@example.com", '"k k"@example.org'],
        ),
        (b'"Doe, \\"J\\" [x] <j@x>"\t<j@example.com>', ["j@example.com"]),
        (b"=?utf-8?q?Boss=40corp?= =?utf-8?b?eA==?= <a@example.com>", ["a@example.com"]),
        (
            b"Team X: a@example.com, B <b@example.com>; (t), c@example.com",
            ["a@example.com", "b@example.com", "c@example.com"],
        ),
        (b"undisclosed-recipients:;", []),
        (b"", []),
        (b"a@example.com <b@example.com>", ["a@example.com", "b@example.com"]),
        ("J\u00fcrgen <j\u00fcrgen@b\u00fccher.example>".encode(), ["j\u00fcrgen@b\u00fccher.example"]),
        (b"J\xfcrgen <j@example.com>", ["j@example.com"]),
    ],
)
def test_certain_mailboxes(value: bytes, expected: list[str]) -> None:
    """What people and programs write is certain: names, encoded words, quoted strings, comments, groups."""
    assert certain_mailboxes(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *TRICKS[1:],  # the first one is certain to name both
        b"[<boss@example.com>] <me@example.net>",
        b"<me@example.net> [<boss@example.com>]",
        b"<me@example.net> [, boss@example.com, ]",
        b"me@example.net [, boss@example.com, ]",
        b"[x] <me@example.net>",
        b"x] <me@example.net>",
        b"me@[192.0.2.1]",
        b"<@x,boss@example.com:me@example.net>",
        b"<@x:me@example.net>",
        b'a\\" <boss@example.com>, " <me@example.net>',
        b"a\\ <me@example.net>",
        b"me@example.net (, boss@example.com",
        b"me@example.net ((, boss@example.com)",
        b"me@example.net (, boss@example.com\\)",
        b"me@example.net ), boss@example.com",
        b'me@example.net, "boss@example.com',
        b"<boss@example.com>\0 <me@example.net>",
        b'"\x0b" <me@example.net>',
        b"a\x7f <me@example.net>",
        "a\u0085 <me@example.net>".encode(),
        "a\u2028 <me@example.net>".encode(),
        b"=?utf-8?q?boss=40example.com=3E?=@example.net",
        b"<=?utf-8?q?boss=40example.com=3E?=@example.net>",
        b"<me@=?utf-8?q?x?=.example.net>",
        b'"boss@example.com>,"@example.net',
        b"boss@example.com .example.net",
        b"boss@example.com(x).example.net",
        b"me @example.net",
        b"me@example.net@example.com",
        b"<me@example.net> <boss@example.com>",
        b"<me@example.net",
        b"me@example.net>",
        b"<>",
        b"boss",
        b"boss me@example.net",
        b"a: b: me@example.net;",
        b"a: me@example.net",
        b": me@example.net;",
        b"a: me@example.net; boss@example.com",
        b"\xff@example.net",
    ],
)
def test_uncertain_mailboxes(value: bytes) -> None:
    """What somebody may read in another way is not guessed at."""
    assert certain_mailboxes(value) is None


@given(st.text('ab@<>,;:"\\()[]. \t=?', max_size=40).map(str.encode))
def test_certain_means_that_both_agree(value: bytes) -> None:
    """Whatever is certain, the tolerant reading finds the same."""
    found = certain_mailboxes(value)
    if found is not None:
        assert sorted(found) == sorted(mailboxes(value))


@pytest.mark.parametrize("unit", [b"a@b,", b"a@b", b"<a@b>,"])
def test_certain_mailboxes_have_a_limit(unit: bytes) -> None:
    """One more than the limit is enough to know."""
    found = certain_mailboxes(unit * 10_000, 7)
    assert found is None or len(found) == 8


@pytest.mark.parametrize(
    "unit", [b"(", b'"', b"<", b"[", b":", b"\\", b"(\\", b"@,", b"<@,", b"a ", b'"\\', b"()", b"<a@b>"]
)
def test_linear_time(unit: bytes) -> None:
    """Sixteen times the input costs nowhere near 256 times the time."""

    def seconds(value: bytes) -> float:
        best = 9.9
        for _ in range(3):
            begun = time.process_time()
            mailboxes(value)
            certain_mailboxes(value)
            best = min(best, time.process_time() - begun)
        return best

    assert seconds(unit * 32_000) < 64 * max(seconds(unit * 2_000), 0.0002)


def test_fields() -> None:
    """Folded fields stay whole, names are lower case whatever stands between name and colon, other lines have no name."""
    fields = split_fields(b"From: a\r\n\tb\r\nSUBJECT :  x\r\nno field\r\n two\r\n: y\r\n")
    assert [field.name for field in fields] == [b"from", b"subject", b"", b""]
    assert [field.value for field in fields] == [b"a\tb", b"x", b"", b""]
    assert split_fields(b"") == []
    assert split_fields(b" x\r\nA: b")[0].name == b""


@given(st.lists(st.sampled_from([b"A: b", b" c", b"\td", b"x", b"From : y", b"\xff: z", b":", b""])))
def test_fields_join_to_the_header(lines: list[bytes]) -> None:
    """Whatever the lines are, the fields' octets are the header's."""
    header = b"".join(line + b"\r\n" for line in lines)
    fields = split_fields(header)
    assert b"".join(field.raw for field in fields) == header
    assert all(field.raw.endswith(b"\r\n") for field in fields)


def test_author_domain() -> None:
    """The first mailbox of the first From decides; IDN becomes A-labels; a literal or nothing is no domain."""
    for value, expected in [
        ("A <a@Example.COM>, b@example.net", "example.com"),
        ("a@B\u00dcCHER.example", "xn--bcher-kva.example"),
        ("a@example.com.", "example.com"),
        ("a@[192.0.2.1]", ""),
        ("nobody", ""),
        ("a@" + "\u00fc" * 4000, ""),
        ("a@exa mple.com", ""),
        ("a@x..example", ""),
        ("undisclosed:;", ""),
    ]:
        header = b"Sender: s@sender.example\r\nFrom: " + value.encode() + b"\r\nFrom: c@second.example\r\n"
        assert author_domain(split_fields(header)) == expected, value
    assert author_domain(split_fields(b"To: a@example.com\r\n")) == ""
    for flood in (b"<" * 2000, b"(x)" * 2000, b"a " * 2000):
        assert author_domain(split_fields(b"From: " + flood + b"a@example.com\r\n")) == ""
    assert author_domain(split_fields(b"From: a@example.com, " + b"<" * 2000 + b"\r\n")) == "example.com"
