"""`docs/design/smtp-server.md` shows the tables as they are. To redraw it: `python -m tests.smtp.test_server_drawing`."""

from __future__ import annotations

from pathlib import Path

import pytest

from relaycluster.smtp.server_drawing import redraw

PAGE = Path(__file__).parents[2] / "docs" / "design" / "smtp-server.md"


def test_the_page_is_fresh() -> None:
    """A change of the transition table or of the extensions must show in the page."""
    page = PAGE.read_text("utf-8")
    assert redraw(page) == page, "run: python -m tests.smtp.test_server_drawing"


def test_a_page_without_its_marks_is_an_error() -> None:
    """A mark that was lost does not go unnoticed."""
    with pytest.raises(ValueError, match="diagram"):
        redraw("no marks here")


if __name__ == "__main__":
    PAGE.write_text(redraw(PAGE.read_text("utf-8")), "utf-8")
