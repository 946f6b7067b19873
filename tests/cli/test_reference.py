"""The generated pages in docs/reference/ say what the program declares."""

from __future__ import annotations

import json
import re
from pathlib import Path

from click.testing import CliRunner

from relaycluster.cli.configuration import config_schema
from relaycluster.cli.reference import main, pages, stale
from relaycluster.events import EVENTS
from relaycluster.metrics import FAMILIES

REPOSITORY = Path(__file__).parents[2]


def test_the_pages_are_fresh() -> None:
    """Whoever changes a declaration writes the pages anew: python -m relaycluster.cli.reference."""
    assert stale(REPOSITORY / "docs" / "reference") == []


def test_every_declaration_is_told() -> None:
    """No option, family or event is missing."""
    written = pages()
    assert all(f"## `{family.exposed_name}`" in written["metrics.md"] for family in FAMILIES)
    assert all(f"## `{name}`" in written["events.md"] for name in EVENTS)
    schema = json.loads(written["config.schema.json"])
    tables = list(schema["properties"].items())
    for section, place in tables:
        reference = place.get("$ref") or place["items"]["$ref"]
        options = schema["$defs"][reference.rpartition("/")[2]]["properties"]
        for key, option in options.items():
            assert f"### `{section}.{key}`" in written["config.md"]
            assert len(option["description"]) > 10, key
            if "$ref" in option.get("items", {}):
                tables.append((f"{section}.{key}", option))
    assert "tls.sni" in dict(tables)


def test_the_schema_is_the_commands() -> None:
    """The page and `relaycluster config-schema` are the same."""
    assert CliRunner().invoke(config_schema).stdout == pages()["config.schema.json"]


def test_check_writes_nothing(tmp_path: Path) -> None:
    """--check tells what is stale with exit 1; without it the pages are written, and then nothing is stale."""
    run = CliRunner().invoke(main, ["--check", str(tmp_path)])
    assert run.exit_code == 1
    assert len(run.stdout.splitlines()) == len(pages())
    assert list(tmp_path.iterdir()) == []
    assert CliRunner().invoke(main, [str(tmp_path)]).exit_code == 0
    assert stale(tmp_path) == []
    (tmp_path / "events.md").write_text("old")
    assert stale(tmp_path) == ["events.md"]
    assert CliRunner().invoke(main, ["--check", str(tmp_path)]).exit_code == 1


def test_links_of_the_index_lead_somewhere() -> None:
    """Every relative link in the pages that we own has its target."""
    for page in (REPOSITORY / "docs" / "index.md", *(REPOSITORY / "docs" / "reference").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)
