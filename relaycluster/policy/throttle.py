"""A rate limit that never bursts: GCRA over integers (ITU-T I.371, Annex A), as the oracle of the stores' throttles.

One number is all the state: the theoretical arrival time (TAT), when the next slot would be due if nobody ever sent early. A
caller does not learn "yes" or "no" but gets slots: absolute times, each good for one SMTP transaction, at most a tenth of a
second ahead. docs/design/throttle.md has the reasons and the bounds.

Times are microseconds, as Redis `TIME` has them; the interval and the state are nanoseconds, so that 700/s is not 699.8/s.
"""

from __future__ import annotations

from attrs import frozen

HORIZON_US = 100_000
"""How far ahead slots are given out. A holder that dies costs the limit no more than these."""


@frozen
class Grant:
    """`slots_us` are the times, rising, at which one transaction each may start. `tat_ns` is the state to store, *also when there
    is no slot* (it may have been brought back into bounds). `retry_after_us` is how long asking again is useless: 0 when
    more could be had at once."""

    tat_ns: int
    slots_us: tuple[int, ...]
    retry_after_us: int


def take(tat_ns: int, now_us: int, interval_ns: int, burst: int, wanted: int, horizon_us: int = HORIZON_US) -> Grant:
    """Take up to `wanted` slots of one limit, of which `burst` may be "now" after idleness.

    `tat_ns` is the state as the last grant left it, 0 when there is none; `now_us` the one clock that all callers share;
    `interval_ns` the period divided by the count, rounded *up* (`Rate.interval_ns`), so that the limit holds exactly. Slots are
    those that fall into [now, now + horizon]; at a low rate that is one or none.
    """
    if interval_ns < 1 or burst < 1 or wanted < 0 or horizon_us < 0:
        raise ValueError(f"cannot take {wanted} slots each {interval_ns} ns, burst {burst}, horizon {horizon_us} µs")
    now = now_us * 1000
    last = now + horizon_us * 1000
    tolerance = (burst - 1) * interval_ns
    # No grant leaves a TAT beyond this. One that is beyond was made by a clock that has since gone back, or under another rate:
    # bring it in, or the limit would stand still for as long as the clock jumped.
    tat = min(tat_ns, last + burst * interval_ns)
    slots: list[int] = []
    due = max(now, tat - tolerance)
    while due <= last and len(slots) < wanted:
        slots.append(-(-due // 1000))
        tat = max(tat, due) + interval_ns
        due = max(now, tat - tolerance)
    if due <= last:
        return Grant(tat, tuple(slots), 0)
    # Asking again at half the horizon before the next slot: no slot is late by a round trip, and nobody asks for each one singly.
    return Grant(tat, tuple(slots), -(-due // 1000) - now_us - horizon_us // 2)


def spend(tat_ns: int, now_us: int, interval_ns: int, burst: int, wanted: int) -> tuple[int, int]:
    """Take `wanted` units now, all or none: the state to store, and 0 when they were taken, else for how many microseconds asking
    again is useless. It is `take` without a horizon, for what can not wait for its slot: a client's message is accepted now or not.

    More than `burst` can never be had at once: then the whole burst is taken for it.
    """
    if interval_ns < 1 or burst < 1 or wanted < 0:
        raise ValueError(f"cannot spend {wanted} units each {interval_ns} ns, burst {burst}")
    now, full = now_us * 1000, burst * interval_ns
    # As in `take`: what lies beyond any grant comes from another clock or another rate.
    tat = min(tat_ns, now + full)
    spent = max(tat, now) + min(wanted, burst) * interval_ns
    if spent - now <= full:
        return spent, 0
    return tat, -(-(spent - now - full) // 1000)
