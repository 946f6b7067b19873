"""Priorities: what a claim asks of each class first adds up to the shares, however the claims are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relaycluster.policy.priority import shares


@given(st.lists(st.integers(0, 45), max_size=40), st.integers(0, 100))
def test_shares(claims: list[int], start: int) -> None:
    """Over any run of claims, bulk is first for a tenth and normal for two tenths, within one round."""
    turn, normal, bulk = start, 0, 0
    for limit in claims:
        found = shares(turn, limit)
        assert all(each >= 0 for each in found)
        assert sum(found) <= limit
        turn, normal, bulk = turn + limit, normal + found[0], bulk + found[1]
    total = turn - start
    assert abs(bulk - total / 10) <= 1
    assert abs(normal - total / 5) <= 2


def test_one_at_a_time() -> None:
    """A lane that claims singly serves bulk with every tenth."""
    assert sum(shares(turn, 1)[1] for turn in range(100)) == 10
    assert sum(shares(turn, 1)[0] for turn in range(100)) == 20
