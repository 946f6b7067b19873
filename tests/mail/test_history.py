"""Records of the history: what is packed is what is read, by whom it belongs to, whatever stands beside it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail import history, queue_id
from relaycluster.mail.history import Act, Attempt, Record, Spread, Via

TEXT = st.text(max_size=40)
TIMES = st.integers(0, 2**44)
IDS = st.builds(queue_id.make, st.just(1_700_000_000_000), st.integers(0, 1023), st.integers(0, 2**65 - 1))
ATTEMPTS = st.builds(
    Attempt,
    TIMES,
    st.builds(Via, TEXT, TEXT, TEXT, TEXT),
    TEXT,
    st.sampled_from(("delivered", "deferred", "failed")),
    TEXT,
    st.integers(0, 10**6).map(lambda ms: ms / 1000),
    st.lists(TEXT, max_size=3).map(tuple),
)
ACTS = st.builds(Act, TIMES, TEXT, TEXT, TEXT, TEXT)
SPREADS = st.builds(
    Spread, TIMES, st.lists(st.tuples(st.integers(1, 99), st.integers(0, 1023), TEXT), max_size=3).map(tuple)
)


def packed(identifier: str, record: Record) -> bytes:
    if isinstance(record, Attempt):
        return history.pack_attempt(identifier, record)
    return history.pack_act(identifier, record) if isinstance(record, Act) else history.pack_spread(identifier, record)


@given(st.lists(st.tuples(IDS, st.one_of(ATTEMPTS, ACTS, SPREADS)), max_size=6), st.integers(0, 5))
def test_everybody_finds_their_own(entries: list[tuple[str, Record]], which: int) -> None:
    """Records of many items stand behind each other; each is found whole, in its order, under its item alone."""
    data = b"".join(packed(identifier, record) for identifier, record in entries)
    for identifier, _ in entries[which : which + 1]:
        wanted = [record for other, record in entries if history.mark(other) == history.mark(identifier)]
        found = list(history.of(identifier, data))
        assert [record for _, record in found] == wanted
        assert {name for name, _ in found} == {identifier}


def test_a_message_and_its_items() -> None:
    """The message's id finds its items' records, each under the item's own id; an item's id finds neither the message's nor -10's."""
    message = queue_id.make(1, 2, 3)
    ids = [message, f"{message}-1", f"{message}-10"]
    data = b"".join(history.pack_act(each, Act(1, "hold", each, "w")) for each in ids)
    assert [name for name, _ in history.of(message, data)] == ids
    assert [name for name, _ in history.of(ids[1], data)] == [ids[1]]


@given(st.lists(ATTEMPTS, min_size=1, max_size=3), st.binary(min_size=1, max_size=30), st.integers(0, 200))
def test_damage_costs_what_is_behind_it(attempts: list[Attempt], damage: bytes, cut: int) -> None:
    """What stands in Redis never raises: what is before the damage is shown."""
    identifier = queue_id.make(1, 2, 3)
    data = history.pack_attempts(identifier, attempts)
    found = [record for _, record in history.unpack(data + damage)]
    assert found[: len(attempts)] == attempts
    list(history.unpack(data[: cut % (len(data) + 1)]))
    list(history.unpack(damage))


def test_bounded() -> None:
    """However much a host says, a record stays small; halves of characters do no harm."""
    identifier = queue_id.make(1, 2, 3)
    long = Attempt(1, Via(), "rcpt", "deferred", "\udcff" + "x" * 100_000)
    data = history.pack_attempt(identifier, long)
    assert len(data) < 2 * history.LONGEST_REPLY
    ((_, record),) = history.unpack(data)
    assert isinstance(record, Attempt)
    assert record.reply == "\udcff" + "x" * (history.LONGEST_REPLY - 1)
