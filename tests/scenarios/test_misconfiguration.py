"""A wrong configuration or an unfit Redis: one line that says what, where and how to mend it, and a non-zero exit."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest

from tests.support.nodes import COMMAND, Cluster, Node
from tests.support.processes import Processes, answers
from tests.support.redis_server import RedisServer

MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown key": ({"node": {"hostnme": "x.test"}}, "node.hostnme", "hostname"),
    "unknown section": ({"lisener": [{"address": "127.0.0.1:1"}]}, "lisener", "listener"),
    "wrong type": ({"node": {"roles": "edge"}}, "node.roles", "list"),
    "not a duration": ({"redis": {"lease": "ten"}}, "redis.lease", "10s"),
    "contradiction": ({"listener": [{"address": "127.0.0.1:1", "mode": "mx"}]}, "listener[0].mode", "relay_domains"),
    "open relay": ({"access": {"relay_domains": ["*"]}}, "access.relay_domains", "open relay"),
    "no such file": ({"redis": {"password_file": "/nonexistent/secret"}}, "redis.password_file", "/nonexistent/secret"),
}


def lines_of(node: Node) -> list[str]:
    """What it said, without the log lines of a start."""
    return [line for line in (node.process.errors() + node.process.output()).splitlines() if line.strip()]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_line_and_status_2(processes: Processes, redis: RedisServer, mistake: str) -> None:
    """File, key and fix; before any socket opens; the same from `check-config`."""
    over, key, fix = MISTAKES[mistake]
    node = Cluster(processes, redis).node("node", over=over)
    node.start(wait=False)
    assert node.process.wait(30) == 2
    about = [line for line in lines_of(node) if key in line]
    assert len(about) == 1, lines_of(node)
    assert len(lines_of(node)) == 1, lines_of(node)
    assert str(node.config) in about[0]
    assert fix in about[0]
    command = [COMMAND, "check-config", "--config", str(node.config)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 2
    assert about[0] in (checked.stdout + checked.stderr).splitlines()


def test_a_missing_file_and_broken_toml(processes: Processes) -> None:
    """The file that was named and is not there, and one that is no TOML."""
    node = Cluster(processes, None).node("node")
    node.config.write_text("[node\nid = 1\n")
    node.start(wait=False)
    assert node.process.wait(30) == 2
    assert len(lines_of(node)) == 1
    assert re.search(r"line 1\b", lines_of(node)[0])
    gone = Cluster(processes, None).node("gone")
    gone.config.unlink()
    gone.start(wait=False)
    assert gone.process.wait(30) == 2
    assert len(lines_of(gone)) == 1
    assert str(gone.config) in lines_of(gone)[0]


def test_a_port_that_is_taken(cluster: Cluster) -> None:
    """The second node on the same port leaves with one line that names it."""
    first = cluster.node("first").start()
    second = cluster.node("second", over={"listener": [{"address": first.smtp, "mode": "submission", "tls": "none"}]})
    second.start(wait=False)
    assert second.process.wait(30) not in (0, None)
    assert sum(first.smtp in line for line in lines_of(second)) == 1, lines_of(second)
    assert "Traceback" not in "\n".join(lines_of(second))


UNFIT = {
    "no append-only file": ({"appendonly": "no"}, "appendonly yes"),
    "fsync each second": ({"appendfsync": "everysec"}, "appendfsync always"),
    "no fsync during a rewrite": ({"no-appendfsync-on-rewrite": "yes"}, "no-appendfsync-on-rewrite no"),
    "eviction": ({"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}, "noeviction"),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_a_redis_that_would_lose_mail_is_refused(processes: Processes, fault: str) -> None:
    """Wrong persistence or eviction policy: one line with the setting that is needed."""
    options, needed = UNFIT[fault]
    redis = RedisServer(processes, options=options).start()
    refuses(Cluster(processes, redis).node("node"), needed)


def test_a_redis_that_is_not_there(processes: Processes) -> None:
    """Unreachable at the start: one line that says where it looked."""
    redis = RedisServer(processes)
    refuses(Cluster(processes, redis).node("node"), redis.socket_path)


def test_a_wrong_password(processes: Processes) -> None:
    """The line does not repeat the password."""
    redis = RedisServer(processes, user="relay", password="right").start()
    node = Cluster(processes, redis).node("node", over={"redis": {"url": redis.url.replace("right", "wrong-one")}})
    refuses(node, "password")
    assert "wrong-one" not in node.process.output() + node.process.errors()


def test_the_right_user_and_password(processes: Processes) -> None:
    """An ACL user over TCP works."""
    redis = RedisServer(processes, user="relay", password="right", tcp=True).start()
    assert Cluster(processes, redis).node("node").start().ready()[0] == 200


def test_another_number_of_partitions(processes: Processes, redis: RedisServer) -> None:
    """The number is fixed when the cluster is created."""
    cluster = Cluster(processes, redis)
    cluster.node("first").start()
    refuses(cluster.node("second", over={"redis": {"partitions": 512}}), "512")


def refuses(node: Node, text: str) -> None:
    """It leaves with a non-zero status and says `text` on exactly one line, without a traceback."""
    node.start(wait=False)
    status = node.process.wait(60)
    assert status not in (0, None), lines_of(node)
    assert sum(text in line for line in lines_of(node)) == 1, lines_of(node)
    assert "Traceback" not in "\n".join(lines_of(node))
    assert not answers(node.smtp_host, node.smtp_port)
