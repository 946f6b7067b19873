"""Rates: what is read is what is written again, exactly; anything else is refused with the fix."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.policy.rate import LONGEST_PERIOD_SECONDS, MOST_PER_SECOND, Rate

rates = st.builds(
    Rate.of,
    st.integers(1, MOST_PER_SECOND),
    st.integers(1, LONGEST_PERIOD_SECONDS),
    st.integers(1, 10**9),
)


@given(rates)
def test_round_trip(rate: Rate) -> None:
    """Any rate that is written down is read back as the same value."""
    assert Rate.parse(str(rate)) == rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100/s", Rate(100, 1)),
        ("20/min", Rate(20, 60)),
        ("3000/h", Rate(3000, 3600)),
        ("1/d", Rate(1, 86400)),
        ("10/5min", Rate(10, 300)),
        ("100/s,burst=200", Rate(100, 1, 200)),
        (" 100 / s , burst = 200 ", Rate(100, 1, 200)),
    ],
)
def test_forms(text: str, rate: Rate) -> None:
    """The forms that the documentation names."""
    assert Rate.parse(text) == rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100/h", Rate(100, 3600, 100)),
        ("1/s", Rate(1, 1, 1)),
        ("100/h,burst=5", Rate(100, 3600, 5)),
        ("100/h,burst=1", Rate(100, 3600, 1)),
    ],
)
def test_an_allowance_may_be_used_at_once(text: str, rate: Rate) -> None:
    """A hundred an hour is what a person may send, in one go too, unless a burst says otherwise."""
    assert Rate.parse_allowance(text) == rate


@given(rates)
def test_the_interval_never_exceeds_the_limit(rate: Rate) -> None:
    """Slots that are `interval_ns` apart are never more than the rate, and less by under a nanosecond a slot."""
    exact = Fraction(10**9) / rate.per_second
    assert exact <= rate.interval_ns < exact + 1


@pytest.mark.parametrize(
    "text",
    ["", "fast", "100", "/s", "0/s", "-1/s", "1.5/s", "100/m", "100/0s", "1/31d", "9999999/s", "100/s,burst=0",
     "100/s,", "100/s,burst=", "100/s,rate=3", "100/s/s", "١/s", "1" * 30 + "/s", "1/" + "9" * 30 + "s"],
)  # fmt: skip
def test_refused(text: str) -> None:
    """What is not a rate is refused in one line that says what to write instead."""
    with pytest.raises(ValueError, match=r"^[^\n]+; [^\n]+$"):
        Rate.parse(text)
