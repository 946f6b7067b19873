"""What one process has in hand, over all of its lanes: bounded, since each claim in hands that die counts as a try."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

BEGIN = 2
"""So many lanes may begin for each claim that is done: one for its place, and one more, so that no place waits for a lane."""


class Begins(Protocol):
    """Who can stand in line."""

    def pump(self) -> None:
        """There may be room now."""


class Hands:
    """The claims that the queue has not heard of again. `held` are their tokens; `asked` more are being asked for.

    A lane that carries mail may always claim: its connections say how much. One that has no connection yet begins only while
    less than `most` is in hand and nobody waits for a connection's place; else it stands in line, and comes when others are done.
    """

    def __init__(self, clock: IReactorTime, most: int, is_crowded: Callable[[], bool]) -> None:
        self._clock = clock
        self._is_crowded = is_crowded
        self._line: OrderedDict[Begins, None] = OrderedDict()
        self._turns = 0
        self._timer: IDelayedCall | None = None
        self.most = most
        self.asked = 0
        self.held: set[bytes] = set()

    @property
    def have_room(self) -> bool:
        """Whether a lane without a connection may claim."""
        return len(self.held) + self.asked < self.most and not self._is_crowded()

    def may_begin(self, lane: Begins) -> bool:
        """Whether the lane may claim its first; if not, it is told when to ask again."""
        if self.have_room:
            self._line.pop(lane, None)
            return True
        self._line[lane] = None
        return False

    def done(self, token: bytes) -> None:
        """The queue has heard of the claim."""
        self.held.discard(token)
        self._let_in()

    def answered(self, asked: int, got: int) -> None:
        """Of so many claims that were asked for, so many came."""
        self.asked -= asked
        if not got:
            self._let_in()

    def _let_in(self) -> None:
        if self._line:
            self._turns += BEGIN
            if self._timer is None:
                self._timer = self._clock.callLater(0, self._next)

    def _next(self) -> None:
        self._timer = None
        turns, self._turns = self._turns, 0
        while turns and self._line and self.have_room:
            turns -= 1
            lane, _ = self._line.popitem(last=False)
            lane.pump()
