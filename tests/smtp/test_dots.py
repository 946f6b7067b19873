"""Dot-stuffing against a reference that looks at the whole content line by line."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from relaycluster.smtp.dots import DotStuffer, stuff

# Mostly what matters: dots, CR, LF, and something else.
CONTENT = st.lists(st.sampled_from([b".", b"\r\n", b"\r", b"\n", b"x", b"\r\n.", b"..", b"\0\xff"])).map(b"".join)


def reference(content: bytes) -> bytes:
    """RFC 5321 4.5.2, as it reads there."""
    lines = content.split(b"\r\n")
    if lines[-1] == b"":
        lines.pop()
    return b"".join((b"." + line if line.startswith(b".") else line) + b"\r\n" for line in lines) + b".\r\n"


def unstuffed(wire: bytes) -> bytes:
    """What a receiving server makes of it, up to the first line that is a dot alone."""
    content = b""
    while not wire.startswith(b".\r\n"):
        line, end, wire = wire.partition(b"\r\n")
        assert end, "no terminating dot"
        content += (line[1:] if line.startswith(b".") else line) + end
    assert wire == b".\r\n", "the content went on behind its end"
    return content


def cut(content: bytes, places: list[int]) -> list[bytes]:
    """The content in chunks, some of them empty."""
    bounds = [0, *sorted(place % (len(content) + 1) for place in places), len(content)]
    return [content[start:end] for start, end in pairwise(bounds)]


def in_chunks(chunks: list[bytes]) -> bytes:
    stuffer = DotStuffer()
    return b"".join(stuffer.stuff(chunk) for chunk in chunks) + stuffer.finish()


@given(CONTENT)
@example(b"")
@example(b".")
@example(b".\r\n")
@example(b"x\r")
def test_whole_content_is_stuffed_as_the_rfc_says(content: bytes) -> None:
    """The fast way gives what the slow way gives."""
    assert stuff(content) == reference(content)


@given(CONTENT, st.lists(st.integers(min_value=0, max_value=200)))
def test_any_chunking_gives_the_same_octets(content: bytes, places: list[int]) -> None:
    """Where the content is cut changes nothing: no dot goes out bare because CRLF and dot lie in two chunks."""
    assert in_chunks(cut(content, places)) == reference(content)


@given(CONTENT)
def test_octet_by_octet(content: bytes) -> None:
    """The worst chunking of all."""
    assert in_chunks([content[at : at + 1] for at in range(len(content))]) == reference(content)


@given(CONTENT, st.lists(st.integers(min_value=0, max_value=200)))
def test_the_receiver_gets_the_content_back(content: bytes, places: list[int]) -> None:
    """Unstuffed, it is the content, with a final CRLF where it had none; and nothing is left behind the dot."""
    expected = content if not content or content.endswith(b"\r\n") else content + b"\r\n"
    assert unstuffed(in_chunks(cut(content, places))) == expected


def test_a_dot_alone_at_the_start_of_a_chunk_does_not_end_the_message() -> None:
    """The smuggling that a stuffing per chunk allows: the second message would begin behind the first chunk."""
    wire = in_chunks([b"first\r\n", b".\r\nMAIL FROM:<forged@example.net>\r\n"])
    assert wire == b"first\r\n..\r\nMAIL FROM:<forged@example.net>\r\n.\r\n"


def test_content_without_dots_is_not_copied_before_the_end() -> None:
    """The fast path hands the chunk through."""
    chunk = b"a line\r\n" * 100
    assert DotStuffer().stuff(chunk) is chunk
