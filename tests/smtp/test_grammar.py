"""The grammar of paths, mailboxes, literals and parameters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail.address import NULL, Address
from relaycluster.smtp.grammar import (
    GrammarError,
    is_address_literal,
    is_domain,
    parse_client_name,
    parse_forward_path,
    parse_mailbox,
    parse_parameters,
    parse_reverse_path,
)

ATEXT = "abcXYZ019!#$%&'*+-/=?^_`{|}~"
atoms = st.text(ATEXT, min_size=1, max_size=12)
dot_strings = st.lists(atoms, min_size=1, max_size=4).map(".".join)
quoted_strings = st.lists(
    st.one_of(
        st.characters(min_codepoint=32, max_codepoint=126).filter(lambda c: c not in '"\\'),
        st.characters(min_codepoint=32, max_codepoint=126).map(lambda c: "\\" + c),
    ),
    max_size=20,
).map(lambda parts: f'"{"".join(parts)}"')
labels = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,10}[A-Za-z0-9])?", fullmatch=True)
domains = st.lists(labels, min_size=1, max_size=4).map(".".join)
literals = st.one_of(
    st.ip_addresses(v=4).map(lambda address: f"[{address}]"),
    st.ip_addresses(v=6).map(lambda address: f"[IPv6:{address}]"),
)


def refusal(call: object, *arguments: object) -> tuple[int, str]:
    with pytest.raises(GrammarError) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.reply.code, caught.value.reply.enhanced


@given(st.one_of(dot_strings, quoted_strings), st.one_of(domains, literals), st.lists(domains, max_size=2))
def test_what_the_grammar_derives_is_accepted_as_given(local: str, domain: str, route: list[str]) -> None:
    """Every mailbox made by the rules of RFC 5321 4.1.2 comes back unchanged, with its domain in lower case, without its route."""
    mailbox = f"{local}@{domain}"
    source_route = ",".join(f"@{hop}" for hop in route) + (":" if route else "")
    path = f"<{source_route}{mailbox}>".encode("ascii")
    if len(path) > 256 or len(local) > 64:
        return
    expected = Address(mailbox, domain.lower())
    assert parse_forward_path(path + b" X=1") == (expected, b" X=1")
    assert parse_reverse_path(path) == (expected, b"")
    assert parse_mailbox(mailbox) == expected


@given(st.binary(max_size=80), st.sampled_from([b"", b"<", b'<"', b"<a@", b"<a@[", b"<@a,@b:"]))
def test_octets_give_an_address_or_a_refusal(tail: bytes, head: bytes) -> None:
    """Nothing but `GrammarError` is raised, its reply is permanent, and what is accepted is harmless in a header field."""
    refusals = []
    for parse in (parse_forward_path, parse_reverse_path):
        try:
            address, rest = parse(head + tail)
        except GrammarError as error:
            refusals.append(error.reply)
        else:
            assert (head + tail).endswith(rest)
            assert address.text.isascii()
            assert address.text.isprintable()
    for other in (parse_parameters, parse_client_name):
        try:
            other(head + tail)
        except GrammarError as error:
            refusals.append(error.reply)
    for reply in refusals:
        assert reply.is_permanent
        assert reply.enhanced.startswith("5.")


def test_the_null_reverse_path_is_not_a_forward_path() -> None:
    """`<>` is for MAIL only (RFC 5321 4.5.5)."""
    assert parse_reverse_path(b"<> SIZE=1") == (NULL, b" SIZE=1")
    assert refusal(parse_forward_path, b"<>") == (501, "5.1.3")


def test_postmaster_without_domain() -> None:
    """`<postmaster>`, in any case, is a forward-path only, and its domain is left to the caller (RFC 5321 4.1.1.3)."""
    assert parse_forward_path(b"<postmaster>") == (Address("postmaster", ""), b"")
    assert parse_forward_path(b"<POSTMASTER> X") == (Address("POSTMASTER", ""), b" X")
    assert refusal(parse_reverse_path, b"<postmaster>") == (501, "5.1.7")
    assert refusal(parse_forward_path, b"<postmasters>") == (501, "5.1.3")
    assert refusal(parse_mailbox, "postmaster") == (501, "5.1.3")


@pytest.mark.parametrize("opening", ["", "@hop.example:"])
def test_limits(opening: str) -> None:
    """Local-part 64, domain 255, label 63, path 256 octets (RFC 5321 4.5.3.1): the last octet that fits, and the first that does not."""

    def parse(mailbox: str) -> tuple[Address, bytes]:
        return parse_forward_path(f"<{opening}{mailbox}>".encode())

    assert parse("a" * 64 + "@example.net")[0].domain == "example.net"
    assert refusal(parse, "a" * 65 + "@example.net") == (501, "5.1.3")
    assert parse("a@" + "b" * 63 + ".net")[0].domain == "b" * 63 + ".net"
    assert refusal(parse, "a@" + "b" * 64 + ".net") == (501, "5.1.3")
    room = 256 - len(f"<{opening}a@>")
    longest = ("b" * 62 + ".") * 3
    assert parse("a@" + longest + "c" * (room - len(longest)))
    assert refusal(parse, "a@" + longest + "c" * (room - len(longest) + 1)) == (501, "5.1.3")


def test_a_domain_of_255_octets_is_the_longest() -> None:
    """The domain's own limit, where no path limits it before."""
    longest = ("b" * 62 + ".") * 4 + "ccc"
    assert len(longest) == 255
    assert is_domain(longest.encode())
    assert not is_domain(longest.encode() + b"c")


