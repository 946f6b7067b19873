"""The reply reader: tolerant where it costs nothing, strict where a guess could lose a message, bounded always."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail.reply import Reply
from relaycluster.smtp.replies import (
    LONGEST_LINE,
    LONGEST_REPLY,
    MOST_LINES,
    MalformedReply,
    ReplyReader,
    printable,
)


def read(data: bytes, size: int | None = None) -> list[Reply]:
    """All replies in the data, fed in pieces of the size."""
    reader = ReplyReader()
    replies = []
    for at in range(0, len(data), size or len(data) or 1):
        reader.feed(data[at : at + (size or len(data) or 1)])
        while (reply := reader.next_reply()) is not None:
            replies.append(reply)
    return replies


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"250 2.1.5 Ok\r\n", Reply(250, "2.1.5", ("Ok",))),
        (b"250 Ok\r\n", Reply(250, "", ("Ok",))),
        (b"250\r\n", Reply(250, "", ("",))),
        (b"250 \r\n", Reply(250, "", ("",))),
        (b"250 Ok\n", Reply(250, "", ("Ok",))),
        (b"550 5.1.1\r\n", Reply(550, "5.1.1", ("",))),
        (b"550 5.1.1\tno such user\r\n", Reply(550, "5.1.1", ("no such user",))),
        (b"550-5.7.1 one\r\n550 5.7.1 two\r\n", Reply(550, "5.7.1", ("one", "two"))),
        (b"550-5.7.1 one\r\n550 5.7.2 two\r\n", Reply(550, "5.7.1", ("one", "5.7.2 two"))),
        (b"550-one\r\n550-\r\n550\r\n", Reply(550, "", ("one", "", ""))),
        (b"550 4.2.1 class of another code\r\n", Reply(550, "", ("4.2.1 class of another code",))),
        (b"550 5.1.1x\r\n", Reply(550, "", ("5.1.1x",))),
        (b"550 5.1.1.1 four\r\n", Reply(550, "", ("5.1.1.1 four",))),
        ("250 grüße\r\n".encode(), Reply(250, "", ("grüße",))),
        (b"250 gr\xfc\xdfe\r\n", Reply(250, "", ("gr\ufffd\ufffde",))),
        (b"250 \x1b[2J\x00 bell\x07\r\n", Reply(250, "", ("\\x1b[2J\\x00 bell\\x07",))),
        (b"250 a\rb\r\n", Reply(250, "", ("a\\x0db",))),
    ],
)
def test_what_exists_in_the_wild(data: bytes, reply: Reply) -> None:
    """Each form is read as meant, whole and octet by octet."""
    assert read(data) == [reply]
    assert read(data, 1) == [reply]


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"\n",
        b"25\r\n",
        b"2500 Ok\r\n",
        b"250Ok\r\n",
        b"250\tOk\r\n",
        b"150 no such class\r\n",
        b"199 no\r\n",
        b"600 no\r\n",
        b"\xb2\xb50 digits elsewhere\r\n",
        b" 250 Ok\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"250-one\r\n251 two\r\n",
        b"250-one\r\n251-two\r\n250 three\r\n",
        b"250-one\r\n\r\n",
        b"x" * (LONGEST_LINE + 1),
        b"250 " + b"x" * LONGEST_LINE + b"\r\n",
        b"250-\r\n" * MOST_LINES,
        (b"250-" + b"x" * 1000 + b"\r\n") * (LONGEST_REPLY // 1000 + 1),
    ],
)
def test_what_is_no_reply(data: bytes) -> None:
    """A guess could put a reply to the wrong command: the reader says so instead, whole and octet by octet."""
    with pytest.raises(MalformedReply) as whole:
        read(data)
    with pytest.raises(MalformedReply) as by_octet:
        read(data, 1)
    assert str(whole.value) == str(by_octet.value)
    assert str(whole.value).isprintable()


def test_the_longest_line_is_still_read() -> None:
    """The limit itself is inside."""
    assert read(b"250 " + b"x" * (LONGEST_LINE - 5) + b"\r\n")[0].lines == ("x" * (LONGEST_LINE - 5),)


@given(
    st.lists(
        st.tuples(
            st.integers(200, 599), st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=5)
        )
    ),
    st.integers(1, 50),
)
def test_replies_come_out_as_they_were_written(said: list[tuple[int, list[str]]], size: int) -> None:
    """Any sequence of replies, cut anywhere, is the same sequence."""
    data = b"".join(Reply(code, "", tuple(printable(t.encode()) for t in texts)).encode() for code, texts in said)
    assert read(data, size) == read(data)
    assert [reply.code for reply in read(data)] == [code for code, _ in said]


@given(
    st.lists(st.sampled_from([b"250", b"-", b" ", b"\r", b"\n", b"5.1.1", b"421 ", b"\xff", b"x" * 700, b"\0"])),
    st.integers(1, 9),
)
def test_rubbish_neither_raises_anything_else_nor_piles_up(pieces: list[bytes], size: int) -> None:
    """Whatever comes, the reader answers replies or MalformedReply, and keeps no more than it promised."""
    reader = ReplyReader()
    data = b"".join(pieces)
    try:
        for at in range(0, len(data), size):
            reader.feed(data[at : at + size])
            while reader.next_reply() is not None:
                pass
            assert len(reader._buffer) - reader._at <= LONGEST_LINE
            assert sum(map(len, reader._lines)) <= LONGEST_REPLY
    except MalformedReply:
        pass


def test_known_replies_are_bounded() -> None:
    """A server that never says the same thing twice does not fill the memory of what it said."""
    reader = ReplyReader()
    for number in range(1000):
        reader.feed(b"250 2.0.0 queued as %d\r\n" % number)
        assert reader.next_reply() == Reply(250, "2.0.0", (f"queued as {number}",))
        assert len(reader._known) <= 32


def test_a_known_line_can_end_a_longer_reply() -> None:
    """What was a whole reply once is the last line of another one here."""
    assert [reply.lines for reply in read(b"250 two\r\n250-one\r\n250 two\r\n")] == [("two",), ("one", "two")]


def test_is_empty_tells_of_half_a_reply() -> None:
    """Neither half a line nor half a reply of several lines is nothing."""
    reader = ReplyReader()
    assert reader.is_empty
    reader.feed(b"250-one\r\n")
    assert reader.next_reply() is None
    assert not reader.is_empty
    reader.feed(b"250 two\r\n2")
    assert reader.next_reply() is not None
    assert not reader.is_empty


@given(
    st.lists(
        st.sampled_from(
            [
                b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n",
                b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n",
                b"250 2.1.0 ok\r\n250-two\r\n250 lines\r\n",
                b"250 2.1.0 ok\r\n250 2.1",
                b".5 ok\r\n250 2.1.5 ok\r\n354 go\r\n",
                b"250 ok\r\n",
                b"250-a\r\n",
                b"250 " + b"x" * 80 + b"\r\n250 ok\r\n",
                b"550 no\n\r\n",
            ]
        ),
        max_size=12,
    )
)
def test_pieces_that_are_known(pieces: list[bytes]) -> None:
    """A piece that came before means the same each time, wherever it stands: as to a reader that sees each octet anew."""
    reader = ReplyReader()
    found: list[Reply | str] = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (reply := reader.next_reply()) is not None:
                found.append(reply)
                assert reader.is_empty == (reader._at == len(reader._buffer) and not reader._ready)
    except MalformedReply as malformed:
        found.append(str(malformed))
    wanted: list[Reply | str] = []
    plain = ReplyReader()
    try:
        for octet in b"".join(pieces):
            plain.feed(bytes([octet]))
            while (reply := plain.next_reply()) is not None:
                wanted.append(reply)
    except MalformedReply as malformed:
        wanted.append(str(malformed))
    assert found == wanted


def test_what_is_kept_is_bounded() -> None:
    """A server that says something else each time fills no memory with it."""
    reader = ReplyReader()
    for number in range(1000):
        reader.feed(b"250 %d\r\n250 and %d\r\n" % (number, number))
        while reader.next_reply() is not None:
            pass
    assert len(reader._known) <= 32
    assert len(reader._batches) <= 32
    reader.feed(b"250 ok\r\n" * 1000)
    while reader.next_reply() is not None:
        pass
    assert max(map(len, reader._batches)) <= 256
