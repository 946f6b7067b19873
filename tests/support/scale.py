"""How much a scenario does: enough to show the point in `make test`, all of it with `SCENARIO_SCALE=full`."""

from __future__ import annotations

import os

FULL = os.environ.get("SCENARIO_SCALE") == "full"


def scaled(usual: int, full: int) -> int:
    """`full` when the whole measure is asked for, else `usual`."""
    return full if FULL else usual
