"""The server's conversation as a whole; the dialogs are in tests/transcripts."""

from __future__ import annotations

import gc
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaycluster.mail.envelope import BodyType, Envelope
from relaycluster.mail.reply import Reply
from relaycluster.smtp.commands import Verb
from relaycluster.smtp.server import _COMMANDS, ServerConversation
from relaycluster.smtp.server_auth import RESPONSE_OCTETS
from relaycluster.smtp.server_events import (
    NEED_DATA,
    PAUSED,
    Aborted,
    AuthAsked,
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
    StartTLS,
    Wait,
)
from relaycluster.smtp.server_settings import STAGES, BareNewline, Dialect, ServerSettings, Stage
from relaycluster.smtp.server_states import TRANSITIONS, Move, Occasion, State

STOPPING = Reply.of(421, "4.3.2", "mx.example.org stopping")
QUESTIONS = (ConnectAsked, AuthAsked, MailAsked, RecipientAsked, DataAsked, ContentEnd)
RECIPIENTS = b"MAIL FROM:<a@client.example>\r\nRCPT TO:<b@example.net>\r\n"
TRANSACTION = RECIPIENTS + b"DATA\r\n"
LOGIN = b"AUTH PLAIN AHVzZXIAc2VjcmV0\r\n"
EVERYTHING: dict[str, Any] = {"starttls": True, "auth": True, "auth_without_tls": True}


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
    assert event is (PAUSED if conversation.state is State.SECURING else NEED_DATA)
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
        b"BDAT 7\r\nchunk\r\n", b"BDAT 6\r\nchunk\r", b"BDAT 5 LAST\r\nchunk", b"BDAT 0 LAST\r\n", b"BDAT 4 LAST\r\n\r\n.\r", b"BDAT 100\r\n",
        b"BDAT 3\r\nx\ny", b"BDAT 9 LAST\r\nRSET\r\n.\r\n", b"BDAT\r\n", RECIPIENTS, RECIPIENTS + b"BDAT 6\r\nhead\r\n",
        LOGIN, b"AUTH LOGIN\r\n", b"AUTH LOGIN dXNlcg==\r\n", b"dXNlcg==\r\n", b"c2VjcmV0\r\n", b"*\r\n", b"AUTH PLAIN =\r\n",
        b"STARTTLS\r\n", b"STARTTLS now\r\n", b"MAIL FROM:<a@b> RET=FULL ENVID=x\r\n", b"RCPT TO:<b@example.net> NOTIFY=NEVER\r\n",
        "MAIL FROM:<ü@bücher.example> SMTPUTF8\r\n".encode(), "RCPT TO:<ü@example.net> ORCPT=utf-8;ü\r\n".encode(),
    ]
)  # fmt: skip
streams = st.lists(st.one_of(words, words, words, st.binary(max_size=8)), max_size=20).map(b"".join)
cuts = st.lists(st.integers(min_value=0, max_value=900), max_size=10)


def session(
    parts: list[bytes], reject: int, within_tls: list[bytes] | None = None, **options: object
) -> tuple[list[Event | bytes], bytes, State]:
    """The parts in the clear; then TLS, if it was asked for; then the parts within it."""
    conversation = ServerConversation(dialect(**options))
    events, sent = run(conversation, reject), conversation.data_to_send()

    def feed(part: bytes) -> None:
        nonlocal events, sent
        conversation.receive_data(part)
        events += run(conversation, reject)
        sent += conversation.data_to_send()
        dialog = conversation.state is State.AUTHENTICATING
        assert conversation.pending <= (RESPONSE_OCTETS if dialog else conversation._dialect.command_line_octets)

    for part in parts:
        feed(part)
    if conversation.state is State.SECURING:
        conversation.secured()
    for part in within_tls or []:
        feed(part)
    return canonical(events), sent, conversation.state


def pieces(data: bytes, where: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place for place in where if place < len(data))})
    return [data[a:b] for a, b in pairwise(edges)]


