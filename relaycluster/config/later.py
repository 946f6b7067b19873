"""Options that belong to the configuration but not yet to this release: refused where silence would break a promise.

An operator who writes one of these keys relies on it. A value that asks for nothing (an empty list, "off") is fine and
is dropped; so is a key that nothing depends on, like the size of a journal that is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Loc = tuple[str | int, ...]

_HARMLESS: tuple[object, ...] = ("", False, (), [], {})

# Keys that the model does not have: what they are for, and the values that ask for nothing.
_KEYS: dict[tuple[str, ...], tuple[str, tuple[object, ...] | None]] = {
    ("journal", "mode"): ("the acceptance journal", ("auto", "off")),
    ("journal", "size"): ("the acceptance journal", None),
}

# Keys that the model has: the values (or their beginnings) that it cannot keep yet, what they are, and what to write.
_VALUES: dict[tuple[str, ...], tuple[tuple[str, ...], str, str]] = {
    ("redis", "url"): (("sentinel:", "redis+sentinel:"), "Redis Sentinel", 'name one Redis, like "redis://host:6379"'),
    ("redis", "durability"): (("replicas:",), "waiting for replicas", 'write "fsync"'),
}


def take_out(raw: dict[str, Any]) -> Iterator[tuple[Loc, str]]:
    """Removes from the raw tables all that is for later; yields the place and the text of each refusal."""
    for path, (what, harmless) in _KEYS.items():
        for table, loc in _tables(raw, path):
            value = table.pop(path[-1])
            if harmless is not None and value not in harmless:
                yield loc, f"not available yet: {what}; remove it"
    if raw.get("journal") == {}:
        del raw["journal"]
    for path, (beginnings, what, fix) in _VALUES.items():
        for table, loc in _tables(raw, path):
            value = table[path[-1]]
            if isinstance(value, str) and value.startswith(beginnings):
                del table[path[-1]]
                shown = "" if path[-1] == "url" else f" ({value[:40]!r})"
                yield loc, f"not available yet: {what}{shown}; {fix}"


def is_known(path: tuple[str, ...]) -> bool:
    """Whether this key, without the numbers of its tables, is one of those for later."""
    return any(known[: len(path)] == path for known in _KEYS)


def _tables(raw: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], Loc]]:
    """Each table that has the last key of `path`, with the key's place."""
    *sections, key = path
    if not sections:
        if key in raw:
            yield raw, (key,)
        return
    below = raw.get(sections[0])
    several = isinstance(below, list)
    for number, table in enumerate(below if isinstance(below, list) else [below]):
        if isinstance(table, dict) and key in table:
            yield table, (sections[0], number, key) if several else (sections[0], key)
