"""A provider's limits count for all domains whose MX hosts are the provider's, over all nodes, also when one is killed."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from statistics import median

import pytest

from tests.support.capacity import carried, due
from tests.support.dns import FakeDNS
from tests.support.ledger import settle, waits
from tests.support.load import Load
from tests.support.nodes import Cluster, Node
from tests.support.processes import Processes, free_port, wait_until
from tests.support.redis_server import RedisServer
from tests.support.scale import scaled
from tests.support.sink import Received, Rule, Sink

DOMAINS = 40
RATE = 100
WATCHED_SECONDS = scaled(15, 30)
WINDOW_SECONDS = 5.0
TOLERANCE = 10
TAKE_OVER_SECONDS = 8.0
"""The lease of the killed node, five seconds here, and what it takes to notice."""
USED = 0.9
MOST_CONNECTIONS = 5
OTHER = "127.0.0.20"
PROVIDER = "127.0.0.21"


def zone() -> str:
    """Forty domains, each with a name of its own for its host at the provider; and as many elsewhere, without a limit."""
    lines = []
    for n in range(DOMAINS):
        lines += [f"d{n}.test MX 10 d{n}.mail.provider.test", f"d{n}.mail.provider.test A {PROVIDER}"]
        lines += [f"other{n}.test MX 10 d{n}.mail.other.test", f"d{n}.mail.other.test A {OTHER}"]
    return "\n".join(lines)


def others(number: int) -> list[str]:
    """Recipients without a limit."""
    return [f"u{number}@other{number % DOMAINS}.test"]


@pytest.fixture
def mx(processes: Processes) -> Sink:
    return Sink(processes, "mx", hosts=[OTHER, PROVIDER]).start()


@pytest.fixture
def dns() -> Iterator[FakeDNS]:
    with FakeDNS(zone(), f"127.0.0.1:{free_port()}") as server:
        yield server


def start(
    processes: Processes, redis: RedisServer, mx: Sink, dns: FakeDNS, **limits: object
) -> tuple[Node, list[Node]]:
    """An edge, and three nodes that deliver."""
    cluster = Cluster(
        processes,
        redis,
        {
            "redis": {"url": redis.url, "lease": "5s"},
            "dns": {"servers": [dns.address]},
            "destination": [
                {"match": ["*"], "port": mx.port},
                {"mx_suffix": ["provider.test"], "port": mx.port, **limits},
            ],
            "delivery": {"tls": "none", "retry": ["1s"], "messages_per_connection": 20},
        },
    )
    edge = cluster.node("edge", ["edge"])
    nodes = [cluster.node(name, ["delivery"]) for name in ("a", "b", "c")]
    cluster.start()
    wait_until(lambda: all(node.metric("ring_nodes") == 3 for node in nodes), "all see three nodes")
    return edge, nodes


@pytest.mark.timeout(600)
def test_a_rate_for_a_provider(processes: Processes, redis: RedisServer, mx: Sink, dns: FakeDNS) -> None:
    """100/s over forty domains on three nodes, one of which is killed. In no five seconds are there more than 510; outside the
    take-over at least nine tenths of the rate are used, as far as the cluster carries that at all."""
    edge, nodes = start(processes, redis, mx, dns, rate=f"{RATE}/s", connections=20)
    before = carried([edge.smtp], mx, 800, others)
    count = RATE * (WATCHED_SECONDS + 10)
    load = Load([edge.smtp], count, lambda n: [f"u{n}@d{n % DOMAINS}.test"]).start()
    other = Load([edge.smtp], 100, others, connections=2).start()
    assert len(load.wait()) == len(load.accepted())
    other.wait()

    def of_provider() -> list[Received]:
        return [message for message in mx.messages() if "@other" not in message.recipients[0]]

    wait_until(lambda: len(of_provider()) >= RATE * WATCHED_SECONDS // 2, "half of it went out", 300)
    senders = {message.helo for message in of_provider()}
    assert senders == {f"{node.name}.relay.test" for node in nodes}, senders
    nodes[2].kill()
    killed_at = time.monotonic()
    found = settle([load, other], mx, timeout_seconds=300)
    assert not found.missing
    after = carried([edge.smtp], mx, 800, others)

    times = [message.at for message in of_provider()]
    most = max(bisect_left(times, start + WINDOW_SECONDS) - number for number, start in enumerate(times))
    first, last = times[0] + 2, times[-1] - 2
    outside = [at for at in times if first <= at < last and not killed_at <= at < killed_at + TAKE_OVER_SECONDS]
    used = len(outside) / (last - first - TAKE_OVER_SECONDS)
    print(f"at most {most} in {WINDOW_SECONDS:g} s; {used:.1f}/s used outside of the take-over")
    assert most <= RATE * WINDOW_SECONDS + TOLERANCE
    asked = USED * due(RATE, before, after)
    assert used >= asked
    assert last - first < 1.5 * count / asked

    waited = max(waits(other, mx))
    assert waited < median(waits(load, mx)) / 2, "the provider's limit held back somebody else's mail"


@pytest.mark.timeout(600)
def test_never_a_sixth_connection(processes: Processes, redis: RedisServer, mx: Sink, dns: FakeDNS) -> None:
    """The provider allows five connections. Three nodes have mail for it; one is killed, one is drained and comes back. It never sees
    a sixth, and everybody's mail goes on."""
    mx.rules(Rule("dot", delay_seconds=0.02))
    edge, nodes = start(processes, redis, mx, dns, connections=MOST_CONNECTIONS)
    load = Load([edge.smtp], 5_000, lambda n: [f"u{n}@d{n % DOMAINS}.test"]).start()
    wait_until(lambda: len(mx.messages()) >= 1_000, "a fifth went out", 120)
    nodes[2].kill()
    wait_until(lambda: len(mx.messages()) >= 2_500, "half of it went out", 300)
    assert nodes[1].drain() == 0
    nodes[1].start()
    load.wait(300)
    found = settle([load], mx, timeout_seconds=300)
    assert not found.missing
    most = mx.stat().most[f"{PROVIDER}:{mx.port}"]
    print(f"at most {most} connections at once")
    assert most <= MOST_CONNECTIONS
