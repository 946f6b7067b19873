"""The page about sending shows the transition table that the code has."""

from __future__ import annotations

import runpy
from pathlib import Path

DRAW = Path(__file__).parents[2] / "docs" / "design" / "draw_smtp_client.py"


def test_the_drawing_is_fresh() -> None:
    """Whoever changes the table runs `python docs/design/draw_smtp_client.py`."""
    page = runpy.run_path(str(DRAW))["page"]()
    assert page == DRAW.with_name("smtp-client.md").read_text(encoding="utf-8")
    assert "EMPTY_DOT" in page
