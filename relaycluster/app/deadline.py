"""To wait, but not for ever."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime


async def within(clock: IReactorTime, done: Deferred[Any], seconds: float) -> None:
    """Wait for it, at most so long; how it ended does not matter."""
    waiting: Deferred[None] = Deferred()

    def over(_: object) -> None:
        if not waiting.called:
            waiting.callback(None)

    timer = clock.callLater(seconds, over, None)
    done.addBoth(over)
    await waiting
    if timer.active():
        timer.cancel()
