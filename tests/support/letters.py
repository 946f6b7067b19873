"""What clients of the scenarios send, and what the relay's trace field must say about how it came."""

from __future__ import annotations

import email
import re

from attrs import frozen

from tests.support.secured import HOSTNAME, SecuredEdge
from tests.support.sink import Received

# Everything that a transport may get wrong: dots in front, a lone dot, 8-bit text, a line at the limit, an empty end.
BODY = b".\r\n..two\r\n.x\r\n\r\n" + "Grüße, 日本".encode() + b"\r\n" + b"z" * 998 + b"\r\n From x\r\n\r\n"


def letter(subject: str, sender: str = "ann@example.com", recipient: str = "bob@example.org") -> bytes:
    """A complete message, with all that a submission server would add if it were missing."""
    head = (
        f"Date: Mon, 02 Nov 2026 10:00:00 +0000\r\nFrom: Ann <{sender}>\r\nTo: <{recipient}>\r\n"
        f"Subject: {subject}\r\nMessage-ID: <{subject.replace(' ', '.')}@example.com>\r\n"
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    )
    return head.encode() + BODY


@frozen
class Trace:
    """The `Received:` field that we added."""

    helo: str
    address: str
    protocol: str
    tls: str
    queue_id: str


_TRACE = re.compile(
    r"from (\S+) \(\[(\S+?)\]\)(?: \(HELO \S+\))? by " + re.escape(HOSTNAME) + r" with (\w+)"
    r"(?: \((TLSv1\.[23] \S+)\))? id ([0-9A-Z]{26})(?: for <\S+>)?; \w{3}, .*"
)


def trace_of(received: Received, sent: bytes) -> Trace:
    """The trace field; fails when anything else was added, or a byte behind it is not what was sent."""
    assert received.content.endswith(sent), (received.content[:1500], sent[:1500])
    added = email.message_from_bytes(received.content[: -len(sent)] + b"\r\n")
    assert list(added.keys()) == ["Received"], added.as_string()
    flat = re.sub(r"\s+", " ", added["Received"])
    found = _TRACE.fullmatch(flat)
    assert found is not None, flat
    return Trace(found[1], found[2], found[3], found[4] or "", found[5])


def check(
    edge: SecuredEdge,
    received: Received,
    sent: bytes,
    *,
    user: str = "",
    tls: bool = True,
    client: str = "127.0.0.1",
    via: str = "",
) -> Trace:
    """The message came as it was sent, and both the trace field and the log say who sent it, from where and how."""
    trace = trace_of(received, sent)
    assert trace.address == client, trace
    assert trace.protocol == "ESMTP" + ("S" if tls else "") + ("A" if user else ""), trace
    assert bool(trace.tls) is tls, trace
    event = edge.queued(trace.queue_id)
    assert event["user"] == user, event
    assert event["peer"].rpartition(":")[0].strip("[]") in (client, "") or event["peer"] == client, event
    assert event["via"].partition(":")[0] == via, event
    assert event["tls"].split() == trace.tls.split(), event
    assert event["size"] == len(received.content), event
    assert received.problems == [], received.problems
    return trace
