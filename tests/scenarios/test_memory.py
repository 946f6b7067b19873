"""The memory of a node does not grow with the queue.

`SCENARIO_SCALE=full` queues the 100,000 messages that the promise is about.
"""

from __future__ import annotations

from tests.support.load import Load, over_domains
from tests.support.nodes import Cluster
from tests.support.scale import scaled

MOST_GROWTH_BYTES = 60 * 1_000_000


def test_an_edge_alone_queues_without_growing(cluster: Cluster) -> None:
    """No delivery node runs; all that is accepted stays queued, in Redis and nowhere else."""
    count = scaled(15_000, 100_000)
    edge = cluster.node("edge", ["edge"]).start()
    idle = edge.process.resident_bytes()
    load = Load([edge.smtp], count, over_domains(1000), connections=20).start()
    load.wait(900, watched=[edge.process])
    assert len(load.accepted()) == count, load.summary()
    grown = edge.process.resident_bytes() - idle
    print(f"{idle / 1e6:.1f} MB idle, {grown / 1e6:+.1f} MB with {count} queued")
    assert grown < MOST_GROWTH_BYTES
