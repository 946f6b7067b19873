"""What a cluster carries at this moment, without any limit: the reference for what is asked of it.

Machines that are shared change their speed within minutes. What a scenario asks for is therefore a part of what the same
processes have just shown, never a figure of some machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.support.ledger import settle
from tests.support.load import Load
from tests.support.sink import Sink

PACED = 4.0
"""A message that is sent at its time may cost so many times what one costs in a burst; nobody is asked for more."""


def carried(edges: Sequence[str], sink: Sink, count: int, recipients: Callable[[int], Sequence[str]]) -> float:
    """Messages a second, from the first one in to the last one out."""
    load = Load(edges, count, recipients).start()
    load.wait(300)
    settle([load], sink, timeout_seconds=300)
    accepted = load.accepted()
    ended = max(message.at for message in sink.messages() if message.load_id in accepted)
    return len(accepted) / (ended - min(sent.started for sent in accepted.values()))


def due(rate: float, *carried_before_and_after: float) -> float:
    """Of a limit's rate, what can be asked: all of it, unless the machine was too slow for that."""
    found = min(rate, min(carried_before_and_after) / PACED)
    print(f"carried without a limit: {[round(each) for each in carried_before_and_after]}/s, so {found:.0f}/s are due")
    return found
