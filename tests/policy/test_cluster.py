"""Who is dead: decidable from any later snapshot, and never claimed by an older one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relaycluster.policy.cluster import Member, Ownership, Snapshot


def snapshot(alive: set[int], following: int) -> Snapshot:
    return Snapshot(1, following, tuple(Member(n, f"n{n}", "k", ("delivery",)) for n in sorted(alive)))


@given(st.lists(st.booleans(), max_size=12), st.lists(st.integers(0, 11), max_size=6))
def test_death_is_final_and_never_guessed(births: list[bool], cuts: list[int]) -> None:
    """Over a history of births and deaths: who lives is dead in no snapshot up to now; who is dead in one is dead in all later."""
    alive: set[int] = set()
    following = 1
    seen: list[Snapshot] = [snapshot(alive, following)]
    for born in births:
        if born or not alive:
            alive.add(following)
            following += 1
        else:
            alive.discard(min(alive))
        seen.append(snapshot(alive, following))
    for each in range(1, following + 3):
        verdicts = [view.is_dead(each) for view in seen]
        assert verdicts == sorted(verdicts)
        assert verdicts[-1] == (each < following and each not in alive)


def test_ownership_is_its_record() -> None:
    """The text that the scripts compare names the incarnation and the fence, and nothing else decides equality."""
    assert Ownership(3, 7, 2).text == b"7:2"
    assert Ownership(3, 7, 2) == Ownership(3, 7, 2) != Ownership(3, 7, 3)
