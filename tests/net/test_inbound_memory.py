"""The memory of idle sessions, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SESSIONS = 1000


@pytest.mark.parametrize(("kind", "most_kib"), [("plain", 20), ("tls", 60)])
def test_an_idle_session_is_small(kind: str, most_kib: int) -> None:
    """Resident memory per session, over a thousand of them, also when each has carried a message of 300 KiB before."""
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    command = [sys.executable, "-m", "tests.net.idle_sessions", kind, str(SESSIONS)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    idle, used = (float(line) for line in ran.stdout.split())
    assert 0 < idle < most_kib, ran.stdout
    assert 0 < used < most_kib, ran.stdout
