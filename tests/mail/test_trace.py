"""Trace fields."""

from __future__ import annotations

from email import message_from_bytes
from email.policy import default
from email.utils import parsedate_to_datetime

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail.address import Address
from relaycluster.mail.envelope import Envelope
from relaycluster.mail.session import Session, TLSFacts
from relaycluster.mail.trace import (
    HOP_LIMIT,
    DateTimes,
    address_literal,
    date_time,
    header_end,
    hop_count,
    is_looping,
    received,
)

BOB = Address("bob@example.org", "example.org")
CAROL = Address("carol@example.org", "example.org")
SENDER = Address("alice@example.com", "example.com")
ONE = Envelope(SENDER, (BOB,))
SESSION = Session("s1", "0.0.0.0:25", "mx", "192.0.2.7", 4711, "192.0.2.1", 25, helo="client.example", esmtp=True)
QUEUE_ID = "01JD0000000000000000000000"
DATE = "Thu, 01 Jan 1970 00:00:00 +0000"


def test_the_field() -> None:
    """The usual case, as it goes on the wire."""
    assert received(SESSION, ONE, "mx1.example.net", QUEUE_ID, DATE) == (
        b"Received: from client.example ([192.0.2.7]) by mx1.example.net with ESMTP\r\n"
        b"\tid 01JD0000000000000000000000 for <bob@example.org>;\r\n"
        b"\tThu, 01 Jan 1970 00:00:00 +0000\r\n"
    )


@pytest.mark.parametrize(
    ("esmtp", "tls", "user", "smtputf8", "protocol"),
    [
        (False, False, "", False, "SMTP"),
        (True, False, "", False, "ESMTP"),
        (True, True, "", False, "ESMTPS"),
        (True, False, "u", False, "ESMTPA"),
        (True, True, "u", False, "ESMTPSA"),
        (True, False, "", True, "UTF8SMTP"),
        (True, True, "u", True, "UTF8SMTPSA"),
    ],
)
def test_protocols(esmtp: bool, tls: bool, user: str, smtputf8: bool, protocol: str) -> None:
    """RFC 3848 and RFC 6531 name the protocol; the TLS facts stand in a comment; the user's name stands nowhere."""
    facts = TLSFacts("TLSv1.3", "TLS_AES_256_GCM_SHA384") if tls else None
    session = evolve(SESSION, esmtp=esmtp, tls=facts, user=user and "secret-user")
    field = received(session, evolve(ONE, smtputf8=smtputf8), "mx", QUEUE_ID, DATE)
    assert f" with {protocol} " in " ".join(field.decode().split())
    assert (b"(TLSv1.3 TLS_AES_256_GCM_SHA384)" in field) == tls
    assert b"secret-user" not in field


def test_several_recipients_are_not_told() -> None:
    """`for` names the only recipient, never one of several."""
    field = received(SESSION, Envelope(SENDER, (BOB, CAROL)), "mx", QUEUE_ID, DATE)
    assert b"for" not in field
    assert b"id " + QUEUE_ID.encode() + b";" in field


@pytest.mark.parametrize(
    ("address", "literal"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "IPv6:2001:db8::1"),
        ("fe80::1%eth0", "IPv6:fe80::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
    ],
)
def test_address_literals(address: str, literal: str) -> None:
    """RFC 5321 4.1.3; an IPv4 client of a dual-stack socket is shown as IPv4."""
    assert address_literal(address) == literal
    assert f"([{literal}])".encode() in received(evolve(SESSION, peer_address=address), ONE, "mx", QUEUE_ID, DATE)


@given(st.text(max_size=300))
def test_helo_cannot_write_structure(helo: str) -> None:
    """Whatever a client says in HELO, the result is one ASCII field, whose `by` is ours and whose parentheses are balanced."""
    field = received(evolve(SESSION, helo=helo), ONE, "mx1.example.net", QUEUE_ID, DATE)
    assert field.isascii()
    assert field.endswith(b"\r\n")
    lines = field[:-2].split(b"\r\n")
    assert b"\r" not in b"".join(lines)
    assert b"\n" not in b"".join(lines)
    assert all(line.startswith(b"\t") for line in lines[1:])
    assert max(map(len, lines)) <= 998
    assert field.count(b"(") == field.count(b")")
    message = message_from_bytes(field + b"\r\n", policy=default)
    assert message.keys() == ["Received"]
    flat = " ".join(str(message["Received"]).split())
    assert flat.endswith(f" by mx1.example.net with ESMTP id {QUEUE_ID} for <bob@example.org>; {DATE}")


