"""The window: it grows with answers, shrinks with refusals, parks the dead ever longer, and always comes back."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from relaycluster.policy.window import (
    FIRST,
    FIRST_PARK_SECONDS,
    FIRST_STEP_SECONDS,
    MOST_PARK_SECONDS,
    MOST_STEP_SECONDS,
    RECOVERY_SECONDS,
    Window,
)

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(("answered", "opened", "refused", "slowed", "wait")),
        st.integers(0, 30),
        st.floats(0, 0.99),
    ),
    max_size=60,
)


def play(window: Window, events: list[tuple[str, int, float]]) -> tuple[Window, float]:
    now = 100.0
    for event, number, jitter in events:
        if event == "answered":
            window = window.answered()
        elif event == "opened":
            window = window.opened(now)
        elif event == "refused":
            window = window.refused(number, now, jitter)
        elif event == "slowed":
            window = window.slowed(number, now, jitter)
        else:
            now += number
        assert 0 <= window.allowed(now) <= window.maximum
        assert 0 < window.rate_share(now) <= 1
        assert 0 <= window.closed_seconds(now) <= 1.25 * MOST_PARK_SECONDS
        if window.closed_seconds(now):
            assert window.matters(now)
    return window, now


@given(EVENTS, st.integers(1, 20))
def test_it_always_comes_back(events: list[tuple[str, int, float]], maximum: int) -> None:
    """Whatever happened: it is never above the maximum; a dead destination is probed in the end with exactly one connection; and
    once a probe succeeds and answers come, all of the maximum is allowed again, and all of the rate."""
    window, now = play(Window(maximum), events)
    now += 1.25 * MOST_PARK_SECONDS
    assert window.closed_seconds(now) == 0
    assert window.allowed(now) == 1 if window.failures else window.allowed(now) >= 1
    window = window.opened(now)
    for _ in range(maximum):
        window = window.answered()
    now += max(RECOVERY_SECONDS, maximum * MOST_STEP_SECONDS)
    assert window.allowed(now) == maximum
    assert window.rate_share(now) == 1
    assert not window.matters(now)


def test_slow_start() -> None:
    """Few at first; one more with each answer, so twice as many each round."""
    window = Window(20)
    assert window.allowed(0) == FIRST
    rounds = 0
    while window.learns:
        for _ in range(window.allowed(0)):
            window = window.answered()
        rounds += 1
    assert (window.allowed(0), rounds) == (20, 4)


def test_a_maximum_below_the_first() -> None:
    """One connection is one connection."""
    assert Window(1).allowed(0) == 1


def test_refused_while_others_stand() -> None:
    """The host takes three from us: three it is, and one more is tried ever more seldom."""
    window = Window(20)
    for _ in range(20):
        window = window.answered()
    now, tries = 0.0, []
    window = window.refused(3, now, 0.5)
    while now < 1000:
        now += 0.5
        if window.allowed(now) > 3:
            tries.append(now)
            window = window.refused(3, now, 0.5)
        assert window.allowed(now) <= 3
        window = window.answered()
    gaps = [after - before for before, after in pairwise(tries)]
    assert 5 <= len(tries) <= 12, tries
    assert gaps == sorted(gaps)


def test_lost_all_at_once() -> None:
    """A network fails for a moment and twenty connections break off together: that is one piece of news. It is careful again, with one
    connection, and has all twenty back within a minute."""
    window = Window(20)
    for _ in range(20):
        window = window.answered()
    for left in range(19, -1, -1):
        window = window.refused(max(1, left), 1000, 0.5)
    assert (window.allowed(1000), window.step_seconds) == (1, FIRST_STEP_SECONDS)
    assert window.allowed(1060) == 20


def test_a_dead_destination() -> None:
    """Left alone for twice as long each time, never longer than five minutes and its jitter; attempts that were under way count as one."""
    window, now = Window(20), 0.0
    parked = []
    for _ in range(8):
        window = window.refused(0, now, 0.5)
        assert window == window.refused(0, now + 1, 0.9)
        assert window.allowed(now + 1) == 0
        parked.append(window.closed_seconds(now))
        now += window.closed_seconds(now)
        assert window.allowed(now) == 1
    assert parked[0] == FIRST_PARK_SECONDS
    assert parked[1] == 2 * FIRST_PARK_SECONDS
    assert parked[-1] == MOST_PARK_SECONDS
    window = window.opened(now)
    assert (window.allowed(now), window.failures, window.closed_seconds(now)) == (FIRST, 0, 0)


@given(st.floats(0, 0.99), st.floats(0, 0.99))
def test_parked_together_they_do_not_come_back_together(one: float, other: float) -> None:
    """The time is spread by half of itself."""
    waits = [Window(5).refused(0, 0, jitter).closed_seconds(0) for jitter in (one, other)]
    assert abs(abs(waits[0] - waits[1]) - abs(one - other) * FIRST_PARK_SECONDS / 2) < 1e-6


def test_slow_down() -> None:
    """Half of the connections in use and half of the rate, after a rest; heard on twenty connections at once, it is once; asked again,
    half of that again, after a longer rest; then both come back step by step."""
    window = Window(20)
    for _ in range(20):
        window = window.answered()
    slowed = window.slowed(8, 0, 0.5)
    assert slowed == slowed.slowed(7, 1, 0.5)
    rest = slowed.closed_seconds(0)
    assert (rest, slowed.allowed(rest), slowed.rate_share(rest)) == (5, 4, 0.5)
    again = slowed.slowed(4, rest, 0.5)
    assert again.closed_seconds(rest) == 10
    now = rest + 10
    assert again.allowed(now) == 2
    assert 0.24 < again.rate_share(now) < 0.27
    assert [again.allowed(now + 30 * n) for n in range(4)] == [2, 3, 4, 5]
    assert again.rate_share(now + RECOVERY_SECONDS / 2) < 1
    assert again.rate_share(now + RECOVERY_SECONDS) == 1


def test_slow_down_in_a_greeting() -> None:
    """The attempts that were under way when the host said it are no sign of a dead host, nor do they shorten the rest; and a
    host that was dead meanwhile is still sent to slowly when it is back."""
    slowed = Window(20).slowed(2, 0, 0.5)
    assert slowed.refused(0, 1, 0.5) == slowed
    assert slowed.refused(1, 1, 0.5).allowed(5) == 1
    parked = slowed.refused(0, 10, 0.5)
    assert parked.failures == 1
    back = parked.opened(25)
    for _ in range(20):
        back = back.answered()
    assert (back.allowed(25), back.allowed(34), back.allowed(36), back.allowed(66)) == (1, 1, 2, 3)
    assert back.rate_share(25) < 1


def test_the_maximum_is_changed() -> None:
    """Lowered it holds at once; raised, what was learned stays."""
    window = Window(20)
    for _ in range(20):
        window = window.answered()
    assert window.with_maximum(5).allowed(0) == 5
    assert window.refused(3, 0, 0.5).with_maximum(50).allowed(0) == 3


def test_probed_at_once() -> None:
    """The operator ends a park: one connection may be tried; a rest that was asked for stays, and a probe that fails parks for longer."""
    parked = Window(20).refused(0, 0, 0.5).refused(0, 20, 0.5)
    assert (parked.closed_seconds(21), parked.allowed(21)) == (29, 0)
    probing = parked.probed_at_once(21)
    assert (probing.closed_seconds(21), probing.allowed(21)) == (0, 1)
    assert probing.refused(0, 22, 0.5).closed_seconds(22) == 60
    assert Window(20).slowed(8, 0, 0.5).probed_at_once(1).closed_seconds(1) == 4
