"""Connection limits of the cluster: what each node holds is a lease tied to its heartbeat, never a counter that goes up and down.

A counter drifts with every crash between "up" and "down". Here a node states how many it holds, in absolute numbers, and
a dead incarnation's share is free at once. Pure oracle of `IThrottle.hold`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attrs import frozen


@frozen
class Held:
    """`granted` is what the asking incarnation now holds; `holders` the state to store: the living, none with 0."""

    granted: int
    holders: Mapping[int, int]


def take_slots(
    holders: Mapping[int, int], is_dead: Callable[[int], bool], incarnation: int, wanted: int, maximum: int
) -> Held:
    """The incarnation wants to hold `wanted` connections in all (not: that many more).

    It gets as many of them as the other living ones leave of `maximum`. Lowering always succeeds. A node that holds more than
    would be given today, since `maximum` was lowered, keeps what it has: connections are closed by their owner, not by arithmetic;
    but it gets no new ones.
    """
    if wanted < 0 or maximum < 0:
        raise ValueError(f"cannot hold {wanted} of {maximum} connections")
    living = {holder: count for holder, count in holders.items() if count > 0 and not is_dead(holder)}
    own = living.pop(incarnation, 0)
    granted = min(wanted, max(own, maximum - sum(living.values())))
    if granted:
        living[incarnation] = granted
    return Held(granted, living)


def fair_share(holders: Iterable[int], wishing: Iterable[int], incarnation: int, maximum: int) -> int:
    """How many connections `incarnation` should keep: all of `maximum` while no other living one wishes for more; else its equal part
    among all who hold or wish for some, rounded down: whoever wishes takes what the others leave, so that all are used. With
    fewer connections than parties that is none: they take turns."""
    others = set(wishing) - {incarnation}
    if not others:
        return maximum
    return maximum // len({incarnation, *others, *holders})
