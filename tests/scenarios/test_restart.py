"""A node that was killed comes back under its name and goes on, without waiting for its own lease to run out."""

from __future__ import annotations

from tests.support.ledger import account, settle
from tests.support.load import Load, over_domains
from tests.support.nodes import Cluster, smarthost
from tests.support.processes import Processes, processes_of, wait_until
from tests.support.sink import Rule, Sink


def test_killed_and_restarted(cluster: Cluster, sink: Sink) -> None:
    """What it had in flight is sent again, marked; what was queued is sent once. Its long lease keeps nobody waiting."""
    node = cluster.node("node", over={"redis": {"lease": "120s"}}).start()
    sink.rules(Rule("dot", "*@d1.test", delay_seconds=1000), Rule("rcpt", "*@d2.test", reply="450 4.2.0 later"))
    load = Load([node.smtp], 300, over_domains(10), connections=10).start()
    load.wait(watched=[node.process])
    assert len(load.accepted()) == 300
    wait_until(lambda: any("@d1." in m.recipients[0] for m in sink.messages()), "some is in flight")
    in_flight = {m.load_id for m in sink.messages() if "@d1." in m.recipients[0]}
    node.kill()
    sink.rules()
    node.start()
    settle([load], sink, watched=[node.process])
    found = wait_until(
        lambda: (it := account([load], sink.messages())) and {one for one, _ in it.duplicates} >= in_flight and it,
        "what was in flight is sent again",
        watched=[node.process],
    )
    assert not found.unmarked(cluster.marked()), found.explain(found.unmarked(cluster.marked()))


def test_the_same_name_twice(cluster: Cluster) -> None:
    """A second node with the name of one that lives is refused with one line; the first goes on."""
    first = cluster.node("first", over={"node": {"id": "twin"}}).start()
    second = cluster.node("second", over={"node": {"id": "twin"}})
    second.start(wait=False)
    assert second.process.wait(60) != 0
    assert "twin" in second.process.errors() + second.process.output()
    assert "Traceback" not in second.process.errors() + second.process.output()
    assert first.ready()[0] == 200


def test_embedded_redis_survives_the_node(processes: Processes) -> None:
    """One node with a Redis of its own: killed, its mail is there when it comes back; stopped, no process is left."""
    sink = Sink(processes).start()
    cluster = Cluster(processes, None, {"destination": [smarthost(sink.endpoints)], "delivery": {"retry": ["1s"]}})
    node = cluster.node("node").start()
    sink.refuse(sink.endpoints[0])
    load = Load([node.smtp], 100, over_domains(10), connections=5).start()
    load.wait(watched=[node.process])
    assert len(load.accepted()) == 100
    node.kill()
    sink.listen(sink.endpoints[0])
    node.start()
    found = settle([load], sink, watched=[node.process])
    assert not found.unmarked(cluster.marked())
    others = {sink.process.pid}
    assert len(set(processes_of(processes.directory)) - others) == 2, "the node and its one Redis"
    assert node.drain() == 0
    wait_until(lambda: set(processes_of(processes.directory)) == others, "its Redis is gone, too")