def octet_by_octet(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@settings(max_examples=200, deadline=None)
@given(streams, streams, cuts, st.sampled_from(BareNewline), st.booleans())
def test_events_and_replies_do_not_depend_on_the_cuts(
    data: bytes, within_tls: bytes, where: list[int], bare_newline: BareNewline, negative: bool
) -> None:
    """Whole, octet by octet, or cut anywhere: the same events, the same replies in the same order, the same final state;
    nothing raises, and nothing more than a line is kept. What comes in the clear behind STARTTLS changes nothing at all."""
    data = b"EHLO client.example\r\n" + data
    within_tls = b"EHLO client.example\r\n" + within_tls
    reject = 1 if negative else 0  # either all questions after the first are accepted, or every one is rejected
    options: dict[str, Any] = {
        "message_size_bytes": 60,
        "recipients": 2,
        "errors": 6,
        "bare_newline": bare_newline,
        **EVERYTHING,
    }
    whole = session([data], reject, [within_tls], **options)
    assert session(octet_by_octet(data), reject, octet_by_octet(within_tls), **options) == whole
    assert session(pieces(data, where), reject, pieces(within_tls, where), **options) == whole


@settings(max_examples=150, deadline=None)
@given(streams, cuts, st.sampled_from(BareNewline), st.integers(0, 3))
def test_every_message_has_one_fate(data: bytes, where: list[int], bare_newline: BareNewline, reject: int) -> None:
    """Behind an accepted DataAsked comes content, and then exactly one of ContentEnd and Aborted, before anything else of a
    message; what ContentEnd says was handed on, was."""
    conversation = ServerConversation(
        dialect(message_size_bytes=60, errors=30, bare_newline=bare_newline, **EVERYTHING)
    )
    handed: int | None = None
    questions = 0
    for part in [b"EHLO client.example\r\n", *pieces(data, where)]:
        conversation.receive_data(part)
        while not isinstance(event := conversation.next_event(), Wait):
            if isinstance(event, Content):
                assert handed is not None
                assert event.data
                handed += len(event.data)
            elif isinstance(event, ContentEnd):
                assert event.size == handed
                handed = None
            elif isinstance(event, Aborted):
                assert handed is not None
                handed = None
            elif not isinstance(event, CloseAfterSend):
                assert handed is None
            if isinstance(event, QUESTIONS):
                questions += 1
                if reject and questions % (reject + 1) == 0:
                    conversation.reject(Reply.of(550, "5.7.1", "no"))
                else:
                    conversation.accept()
                    handed = 0 if isinstance(event, DataAsked) else handed
    in_content = conversation.state in (State.CONTENT, State.CHUNK, State.CHUNKS)
    assert handed is None or in_content
    conversation.close(STOPPING)
    assert (Aborted() in run(conversation)) == (handed is not None)


@given(st.lists(st.binary(max_size=400), max_size=10))
def test_random_octets_never_raise(parts: list[bytes]) -> None:
    """Any octets at all: replies, in whole lines of the form that RFC 5321 4.2 asks for."""
    _, sent, _ = session(parts, 0, errors=3, **EVERYTHING)
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
    conversation.receive_data(b"EHLO x\r\n" + TRANSACTION + b"x\r\n.\r\nsecret-verb-7\r\n\n\r\nTURN\r\n")
    run(conversation)
    assert heard == [
        ("CONNECT", 220), ("EHLO", 250), ("MAIL", 250), ("RCPT", 250), ("DATA", 354), ("DOT", 250),
        ("OTHER", 500), ("OTHER", 500), ("NOT IMPLEMENTED", 421),
    ]  # fmt: skip
    assert len(heard) == len([line for line in conversation.data_to_send().split(b"\r\n") if line[3:4] == b" "])


def test_every_reply_of_a_dialog_is_counted_as_its_command() -> None:
    """Chunks count as BDAT, AUTH's challenges and its outcome as AUTH, a health check's greeting as CONNECT, the reply to a whole
    message as DOT: the fixed set does not grow with what is inside."""
    heard: list[tuple[str, int]] = []
    conversation = ServerConversation(
        dialect(auth=True), lambda verb, code: heard.append((verb, code)), secure=True, probe=False
    )
    conversation.receive_data(
        b"EHLO x\r\nAUTH LOGIN\r\ndXNlcg==\r\n*\r\n"
        + LOGIN
        + RECIPIENTS
        + b"BDAT 1\r\nxBDAT 1 LAST\r\ny"
        + b"BDAT 1\r\nx"
    )
    run(conversation)
    assert heard == [
        ("CONNECT", 220), ("EHLO", 250), ("AUTH", 334), ("AUTH", 334), ("AUTH", 501), ("AUTH", 235), ("MAIL", 250), ("RCPT", 250),
        ("BDAT", 250), ("DOT", 250), ("BDAT", 503),
    ]  # fmt: skip
    assert len(heard) == len([line for line in conversation.data_to_send().split(b"\r\n") if line[3:4] == b" "])
    heard.clear()
    probe = ServerConversation(dialect(), lambda verb, code: heard.append((verb, code)), probe=True)
    run(probe)
    assert heard == [("CONNECT", 220)]


# How to come to each state that listens, in the clear or within TLS, known or not.
WAYS = {
    State.START: b"",
    State.READY: b"EHLO client.example\r\n",
    State.MAIL: b"EHLO client.example\r\nMAIL FROM:<a@client.example>\r\n",
    State.RECIPIENTS: b"EHLO client.example\r\n" + RECIPIENTS,
    State.CHUNKS: b"EHLO client.example\r\n" + RECIPIENTS + b"BDAT 1\r\nx",
    State.FAILED: b"EHLO client.example\r\n" + RECIPIENTS + b"BDAT 3\r\na\nb",
    State.REFUSED: b"",
    State.PROBE: b"",
}
LINES = {
    Verb.EHLO: b"EHLO x", Verb.HELO: b"HELO x", Verb.STARTTLS: b"STARTTLS", Verb.AUTH: b"AUTH LOGIN", Verb.MAIL: b"MAIL FROM:<a@b>",
    Verb.RCPT: b"RCPT TO:<c@d>", Verb.DATA: b"DATA", Verb.BDAT: b"BDAT 4\r\ntext", Verb.RSET: b"RSET", Verb.NOOP: b"NOOP", Verb.VRFY: b"VRFY x",
    Verb.HELP: b"HELP", Verb.QUIT: b"QUIT", Verb.NOT_IMPLEMENTED: b"ETRN x", Verb.UNKNOWN: b"WHAT", Verb.FOREIGN: b"GET / HTTP/1.1",
}  # fmt: skip


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "careful": {**EVERYTHING, "auth_without_tls": False},
    "all": EVERYTHING,
}


