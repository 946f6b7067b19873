"""Writes events, one line each: JSON with the same keys each time, or words.

Whatever a client or a remote server said stands in the line escaped, so that nobody can forge a line or reach a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii
from math import isfinite
from operator import attrgetter, call
from typing import Any, Literal, get_type_hints

import attrs
from twisted.logger import formatEvent

from relaycluster.events.kinds import EVENTS, Error, Event, Warning

LONGEST_TEXT = 2000
LONGEST_TRACEBACK = 20_000


class EventLog:
    """Writes events, one line each, in the order of the calls.

    `write` takes a whole line with its LF; it must not block or raise. `clock` is the time of day in seconds since the
    epoch. `format` is "json" or "text".
    """

    def __init__(
        self, write: Callable[[bytes], None], clock: Callable[[], float], format: Literal["json", "text"] = "json"
    ) -> None:
        self._write = write
        self._clock = clock
        self._millisecond = -1
        self._stamp = ""
        self._lines: dict[type[Event], _Line] = {
            cls: _json_line(cls) if format == "json" else _text_line(cls) for cls in EVENTS.values()
        }

    def emit(self, event: Event) -> None:
        """The line of an event, written."""
        millisecond = int(self._clock() * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            second, fraction = divmod(millisecond, 1000)
            self._stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))}.{fraction:03d}Z"
        self._write(self._lines[type(event)](self._stamp, event).encode("ascii"))


_Line = Callable[[str, Any], str]


def _json_line(cls: type[Event]) -> _Line:
    """How events of a class are written as JSON: one template, filled in."""
    names, kinds = _fields(cls)
    parts = "".join(f',"{name}":%s' for name in names)
    template = f'{{"time":"%s","event":"{cls.name}","severity":"{cls.severity}"{parts}}}\n'
    encoders = [_JSON[kind] for kind in kinds]
    values_of = _values_of(names)

    def line(stamp: str, event: Event) -> str:
        return template % (stamp, *map(call, encoders, values_of(event)))

    return line


def _text_line(cls: type[Event]) -> _Line:
    """How events of a class are written for a person: `name=value` for all that is not empty."""
    names, kinds = _fields(cls)
    encoders = [_TEXT[kind] for kind in kinds]
    values_of = _values_of(names)
    severity = "" if cls.severity == "info" else f" {cls.severity}:"

    def line(stamp: str, event: Event) -> str:
        words = [
            f" {name}={encode(value)}"
            for name, encode, value in zip(names, encoders, values_of(event), strict=True)
            if value not in ("", ())
        ]
        return f"{stamp}{severity} {cls.name}{''.join(words)}\n"

    return line


def _fields(cls: type[Event]) -> tuple[list[str], list[object]]:
    hints = get_type_hints(cls)
    names = [attribute.name for attribute in attrs.fields(cls)]  # type: ignore[arg-type]
    return names, [hints[name] for name in names]


def _values_of(names: list[str]) -> Callable[[Event], tuple[Any, ...]]:
    getter = attrgetter(*names)
    return getter if len(names) > 1 else lambda event: (getter(event),)


def _number(value: float) -> str:
    return f"{value:.6g}" if isfinite(value) else "null"


def _cut(value: str) -> str:
    return value if len(value) <= LONGEST_TEXT else value[: LONGEST_TEXT - 1] + "…"


def _json_texts(values: tuple[str, ...]) -> str:
    return f"[{','.join(map(encode_basestring_ascii, values))}]"


_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;@+-_/<>[]()*#~!?%&'")


def _words(value: str) -> str:
    return value if _PLAIN.issuperset(value) else encode_basestring_ascii(value)


_JSON: dict[object, Callable[[Any], str]] = {
    str: encode_basestring_ascii,
    int: int.__repr__,
    float: _number,
    tuple[str, ...]: _json_texts,
}
_TEXT: dict[object, Callable[[Any], str]] = {
    str: _words,
    int: int.__repr__,
    float: _number,
    tuple[str, ...]: lambda values: ",".join(map(_words, values)),
}


class TwistedTrouble:
    """An observer for `twisted.logger`: what Twisted and our own code log as a failure, an error or a warning becomes an
    event of one line. Anything less (a factory that started) is not told."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def __call__(self, event: dict[str, Any]) -> None:
        """Takes one event of twisted.logger. Never raises."""
        level = getattr(event.get("log_level"), "name", "info")
        failure = event.get("log_failure")
        if failure is None and level not in ("warn", "error", "critical"):
            return
        place = str(event.get("log_namespace", ""))
        text = _cut(formatEvent(event))
        if failure is not None:
            kind = getattr(failure.type, "__qualname__", str(failure.type))
            traceback = failure.getTraceback()
            message = _cut(_say(failure.value)) or text
            self._log.emit(Error(type=kind, place=place, message=message, traceback=traceback[-LONGEST_TRACEBACK:]))
        elif level == "warn":
            self._log.emit(Warning(text=text, place=place))
        else:
            self._log.emit(Error(type=level, place=place, message=text))


def _say(value: object) -> str:
    """`str` of an exception, which may itself be broken."""
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__qualname__} that cannot be shown>"
