"""The pages for people say what is true: links lead somewhere, examples are accepted, targets and packages exist."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from relaycluster.config import load

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
EXAMPLES = [
    pytest.param(text, id=f"{page.name}:{number}")
    for page in PAGES
    for number, text in enumerate(re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
]


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have in a link."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link has its file, and its heading in there."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_are_accepted(text: str, tmp_path: Path) -> None:
    """Every piece of configuration in the pages passes check-config once the password's file is there."""
    tables = tomllib.loads(text)
    password = tables.get("redis", {}).get("password_file")
    if password:
        (tmp_path / Path(password).name).write_text("secret\n")
        text = text.replace(password, Path(password).name)
    file = tmp_path / "relaycluster.toml"
    file.write_text(text)
    load(file, {}, host_name=lambda: "mail-1.example.net")


def test_the_index_names_every_page() -> None:
    """Whoever reads the index finds everything."""
    docs = REPOSITORY / "docs"
    named = set(re.findall(r"\]\(([^)#]+\.md)\)", (docs / "index.md").read_text()))
    assert {str(page.relative_to(docs)) for page in docs.rglob("*.md")} - {"index.md"} == named


def test_every_target_is_described() -> None:
    """The README's table, the list that `make` prints and the Makefile name the same targets."""
    makefile = (REPOSITORY / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[0].split()) - {"help"}
    assert phony <= set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    rows = [
        line.split("|")[1] for line in (REPOSITORY / "README.md").read_text().splitlines() if line.startswith("| `make")
    ]
    assert set(re.findall(r"`make ([a-z]+)`", " ".join(rows))) == phony
    assert set(re.findall(r"^\t@echo 'make ([a-z]+) ", makefile, re.MULTILINE)) == phony - {
        "lint",
        "types",
        "contracts",
    }


def test_dependencies_are_pinned_and_have_their_line() -> None:
    """Each dependency of setup.cfg has a version in run.txt that its range allows, and a line in the decision."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    wanted = setup["options"]["install_requires"] + setup["options.extras_require"]["embedded"]
    lines = (REPOSITORY / "requirements" / "run.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    decision = (REPOSITORY / "docs" / "decisions" / "0002-dependencies.md").read_text()
    for requirement in (Requirement(line) for line in wanted.splitlines() if line and not line.startswith("#")):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
        assert f"\n| {requirement.name.lower()} |" in decision.lower(), requirement.name


def test_the_decisions_are_numbered() -> None:
    """Records count from 1 without a gap; the heading has the number of the file."""
    records = sorted((REPOSITORY / "docs" / "decisions").glob("*.md"))
    for number, record in enumerate(records, 1):
        assert record.name.startswith(f"{number:04d}-")
        assert record.read_text().startswith(f"# {number}. ")
