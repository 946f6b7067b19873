"""The node's own directory: locked for as long as the process lives, and known by a key that proves which directory it is."""

from __future__ import annotations

import fcntl
import secrets
from pathlib import Path
from typing import IO

from relaycluster.store.redis.connection import RedisRefused


class StateDirectory:
    """The node's directory, locked for as long as the process lives: one process for each."""

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._lock: IO[str] = (path / "lock").open("a+", encoding="ascii")
        except OSError as error:
            raise RedisRefused(f"cannot use [node] state_dir {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RedisRefused(
                f"another node runs with [node] state_dir {path}: stop it, or give this one its own"
            ) from None
        self.path = path
        key = path / "node.key"
        if not key.exists():
            key.write_text(secrets.token_hex(16), encoding="ascii")
        self.key = key.read_text(encoding="ascii").strip()
