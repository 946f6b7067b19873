"""A reply: its form on the wire and what its first digit means."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail.reply import Reply

LINE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


@given(st.integers(200, 599), st.sampled_from(("", "2.0.0", "5.7.1")), st.lists(LINE, min_size=1, max_size=4))
def test_encode(code: int, enhanced: str, lines: list[str]) -> None:
    """Every line repeats the codes (RFC 2034 section 3); a hyphen on all but the last (RFC 5321 4.2.1); CRLF at each end."""
    wire = Reply(code, enhanced, tuple(lines)).encode().decode()
    assert wire.endswith("\r\n")
    shown = wire[:-2].split("\r\n")
    assert len(shown) == len(lines)
    for number, (given_line, line) in enumerate(zip(lines, shown, strict=True)):
        separator = " " if number == len(lines) - 1 else "-"
        assert line == f"{code}{separator}{enhanced + ' ' if enhanced else ''}{given_line}"
        assert re.match(r"\d{3}[ -]", line)


@given(st.integers(200, 599))
def test_meaning(code: int) -> None:
    """Each code is exactly one of positive, transient and permanent."""
    reply = Reply.of(code, "", "x")
    assert [reply.is_positive, reply.is_transient, reply.is_permanent].count(True) == 1
    assert reply.is_positive == (code < 400)
    assert reply.is_permanent == (code >= 500)


def test_one_line() -> None:
    """For logs: codes and all lines, without gaps for what is not there."""
    assert str(Reply(550, "5.1.1", ("No", "such user"))) == "550 5.1.1 No such user"
    assert str(Reply(220, "", ("mx.example ESMTP",))) == "220 mx.example ESMTP"
    assert str(Reply(250, "2.0.0", ("",))) == "250 2.0.0"
