"""Draws the server's transition table and its extensions for `docs/design/smtp-server.md`, so that the page cannot lie.

Pure functions from the tables to Markdown; `tests/smtp/test_server_drawing.py` writes the page and checks that it is fresh.
"""

from __future__ import annotations

from collections.abc import Mapping

from relaycluster.smtp.commands import Verb
from relaycluster.smtp.server_settings import EXTENSIONS
from relaycluster.smtp.server_states import TRANSITIONS, Move, Occasion, State


def diagram() -> str:
    """The states and what leads from one to another, as a Mermaid state diagram. Steps that change nothing, and 421, which
    leads to `closed` from everywhere, are left out."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for state, row in TRANSITIONS.items():
        for step, cell in row.items():
            if not isinstance(cell, Move) or step is Occasion.FAREWELL:
                continue
            if cell.accepted is cell.refused:
                arrows.setdefault((state, cell.accepted), []).append(step.value)
                continue
            if cell.accepted is not state:
                arrows.setdefault((state, cell.accepted), []).append(step.value)
            if cell.refused is not None:
                arrows.setdefault((state, cell.refused), []).append(f"{step.value} refused")
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.CONNECTED.value}"]
    lines += [f"    {start.value} --> {end.value}: {', '.join(labels)}" for (start, end), labels in arrows.items()]
    lines += [f"    {State.CLOSED.value} --> [*]", "```"]
    return "\n".join(lines)


def table() -> str:
    """The whole table: for each state and step the next state, or the refusal."""
    states = [state for state in State if TRANSITIONS[state]]
    steps: list[Verb | Occasion] = [*Verb, *Occasion]
    lines = ["| | " + " | ".join(state.value for state in states) + " |", "|---" * (len(states) + 1) + "|"]
    for step in steps:
        cells = [_cell(TRANSITIONS[state].get(step), state) for state in states]
        lines.append(f"| {step.value} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(cell: object, state: State) -> str:
    if isinstance(cell, Move):
        text = "stays" if cell.accepted is state else f"→ {cell.accepted.value}"
        if cell.refused is not None and cell.refused is not cell.accepted:
            text += f", refused → {cell.refused.value}"
        return text
    if cell is None:
        return ""
    return f"{getattr(cell, 'code', '')} {getattr(cell, 'enhanced', '')}"


def extensions() -> str:
    """One row for each extension."""
    lines = ["| Extension | Specified in | Where it is kept | Transcripts |", "|---|---|---|---|"]
    for extension in EXTENSIONS:
        transcripts = ", ".join(f"[{name}](../../tests/transcripts/{name})" for name in extension.transcripts)
        lines.append(f"| {extension.keyword} | {extension.reference} | {extension.kept_in} | {transcripts} |")
    return "\n".join(lines)


def redraw(page: str) -> str:
    """The page with its drawn parts made anew: those between `<!-- drawn: NAME -->` and `<!-- end -->`."""
    parts: Mapping[str, str] = {"diagram": diagram(), "table": table(), "extensions": extensions()}
    for name, text in parts.items():
        opening = f"<!-- drawn: {name} -->"
        before, _, rest = page.partition(opening)
        _, closing, after = rest.partition("<!-- end -->")
        if not closing:
            raise ValueError(f"the page has no part {opening} … <!-- end -->")
        page = f"{before}{opening}\n\n{text}\n\n{closing}{after}"
    return page
