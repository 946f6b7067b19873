"""Trace fields: the `Received:` that we add, and the counting of those that others added (RFC 5321 4.4 and 6.3).

`Return-Path:` is not added: only final delivery may (RFC 5321 4.4).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from relaycluster.mail.envelope import Envelope
from relaycluster.mail.session import Session

HOP_LIMIT: Final = 50
"""A message with more `Received:` fields than this is in a loop and refused with 5.4.6 (RFC 5321 6.3: at least 100 is
suggested for counting alone, as many as 50 have not been seen on a way that was none)."""

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_WIDTH: Final = 78  # RFC 5322 2.1.1

_hops = re.compile(rb"^received[ \t]*+:", re.IGNORECASE | re.MULTILINE).findall  # white space: RFC 5322 4.5

# What may stand as Extended-Domain (RFC 5321 4.1.2): a domain, with the underscores that exist, or an address literal.
_is_domain = re.compile(r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?|\[[A-Za-z0-9.:-]{1,60}\])\Z").match
_unprintable = re.compile(r"[^!-'*-\[\]-~]").sub  # also parentheses, backslash and space: the text goes into a comment
_HELO_LENGTH: Final = 64

# (ESMTP, TLS, authenticated) → RFC 3848; with SMTPUTF8, RFC 6531 4.3.
_PROTOCOLS: Final = {
    (False, False, False): "SMTP",
    (True, False, False): "ESMTP",
    (True, True, False): "ESMTPS",
    (True, False, True): "ESMTPA",
    (True, True, True): "ESMTPSA",
}
_UTF8_PROTOCOLS: Final = {
    (False, False): "UTF8SMTP",
    (True, False): "UTF8SMTPS",
    (False, True): "UTF8SMTPA",
    (True, True): "UTF8SMTPSA",
}


def date_time(epoch_seconds: float) -> str:
    """An instant as RFC 5322 3.3 writes it, in UTC: `Thu, 01 Jan 1970 00:00:00 +0000`. Never in the machine's locale."""
    at = datetime.fromtimestamp(int(epoch_seconds), UTC)
    return (
        f"{_DAYS[at.weekday()]}, {at.day:02d} {_MONTHS[at.month - 1]} {at.year:04d} "
        f"{at.hour:02d}:{at.minute:02d}:{at.second:02d} +0000"
    )


class DateTimes:
    """`date_time`, which writes each second once. One for each process; give it to `received`."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def __call__(self, epoch_seconds: float) -> str:
        second = int(epoch_seconds)
        if second != self._second:
            self._text = date_time(second)
            self._second = second
        return self._text


def received(session: Session, envelope: Envelope, hostname: str, queue_id: str, date: str) -> bytes:
    """The `Received:` field for a message, with its CRLF, folded between its clauses to 78 columns where they allow it.

    `hostname` is ours, `date` comes from `date_time`. The recipient is named only when there is exactly one, since a copy
    must not tell about the others (RFC 5321 7.6). Whatever the client said in HELO, no line end, comment or
    other structure of ours can come from it.
    """
    sender = _sender(session.helo, session.peer_address)
    tls, user = session.tls, session.user
    if envelope.smtputf8:
        protocol = _UTF8_PROTOCOLS[tls is not None, bool(user)]
    else:
        protocol = _PROTOCOLS.get((session.esmtp, tls is not None, bool(user)), "SMTP")
    with_clause = f"with {protocol} ({tls})" if tls is not None else f"with {protocol}"
    clauses = [f"by {hostname}", with_clause, f"id {queue_id}"]
    recipients = envelope.recipients
    if len(recipients) == 1:
        text = recipients[0].text
        if text.isprintable() and (envelope.smtputf8 or text.isascii()):
            clauses.append(f"for <{text}>")
    clauses[-1] += ";"
    clauses.append(date)
    parts = [sender]
    width = len(sender)
    for clause in clauses:
        width += len(clause) + 1
        if width > _WIDTH:
            parts.append("\r\n\t")
            width = len(clause) + 8
        else:
            parts.append(" ")
        parts.append(clause)
    parts.append("\r\n")
    return "".join(parts).encode()


@lru_cache(maxsize=1024)
def _sender(helo: str, peer_address: str) -> str:
    """The clause that is the same for all messages of a session."""
    peer = f" ([{address_literal(peer_address)}])" if peer_address else ""
    if _is_domain(helo):
        return f"Received: from {helo}{peer}"
    shown = _unprintable("?", helo[:_HELO_LENGTH]) or "nothing"
    return f"Received: from unknown{peer} (HELO {shown})"


def address_literal(address: str) -> str:
    """An IP address as RFC 5321 4.1.3 writes it inside the brackets. An IPv4 peer of an IPv6 socket is an IPv4 peer."""
    if ":" not in address:
        return address
    address = address.partition("%")[0]
    if address[:7].lower() == "::ffff:" and "." in address:
        return address[7:]
    return f"IPv6:{address}"


def header_end(content: bytes) -> int:
    """Where the header block ends: the index of the empty line, so that `content[:end]` is the header with its last CRLF and
    `content[end + 2:]` the body. A content without an empty line is all header."""
    if content.startswith(b"\r\n"):
        return 0
    end = content.find(b"\r\n\r\n")
    return len(content) if end < 0 else end + 2


def hop_count(header: bytes) -> int:
    """How many `Received:` fields a header block has."""
    return len(_hops(header))


def is_looping(header: bytes) -> bool:
    """Whether the message went through too many hands already (RFC 5321 6.3)."""
    return hop_count(header) > HOP_LIMIT
