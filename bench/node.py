"""One running peer: started inside a group of its own, ready when it answers 220, gone with all its processes at the end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.accounting import MARK, PeakMemory, cpu_by_part, end_processes, new_group
from bench.errors import BenchError
from bench.machine import MachineUse
from bench.peers import Mode, Peer, Site
from bench.redis_stats import RedisStats
from bench.tools import assert_free

START_SECONDS = 40.0


@dataclass(frozen=True)
class Reading:
    """What a peer and the machine had used at one moment."""

    cpu_seconds: float
    cpu_by_part: dict[str, float]
    machine: MachineUse
    redis: dict[str, str] = field(repr=False)


class Node:
    """A peer that runs from entering the `with` block to its end."""

    def __init__(self, peer: Peer, mode: Mode, site: Site, work: Path) -> None:
        self.peer = peer
        self._mode: Mode = mode
        self._site = site
        self._work = work
        self.stopped_in_time = False
        self.directory = work / f"{peer.name}.{os.getpid()}"
        self.log_path = work / f"{peer.name}.log"
        self.redis: RedisStats | None = None

    def __enter__(self) -> Self:
        for port in (self._site.port, self._site.http_port):
            assert_free(self._site.host, port)
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(mode=0o755)
        self._group = new_group(self.directory.name)
        self._log = self.log_path.open("wb")
        self._process: subprocess.Popen[bytes] | None = None
        self.memory = PeakMemory(self._group)
        try:
            command = self.peer.prepare(self.directory, self._mode, self._site)
            os.sync()  # the last peer's dirty pages are not this one's burden
            self._process = subprocess.Popen(
                self._group.wrap(command),
                cwd=self.directory,
                env={**os.environ, MARK: self.directory.name},
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._group.started(self._process.pid)
            self._await_banner(self._process)
            if self.peer.embeds_redis:
                self.redis = RedisStats.find(self.directory)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _await_banner(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise BenchError(f"{self.peer.name} ended with {process.returncode} at start:\n{self.log_tail()}")
            try:
                with socket.create_connection((self._site.host, self._site.port), 2) as client:
                    client.settimeout(5)
                    if client.recv(512).startswith(b"220"):
                        client.sendall(b"QUIT\r\n")
                        client.recv(512)
                        return
            except OSError:
                pass
            time.sleep(0.1)
        raise BenchError(f"{self.peer.name} did not answer within {START_SECONDS:.0f} s:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines that the peer wrote, indented."""
        self._log.flush()
        lines = self.log_path.read_text(errors="replace").splitlines()[-12:]
        return "\n".join(f"    {line[:200]}" for line in lines) or "    (it wrote nothing)"

    @property
    def counted_by(self) -> str:
        """How the CPU is counted."""
        return self._group.kind

    def read(self) -> Reading:
        """What has been used so far."""
        return Reading(
            cpu_seconds=self._group.cpu_seconds(),
            cpu_by_part=cpu_by_part(self._group.processes(), self.peer.part),
            machine=MachineUse.now(self._work),
            redis=self.redis.info() if self.redis else {},
        )

    def stop(self) -> None:
        """End every process of the peer and remove its files; the log stays."""
        if self.redis is not None:
            self.redis.close()
            self.redis = None
        self.memory.stop()
        if self._process is not None:
            self.stopped_in_time = end_processes(
                self._group, self._process.pid, patience_seconds=self.peer.patience_seconds
            )
            self._process.wait()
        self._group.remove()
        self._log.close()
        shutil.rmtree(self.directory, ignore_errors=True)
