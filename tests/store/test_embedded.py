"""A Redis of our own: it starts, survives its node, is found again, and one state directory has one node."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from relaycluster.store.redis import embedded
from relaycluster.store.redis.connection import RedisRefused
from tests.support.processes import wait_until
from tests.support.redis_server import RedisClient


@pytest.fixture
def started() -> Iterator[list[embedded.EmbeddedRedis]]:
    """Servers that are gone when the test ends."""
    found: list[embedded.EmbeddedRedis] = []
    yield found
    for each in found:
        if each.process is not None and each.process.poll() is None:
            os.kill(each.pid, signal.SIGKILL)
            each.process.wait()


def _answering(server: embedded.EmbeddedRedis) -> RedisClient:
    wait_until(lambda: embedded._answers(server.socket_path) == server.pid, "the embedded Redis answers")
    return RedisClient(server.socket_path)


def test_start_and_stop(tmp_path: Path, started: list[embedded.EmbeddedRedis]) -> None:
    """Durable, private, in a session of its own, and what was written is there at the next start."""
    for life in range(2):
        server = embedded.start(tmp_path, maxmemory=50_000_000)
        started.append(server)
        client = _answering(server)
        settings = {
            name: client.call("CONFIG", "GET", name)[1].decode()
            for name in ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy", "port")
        }
        assert list(settings.values()) == ["yes", "always", "50000000", "noeviction", "0"]
        assert os.getsid(server.pid) == server.pid != os.getsid(0)
        assert os.stat(server.socket_path).st_mode & 0o077 == 0
        assert client.call("INCR", "lives") == life + 1
        client.close()
        server.stop()
        assert not server.alive()


def test_an_orphan_is_adopted(tmp_path: Path, started: list[embedded.EmbeddedRedis]) -> None:
    """The node was killed and its Redis lives on: the next node takes that one, and can stop it."""
    first = embedded.start(tmp_path)
    started.append(first)
    _answering(first).close()
    second = embedded.start(tmp_path)
    assert (second.process, second.pid, second.alive()) == (None, first.pid, True)
    second.stop()
    assert first.process is not None
    first.process.wait(10)
    assert not second.alive()


def test_a_long_path(tmp_path: Path, started: list[embedded.EmbeddedRedis]) -> None:
    """A unix socket's path has 108 octets: a longer state directory works too, and its orphan is found."""
    deep = tmp_path / ("a" * 60) / ("b" * 60)
    deep.mkdir(parents=True)
    server = embedded.start(deep)
    started.append(server)
    _answering(server).close()
    assert len(server.socket_path) <= embedded.LONGEST_SOCKET_PATH
    assert embedded.start(deep).pid == server.pid
    assert embedded._socket_path(deep / "x") != embedded._socket_path(deep / "y")


def test_a_newer_files_are_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis 6 cannot read what 7 wrote: it would begin empty, so it does not begin."""
    (tmp_path / "redis" / "appendonlydir").mkdir(parents=True)
    monkeypatch.setattr(embedded, "find_server", lambda: ("/nowhere/redis-server", (6, 2, 14)))
    with pytest.raises(RedisRefused, match="Redis 7"):
        embedded.start(tmp_path)


def test_one_node_for_a_state_directory(tmp_path: Path) -> None:
    """The second is refused by name; the key stays over restarts."""
    from relaycluster.store.state_directory import StateDirectory

    first = StateDirectory(tmp_path)
    with pytest.raises(RedisRefused, match="another node runs"):
        StateDirectory(tmp_path)
    key = first.key
    first._lock.close()
    assert StateDirectory(tmp_path).key == key
