"""Urgent before normal before bulk, and nobody starves: of ten items one is bulk's first, two are normal's.

The share counts over all claims of a domain, however small each is, so a claim says how many of its items a class
is asked for first. What a class does not use goes to the most urgent.
"""

from __future__ import annotations

ROUND = 10
BULK_TURNS = frozenset({9})
NORMAL_TURNS = frozenset({4, 7})


def shares(turn: int, limit: int) -> tuple[int, int]:
    """Of a claim's `limit` items, how many are asked of normal first, and how many of bulk first. `turn` is how many items the domain
    had claimed before."""
    rounds, rest = divmod(limit, ROUND)
    normal, bulk = _SHARES[turn % ROUND][rest]
    return normal + rounds * len(NORMAL_TURNS), bulk + rounds * len(BULK_TURNS)


def _count(turns: frozenset[int], start: int, length: int) -> int:
    return sum(each % ROUND in turns for each in range(start, start + length))


_SHARES = tuple(
    tuple((_count(NORMAL_TURNS, start, length), _count(BULK_TURNS, start, length)) for length in range(ROUND))
    for start in range(ROUND)
)
