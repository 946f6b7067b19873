"""How the operator's command writes things: times, ages, numbers, and whatever strangers said, which never reaches the terminal raw."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

NARROWEST = 9
"""A column that may be cut is at least so wide."""
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def said(text: str) -> str:
    """A text of a remote server, a sender or a client, on one line: what could move a cursor, or look like something else, is
    escaped."""
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii") if not 0xD800 <= ord(character) < 0xE000 else "\ufffd"


def moment(milliseconds: int) -> str:
    """A time, UTC, to the second; empty for none."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000)) if milliseconds else ""


def span(milliseconds: float) -> str:
    """How long, in its two largest units: `3d 4h`, `12min`, `0s`."""
    seconds = max(0, round(milliseconds / 1000))
    parts: list[str] = []
    for size, unit in _UNITS:
        if seconds >= size and len(parts) < 2:
            parts.append(f"{seconds // size}{unit}")
            seconds %= size
        elif parts:
            break
    return " ".join(parts) or "0s"


def octets(number: int) -> str:
    """A size for a person."""
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table that fits the terminal. A column is named with a mark before it: `>` stands right, `~` may be cut (with `…`), and where there
    is no room at all is left out, the last one first; all others stay whole. Where nothing is a terminal, nothing is cut."""
    found = [[said(cell) for cell in row] for row in rows]
    names = [each.lstrip(">~") for each in columns]
    if not found:
        console.print("none")
        return
    # A column that says nothing is left out.
    widths = [max(map(cell_len, cells)) if any(cells[1:]) else 0 for cells in zip(names, *found, strict=True)]
    if console.is_terminal:
        _fit(widths, [each[0] == "~" for each in columns], console.width)
    for number, row in enumerate([names, *found]):
        cells = []
        for text, width, column in zip(row, widths, columns, strict=True):
            if not width:
                continue
            cell = text if cell_len(text) <= width else f"{set_cell_size(text, width - 1)}…"
            padding = " " * (width - cell_len(cell))
            cells.append(padding + cell if column[0] == ">" else cell + padding)
        style = "" if number else "bold"
        console.print(Text("  ".join(cells).rstrip(), style), soft_wrap=True)


def _fit(widths: list[int], may_shrink: Sequence[bool], room: int) -> None:
    """Make the columns narrower, the widest first, until they fit with two blanks between them; 0 leaves one out."""

    def excess() -> int:
        return sum(widths) + 2 * (sum(width > 0 for width in widths) - 1) - room

    while (over := excess()) > 0:
        shrinking = [at for at, width in enumerate(widths) if may_shrink[at] and width > NARROWEST]
        if shrinking:
            widest = max(shrinking, key=lambda at: widths[at])
            second = max((widths[at] for at in shrinking if at != widest), default=NARROWEST)
            widths[widest] = max(NARROWEST, widths[widest] - max(1, min(over, widths[widest] - second)))
            continue
        left = [at for at, width in enumerate(widths) if may_shrink[at] and width and at]
        if not left:
            return
        widths[left[-1]] = 0


def pairs(console: Console, entries: Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line; an empty value is left out."""
    filled = [(name, value) for name, value in entries if value]
    width = max((len(name) for name, _ in filled), default=0)
    for name, value in filled:
        console.print(Text(f"{name.ljust(width)}  {said(value)}"), soft_wrap=True)
