"""Redis at its `maxmemory`: clients are told 452, while delivery goes on and frees it."""

from __future__ import annotations

from tests.support.ledger import settle
from tests.support.load import Load, over_domains
from tests.support.nodes import Cluster
from tests.support.processes import wait_until
from tests.support.redis_server import RedisServer
from tests.support.sink import Sink

MEBIBYTE = 1 << 20


def test_full_by_the_watermark(cluster: Cluster, redis: RedisServer, sink: Sink) -> None:
    """Mail piles up behind a host that is away; intake stops below the limit, and resumes once the mail is gone."""
    redis.call("CONFIG", "SET", "maxmemory", used(redis) + 24 * MEBIBYTE)
    nodes = [cluster.node(name) for name in ("a", "b")]
    cluster.start()
    alive = [node.process for node in nodes]
    edges = [node.smtp for node in nodes]
    sink.refuse(sink.endpoints[0])

    load = Load(edges, 20_000, over_domains(20), size=10_000, pause_after_refusal_seconds=0.2).start()
    wait_until(lambda: sum(load.refusals().values()) >= 40, "clients are refused", 120, watched=alive)
    for node in nodes:
        wait_until(lambda node=node: node.ready()[0] == 503, "a full node is not ready", watched=alive)
    load.stop()
    assert {reply[:9] for reply in load.refusals()} == {"452 4.3.1"}, load.refusals()
    assert used(redis) < int(redis.info()["maxmemory"])

    sink.listen(sink.endpoints[0])
    found = settle([load], sink, watched=alive)
    for node in nodes:
        node.wait_ready()
    after = Load(edges, 50, over_domains(20), connections=2).start()
    after.wait()
    assert len(after.accepted()) == 50, after.summary()
    settle([after], sink, watched=alive)
    assert not found.duplicates
    assert not found.refused_but_delivered


def test_full_for_real(cluster: Cluster, redis: RedisServer, sink: Sink) -> None:
    """Something else took all of the memory: Redis itself refuses writes that need more. Delivery of what is queued
    goes on, to its end, and frees what it held."""
    node = cluster.node("node", over={"redis": {"memory_watermark": 0.99}}).start()
    alive = [node.process]
    sink.refuse(sink.endpoints[0])
    queued = Load([node.smtp], 500, over_domains(20), size=10_000, connections=5).start()
    queued.wait(watched=alive)
    assert len(queued.accepted()) == 500
    redis.call("CONFIG", "SET", "maxmemory", used(redis) - MEBIBYTE)

    load = Load([node.smtp], 100_000, over_domains(20), connections=2, pause_after_refusal_seconds=0.2).start()
    wait_until(lambda: sum(load.refusals().values()) >= 10, "clients are refused", watched=alive)
    assert not load.accepted()
    sink.listen(sink.endpoints[0])
    found = settle([queued], sink, watched=alive)
    assert not found.duplicates
    wait_until(load.accepted, "mail is accepted again", watched=alive)
    load.stop()
    assert {reply[:9] for reply in load.refusals()} == {"452 4.3.1"}, load.refusals()
    after = settle([load], sink, watched=alive)
    assert not after.duplicates
    assert not after.refused_but_delivered


def used(redis: RedisServer) -> int:
    """used_memory."""
    return int(redis.info("memory")["used_memory"])
