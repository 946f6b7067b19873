"""What an operator does to a partition, as a pure model: the oracle of `store/redis/lua/operator_*.lua`.

Each act is one transition of the lifecycle (docs/design/queue.md, "The operator"). Its result is "done", or why nothing happened.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from relaycluster.mail.history import Act, pack_act
from relaycluster.mail.item import Item
from relaycluster.policy.lifecycle import OPERATOR_WORK, Partition


def tell(place: Partition, act: Act, item_id: str = "") -> None:
    """The act is owed to the log, and joins the item's history."""
    place.acts.append(act)
    place.work[OPERATOR_WORK] = min(place.work.get(OPERATOR_WORK, act.at_ms), act.at_ms)
    if item_id:
        place.add_trace(item_id, pack_act(item_id, act))


def hold(place: Partition, act: Act, now_ms: int) -> str:
    """waiting or leased → held; out of a holder's hands it is marked as a possible duplicate."""
    item_id = act.subject
    match _state(place, item_id):
        case "held":
            return "done"
        case "leased":
            del place.leased[item_id]
            place.items[item_id] = evolve(place.items[item_id], possible_duplicate=True)
        case "waiting":
            place.unwait(item_id)
        case other:
            return other
    place.held[item_id] = now_ms
    tell(place, act, item_id)
    return "done"


def release(place: Partition, act: Act, now_ms: int) -> str:
    """held → waiting, due now; the deaths of its holders are forgotten."""
    item_id = act.subject
    match _state(place, item_id):
        case "waiting":
            return "done"
        case "held":
            del place.held[item_id]
        case other:
            return other
    place.items[item_id] = evolve(place.items[item_id], holder_deaths=0)
    place.waiting[item_id] = now_ms
    tell(place, act, item_id)
    return "done"


def requeue(place: Partition, act: Act, seen: Item, reset: bool, now_ms: int) -> str:
    """waiting → waiting, due now at the latest; with `reset` as if it had never been tried."""
    item_id = act.subject
    state = _state(place, item_id)
    if state != "waiting":
        return state
    if reset and place.items[item_id] != seen:
        return "changed"
    if reset:
        place.items[item_id] = evolve(seen, attempts=0)
    place.waiting[item_id] = min(place.waiting[item_id], now_ms)  # what is due keeps its place in line
    tell(place, act, item_id)
    return "done"


def bounce(place: Partition, act: Act, now_ms: int) -> str:
    """waiting or held → bouncing."""
    item_id = act.subject
    match _state(place, item_id):
        case "bouncing":
            return "done"
        case "held":
            del place.held[item_id]
        case "waiting":
            place.unwait(item_id)
        case other:
            return other
    place.reasons[item_id] = act.reason
    place.bouncing[item_id] = now_ms
    tell(place, act, item_id)
    return "done"


def delete(place: Partition, act: Act) -> str:
    """waiting, held or bouncing → settled."""
    item_id = act.subject
    if item_id in place.leased or item_id not in place.items:
        return "leased" if item_id in place.leased else "unknown"
    place.forget(item_id)
    place.done.add(item_id)
    tell(place, act, item_id)
    return "done"


def _state(place: Partition, item_id: str) -> str:
    """What keeps the item; a bounce that is being settled is bouncing still."""
    if item_id not in place.items:
        return "unknown"
    if item_id in place.reasons:
        return "bouncing"
    if item_id in place.leased:
        return "leased"
    return "held" if item_id in place.held else "waiting"


def flush(place: Partition, act: Act, now_ms: int) -> int:
    """All that waits for a domain is due now, and the domain is not paused. How many were due later."""
    later = [
        item_id for item_id, due in place.waiting.items() if due > now_ms and place.items[item_id].domain == act.subject
    ]
    place.waiting.update(dict.fromkeys(later, now_ms))
    place.paused.pop(act.subject, None)
    tell(place, act)
    return len(later)


def told(place: Partition, acts: Sequence[Act]) -> bool:
    """The log has these, if they are still the first."""
    if place.acts[: len(acts)] != list(acts):
        return False
    del place.acts[: len(acts)]
    place.operator_idle()
    return True
