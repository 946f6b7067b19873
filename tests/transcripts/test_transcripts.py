"""Replays the dialogs in this folder against the server's conversation.

A transcript is a text file of one session. Empty lines and lines that begin with `#` are for the reader; the others are

    set: NAME=VALUE           a setting of the listener, before the dialog
    with: secure, with: probe TLS stands from the beginning; the connection is a balancer's health check
    intake: QUESTION [ARGUMENT] = CODE ENHANCED TEXT
                              what the node answers to a question (connect, auth USER, mail ADDRESS, rcpt ADDRESS, data, content)
                              instead of accepting
    c: TEXT                   the client sends the text and CRLF; \\r \\n \\t \\\\ and \\xHH stand for octets
    c+ TEXT                   the same without CRLF
    s: TEXT                   the server has sent exactly this line (escapes as above), and nothing else since the last ones
    tls                       the server has asked for TLS, and now it stands
    login: MECHANISM USER PASSWORD [AUTHORIZATION]
                              these credentials were asked about
    message: <FROM> -> <TO>, <TO>
                              a message was accepted, with this content (escapes as above)
      CONTENT
    envelope: WORDS           it was accepted with these parameters of MAIL; only checked where a transcript has such lines
    recipient: <TEXT> DOMAIN WORDS
                              and with this recipient, where it is routed, and these parameters of RCPT
    closed                    the server closes

Each transcript is replayed four times: with the client's lines between two of the server's in one piece, octet by octet,
in pieces of three octets, and with the whole client's side at once (up to the next `tls`). All must give the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from relaycluster.mail.envelope import Envelope
from relaycluster.mail.reply import Reply
from relaycluster.smtp.server import ServerConversation
from relaycluster.smtp.server_events import (
    NEED_DATA,
    PAUSED,
    Aborted,
    AuthAsked,
    CloseAfterSend,
    ConnectAsked,
    Content,
    ContentEnd,
    DataAsked,
    MailAsked,
    RecipientAsked,
    StartTLS,
)
from relaycluster.smtp.server_settings import EXTENSIONS, BareNewline, Dialect, ServerSettings
from relaycluster.smtp.server_states import TRANSITIONS, Move, Occasion, State

HERE = Path(__file__).parent
TRANSCRIPTS = sorted(path.name for path in HERE.glob("*.txt"))


def octets(text: str) -> bytes:
    """The octets that an escaped text of a transcript stands for."""
    return re.sub(
        rb"\\(r|n|t|\\|x[0-9a-fA-F]{2})",
        lambda m: {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"\\": b"\\"}.get(m[1]) or bytes([int(m[1][1:], 16)]),
        text.encode("utf-8"),
    )


class WatchedConversation(ServerConversation):
    """Tells of chunks that begin: BDAT moves the state without a reply of its own."""

    begins: Callable[[State], None]

    def _enter(self, state: State) -> None:
        if state is State.CHUNK:
            self.begins(self.state)
        super()._enter(state)


@define
class Replayer:
    """A driver that answers every question as the transcript wants it, and writes down what comes out."""

    conversation: ServerConversation = field(init=False)
    settings: dict[str, Any] = field(factory=dict)
    answers: dict[str, Reply] = field(factory=dict)
    sent: bytes = b""
    messages: list[tuple[Envelope, bytes]] = field(factory=list)
    logins: list[str] = field(factory=list)
    options: dict[str, bool] = field(factory=dict)
    closed: bool = False
    visited: set[tuple[State, str, bool]] = field(factory=set)
    envelope: Envelope | None = None
    content: list[bytes] = field(factory=list)

    def start(self) -> None:
        settings = ServerSettings(**{"hostname": "mx.example.org", **self.settings})
        conversation = WatchedConversation(Dialect(settings), self.answered, **self.options)
        conversation.begins = lambda state: self.visited.add((state, "BDAT", True))
        self.conversation = conversation
        self.pump()

    def secured(self) -> None:
        assert self.conversation.state is State.SECURING
        self.conversation.secured()
        self.pump()

    def answered(self, verb: str, code: int) -> None:
        self.visited.add((self.conversation.state, verb, code < 400))

    def feed(self, data: bytes) -> None:
        self.conversation.receive_data(data)
        self.pump()

    def answer(self, question: str) -> bool:
        reply = self.answers.get(question)
        if reply is None or reply.is_positive:
            self.conversation.accept(reply)
            return True
        self.conversation.reject(reply)
        return False

    def pump(self) -> None:
        while (event := self.conversation.next_event()) is not NEED_DATA:
            if event is PAUSED:
                assert self.conversation.state is State.SECURING, "every question was answered"
                break
            if isinstance(event, ConnectAsked):
                self.answer("connect")
            elif isinstance(event, AuthAsked):
                assert event.password.decode() not in repr(event)
                words = (event.mechanism, event.user, event.password.decode(), event.authorization)
                self.logins.append(" ".join(words).rstrip())
                self.answer(f"auth {event.user}")
            elif isinstance(event, StartTLS):
                assert self.conversation.next_event() is PAUSED
            elif isinstance(event, MailAsked):
                self.answer(f"mail {event.reverse_path}")
            elif isinstance(event, RecipientAsked):
                self.answer(f"rcpt {event.forward_path}")
            elif isinstance(event, DataAsked):
                self.envelope = event.envelope
                self.content = []
                self.answer("data")
            elif isinstance(event, Content):
                self.content.append(event.data)
            elif isinstance(event, ContentEnd):
                content = b"".join(self.content)
                assert event.size == len(content)
                if self.answer("content"):
                    assert self.envelope is not None
                    self.messages.append((self.envelope, content))
            elif isinstance(event, Aborted):
                self.content = []
            elif isinstance(event, CloseAfterSend):
                self.closed = True
        self.sent += self.conversation.data_to_send()


@define
class Transcript:
    """A transcript as steps: what the client sends, and what must have been sent by then."""

    settings: dict[str, Any] = field(factory=dict)
    answers: dict[str, Reply] = field(factory=dict)
    options: dict[str, bool] = field(factory=dict)
    steps: list[tuple[bytes, bytes, bool]] = field(factory=list)  # the last tells whether TLS begins behind it
    messages: list[tuple[str, bytes]] = field(factory=list)
    details: list[str] = field(factory=list)
    logins: list[str] = field(factory=list)
    closed: bool = False


def read(path: Path) -> Transcript:
    """Parse a transcript."""
    result = Transcript()
    sends, expects = b"", b""
    lines = iter(path.read_text("utf-8").splitlines())
    for line in lines:
        kind, _, text = line.partition(" ")
        if not line or line.startswith("#"):
            continue
        if kind in ("c:", "c+"):
            if expects:
                result.steps.append((sends, expects, False))
                sends, expects = b"", b""
            sends += octets(text) + (b"\r\n" if kind == "c:" else b"")
        elif kind == "s:":
            expects += octets(text) + b"\r\n"
        elif line == "tls":
            result.steps.append((sends, expects, True))
            sends, expects = b"", b""
        elif kind == "with:":
            result.options[text] = True
        elif kind == "login:":
            result.logins.append(text)
        elif kind in ("envelope:", "recipient:"):
            result.details.append(line)
        elif kind == "set:":
            name, _, value = text.partition("=")
            result.settings[name] = setting(name, value)
        elif kind == "intake:":
            question, _, reply = text.partition(" = ")
            code, enhanced, words = reply.split(" ", 2)
            result.answers[question] = Reply.of(int(code), enhanced, words)
        elif kind == "message:":
            result.messages.append((text, octets(next(lines).removeprefix("  "))))
        elif line == "closed":
            result.closed = True
        else:
            raise AssertionError(f"{path.name}: {line!r} is no line of a transcript")
    result.steps.append((sends, expects, False))
    return result


def setting(name: str, value: str) -> object:
    """A setting's value out of its text."""
    if name == "bare_newline":
        return BareNewline(value)
    return int(value) if value.isdigit() else {"true": True}.get(value, value)


