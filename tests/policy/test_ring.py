"""The ring."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaycluster.policy.ring import Member, assign, caps, partition_of

PARTITIONS = 1024


def nodes(count: int, family: str = "node") -> list[Member]:
    return [Member(f"{family}-{number}") for number in range(count)]


def moved(before: tuple[str, ...], after: tuple[str, ...]) -> int:
    return sum(old != new for old, new in zip(before, after, strict=True))


members_strategy = st.dictionaries(
    st.text("abcdefghij-0123456789", min_size=1, max_size=8),
    st.floats(min_value=0.1, max_value=10, allow_nan=False),
    min_size=1,
    max_size=20,
).map(lambda weights: [Member(key, weight) for key, weight in weights.items()])


@settings(max_examples=60, deadline=None)
@given(members_strategy, st.sampled_from([1, 7, 64, 256]), st.randoms(use_true_random=False))
def test_bounded_load_and_order(members: list[Member], partitions: int, random: object) -> None:
    """Every partition has a living owner, nobody owns more than its cap, and the members' order means nothing."""
    owners = assign(members, partitions)
    loads = Counter(owners)
    limits = caps(members, partitions)
    assert len(owners) == partitions
    assert sum(limits.values()) >= partitions
    assert set(loads) <= {member.key for member in members}
    assert all(load <= limits[key] for key, load in loads.items())
    shuffled = list(members)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign([*shuffled, shuffled[0]], partitions) == owners


def test_same_in_every_process_and_version() -> None:
    """The assignment is a fact that nodes of several versions share: these values may never change while a cluster is rolled over."""
    owners = assign([*nodes(4), Member("heavy", 2.5)], PARTITIONS)
    digest = blake2b("\n".join(owners).encode(), digest_size=8).hexdigest()
    assert digest == "b4ffb40613bdc0ad"
    assert [partition_of(domain, PARTITIONS) for domain in ("example.com", "example.org", "[192.0.2.1]")] == [
        614,
        437,
        311,
    ]
    program = (
        "from relaycluster.policy.ring import *; from hashlib import blake2b;"
        "o = assign([Member('heavy', 2.5), *(Member(f'node-{n}') for n in range(4))], 1024);"
        "print(blake2b('\\n'.join(o).encode(), digest_size=8).hexdigest())"
    )
    env = {"PYTHONHASHSEED": "12345"}
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True)
    assert other.stdout.strip() == digest


def test_no_members() -> None:
    """Nobody owns anything when there is nobody, or nobody with weight."""
    assert assign([], 3) == ("", "", "")
    assert assign([Member("a", 0)], 3) == ("", "", "")
    assert assign([Member("a", 0), Member("b", 1)], 3) == ("b", "b", "b")


def test_more_members_than_partitions() -> None:
    """With fewer partitions than nodes, no node owns more than two and none is lost."""
    owners = assign(nodes(10), 4)
    assert "" not in owners
    assert max(Counter(owners).values()) <= 2


def test_restarted_node_gets_its_partitions_back() -> None:
    """A node that leaves and returns under its id finds the assignment as it was."""
    everyone = nodes(6)
    before = assign(everyone, PARTITIONS)
    without = assign(everyone[:-1], PARTITIONS)
    assert everyone[-1].key not in without
    assert assign(everyone, PARTITIONS) == before


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 20])
def test_what_a_join_and_a_leave_move(count: int) -> None:
    """The promise of docs/design/ring.md: a join moves 1.35 × the ideal share at most and 1.1 × on average; the leave of the same
    node moves the same partitions back."""
    ratios = []
    for family in range(12):
        everyone = nodes(count + 1, f"family{family}")
        before, after = assign(everyone[:-1], PARTITIONS), assign(everyone, PARTITIONS)
        ratios.append(moved(before, after) / (PARTITIONS / (count + 1)))
    assert max(ratios) <= 1.35
    assert sum(ratios) / len(ratios) <= 1.1
    assert min(ratios) >= 0.7, "a new node must be given work"


def test_most_of_what_moves_goes_to_the_new_node() -> None:
    """Partitions that change hands between two old nodes are few: under 15 % of those that move."""
    everyone = nodes(11)
    before, after = assign(everyone[:-1], PARTITIONS), assign(everyone, PARTITIONS)
    new = everyone[-1].key
    aside = sum(old != now != new for old, now in zip(before, after, strict=True))
    assert aside <= 0.15 * moved(before, after)


def test_weights() -> None:
    """Twice the weight is about twice the partitions."""
    loads = Counter(assign([Member("small", 1), Member("large", 2), Member("other", 1)], PARTITIONS))
    assert 0.43 <= loads["large"] / PARTITIONS <= 0.575


def test_bad_members() -> None:
    """What cannot be a member says so at once."""
    for key, weight in (("", 1.0), ("a", -1.0), ("a", float("nan")), ("a", float("inf")), ("a", 101.0)):
        with pytest.raises(ValueError, match=r"member|weight"):
            Member(key, weight)
    with pytest.raises(ValueError, match="two weights"):
        assign([Member("a", 1), Member("a", 2)], 8)


@given(st.text(max_size=40), st.integers(1, 32768))
def test_partition_of(domain: str, partitions: int) -> None:
    """Every domain has a partition, also one that no DNS could hold, and ASCII case does not matter."""
    place = partition_of(domain, partitions)
    assert 0 <= place < partitions
    if domain.isascii():
        assert partition_of(domain.upper(), partitions) == partition_of(domain.lower(), partitions)


def test_domains_spread() -> None:
    """20,000 domains leave no partition of 64 with under two thirds or over four thirds of its share."""
    loads = Counter(partition_of(f"d{number}.example", 64) for number in range(20_000))
    share = 20_000 / 64
    assert min(loads.values()) > share * 2 / 3
    assert max(loads.values()) < share * 4 / 3


if __name__ == "__main__":  # the table of docs/design/ring.md
    for count in (1, 2, 3, 5, 10, 20, 50, 99):
        ratios, asides = [], []
        for family in range(40 if count < 50 else 12):
            everyone = nodes(count + 1, f"family{family}")
            before, after = assign(everyone[:-1], PARTITIONS), assign(everyone, PARTITIONS)
            changed = moved(before, after)
            aside = sum(old != now != everyone[-1].key for old, now in zip(before, after, strict=True))
            ratios.append(changed * (count + 1) / PARTITIONS)
            asides.append(aside / changed)
        mean, worst, share = sum(ratios) / len(ratios), max(ratios), sum(asides) / len(asides)
        print(f"| {count} → {count + 1} | {mean:.2f} | {worst:.2f} | {share:.1%} |")
