"""The server's conversation as a whole; the dialogs are in tests/transcripts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaycluster.mail.envelope import BodyType, Envelope
from relaycluster.mail.reply import Reply
from relaycluster.smtp.commands import Verb
from relaycluster.smtp.server import _COMMANDS, ServerConversation
from relaycluster.smtp.server_events import (
    NEED_DATA,
    PAUSED,
    Aborted,
    CloseAfterSend,
    ConnectAsked,
    Content,
    ContentEnd,
    ContentRefused,
    DataAsked,
    Event,
    Hello,
    MailAsked,
    RecipientAsked,
    Wait,
)
from relaycluster.smtp.server_settings import BareNewline, Dialect, ServerSettings
from relaycluster.smtp.server_states import TRANSITIONS, Move, Occasion, State

STOPPING = Reply.of(421, "4.3.2", "mx.example.org stopping")
QUESTIONS = (ConnectAsked, MailAsked, RecipientAsked, DataAsked, ContentEnd)
TRANSACTION = b"MAIL FROM:<a@client.example>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"


def dialect(**options: object) -> Dialect:
    return Dialect(ServerSettings("mx.example.org", **options))  # type: ignore[arg-type]


def greeted(**options: object) -> ServerConversation:
    """A conversation after EHLO, its replies taken."""
    conversation = ServerConversation(dialect(**options))
    conversation.receive_data(b"EHLO client.example\r\n")
    run(conversation)
    conversation.data_to_send()
    return conversation


def run(conversation: ServerConversation, reject: int = 0) -> list[Event]:
    """All events up to NEED_DATA, each question accepted; with `reject`, each so-manieth is rejected."""
    events: list[Event] = []
    questions = 0
    while not isinstance(event := conversation.next_event(), Wait):
        events.append(event)
        if isinstance(event, QUESTIONS):
            assert conversation.next_event() is PAUSED
            questions += 1
            if reject and questions % reject == 0:
                conversation.reject(Reply.of(450, "4.7.1", "no"))
            else:
                conversation.accept()
    assert event is NEED_DATA
    return events


def run_to_message(conversation: ServerConversation) -> None:
    """Accept everything up to the question about the whole message, and leave that open."""
    while not isinstance(event := conversation.next_event(), ContentEnd):
        assert event is not NEED_DATA
        if isinstance(event, QUESTIONS):
            conversation.accept()


def canonical(events: list[Event]) -> list[Event | bytes]:
    """Events with the pieces of content joined; what was handed on of a void message is left out, since how much that is
    depends on when the trouble was seen."""
    result: list[Event | bytes] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, Content):
            if isinstance(last, bytes):
                result[-1] = last + event.data
            else:
                result.append(event.data)
        else:
            if isinstance(event, Aborted) and isinstance(last, bytes):
                result.pop()
            result.append(event)
    return result


words = st.sampled_from(
    [
        b"EHLO client.example\r\n", b"HELO x\r\n", b"MAIL FROM:<a@client.example>\r\n", b"MAIL FROM:<a@b> SIZE=5 BODY=8BITMIME\r\n",
        b"RCPT TO:<b@example.net>\r\n", b"RCPT TO:<c@example.net>\r\n", b"DATA\r\n", b"RSET\r\n", b"NOOP\r\n", b"VRFY x\r\n",
        b"HELP\r\n", b"QUIT\r\n", b"NOPE\r\n", b"AUTH PLAIN\r\n", TRANSACTION, b".\r\n", b"\r\n.\r\n", b"content\r\n",
        b"..stuffed\r\n", b"\n.\n", b"\r", b"\n", b"\r\n", b".", b"\0", b"x" * 40, b"GET / HTTP/1.1\r\n", b"y" * 600,
    ]
)  # fmt: skip
streams = st.lists(st.one_of(words, words, words, st.binary(max_size=8)), max_size=20).map(b"".join)
cuts = st.lists(st.integers(min_value=0, max_value=900), max_size=10)


def session(parts: list[bytes], reject: int, **options: object) -> tuple[list[Event | bytes], bytes, State]:
    conversation = ServerConversation(dialect(**options))
    events, sent = run(conversation, reject), conversation.data_to_send()
    for part in parts:
        conversation.receive_data(part)
        events += run(conversation, reject)
        sent += conversation.data_to_send()
        assert conversation.pending <= conversation._dialect.command_line_octets
    return canonical(events), sent, conversation.state


@settings(max_examples=150, deadline=None)
@given(streams, cuts, st.sampled_from(BareNewline), st.booleans())
def test_events_and_replies_do_not_depend_on_the_cuts(
    data: bytes, where: list[int], bare_newline: BareNewline, negative: bool
) -> None:
    """Whole, octet by octet, or cut anywhere: the same events, the same replies in the same order, the same final state;
    nothing raises, and nothing more than a command line is kept."""
    data = b"EHLO client.example\r\n" + TRANSACTION + data
    reject = 1 if negative else 0  # either all questions after the first are accepted, or every one is rejected
    options = {"message_size_bytes": 60, "recipients": 2, "errors": 4, "bare_newline": bare_newline}
    whole = session([data], reject, **options)
    assert session([data[at : at + 1] for at in range(len(data))], reject, **options) == whole
    edges = sorted({0, len(data), *(place for place in where if place < len(data))})
    assert session([data[a:b] for a, b in pairwise(edges)], reject, **options) == whole


@given(st.lists(st.binary(max_size=400), max_size=10))
def test_random_octets_never_raise(parts: list[bytes]) -> None:
    """Any octets at all: replies, in whole lines of the form that RFC 5321 4.2 asks for."""
    _, sent, _ = session(parts, 0, errors=3)
    assert sent.endswith(b"\r\n")
    for line in sent.split(b"\r\n")[:-1]:
        assert line[:3].isdigit()
        assert line[3:4] in (b" ", b"-")


def test_events_of_one_message() -> None:
    """The events of a transaction carry what its commands said."""
    conversation = greeted()
    conversation.receive_data(
        b"MAIL FROM:<a@client.example> SIZE=9 BODY=8BITMIME\r\nRCPT TO:<b@Example.NET>\r\nDATA\r\nHello..\r\n.\r\n"
    )
    events = run(conversation)
    sender, recipient = events[0].reverse_path, events[1].forward_path  # type: ignore[union-attr]
    assert events == [
        MailAsked(sender, 9, BodyType.EIGHT_BIT),
        RecipientAsked(sender, recipient),
        DataAsked(Envelope(sender, (recipient,), BodyType.EIGHT_BIT)),
        Content(b"Hello..\r\n"),
        ContentEnd(9),
    ]
    assert (sender.text, recipient.text, recipient.domain) == ("a@client.example", "b@Example.NET", "example.net")
    assert [line[:3] for line in conversation.data_to_send().split(b"\r\n")] == [b"250", b"250", b"354", b"250", b""]


def test_replies_wait_for_the_slow_question() -> None:
    """While a question is open nothing is answered, and what was pipelined behind it is answered after it, in order."""
    conversation = greeted()
    conversation.receive_data(b"MAIL FROM:<a@client.example>\r\nNOOP\r\nNOPE\r\n")
    assert isinstance(conversation.next_event(), MailAsked)
    assert conversation.next_event() is PAUSED
    conversation.receive_data(b"RSET\r\n")
    assert conversation.next_event() is PAUSED
    assert conversation.data_to_send() == b""
    assert conversation.pending == len(b"NOOP\r\nNOPE\r\nRSET\r\n")
    conversation.accept()
    assert conversation.next_event() is NEED_DATA
    assert [line[:3] for line in conversation.data_to_send().split(b"\r\n")] == [b"250", b"250", b"500", b"250", b""]


def test_the_reply_to_a_message_is_the_drivers() -> None:
    """What `accept` and `reject` are given goes out as it is, and the transaction is over either way."""
    for answer, reply in (
        ("accept", Reply.of(250, "2.0.0", "queued as 01JD")),
        ("reject", Reply(554, "5.7.1", ("Not", "wanted"))),
    ):
        conversation = greeted()
        conversation.receive_data(TRANSACTION + b"x\r\n.\r\n")
        run_to_message(conversation)
        conversation.data_to_send()
        getattr(conversation, answer)(reply)
        assert conversation.data_to_send() == reply.encode()
        assert conversation.state is State.READY


@pytest.mark.parametrize(("extra", "accepted"), [(b"", True), (b"x", False)])
def test_the_size_limit_is_exact(extra: bytes, accepted: bool) -> None:
    """A message of just the limit is accepted, one octet more is refused; content stops being handed on at once."""
    conversation = greeted(message_size_bytes=100)
    conversation.receive_data(TRANSACTION)
    run(conversation)
    conversation.receive_data(b"x" * 98 + extra + b"\r\n")
    middle = run(conversation)
    conversation.receive_data(b".\r\n")
    events = middle + run(conversation)
    if accepted:
        assert events[-1] == ContentEnd(100)
    else:
        refused = events[-1]
        assert isinstance(refused, ContentRefused)
        assert (refused.reply.code, refused.reply.enhanced) == (552, "5.3.4")
        assert events == [Content(b"x" * 99), Aborted(), refused]
    assert conversation.state is State.READY


def test_a_void_message_is_not_kept() -> None:
    """Ten megabytes behind the limit: not an octet of them is handed on or kept."""
    conversation = greeted(message_size_bytes=100)
    conversation.receive_data(TRANSACTION)
    run(conversation)
    handed = 0
    for _ in range(160):
        conversation.receive_data(b"x" * 65536)
        handed += sum(len(event.data) for event in run(conversation) if isinstance(event, Content))
        assert conversation.pending == 0
    assert handed == 0


def test_the_driver_can_refuse_the_rest_of_a_content() -> None:
    """`refuse_content`: nothing more is handed on, the reply waits for the final dot, the session goes on."""
    conversation = greeted()
    conversation.receive_data(TRANSACTION + b"one\r\n")
    run(conversation)
    conversation.data_to_send()
    conversation.refuse_content(Reply.of(451, "4.3.0", "trouble"))
    conversation.receive_data(b"QUIT\r\ntwo\r\n")
    assert run(conversation) == []
    assert conversation.data_to_send() == b""
    conversation.receive_data(b".\r\nNOOP\r\n")
    assert run(conversation) == [ContentRefused(Reply.of(451, "4.3.0", "trouble"))]
    assert conversation.data_to_send() == b"451 4.3.0 trouble\r\n250 2.0.0 Ok\r\n"


def test_drain_between_transactions_closes_at_once() -> None:
    """An idle session gets its 421 without asking, and pipelined commands are dropped."""
    conversation = greeted()
    conversation.drain(STOPPING)
    conversation.receive_data(b"NOOP\r\n")
    assert run(conversation) == [CloseAfterSend(STOPPING)]
    assert conversation.data_to_send() == STOPPING.encode()
    conversation.receive_data(b"NOOP\r\n")
    assert conversation.next_event() is NEED_DATA
    assert conversation.data_to_send() == b""


@pytest.mark.parametrize("end", [b"x\r\n.\r\n", None])
def test_drain_lets_a_transaction_end(end: bytes | None) -> None:
    """In a transaction the client comes to the reply of its message (or takes it back), and then gets the 421."""
    conversation = greeted()
    conversation.receive_data(b"MAIL FROM:<a@client.example>\r\n")
    run(conversation)
    conversation.drain(STOPPING)
    conversation.receive_data(
        b"RCPT TO:<b@example.net>\r\n" + (b"DATA\r\n" + end if end else b"RSET\r\n") + b"NOOP\r\n"
    )
    assert run(conversation)[-1] == CloseAfterSend(STOPPING)
    last, farewell = conversation.data_to_send().split(b"\r\n")[-3:-1]
    assert last.startswith(b"250 2.0.0")
    assert farewell == b"421 4.3.2 mx.example.org stopping"


def test_close_in_content_aborts_the_message() -> None:
    """`close` while content comes: the message is void, the farewell is said, and late answers are ignored."""
    conversation = greeted()
    conversation.receive_data(TRANSACTION + b"half")
    run(conversation)
    conversation.close(STOPPING)
    assert run(conversation) == [Aborted(), CloseAfterSend(STOPPING)]
    conversation.close(STOPPING)
    assert run(conversation) == []


def test_close_while_a_question_is_open() -> None:
    """The answer that comes too late changes nothing; a message that was complete is not called aborted."""
    conversation = greeted()
    conversation.receive_data(TRANSACTION + b"x\r\n.\r\n")
    run_to_message(conversation)
    conversation.data_to_send()
    conversation.close(STOPPING)
    assert run(conversation) == [CloseAfterSend(STOPPING)]
    conversation.accept()
    conversation.reject(STOPPING)
    assert conversation.data_to_send() == STOPPING.encode()


def test_an_answer_without_a_question_is_a_programming_error() -> None:
    """The driver's mistakes are not hidden."""
    conversation = greeted()
    with pytest.raises(RuntimeError):
        conversation.accept()
    with pytest.raises(RuntimeError):
        conversation.reject(STOPPING)


