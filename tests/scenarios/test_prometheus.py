"""Prometheus, with the shipped configuration, scrapes two nodes: every query of the dashboard returns data."""

from __future__ import annotations

import json
import math
import smtplib
import urllib.parse
import urllib.request
from typing import Any

from tests.support import programs
from tests.support.deployment import DEPLOY, dashboard_queries, replaced, write
from tests.support.load import Load, over_domains
from tests.support.nodes import Cluster
from tests.support.processes import Process, Processes, free_port, wait_until
from tests.support.secured import certificate_files
from tests.support.sink import Rule, Sink


class Prometheus:
    """A server with the shipped configuration, that scrapes each half second."""

    def __init__(self, processes: Processes, targets: list[str]) -> None:
        shipped = (DEPLOY / "prometheus/prometheus.yml").read_text()
        places = ["10.0.0.11:9025", "10.0.0.12:9025", "10.0.0.21:9025", "10.0.0.22:9025"]
        changes = {
            "scrape_interval: 15s": "scrape_interval: 500ms",
            "evaluation_interval: 15s": "evaluation_interval: 500ms",
            **dict(zip(places, targets, strict=False)),
            **{f"          - {place}\n": "" for place in places[len(targets) :]},
        }
        config = write(processes.directory, "prometheus.yml", replaced(shipped, changes))
        rules = "relaycluster.rules.yml"
        write(processes.directory, rules, (DEPLOY / "prometheus" / rules).read_text())
        self.port = free_port()
        self.process: Process = processes.start(
            "prometheus",
            [
                programs.require("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={processes.directory / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
        )

    def api(self, path: str, **parameters: str) -> Any:
        """The data of an answer, or None while there is none."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.load(response)["data"]
        except OSError:
            return None

    def query(self, query: str) -> list[float]:
        """The values of an instant query, without those that are not numbers."""
        data = self.api("query", query=query) or {"result": []}
        return [value for sample in data["result"] if not math.isnan(value := float(sample["value"][1]))]


def test_the_dashboard_shows_data(processes: Processes, cluster: Cluster, sink: Sink) -> None:
    """After a little of everything (delivered, deferred, bounced, refused), no panel is empty."""
    programs.require("prometheus")
    files = certificate_files(processes.directory, "relay.test")
    tls = {"tls": {"certificate": str(files.certificate), "key": str(files.key)}}
    nodes = [cluster.node("a", over=tls), cluster.node("b", over=tls)]
    cluster.start()
    prometheus = Prometheus(processes, [node.http for node in nodes])
    wait_until(
        lambda: prometheus.query('sum(up{job="relaycluster"})') == [2.0],
        "both nodes are scraped",
        60,
        watched=[prometheus.process],
    )
    assert {rule["name"] for rule in prometheus.api("rules")["groups"][0]["rules"]}
    sink.rules(
        Rule("rcpt", "*@gone.test", reply="550 5.1.1 no such user"),
        Rule("rcpt", "*@later.test", reply="450 4.2.0 later"),
    )
    edges = [node.smtp for node in nodes]
    domains = over_domains(20)
    load = Load(
        edges, 400, lambda n: [f"u@{('gone', 'later')[n % 2]}.test"] if n % 10 < 2 else domains(n), connections=4
    )
    load.start().wait()
    for node in nodes:
        with smtplib.SMTP(node.smtp_host, node.smtp_port) as client:
            assert client.docmd("NONSENSE")[0] == 500
    wait_until(lambda: len(sink.messages()) >= 360, "the good ones and the notices arrive")

    def empty() -> dict[str, str]:
        return {where: query for where, query in dashboard_queries().items() if not prometheus.query(query)}

    try:
        wait_until(lambda: not empty(), "every query returns data", 30, watched=[prometheus.process])
    except AssertionError:
        assert empty() == {}
    accepted = prometheus.query('sum(relaycluster_smtp_messages_total{result="queued"})')
    assert accepted == [400.0]
    assert prometheus.query("sum(relaycluster_ring_partitions_owned)") == [1024.0]
    wait_until(
        lambda: prometheus.query('sum(relaycluster_queue_items{state=~"scheduled|ready|leased"})') == [40.0],
        "the forty that are deferred are what the cluster counts as queued",
    )
    assert prometheus.query('sum(relaycluster_delivery_attempts_total{result="failed", code_class="5xx"})') == [40.0]
