"""A node that stands still for longer than its lease, and then goes on where it was: it must not finish what others have taken over."""

from __future__ import annotations

from collections import Counter

from tests.support.ledger import account
from tests.support.load import Load
from tests.support.nodes import Cluster
from tests.support.processes import wait_until
from tests.support.sink import Rule, Sink

HELD_SECONDS = 8.0


def test_a_frozen_node_writes_no_final_dot(cluster: Cluster, sink: Sink) -> None:
    """It waits for the reply to DATA when it is stopped; the other node takes over and delivers; when it goes on it gets its 354, its
    lease is proven again soon, but by a new life: nothing of the old one is finished."""
    nodes = [cluster.node(name, over={"redis": {"lease": "2s"}}) for name in ("a", "b")]
    cluster.start()
    wait_until(lambda: all(node.metric("ring_nodes") == 2 for node in nodes), "both see both")
    sink.rules(Rule("data", "*@d1.test", delay_seconds=HELD_SECONDS, first=1))
    load = Load([nodes[0].smtp], 5, lambda number: [f"u{number}@d1.test"], connections=5).start()
    load.wait(watched=[node.process for node in nodes])
    assert len(load.accepted()) == 5
    frozen = wait_until(
        lambda: next((node for node in nodes if node.metric("delivery_connections", state="busy") >= 1), None),
        "somebody is sending",
    )
    (other,) = [node for node in nodes if node is not frozen]
    frozen.process.freeze()
    sink.wait_for(5, 60, watched=[other.process])
    frozen.process.thaw()
    wait_until(lambda: frozen.events_named("ownership_lost"), "it knows that its life was over", 60)
    wait_until(lambda: cluster.sum("queue_items") == 0, "nothing is queued or in hand", 60)
    wait_until(lambda: frozen.metric("delivery_connections", state="busy") == 0, "it has let go of what it had", 60)
    found = account([load], sink.messages())
    assert not found.missing
    assert not found.duplicates, found.explain(found.duplicates)
    assert Counter(message.helo for message in sink.messages()) == {f"{other.name}.relay.test": 5}
