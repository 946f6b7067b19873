"""Runs `bench.sending` in processes of its own, one after the other, and reads their figures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from bench.errors import BenchError

CHECKOUT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 120.0


def measure(way: str, port: int, messages: int, work: Path) -> dict[str, float]:
    """`rate`, `cpu_microseconds` (a message, of the process that sends) and `messages` of one way to send to the sink."""
    directory = work / f"sending-{way}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    out, log = directory / "figures.json", directory / "log"
    command = [sys.executable, "-m", "bench.sending", way, "--port", str(port), "--messages", str(messages)]
    try:
        with log.open("wb") as file:
            done = subprocess.run(
                [*command, "--work", str(directory), "--out", str(out)],
                cwd=CHECKOUT,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=LIMIT_SECONDS,
                check=False,
            )
        if done.returncode or not out.exists():
            raise BenchError(f"{way}: ended with {done.returncode}: {log.read_text(errors='replace')[-1000:]}")
        found: dict[str, float] = json.loads(out.read_text())
        return found
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{way}: not done within {LIMIT_SECONDS:.0f} s") from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)
