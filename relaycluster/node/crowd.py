"""Lanes that share a limit take turns at its connections."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container
from typing import Protocol

CROWDED_SECONDS = 1.0
"""How long to wait when the cluster's other connections leave no room for ours, or the queue is away."""
TRY_SECONDS = 0.5
"""So long one lane tries for a connection, while the others of the same limit wait for what comes of it."""


class LimitReached(Exception):
    """The cluster's connections to this destination are all in use."""


class Waits(Protocol):
    """Who can stand in line."""

    @property
    def wants_turn(self) -> bool:
        """Whether there is still something to send."""
        ...

    def take_turn(self) -> None:
        """There may be a connection now."""


class Crowd:
    """Lanes that wait for a connection of a limit that this process has used up. `open` tells how many it has, `shares` the limits of
    which other nodes wish for some."""

    def __init__(self, open_connections: Callable[[str], int]) -> None:
        self.open = open_connections
        self.shares: Container[str] = ()
        self._full: dict[str, float] = {}
        self._lanes: dict[str, OrderedDict[Waits, None]] = {}

    def wait(self, limit: str, lane: Waits, first: bool = False) -> bool:
        """Stand in line, or `first` in it. False when this process has no connection that could become free."""
        if not self.open(limit):
            return False
        line = self._lanes.setdefault(limit, OrderedDict())
        line[lane] = None
        if first:
            line.move_to_end(lane, last=False)
        return True

    def waits(self, limit: str) -> bool:
        """Whether somebody stands in line, here or at another node."""
        return limit in self._lanes or limit in self.shares

    def full(self, limit: str, until_seconds: float) -> None:
        """Other nodes have all connections of the limit, and this process none."""
        self._full[limit] = until_seconds

    def full_seconds(self, limit: str, now_seconds: float) -> float:
        """How long to wait before trying for one; 0 for the one lane that may try now."""
        until = self._full.get(limit)
        if until is None:
            return 0.0
        if self.open(limit):
            del self._full[limit]
            return 0.0
        if now_seconds < until:
            return until - now_seconds
        self._full[limit] = now_seconds + TRY_SECONDS
        return 0.0

    def freed(self, limit: str) -> None:
        """A connection is free, or gone: the first in line that still needs one may look."""
        lanes = self._lanes.get(limit)
        while lanes:
            lane, _ = lanes.popitem(last=False)
            if not lanes:
                del self._lanes[limit]
            if lane.wants_turn:
                lane.take_turn()
                return