def details(envelope: Envelope) -> list[str]:
    """The lines that tell of the parameters of MAIL and RCPT."""
    words = [envelope.body.value]
    words += ["SMTPUTF8"] if envelope.smtputf8 else []
    words += [f"RET={envelope.ret.value}"] if envelope.ret else []
    words += [f"ENVID={envelope.envelope_id}"] if envelope.envelope_id else []
    lines = [f"envelope: {' '.join(words)}"]
    for recipient in envelope.recipients:
        words = [f"<{recipient}>", recipient.domain or "-"]
        request = envelope.requests.get(recipient.text)
        if request is not None and request.notify is not None:
            words.append("NOTIFY=" + (",".join(sorted(notify.value for notify in request.notify)) or "NEVER"))
        if request is not None and request.original_recipient:
            words.append(f"ORCPT={request.original_recipient}")
        lines.append(f"recipient: {' '.join(words)}")
    return lines


def check_end(transcript: Transcript, replayer: Replayer) -> None:
    """Messages and closing are as the transcript says."""
    seen = [
        (f"<{envelope.reverse_path}> -> {', '.join(f'<{recipient}>' for recipient in envelope.recipients)}", content)
        for envelope, content in replayer.messages
    ]
    assert seen == transcript.messages
    if transcript.details:
        assert [line for envelope, _ in replayer.messages for line in details(envelope)] == transcript.details
    assert replayer.logins == transcript.logins
    assert replayer.closed == transcript.closed


