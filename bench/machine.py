"""What the whole machine did during a measurement, so that a disturbed one can be told from a good one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class MachineUse:
    """CPU seconds since boot: busy (of all processes), stolen (by the hypervisor); flushes of one disk; when."""

    busy: float
    stolen: float
    flushes: int
    at: float

    @classmethod
    def now(cls, directory: Path) -> MachineUse:
        """With the flushes of the disk that holds `directory`."""
        with open("/proc/stat") as lines:
            user, nice, system, _, _, irq, softirq, steal = (int(word) for word in lines.readline().split()[1:9])
        busy = (user + nice + system + irq + softirq) / TICKS_PER_SECOND
        return cls(busy, steal / TICKS_PER_SECOND, _flushes(directory), time.monotonic())


def _flushes(directory: Path) -> int:
    """Flush requests that the disk completed (Linux 5.5 and later), 0 when not known. A partition's are its disk's."""
    device = directory.stat().st_dev
    at = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not at.exists():
        return 0
    if (at / "partition").exists():
        at = at.resolve().parent
    fields = (at / "stat").read_text().split()
    return int(fields[15]) if len(fields) > 15 else 0


def file_system(directory: Path) -> str:
    """The type of the file system that holds a directory: "ext4", "tmpfs", …"""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return "?"


def assert_durable(directory: Path) -> None:
    """Refuse to measure durable queues where fsync does nothing."""
    if file_system(directory) in ("tmpfs", "ramfs"):
        raise BenchError(
            f"{directory} is in memory: fsync costs nothing there; set BENCH_WORK to a directory on a disk"
        )


def fsyncs_per_second(directory: Path, seconds: float = 0.3) -> float:
    """How often 6 KB can be made durable one after the other: the best of three, as a busy disk says little."""
    return max(_fsyncs_per_second(directory, seconds) for _ in range(3))


def _fsyncs_per_second(directory: Path, seconds: float) -> float:
    path = directory / f"fsync.{os.getpid()}"
    handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        count, start = 0, time.monotonic()
        while time.monotonic() - start < seconds:
            os.write(handle, b"x" * 6000)
            os.fdatasync(handle)
            count += 1
        return count / (time.monotonic() - start)
    finally:
        os.close(handle)
        path.unlink()


def describe(work: Path, checkout: Path) -> dict[str, object]:
    """The machine and the software, for the head of the report."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ":?")
    try:
        commit = subprocess.run(
            ["git", "-C", checkout, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:
        commit = ""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit,
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": cpu.partition(":")[2].strip(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "command": sys.argv,
        "work": str(work),
        "file_system": file_system(work),
        "fsyncs_per_second": round(fsyncs_per_second(work)),
    }
