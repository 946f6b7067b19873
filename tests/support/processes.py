"""Real processes for scenarios: each in its own session and directory, with its log; none outlives the test run.

Nothing here sleeps in order to be in step with something else: a test waits for a condition (a line in a log, a port
that answers, a page that says 200), and the limit on that wait only says when to give up. `SCENARIO_PATIENCE`
multiplies all of these limits on a slow machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = float(os.environ.get("SCENARIO_PATIENCE", "1"))
MARK = "SCENARIO_DIRECTORY"
# Below Linux's range of ephemeral ports (32768-60999), so that no outgoing connection can take a port between our
# look and the server's bind.
PORTS = range(20_000, 32_000)

T = TypeVar("T")


class Impatient(AssertionError):
    """A condition did not come true in time."""


def wait_until(
    condition: Callable[[], T], what: str, timeout_seconds: float = 30.0, *, watched: Sequence[Process] = ()
) -> T:
    """The first truthy value of `condition`, asked again and again.

    Raises `Impatient` after `timeout_seconds`, or as soon as one of the `watched` processes has died.
    """
    __tracebackhide__ = True
    deadline = time.monotonic() + timeout_seconds * PATIENCE
    pause = 0.005
    while True:
        value = condition()
        if value:
            return value
        for process in watched:
            if not process.alive:
                raise Impatient(f"{process.name} ended with {process.returncode} before {what}\n{process.tail()}")
        if time.monotonic() > deadline:
            tails = "\n".join(process.tail() for process in watched)
            raise Impatient(f"not within {timeout_seconds:g} s: {what}\n{tails}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


_reserved: dict[int, socket.socket] = {}


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on and that no other test process will be given while this one lives."""
    start = os.getpid() * 37
    for step in range(len(PORTS)):
        port = PORTS[(start + step) % len(PORTS)]
        if port in _reserved:
            continue
        reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            reservation.bind(f"\0relaycluster-test-port-{port}")
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((host, port))
        except OSError:
            reservation.close()
            continue
        _reserved[port] = reservation
        return port
    raise RuntimeError("no free port")


def answers(host: str, port: int) -> bool:
    """Whether something accepts TCP connections there."""
    try:
        socket.create_connection((host, port), 1).close()
    except OSError:
        return False
    return True


class Process:
    """One program, started in a session of its own. Output is appended to `NAME.out` and `NAME.err`."""

    def __init__(self, name: str, argv: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.argv = list(argv)
        self.directory = directory
        self.environment = dict(environment)
        self.out_path = directory / f"{name}.out"
        self.err_path = directory / f"{name}.err"
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again after its end."""
        if self.alive:
            raise RuntimeError(f"{self.name} runs already")
        with self.out_path.open("ab") as out, self.err_path.open("ab") as err:
            self._popen = subprocess.Popen(
                self.argv,
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        if self._popen is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit status; the negative signal number after a signal; None while it runs."""
        return None if self._popen is None else self._popen.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, as an operator would (not to its children)."""
        os.kill(self.pid, number)

    def freeze(self) -> None:
        """SIGSTOP: alive, connected, and silent. Returns when the kernel has stopped it."""
        self.signal(signal.SIGSTOP)
        wait_until(lambda: process_state(self.pid) == "T", f"{self.name} is stopped")

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; returns when it is dead. Its children are left as they are, as after a crash."""
        if self.alive:
            self.signal(signal.SIGKILL)
        self.wait(10)

    def terminate(self, timeout_seconds: float = 30.0) -> int:
        """SIGTERM, then the exit status. A process that stays longer fails the test."""
        if self.alive:
            self.signal(signal.SIGTERM)
        return self.wait(timeout_seconds)

    def wait(self, timeout_seconds: float = 30.0) -> int:
        """The exit status, when it has ended."""
        wait_until(lambda: self._popen is None or self._popen.poll() is not None, f"{self.name} ends", timeout_seconds)
        return 0 if self._popen is None else self._popen.returncode

    def output(self) -> str:
        """Everything on its standard output so far, over all of its lives."""
        return self.out_path.read_text("utf-8", "replace") if self.out_path.exists() else ""

    def errors(self) -> str:
        """Everything on its standard error so far."""
        return self.err_path.read_text("utf-8", "replace") if self.err_path.exists() else ""

    def wait_for_output(self, text: str, timeout_seconds: float = 30.0) -> None:
        """Wait until `text` stands in the output or the errors."""
        wait_until(
            lambda: text in self.output() or text in self.errors(),
            f"{self.name} says {text!r}",
            timeout_seconds,
            watched=[self],
        )

    def tail(self, lines: int = 25) -> str:
        """The end of both logs, for the report of a failed test."""
        parts = []
        for kind, text in (("out", self.output()), ("err", self.errors())):
            last = text.splitlines()[-lines:]
            if last:
                parts.append(f"--- {self.name}.{kind}\n" + "\n".join(line[:600] for line in last))
        return "\n".join(parts)

    def resident_bytes(self) -> int:
        """VmRSS."""
        return _status_kibibytes(self.pid, "VmRSS") * 1024


class Processes:
    """All processes of one scenario, in one short-lived directory."""

    def __init__(self, prefix: str = "rc-") -> None:
        # Not pytest's tmp_path: a Unix socket's path must stay below 108 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
        self._all: list[Process] = []
        # Should the test run itself be killed, this one sees its pipe close and does the clean-up.
        self._reaper = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), str(self.directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def add(
        self,
        name: str,
        argv: Sequence[str],
        *,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """A process that is not yet started. `environment` is added to the test run's own."""
        where = directory or self.directory / name
        where.mkdir(parents=True, exist_ok=True)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("RELAYCLUSTER_")}
        process = Process(name, argv, where, {**inherited, MARK: str(self.directory), **(environment or {})})
        self._all.append(process)
        return process

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """A started process."""
        process = self.add(name, argv, directory=directory, environment=environment)
        process.start()
        return process

    def tails(self) -> str:
        """The end of every log, for the report of a failed test."""
        return "\n".join(filter(None, (process.tail() for process in self._all)))

    def close(self) -> None:
        """Kill what is left, also what was left by the killed, and remove the directory."""
        kill_all(self.directory)
        for process in self._all:
            if process._popen is not None:
                process._popen.wait()
        if self._reaper.stdin is not None:
            self._reaper.stdin.close()
        self._reaper.wait()


def process_state(pid: int) -> str:
    """The kernel's letter for the state: R, S, D, T, Z; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _status_kibibytes(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise LookupError(field)


def processes_of(directory: Path) -> list[int]:
    """Every process that a scenario started, directly or not.

    By its environment or its working directory: a Redis that a node started is in a session of its own and overwrites
    its environment with its title, but it works in the node's state directory.
    """
    mark = f"{MARK}={directory}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            where = Path(os.readlink(entry / "cwd").removesuffix(" (deleted)"))
            ours = where.is_relative_to(directory) or mark in (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if ours and process_state(int(entry.name)) != "Z":
            found.append(int(entry.name))
    return found


def kill_all(directory: Path) -> None:
    """SIGKILL all processes of a scenario, until none is left; then remove its directory."""

    def none_left() -> bool:
        left = processes_of(directory)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    wait_until(none_left, f"the processes in {directory} end", 10)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    kill_all(Path(sys.argv[1]))