@pytest.mark.parametrize(
    "text",
    ["[192.0.2.1]", "[IPv6:::1]", "[ipv6:2001:db8::192.0.2.1]", "[x-tag:anything!]", "[255.255.255.255]"],
)
def test_address_literals(text: str) -> None:
    """The three forms of RFC 5321 4.1.3."""
    assert is_address_literal(text.encode())
    assert parse_mailbox(f"a@{text}").domain == text.lower()


@pytest.mark.parametrize(
    "text",
    ["[]", "[192.0.2]", "[192.0.2.1", "192.0.2.1]", "[192.0.2.001]", "[::1]", "[fe80::1]", "[IPv6:::1%1]", "[IPv6:]", "[-:x]", "[a:]",
     "[a: ]", "[IPv6:1:2:3:4:5:6:7:8:9]", "[a:\\]", "[\xff:x]"],
)  # fmt: skip
def test_what_is_no_address_literal(text: str) -> None:
    """Near misses: among them an IPv6 address without its tag, which would pass for the general form."""
    assert not is_address_literal(text.encode("latin-1"))


def test_octets_beyond_ascii_have_their_own_reply() -> None:
    """553 5.6.7 without SMTPUTF8 (RFC 6531 3.5), in octets and in text."""
    assert refusal(parse_forward_path, "<jürgen@example.net>".encode()) == (553, "5.6.7")
    assert refusal(parse_reverse_path, b"<a@b\xfc.example>") == (553, "5.6.7")
    assert refusal(parse_mailbox, "jürgen@example.net") == (553, "5.6.7")


def test_parameters() -> None:
    """Keywords in upper case, values as they are, None where there is no equals sign."""
    assert parse_parameters(b"") == {}
    assert parse_parameters(b" size=10 Body=8BITMIME  smtputf8") == {"SIZE": "10", "BODY": "8BITMIME", "SMTPUTF8": None}
    for wrong in (b"SIZE=1", b" =1", b" -A", b" A=", b" A=b=c", b" A=\x7f", b" A=\xff", b" A a", b" A\tB"):
        assert refusal(parse_parameters, wrong) == (501, "5.5.4")


def test_parameters_with_utf8() -> None:
    """With SMTPUTF8 a value may have UTF-8 in it (RFC 6531 3.3), a keyword never; broken UTF-8 is refused."""
    assert parse_parameters(" ORCPT=utf-8;ü X=1".encode(), True) == {"ORCPT": "utf-8;ü", "X": "1"}
    assert refusal(parse_parameters, " ORCPT=utf-8;ü".encode()) == (501, "5.5.4")
    for wrong in (b" A=\xff", b" A=\xc0\x80", " Ü=1".encode(), b" A=\xed\xa0\x80"):
        assert refusal(parse_parameters, wrong, True) == (501, "5.5.4")


