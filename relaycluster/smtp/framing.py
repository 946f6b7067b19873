"""From chunks of octets to command lines and to content, whatever the cuts, in bounded memory and without a loop over lines.

A line ends at CRLF and nowhere else; content ends at CRLF `.` CRLF and nowhere else (RFC 5321 2.3.8, 4.1.1.4). A program
that also took a bare CR or a bare LF for an end would let a sender smuggle a second message in (CVE-2023-51764 and its
siblings), so both stay what they are: octets that have no place in SMTP, reported to the caller.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

CRLF: Final = b"\r\n"
_TERMINATOR: Final = b"\r\n.\r\n"
_STUFFED: Final = b"\r\n."


class LineTrouble(Enum):
    """Why a command line was not understood. It is reported once, as soon as it is certain, and the rest of the line, up
    to its CRLF, is swallowed."""

    TOO_LONG = "too long"
    BARE_NEWLINE = "bare newline"


class CommandFramer:
    """Cuts the stream into command lines.

    `limit` is the longest command line in octets, with its CRLF (RFC 5321 4.5.3.1.4 and what extensions add). What is
    kept of a line without end is never more than that.
    """

    __slots__ = ("_buffer", "_limit", "_position", "_swallowing", "trouble_head")

    def __init__(self, limit: int) -> None:
        self._buffer = b""
        self._position = 0
        self._limit = limit - len(CRLF)
        self._swallowing = False
        self.trouble_head = b""
        """The first octets of the last line with a trouble, up to a bare newline."""

    @property
    def pending(self) -> int:
        """Octets that arrived and were not read."""
        return len(self._buffer) - self._position

    def feed(self, data: bytes) -> None:
        """More octets from the client."""
        if self._position == len(self._buffer):
            self._buffer = data
        else:
            self._buffer = self._buffer[self._position :] + data
        self._position = 0

    def take(self) -> bytes:
        """Everything that was not read; the framer is empty then. For the change from commands to content."""
        rest = self._buffer[self._position :]
        self._buffer = b""
        self._position = 0
        return rest

    def take_up_to(self, octets: int) -> bytes:
        """At most so many octets of what was not read. For chunks, whose length is known."""
        start = self._position
        if len(self._buffer) - start <= octets:
            return self.take()
        self._position = start + octets
        return self._buffer[start : start + octets]

    def forget(self) -> None:
        """Keep nothing of what was read: a password may have been in it."""
        self._buffer = self.take()

    def allow(self, limit: int) -> None:
        """From now on a line may have so many octets, with its CRLF."""
        self._limit = limit - len(CRLF)

    def next_line(self) -> bytes | LineTrouble | None:
        """The next command line without its CRLF, or what is wrong with it; None when there is no more to say yet."""
        while True:
            buffer, start = self._buffer, self._position
            if start == len(buffer):
                self._buffer, self._position = b"", 0  # an idle session holds no buffer
                return None
            end = buffer.find(CRLF, start)
            if end < 0:
                return self._incomplete()
            self._position = end + 2
            if self._swallowing:
                self._swallowing = False
                continue
            line = buffer[start:end]
            if len(line) <= self._limit and b"\n" not in line and b"\r" not in line:
                return line
            return self._trouble(line)

    def _trouble(self, text: bytes) -> LineTrouble | None:
        # Which of two troubles it is may not depend on the cuts: a bare newline counts when it stands within the limit.
        limit = self._limit
        if len(text) <= limit:
            if b"\n" not in text and b"\r" not in text:
                return None
            self._note(text)
            return LineTrouble.BARE_NEWLINE
        self._note(text)
        head = text[:limit]
        return LineTrouble.BARE_NEWLINE if b"\n" in head or b"\r" in head else LineTrouble.TOO_LONG

    def _note(self, text: bytes) -> None:
        # Only up to the newline: more is not there at every cut.
        self.trouble_head = text[:16].split(b"\n", 1)[0].split(b"\r", 1)[0]

    def _incomplete(self) -> LineTrouble | None:
        """The buffer holds the start of a line: see whether it can still become a good one, and forget what is not needed."""
        start = self._position
        rest = self._buffer[start:]
        half_end = rest.endswith(b"\r")  # perhaps the first half of the CRLF
        trouble = None
        if not self._swallowing:
            trouble = self._trouble(rest[:-1] if half_end else rest)
            self._swallowing = trouble is not None
        if self._swallowing:
            self._buffer = b"\r" if half_end else b""
            self._position = 0
        return trouble


class ContentScanner:
    """Finds the end of one message's content and undoes the dot-stuffing (RFC 5321 4.5.2).

    With `normalize`, a bare CR or LF becomes CRLF in what is handed on; it never takes part in the end of the content.
    NULs and lines of any length pass unchanged. At most four octets are kept between chunks.
    """

    __slots__ = ("_at_start", "_held", "_normalize", "has_bare_newline", "rest", "size")

    def __init__(self, normalize: bool = False) -> None:
        # DATA's own CRLF is the one before the first line: `.` CRLF at once is the end of an empty message.
        self._held = CRLF
        self._at_start = True
        self._normalize = normalize
        self.has_bare_newline = False
        """Whether a bare CR or LF was seen so far."""
        self.size = 0
        """Octets of content so far, as handed on (RFC 1870 section 5: without stuffing and terminator)."""
        self.rest: bytes | None = None
        """None until the end was found; then what came behind it."""

    def feed(self, data: bytes) -> bytes:
        """More octets from the client; returns the content in them as far as it is certain. Not to be called after the end."""
        buffer = self._held + data if self._held else data
        end = -1
        dot = buffer.find(
            _STUFFED
        )  # the start of a stuffed line and of the terminator alike: mostly one search for both
        if dot >= 0:
            end = dot if buffer.startswith(CRLF, dot + 3) else buffer.find(_TERMINATOR, dot + 3)
        if end >= 0:
            body = buffer[: end + 2]
            self.rest = buffer[end + 5 :]
            self._held = b""
        else:
            keep = _beginning_of_terminator(buffer[-4:])
            if keep:
                body = buffer[:-keep]
                self._held = buffer[-keep:]
            else:
                body = buffer
                self._held = b""
        if not body:
            return b""
        # `body` neither begins nor ends within a CRLF or within the three octets of a stuffed line's start.
        if 0 <= dot != end:
            body = body.replace(_STUFFED, CRLF)
        # Whatever CR or LF is left without the CRLFs is bare. Replaced by as many octets, not removed: so nothing moves
        # together, and it is done in one pass, at half the price of counting CR, LF and CRLF.
        without = body.replace(CRLF, b"  ")
        if b"\n" in without or b"\r" in without:
            self.has_bare_newline = True
            if self._normalize:
                body = body.replace(CRLF, b"\n").replace(b"\r", b"\n").replace(b"\n", CRLF)
        if self._at_start:
            self._at_start = False
            body = body[2:]
        self.size += len(body)
        return body


class ChunkScanner:
    """Looks at one message's content that comes in chunks (RFC 3030): its octets stay as they are, and no dot means anything.

    With `normalize`, a bare CR or LF becomes CRLF in what is handed on. A CRLF may lie across two chunks, so a CR is kept
    until the octet behind it is known.
    """

    __slots__ = ("_half_end", "_line_is_open", "_normalize", "has_bare_newline", "size")

    def __init__(self, normalize: bool = False) -> None:
        self._half_end = False
        self._line_is_open = False
        self._normalize = normalize
        self.has_bare_newline = False
        """Whether a bare CR or LF was seen so far."""
        self.size = 0
        """Octets of content so far, as handed on."""

    def feed(self, data: bytes) -> bytes:
        """More octets of the content, never none; returns them as far as they are certain."""
        body = b"\r" + data if self._half_end else data
        self._half_end = body.endswith(b"\r")
        if self._half_end:
            body = body[:-1]
            if not body:
                return b""
        without = body.replace(CRLF, b"  ")  # see ContentScanner
        if b"\n" in without or b"\r" in without:
            self.has_bare_newline = True
            if self._normalize:
                body = body.replace(CRLF, b"\n").replace(b"\r", b"\n").replace(b"\n", CRLF)
        self._line_is_open = not body.endswith(CRLF)
        self.size += len(body)
        return body

    def finish(self) -> bytes:
        """The last chunk is there: returns what is left to hand on. A last line without an end gets one, since everything
        behind us knows content as lines, and the next hop may be told of it with DATA."""
        if self._half_end:
            self.has_bare_newline = True
        elif not self._line_is_open:
            return b""
        self._half_end = self._line_is_open = False
        self.size += len(CRLF)
        return CRLF


def _beginning_of_terminator(tail: bytes) -> int:
    """How many of the last octets may be the beginning of the terminator."""
    if tail == b"\r\n.\r":
        return 4
    if tail.endswith(_STUFFED):
        return 3
    if tail.endswith(CRLF):
        return 2
    return 1 if tail.endswith(b"\r") else 0
