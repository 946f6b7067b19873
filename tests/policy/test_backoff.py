"""Back-off after failed logins: what a guesser gets, what an owner keeps, whatever the clock does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.policy.backoff import (
    PROVED_MS,
    STEPS,
    Record,
    Steps,
    proved,
    steps_of,
    subjects,
    wait_ms,
)
from relaycluster.policy.client import client_of

NOW = 1_800_000_000_000
DAY_MS = 86_400_000

any_steps = st.one_of(
    st.sampled_from(list(STEPS.values())),
    st.builds(Steps, st.integers(0, 9), st.integers(1, 10_000), st.integers(10_000, 10_000_000), st.integers(1, 10**7)),
)
pauses = st.lists(st.sampled_from([0, 1, 999, 10_000, 60_000, 900_000, 3_600_000, DAY_MS]), max_size=40)


def guesses(steps: Steps, until_ms: int) -> Iterator[int]:
    """When somebody who guesses as often as it is looked at is looked at, from 0."""
    record, now_ms = Record(), 0
    while now_ms < until_ms:
        yield now_ms
        record = record.failed(NOW + now_ms, steps)
        now_ms += max(1, record.wait_ms(NOW + now_ms, steps))


@given(any_steps, pauses)
def test_failures_shut_for_longer_and_longer(steps: Steps, waits: list[int]) -> None:
    """While nothing is forgotten: none of the free failures shuts, and from then on each shuts at least as long as the one before, up to
    the most and never more."""
    record, before = Record(), 0
    for number in range(1, len(waits) + 2):
        record = record.failed(NOW, steps)
        wait = record.wait_ms(NOW, steps)
        assert (wait == 0) == (number <= steps.free)
        assert before <= wait <= steps.most_ms
        before = wait
    assert record.failures(NOW, steps) == min(len(waits) + 1, steps.most_failures)


@given(any_steps, pauses)
def test_it_ends(steps: Steps, waits: list[int]) -> None:
    """Whatever went before, after the longest wait an attempt is looked at, and after all failures are forgotten the first ones are free
    again; where the record says nothing any more, it may be thrown away."""
    record, now = Record(), NOW
    for pause in waits:
        now += pause
        record = record.failed(now, steps)
    assert record.wait_ms(now + steps.most_ms, steps) == 0
    clean = now + steps.most_failures * steps.forgive_ms
    assert record.failures(clean, steps) == 0
    over = now + record.keep_ms(now)
    assert record.failures(over, steps) == record.wait_ms(over, steps) == 0


@given(any_steps, pauses, st.integers(1, 40 * 365 * DAY_MS))
def test_a_clock_that_goes_back_shuts_nobody_for_longer(steps: Steps, waits: list[int], jump: int) -> None:
    """After a jump back nobody waits longer than the longest wait, and the next failure brings everything back into bounds."""
    record, now = Record(), NOW
    for pause in waits:
        now += pause
        record = record.failed(now, steps)
    now -= jump
    assert 0 <= record.wait_ms(now, steps) <= steps.most_ms
    record = record.failed(now, steps)
    assert record.wait_ms(now, steps) <= steps.most_ms
    assert record.drained_ms <= now + steps.most_failures * steps.forgive_ms


@given(any_steps, pauses, st.integers(0, 10**8))
def test_another_failure_never_opens(steps: Steps, waits: list[int], later: int) -> None:
    """A failure never shortens a wait: an attempt that was on its way when it was shut changes nothing for the better."""
    record, now = Record(), NOW
    for pause in waits:
        record, now = record.failed(now, steps), now + pause
    now += later
    assert record.failed(now, steps).wait_ms(now, steps) >= record.wait_ms(now, steps)


@pytest.mark.parametrize(
    ("kind", "in_the_first_day", "a_day_later"), [("pair", 110, 96), ("address", 325, 289), ("user", 1500, 1440)]
)
def test_how_many_guesses(kind: str, in_the_first_day: int, a_day_later: int) -> None:
    """What docs/operate/users.md promises: so many guesses at most in the first day and in the following ones."""
    times = list(guesses(STEPS[kind], 2 * DAY_MS))
    assert sum(time < DAY_MS for time in times) <= in_the_first_day
    assert sum(time >= DAY_MS for time in times) <= a_day_later


def test_one_stranger_does_not_shut_the_user() -> None:
    """Somebody who guesses at one user from one address for a month never shuts the user for others, and neither the address."""
    pair, user, address = Record(), Record(), Record()
    for at in guesses(STEPS["pair"], 30 * DAY_MS):
        now = NOW + at
        pair, user, address = (
            record.failed(now, STEPS[kind]) for record, kind in ((pair, "pair"), (user, "user"), (address, "address"))
        )
        assert pair.failures(now, STEPS["pair"]) > 0
        assert user.wait_ms(now, STEPS["user"]) == address.wait_ms(now, STEPS["address"]) == 0


def test_who_is_known_gets_in_whatever_strangers_do() -> None:
    """The user and the address are shut by others: the pair that proved itself within the month passes, one that did not waits; its own
    failures still count."""
    pair, user, address = subjects("alice", "192.0.2.1")
    shut = Record(shut_ms=NOW + 5_000)
    assert wait_ms([(pair, Record()), (user, shut), (address, Record())], NOW) == 5_000
    assert wait_ms([(pair, proved(NOW - PROVED_MS + 1)), (user, shut), (address, shut)], NOW) == 0
    assert wait_ms([(pair, proved(NOW - PROVED_MS)), (user, shut), (address, shut)], NOW) == 5_000
    guessed = proved(NOW)
    for _ in range(STEPS["pair"].free + 1):
        guessed = guessed.failed(NOW, STEPS["pair"])
    assert guessed.is_proved(NOW)
    assert wait_ms([(pair, guessed), (user, shut), (address, shut)], NOW) == STEPS["pair"].first_ms
    assert guessed.keep_ms(NOW) > PROVED_MS


def test_the_longest_wait_counts() -> None:
    """Of several that are shut, the last to open decides."""
    names = subjects("alice", "192.0.2.1")
    for waits in ((9, 8, 7), (7, 9, 8), (8, 7, 9)):
        found = [(name, Record(shut_ms=NOW + wait)) for name, wait in zip(names, waits, strict=True)]
        assert wait_ms(found, NOW) == 9


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("/run/relay.sock", "/run/relay.sock"),
    ],
)
def test_who_is_one_client(address: str, client: str) -> None:
    """An IPv4 address in either notation, an IPv6 network of 64 bits, or what else it is."""
    assert client_of(address) == client
    assert subjects("alice", address)[2] == f"address {client}"


@given(st.text(), st.text())
def test_every_subject_has_its_steps(user: str, other: str) -> None:
    """Names may hold anything: each subject finds the steps of its kind, and two names never share one."""
    made = subjects(user, "192.0.2.1")
    assert [steps_of(subject) for subject in made] == [STEPS["pair"], STEPS["user"], STEPS["address"]]
    if user != other:
        assert set(made) & set(subjects(other, "192.0.2.1")) == {made[2]}
