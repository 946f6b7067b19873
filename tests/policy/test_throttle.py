"""GCRA, the oracle of the Lua script."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaycluster.policy.throttle import HORIZON_US, Grant, spend, take

NOW = 1_767_225_600_000_000
SECOND = 1_000_000
NS_PER_SECOND = 1_000_000_000

# Nanoseconds: 1000/s, 700/s, 50/s, about and exactly one each horizon, 3/s, 1/min.
intervals = st.sampled_from(
    [1_000_000, 1_428_572, 20_000_000, 99_999_999, 100_000_000, 100_000_001, 333_333_334, 60 * NS_PER_SECOND]
)
bursts = st.integers(1, 8)


def drive(steps: list[tuple[int, int]], interval: int, burst: int) -> list[tuple[int, Grant]]:
    """Callers that share one state: each step waits, then wants some slots. Returns (asked at, grant)."""
    now, tat, grants = NOW, 0, []
    for pause, wanted in steps:
        now += pause
        grant = take(tat, now, interval, burst, wanted)
        tat = grant.tat_ns
        grants.append((now, grant))
    return grants


steps = st.lists(
    st.tuples(st.sampled_from([0, 1, 700, 19_999, 50_000, 100_000, 1_000_000, 3_600 * SECOND]), st.integers(0, 60)),
    min_size=1,
    max_size=40,
)


@settings(deadline=None)
@given(steps, intervals, bursts)
def test_no_window_holds_too_many(steps: list[tuple[int, int]], interval: int, burst: int) -> None:
    """In ANY window of any length w there are at most w / interval + burst slots, whoever of several callers asked for them.
    (Slots are rounded up to microseconds: w counts with one more.)"""
    slots = [slot for _, grant in drive(steps, interval, burst) for slot in grant.slots_us]
    assert slots == sorted(slots)
    for first in range(len(slots)):
        for last in range(first, len(slots)):
            window_ns = (slots[last] - slots[first]) * 1000 + 999
            assert last - first + 1 <= window_ns // interval + burst


@settings(deadline=None)
@given(steps, intervals, bursts)
def test_slots_lie_within_the_horizon(steps: list[tuple[int, int]], interval: int, burst: int) -> None:
    """No slot lies in the past or beyond the horizon, no more come than were wanted, and the state stays within its bound."""
    for (asked, grant), (_, wanted) in zip(drive(steps, interval, burst), steps, strict=True):
        assert len(grant.slots_us) <= wanted
        assert all(asked <= slot <= asked + HORIZON_US for slot in grant.slots_us)
        assert grant.tat_ns <= (asked + HORIZON_US) * 1000 + burst * interval


@settings(deadline=None)
@given(steps, intervals, bursts)
def test_retry_after_is_true(steps: list[tuple[int, int]], interval: int, burst: int) -> None:
    """Whoever waits for `retry_after_us` gets a slot; it is 0 exactly when there is one more to be had now."""
    asked, grant = drive(steps, interval, burst)[-1]
    later = take(grant.tat_ns, asked + grant.retry_after_us, interval, burst, 1)
    assert len(later.slots_us) == 1
    at_once = take(grant.tat_ns, asked, interval, burst, 1)
    assert bool(at_once.slots_us) == (grant.retry_after_us == 0)


@settings(deadline=None)
@given(steps, intervals, bursts)
def test_asking_piecemeal_gives_the_same(steps: list[tuple[int, int]], interval: int, burst: int) -> None:
    """Ten slots asked for singly at one instant are the ten slots asked for at once."""
    asked, grant = drive(steps, interval, burst)[-1]
    together = take(grant.tat_ns, asked, interval, burst, 10)
    tat, singly = grant.tat_ns, []
    for _ in range(10):
        one = take(tat, asked, interval, burst, 1)
        tat = one.tat_ns
        singly += one.slots_us
    assert (tuple(singly), tat) == (together.slots_us, together.tat_ns)


@given(steps, intervals, bursts, st.integers(1, 40 * 365 * 86_400 * SECOND))
def test_a_clock_that_goes_back_costs_one_slot_time(
    steps: list[tuple[int, int]], interval: int, burst: int, jump: int
) -> None:
    """After a jump back by up to 40 years the limit stands still for one interval and the horizon at most, then goes on;
    asking in vain in between does not prolong it."""
    asked, grant = drive(steps, interval, burst)[-1]
    now = asked - jump
    tat = grant.tat_ns
    deadline = now + interval // 1000 + 1 + HORIZON_US
    while True:
        again = take(tat, now, interval, burst, 1)
        tat = again.tat_ns
        if again.slots_us:
            break
        assert now + again.retry_after_us <= deadline
        now += max(1, again.retry_after_us // 2)
    assert again.slots_us[0] <= deadline


@given(intervals, bursts, st.integers(1, 10**15))
def test_a_clock_that_jumps_ahead_gives_one_burst(interval: int, burst: int, jump: int) -> None:
    """A jump forward is idleness: the burst, and then the rate."""
    grant = take(0, NOW, interval, burst, 1_000)
    ahead = take(grant.tat_ns, NOW + HORIZON_US + burst * interval // 1000 + 1 + jump, interval, burst, 1_000)
    assert ahead.slots_us.count(ahead.slots_us[0]) == burst
    assert len(ahead.slots_us) == burst + HORIZON_US * 1000 // interval


def test_exact_over_a_thousand_seconds() -> None:
    """3/s taken as fast as possible over 1,000 s: 3,000 and the burst at most, and at least 99.9 % of them."""
    interval = 333_333_334
    now, tat, slots = NOW, 0, []
    while now <= NOW + 1_000 * SECOND:
        grant = take(tat, now, interval, 5, 10)
        tat = grant.tat_ns
        slots += grant.slots_us
        now += max(1, grant.retry_after_us)
    slots = [slot for slot in slots if slot < NOW + 1_000 * SECOND]
    assert 2_997 + 4 <= len(slots) <= 3_000 + 5


def test_full_use_of_a_high_rate_with_slow_round_trips() -> None:
    """50/s, each question answered 20 ms after it was asked: no slot is lost to the round trip."""
    interval = 20_000_000
    now, tat, slots = NOW, 0, 0
    while now < NOW + 20 * SECOND:
        grant = take(tat, now, interval, 1, 100)
        tat = grant.tat_ns
        slots += len(grant.slots_us)
        now += grant.retry_after_us + 20_000
    assert slots >= 0.995 * 20 * 50


@pytest.mark.parametrize(
    ("tat", "interval_us", "burst", "wanted", "expected"),
    [
        # Nothing known: the first slot is now; one more could be had at once, for 20 ms later.
        (None, 20_000, 1, 1, (20_000, [0], 0)),
        # A whole horizon: 0, 20, … 100 ms; the next, at 120 ms, may be asked for at 70 ms.
        (None, 20_000, 1, 99, (120_000, [0, 20_000, 40_000, 60_000, 80_000, 100_000], 70_000)),
        # A low rate: one now, none until shortly before the next minute.
        (None, 60 * SECOND, 1, 9, (60 * SECOND, [0], 60 * SECOND - 50_000)),
        (59 * SECOND, 60 * SECOND, 1, 9, (59 * SECOND, [], 59 * SECOND - 50_000)),
        # A low rate, and the next slot within the horizon: it is given ahead of its time.
        (50_000, 60 * SECOND, 1, 9, (60 * SECOND + 50_000, [50_000], 60 * SECOND)),
        # A burst of three, then one by one.
        (None, 40_000, 3, 9, (200_000 + 0, [0, 0, 0, 40_000, 80_000], 70_000)),
        # Wanting nothing changes nothing.
        (7, 40_000, 1, 0, (7, [], 0)),
        # A state from beyond all bounds (a clock went back) is brought in, and stored although no slot came of it.
        (10**12, 60 * SECOND, 1, 1, (60 * SECOND + HORIZON_US, [], 60 * SECOND + 50_000)),
    ],
)
def test_examples(
    tat: int | None, interval_us: int, burst: int, wanted: int, expected: tuple[int, list[int], int]
) -> None:
    """Worked examples, in microseconds from now; every store must give the same."""
    grant = take(0 if tat is None else (NOW + tat) * 1000, NOW, interval_us * 1000, burst, wanted)
    tat_us, slots, retry_after = expected
    assert grant == Grant((NOW + tat_us) * 1000, tuple(NOW + slot for slot in slots), retry_after)


def test_nonsense_is_refused() -> None:
    """Arguments that mean nothing raise instead of limiting nothing."""
    for arguments in ((0, 1, 1), (1, 0, 1), (1, 1, -1), (1, 1, 1, -1)):
        with pytest.raises(ValueError, match="cannot take"):
            take(0, NOW, *arguments)


def spent(steps: list[tuple[int, int]], interval: int, burst: int) -> list[tuple[int, int, int, int]]:
    """Callers that share one allowance: (when, wanted, state, µs to wait) for each step."""
    now, tat, found = NOW, 0, []
    for pause, wanted in steps:
        now += pause
        tat, wait_us = spend(tat, now, interval, burst, wanted)
        found.append((now, wanted, tat, wait_us))
    return found


@settings(deadline=None)
@given(steps, intervals, bursts)
def test_no_window_spends_too_much(steps: list[tuple[int, int]], interval: int, burst: int) -> None:
    """In any window of length w at most w / interval + burst units go, where one call counts for at most the burst."""
    taken = [(now, min(wanted, burst)) for now, wanted, _, wait_us in spent(steps, interval, burst) if not wait_us]
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            window_ns = (taken[last][0] - taken[first][0]) * 1000
            assert sum(units for _, units in taken[first : last + 1]) <= window_ns // interval + burst


@settings(deadline=None)
@given(steps, intervals, bursts)
def test_the_wait_of_an_allowance_is_exact(steps: list[tuple[int, int]], interval: int, burst: int) -> None:
    """After the wait it is granted, a microsecond before it is not; who is refused took nothing, and nobody waits for more than a whole
    burst."""
    for now, wanted, tat, wait_us in spent(steps, interval, burst):
        if wait_us:
            assert wait_us <= -(-burst * interval // 1000)
            assert spend(tat, now + wait_us, interval, burst, wanted)[1] == 0
            assert spend(tat, now + wait_us - 1, interval, burst, wanted)[1] == 1
            assert spend(tat, now, interval, burst, wanted) == (tat, wait_us)


@given(steps, intervals, bursts, st.integers(1, 40 * 365 * 86_400 * SECOND))
def test_an_allowance_outlives_a_clock_that_goes_back(
    steps: list[tuple[int, int]], interval: int, burst: int, jump: int
) -> None:
    """After a jump back there is something again after one interval, though it was asked for in between."""
    now, _, tat, _ = spent(steps, interval, burst)[-1]
    now -= jump
    tat, _ = spend(tat, now, interval, burst, burst)
    _, wait_us = spend(tat, now + interval // 1000 + 1, interval, burst, 1)
    assert wait_us == 0


def test_nothing_can_be_spent_of_nothing() -> None:
    """Senseless questions are the caller's fault."""
    for interval, burst, wanted in ((0, 1, 1), (1, 0, 1), (1, 1, -1)):
        with pytest.raises(ValueError, match="cannot spend"):
            spend(0, NOW, interval, burst, wanted)
