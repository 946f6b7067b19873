"""Pauses as they stand in the queue."""

from __future__ import annotations

import pytest

from relaycluster.policy.pause import LONGEST_DETAIL, Pause, Why, pack_reason, unpack_pause


@pytest.mark.parametrize("why", list(Why))
@pytest.mark.parametrize("detail", ["", "limit:a:b", "451 4.4.1 n\u00f6", "x" * LONGEST_DETAIL])
def test_round_trip(why: Why, detail: str) -> None:
    """What was said is what is read, colons and all."""
    assert unpack_pause(b"1700000000000:" + pack_reason(why, detail)) == Pause(1_700_000_000_000, why, detail)


def test_strange_ones() -> None:
    """A lone surrogate is no fault, a long detail is cut, and what a newer release wrote is read as far as it is known."""
    assert unpack_pause(b"5:" + pack_reason(Why.PARKED, "\udc80")).detail == "?"
    assert len(unpack_pause(b"5:" + pack_reason(Why.PARKED, "x" * 999)).detail) == LONGEST_DETAIL
    assert unpack_pause(b"5:moon:full").until_ms == 5
    assert unpack_pause(b"5").until_ms == 5