def ways() -> list[tuple[State, Stage, str]]:
    """Each state that listens to commands, at each stage that can be had there, on each kind of listener."""
    found = []
    for name, options in OPTIONS.items():
        for stage in STAGES:
            auth = options.get("auth") and (stage.secure or options["auth_without_tls"])
            for state in WAYS:
                if not stage.authenticated or (auth and state not in (State.REFUSED, State.PROBE, State.START)):
                    found.append((state, stage, name))
    return found


@pytest.mark.parametrize(("state", "stage", "listener"), ways(), ids=str)
def test_every_state_and_verb(state: State, stage: Stage, listener: str) -> None:
    """In each state, at each stage, each verb does what the table says: the reply is the cell's, or the move happens."""
    rules = dialect(**OPTIONS[listener])
    row = rules.terms[stage.secure, stage.authenticated].table[state]
    for verb in Verb:
        conversation = refused(rules, stage.secure)
        if state is not State.REFUSED:
            conversation = ServerConversation(rules, secure=stage.secure, probe=state is State.PROBE)
            conversation.receive_data((b"EHLO x\r\n" + LOGIN if stage.authenticated else b"") + WAYS[state])
            run(conversation)
        assert conversation.state is state
        conversation.data_to_send()
        cell = row[verb]
        conversation.receive_data(LINES[verb] + b"\r\n" if verb is not Verb.BDAT else LINES[verb])
        events = run(conversation)
        sent = conversation.data_to_send()
        if isinstance(cell, Reply):
            assert sent == cell.encode()
            assert conversation.state is (State.CLOSED if cell.code == 421 else state)
            assert not any(isinstance(event, QUESTIONS) for event in events)
        elif cell.accepted is State.CHUNK:
            assert conversation.state is (State.FAILED if state in (State.MAIL, State.FAILED) else State.CHUNKS)
            assert sent[:3] == (b"250" if conversation.state is State.CHUNKS else b"554")
        else:
            assert sent[:3] in (b"220", b"221", b"250", b"252", b"214", b"334", b"354")
            assert conversation.state is cell.accepted


