"""How much a scenario does: enough to show the point in `make test`, all of it with `SCENARIO_SCALE=full`."""

from __future__ import annotations

import os
from typing import TypeVar

FULL = os.environ.get("SCENARIO_SCALE") == "full"


Number = TypeVar("Number", int, float)


def scaled(usual: Number, full: Number) -> Number:
    """`full` when the whole measure is asked for, else `usual`.

    What a machine must come up to is better a part of what it does in the same run (`capacity.py`).
    """
    return full if FULL else usual
