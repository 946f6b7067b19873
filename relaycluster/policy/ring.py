"""The ring: which delivery node owns which partition, computed alike by every node from the set of members alone.

Consistent hashing with virtual nodes (Karger et al. 1997) and a bounded load (Mirrokni et al. 2016), with one turn of its
own: a full member keeps the partitions that lie *nearest* before its virtual nodes, and a partition that it lets go walks on.
That is a stable matching, which does not depend on the order of evaluation, and so a change spreads less far than
"first come, first kept" would let it. docs/design/ring.md states how much moves.

No builtin `hash()`, no floats where nodes could disagree: the same answer on every machine and Python version.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from heapq import heappush, heappushpop
from itertools import pairwise

from attrs import field, frozen
from attrs.validators import instance_of

VIRTUAL_NODES = 128
"""Points on the ring for a member of weight 1."""

LOAD_PERCENT = 115
"""No member owns more than this share, in percent, of what its weight gives it, rounded up."""

HEAVIEST = 100.0
"""The largest weight: it bounds the ring's size."""

_CIRCLE = 1 << 64


@frozen
class Member:
    """A node that can own partitions. `key` stays over restarts (the node's id), so that a node that comes back gets the same
    partitions back. `weight` in 0 … 100 is its share relative to the others'; a member of weight 0 owns nothing."""

    key: str = field(validator=instance_of(str))
    weight: float = 1.0

    def __attrs_post_init__(self) -> None:
        if not self.key:
            raise ValueError("a member's key may not be empty: the empty text means that nobody owns the partition")
        if not (math.isfinite(self.weight) and 0 <= self.weight <= HEAVIEST):
            raise ValueError(f"the weight of {self.key!r} is {self.weight!r}, not a number from 0 to {HEAVIEST:g}")


@lru_cache(maxsize=65536)
def partition_of(domain: str, partitions: int) -> int:
    """The partition, from 0, that a recipient domain belongs to; upper and lower case are the same domain."""
    digest = blake2b(domain.lower().encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % partitions


def assign(members: Sequence[Member], partitions: int) -> tuple[str, ...]:
    """The owner's key of each partition, all empty texts when there is no member (or none that has weight).

    Depends on the set of members only, not on their order. `ValueError` when one key comes with two weights.
    """
    return _assign(tuple(sorted(set(members), key=_by_key)), partitions)


def caps(members: Sequence[Member], partitions: int) -> dict[str, int]:
    """How many partitions each member may own at most, by key: ceil(1.15 × its weighted share)."""
    weights = {member.key: _thousandths(member.weight) for member in members}
    total = sum(weights.values())
    if not total:
        return dict.fromkeys(weights, 0)
    return {key: -(-LOAD_PERCENT * partitions * weight // (100 * total)) for key, weight in weights.items()}


def _by_key(member: Member) -> tuple[str, float]:
    return member.key, member.weight


def _thousandths(weight: float) -> int:
    """The weight as an integer, so that caps are exact and alike everywhere; a small weight is not none."""
    return max(1, round(weight * 1000)) if weight else 0


@lru_cache(maxsize=512)
def _points(key: str, number: int) -> tuple[int, ...]:
    """The member's first `number` places on the ring; a heavier member keeps the places of the lighter."""
    points: list[int] = []
    for block in range(-(-number // 8)):
        points += struct.unpack(">8Q", blake2b(f"{key}/{block}".encode("utf-8", "surrogatepass")).digest())
    return tuple(points[:number])


@lru_cache(maxsize=16)
def _assign(members: tuple[Member, ...], partitions: int) -> tuple[str, ...]:
    for left, right in pairwise(members):
        if left.key == right.key:
            raise ValueError(f"member {left.key!r} has two weights, {left.weight:g} and {right.weight:g}")
    ring = sorted(
        (point, member.key)
        for member in members
        if member.weight
        for point in _points(member.key, max(1, round(VIRTUAL_NODES * member.weight)))
    )
    if not ring:
        return ("",) * partitions
    points = [point for point, _ in ring]
    keys = [key for _, key in ring]
    size = len(ring)
    free = caps(members, partitions)
    # What each member holds, farthest first: (-distance, -partition, index into the ring).
    held: dict[str, list[tuple[int, int, int]]] = {member.key: [] for member in members}
    for start in range(partitions):
        # Partitions lie evenly on the circle: their domains are hashed already, and this halves the imbalance.
        partition, place = start, start * _CIRCLE // partitions
        index = bisect_left(points, place) % size
        while True:
            key = keys[index]
            bid = (-((points[index] - place) % _CIRCLE), -partition, index)
            if free[key]:
                free[key] -= 1
                heappush(held[key], bid)
                break
            _, loser, index = heappushpop(held[key], bid)
            # The farthest walks on. It ends: a member never takes back what it let go, and all caps together are enough.
            partition = -loser
            place = partition * _CIRCLE // partitions
            index = (index + 1) % size
            while keys[index] == key:
                index = (index + 1) % size
    owners = [""] * partitions
    for key, bids in held.items():
        for _, negative, _ in bids:
            owners[-negative] = key
    return tuple(owners)
