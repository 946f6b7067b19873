"""What a reply says about the speed of what follows, beside what it says about the mail that was refused: a closed union."""

from __future__ import annotations

from attrs import field, frozen, validators


@frozen
class Unchanged:
    """Nothing: the destination's pace stays as it is."""


@frozen
class SlowDown:
    """The provider takes fewer of us for now: halve connections and rate, and come back step by step."""


@frozen
class Suspend:
    """The provider takes nothing from us for now: no connection to it for so long."""

    seconds: float = field(validator=validators.gt(0))


Pace = Unchanged | SlowDown | Suspend
"""Every place that looks at one ends in `assert_never`."""

UNCHANGED = Unchanged()
