"""The queue id: sorts by time, names its home, and has one form only."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail import queue_id

TIME = st.integers(0, 32**10 - 1)
PARTITION = st.integers(0, queue_id.MOST_PARTITIONS - 1)
ENTROPY = st.integers(0, 2**65 - 1)


@given(TIME, PARTITION, st.integers(0, 2**80))
def test_what_goes_in_comes_out(time_ms: int, partition: int, entropy: int) -> None:
    """Time and home partition can be read from the id, whatever the randomness."""
    made = queue_id.make(time_ms, partition, entropy)
    assert len(made) == queue_id.LENGTH
    assert set(made) <= set(queue_id.ALPHABET)
    assert (queue_id.time_ms(made), queue_id.partition(made)) == (time_ms, partition)
    assert queue_id.is_valid(made)


@given(st.lists(st.tuples(TIME, PARTITION, ENTROPY), min_size=2, max_size=5))
def test_ids_sort_by_time(values: list[tuple[int, int, int]]) -> None:
    """As text, as the numbers would."""
    assert sorted(queue_id.make(*value) for value in values) == [queue_id.make(*value) for value in sorted(values)]


@given(TIME, PARTITION, ENTROPY, ENTROPY)
def test_randomness_is_kept(time_ms: int, partition: int, one: int, other: int) -> None:
    """All 65 bits of it."""
    ids = queue_id.make(time_ms, partition, one), queue_id.make(time_ms, partition, other)
    assert (ids[0] == ids[1]) == (one == other)


@given(TIME, PARTITION, ENTROPY, st.integers(1, 10_000))
def test_items(time_ms: int, partition: int, entropy: int, number: int) -> None:
    """An item's id leads back to its message's, and tells the same time and home."""
    message = queue_id.make(time_ms, partition, entropy)
    item = queue_id.item_id(message, number)
    assert queue_id.is_valid(item)
    assert (queue_id.message_id(item), queue_id.time_ms(item), queue_id.partition(item)) == (
        message,
        time_ms,
        partition,
    )


def test_what_is_no_id() -> None:
    """Other lengths, other letters, lower case, and numbers that are none."""
    good = queue_id.make(1_700_000_000_000, 5, 1)
    for bad in (
        "",
        good[:-1],
        good + "0",
        good.lower(),
        good[:-1] + "I",
        good + "-",
        good + "-x",
        good + "-1-2",
        good + "-²",
        " " + good,
    ):
        assert not queue_id.is_valid(bad), bad
