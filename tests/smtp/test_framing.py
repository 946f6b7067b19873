"""Command lines and content out of chunks, whatever the cuts."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relaycluster.smtp.framing import ChunkScanner, CommandFramer, ContentScanner, LineTrouble

LIMIT = 20

pieces = st.lists(
    st.one_of(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"..", b"\r\n.", b"\r\n.\r\n", b"\0", b"x", b"abcdefgh"]), st.binary(max_size=6)),
    max_size=24,
)  # fmt: skip
streams = pieces.map(b"".join)
cuts = st.lists(st.integers(min_value=0, max_value=200), max_size=12)


def chunks(data: bytes, where: list[int]) -> list[bytes]:
    """The data, cut at these places."""
    edges = sorted({0, len(data), *(place for place in where if place < len(data))})
    return [data[start:end] for start, end in pairwise(edges)]


def octet_by_octet(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]


def lines_of(parts: list[bytes]) -> list[bytes | LineTrouble]:
    framer = CommandFramer(LIMIT)
    lines: list[bytes | LineTrouble] = []
    for part in parts:
        framer.feed(part)
        while (line := framer.next_line()) is not None:
            lines.append(line)
        assert framer.pending <= LIMIT
    return lines


def content_of(parts: list[bytes], normalize: bool = False) -> tuple[bytes, bytes | None, bool, int]:
    scanner = ContentScanner(normalize)
    content, rest = b"", None
    for part in parts:
        if rest is not None:
            rest += part
            continue
        piece = scanner.feed(part)
        content += piece
        rest = scanner.rest
    return content, rest, scanner.has_bare_newline, scanner.size


def reference_content(data: bytes, normalize: bool) -> tuple[bytes, bytes | None, bool]:
    """Line by line, as the RFC tells it, for data that is all there: what the scanner must agree with."""
    lines, at, rest = [], 0, None
    while (end := data.find(b"\r\n", at)) >= 0:
        line = data[at:end]
        at = end + 2
        if line == b".":
            rest = data[at:]
            break
        lines.append((line[1:] if line.startswith(b".") else line) + b"\r\n")
    content = b"".join(lines)
    has_bare = re.search(rb"\r(?!\n)|(?<!\r)\n", content) is not None
    if normalize:
        content = re.sub(rb"\r\n|\r|\n", b"\r\n", content)
    return content, rest, has_bare


@given(streams, cuts)
@example(b"a\n" + b"x" * 40 + b"\r\nNOOP\r\n", [30])
@example(b"x" * 18 + b"\n" + b"x" * 40 + b"\r\n", [18])
@example(b"x" * 17 + b"\r" + b"x" * 40 + b"\r\n", [18])
@example(b"x" * 18 + b"\r" + b"x" * 40 + b"\r\n", [19])
def test_lines_do_not_depend_on_the_cuts(data: bytes, where: list[int]) -> None:
    """Whole, octet by octet and cut anywhere: the same lines, the same troubles, in the same order, and bounded memory."""
    whole = lines_of([data])
    assert lines_of(octet_by_octet(data)) == whole
    assert lines_of(chunks(data, where)) == whole


@given(st.lists(st.binary(max_size=LIMIT - 2).filter(lambda line: b"\r" not in line and b"\n" not in line), max_size=5))
def test_good_lines_come_out_as_they_went_in(lines: list[bytes]) -> None:
    """A line within the limit, ended by CRLF, is never touched."""
    assert lines_of([b"".join(line + b"\r\n" for line in lines)]) == lines


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\nb\r\nc\r\n", [LineTrouble.BARE_NEWLINE, b"c"]),
        (b"a\rb\r\nc\r\n", [LineTrouble.BARE_NEWLINE, b"c"]),
        (b"a\r\r\nc\r\n", [LineTrouble.BARE_NEWLINE, b"c"]),
        (b"a\n", [LineTrouble.BARE_NEWLINE]),
        (b"a\r", []),
        (b"x" * 18 + b"\r\nc\r\n", [b"x" * 18, b"c"]),
        (b"x" * 19 + b"\r\nc\r\n", [LineTrouble.TOO_LONG, b"c"]),
        (b"x" * 18 + b"\r", []),
        (b"x" * 19, [LineTrouble.TOO_LONG]),
        (b"x" * 500 + b"\r\nc\r\n", [LineTrouble.TOO_LONG, b"c"]),
        (b"x" * 500 + b"\ny\r\nc\r\n", [LineTrouble.TOO_LONG, b"c"]),
    ],
)
def test_troubles(data: bytes, expected: list[bytes | LineTrouble]) -> None:
    """Each bad line is reported once, as early as it is certain, and ends at its CRLF only."""
    assert lines_of([data]) == expected


@given(streams, cuts, st.booleans())
@example(b"\r\n.\r\n", [2], False)
@example(b"a\rb\nc\r\n.\r\n", [], False)
@example(b".\r\nQUIT\r\n", [1, 2], False)
@example(b"a\r\n.\r\r\n.\r\nrest", [], False)
def test_content_does_not_depend_on_the_cuts_and_agrees_with_a_line_by_line_reading(
    data: bytes, where: list[int], normalize: bool
) -> None:
    """The same content, end, rest and verdict on bare newlines, however cut; and the same as the slow reference finds."""
    content, rest, has_bare, size = content_of([data], normalize)
    assert content_of(octet_by_octet(data), normalize) == (content, rest, has_bare, size)
    assert content_of(chunks(data, where), normalize) == (content, rest, has_bare, size)
    assert size == len(content)
    expected_content, expected_rest, expected_bare = reference_content(data, normalize)
    assert rest == expected_rest
    if rest is not None:
        assert content == expected_content
        assert has_bare == expected_bare


@given(st.lists(st.binary(max_size=12).filter(lambda line: b"\r" not in line and b"\n" not in line), max_size=8), cuts)
def test_stuffing_round_trips(lines: list[bytes], where: list[int]) -> None:
    """What a sender stuffs as RFC 5321 4.5.2 says arrives as it was, and what follows the dot is left alone."""
    content = b"".join(line + b"\r\n" for line in lines)
    stuffed = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines)
    sent = stuffed + b".\r\nQUIT\r\n"
    assert content_of(chunks(sent, where)) == (content, b"QUIT\r\n", False, len(content))


SMUGGLERS = [
    before + dot + after
    for before in (b"\n", b"\r", b"\r\n", b"\r\r\n", b"\n\r", b"\r\n\0", b"\0\n", b"\r\0\n")
    for dot in (b".", b"\0.", b".\0")
    for after in (b"\n", b"\r", b"\r\n", b"\r\r\n", b"\r\0\n", b"\n\r")
    if not (before.endswith(b"\r\n") and dot == b"." and after == b"\r\n")
]
"""All that is nearly the end of content."""


@pytest.mark.parametrize("smuggler", SMUGGLERS, ids=repr)
def test_nothing_but_the_true_dot_ends_the_content(smuggler: bytes) -> None:
    """Each false end of content, cut at every place: the content goes on to the true end, with either policy."""
    data = b"first" + smuggler + b"MAIL FROM:<smuggled@example.org>\r\nsecond\r\n.\r\n"
    for normalize in (False, True):
        whole = content_of([data], normalize)
        assert whole[1] == b""
        assert b"MAIL FROM:<smuggled@example.org>\r\nsecond\r\n" in whole[0]
        for place in range(1, len(data)):
            assert content_of([data[:place], data[place:]], normalize) == whole
        if normalize:
            assert re.search(rb"\r(?!\n)|(?<!\r)\n", whole[0]) is None


def test_memory_between_chunks_is_four_octets() -> None:
    """A megabyte of line without end is handed on as it comes: nothing is collected."""
    scanner = ContentScanner()
    kept = 0
    for _ in range(64):
        kept += 16384 - len(scanner.feed(b"x" * 16384))
    assert kept == 0
    assert scanner.feed(b"\r\n.\r") == b""
    assert scanner.feed(b"\n") == b"\r\n"
    assert scanner.rest == b""


def chunked_content(parts: list[bytes], normalize: bool) -> tuple[bytes, bool, int]:
    scanner = ChunkScanner(normalize)
    content = b"".join(scanner.feed(part) for part in parts if part) + scanner.finish()
    return content, scanner.has_bare_newline, scanner.size


@given(streams, cuts, st.booleans())
@example(b"a\r\nb", [2], False)
@example(b"a\r", [], True)
@example(b"\r\r\n", [1], True)
def test_chunks_do_not_depend_on_the_cuts_and_are_handed_on_as_they_are(
    data: bytes, where: list[int], normalize: bool
) -> None:
    """The same content, size and verdict on bare newlines however cut; octets unchanged but for the normalising and for the
    end of a last line that has none."""
    content, has_bare, size = chunked_content([data], normalize)
    assert chunked_content(octet_by_octet(data), normalize) == (content, has_bare, size)
    assert chunked_content(chunks(data, where), normalize) == (content, has_bare, size)
    assert size == len(content)
    assert has_bare == (re.search(rb"\r(?!\n)|(?<!\r)\n", data) is not None)
    assert content == b"" or content.endswith(b"\r\n")
    if normalize:
        expected = re.sub(rb"\r\n|\r|\n", b"\r\n", data)
        assert content == (expected if expected.endswith(b"\r\n") or not data else expected + b"\r\n")
    elif not has_bare:
        assert content == (data if data.endswith(b"\r\n") or not data else data + b"\r\n")


@given(streams, st.lists(st.integers(0, 30), max_size=12))
def test_octets_are_taken_by_count(data: bytes, counts: list[int]) -> None:
    """`take_up_to` gives no more than was asked, loses nothing, and leaves lines behind it whole."""
    framer = CommandFramer(LIMIT)
    framer.feed(data)
    taken = b""
    for count in counts:
        piece = framer.take_up_to(count)
        assert len(piece) == min(count, len(data) - len(taken))
        taken += piece
        assert framer.pending == len(data) - len(taken)
    framer.forget()
    assert framer.pending == len(data) - len(taken)
    assert taken + framer.take() == data


def test_forgetting_keeps_nothing_of_what_was_read() -> None:
    """A line that held a password is not kept by the buffer it came in; what follows it is."""
    framer = CommandFramer(LIMIT)
    framer.feed(b"secret\r\nNO")
    assert framer.next_line() == b"secret"
    framer.forget()
    assert framer._buffer == b"NO"
    framer.feed(b"OP\r\n")
    assert framer.next_line() == b"NOOP"


def test_a_line_may_be_allowed_to_be_longer() -> None:
    """The limit holds from the next line on, in both directions."""
    framer = CommandFramer(LIMIT)
    framer.allow(100)
    framer.feed(b"x" * 98 + b"\r\n" + b"x" * 99)
    assert framer.next_line() == b"x" * 98
    assert framer.next_line() is LineTrouble.TOO_LONG
    framer.allow(LIMIT)
    framer.feed(b"\r\n" + b"x" * 19)
    assert framer.next_line() is LineTrouble.TOO_LONG


@given(st.binary(max_size=40), cuts)
def test_the_head_of_a_bad_line_is_known(data: bytes, where: list[int]) -> None:
    """Whatever the cuts, the first octets of a line with a trouble are told with it, up to the newline."""
    framer = CommandFramer(LIMIT)
    heads = []
    for part in chunks(b"BDAT 5\n" + data, where):
        framer.feed(part)
        while (line := framer.next_line()) is not None:
            if isinstance(line, LineTrouble):
                heads.append(framer.trouble_head)
    assert heads[0] == b"BDAT 5"
