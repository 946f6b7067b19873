"""What we ship for operators is accepted by the programs that it is for, and names only what exists."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from relaycluster import metrics
from relaycluster.config import Config
from tests.support import programs
from tests.support.deployment import DASHBOARD, DEPLOY, dashboard_queries, replaced, write
from tests.support.processes import Processes, free_port
from tests.support.redis_server import DURABLE, RedisClient, servers

PROMETHEUS = DEPLOY / "prometheus"
RULES = PROMETHEUS / "relaycluster.rules.yml"
METRIC = re.compile(r"\brelaycluster_[a-z_]+")
MATCHERS = re.compile(r"\b(relaycluster_[a-z_]+)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(=~|=|!=|!~)\s*"([^"]*)"')


def run(*command: str | Path, directory: Path | None = None) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=directory)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def declared() -> dict[str, set[str]]:
    """Every sample name that a node exposes → its labels."""
    found: dict[str, set[str]] = {}
    for family in metrics.FAMILIES:
        labels = {label.name for label in family.labels}
        if family.kind == "histogram":
            found[family.exposed_name + "_bucket"] = {*labels, "le"}
            found[family.exposed_name + "_sum"] = found[family.exposed_name + "_count"] = labels
        else:
            found[family.exposed_name] = labels
    return found


def test_what_is_declared_is_what_is_exposed() -> None:
    """The names that the tests below compare with are those that a registry gives out."""
    registry = CollectorRegistry()
    metrics.Metrics(registry, version="1", listeners=["127.0.0.1:25"])
    exposed = {sample.name for family in registry.collect() for sample in family.samples}
    assert exposed <= declared().keys()


def check_names(where: str, query: str) -> None:
    """Every metric exists, every label that is matched exists, and its value can occur."""
    names = declared()
    used = METRIC.findall(query)
    assert used or "up{" in query, where
    for name in used:
        assert name in names, f"{where}: {name} is not declared in relaycluster/metrics.py"
    closed = {
        (sample, label.name): set(label.values)
        for family in metrics.FAMILIES
        for label in family.labels
        if label.values
        for sample in names
        if sample.startswith(family.exposed_name)
    }
    for name, matchers in MATCHERS.findall(query):
        for label, operator, value in MATCHER.findall(matchers):
            if label in ("instance", "job"):
                continue
            assert label in names[name], f"{where}: {name} has no label {label}"
            if operator in ("=", "!=") and (name, label) in closed:
                assert value in closed[name, label], f"{where}: {name} never has {label}={value}"
    for labels in re.findall(r"\bby \(([^)]*)\)", query):
        known = set().union(*(names[name] for name in used)) | {"instance"}
        assert {label.strip() for label in labels.split(",")} <= known, f"{where}: by ({labels})"


def rules() -> list[tuple[str, str]]:
    """Alert → its expression, by a reading of the YAML that is enough for our own file."""
    text = RULES.read_text()
    found = re.findall(r"- alert: (\w+)\n(?:\s+#.*\n)*\s+expr: (>\n(?:\s{10,}.*\n)+|.*\n)", text)
    assert len(found) == text.count("- alert:")
    return [(name, " ".join(expression.removeprefix(">").split())) for name, expression in found]


def test_dashboard_uses_only_what_exists() -> None:
    """Each query of each panel; and every declared family is shown or watched somewhere."""
    queries = dashboard_queries()
    assert len(queries) > 30
    for where, query in queries.items():
        check_names(where, query)
    shown = " ".join([*queries.values(), *(expression for _, expression in rules())])
    unseen = {family.name for family in metrics.FAMILIES if family.exposed_name not in shown}
    assert not unseen, unseen


def test_dashboard_is_sound() -> None:
    """Unique panel ids, no overlap on the grid, and the data source that the provisioning creates."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    uids = set(re.findall(r'"uid": "([^"]+)"', DASHBOARD.read_text())) - {dashboard["uid"]}
    provisioned = (DEPLOY / "grafana/provisioning/datasources/relaycluster.yml").read_text()
    assert uids == {re.findall(r"uid: (\S+)", provisioned)[0]}


def test_dashboard_queries_are_promql(tmp_path: Path) -> None:
    """Prometheus itself reads each of them, as recording rules."""
    promtool = programs.require("promtool")
    lines = ["groups:", "  - name: dashboard", "    rules:"]
    for number, query in enumerate(dashboard_queries().values()):
        lines += [f"      - record: panel:{number}", f"        expr: {json.dumps(query)}"]
    run(promtool, "check", "rules", write(tmp_path, "queries.yml", "\n".join(lines)))


def test_prometheus_configuration_and_rules() -> None:
    """`promtool` accepts both, and the rules are those that the configuration loads."""
    promtool = programs.require("promtool")
    run(promtool, "check", "config", PROMETHEUS / "prometheus.yml")
    for name, expression in rules():
        check_names(name, expression)


# What each alert is for, as a series that must set it off after an hour; and one that must not.
ALARMS: dict[str, tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {
    "RelayclusterNodeDown": (
        [('up{job="relaycluster", instance="a"}', "0x60")],
        [('up{job="relaycluster", instance="a"}', "1x60"), ('up{job="other"}', "0x60")],
    ),
    "RelayclusterNoDeliveryNode": (
        [('relaycluster_ring_nodes{instance="a"}', "0x60")],
        [('relaycluster_ring_nodes{instance="a"}', "0x60"), ('relaycluster_ring_nodes{instance="b"}', "1x60")],
    ),
    "RelayclusterPartitionsWithoutOwner": (
        [(f'relaycluster_ring_partitions_owned{{instance="{name}"}}', "500x60") for name in "ab"],
        [(f'relaycluster_ring_partitions_owned{{instance="{name}"}}', "512x60") for name in "ab"],
    ),
    "RelayclusterIntakeFull": (
        [('relaycluster_smtp_rejects_total{reason="queue_full"}', "0+60x60")],
        [('relaycluster_smtp_rejects_total{reason="relay"}', "0+60x60")],
    ),
    "RelayclusterIntakeUnavailable": (
        [
            ('relaycluster_smtp_messages_total{result="deferred"}', "0+10x60"),
            ('relaycluster_smtp_messages_total{result="queued"}', "0+90x60"),
        ],
        [
            ('relaycluster_smtp_messages_total{result="deferred"}', "0+1x60"),
            ('relaycluster_smtp_messages_total{result="queued"}', "0+90x60"),
        ],
    ),
    "RelayclusterRedisErrors": (
        [('relaycluster_redis_errors_total{instance="a", kind="timeout"}', "0+1x60")],
        [('relaycluster_redis_errors_total{instance="a", kind="full"}', "0+1x60")],
    ),
    "RelayclusterRedisSlow": (
        [
            ('relaycluster_redis_seconds_bucket{operation="enqueue", le="0.1"}', "0+90x60"),
            ('relaycluster_redis_seconds_bucket{operation="enqueue", le="1"}', "0+100x60"),
            ('relaycluster_redis_seconds_bucket{operation="enqueue", le="+Inf"}', "0+100x60"),
        ],
        [
            ('relaycluster_redis_seconds_bucket{operation="enqueue", le="0.1"}', "0+100x60"),
            ('relaycluster_redis_seconds_bucket{operation="enqueue", le="+Inf"}', "0+100x60"),
        ],
    ),
    "RelayclusterQueueOld": (
        [("relaycluster_queue_oldest_seconds", "0+60x60")],
        [("relaycluster_queue_oldest_seconds", "600x60")],
    ),
    "RelayclusterHeld": (
        [('relaycluster_queue_items{state="held"}', "2x60")],
        [('relaycluster_queue_items{state="held"}', "0x60"), ('relaycluster_queue_items{state="ready"}', "9x60")],
    ),
    "RelayclusterDeliveryFails": (
        [
            ('relaycluster_delivery_attempts_total{result="delivered", code_class="2xx"}', "0+40x60"),
            ('relaycluster_delivery_attempts_total{result="deferred", code_class="4xx"}', "0+60x60"),
        ],
        [
            ('relaycluster_delivery_attempts_total{result="delivered", code_class="2xx"}', "0+60x60"),
            ('relaycluster_delivery_attempts_total{result="deferred", code_class="4xx"}', "0+40x60"),
        ],
    ),
    "RelayclusterOwnershipLost": (
        [('relaycluster_ownership_lost_total{instance="a"}', "0x50 3x10")],
        [('relaycluster_ownership_lost_total{instance="a"}', "3x60")],
    ),
    "RelayclusterPossibleDuplicates": (
        [('relaycluster_possible_duplicates_total{instance="a"}', "0x50 3x10")],
        [('relaycluster_possible_duplicates_total{instance="a"}', "3x60")],
    ),
    # Prometheus' tests begin at the epoch: `time()` is seconds since then.
    "RelayclusterCertificateExpires": (
        [
            (
                'relaycluster_tls_certificate_expiry_timestamp_seconds{name="mx.test", instance="a"}',
                f"{13 * 86400}x60",
            )
        ],
        [
            (
                'relaycluster_tls_certificate_expiry_timestamp_seconds{name="mx.test", instance="a"}',
                f"{15 * 86400}x60",
            )
        ],
    ),
    "RelayclusterCertificateExpiresNow": (
        [
            ('relaycluster_tls_certificate_expiry_timestamp_seconds{name="mx.test", instance="a"}', f"{90 * 86400}x60"),
            ('relaycluster_tls_certificate_expiry_timestamp_seconds{name="mx.test", instance="b"}', f"{1 * 86400}x60"),
        ],
        [('relaycluster_tls_certificate_expiry_timestamp_seconds{name="mx.test", instance="a"}', f"{3 * 86400}x60")],
    ),
    "RelayclusterFileRefused": (
        [
            ('relaycluster_file_reloads_total{file="users", result="refused", instance="a"}', "0x50 1x10"),
            ('relaycluster_config_reloads_total{result="refused", instance="a"}', "0x60"),
        ],
        [
            ('relaycluster_file_reloads_total{file="users", result="applied", instance="a"}', "0+1x60"),
            ('relaycluster_config_reloads_total{result="refused", instance="a"}', "1x60"),
        ],
    ),
    "RelayclusterSlotsRunOut": (
        [('relaycluster_smtp_stress{instance="a"}', "1x60")],
        [('relaycluster_smtp_stress{instance="a"}', "1x55 0 1x4")],
    ),
    "RelayclusterSigningFails": (
        [('relaycluster_dkim_signatures_total{result="failed", instance="a"}', "0x50 1x10")],
        [('relaycluster_dkim_signatures_total{result="no_key", instance="a"}', "0+1x60")],
    ),
    "RelayclusterLoginsUnavailable": (
        [('relaycluster_smtp_auth_total{result="unavailable"}', "0+1x60")],
        [('relaycluster_smtp_auth_total{result="refused"}', "0+100x60")],
    ),
    "RelayclusterReactorLag": (
        [
            ('relaycluster_reactor_lag_seconds_bucket{instance="a", le="1"}', "0+90x60"),
            ('relaycluster_reactor_lag_seconds_bucket{instance="a", le="5"}', "0+100x60"),
            ('relaycluster_reactor_lag_seconds_bucket{instance="a", le="+Inf"}', "0+100x60"),
        ],
        [
            ('relaycluster_reactor_lag_seconds_bucket{instance="a", le="1"}', "0+100x60"),
            ('relaycluster_reactor_lag_seconds_bucket{instance="a", le="+Inf"}', "0+100x60"),
        ],
    ),
}


def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    """Over an hour of made-up series; no alert is without its two."""
    promtool = programs.require("promtool")
    assert set(ALARMS) == {name for name, _ in rules()}
    tests = []
    for name, cases in ALARMS.items():
        for fires, series in zip((True, False), cases, strict=True):
            # `count` is 1 or absent: the number of firing alerts, whatever their labels.
            expression = f'count(max by (alertname) (ALERTS{{alertname="{name}", alertstate="firing"}}))'
            tests.append(
                {
                    "interval": "1m",
                    "input_series": [{"series": series_name, "values": values} for series_name, values in series],
                    "promql_expr_test": [
                        {
                            "expr": expression,
                            "eval_time": "59m",
                            "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                        }
                    ],
                }
            )
    suite = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    # YAML is a superset of JSON.
    run(promtool, "test", "rules", write(tmp_path, "alarms.yml", json.dumps(suite)))


def test_haproxy_configuration(tmp_path: Path) -> None:
    """`haproxy -c` accepts it without a warning."""
    haproxy = programs.require("haproxy")
    shipped = (DEPLOY / "haproxy/haproxy.cfg").read_text()
    said = run(haproxy, "-c", "-f", write(tmp_path, "haproxy.cfg", shipped))
    assert "WARNING" not in said, said
    assert "on-marked-down" not in re.sub(r"#.*", "", shipped), "open sessions must survive a drain"


def unit() -> dict[str, str]:
    """The unit's settings; of one that is given twice the last."""
    text = (DEPLOY / "systemd/relaycluster.service").read_text()
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def test_systemd_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say, and its sandbox scores well."""
    analyze = programs.require("systemd-analyze")
    shipped = (DEPLOY / "systemd/relaycluster.service").read_text()
    # The program is not installed where tests run; everything else is verified as shipped.
    path = write(tmp_path, "relaycluster.service", replaced(shipped, {"/opt/relaycluster/bin/twistd": "/bin/true"}))
    said = run(analyze, "verify", "--man=no", path)
    assert "relaycluster.service" not in said, said
    exposure = run(analyze, "security", "--offline=true", "--no-pager", path)
    score = re.search(r"Overall exposure level .*: ([0-9.]+)", exposure)
    assert score, exposure
    assert float(score[1]) <= 3.0, exposure


def test_systemd_waits_longer_than_the_drain() -> None:
    """SIGTERM to the node alone, SIGKILL only after the drain's deadline, no restart for a wrong configuration."""
    settings = unit()
    stop = re.fullmatch(r"(\d+)s", settings["TimeoutStopSec"])
    assert stop
    assert int(stop[1]) > Config().node.drain_deadline
    assert settings["KillMode"] == "mixed"
    assert settings["RestartPreventExitStatus"] == "2"
    assert settings["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert " -n --pidfile= relaycluster --config " in settings["ExecStart"]


@pytest.mark.parametrize("version", sorted(servers()))
def test_redis_configuration(processes: Processes, version: str) -> None:
    """Each supported Redis starts with the shipped file, and then has what a node demands."""
    port = free_port()
    shipped = (DEPLOY / "redis/relaycluster.conf").read_text()
    directory = processes.directory
    config = replaced(shipped, {"dir /var/lib/redis": f"dir {directory}", "port 6379": f"port {port}"})
    path = write(directory, "relaycluster.conf", config)
    process = processes.start("redis", [servers()[version], str(path)])
    process.wait_for_output("Ready to accept connections")
    client = RedisClient(("127.0.0.1", port))
    for name, value in {**DURABLE, "save": "", "databases": "1"}.items():
        assert client.call("CONFIG", "GET", name)[1].decode() == value.strip('"'), name
    assert int(client.call("CONFIG", "GET", "maxmemory")[1]) > 0
    client.close()
    assert "WARNING" not in re.sub(r".*(overcommit|Transparent Huge|somaxconn|backlog).*", "", process.output())
