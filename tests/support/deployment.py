"""What stands in deploy/, as tests use it: the shipped files themselves, with addresses put in their place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tests.support.processes import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
DASHBOARD = DEPLOY / "grafana/dashboards/relaycluster.json"


def replaced(text: str, replacements: Mapping[str, str]) -> str:
    """The text with each of these found and replaced. A text that is not there any more is an error."""
    for old, new in replacements.items():
        assert old in text, f"{old!r} is not in the shipped file any more"
        text = text.replace(old, new)
    return text


def dashboard_queries(rate_interval: str = "1m") -> dict[str, str]:
    """ "panel: legend" → query, with Grafana's variables filled in as for all nodes."""
    found = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", rate_interval).replace("$instance", ".*")
            found[f"{panel['title']}: {target['refId']} {target['legendFormat']}"] = query
    return found


def write(directory: Path, name: str, text: str) -> Path:
    """A file in the scenario's directory."""
    path = directory / name
    path.write_text(text)
    return path
