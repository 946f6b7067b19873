"""How much a scenario does: enough to show the point in `make test`, all of it with `SCENARIO_SCALE=full`."""

from __future__ import annotations

import os
from typing import TypeVar

FULL = os.environ.get("SCENARIO_SCALE") == "full"


Number = TypeVar("Number", int, float)


def scaled(usual: Number, full: Number) -> Number:
    """`full` when the whole measure is asked for, else `usual`.

    Also for what a machine must come up to: `make test` runs on shared ones, which may be five times slower from one minute to the
    next, and finds out whether something is broken; the full measure, alone on a machine, finds out how well it works.
    """
    return full if FULL else usual
