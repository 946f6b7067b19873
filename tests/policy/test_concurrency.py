"""Connection slots as leases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.policy.concurrency import fair_share, take_slots

steps = st.lists(
    st.one_of(
        st.tuples(st.just("hold"), st.integers(1, 4), st.integers(0, 12)),
        st.tuples(st.just("die"), st.integers(1, 4), st.just(0)),
    ),
    max_size=40,
)


@given(steps, st.integers(0, 10))
def test_never_more_than_the_maximum(steps: list[tuple[str, int, int]], maximum: int) -> None:
    """However nodes raise, lower and die: what the living hold together never exceeds the maximum, and what is wanted and
    free is given."""
    holders: dict[int, int] = {}
    dead: set[int] = set()
    for action, incarnation, wanted in steps:
        if action == "die":
            dead.add(incarnation)
            continue
        if incarnation in dead:
            continue
        others = sum(n for holder, n in holders.items() if holder not in dead and holder != incarnation)
        held = take_slots(holders, dead.__contains__, incarnation, wanted, maximum)
        holders = dict(held.holders)
        assert held.granted == min(wanted, maximum - others)
        assert holders.get(incarnation, 0) == held.granted
        assert not dead & set(holders)
        assert 0 not in holders.values()
        assert sum(holders.values()) <= maximum


def test_dead_holders_free_their_slots_at_once() -> None:
    """A node died with all ten connections: the next one that asks gets them."""
    assert take_slots({7: 10}, lambda incarnation: incarnation == 7, 8, 4, 10).granted == 4
    assert take_slots({7: 10}, lambda incarnation: False, 8, 4, 10).granted == 0


def test_a_lowered_maximum_takes_nothing_away() -> None:
    """Holders keep what they have when the maximum shrinks, can lower it, and cannot raise it again."""
    alive = {1: 6, 2: 6}
    assert take_slots(alive, lambda _: False, 1, 6, 8).granted == 6
    lowered = take_slots(alive, lambda _: False, 1, 1, 8)
    assert lowered.granted == 1
    assert take_slots(lowered.holders, lambda _: False, 1, 6, 8).granted == 2


def test_nonsense_is_refused() -> None:
    """Negative numbers are a mistake of the caller's."""
    with pytest.raises(ValueError, match="cannot hold"):
        take_slots({}, lambda _: False, 1, -1, 5)


@given(st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)), st.integers(0, 5), st.integers(1, 20))
def test_fair_share(holders: set[int], wishing: set[int], who: int, maximum: int) -> None:
    """While nobody else wishes, everything; else equal parts that leave something to whoever wishes, however many hold some."""
    share = fair_share(holders, wishing, who, maximum)
    parties = holders | wishing | {who}
    assert 0 <= share <= maximum
    if wishing <= {who}:
        assert share == maximum
    else:
        assert maximum - len(parties) < share * len(parties) <= maximum
        assert share * (len(parties) - 1) < maximum
