"""Dot-stuffing, byte for byte the same however the content is cut (RFC 5321 4.5.2).

A line that begins with a dot gets one more in front, and the content ends with a line that is a dot alone. Which line
begins where is remembered from chunk to chunk: a stuffing that looks at one chunk at a time lets a `CRLF .` that lies
across two chunks pass bare, and what follows it is read as a second message.

Lines end with CRLF and nothing else. Content with a bare CR or LF never gets this far: the edge refuses it or
normalises it, since some hosts read `LF . LF` as the end.

Content without a final CRLF gets one, so that the terminator stands on a line of its own. SMTP cannot express anything
else: its content is a sequence of lines (RFC 5321 2.3.8).
"""

from __future__ import annotations

_DOT = 0x2E


def stuff(content: bytes) -> bytes:
    """The whole content as it goes on the wire: stuffed, and ended by the terminating dot."""
    # rfind is twice as fast as find and replace here: it looks for the CR, which is rare, not for the dot.
    if content.rfind(b"\r\n.") >= 0:
        content = content.replace(b"\r\n.", b"\r\n..")
    if content.startswith(b"."):
        content = b"." + content
    if content.endswith(b"\r\n") or not content:
        return content + b".\r\n"
    return content + b"\r\n.\r\n"


class DotStuffer:
    """The same for content that comes in chunks: `stuff` each in order, then `finish`."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        # The last two octets of what came so far. The content's first line begins as if after a CRLF.
        self._tail = b"\r\n"

    def stuff(self, chunk: bytes) -> bytes:
        """The chunk as it goes on the wire."""
        if not chunk:
            return chunk
        stuffed = chunk if chunk.rfind(b"\r\n.") < 0 else chunk.replace(b"\r\n.", b"\r\n..")
        tail = self._tail
        if chunk[0] == _DOT:
            if tail == b"\r\n":
                stuffed = b"." + stuffed
        elif tail.endswith(b"\r") and chunk.startswith(b"\n."):
            stuffed = b"\n." + stuffed[1:]
        self._tail = chunk[-2:] if len(chunk) > 1 else (tail + chunk)[-2:]
        return stuffed

    def finish(self) -> bytes:
        """What ends the content: the terminating dot, after a CRLF where the content does not end with one."""
        return b".\r\n" if self._tail == b"\r\n" else b"\r\n.\r\n"
