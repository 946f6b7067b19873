"""The event log: one line for each event, whatever somebody put into it."""

from __future__ import annotations

import io
import json
import re
from typing import Any, get_type_hints

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger, LogPublisher

from relaycluster.events import (
    EVENTS,
    AuthFailed,
    Error,
    Event,
    EventLog,
    FileRefused,
    MessageQueued,
    MessageRefused,
    NodeStarted,
    ProxyRefused,
    SessionClosed,
    TwistedTrouble,
)
from relaycluster.events.log import LONGEST_TEXT

# What breaks lines and terminals, beside all that Hypothesis thinks of: line ends of every kind, control characters of both
# sets, text that runs backwards, halves of a surrogate pair.
NASTY = (
    "\r\n", "\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\x1b[2J", "\x1b]0;x\x07", "\x9b31m", "\x00", "\x7f",
    "\u202e", "\u200f", "\ufeff", "\ud800", "\udfff", "\ud83d\ude00", '"', "\\", " event=delivered", '","event":"delivered',
)  # fmt: skip
text = st.one_of(st.text(), st.lists(st.one_of(st.sampled_from(NASTY), st.text()), max_size=6).map("".join))

VALUES = {
    str: text,
    int: st.integers(-(10**15), 10**15),
    float: st.floats(),
    tuple[str, ...]: st.lists(text, max_size=3).map(tuple),
}
EXPECTED = {
    "node_started", "node_stopping", "node_stopped", "listener_ready", "session_closed", "message_queued", "message_refused",
    "attempt", "delivered", "deferred", "failed", "expired", "notice_queued", "notice_dropped", "possible_duplicate",
    "partitions_acquired", "partitions_released", "ownership_lost", "member_joined", "member_left", "redis_lost",
    "redis_ready", "redis_refused", "queue_full", "queue_room", "config_loaded", "config_refused", "file_reloaded",
    "file_refused", "auth_failed", "auth_locked_out", "proxy_refused", "stress_began", "stress_ended", "warning", "error",
}  # fmt: skip


def instances(cls: type[Event]) -> st.SearchStrategy[Event]:
    hints = get_type_hints(cls)
    return st.builds(cls, **{name.name: VALUES[hints[name.name]] for name in attrs.fields(cls)})


_WORD = "[a-z_]+"
_VALUE = r'(?:"(?:[^"\\]|\\.)*"|[^\s"=])*'

events = st.sampled_from(sorted(EVENTS.values(), key=lambda cls: cls.name)).flatmap(instances)


def lines(*told: Event, form: Any = "json", now: float = 1_700_000_000.25) -> list[bytes]:
    written: list[bytes] = []
    log = EventLog(written.append, lambda: now, form)
    for event in told:
        log.emit(event)
    return written


def test_the_names_of_the_events() -> None:
    """Scripts and the ledger of the tests hold on to these names."""
    assert set(EVENTS) >= EXPECTED


@given(events)
def test_a_line_of_json_says_what_the_event_says(event: Event) -> None:
    """One line of ASCII without control characters, which reads back as every field of the event."""
    (line,) = lines(event)
    assert line.endswith(b"\n")
    assert all(32 <= octet < 127 for octet in line[:-1])
    read = json.loads(line)
    assert list(read)[:3] == ["time", "event", "severity"]
    assert (read["time"], read["event"]) == ("2023-11-14T22:13:20.250Z", type(event).name)
    for attribute in attrs.fields(type(event)):  # type: ignore[arg-type]
        given_value = getattr(event, attribute.name)
        found = read[attribute.name]
        if isinstance(given_value, float):
            finite = given_value == given_value and abs(given_value) != float("inf")
            assert found == (pytest.approx(given_value, rel=1e-5) if finite else None)
        else:
            assert found == json.loads(json.dumps(given_value))  # two halves of a surrogate pair come back as one whole


@given(events)
def test_a_line_of_text_cannot_be_forged(event: Event) -> None:
    """Words, too, are one line of ASCII: no control characters, and no value that looks like another field."""
    (line,) = lines(event, form="text")
    assert line.endswith(b"\n")
    assert all(32 <= octet < 127 for octet in line[:-1])
    fields = re.fullmatch(rf"\S+ (?:(?:warning|error): )?{type(event).name}((?: {_WORD}={_VALUE})*)\n", line.decode())
    assert fields, line
    names = re.findall(rf" ({_WORD})={_VALUE}", fields[1])
    filled = [field.name for field in attrs.fields(type(event)) if getattr(event, field.name) not in ("", ())]  # type: ignore[arg-type]
    assert names == filled


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("nasty", [*NASTY, "".join(NASTY)])
@pytest.mark.parametrize("cls", [SessionClosed, MessageQueued, MessageRefused, AuthFailed, ProxyRefused, FileRefused])
def test_no_client_reaches_the_terminal(cls: type[Event], nasty: str, form: str) -> None:
    """Whatever a client puts into HELO, an address or a user's name is one line of printable ASCII, with as many fields as if it
    had been harmless. Surrogates that stand alone can come out of an 8-bit name that was decoded carelessly."""
    hints = get_type_hints(cls)

    def filled(word: str) -> bytes:
        values = {str: word, int: 7, float: 1.5, tuple[str, ...]: (word, word)}
        (line,) = lines(cls(**{name.name: values[hints[name.name]] for name in attrs.fields(cls)}), form=form)  # type: ignore[arg-type]
        return line

    line, harmless = filled(f"a{nasty}b"), filled("ab")
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert line[:-1].isascii()
    assert line[:-1].decode().isprintable()
    if form == "json":
        assert list(json.loads(line)) == list(json.loads(harmless))
        assert json.loads(line)["event"] == cls.name
    else:
        assert len(re.findall(rf" {_WORD}={_VALUE}", line.decode())) == len(
            re.findall(rf" {_WORD}=", harmless.decode())
        )


