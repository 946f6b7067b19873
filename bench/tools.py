"""The two C programs: built on demand, driven from here. Everything that they count comes back as dictionaries."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.errors import BenchError

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "tools"
BUILD = HERE / "build"
FLAGS = ("-std=gnu11", "-O2", "-ftree-vectorize", "-Wall", "-Wextra")
# Program → its source and what else the compiler is told.
PROGRAMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "load": ("load.c", ()),
    "sink": ("sink.c", ()),
    "load-tls": ("load.c", ("-DWITH_TLS", "-lssl", "-lcrypto")),
}


def build(into: Path = BUILD, names: Sequence[str] = ("load", "sink")) -> None:
    """Compile what is older than its sources."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    shared = (SOURCES / "common.h").stat().st_mtime
    into.mkdir(parents=True, exist_ok=True)
    for name in names:
        file, options = PROGRAMS[name]
        source, program = SOURCES / file, into / name
        if program.exists() and program.stat().st_mtime > max(source.stat().st_mtime, shared):
            continue
        if not compiler:
            raise BenchError("no C compiler: the load generator and the sink are built with cc (Debian: gcc libc6-dev)")
        # Built beside and renamed, so that two benchmarks that start at once cannot run half a program.
        unfinished = program.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [compiler, *FLAGS, "-o", unfinished, source, *options], capture_output=True, text=True, check=False
        )
        if done.returncode:
            hint = " (TLS needs Debian's libssl-dev)" if options else ""
            raise BenchError(f"{source} does not compile{hint}:\n{done.stderr}")
        unfinished.replace(program)


def assert_free(host: str, port: int) -> None:
    """Refuse a port that somebody else listens on: never measure, or write to, another server."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            raise BenchError(f"{host}:{port} is taken ({error.strerror}); BENCH_PORT moves the benchmark") from error


class Sink:
    """The receiving side, running from construction to the end of the `with` block."""

    def __init__(self, work: Path, *, addresses: int, port: int = 0, first_address: str = "127.1.0.1") -> None:
        self._control_path = work / f"sink.{os.getpid()}.ctl"
        command: list[str | Path] = [BUILD / "sink", "--bind", first_address, "--addresses", str(addresses)]
        command += ["--port", str(port), "--control", self._control_path]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line.startswith("ready "):
            raise BenchError(self.process.stderr.read().strip() or "the sink did not start")
        self.port = int(line.split()[1])
        self._control = socket.socket(socket.AF_UNIX)
        self._control.settimeout(10)
        self._control.connect(str(self._control_path))
        self._answers = self._control.makefile()

    def _ask(self, command: str) -> dict[str, Any]:
        self._control.sendall(command.encode() + b"\n")
        answer: dict[str, Any] = json.loads(self._answers.readline())
        if answer.get("ok") is False:
            raise BenchError(f"the sink refused {command!r}")
        return answer

    def reset(self, run: int) -> None:
        """Forget everything and count the messages of `run` from now on."""
        self._ask(f"reset {run}")

    def delay(self, milliseconds: float) -> None:
        """Answer each final dot only after so long."""
        self._ask(f"delay {milliseconds}")

    def stat(self) -> dict[str, Any]:
        """unique, duplicates, damaged, foreign, latency_ms, last_ns, cpu_seconds, …"""
        return self._ask("stat")

    def seen(self) -> int:
        """The messages of the current run that came, as the set bits of an integer."""
        path = self._control_path.with_suffix(".seen")
        self._ask(f"save {path}")
        try:
            return int.from_bytes(path.read_bytes(), "little")
        finally:
            path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answers.close()
        self._control.close()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        self._control_path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Load:
    """What the clients shall do: `messages` or `seconds` bounds it, `rate` makes it an open loop."""

    size: int
    messages: int = 0
    seconds: float = 0
    per_connection: int = 100
    connections: int = 20
    domains: int = 100
    rate: float = 0
    stepwise: bool = False
    starttls: bool = False
    auth: str = ""  # the initial response of AUTH PLAIN, in base64

    @property
    def program(self) -> str:
        """Which build it needs."""
        return "load-tls" if self.starttls or self.auth else "load"

    def arguments(self) -> list[str]:
        """The command line of bench/tools/load.c."""
        found = [f"--size={self.size}", f"--per-connection={self.per_connection}", f"--connections={self.connections}"]
        found += [f"--domains={self.domains}"]
        if self.messages:
            found.append(f"--messages={self.messages}")
        if self.seconds:
            found.append(f"--seconds={self.seconds}")
        if self.rate:
            found.append(f"--rate={self.rate}")
        if self.stepwise:
            found.append("--stepwise")
        if self.starttls:
            found.append("--starttls")
        if self.auth:
            found.append(f"--auth={self.auth}")
        return found


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def run_load(
    load: Load, *, host: str, port: int, run: int, work: Path, limit_seconds: float = 600
) -> tuple[dict[str, Any], int]:
    """Run the clients to their end.

    Returns what they counted, and the messages that were answered 250 as the set bits of an integer.
    """
    with _scratch(work / f"accepted.{os.getpid()}.bits") as bits:
        command: list[str | Path] = [BUILD / load.program, f"--host={host}", f"--port={port}", f"--run={run}"]
        command += [f"--accepted={bits}", *load.arguments()]
        # A session of its own: Ctrl-C is ours to deal with. On any exception subprocess.run ends the child.
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_seconds, start_new_session=True, check=False
        )
        if done.returncode:
            raise BenchError(f"the load generator ended with {done.returncode}: {done.stderr.strip()}")
        counted: dict[str, Any] = json.loads(done.stdout)
        return counted, int.from_bytes(bits.read_bytes(), "little")
