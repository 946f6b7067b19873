"""An SMTP session read slowly and obviously: which messages are in these octets, given what the server answered.

It knows nothing of addresses, parameters or states: those it takes from the replies, of which there must be exactly one for each
line, in order. What it finds by itself is where lines, contents and chunks end. That is what must never be in doubt: a server
that finds another end lets a message end early, or become two (CVE-2023-51764, -51765, -51766).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import field, frozen

CRLF = b"\r\n"
QUEUED = "QUEUED"
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_BDAT = re.compile(rb" *([0-9]{1,20})( +LAST)?[ \t]*", re.IGNORECASE)
_ENHANCED = re.compile(r"[245]\.\d+\.\d+ ")
_LAST = (421, 221)


class Disagreement(AssertionError):
    """The server's replies do not fit to the octets."""


@frozen
class Reply:
    """One reply of the server; `text` is that of its last line, without the enhanced status code."""

    code: int
    text: str


@frozen
class Limits:
    """What the server was told: longest command line and AUTH response with CRLF, largest message, and whether a bare CR or
    LF becomes CRLF instead of voiding its message."""

    line: int
    response: int
    message: int
    normalize: bool


def parse_replies(octets: bytes) -> list[Reply]:
    """The server's side of the session. Raises `Disagreement` when it is no SMTP."""
    found = []
    text = octets
    while text:
        line, end, text = text.partition(CRLF)
        if not end or not re.fullmatch(rb"[2-5][0-9][0-9]([ -][^\r\n\x00]*)?", line):
            raise Disagreement(f"not a reply line: {line[:80]!r}")
        if line[3:4] != b"-":
            found.append(Reply(int(line[:3]), _ENHANCED.sub("", line[4:].decode("utf-8"))))
    return found


@frozen
class Reading:
    """What was read: the messages that were queued, in order."""

    messages: list[bytes] = field(factory=list)


def read(segments: Sequence[bytes], octets: bytes, limits: Limits) -> Reading:
    """Read a session. `segments` are the client's octets: in clear, and then those under TLS, which are read when STARTTLS was
    answered 220. `octets` is all that the server said. Raises `Disagreement`."""
    return _Reader(segments, parse_replies(octets), limits).read()


class _Reader:
    def __init__(self, segments: Sequence[bytes], replies: list[Reply], limits: Limits) -> None:
        self._segments = list(segments)
        self._data = self._segments.pop(0)
        self._replies = replies
        self._limits = limits
        self._chunks: list[bytes] = []
        self._found = Reading()

    def read(self) -> Reading:
        if not self._replies or self._next().code not in (220, 554):
            raise Disagreement("no greeting")
        in_auth = False
        while True:
            line, end, rest = self._data.partition(CRLF)
            if not end:
                # A line that is too long already, or spoilt, may have been answered before its end.
                if len(self._replies) > (0 if not line else 1):
                    raise Disagreement(f"{len(self._replies)} replies to {line[:80]!r}, which has not ended")
                return self._found
            self._data = rest
            limit = self._limits.response if in_auth else self._limits.line
            if len(line) + 2 > limit or _BARE.search(line):
                reply = self._next()
                if reply.code not in (500, 501, 421):
                    raise Disagreement(f"{reply} to a line that is none: {line[:80]!r}")
                verb, argument = b"", b""
            else:
                word, _, argument = line.partition(b" ")
                verb = b"" if in_auth else word.rstrip(b"\t").upper()
                if verb == b"BDAT" and not self._read_chunk(argument):
                    return self._found
                if verb == b"BDAT":
                    continue
                reply = self._next()
            in_auth = reply.code == 334
            if reply.code in _LAST:
                if self._replies:
                    raise Disagreement(f"more was said after {reply}")
                return self._found
            if verb in (b"EHLO", b"HELO", b"RSET", b"MAIL") and reply.code == 250:
                self._chunks = []
            if verb == b"STARTTLS" and reply.code == 220:
                if not self._segments:
                    if self._replies:
                        raise Disagreement("something in clear behind STARTTLS was answered")
                    return self._found
                self._data = self._segments.pop(0)
            if reply.code == 354:
                if verb != b"DATA":
                    raise Disagreement(f"354 to {line[:80]!r}")
                if not self._read_content():
                    return self._found

    def _next(self) -> Reply:
        if not self._replies:
            raise Disagreement(f"no reply to what stands before {self._data[:80]!r}")
        return self._replies.pop(0)

    def _read_content(self) -> bool:
        lines = []
        while True:
            line, end, rest = self._data.partition(CRLF)
            if not end:
                if self._replies:
                    raise Disagreement(f"{self._replies[0]} before the content ended")
                return False
            self._data = rest
            if line == b".":
                break
            lines.append(line[1:] if line.startswith(b".") else line)
        content = b"".join(line + CRLF for line in lines)
        reply = self._next()
        self._judge(content, reply)
        return reply.code != 421

    def _read_chunk(self, argument: bytes) -> bool:
        """BDAT's chunk follows its line, whatever becomes of it. False at the end of the session."""
        match = _BDAT.fullmatch(argument)
        if match is None:
            if self._next().code != 421 or self._replies:
                raise Disagreement(f"BDAT {argument[:40]!r} tells no length: nothing behind it can be read")
            return False
        size = int(match[1])
        if len(self._data) < size:
            if self._replies:
                raise Disagreement(f"{self._replies[0]} before the chunk ended")
            return False
        chunk, self._data = self._data[:size], self._data[size:]
        reply = self._next()
        if reply.code == 421:
            if self._replies:
                raise Disagreement("more was said after 421")
            return False
        if reply.code != 250:
            return True
        self._chunks.append(chunk)
        if match[2] is not None:
            content, self._chunks = b"".join(self._chunks), []
            if not reply.text.startswith(QUEUED):
                raise Disagreement(f"the last chunk was answered {reply}, and nothing was queued")
            if self._limits.normalize:
                content = _normalized(content)
            if content and not content.endswith(CRLF):
                content += CRLF  # it is going to be sent with DATA, where a line has to end
            self._judge(content, reply)
        elif reply.text.startswith(QUEUED):
            raise Disagreement("a chunk that is not the last was queued")
        return True

    def _judge(self, content: bytes, reply: Reply) -> None:
        """Was this content answered as it must be?"""
        bare = _BARE.search(content) is not None
        if bare and self._limits.normalize:
            content = _normalized(content)
            bare = False
        too_large = len(content) > self._limits.message
        if reply.text.startswith(QUEUED):
            if bare or too_large:
                raise Disagreement(
                    f"a message that is {'spoilt' if bare else 'too large'} was queued: {content[:80]!r}"
                )
            self._found.messages.append(content)
        elif reply.code == 250:
            raise Disagreement(f"250 without a message: {reply}")
        elif (reply.code == 554 and not bare) or (reply.code == 552 and not too_large):
            raise Disagreement(f"{reply} to a good message: {content[:80]!r}")


def _normalized(content: bytes) -> bytes:
    return re.sub(rb"\r\n|\r|\n", CRLF, content)
