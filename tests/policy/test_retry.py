"""The retry schedule and the expiry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail.address import NULL, Address
from relaycluster.policy.retry import (
    SPREAD,
    Expired,
    RetryAfter,
    after_deferral,
    delay_notice_due,
    expires,
    next_due_seconds,
    owes_notice,
)

SCHEDULE = (60.0, 300.0, 900.0)
jitters = st.floats(0, 1, exclude_max=True)


def test_schedule_in_order_then_the_last_repeats() -> None:
    """With jitter in the middle the delays are those configured; from then on the last one."""
    assert [next_due_seconds(SCHEDULE, attempts, 0.5) for attempts in (1, 2, 3, 4, 99)] == [60, 300, 900, 900, 900]


@given(st.integers(1, 50), jitters)
def test_jitter_stays_within_its_share(attempts: int, jitter: float) -> None:
    """No jitter moves a delay by more than SPREAD either way; 0 is the earliest place, 0.5 the middle."""
    middle = next_due_seconds(SCHEDULE, attempts, 0.5)
    assert middle * (1 - SPREAD) <= next_due_seconds(SCHEDULE, attempts, jitter) <= middle * (1 + SPREAD)
    assert next_due_seconds(SCHEDULE, attempts, 0.0) == pytest.approx(middle * (1 - SPREAD))


@given(jitters, st.floats(60, 10 * 86_400), st.lists(st.floats(0, 120), min_size=1))
def test_life_of_an_item(jitter: float, lifetime: float, lateness: list[float]) -> None:
    """An item that is always deferred has its last attempt at its expiry, or as late as it was picked up, and then expires."""
    arrived = 1_000.0
    end = expires(arrived, lifetime)
    now, attempts = arrived, 0
    while True:
        attempts += 1
        following = after_deferral(SCHEDULE, attempts, jitter, now, end)
        if isinstance(following, Expired):
            break
        assert isinstance(following, RetryAfter)
        assert 0 < following.delay_seconds <= end - now
        now = min(now + following.delay_seconds, end) + lateness[attempts % len(lateness)]
    assert end <= now <= end + 120


def test_no_delay_without_an_attempt_or_a_schedule() -> None:
    """Asking for the delay after no attempt is the caller's mistake."""
    for schedule, attempts in ((SCHEDULE, 0), ((), 1)):
        with pytest.raises(ValueError, match="no delay"):
            next_due_seconds(schedule, attempts, 0.5)


def test_notices() -> None:
    """Notices go to senders, never to the null reverse-path; a delay is told once, and only when that is configured."""
    assert owes_notice(Address("a@example.com", "example.com"))
    assert not owes_notice(NULL)
    assert delay_notice_due(0, 100, 100, already_sent=False)
    assert not delay_notice_due(0, 99, 100, already_sent=False)
    assert not delay_notice_due(0, 100, 100, already_sent=True)
    assert not delay_notice_due(0, 10**9, 0, already_sent=False)
