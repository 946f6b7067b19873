"""Items, claims and notices are values: equal when they say the same, and nobody changes one."""

from __future__ import annotations

import pytest
from attrs import evolve
from attrs.exceptions import FrozenInstanceError

from relaycluster.mail.address import NULL, Address
from relaycluster.mail.envelope import Envelope, MessageClass
from relaycluster.mail.item import Claim, Item

ITEM = Item("id", "example.com", Envelope(NULL, (Address("a@example.com", "example.com"),)), 10, 1)


def test_defaults_are_those_of_a_fresh_message() -> None:
    """Never tried, not held, its content its own."""
    assert (ITEM.attempts, ITEM.holder_deaths, ITEM.possible_duplicate, ITEM.delay_notified) == (0, 0, False, False)
    assert (ITEM.home, ITEM.chunks, ITEM.message_class) == (-1, 0, MessageClass.NORMAL)


def test_values() -> None:
    """A changed item is another one; the first stays as it was."""
    other = evolve(ITEM, attempts=1)
    assert (other != ITEM, ITEM.attempts, evolve(other, attempts=0) == ITEM) == (True, 0, True)
    with pytest.raises(FrozenInstanceError):
        ITEM.attempts = 2  # type: ignore[misc]
    assert len({Claim(ITEM, 0, b"1:1:1:1"), Claim(ITEM, 0, b"1:1:1:1"), Claim(ITEM, 0, b"1:1:2:1")}) == 2


def test_urgent_comes_first() -> None:
    """The class' value orders the queue's indexes."""
    assert sorted(MessageClass, key=lambda each: each.value) == [
        MessageClass.URGENT,
        MessageClass.NORMAL,
        MessageClass.BULK,
    ]


def test_null_is_null() -> None:
    """Only the empty text is the null reverse-path."""
    assert NULL.is_null
    assert not Address("postmaster", "").is_null