def refused(rules: Dialect, secure: bool) -> ServerConversation:
    conversation = ServerConversation(rules, secure=secure)
    assert isinstance(conversation.next_event(), ConnectAsked)
    conversation.reject(Reply.of(554, "5.7.1", "no"))
    return conversation


@pytest.mark.parametrize("verb", [Verb.AUTH, Verb.MAIL, Verb.RCPT, Verb.DATA, Verb.BDAT, Verb.VRFY])
@pytest.mark.parametrize("state", [State.START, State.READY])
def test_nothing_of_mail_without_the_tls_that_is_required(verb: Verb, state: State) -> None:
    """530 5.7.0 in the clear (RFC 3207 section 4), whatever else is allowed; within TLS none of it."""
    for secure in (False, True):
        conversation = ServerConversation(dialect(require_tls=True, **EVERYTHING), secure=secure)
        conversation.receive_data(WAYS[state])
        run(conversation)
        conversation.data_to_send()
        conversation.receive_data(LINES[verb] + b"\r\n" if verb is not Verb.BDAT else LINES[verb])
        run(conversation)
        assert conversation.data_to_send().startswith(b"530 5.7.0 ") == (not secure)


def test_starttls_waits_for_tls() -> None:
    """The reply is there to be written, nothing is read, nothing is kept; then the session begins anew, errors and all."""
    conversation = greeted(errors=3, **EVERYTHING)
    conversation.receive_data(LOGIN + b"STARTTLS\r\nEHLO attacker.example\r\nNOOP")
    assert run(conversation)[1:] == [StartTLS()]
    assert conversation.data_to_send() == b"235 2.7.0 Authentication succeeded\r\n220 2.0.0 Ready to start TLS\r\n"
    assert conversation.state.name == "SECURING"
    assert conversation.pending == 0
    conversation.receive_data(b"NOOP\r\n")
    assert conversation.pending == 0
    assert conversation.next_event() is PAUSED
    conversation.secured()
    assert conversation.next_event() is NEED_DATA
    assert conversation.state is State.START
    conversation.receive_data(b"NOPE\r\n" * 3 + b"EHLO client.example\r\n" + LOGIN)
    assert [type(event) for event in run(conversation)] == [Hello, AuthAsked]
    with pytest.raises(RuntimeError):
        conversation.secured()


def test_starttls_and_the_end() -> None:
    """While TLS is awaited a drain waits, since its 421 could not be read; `close` closes; `secured` is then ignored."""
    conversation = greeted(starttls=True)
    conversation.receive_data(b"STARTTLS\r\n")
    run(conversation)
    conversation.data_to_send()
    conversation.drain(STOPPING)
    assert run(conversation) == []
    conversation.secured()
    assert run(conversation) == [CloseAfterSend(STOPPING)]
    other = greeted(starttls=True)
    other.receive_data(b"STARTTLS\r\n")
    run(other)
    other.close(STOPPING)
    assert run(other) == [CloseAfterSend(STOPPING)]
    other.secured()
    assert other.next_event() is NEED_DATA


def test_drain_ends_a_dialog_of_auth() -> None:
    """A login that never comes does not hold a stop up."""
    conversation = greeted(**EVERYTHING)
    conversation.receive_data(b"AUTH LOGIN\r\n")
    run(conversation)
    conversation.drain(STOPPING)
    assert run(conversation) == [CloseAfterSend(STOPPING)]