def replayer_for(transcript: Transcript) -> Replayer:
    replayer = Replayer(settings=transcript.settings, answers=transcript.answers, options=transcript.options)
    replayer.start()
    return replayer


@pytest.mark.parametrize("piece", [0, 1, 3])
@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_replay(name: str, piece: int) -> None:
    """Each of the server's lines comes when the transcript says, and no others, however the client's octets are cut."""
    transcript = read(HERE / name)
    replayer = replayer_for(transcript)
    for sends, expects, secures in transcript.steps:
        size = piece or len(sends) or 1
        for start in range(0, len(sends), size):
            replayer.feed(sends[start : start + size])
        assert replayer.sent.decode("utf-8") == expects.decode("utf-8")
        replayer.sent = b""
        if secures:
            replayer.secured()
    check_end(transcript, replayer)


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_replay_at_once(name: str) -> None:
    """A client that waits for nothing gets the same replies in the same order."""
    transcript = read(HERE / name)
    replayer = replayer_for(transcript)
    feed_at_once(transcript, replayer)
    assert replayer.sent == b"".join(expects for _, expects, _ in transcript.steps)
    check_end(transcript, replayer)


def feed_at_once(transcript: Transcript, replayer: Replayer) -> None:
    """All that the client says, in one piece up to the next TLS."""
    piece = b""
    for sends, _, secures in transcript.steps:
        piece += sends
        if secures:
            replayer.feed(piece)
            replayer.secured()
            piece = b""
    replayer.feed(piece)


def test_every_cell_of_the_table_is_visited() -> None:
    """Each refusal and each move of the transition table happens in some transcript, so that none is untested prose.

    DRAIN and TLS never show as replies of their own, and a 421 of the server's own accord is the driver's: they are tested
    with it.
    """
    visited: set[tuple[State, str, bool]] = set()
    for name in TRANSCRIPTS:
        transcript = read(HERE / name)
        replayer = replayer_for(transcript)
        feed_at_once(transcript, replayer)
        visited |= replayer.visited
    wanted = set()
    for state, row in TRANSITIONS.items():
        for step, cell in row.items():
            if step in (Occasion.DRAIN, Occasion.FAREWELL, Occasion.TLS):
                continue
            wanted.add((state, step.label, isinstance(cell, Move)))
            if isinstance(cell, Move) and cell.refused is not None:
                wanted.add((state, step.label, False))
    missing = wanted - visited
    assert not missing, sorted((state.value, label, positive) for state, label, positive in missing)


def test_extensions_name_transcripts_that_exist() -> None:
    """Every extension has its dialog here."""
    for extension in EXTENSIONS:
        assert extension.transcripts
        for name in extension.transcripts:
            assert name in TRANSCRIPTS