def test_hello_is_told() -> None:
    """The driver hears the client's name and whether it speaks ESMTP."""
    conversation = ServerConversation(dialect())
    conversation.receive_data(b"HELO one\r\nEHLO two\r\n")
    assert run(conversation)[1:] == [Hello("one", False), Hello("two", True)]


def test_every_reply_is_counted_once_under_a_known_verb() -> None:
    """`answered` hears each reply, with verbs from a fixed set whatever the client says."""
    heard: list[tuple[str, int]] = []
    conversation = ServerConversation(dialect(errors=2), lambda verb, code: heard.append((verb, code)))
    conversation.receive_data(b"EHLO x\r\n" + TRANSACTION + b"x\r\n.\r\nsecret-verb-7\r\n\n\r\nBDAT 1\r\n")
    run(conversation)
    assert heard == [
        ("CONNECT", 220), ("EHLO", 250), ("MAIL", 250), ("RCPT", 250), ("DATA", 354), ("DOT", 250),
        ("OTHER", 500), ("OTHER", 500), ("NOT IMPLEMENTED", 421),
    ]  # fmt: skip
    assert len(heard) == len([line for line in conversation.data_to_send().split(b"\r\n") if line[3:4] == b" "])


def test_the_table_is_whole() -> None:
    """Where commands are read, each verb has its cell; each allowed verb has its method; moves lead to states that exist; every
    state but CLOSED can be left by a farewell."""
    for state, row in TRANSITIONS.items():
        if state in (State.CONNECTED, State.CONTENT, State.CLOSED):
            assert not any(isinstance(step, Verb) for step in row)
        else:
            assert set(Verb) <= set(row)
        assert (Occasion.FAREWELL in row) == (state is not State.CLOSED)
        for step, cell in row.items():
            if isinstance(cell, Move):
                assert cell.accepted in TRANSITIONS
                assert cell.refused is None or cell.refused in TRANSITIONS
                assert isinstance(step, Occasion) or step in _COMMANDS
            else:
                assert not cell.is_positive
    assert set(TRANSITIONS) == set(State)