def reachable(root: object) -> list[object]:
    """All that an object keeps alive of its own: not what is shared by all."""
    found: dict[int, object] = {}
    todo = [root]
    while todo:
        thing = todo.pop()
        if id(thing) in found or isinstance(thing, type | Dialect) or callable(thing):
            continue
        found[id(thing)] = thing
        todo += gc.get_referents(thing)
    return list(found.values())


@pytest.mark.parametrize(
    "dialog",
    [
        LOGIN,
        b"AUTH PLAIN\r\nAHVzZXIAc2VjcmV0\r\n",
        b"AUTH LOGIN\r\ndXNlcg==\r\nc2VjcmV0\r\n",
        b"AUTH LOGIN dXNlcg==\r\nc2VjcmV0\r\n",
    ],
)
@pytest.mark.parametrize("behind", [b"", b"NO"])
def test_a_password_is_not_kept(dialog: bytes, behind: bytes) -> None:
    """As soon as the event is out nothing in the conversation holds the password, neither plain nor encoded."""
    conversation = greeted(**EVERYTHING)
    conversation.receive_data(dialog + behind)
    event = conversation.next_event()
    assert isinstance(event, AuthAsked)
    assert (event.user, event.password) == ("user", b"secret")
    del event
    for thing in reachable(conversation):
        if isinstance(thing, bytes | str):
            text = thing if isinstance(thing, bytes) else thing.encode()
            assert b"secret" not in text
            assert b"c2VjcmV0" not in text
            assert b"AHVzZXIA" not in text


def test_errors_may_be_limited_while_the_session_goes_on() -> None:
    """A driver under stress lowers `errors_limit`; it holds from the next refusal on."""
    conversation = greeted(errors=20)
    assert conversation.errors_limit == 20
    conversation.receive_data(b"NOPE\r\n")
    run(conversation)
    conversation.errors_limit = 1
    conversation.receive_data(b"NOPE\r\n")
    (closing,) = run(conversation)
    assert isinstance(closing, CloseAfterSend)
    assert closing.reply.code == 421


@pytest.mark.parametrize(
    "command", [b"NOOP", b"RSET", b"HELP", b"VRFY x", b"EHLO again.example", b"MAIL FROM:<a@b.example>\r\nRSET"]
)
def test_commands_that_bring_no_message_are_limited(command: bytes) -> None:
    """A session that only keeps us busy ends with 421; one that brings a message in between has all of them anew."""
    conversation = greeted(fruitless_commands=6)
    conversation.receive_data((command + b"\r\n") * 7)
    events = run(conversation)
    assert isinstance(events[-1], CloseAfterSend)
    assert events[-1].reply.code == 421
    busy = greeted(fruitless_commands=6)
    for _ in range(5):
        busy.receive_data(b"NOOP\r\n" * 3 + RECIPIENTS + b"DATA\r\nx\r\n.\r\n")
        assert not isinstance(run(busy)[-1], CloseAfterSend)
    assert busy.refusals == 0


def test_a_chunk_keeps_its_verdict() -> None:
    """A message in chunks gets its 552 though the errors are at their limit; a client that then goes on and on gets 421."""
    conversation = greeted(errors=1, message_size_bytes=10)
    conversation.receive_data(b"NOPE\r\n" + RECIPIENTS + b"BDAT 11\r\n01234567890")
    events = run(conversation)
    assert isinstance(events[-1], ContentRefused)
    assert events[-1].reply.code == 552
    conversation.receive_data(b"BDAT 1\r\nx")
    assert isinstance(run(conversation)[-1], CloseAfterSend)


@pytest.mark.parametrize(
    ("chunks", "codes", "handed"),
    [
        # What passes the limit is known before its octets come: none of them is looked at.
        (b"BDAT 8\r\n01234567BDAT 8\r\n\n\n\n\n\n\n\n\n", ["250", "552"], b"01234567"),
        # The first verdict stays, whatever comes behind it.
        (b"BDAT 3\r\na\nbBDAT 8\r\n01234567BDAT 1 LAST\r\nx", ["554", "554", "554"], b""),
        (b"BDAT 11\r\n01234567890BDAT 3\r\na\nbBDAT 0 LAST\r\n", ["552", "552", "552"], b""),
    ],
)
def test_the_verdict_on_chunks(chunks: bytes, codes: list[str], handed: bytes) -> None:
    """The first trouble that is certain decides, and is answered to every chunk from there on."""
    conversation = greeted(message_size_bytes=10)
    conversation.receive_data(RECIPIENTS)
    run(conversation)
    conversation.data_to_send()
    conversation.receive_data(chunks)
    events = run(conversation)
    assert [line[:3] for line in conversation.data_to_send().decode().splitlines()] == codes
    assert b"".join(event.data for event in events if isinstance(event, Content)) == handed
    assert sum(isinstance(event, ContentRefused) for event in events) == 1


