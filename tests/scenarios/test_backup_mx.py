"""The cluster is a backup MX: while the primary is down mail waits, and goes round to nobody (RFC 5321 5.1)."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator

import pytest

from tests.support.dns import FakeDNS
from tests.support.nodes import Cluster, Node
from tests.support.processes import Processes, free_port, wait_until
from tests.support.redis_server import RedisServer
from tests.support.sink import Sink

PRIMARY = "127.0.4.2"
ZONE = f"""
example.test      MX 10 primary.test
example.test      MX 20 first.relay.test
example.test      MX 30 second.relay.test
primary.test      A {PRIMARY}
first.relay.test  A 127.0.0.1
second.relay.test A 127.0.0.1
"""
"""Both edges are one place, where only the first listens: a port holds for all hosts of a destination."""


@pytest.fixture
def dns() -> Iterator[FakeDNS]:
    with FakeDNS(ZONE, f"127.0.0.1:{free_port()}") as server:
        yield server


def accepted(edge: Node) -> int:
    return len(edge.events_named("message_queued"))


def test_the_primary_is_down(processes: Processes, redis: RedisServer, dns: FakeDNS) -> None:
    """Mail taken by either edge waits at a node that only delivers, which knows both by the names of its cluster, and goes to the
    primary when it is back. No edge is ever handed a message of our own."""
    common = {"dns": {"servers": [dns.address]}, "delivery": {"tls": "none", "retry": ["1s"]}}
    cluster = Cluster(processes, redis, common)
    first = cluster.node("first", ["edge"])
    second = cluster.node("second", ["edge"])
    over = {"destination": [{"match": ["*"], "port": first.smtp_port}]}
    delivery = cluster.node("delivery", ["delivery"], over)
    cluster.start()
    for edge in (first, second):
        with smtplib.SMTP(edge.smtp_host, edge.smtp_port, timeout=30) as client:
            client.sendmail("someone@sender.test", ["bob@example.test"], b"Subject: backup\r\n\r\nx\r\n")
    wait_until(lambda: len(delivery.events_named("deferred")) >= 2, "both are deferred", watched=[delivery.process])
    assert {event["stage"] for event in delivery.events_named("deferred")} == {"connect"}
    assert (accepted(first), accepted(second)) == (1, 1)
    primary = Sink(processes, "primary", hosts=[PRIMARY], port=first.smtp_port, keep=True).start()
    received = primary.wait_for(2, 90, watched=[delivery.process])
    assert [message.recipients for message in received] == [["bob@example.test"]] * 2
    assert (accepted(first), accepted(second)) == (1, 1)
    assert not delivery.events_named("failed")
    assert not [event for event in cluster.events() if event["event"] == "error"]
