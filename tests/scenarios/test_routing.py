"""Routing by DNS as RFC 5321 section 5 has it: MX by preference, the next host when one fails, null MX, implicit MX."""

from __future__ import annotations

import smtplib
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.dns import FakeDNS
from tests.support.ledger import settle
from tests.support.load import Load
from tests.support.nodes import Cluster, Node
from tests.support.processes import Processes, free_port, wait_until
from tests.support.redis_server import RedisServer
from tests.support.sink import Rule, Sink

ZONE = """
mx1.test  A 127.0.0.11
mx2.test  A 127.0.0.12
mx3.test  A 127.0.0.13

order.test   MX 10 mx1.test
order.test   MX 20 mx2.test
equal.test   MX 10 mx1.test
equal.test   MX 10 mx2.test
equal.test   MX 10 mx3.test
null.test    MX 0 .
implicit.test  A 127.0.0.13
alias.test   CNAME order.test
broken.test  SERVFAIL
gone.test    MX 10 nowhere.test
sender.test  MX 10 mx3.test
"""


@pytest.fixture
def mx(processes: Processes) -> Sink:
    """Three hosts in one."""
    return Sink(processes, "mx", hosts=["127.0.0.11", "127.0.0.12", "127.0.0.13"], keep=True).start()


@pytest.fixture
def dns() -> Iterator[FakeDNS]:
    with FakeDNS(ZONE, f"127.0.0.1:{free_port()}") as server:
        yield server


@pytest.fixture
def node(processes: Processes, redis: RedisServer, mx: Sink, dns: FakeDNS) -> Node:
    common = {
        "dns": {"servers": [dns.address]},
        "destination": [{"match": ["*"], "port": mx.port}],
        "delivery": {"tls": "none", "retry": ["1s"], "idle": "1s", "messages_per_connection": 10},
    }
    return Cluster(processes, redis, common).node("node").start()


def send(node: Node, recipient: str) -> None:
    with smtplib.SMTP(node.smtp_host, node.smtp_port) as client:
        client.sendmail("someone@sender.test", [recipient], b"Subject: routed\r\n\r\nx\r\n")


def hosts(mx: Sink) -> list[str]:
    return [message.endpoint.partition(":")[0] for message in mx.messages()]


def test_preference_failover_and_return(node: Node, mx: Sink) -> None:
    """The lowest preference takes all; when it is away or answers 421 the next one does, at once."""
    send(node, "a@order.test")
    send(node, "a@alias.test")
    send(node, "a@implicit.test")
    mx.wait_for(3)
    assert sorted(hosts(mx)) == ["127.0.0.11", "127.0.0.11", "127.0.0.13"]
    mx.refuse(f"127.0.0.11:{mx.port}")
    mx.drop_all()
    send(node, "b@order.test")
    mx.wait_for(4)
    assert hosts(mx)[3] == "127.0.0.12"
    assert not node.events_named("deferred"), "a second host was there, and the message waited nevertheless"


def test_a_host_that_greets_with_421(node: Node, mx: Sink) -> None:
    """Its turn is over for now; the next host gets the mail in the same attempt."""
    mx.rules(Rule("greeting", f"127.0.0.11:{mx.port}", reply="421 4.3.2 not now", drop=True))
    send(node, "a@order.test")
    assert mx.wait_for(1)[0].endpoint.startswith("127.0.0.12:")
    assert not node.events_named("deferred")


def test_equal_preference_shares_the_load(node: Node, mx: Sink) -> None:
    """Hosts of one preference are tried in random order (RFC 5321 5.1)."""
    load = Load([node.smtp], 600, lambda number: [f"u{number}@equal.test"], connections=10, per_connection=5).start()
    load.wait()
    settle([load], mx)
    shares = Counter(hosts(mx))
    assert set(shares) == {"127.0.0.11", "127.0.0.12", "127.0.0.13"}, shares


@pytest.mark.parametrize(
    ("domain", "status"), [("null.test", "5.1.10"), ("nxdomain.test", "5.1.2"), ("gone.test", "5.")]
)
def test_no_way_there(node: Node, mx: Sink, domain: str, status: str) -> None:
    """A null MX (RFC 7505), a name that does not exist, an MX that names nothing: the sender is told at once."""
    send(node, f"u@{domain}")
    notice = mx.wait_for(1)[0]
    assert (notice.reverse_path, notice.recipients) == ("", ["someone@sender.test"])
    assert b"\r\nStatus: " + status.encode() in notice.content
    assert f"u@{domain}".encode() in notice.content


def test_broken_dns_is_tried_again(node: Node, mx: Sink, dns: FakeDNS) -> None:
    """SERVFAIL defers; when the answer is there the message goes."""
    send(node, "u@broken.test")
    wait_until(lambda: node.events_named("deferred"), "it is deferred", watched=[node.process])
    assert not mx.messages()
    dns.set_zone(ZONE.replace("broken.test  SERVFAIL", "broken.test MX 10 mx2.test"))
    assert mx.wait_for(1, 60, watched=[node.process])[0].recipients == ["u@broken.test"]


def test_one_bad_domain_does_not_hold_up_the_others(node: Node, mx: Sink) -> None:
    """A host that never answers keeps its own domain waiting and no other one."""
    mx.rules(Rule("rcpt", "*@order.test", delay_seconds=1000))
    for number in range(40):
        send(node, f"u{number}@order.test")
    load = Load([node.smtp], 300, lambda number: [f"u{number}@implicit.test"], connections=3).start()
    load.wait()
    settle([load], mx, watched=[node.process])
    assert {message.recipients[0].partition("@")[2] for message in mx.messages()} == {"implicit.test"}
