"""What the Redis that belongs to a node says of itself: version, persistence, cost by command."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any


class RedisStats:
    """A connection to one Redis over its Unix socket; speaks just enough RESP for INFO and CONFIG GET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        # A socket's path may be 107 bytes long; through its directory's descriptor it is always short enough.
        directory = os.open(path.parent, os.O_PATH)
        try:
            self._socket.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        self._stream = self._socket.makefile("rb")

    @classmethod
    def find(cls, under: Path) -> RedisStats | None:
        """The Redis whose socket lies somewhere under a directory, if there is one and it answers us."""
        for path in sorted(under.rglob("*")):
            try:
                if not stat.S_ISSOCK(path.lstat().st_mode):
                    continue
                found = cls(path)
                if found.ask("PING") == b"PONG":
                    return found
            except (OSError, ValueError):
                continue
        return None

    def close(self) -> None:
        """Hang up."""
        self._stream.close()
        self._socket.close()

    def ask(self, *words: str) -> Any:
        """One command; an error reply raises ValueError."""
        parts = [b"*%d\r\n" % len(words)]
        parts += [b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words]
        self._socket.sendall(b"".join(parts))
        return self._reply()

    def _reply(self) -> Any:
        line = self._stream.readline()
        kind, rest = line[:1], line[1:].rstrip(b"\r\n")
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._stream.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self._reply() for _ in range(int(rest))]
        raise ValueError(line.decode(errors="replace"))

    def info(self) -> dict[str, str]:
        """INFO everything, as one dictionary."""
        return parse_info(self.ask("INFO", "everything").decode())

    def settings(self) -> dict[str, str]:
        """How durable it is: version, appendonly, appendfsync, maxmemory-policy."""
        found = {"version": self.info().get("redis_version", "?")}
        for name in ("appendonly", "appendfsync", "maxmemory-policy"):
            pair = self.ask("CONFIG", "GET", name)
            found[name] = pair[1].decode() if len(pair) == 2 else "?"
        return found


def parse_info(text: str) -> dict[str, str]:
    """`name:value` lines; headings are left out."""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))


def command_costs(before: dict[str, str], after: dict[str, str], messages: int) -> dict[str, dict[str, float]]:
    """Calls and microseconds per message by command, between two INFOs; the dearest first.

    Redis counts a command that a script calls both by itself and inside `evalsha`, so that the rows do not add up.
    """
    found = {}
    for name, text in after.items():
        if not name.startswith("cmdstat_") or not messages:
            continue
        now, then = _fields(text), _fields(before.get(name, ""))
        calls = now.get("calls", 0) - then.get("calls", 0)
        if calls > 0:
            microseconds = now.get("usec", 0) - then.get("usec", 0)
            found[name.removeprefix("cmdstat_")] = {
                "calls_per_message": round(calls / messages, 3),
                "microseconds_per_message": round(microseconds / messages, 2),
            }
    return dict(sorted(found.items(), key=lambda item: -item[1]["microseconds_per_message"]))


def _fields(text: str) -> dict[str, float]:
    return {name: float(value) for name, _, value in (field.partition("=") for field in text.split(",") if field)}
