"""A node on Redis as docs/operate/redis.md sets it up: the shipped file and an ACL user with no more rights than needed."""

from __future__ import annotations

import re

import pytest

from tests.support.deployment import DEPLOY, replaced, write
from tests.support.ledger import settle
from tests.support.load import Load, over_domains
from tests.support.nodes import Cluster, smarthost
from tests.support.processes import REPOSITORY, Processes, free_port
from tests.support.redis_server import servers
from tests.support.sink import Rule, Sink


def acl_line() -> str:
    """The line for the nodes' user, from the page that operators copy it from."""
    page = (REPOSITORY / "docs/operate/redis.md").read_text()
    found = re.search(r"^ +(user relaycluster .*)$", page, re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize("version", sorted(servers()))
def test_with_the_shipped_file_and_acl(processes: Processes, version: str) -> None:
    """Accept, deliver, defer, bounce and restart: no command that a node needs is forbidden to its user."""
    port = free_port()
    acl = write(processes.directory, "relaycluster.acl", f"user default off\n{acl_line()}\n")
    shipped = (DEPLOY / "redis/relaycluster.conf").read_text()
    config = replaced(shipped, {"dir /var/lib/redis": f"dir {processes.directory}", "port 6379": f"port {port}"})
    path = write(processes.directory, "relaycluster.conf", f"{config}\naclfile {acl}\n")
    redis = processes.start("redis", [servers()[version], str(path)])
    redis.wait_for_output("Ready to accept connections")
    password = re.search(r">(\S+)", acl_line())
    assert password
    secret = write(processes.directory, "password", password[1] + "\n")

    sink = Sink(processes).start()
    common = {
        "redis": {
            "url": f"redis://127.0.0.1:{port}/0",
            "username": "relaycluster",
            "password_file": str(secret),
        },
        "destination": [smarthost(sink.endpoints, rate="200/s")],
        "delivery": {"tls": "none", "retry": ["1s"]},
    }
    cluster = Cluster(processes, None, common)
    nodes = [cluster.node("a"), cluster.node("b")]
    cluster.start()
    sink.rules(
        Rule("rcpt", "*@d1.test", reply="450 4.2.0 later", first=1),
        Rule("rcpt", "*@d2.test", reply="550 5.1.1 unknown"),
    )
    load = Load([node.smtp for node in nodes], 200, over_domains(10), connections=4).start()
    load.wait(watched=[node.process for node in nodes])
    assert len(load.accepted()) == 200, load.summary()
    settle([load], sink)
    nodes[0].kill()
    nodes[0].start()
    assert nodes[1].drain() == 0
    denied = [line for node in nodes for line in node.process.output().splitlines() if "NOPERM" in line]
    assert not denied, denied[:3]
