"""When a deferred item is tried again, and when its time is over (RFC 5321 4.5.4.1)."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from relaycluster.mail.address import Address

SPREAD = 0.1
"""Jitter moves a delay by at most this share, either way: items that failed together do not come back together."""


@frozen
class RetryAfter:
    """Try again after `delay_seconds`, which ends at the expiry at the latest."""

    delay_seconds: float


@frozen
class Expired:
    """That was the last attempt: the deferral is a failure now, with 5.4.7, and the sender gets a notice if there is one."""


AfterDeferral = RetryAfter | Expired


def next_due_seconds(schedule: Sequence[float], attempts: int, jitter: float) -> float:
    """Seconds until the next attempt.

    `schedule` lists the delays after the first, second, … attempt, then the last one repeats; `attempts` is how many have
    been made, at least 1; `jitter` in [0, 1) picks the place between 90 % and 110 % of the delay.
    """
    if attempts < 1 or not schedule:
        raise ValueError(f"no delay after {attempts} attempts in a schedule of {len(schedule)}")
    delay = schedule[min(attempts, len(schedule)) - 1]
    return delay * (1 + SPREAD * (2 * jitter - 1))


def expires(arrived: float, lifetime_seconds: float) -> float:
    """The instant, in the unit and epoch of `arrived` (seconds), after which an item is not tried again."""
    return arrived + lifetime_seconds


def after_deferral(
    schedule: Sequence[float], attempts: int, jitter: float, now: float, expires_at: float
) -> AfterDeferral:
    """What follows the `attempts`th attempt, which ended at `now` in a deferral.

    The last attempt happens at the expiry itself, not somewhere before it: a server that comes back in the last hours
    of the lifetime still gets its mail.
    """
    if now >= expires_at:
        return Expired()
    return RetryAfter(min(next_due_seconds(schedule, attempts, jitter), expires_at - now))


def owes_notice(reverse_path: Address) -> bool:
    """Whether a failure or a delay is told to the sender. Never to the null reverse-path (RFC 5321 6.1): such an item expires
    and fails like any other, and leaves an event instead of a notice."""
    return not reverse_path.is_null


def delay_notice_due(arrived: float, now: float, delay_notice_seconds: float, already_sent: bool) -> bool:
    """Whether the sender of a deferred item should hear now that it is delayed; 0 turns these notices off."""
    return delay_notice_seconds > 0 and not already_sent and now - arrived >= delay_notice_seconds
