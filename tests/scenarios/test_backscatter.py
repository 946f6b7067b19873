"""Somebody forges a sender: its owner is not flooded with our notices, over the whole cluster, and others still get theirs."""

from __future__ import annotations

import smtplib

from tests.support.load import Load
from tests.support.nodes import Cluster, smarthost
from tests.support.processes import Processes, wait_until
from tests.support.redis_server import RedisServer
from tests.support.sink import Rule, Sink

FAILED = 40
CAP = 5
FORGED = "bounce.test"  # what a load has as its reverse-path


def test_notices_to_one_domain_are_capped(processes: Processes, redis: RedisServer) -> None:
    """Two nodes have forty failures to tell to one domain, which gets five notices; each of the other thirty-five leaves a line. The one
    failure of another domain is told."""
    remote = Sink(processes, "remote").start()
    remote.rules(Rule("rcpt", reply="550 5.1.1 no such user"))
    home = Sink(processes, "home").start()
    cluster = Cluster(
        processes,
        redis,
        {
            "destination": [
                {"match": [FORGED, "honest.test"], "hosts": home.endpoints},
                smarthost(remote.endpoints),
            ],
            "delivery": {"tls": "none", "notices_per_sender": f"{CAP}/h"},
        },
    )
    nodes = [cluster.node(name) for name in ("a", "b")]
    cluster.start()
    forged = Load([node.smtp for node in nodes], FAILED, lambda n: [f"u{n}@d{n % 8}.test"])
    forged.start()
    forged.wait()

    def lines(name: str) -> list[dict[str, object]]:
        return [event for node in nodes for event in node.events_named(name)]

    wait_until(lambda: len(lines("failed")) == FAILED, "all have failed")
    with smtplib.SMTP(nodes[0].smtp_host, nodes[0].smtp_port, timeout=30) as client:
        client.sendmail("me@honest.test", ["u@d0.test"], "Subject: mine\r\n\r\n.\r\n")
    wait_until(lambda: len(lines("notice_queued")) == CAP + 1, "the notices are queued")
    home.wait_for(CAP + 1)
    told = [message.recipients[0].partition("@")[2] for message in home.messages()]
    assert told.count(FORGED) == CAP
    assert told.count("honest.test") == 1
    dropped = lines("notice_dropped")
    assert len(dropped) == FAILED - CAP
    assert all(str(CAP) in str(event["why"]) for event in dropped), dropped[0]
