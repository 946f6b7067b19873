"""CPU seconds and memory of every process of one peer, whatever it forks.

A cgroup v2 of its own counts all of them, also those that have ended. Where none can be made (no right to, no cgroup v2),
the processes are found in /proc by descent and by a mark in their environment, and their CPU is summed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
MARK = "BENCH_MARK"


class Group(Protocol):
    """A set of processes that can be counted and ended."""

    kind: str

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command, changed so that it starts inside the group."""

    def started(self, pid: int) -> None:
        """Tell the group its first process."""

    def processes(self) -> list[int]:
        """The living ones."""

    def cpu_seconds(self) -> float:
        """User and system time of all of them so far."""

    def remove(self) -> None:
        """Give back what the group holds, once it is empty."""


class Cgroup:
    """A cgroup v2 used for counting only: no controller is enabled in it."""

    kind = "cgroup v2"

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def create(cls, name: str) -> Cgroup | None:
        """One beside this process's own cgroup; None when that is not possible here."""
        try:
            mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
            mount = next(Path(fields[1]) for fields in mounts if fields[2] == "cgroup2")
            own = next(
                line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")
            )
            path = mount / own.lstrip("/") / name
            path.mkdir()
        except (OSError, StopIteration):
            return None
        group = cls(path)
        if not os.access(path / "cgroup.procs", os.W_OK) or not (path / "cpu.stat").exists():
            group.remove()
            return None
        return group

    def wrap(self, command: Sequence[str]) -> list[str]:
        return ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self._path / "cgroup.procs"), *command]

    def started(self, pid: int) -> None:
        pass

    def processes(self) -> list[int]:
        try:
            return [int(pid) for pid in (self._path / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def cpu_seconds(self) -> float:
        fields = dict(line.split() for line in (self._path / "cpu.stat").read_text().splitlines())
        return int(fields["usage_usec"]) / 1e6

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.rmdir()


@dataclass(frozen=True)
class ProcessStat:
    """A line of /proc/PID/stat: CPU seconds are its own."""

    name: str
    state: str
    parent: int
    cpu_seconds: float
    start_ticks: int


def _stat(pid: int) -> ProcessStat | None:
    """None when there is no such process (any more)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    cpu_seconds = (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND
    return ProcessStat(name, fields[0], int(fields[1]), cpu_seconds, int(fields[19]))


class ProcessTree:
    """Descendants of one process, and whoever carries its mark: less exact for processes that live briefly.

    Who was seen once stays ours, also when its parent has ended and init has adopted it.
    """

    kind = "/proc walk"

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._lock = threading.Lock()
        self._seen: dict[tuple[int, int], float] = {}  # CPU seconds by process id and start time

    def wrap(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def started(self, pid: int) -> None:
        stat = _stat(pid)
        if stat is not None:
            self._seen[pid, stat.start_ticks] = stat.cpu_seconds

    def _carries_mark(self, pid: int) -> bool:
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def processes(self) -> list[int]:
        with self._lock:
            return self._look()

    def _look(self) -> list[int]:
        looked = {int(name): _stat(int(name)) for name in os.listdir("/proc") if name.isdigit()}
        everyone = {pid: stat for pid, stat in looked.items() if stat is not None}
        ours = {pid for pid, stat in everyone.items() if (pid, stat.start_ticks) in self._seen}
        for pid in everyone:
            line, at = [], pid
            while at in everyone and at not in ours:
                line.append(at)
                at = everyone[at].parent
            if at in ours:
                ours.update(line)
            elif self._carries_mark(pid):
                ours.add(pid)
        for pid in ours:
            self._seen[pid, everyone[pid].start_ticks] = everyone[pid].cpu_seconds
        return sorted(ours)

    def cpu_seconds(self) -> float:
        with self._lock:
            self._look()
            return sum(self._seen.values())

    def remove(self) -> None:
        pass


def new_group(name: str) -> Group:
    """The best group that this machine allows."""
    return Cgroup.create(name) or ProcessTree(name)


def cpu_by_part(processes: Iterable[int], part: Callable[[str], str]) -> dict[str, float]:
    """CPU seconds of living processes, summed by what `part` says of their names."""
    found: dict[str, float] = {}
    for pid in processes:
        stat = _stat(pid)
        if stat is not None:
            found[part(stat.name)] = found.get(part(stat.name), 0.0) + stat.cpu_seconds
    return found


def pss_mib(processes: Iterable[int]) -> float:
    """Proportional set size: pages that processes share are counted once."""
    kib = 0
    for pid in processes:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as lines:
                kib += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
        except OSError:
            continue
    return kib / 1024


class PeakMemory:
    """Watches a group's PSS from a thread, once per `every_seconds`."""

    def __init__(self, group: Group, every_seconds: float = 0.5) -> None:
        self.mib = 0.0
        self._group = group
        self._every_seconds = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(self._every_seconds):
            self.look()

    def look(self) -> None:
        """Take one sample now."""
        self.mib = max(self.mib, pss_mib(self._group.processes()))

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()


def end_processes(group: Group, root: int, *, patience_seconds: float) -> bool:
    """Ask the first process to stop, then end whatever is left. True when asking was enough."""
    rounds = ((signal.SIGTERM, True, patience_seconds), (signal.SIGTERM, False, 2.0), (signal.SIGKILL, False, 5.0))
    for number, only_root, seconds in rounds:
        for pid in [pid for pid in group.processes() if pid == root or not only_root]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not [pid for pid in group.processes() if _is_alive(pid)]:
                return number == signal.SIGTERM
            time.sleep(0.05)
    return False


def _is_alive(pid: int) -> bool:
    """A zombie is not: its parent (we, for the first process) has only to be told."""
    stat = _stat(pid)
    return stat is not None and stat.state != "Z"
