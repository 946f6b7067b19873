"""The committed corpus: one text file for each target, one input a line, as Python writes octets. Small, and readable in a diff."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from tests.fuzz.seeds import SEEDS

DIRECTORY = Path(__file__).with_name("corpus")


def inputs(target: str) -> list[bytes]:
    """The seeds, and what was found since."""
    path = DIRECTORY / f"{target}.txt"
    lines = path.read_text("ascii").splitlines() if path.exists() else []
    return [*SEEDS[target], *(ast.literal_eval(line) for line in lines if line.startswith("b"))]


def write(target: str, found: Iterable[bytes]) -> int:
    """Replace what was found; the seeds are not written again. Returns how many there are."""
    kept = sorted(set(found) - set(SEEDS[target]), key=lambda data: (len(data), data))
    DIRECTORY.mkdir(exist_ok=True)
    (DIRECTORY / f"{target}.txt").write_text("".join(f"{data!r}\n" for data in kept), "ascii")
    return len(kept)
