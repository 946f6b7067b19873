"""Redis is killed during load and comes back: clients were told 451, nothing is lost, nothing is sent twice in haste."""

from __future__ import annotations

import time

import pytest

from tests.support.ledger import settle
from tests.support.load import Load, over_domains
from tests.support.nodes import Cluster
from tests.support.processes import wait_until
from tests.support.redis_server import RedisServer
from tests.support.scale import scaled
from tests.support.sink import Rule, Sink

LEASE_SECONDS = 3


@pytest.mark.parametrize("leases_away", [0.5, 2.0], ids=["briefly", "longer than a lease"])
def test_redis_is_killed_and_restarted(cluster: Cluster, redis: RedisServer, sink: Sink, leases_away: float) -> None:
    """Messages whose final dot was sent and not yet answered when Redis died are delivered once, also when Redis was
    away for longer than a lease and every owner's claim had run out."""
    cluster.common = {**cluster.common, "redis": {"lease": f"{LEASE_SECONDS}s"}}
    nodes = [cluster.node(name) for name in ("a", "b")]
    cluster.start()
    alive = [node.process for node in nodes]
    away_seconds = leases_away * LEASE_SECONDS
    sink.rules(Rule("dot", "*@slow.test", delay_seconds=away_seconds + 4))
    edges = [node.smtp for node in nodes]

    # More than can be sent: it goes on, however fast the machine is, until Redis has been back for a while.
    load = Load(edges, 1_000_000, over_domains(50), accept_all=True, per_second=300).start()
    load.wait_for(500, watched=alive)
    slow = Load(edges, 10, lambda number: [f"u{number}@slow.test"], connections=10).start()
    assert len(slow.wait()) == len(slow.accepted()) == 10
    # The sink writes the ledger before it waits with its answer: these are in flight now.
    wait_until(lambda: in_flight(sink) == 10, "ten messages are in flight", watched=alive)
    redis.kill()
    died = time.monotonic()
    wait_until(lambda: sum(load.refusals().values()) >= 20, "clients are refused", watched=alive)
    for node in nodes:
        wait_until(lambda node=node: node.ready()[0] == 503, f"{node.name} is not ready", watched=alive)
    wait_until(lambda: time.monotonic() > died + away_seconds, "Redis was away for long enough", watched=alive)
    redis.start()
    for node in nodes:
        node.wait_ready()
    load.wait_for(len(load.accepted()) + scaled(1_000, 10_000), 300, watched=alive)
    load.stop()
    found = settle([load, slow], sink, watched=alive)
    assert {reply[:9] for reply in load.refusals()} == {"451 4.3.0"}, load.refusals()
    assert not found.damaged
    assert not found.unmarked(cluster.marked()), found.explain(found.unmarked(cluster.marked()))
    assert in_flight(sink) == 10, "a message in flight was sent twice"
    wait_until(lambda: cluster.sum("queue_items") == 0, "the queue is empty", watched=alive)


def in_flight(sink: Sink) -> int:
    """How often a message for the slow domain was taken."""
    return sum(message.recipients[0].endswith("@slow.test") for message in sink.messages())


def test_redis_that_came_back_without_durability_is_refused_until_it_is_mended(
    cluster: Cluster, redis: RedisServer
) -> None:
    """On a reconnect, too, the persistence is checked: 451 and /readyz 503 with the reason, until it is right again."""
    node = cluster.node("node").start()
    for setting, wrong, right in (
        ("appendfsync", "everysec", "always"),
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
    ):
        redis.call("CONFIG", "SET", setting, wrong)
        redis.call("CLIENT", "KILL", "TYPE", "normal")
        wait_until(lambda: node.ready()[0] == 503, "it is not ready", watched=[node.process])
        wait_until(lambda setting=setting: setting in node.ready()[1], "it says why", watched=[node.process])
        load = Load([node.smtp], 1, over_domains(1), connections=1).start()
        load.wait()
        assert {reply[:9] for reply in load.refusals()} == {"451 4.3.0"}, load.summary()
        redis.call("CONFIG", "SET", setting, right)
        node.wait_ready()
    load = Load([node.smtp], 1, over_domains(1), connections=1).start()
    load.wait()
    assert len(load.accepted()) == 1