@pytest.mark.parametrize(
    ("helo", "shown"),
    [
        ("client.example", b"from client.example ([192.0.2.7])"),
        ("under_score", b"from under_score ([192.0.2.7])"),
        ("[192.0.2.7]", b"from [192.0.2.7] ([192.0.2.7])"),
        ("[IPv6:2001:db8::1]", b"from [IPv6:2001:db8::1] ([192.0.2.7])"),
        ("x (evil) y", b"from unknown ([192.0.2.7]) (HELO x??evil??y)"),
        ("x\r\nBcc: y", b"from unknown ([192.0.2.7]) (HELO x??Bcc:?y)"),
        ("b\u00fccher.example", b"from unknown ([192.0.2.7]) (HELO b?cher.example)"),
        ("", b"from unknown ([192.0.2.7]) (HELO nothing)"),
    ],
)
def test_helo_examples(helo: str, shown: bytes) -> None:
    """A name or literal stands as it was given; anything else is shown in a comment, so that it can still be traced."""
    assert shown in received(evolve(SESSION, helo=helo), ONE, "mx", QUEUE_ID, DATE)


@given(
    st.from_regex(r"[a-z]{1,40}(\.[a-z]{1,10})?", fullmatch=True),
    st.from_regex(r"[a-z]{1,30}@[a-z]{1,30}", fullmatch=True),
)
def test_folding(helo: str, recipient: str) -> None:
    """Ordinary names never make a line longer than 78 columns, counting a tab as eight."""
    envelope = Envelope(SENDER, (Address(recipient, "x"),))
    field = received(evolve(SESSION, helo=helo), envelope, "relay-17.mail.example.net", QUEUE_ID, DATE)
    assert all(len(line.expandtabs(8)) <= 78 for line in field.split(b"\r\n"))


def test_a_non_ascii_recipient_only_where_it_is_allowed() -> None:
    """Without SMTPUTF8 the header stays ASCII; with it the recipient is shown as UTF-8 (RFC 6532)."""
    envelope = Envelope(SENDER, (Address("b\u00e4r@example.org", "example.org"),))
    assert received(SESSION, envelope, "mx", QUEUE_ID, DATE).isascii()
    field = received(SESSION, evolve(envelope, smtputf8=True), "mx", QUEUE_ID, DATE)
    assert "for <b\u00e4r@example.org>".encode() in field


@given(st.integers(0, 253_402_300_799))
def test_date_time(seconds: int) -> None:
    """The date is the one that the standard library reads back, and the cache gives the same."""
    text = date_time(seconds)
    assert int(parsedate_to_datetime(text).timestamp()) == seconds
    cached = DateTimes()
    assert [cached(seconds + 0.25), cached(seconds + 0.75), cached(seconds + 0.9)] == [text] * 3


def test_date_times_moves_on() -> None:
    """The cache does not keep yesterday's second."""
    cached = DateTimes()
    assert cached(0.0) == DATE
    assert cached(1.0) == "Thu, 01 Jan 1970 00:00:01 +0000"
    assert cached(0.0) == DATE


@pytest.mark.parametrize(
    ("content", "header", "body"),
    [
        (b"A: b\r\n\r\nbody\r\n", b"A: b\r\n", b"body\r\n"),
        (b"\r\nbody\r\n", b"", b"body\r\n"),
        (b"A: b\r\n", b"A: b\r\n", b""),
        (b"", b"", b""),
        (b"A: b\r\n\r\n", b"A: b\r\n", b""),
    ],
)
def test_header_end(content: bytes, header: bytes, body: bytes) -> None:
    """Header and body, also where one of them is missing."""
    end = header_end(content)
    assert (content[:end], content[end + 2 :]) == (header, body)


def test_hops() -> None:
    """Fields are counted at the start of a line only, in any case; the limit is passed by the 51st."""
    header = (
        b"RECEIVED: a\r\nX: y Received: no\r\n\treceived: folded, not a field\r\nreceived: b\r\nReceived-SPF: no\r\n"
    )
    assert hop_count(header) == 2
    assert hop_count(b"") == 0
    assert hop_count(b"Received : x\r\nX: y\r\nRECEIVED\t : x\r\nReceived-SPF: x\r\n Received: x\r\n") == 2
    assert not is_looping(b"Received: x\r\n" * HOP_LIMIT)
    assert is_looping(b"Received: x\r\n" * (HOP_LIMIT + 1))
