"""What tests take from npm: installed into `build/npm` of the checkout, exactly as the committed lock file says.

`tests/support/npm_packages/` holds the two files that npm wants; to change a version, edit `package.json` there and run
`npm install --package-lock-only --ignore-scripts` beside it. No package's own scripts are run. Without Node.js, npm or a
registry the tests that need a module are skipped by name, or fail with `CI=true`.

    python -m tests.support.npm install
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import programs
from tests.support.processes import REPOSITORY

LISTED = Path(__file__).with_name("npm_packages")
INSTALLED = REPOSITORY / "build" / "npm"
_STAMP = INSTALLED / "installed.json"


def versions() -> dict[str, str]:
    """Module → version, of those that tests ask for by name."""
    found: dict[str, str] = json.loads((LISTED / "package.json").read_text())["dependencies"]
    return found


def module_path(name: str) -> Path:
    """The directory of an installed module, for `require('…')`; otherwise the test is skipped, or fails with `CI=true`.

    Raises KeyError for a module that `package.json` does not list.
    """
    versions()[name]
    programs.require("node")
    programs.require("npm")
    trouble = install()
    if trouble:
        programs.lacking(f"the npm module {name} is missing: {trouble}")
    return INSTALLED / "node_modules" / name


def install() -> str:
    """Bring `build/npm` to what the lock file says; empty, or why that can not be done here."""
    wanted = (LISTED / "package-lock.json").read_text()
    if _up_to_date(wanted):
        return ""
    npm = programs.find("npm")
    if npm is None:
        return "npm is not installed"
    INSTALLED.mkdir(parents=True, exist_ok=True)
    with (INSTALLED / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once
        if _up_to_date(wanted):
            return ""
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(LISTED / name, INSTALLED / name)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        try:
            done = subprocess.run(
                command, cwd=INSTALLED, capture_output=True, text=True, timeout=300, check=False, env=_environment()
            )
        except subprocess.TimeoutExpired:
            return "npm did not finish within 300 s"
        if done.returncode:
            return " ".join(f"npm ci: {done.stderr.strip() or done.stdout.strip()}".split())[:400]
        _STAMP.write_text(wanted)
    return ""


def _up_to_date(wanted: str) -> bool:
    return _STAMP.exists() and _STAMP.read_text() == wanted


def _environment() -> dict[str, str]:
    return {**os.environ, "npm_config_cache": str(INSTALLED / "cache"), "npm_config_update_notifier": "false"}


if __name__ == "__main__":
    if sys.argv[1:] != ["install"]:
        raise SystemExit("usage: python -m tests.support.npm install")
    if problem := install():
        print(f"not installed from npm ({problem}): the tests that need it will be skipped")
