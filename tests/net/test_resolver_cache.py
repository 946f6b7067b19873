"""The answer cache: time, capacity, and who goes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from relaycluster.net.dns_cache import AnswerCache


def test_an_entry_lives_exactly_its_time() -> None:
    """Kept until just before its lifetime ends, gone from then on, and its place is free."""
    clock = Clock()
    cache: AnswerCache[str] = AnswerCache(clock.seconds, 10)
    cache.put("a", "1", 30)
    clock.advance(29.5)
    assert cache.get("a") == "1"
    clock.advance(0.5)
    assert cache.get("a") is None
    assert len(cache) == 0


def test_a_new_value_replaces_with_its_own_time() -> None:
    """Not the sooner of the two ends."""
    clock = Clock()
    cache: AnswerCache[str] = AnswerCache(clock.seconds, 10)
    cache.put("a", "1", 10)
    cache.put("a", "2", 30)
    clock.advance(20)
    assert cache.get("a") == "2"


def test_the_longest_unused_goes_first() -> None:
    """A hit counts as use."""
    cache: AnswerCache[str] = AnswerCache(Clock().seconds, 2)
    cache.put("a", "1", 30)
    cache.put("b", "2", 30)
    cache.get("a")
    cache.put("c", "3", 30)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == ("1", None, "3")


def test_a_cache_without_room_is_a_mistake() -> None:
    """It would ask for every message."""
    with pytest.raises(ValueError, match="one entry"):
        AnswerCache(Clock().seconds, 0)


@given(st.lists(st.tuples(st.sampled_from("putgetage"), st.sampled_from("abcdef"), st.integers(1, 9)), max_size=60))
def test_a_hit_is_always_the_last_value_and_in_time(steps: list[tuple[str, str, int]]) -> None:
    """Against a plain dictionary with times: never a wrong or an expired value, never more than the capacity."""
    clock = Clock()
    cache: AnswerCache[int] = AnswerCache(clock.seconds, 3)
    model: dict[str, tuple[float, int]] = {}
    for number, (step, name, seconds) in enumerate(steps):
        if step == "p":
            cache.put(name, number, seconds)
            model[name] = (clock.seconds() + seconds, number)
        elif step == "a":
            clock.advance(seconds)
        else:
            hit = cache.get(name)
            assert hit is None or (model[name][1] == hit and model[name][0] > clock.seconds())
        assert len(cache) <= 3
