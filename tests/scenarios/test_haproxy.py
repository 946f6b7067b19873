"""HAProxy, with the shipped configuration, before two edges: a dead or draining edge costs no client its mail.

The edges here take connections as they come; test_clients_haproxy.py has the PROXY protocol."""

from __future__ import annotations

import urllib.request

from tests.support import programs
from tests.support.deployment import DEPLOY, replaced, write
from tests.support.ledger import settle
from tests.support.load import Load, over_domains
from tests.support.nodes import Cluster, Node
from tests.support.processes import Process, Processes, free_port, wait_until
from tests.support.sink import Sink


def balancer(processes: Processes, edges: list[Node]) -> tuple[Process, str, int]:
    """The shipped haproxy.cfg before these two; the process, its SMTP address and its metrics port."""
    smtp, stats = free_port(), free_port()
    changes = {
        "bind :25\n": f"bind 127.0.0.1:{smtp}\n",
        "bind :587\n": f"bind 127.0.0.1:{free_port()}\n",
        "bind :465\n": f"bind 127.0.0.1:{free_port()}\n",
        "bind 127.0.0.1:8405\n": f"bind 127.0.0.1:{stats}\n",
        "log /dev/log local0": "log stdout format raw local0",
        "maxconn 20000": "maxconn 2000",
    }
    for number, edge in enumerate(edges, 1):
        for port in (25, 587, 465):
            changes[f"    server edge-{number} 10.0.0.1{number}:{port} check port 9025 send-proxy-v2\n"] = (
                f"    server edge-{number} {edge.smtp} check port {edge.http_port}\n"
            )
    config = write(processes.directory, "haproxy.cfg", replaced((DEPLOY / "haproxy/haproxy.cfg").read_text(), changes))
    process = processes.start("haproxy", [programs.require("haproxy"), "-db", "-f", str(config)])
    return process, f"127.0.0.1:{smtp}", stats


def up(stats: int) -> set[str]:
    """The servers of the backend `edges_mx` that HAProxy believes to be up."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{stats}/metrics", timeout=5) as response:
            text = response.read().decode()
    except OSError:
        return set()
    wanted = 'haproxy_server_check_status{proxy="edges_mx",server="'
    lines = [line for line in text.splitlines() if line.startswith(wanted) and 'state="L7OK"' in line]
    return {line.removeprefix(wanted).partition('"')[0] for line in lines if line.split()[-1] == "1"}


def test_edges_come_and_go(processes: Processes, cluster: Cluster, sink: Sink) -> None:
    """One edge drains and comes back, then the other is killed; clients at the balancer always find one."""
    edges = [cluster.node("edge-1"), cluster.node("edge-2")]
    cluster.start()
    haproxy, address, stats = balancer(processes, edges)
    wait_until(lambda: up(stats) == {"edge-1", "edge-2"}, "both edges are up", watched=[haproxy])

    load = Load([address], 1_500, over_domains(50), connections=8, per_connection=10, accept_all=True, per_second=150)
    load.start()
    load.wait_for(200, watched=[haproxy])
    assert edges[0].drain() == 0
    wait_until(lambda: up(stats) == {"edge-2"}, "the drained edge is down", watched=[haproxy])
    load.wait_for(500, watched=[haproxy])
    edges[0].start()
    wait_until(lambda: up(stats) == {"edge-1", "edge-2"}, "it is back", watched=[haproxy])
    edges[1].kill()
    load.wait(watched=[haproxy, edges[0].process])
    found = settle([load], sink, watched=[edges[0].process])
    assert len(found.accepted) == 1_500
    assert not found.unmarked(cluster.marked()), found.explain(found.unmarked(cluster.marked()))
    for edge in edges:
        assert edge.events_named("message_queued"), f"{edge.name} never got a message"


def test_no_connection_while_redis_is_away(processes: Processes, cluster: Cluster, sink: Sink) -> None:
    """/readyz takes every edge out of the balancer when none can queue, and brings them back."""
    edges = [cluster.node("edge-1"), cluster.node("edge-2")]
    cluster.start()
    haproxy, address, stats = balancer(processes, edges)
    wait_until(lambda: len(up(stats)) == 2, "both edges are up", watched=[haproxy])
    assert cluster.redis is not None
    cluster.redis.kill()
    wait_until(lambda: not up(stats), "no edge is up", watched=[haproxy])
    cluster.redis.start()
    wait_until(lambda: len(up(stats)) == 2, "both are back", watched=[haproxy])
    load = Load([address], 50, over_domains(5), connections=2).start()
    load.wait()
    assert len(settle([load], sink).accepted) == 50
