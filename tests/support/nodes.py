"""Nodes of a cluster as real processes, configured by TOML files, watched through their HTTP pages and their logs."""

from __future__ import annotations

import json
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import REPOSITORY, Process, Processes, free_port, wait_until
from tests.support.redis_server import RedisServer

TWISTD = str(Path(sys.executable).with_name("twistd"))
COMMAND = str(Path(sys.executable).with_name("relaycluster"))

Settings = Mapping[str, Any]


def render_toml(settings: Settings) -> str:
    """Tables of plain values, and lists of tables, as TOML."""
    lines: list[str] = []
    for section, content in settings.items():
        tables = content if isinstance(content, list) else [content]
        for table in tables:
            lines.append(f"[[{section}]]" if isinstance(content, list) else f"[{section}]")
            # JSON's strings, numbers, booleans and arrays are TOML's too.
            lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
            lines.append("")
    return "\n".join(lines)


def merge(base: Settings, over: Settings) -> dict[str, Any]:
    """`over` on top of `base`: table by table; a list replaces."""
    merged = dict(base)
    for section, content in over.items():
        if isinstance(content, Mapping):
            merged[section] = {**merged.get(section, {}), **content}
        else:
            merged[section] = content
    return merged


def get(url: str, timeout_seconds: float = 5.0) -> tuple[int, str]:
    """Status and body of a page; 0 when nothing answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_seconds) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, repr(error)


class Node:
    """One node. Its process may die and come back; configuration and state directory stay."""

    def __init__(self, process: Process, config: Path, settings: Settings, smtp_port: int, http_port: int) -> None:
        self.process = process
        self.config = config
        self.settings = settings
        self.smtp_host = "127.0.0.1"
        self.smtp_port = smtp_port
        self.http_port = http_port
        self._events: list[dict[str, Any]] = []
        self._events_read = 0

    @property
    def name(self) -> str:
        return self.process.name

    @property
    def smtp(self) -> str:
        """Its SMTP address, "host:port"."""
        return f"{self.smtp_host}:{self.smtp_port}"

    @property
    def http(self) -> str:
        """Its HTTP address, "host:port"."""
        return f"127.0.0.1:{self.http_port}"

    def start(self, *, wait: bool = True) -> Node:
        """Start, or start again under the same name; returns when /readyz says 200."""
        self.process.start()
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, timeout_seconds: float = 60.0) -> None:
        wait_until(lambda: self.ready()[0] == 200, f"{self.name} is ready", timeout_seconds, watched=[self.process])

    def ready(self) -> tuple[int, str]:
        """Status and body of /readyz."""
        return get(f"http://{self.http}/readyz")

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """All samples: (name, labels) → value."""
        status, text = get(f"http://{self.http}/metrics")
        assert status == 200, (self.name, status, text[:500])
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the family's samples that carry these labels; 0 when there is none. Without the prefix."""
        wanted = set(labels.items())
        return sum(
            value
            for (sample, found), value in self.metrics().items()
            if sample == f"relaycluster_{name}" and wanted <= found
        )

    def events(self) -> list[dict[str, Any]]:
        """Every event of its log so far, over all of its lives. Lines that are not JSON are not events."""
        path = self.process.out_path
        if path.exists():
            with path.open("rb") as log:
                log.seek(self._events_read)
                data = log.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._events_read += len(whole)
            for line in whole.splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict) and "event" in event:
                    self._events.append(event)
        return self._events

    def events_named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events() if event["event"] == name]

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def drain(self, timeout_seconds: float = 90.0) -> int:
        """SIGTERM; the exit status, 0 also where it is the signal's own: twistd ends so after a stop in good order."""
        status = self.process.terminate(timeout_seconds)
        return 0 if status == -signal.SIGTERM else status


class Cluster:
    """Nodes on one Redis. `common` is merged into every node's configuration."""

    def __init__(self, processes: Processes, redis: RedisServer | None, common: Settings | None = None) -> None:
        self.processes = processes
        self.redis = redis
        self.common = common or {}
        self.nodes: list[Node] = []

    def node(self, name: str, roles: Sequence[str] = ("edge", "delivery"), over: Settings | None = None) -> Node:
        """A node that is not yet started. `over` goes on top of everything else."""
        directory = self.processes.directory / name
        state = directory / "state"
        state.mkdir(parents=True)
        smtp_port, http_port = free_port(), free_port()
        settings: dict[str, Any] = {
            "node": {
                "id": name,
                "hostname": f"{name}.relay.test",
                "roles": list(roles),
                "state_dir": str(state),
                "drain_deadline": "30s",
            },
            "redis": {"url": self.redis.url if self.redis is not None else "embedded"},
            "delivery": {"tls": "none"},
            "http": {"listen": f"127.0.0.1:{http_port}"},
            "log": {"format": "json"},
        }
        if "edge" in roles:
            settings["listener"] = [{"address": f"127.0.0.1:{smtp_port}", "mode": "submission", "tls": "none"}]
        settings = merge(merge(settings, self.common), over or {})
        config = directory / "relaycluster.toml"
        config.write_text(render_toml(settings))
        process = self.processes.add(
            name,
            [TWISTD, "-n", "--pidfile=", "relaycluster", "--config", str(config)],
            directory=directory,
            environment={"PYTHONPATH": str(REPOSITORY)},
        )
        node = Node(process, config, settings, smtp_port, http_port)
        self.nodes.append(node)
        return node

    def start(self, *nodes: Node) -> None:
        """Start these (default: all) side by side; returns when all are ready."""
        for node in nodes or self.nodes:
            node.start(wait=False)
        for node in nodes or self.nodes:
            node.wait_ready()

    @property
    def running(self) -> list[Node]:
        return [node for node in self.nodes if node.process.alive]

    def sum(self, metric: str, **labels: str) -> float:
        """A metric over all running nodes."""
        return sum(node.metric(metric, **labels) for node in self.running)

    def marked(self) -> set[str]:
        """The message ids that some node noted as a possible duplicate."""
        return {message_id(event) for node in self.nodes for event in node.events_named("possible_duplicate")}

    def events(self) -> Iterator[dict[str, Any]]:
        for node in self.nodes:
            yield from node.events()


def message_id(event: Mapping[str, Any]) -> str:
    """The message's queue id of an event about a message or an item."""
    identifier = event.get("item") or event.get("id") or event.get("queue_id") or ""
    return str(identifier).partition("-")[0]


def smarthost(endpoints: Iterable[str], **more: Any) -> dict[str, Any]:
    """A destination that sends all mail to these endpoints."""
    return {"match": ["*"], "hosts": list(endpoints), **more}
