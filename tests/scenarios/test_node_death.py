"""A delivery process is killed half-way and an edge in the middle of DATA: nothing is lost, and nobody waits long.

`SCENARIO_SCALE=full` sends the 20,000 messages that the promise is about.
"""

from __future__ import annotations

import time
from collections import defaultdict

from tests.support.ledger import settle
from tests.support.load import Load, Unanswered, over_domains
from tests.support.nodes import Cluster, smarthost
from tests.support.processes import Processes, wait_until
from tests.support.redis_server import RedisServer
from tests.support.scale import scaled
from tests.support.sink import Received, Sink

DOMAINS = 300
RESUMED_WITHIN_SECONDS = scaled(90.0, 15.0)


def test_a_delivery_node_and_an_edge_are_killed(processes: Processes, redis: RedisServer) -> None:
    """Three nodes on one Redis. `c` only delivers and is killed half-way; `b` is killed while a client is in DATA."""
    count = scaled(6_000, 20_000)
    sink = Sink(processes, hosts=("127.0.0.1", "127.0.0.2", "127.0.0.3")).start()
    cluster = Cluster(processes, redis, {"destination": [smarthost(sink.endpoints)], "delivery": {"retry": ["1s"]}})
    a, b = cluster.node("a"), cluster.node("b")
    c = cluster.node("c", ["delivery"])
    cluster.start()
    wait_until(lambda: all(node.metric("ring_nodes") == 3 for node in cluster.nodes), "all see three nodes")

    killed: list[float] = []

    def kill_edge_in_data(number: int, edge: str) -> None:
        if number >= count * 3 // 4 and edge == b.smtp and not killed:
            killed.append(time.monotonic())
            b.kill()

    load = Load(
        [a.smtp, b.smtp], count, over_domains(DOMAINS), per_connection=50, accept_all=True, on_content=kill_edge_in_data
    ).start()
    load.wait_for(count // 2, 300, watched=[a.process])
    c.kill()
    c_died = time.monotonic()
    load.wait(600, watched=[a.process])
    assert killed, "the edge was never killed in DATA"
    assert any(isinstance(sent.answer, Unanswered) for sent in load.sent)

    found = settle([load], sink, watched=[a.process])
    assert len(found.accepted) == count
    assert not found.damaged
    assert not found.foreign
    assert not found.unmarked(cluster.marked()), found.explain(found.unmarked(cluster.marked()))
    assert set(load.refusals()) == set(), load.summary()
    assert sink.problems() == []

    by_domain: dict[str, list[Received]] = defaultdict(list)
    for message in sink.messages():
        by_domain[message.recipients[0].rpartition("@")[2]].append(message)
    late = {
        domain: resumed - c_died
        for domain, messages in by_domain.items()
        if any(message.helo == "c.relay.test" for message in messages)
        and (resumed := first_after(messages, c_died)) > c_died + RESUMED_WITHIN_SECONDS
    }
    assert not late, late
    assert any(message.helo == "c.relay.test" for message in sink.messages()), "c never delivered anything"
    restless = {domain: hands(messages) for domain, messages in by_domain.items() if len(hands(messages)) > 4}
    assert not restless, restless
    wait_until(lambda: cluster.sum("queue_items") == 0, "no node counts anything as queued")
    print(f"{len(found.duplicates)} duplicates, all marked; {load.summary()}")


def first_after(messages: list[Received], moment: float) -> float:
    """When the first message of another node than c came after `moment`."""
    return min(
        (message.at for message in messages if message.at > moment and message.helo != "c.relay.test"), default=0
    )


def hands(messages: list[Received]) -> list[str]:
    """Through whose hands a domain went: its senders in order, repetitions folded.

    Two deaths move a domain twice at most. One claimant at a time means that the nodes do not alternate, except for
    what was in flight at a hand-over.
    """
    folded: list[str] = []
    for message in messages:
        if not folded or folded[-1] != message.helo:
            folded.append(message.helo)
    return folded