def test_the_events_of_chunks() -> None:
    """The question comes with the first chunk, and the envelope with it; the message is asked about at the last."""
    conversation = greeted()
    conversation.receive_data(RECIPIENTS + b"BDAT 4\r\none\rBDAT 5 LAST\r\n\ntwo\r")
    events = run(conversation)[2:]
    assert isinstance(events[0], DataAsked)
    assert [type(event) for event in events[1:]] == [Content, Content, Aborted, ContentRefused]
    assert conversation.state is State.READY
    conversation.receive_data(RECIPIENTS + b"BDAT 4\r\none\rBDAT 4 LAST\r\n\ntwo")
    assert canonical(run(conversation)[3:]) == [b"one\r\ntwo\r\n", ContentEnd(10)]


def test_octets_of_a_chunk_are_not_kept() -> None:
    """Ten megabytes of a chunk, taken, void, or refused: never more than a piece of them is here."""
    for way in (RECIPIENTS + b"BDAT 10485760\r\n", RECIPIENTS + b"BDAT 1\r\n\nBDAT 10485760\r\n", b"BDAT 10485760\r\n"):
        conversation = greeted()
        conversation.receive_data(way)
        run(conversation)
        assert conversation.swallowing == (way == b"BDAT 10485760\r\n")
        for _ in range(160):
            conversation.receive_data(b"x" * 65536)
            run(conversation)
            assert conversation.pending == 0
        conversation.receive_data(b"NOOP\r\n")
        run(conversation)
        assert conversation.data_to_send().endswith(b"250 2.0.0 Ok\r\n")
        assert not conversation.swallowing


def test_the_driver_can_refuse_the_rest_of_chunks() -> None:
    """`refuse_content` between two chunks: the next one and all behind it get the reply, and no Aborted follows."""
    trouble = Reply.of(451, "4.3.0", "trouble")
    for last in (b"BDAT 3\r\ntwoBDAT 0 LAST\r\n", b"RSET\r\n"):
        conversation = greeted()
        conversation.receive_data(RECIPIENTS + b"BDAT 3\r\none")
        run(conversation)
        conversation.data_to_send()
        conversation.refuse_content(trouble)
        conversation.receive_data(last)
        assert run(conversation) == ([ContentRefused(trouble)] if b"BDAT" in last else [])
        assert conversation.data_to_send() == (trouble.encode() * 2 if b"BDAT" in last else b"250 2.0.0 Reset\r\n")
        assert conversation.state is State.READY


@pytest.mark.parametrize("line", [b"RSET\r\n", b"EHLO x\r\n", b"HELO x\r\n", b"QUIT\r\n", b"GET / HTTP/1.1\r\n"])
def test_chunks_that_are_taken_back_are_aborted(line: bytes) -> None:
    """Whatever ends the transaction between two chunks: the driver hears it first, and once."""
    conversation = greeted()
    conversation.receive_data(RECIPIENTS + b"BDAT 3\r\none" + line)
    events = run(conversation)[4:]
    assert events[0] == Aborted()
    assert Aborted() not in events[1:]


def test_the_table_is_whole() -> None:
    """Where commands are read, each verb has its cell; each allowed verb has its method; moves lead to states that exist; every
    state but CLOSED can be left by a farewell."""
    for state, row in TRANSITIONS.items():
        if state in (
            State.CONNECTED,
            State.SECURING,
            State.AUTHENTICATING,
            State.CONTENT,
            State.CHUNK,
            State.CLOSED,
        ):
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
