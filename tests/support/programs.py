"""The Debian programs that tests talk to: looked up by name, skipped by name when they are missing.

`tests/packages.txt` is the one list. A package that brings no program is known by a file, as a pattern that begins with
a slash. `python -m tests.support.programs install` installs what is missing (as root, on a system with apt), with no
service started. With `CI=true` a missing program is a failure, not a skip. What comes from npm: `npm.py`.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

PACKAGES = Path(__file__).resolve().parents[1] / "packages.txt"
# Debian keeps servers where an ordinary user's PATH does not look.
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", "/usr/local/sbin"))
POLICY = Path("/usr/sbin/policy-rc.d")


def packages() -> dict[str, str]:
    """Program → the Debian package that brings it."""
    found = {}
    for line in PACKAGES.read_text().splitlines():
        package, *names = line.partition("#")[0].split() or [""]
        found.update(dict.fromkeys(names, package))
    return found


def find(name: str) -> str | None:
    """The program's path, or None. Raises KeyError for a program that `packages.txt` does not list."""
    packages()[name]
    if name.startswith("/"):
        return min(glob.glob(name), default=None)
    return shutil.which(name, path=SEARCH_PATH)


def require(name: str) -> str:
    """The program's path; otherwise the test is skipped, or fails with `CI=true`."""
    path = find(name)
    if path is None:
        lacking(f"{name} is missing (Debian package {packages()[name]})")
    return path


def require_package(package: str) -> None:
    """All that `packages.txt` expects of a package is there; otherwise as with `require`."""
    for name in [name for name, brought_by in packages().items() if brought_by == package]:
        require(name)


def lacking(message: str) -> NoReturn:
    """The test can not be run here: it is skipped, or fails with `CI=true`."""
    import pytest

    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def missing() -> list[str]:
    """The packages of which a program is not there."""
    return sorted({package for name, package in packages().items() if find(name) is None})


def install() -> int:
    """Install what is missing; 0 also when that is not possible here, since the tests then say what they miss."""
    wanted = missing()
    if not wanted:
        return 0
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"not installed (needs root and apt-get): {' '.join(wanted)}; their tests will be skipped")
        return 0
    # Installing a server must not start it: it would take the ports of somebody's real one.
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *wanted]
    try:
        if subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL).returncode:
            subprocess.run(["apt-get", "update", "-qq"], env=environment, check=False)
            subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL)
    finally:
        if ours:
            POLICY.unlink()
    if missing():
        print(f"could not be installed: {' '.join(missing())}; their tests will be skipped")
    return 0


if __name__ == "__main__":
    if sys.argv[1:] != ["install"]:
        raise SystemExit("usage: python -m tests.support.programs install")
    raise SystemExit(install())
