"""The model of one partition: its own invariants, since everything else is measured by it. What it does is held to in
tests/contract; here are the corners that two stores could get wrong alike."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail.address import Address
from relaycluster.mail.envelope import Envelope, MessageClass
from relaycluster.mail.item import Claim, Item
from relaycluster.policy.cluster import Member, Ownership, Snapshot
from relaycluster.policy.lifecycle import Partition


def an_item(name: str, **changes: Any) -> Item:
    envelope = Envelope(Address("s@x.example", "x.example"), (Address("r@d.example", "d.example"),))
    return evolve(Item(name, "d.example", envelope, 1, 0), **changes)


def view(*alive: int) -> Snapshot:
    return Snapshot(1, 100, tuple(Member(n, f"n{n}", "k", ("delivery",)) for n in alive))


def owned(incarnation: int = 1) -> tuple[Partition, Ownership]:
    partition = Partition(0)
    return partition, Ownership(0, incarnation, partition.acquire(incarnation, view(incarnation)))


@given(st.lists(st.sampled_from((1, 2, 3)), max_size=20), st.lists(st.booleans(), min_size=20, max_size=20))
def test_fences_only_rise(takers: list[int], releases: list[bool]) -> None:
    """Each change of owner has a higher fence; the same owner keeps its own; an older tenure is good for nothing."""
    partition = Partition(0)
    tenures: list[Ownership] = []
    for taker, release in zip(takers, releases, strict=False):
        before = partition.owner
        fence = partition.acquire(taker, view(1, 2, 3))
        assert bool(fence) == (before in (0, taker))
        if fence:
            tenure = Ownership(0, taker, fence)
            if tenure not in tenures:
                assert all(other.fence < fence for other in tenures)
                tenures.append(tenure)
            assert [other for other in tenures if partition.owned_by(other)] == [tenure]
            if release:
                partition.release(tenure)
                assert not any(partition.owned_by(other) for other in tenures)


@given(st.lists(st.tuples(st.sampled_from(MessageClass), st.integers(0, 5)), max_size=12), st.integers(1, 5))
def test_claims_in_order(kinds: list[tuple[MessageClass, int]], limit: int) -> None:
    """Urgent first, then due first; never more than asked for; never before its time; tokens differ."""
    partition, _ = owned()
    for number, (kind, due) in enumerate(kinds):
        partition.enqueue(an_item(f"i{number:02}", message_class=kind), b"", None, due)
    claims = partition.claim("d.example", limit, 1, 3)
    ready = sorted((kind.value, due, f"i{number:02}") for number, (kind, due) in enumerate(kinds) if due <= 3)
    assert [claim.item.id for claim in claims] == [name for _, _, name in ready[:limit]]
    assert len({claim.token for claim in claims}) == len(claims)
    assert partition.violations() == []


def test_only_one_token_is_good() -> None:
    """Of all claims that an item ever had, the last one settles it; the others change nothing but facts."""
    partition, _ = owned()
    partition.enqueue(an_item("a"), b"x", None, 0)
    claims: list[Claim] = []
    for life in range(1, 5):
        partition.acquire(life, view(life))
        partition.recover(view(life), 10, 0)
        claims += partition.claim("d.example", 1, 1, 0)
    assert [partition.holds(claim) for claim in claims] == [False, False, False, True]
    for stale in claims[:-1]:
        assert (partition.put_back(stale), partition.defer(stale, stale.item, 5)) == ("stale", "stale")
        assert partition.finish(stale, delivered=False) == "stale"
    assert claims[-1].item.holder_deaths == 3
    for _ in range(2):
        assert partition.finish(claims[-1], delivered=False) == "done"
        assert [partition.finish(stale, delivered=False) for stale in claims[:-1]] == ["stale"] * 3
        assert [partition.finish(stale, delivered=True) for stale in claims] == ["done"] * 4
    assert (partition.items, partition.bodies, partition.violations()) == ({}, {}, [])


def test_violations_are_seen() -> None:
    """The check itself: each kind of broken state is named."""
    partition, _ = owned()
    partition.enqueue(an_item("a"), b"x", None, 0)
    partition.held["a"] = 0
    assert partition.violations() == ["an item is in two places"]
    del partition.held["a"], partition.waiting["a"]
    assert partition.violations() == ["an item is nowhere"]
    partition.waiting["a"] = 0
    partition.done.add("a")
    assert partition.violations() == ["a settled item still exists"]
    partition.done.clear()
    partition.bodies.clear()
    assert partition.violations() == ["an item has no content"]
