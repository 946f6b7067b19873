"""Replays the dialogs in this folder against the server's conversation.

A transcript is a text file of one session. Empty lines and lines that begin with `#` are for the reader; the others are

    set: NAME=VALUE           a setting of the listener, before the dialog
    intake: QUESTION [ARGUMENT] = CODE ENHANCED TEXT
                              what the node answers to a question (connect, mail ADDRESS, rcpt ADDRESS, data, content)
                              instead of accepting
    c: TEXT                   the client sends the text and CRLF; \\r \\n \\t \\\\ and \\xHH stand for octets
    c+ TEXT                   the same without CRLF
    s: TEXT                   the server has sent exactly this line, and nothing else since the last ones
    message: <FROM> -> <TO>, <TO>
                              a message was accepted, with this content (escapes as above)
      CONTENT
    closed                    the server closes

Each transcript is replayed four times: with the client's lines between two of the server's in one piece, octet by octet,
in pieces of three octets, and with the whole client's side at once. All must give the same.
"""

from __future__ import annotations

import re
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
    CloseAfterSend,
    ConnectAsked,
    Content,
    ContentEnd,
    DataAsked,
    MailAsked,
    RecipientAsked,
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


@define
class Replayer:
    """A driver that answers every question as the transcript wants it, and writes down what comes out."""

    conversation: ServerConversation = field(init=False)
    settings: dict[str, Any] = field(factory=dict)
    answers: dict[str, Reply] = field(factory=dict)
    sent: bytes = b""
    messages: list[tuple[Envelope, bytes]] = field(factory=list)
    closed: bool = False
    visited: set[tuple[State, str, bool]] = field(factory=set)
    envelope: Envelope | None = None
    content: list[bytes] = field(factory=list)

    def start(self) -> None:
        settings = ServerSettings(**{"hostname": "mx.example.org", **self.settings})
        self.conversation = ServerConversation(Dialect(settings), self.answered)
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
            assert event is not PAUSED, "every question was answered"
            if isinstance(event, ConnectAsked):
                self.answer("connect")
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
    steps: list[tuple[bytes, bytes]] = field(factory=list)
    messages: list[tuple[str, bytes]] = field(factory=list)
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
                result.steps.append((sends, expects))
                sends, expects = b"", b""
            sends += octets(text) + (b"\r\n" if kind == "c:" else b"")
        elif kind == "s:":
            expects += text.encode("utf-8") + b"\r\n"
        elif kind == "set:":
            name, _, value = text.partition("=")
            result.settings[name] = (
                int(value) if value.isdigit() else BareNewline(value) if name == "bare_newline" else value
            )
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
    result.steps.append((sends, expects))
    return result


def check_end(transcript: Transcript, replayer: Replayer) -> None:
    """Messages and closing are as the transcript says."""
    seen = [
        (f"<{envelope.reverse_path}> -> {', '.join(f'<{recipient}>' for recipient in envelope.recipients)}", content)
        for envelope, content in replayer.messages
    ]
    assert seen == transcript.messages
    assert replayer.closed == transcript.closed


def replayer_for(transcript: Transcript) -> Replayer:
    replayer = Replayer(settings=transcript.settings, answers=transcript.answers)
    replayer.start()
    return replayer


@pytest.mark.parametrize("piece", [0, 1, 3])
@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_replay(name: str, piece: int) -> None:
    """Each of the server's lines comes when the transcript says, and no others, however the client's octets are cut."""
    transcript = read(HERE / name)
    replayer = replayer_for(transcript)
    for sends, expects in transcript.steps:
        size = piece or len(sends) or 1
        for start in range(0, len(sends), size):
            replayer.feed(sends[start : start + size])
        assert replayer.sent.decode("utf-8") == expects.decode("utf-8")
        replayer.sent = b""
    check_end(transcript, replayer)


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_replay_at_once(name: str) -> None:
    """A client that waits for nothing gets the same replies in the same order."""
    transcript = read(HERE / name)
    replayer = replayer_for(transcript)
    replayer.feed(b"".join(sends for sends, _ in transcript.steps))
    assert replayer.sent == b"".join(expects for _, expects in transcript.steps)
    check_end(transcript, replayer)


def test_every_cell_of_the_table_is_visited() -> None:
    """Each refusal and each move of the transition table happens in some transcript, so that none is untested prose.

    DRAIN never shows as a reply of its own, and a 421 of the server's own accord is the driver's: they are tested with it.
    """
    visited: set[tuple[State, str, bool]] = set()
    for name in TRANSCRIPTS:
        transcript = read(HERE / name)
        replayer = replayer_for(transcript)
        replayer.feed(b"".join(sends for sends, _ in transcript.steps))
        visited |= replayer.visited
    wanted = set()
    for state, row in TRANSITIONS.items():
        for step, cell in row.items():
            if step in (Occasion.DRAIN, Occasion.FAREWELL):
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