def test_text_is_for_people() -> None:
    """What is empty is left out; what has spaces or quotes is quoted."""
    started = NodeStarted(node="edge 1", version="0.1", roles=("edge", "delivery"), pid=7)
    failure = Error(type="ValueError", place="", message='say "no"\nid=forged')
    assert lines(started, failure, form="text") == [
        b'2023-11-14T22:13:20.250Z node_started node="edge 1" version=0.1 roles=edge,delivery pid=7\n',
        b'2023-11-14T22:13:20.250Z error: error type=ValueError message="say \\"no\\"\\nid=forged"\n',
    ]


@given(st.lists(st.floats(0, 4e9), min_size=1, max_size=20))
def test_the_time_is_the_clocks(times: list[float]) -> None:
    """The stamp of each line is the clock's time then, also when the clock goes back."""
    written: list[bytes] = []
    clock = iter(times)
    log = EventLog(written.append, lambda: next(clock))
    for _ in times:
        log.emit(NodeStarted(node="x", version="", roles=(), pid=1))
    stamps = [json.loads(line)["time"] for line in written]
    assert [stamp[-4:-1] for stamp in stamps] == [f"{int(seconds * 1000) % 1000:03d}" for seconds in times]
    by_time = sorted(zip(times, stamps, strict=True))
    assert [stamp for _, stamp in by_time] == sorted(stamps)


def test_events_are_frozen_and_documented() -> None:
    """No event changes once it is made; each one and each field says what it means."""
    event = NodeStarted(node="x", version="", roles=(), pid=1)
    with pytest.raises(attrs.exceptions.FrozenAttributeError):
        event.node = "y"
    for cls in EVENTS.values():
        assert cls.__doc__, cls
        assert all(field.metadata["doc"] for field in attrs.fields(cls)), cls  # type: ignore[arg-type]


def trouble() -> tuple[Logger, list[bytes]]:
    written: list[bytes] = []
    publisher = LogPublisher(TwistedTrouble(EventLog(written.append, lambda: 0.0)))
    return Logger(namespace="somewhere", observer=publisher), written


def test_a_failure_in_twisted_is_one_line() -> None:
    """A traceback is a field of one event, not lines between events."""
    logger, written = trouble()
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.failure("it broke")
    (line,) = written
    read = json.loads(line)
    assert (read["event"], read["type"], read["place"], read["message"]) == (
        "error",
        "ValueError",
        "somewhere",
        "two\nlines",
    )
    assert "test_a_failure_in_twisted_is_one_line" in read["traceback"]


def test_warnings_and_errors_of_twisted_are_told_and_chatter_is_not() -> None:
    """Factories that start are nobody's news."""
    logger, written = trouble()
    logger.info("Starting factory {n}", n=3)
    logger.debug("x")
    assert written == []
    logger.warn("look: {what}", what="here")
    logger.error("no failure, but bad")
    read = [json.loads(line) for line in written]
    assert [(one["event"], one.get("text", one.get("message"))) for one in read] == [
        ("warning", "look: here"),
        ("error", "no failure, but bad"),
    ]


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_an_exception_that_cannot_be_shown_is_still_told() -> None:
    """The log never fails over what it logs."""
    logger, written = trouble()
    try:
        raise Unspeakable
    except Unspeakable:
        logger.failure("x" * 2 * LONGEST_TEXT)
    read = json.loads(written[0])
    assert read["type"] == "Unspeakable"
    assert len(read["message"]) <= LONGEST_TEXT


def test_a_huge_message_is_cut() -> None:
    """One failure cannot fill the disk."""
    logger, written = trouble()
    logger.error("{text}", text="y" * 10**6)
    assert len(written[0]) < 2 * LONGEST_TEXT


def test_the_log_writes_whole_lines() -> None:
    """One call of `write` for each event, so that lines of several processes on one pipe do not mix."""
    out = io.BytesIO()
    calls = []
    log = EventLog(lambda data: calls.append(out.write(data)), lambda: 0.0)
    for pid in range(3):
        log.emit(NodeStarted(node="x", version="", roles=(), pid=pid))
    assert len(calls) == 3
    assert len(out.getvalue().splitlines()) == 3
