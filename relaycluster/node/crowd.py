"""Lanes that share a limit take turns at its connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class LimitReached(Exception):
    """The cluster's connections to this destination are all in use."""


class Waits(Protocol):
    """Who can stand in line."""

    def pump(self) -> None:
        """There may be a connection now."""


class Crowd:
    """Lanes that wait for a connection of a limit that this process has used up. `open` tells how many it has."""

    def __init__(self, open_connections: Callable[[str], int]) -> None:
        self._open = open_connections
        self._lanes: dict[str, dict[Waits, None]] = {}

    def wait(self, limit: str, lane: Waits) -> bool:
        """Stand in line. False when this process has no connection that could become free."""
        if not self._open(limit):
            return False
        self._lanes.setdefault(limit, {})[lane] = None
        return True

    def waits(self, limit: str) -> bool:
        """Whether somebody stands in line."""
        return limit in self._lanes

    def freed(self, limit: str) -> None:
        """A connection is free, or gone: the first in line may look."""
        lanes = self._lanes.get(limit)
        if lanes:
            lane = next(iter(lanes))
            del lanes[lane]
            if not lanes:
                del self._lanes[limit]
            lane.pump()