letters = st.characters(categories=("L", "N", "S"), min_codepoint=0xA1)
utf8_atoms = st.text(st.one_of(st.sampled_from(ATEXT), letters), min_size=1, max_size=8)
utf8_local_parts = st.one_of(
    st.lists(utf8_atoms, min_size=1, max_size=3).map(".".join),
    st.text(st.one_of(st.sampled_from(ATEXT + " @<>"), letters), max_size=8).map(lambda text: f'"{text}"'),
)


@given(
    utf8_local_parts, st.sampled_from(["example.net", "bücher.example", "BÜCHER.example", "例え.テスト", "[192.0.2.1]"])
)
def test_utf8_addresses(local: str, domain: str) -> None:
    """What RFC 6531 3.3 derives comes back as it was given, with its domain as A-labels; without SMTPUTF8 it is 553 5.6.7."""
    mailbox = f"{local}@{domain}"
    if len(local.encode()) > 64:
        return
    path = f"<{mailbox}>".encode()
    routed = {"bücher.example": "xn--bcher-kva.example", "例え.テスト": "xn--r8jz45g.xn--zckzah"}
    expected = Address(mailbox, routed.get(domain.lower(), domain))
    for parse in (parse_forward_path, parse_reverse_path):
        assert parse(path + b" X", True) == (expected, b" X")
        if not mailbox.isascii():
            assert refusal(parse, path) == (553, "5.6.7")


@given(
    st.binary(max_size=60),
    st.sampled_from([b"<", "<ü".encode(), "<ü@".encode(), "<a@ü.".encode(), "<@ü:a@".encode(), '<"ü'.encode()]),
)
def test_octets_with_smtputf8_give_an_address_or_a_refusal(tail: bytes, head: bytes) -> None:
    """Nothing but `GrammarError` is raised; what is accepted is one line, and its domain can be asked of the DNS."""
    for text in (head + tail, head + tail + b"@example.net>", head + tail + b">"):
        for parse in (parse_forward_path, parse_reverse_path):
            try:
                address, rest = parse(text, True)
            except GrammarError:
                pass
            else:
                assert text.endswith(rest)
                assert len(address.text.splitlines()) <= 1
                assert not any(character < " " or "\x7f" <= character < "\xa0" for character in address.text)
                assert (
                    not address.domain
                    or is_domain(address.domain.encode())
                    or is_address_literal(address.domain.encode())
                )


@pytest.mark.parametrize(
    "mailbox",
    ["ü@-bücher.example", "ü@bücher-.example", "ü@bü..example", "ü@bü_cher.example", "ü@.bü", "ü@bü.", "ü@bü。", "ü@xn--\u00fc.example",
     "ü@" + "ü" * 60 + ".example", "ü@\u200d.example", "\u0085@example.net", "\u2028@example.net", "ü" * 33 + "@example.net", "ü ü@example.net",
     "ü@" + "bü." * 80 + "example"],
)  # fmt: skip
def test_utf8_addresses_that_are_none(mailbox: str) -> None:
    """Near misses: labels that are no U-labels, control characters and separators, limits in octets."""
    assert refusal(parse_forward_path, f"<{mailbox}>".encode(), True) == (501, "5.1.3")


@pytest.mark.parametrize("octets", [b"\xff", b"\xc0\xae", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
def test_what_is_not_utf8(octets: bytes) -> None:
    """Latin-1, an overlong form, a surrogate, beyond Unicode, cut off: refused, in either part."""
    assert refusal(parse_forward_path, b"<" + octets + b"@example.net>", True) == (501, "5.1.3")
    assert refusal(parse_forward_path, b"<a@" + octets + b".example>", True) == (501, "5.1.3")


def test_a_hostile_line_costs_no_time_that_matters() -> None:
    """No pattern backtracks without bound: the longest lines that can almost match are refused at once (the suite's limit of
    minutes is what a runaway pattern would meet)."""
    for text in (
        b"<" + b"a." * 300,
        b"<" + b'"\\' * 300,
        b"<a@" + b"a-" * 300,
        b"<" + b"@a," * 300,
        b"<a@" + b"a." * 300 + b"-",
    ):
        refusal(parse_forward_path, text)
        refusal(parse_forward_path, text.replace(b"a", b"\xc3\xbc"), True)
    refusal(parse_parameters, b" " + b"A-" * 300 + b"=")
