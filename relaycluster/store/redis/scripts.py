"""The scripts: read once, called by digest.

Each file in `lua/` is one atomic transition and opens with its KEYS, ARGV and result. What goes before it is made here: the
key suffixes as constants, and the functions that it names in a line `-- needs: name name`, from `lua/lib/`.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files

from attrs import frozen

from relaycluster.policy import lifecycle
from relaycluster.store.redis import keys

_NEEDS = re.compile(r"^-- needs: (.*)$", re.MULTILINE)
_CONSTANT = re.compile(r"\b([A-Z][A-Z_]+)\b")

CONSTANTS = {
    **{name: f"'{suffix.decode()}'" for name, suffix in keys.SUFFIXES.items()},
    "SPREAD_WORK": f"'{lifecycle.SPREAD_WORK}'",
    "NOTICE_WORK": f"'{lifecycle.NOTICE_WORK}'",
    "OPERATOR_WORK": f"'{lifecycle.OPERATOR_WORK}'",
    "TRACE_OVERHEAD": str(keys.TRACE_OVERHEAD),
    "TRACE_BLOCK": str(keys.TRACE_BLOCK),
    "SLOT_LENGTH": str(keys.DONE_SLOT_LENGTH),
    "WAKE_CHANNEL": f"'{keys.WAKE_CHANNEL.decode()}'",
    "MEMBERSHIP_CHANNEL": f"'{keys.MEMBERSHIP_CHANNEL.decode()}'",
}


@frozen
class Script:
    """A script's source as Redis gets it, and the digest that names it there."""

    name: str
    source: bytes
    digest: bytes


def _read(path: str) -> str:
    return (files(__package__) / "lua" / path).read_text(encoding="utf-8")


@cache
def script(name: str) -> Script:
    """The transition `name`, ready to be loaded."""
    body = _read(f"{name}.lua")
    needs = _NEEDS.search(body)
    parts = [_read(f"lib/{function}.lua") for function in (needs.group(1).split() if needs else [])]
    text = "\n".join([*parts, body])
    used = dict.fromkeys(word for word in _CONSTANT.findall(text) if word in CONSTANTS)
    head = "".join(f"local {word}={CONSTANTS[word]}\n" for word in used)
    source = (head + text).encode()
    return Script(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


@cache
def names() -> tuple[str, ...]:
    """All transitions."""
    entries = (files(__package__) / "lua").iterdir()
    return tuple(sorted(entry.name.removesuffix(".lua") for entry in entries if entry.name.endswith(".lua")))
