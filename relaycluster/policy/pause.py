"""A domain that leaves the candidates for a while: until when, and why, for whoever asks.

The owner of its partition says so, since the poll need not find what cannot be sent now; it may take it back at any time.
"""

from __future__ import annotations

from enum import Enum

from attrs import frozen

LONGEST_DETAIL = 200


class Why(Enum):
    """What keeps a domain back."""

    RATE = "rate"  # its slots are used up
    PARKED = "parked"  # no host can be reached; the detail is what came of the last attempt
    RESTING = "resting"  # a host asked for less
    SUSPENDED = "suspended"  # the detail is the subject of the suspension
    SPREAD = "spread"  # it was resumed together with others, which come back one after the other


_REASONS = {each.value: each for each in Why}


@frozen
class Pause:
    """`until_ms` is queue time; `detail` as `Why` says."""

    until_ms: int
    why: Why
    detail: str = ""


def pack_reason(why: Why, detail: str) -> bytes:
    """The reason as it stands behind the time in the queue."""
    return f"{why.value}:{detail[:LONGEST_DETAIL]}".encode("utf-8", "replace")


def unpack_pause(entry: bytes) -> Pause:
    """`until:why:detail`, as it stands in the queue. A reason that only a newer release knows keeps nobody from reading the rest."""
    until, _, reason = entry.decode("utf-8", "replace").partition(":")
    why, _, detail = reason.partition(":")
    return Pause(int(until), _REASONS.get(why, Why.SPREAD), detail)
