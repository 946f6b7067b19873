"""The replies of a remote server: bytes in, `Reply` values out, bounded in memory whatever the server sends.

Tolerant where it costs nothing (RFC 5321 4.2 and what is seen in the wild): a code without text, no enhanced code, lines
that end in LF alone, 8-bit text, control characters. Strict where a guess could put a reply to the wrong command: the
code is three digits from 200 to 599, a blank or a hyphen follows it, and all lines of a reply carry the same one.
"""

from __future__ import annotations

import re

from relaycluster.mail.reply import Reply

# RFC 5321 4.5.3.1.5 allows 512 octets a line; longer ones exist. An EHLO reply has some twenty lines; a policy's
# explanation in five languages has fifty.
LONGEST_LINE = 2048
MOST_LINES = 100
LONGEST_REPLY = 8 * 1024

# A session says the same few things again and again: so many short replies are parsed once only.
_MOST_KNOWN = 32
_LONGEST_KNOWN = 64
# The replies to a pipelined envelope come in one piece, mostly the same one each time.
_LONGEST_BATCH = 256

_CODES = {str(code).encode("ascii"): code for code in range(200, 600)}
# RFC 2034 section 4, RFC 3463 section 2.
_ENHANCED = re.compile(rb"([245])\.(\d{1,3})\.(\d{1,3})(?:[ \t]|\Z)").match
_BLANK = 0x20
_HYPHEN = 0x2D


class MalformedReply(ValueError):
    """The server sent what is no SMTP reply: the connection can not be believed any more. The text says why, in a form
    that is fit for a log and a notice."""


class ReplyReader:
    """Cuts the server's bytes into replies.

    `feed` bytes in any pieces, then call `next_reply` until it returns None. After a `MalformedReply` the reader is of no
    more use.
    """

    __slots__ = ("_at", "_batches", "_buffer", "_code", "_known", "_learning", "_lines", "_octets", "_ready")

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0  # where the first line that was not read yet begins
        self._lines: list[bytes] = []  # of a reply that is not complete, without code and separator
        self._code = 0
        self._octets = 0  # in `_lines`
        self._known: dict[bytes, Reply] = {}
        self._batches: dict[bytes, tuple[Reply, ...]] = {}  # the last one first, as they are taken
        self._ready: list[Reply] = []  # of a batch that is known
        self._learning: list[Reply] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits here: neither bytes nor the first lines of a reply."""
        return self._at == len(self._buffer) and not self._lines and not self._ready

    def feed(self, data: bytes) -> None:
        """More bytes from the server."""
        if self._at < len(self._buffer) or self._lines or self._ready:
            self._buffer = self._buffer[self._at :] + data
            self._learning = None
        else:
            batch = self._batches.get(data)
            if batch is not None:
                self._ready = list(batch)
                return
            self._buffer = data
            self._learning = [] if len(data) <= _LONGEST_BATCH and data.count(b"\n") > 1 else None
        self._at = 0

    def next_reply(self) -> Reply | None:
        """The next complete reply, or None until more bytes come. Raises `MalformedReply`."""
        if self._ready:
            return self._ready.pop()
        buffer = self._buffer
        while True:
            at = self._at
            end = buffer.find(b"\n", at)
            if (end if end >= 0 else len(buffer)) - at > LONGEST_LINE:
                raise MalformedReply(f"reply line longer than {LONGEST_LINE} octets")
            if end < 0:
                return None
            self._at = end + 1
            line = buffer[at:end]
            if line.endswith(b"\r"):
                line = line[:-1]
            if not self._lines and (known := self._known.get(line)) is not None:
                if self._learning is not None:
                    self._learn(known)
                return known
            code = _CODES.get(line[:3])
            if code is None:
                raise MalformedReply(f'not a reply: "{printable(line[:60])}"')
            if len(line) == 3 or line[3] == _BLANK:
                if not self._lines:
                    reply = _reply(code, (line[4:],))
                    if len(line) <= _LONGEST_KNOWN:
                        if len(self._known) == _MOST_KNOWN:
                            self._known.clear()
                        self._known[line] = reply
                        if self._learning is not None:
                            self._learn(reply)
                    else:
                        self._learning = None
                    return reply
                if code != self._code:
                    raise MalformedReply(f"reply with two codes, {self._code} and {code}")
                reply = _reply(code, (*self._lines, line[4:]))
                self._lines, self._octets = [], 0
                return reply
            if line[3] != _HYPHEN:
                raise MalformedReply(f'not a reply: "{printable(line[:60])}"')
            self._continue(code, line[4:])

    def _learn(self, reply: Reply) -> None:
        """One more of the replies that came in one piece; with the last of them the piece is known."""
        learning = self._learning
        assert learning is not None
        learning.append(reply)
        if self._at == len(self._buffer):
            self._learning = None
            if len(self._batches) == _MOST_KNOWN:
                self._batches.clear()
            self._batches[self._buffer] = tuple(reversed(learning))

    def _continue(self, code: int, text: bytes) -> None:
        self._learning = None
        if not self._lines:
            self._code = code
        elif code != self._code:
            raise MalformedReply(f"reply with two codes, {self._code} and {code}")
        self._lines.append(text)
        self._octets += len(text)
        if len(self._lines) >= MOST_LINES or self._octets > LONGEST_REPLY:
            raise MalformedReply(f"reply longer than {MOST_LINES} lines or {LONGEST_REPLY} octets")


def _reply(code: int, lines: tuple[bytes, ...]) -> Reply:
    first = _ENHANCED(lines[0])
    # The class of the enhanced code is the code's first digit (RFC 2034 section 4); one that is not is mere text.
    if first is None or first[1][0] != 0x30 + code // 100:
        return Reply(code, "", tuple([printable(line) for line in lines]), True)
    enhanced = lines[0][: first.end()].rstrip()
    texts = [printable(lines[0][first.end() :])]
    for line in lines[1:]:
        again = _ENHANCED(line)
        texts.append(printable(line[again.end() :] if again and line[: again.end()].rstrip() == enhanced else line))
    return Reply(code, enhanced.decode("ascii"), tuple(texts), True)


def printable(octets: bytes) -> str:
    """The text that was sent, fit for logs, terminals and notices: UTF-8 where it is, U+FFFD where it is not, a blank for
    a tab, and `\\x1b` for a control character."""
    text = octets.decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join(
        [
            character if character.isprintable() else " " if character == "\t" else _escaped(character)
            for character in text
        ]
    )


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
