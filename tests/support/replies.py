"""What remote servers say, in tests."""

from __future__ import annotations

from relaycluster.mail.reply import Reply
from relaycluster.smtp.replies import ReplyReader


def heard(text: str) -> Reply:
    """A reply as the client reads it from the wire; `text` may be of several lines, the code on each."""
    reader = ReplyReader()
    reader.feed("".join(f"{line}\r\n" for line in text.splitlines()).encode())
    reply = reader.next_reply()
    assert reply is not None
    return reply
