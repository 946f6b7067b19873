"""RET, ENVID, NOTIFY and ORCPT, to the letter of RFC 3461."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail.envelope import Notify, NotifyRequest, Ret
from relaycluster.smtp.dsn_parameters import is_xtext, parse_envelope_id, parse_notify_request, parse_ret
from relaycluster.smtp.grammar import GrammarError


def xtext(text: str) -> str:
    """RFC 3461 section 4, the other way round."""
    return "".join(c if "!" <= c <= "~" and c not in "+=" else f"+{ord(c):02X}" for c in text)


def refused(parse: Callable[[str | None], object], value: str | None) -> bool:
    with pytest.raises(GrammarError) as caught:
        parse(value)
    return (caught.value.reply.code, caught.value.reply.enhanced) == (501, "5.5.4")


def orcpt(value: str | None) -> NotifyRequest | None:
    return parse_notify_request({"ORCPT": value})


def notify(value: str | None) -> NotifyRequest | None:
    return parse_notify_request({"NOTIFY": value})


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=33))
def test_whatever_is_printable_can_be_said(text: str) -> None:
    """xtext of printable ASCII is accepted and kept as it was given."""
    value = xtext(text)
    assert is_xtext(value)
    assert parse_envelope_id(value) == value
    assert orcpt(f"rfc822;{value}") == NotifyRequest(None, f"rfc822;{value}")


@given(st.text(max_size=30))
def test_nothing_else_is_xtext(text: str) -> None:
    """What is accepted stands for printable ASCII; so no line end and no control character comes out of it."""
    if is_xtext(text):
        decoded = bytearray()
        at = 0
        while at < len(text):
            if text[at] == "+":
                decoded.append(int(text[at + 1 : at + 3], 16))
                at += 3
            else:
                decoded += text[at].encode("ascii")
                at += 1
        assert decoded.decode("ascii").isprintable()
        assert xtext(decoded.decode("ascii")) == text or "+" in text


@pytest.mark.parametrize(
    "value", ["", "+", "a+", "a+2", "a+2b", "a+GG", "a=b", "a b", "a+0A", "a+7F", "a+1F", "a+80", "\xfc", "a\x7f"]
)
def test_what_is_not_xtext(value: str) -> None:
    """Lower case digits, half a code, characters that have to be encoded, and codes of what may not be said."""
    assert not is_xtext(value)
    assert refused(parse_envelope_id, value)
    assert refused(orcpt, f"rfc822;{value}")


def test_ret() -> None:
    """FULL or HDRS in any case (4.3)."""
    assert parse_ret("full") is Ret.FULL
    assert parse_ret("Hdrs") is Ret.HEADERS
    for wrong in (None, "HEADERS", "FULL,HDRS"):
        assert refused(parse_ret, wrong)


def test_notify() -> None:
    """NEVER alone, or some of the three (4.1); none of them is no request."""
    assert notify("NEVER") == NotifyRequest(frozenset())
    assert notify("failure,Success") == NotifyRequest(frozenset({Notify.FAILURE, Notify.SUCCESS}))
    assert parse_notify_request({}) is None
    for wrong in (None, "NEVER,DELAY", "DELAY,", ",DELAY", "DELAY;FAILURE", "NEVER,NEVER", "ALWAYS"):
        assert refused(notify, wrong)


def test_limits() -> None:
    """The longest values: 100 characters of ENVID, 500 octets of ORCPT."""
    assert parse_envelope_id("e" * 100) == "e" * 100
    assert refused(parse_envelope_id, "e" * 101)
    assert refused(parse_envelope_id, None)
    assert orcpt("rfc822;" + "x" * 493) is not None
    assert refused(orcpt, "rfc822;" + "x" * 494)
    assert orcpt("utf-8;" + "ü" * 247) is not None
    assert refused(orcpt, "utf-8;" + "ü" * 248)


@pytest.mark.parametrize(
    "value", ["utf-8;a@b", "UTF-8;ü@ü", r"utf-8;\x{FC}@b", r"utf-8;\x{2B}\x{3D}\x{5C}", r"utf-8;\x{10FFFF}{}"]
)
def test_utf8_original_recipients(value: str) -> None:
    """RFC 6533 section 3: what is UTF-8, as it is or embedded."""
    assert orcpt(value) == NotifyRequest(None, value)


@pytest.mark.parametrize(
    "value",
    [None, "", "utf-8;", "rfc822", ";a@b", "rfc 822;a@b", "rfc822;ü", "utf-8;a+b", "utf-8;a\\b", r"utf-8;\x{41}", r"utf-8;\x{D800}",
     r"utf-8;\x{110000}", r"utf-8;\x{0FC}", r"utf-8;\x{fc}", r"utf-8;\x{A}", r"utf-8;\x{D}", "utf-8;\u0085", "utf-8;\u2028", "x@y;a@b"],
)  # fmt: skip
def test_original_recipients_that_are_none(value: str | None) -> None:
    """No type, no address, or an address that its type can not say: among them line ends, however they are written."""
    assert refused(orcpt, value)
