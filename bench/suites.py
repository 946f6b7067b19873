"""What is done to a peer and what is counted: each suite yields rows of numbers, one per case, from one fresh peer or more."""

from __future__ import annotations

import atexit
import base64
import itertools
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.client import measure
from bench.errors import BenchError
from bench.node import Node, Reading
from bench.peers import Credentials, Peer, Site
from bench.redis_stats import command_costs
from bench.tools import Load, Sink, run_load
from bench.tools import build as tools_build

KIB = 1024
RELAYED_SIZE = 5 * KIB
# What certificate authorities hand out today, and what they did until lately.
KEYS = {"ECDSA P-256": ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), "RSA-2048": ("rsa:2048",)}


@dataclass(frozen=True)
class Plan:
    """How much is done; the quick one is for trying the benchmark, not for figures."""

    accept_sizes: tuple[int, ...] = (2 * KIB, 10 * KIB, 100 * KIB)
    accept_seconds: float = 3.0
    tls_seconds: float = 5.0
    relay_messages: int = 20_000
    warm_up_messages: int = 500
    latency_rate: float = 100.0
    latency_seconds: float = 10.0
    deep_messages: int = 100_000
    scheduled_items: int = 1_000_000
    client_messages: int = 10_000
    ceiling_seconds: float = 1.0


QUICK = Plan(
    accept_sizes=(10 * KIB,),
    accept_seconds=1.0,
    tls_seconds=1.5,
    relay_messages=2_000,
    warm_up_messages=200,
    latency_seconds=3.0,
    deep_messages=5_000,
    scheduled_items=20_000,
    client_messages=2_000,
    ceiling_seconds=0.5,
)


@dataclass
class Bench:
    """Where the suites run: the ports, the sink, the plan, and the numbers that tell runs apart."""

    site: Site
    work: Path
    sink: Sink
    plan: Plan
    run_ids: Iterator[int] = field(default_factory=lambda: itertools.count(int(time.time()) % 1_000_000 * 1_000))

    def node(self, peer: Peer, mode: Any) -> Node:
        """The peer, to be entered with `with`."""
        return Node(peer, mode, self.site, self.work)

    def load(self, load: Load, run: int, limit_seconds: float = 600) -> tuple[dict[str, Any], int]:
        """Clients to the peer."""
        return run_load(
            load, host=self.site.host, port=self.site.port, run=run, work=self.work, limit_seconds=limit_seconds
        )


Row = dict[str, Any]
Suite = Callable[[Bench, Peer], dict[str, Row]]


def cost(before: Reading, after: Reading, messages: int, others: float) -> Row:
    """What `messages` messages cost between two readings; `others`: CPU seconds of the generator and the sink."""
    per_message = max(messages, 1)
    used = after.cpu_seconds - before.cpu_seconds
    elapsed = max(after.machine.at - before.machine.at, 1e-9)
    elsewhere = after.machine.busy - before.machine.busy - used - others
    row: Row = {
        "cpu_per_1000": round(used / per_message * 1000, 4),
        "flushes_per_message": round((after.machine.flushes - before.machine.flushes) / per_message, 3),
        "foreign_cores": round(max(elsewhere, 0.0) / elapsed, 2),
        "stolen_cores": round((after.machine.stolen - before.machine.stolen) / elapsed, 2),
    }
    if len(after.cpu_by_part) > 1:
        for part, seconds in after.cpu_by_part.items():
            spent = seconds - before.cpu_by_part.get(part, 0.0)
            row[f"{part}_microseconds"] = round(spent / per_message * 1e6, 1)
    if after.redis:
        row["redis_commands"] = command_costs(before.redis, after.redis, messages)
    return row


def ceilings(bench: Bench) -> dict[str, float]:
    """Messages per second when the generator talks straight to the sink: what the tools themselves can do here."""
    found = {}
    for name, per_connection in (("100 per connection", 100), ("1 per connection", 1)):
        run = next(bench.run_ids)
        bench.sink.reset(run)
        load = Load(size=RELAYED_SIZE, seconds=bench.plan.ceiling_seconds, per_connection=per_connection)
        counted, _ = run_load(load, host="127.1.0.1", port=bench.sink.port, run=run, work=bench.work)
        found[name] = counted["rate"]
    return found


def warm_up(bench: Bench, relaying: bool) -> None:
    """Mail that is not measured: every process is started, every route is known."""
    run = next(bench.run_ids)
    bench.sink.reset(run)
    messages = bench.plan.warm_up_messages if relaying else bench.plan.warm_up_messages // 5
    _, accepted = bench.load(Load(size=RELAYED_SIZE, messages=messages, per_connection=20), run, 120)
    if relaying:
        await_arrival(bench, accepted.bit_count(), stall_seconds=15, limit_seconds=60)


def await_arrival(bench: Bench, wanted: int, *, stall_seconds: float, limit_seconds: float) -> None:
    """Until the sink has `wanted` different messages, or nothing comes any more, or time is up."""
    moved = start = time.monotonic()
    last = -1
    while (now := time.monotonic()) - start < limit_seconds and now - moved < stall_seconds:
        unique = bench.sink.stat()["unique"]
        if unique >= wanted:
            return
        if unique != last:
            last, moved = unique, now
        time.sleep(0.05)


def accept(bench: Bench, peer: Peer) -> dict[str, Row]:
    """Queue durably while nothing is delivered: messages per second by size, 1 and 100 messages per connection."""
    rows = {}
    for size in bench.plan.accept_sizes:
        with bench.node(peer, "accept") as node:
            warm_up(bench, relaying=False)
            for per_connection in (1, 100):
                load = Load(size=size, seconds=bench.plan.accept_seconds, per_connection=per_connection)
                before = node.read()
                counted, _ = bench.load(load, next(bench.run_ids))
                after = node.read()
                rows[f"{size // KIB} KiB, {per_connection} per connection"] = {
                    "rate": counted["rate"],
                    **_refusals(counted),
                    **cost(before, after, counted["accepted"], counted["cpu_seconds"]),
                    "pss_mib": round(node.memory.mib, 1),
                    "counted_by": node.counted_by,
                }
    return rows


def tls(bench: Bench, peer: Peer) -> dict[str, Row]:
    """Submission as applications do it: for each message a connection with a full TLS handshake and AUTH PLAIN; mail is queued
    durably and stays."""
    tools_build(names=("load-tls",))
    rows = {}
    for name, algorithm in KEYS.items():
        credentials = certificate(bench.work, algorithm)
        secured = replace(bench, site=replace(bench.site, credentials=credentials))
        initial = base64.b64encode(f"\0{credentials.user}\0{credentials.password}".encode()).decode()
        with secured.node(peer, "secured") as node:
            load = Load(
                size=RELAYED_SIZE, seconds=bench.plan.tls_seconds, per_connection=1, starttls=True, auth=initial
            )
            secured.load(replace(load, seconds=0, messages=bench.plan.warm_up_messages // 5), next(bench.run_ids))
            before = node.read()
            counted, _ = secured.load(load, next(bench.run_ids))
            after = node.read()
            if counted["resumed"]:
                raise BenchError(f"{counted['resumed']} TLS sessions were resumed: not what is to be measured")
            rows[f"{name} certificate"] = {
                "rate": counted["rate"],
                "accepted_p50_ms": counted["latency_ms"].get("p50"),
                "accepted_p99_ms": counted["latency_ms"].get("p99"),
                "tls": counted["tls"],
                "password_check": peer.password_check(),
                **_refusals(counted),
                **cost(before, after, counted["accepted"], counted["cpu_seconds"]),
                "counted_by": node.counted_by,
            }
    return rows


def certificate(work: Path, algorithm: tuple[str, ...]) -> Credentials:
    """A certificate of our own making with a key of this kind, and the suite's user; made once in a run of the benchmark."""
    stem = work / f"bench.{os.getpid()}.{'-'.join(algorithm).replace(':', '-')}"
    made = Credentials(stem.with_suffix(".pem"), stem.with_suffix(".key"), "bench", secrets.token_urlsafe(12))
    if not made.certificate.exists():
        command: list[str | Path] = ["openssl", "req", "-x509", "-nodes", "-newkey", *algorithm, "-days", "2"]
        command += [
            "-subj",
            "/CN=bench.test",
            "-addext",
            "subjectAltName=DNS:bench.test",
            "-keyout",
            made.key,
            "-out",
            made.certificate,
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise BenchError("the suite tls needs the command openssl") from None
        if done.returncode:
            raise BenchError(f"openssl: {done.stderr.strip()}")
        made.key.chmod(0o600)
        for path in (made.certificate, made.key):
            atexit.register(path.unlink, missing_ok=True)
    return made


def relay(bench: Bench, peer: Peer) -> dict[str, Row]:
    """Accept and send on at once, until the sink has everything: the rate from the first byte in to the last one out."""
    with bench.node(peer, "relay") as node:
        warm_up(bench, relaying=True)
        row = relay_once(bench, node, bench.plan.relay_messages)
        row["durability"] = node.redis.settings() if node.redis else {}
    return {"relay": row}


def relay_once(bench: Bench, node: Node, messages: int) -> Row:
    """One measured load through a warm peer."""
    run = next(bench.run_ids)
    bench.sink.reset(run)
    sink_cpu = bench.sink.stat()["cpu_seconds"]
    before = node.read()
    counted, accepted = bench.load(Load(size=RELAYED_SIZE, messages=messages), run)
    await_arrival(bench, accepted.bit_count(), stall_seconds=20, limit_seconds=300)
    time.sleep(0.5)  # what is late, or comes twice, still counts
    node.memory.look()
    after = node.read()
    arrived = bench.sink.stat()
    seconds = (arrived["last_ns"] - counted["started_ns"]) / 1e9
    others = counted["cpu_seconds"] + arrived["cpu_seconds"] - sink_cpu
    return {
        "rate": round(arrived["unique"] / seconds, 1) if arrived["unique"] else 0.0,
        "accept_rate": counted["rate"],
        **_arrivals(accepted, bench, arrived),
        **_refusals(counted),
        **cost(before, after, arrived["unique"], others),
        "delivered_p50_ms": arrived["latency_ms"].get("p50"),
        "delivered_p99_ms": arrived["latency_ms"].get("p99"),
        "pss_mib": round(node.memory.mib, 1),
        "counted_by": node.counted_by,
    }


def latency(bench: Bench, peer: Peer) -> dict[str, Row]:
    """Open loop: a message is due every so often, on its own connection; milliseconds from then to 250, and to arrival."""
    plan = bench.plan
    with bench.node(peer, "relay") as node:
        warm_up(bench, relaying=True)
        run = next(bench.run_ids)
        bench.sink.reset(run)
        sink_cpu = bench.sink.stat()["cpu_seconds"]
        before = node.read()
        load = Load(size=RELAYED_SIZE, seconds=plan.latency_seconds, rate=plan.latency_rate, connections=500)
        counted, accepted = bench.load(load, run)
        await_arrival(bench, accepted.bit_count(), stall_seconds=10, limit_seconds=60)
        after = node.read()
        arrived = bench.sink.stat()
        others = counted["cpu_seconds"] + arrived["cpu_seconds"] - sink_cpu
        row: Row = {
            "accepted_p50_ms": counted["latency_ms"].get("p50"),
            "accepted_p99_ms": counted["latency_ms"].get("p99"),
            "delivered_p50_ms": arrived["latency_ms"].get("p50"),
            "delivered_p99_ms": arrived["latency_ms"].get("p99"),
            **_arrivals(accepted, bench, arrived),
            **_refusals(counted),
            **cost(before, after, arrived["unique"], others),
            "counted_by": node.counted_by,
        }
    return {"latency": row}


def deep(bench: Bench, peer: Peer) -> dict[str, Row]:
    """A queue that only grows: the rate of the first and of the last tenth, and the memory; and for us, what a claim and a settlement
    cost beside a deep queue (`bench.deep`)."""
    tenth = bench.plan.deep_messages // 10
    rates = []
    with bench.node(peer, "accept") as node:
        warm_up(bench, relaying=False)
        before = node.read()
        counts = [bench.load(Load(size=2 * KIB, messages=tenth), next(bench.run_ids))[0] for _ in range(10)]
        node.memory.look()
        after = node.read()
        rates = [counted["rate"] for counted in counts]
        row: Row = {
            "rate_first": rates[0],
            "rate_last": rates[-1],
            **cost(before, after, tenth * 10, sum(counted["cpu_seconds"] for counted in counts)),
            "pss_mib": round(node.memory.mib, 1),
            "refused": sum(_refusals(counted)["refused"] for counted in counts),
        }
    return {"deep": row, **(_beside_deep(bench) if peer.embeds_redis else {})}


def _beside_deep(bench: Bench) -> dict[str, Row]:
    """Redis' cost for a message, and what an operator waits for, empty and full; the loader and both servers are processes of their own."""
    items = bench.plan.scheduled_items
    found = bench.work / f"deep.{os.getpid()}.json"
    words: list[object] = ["--items", items, "--domains", items // 10, "--work", bench.work, "--json", found]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.deep", *map(str, words)], stdout=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            raise BenchError(f"bench.deep ended with {done.returncode}")
        figures = json.loads(found.read_text())
    finally:
        found.unlink(missing_ok=True)
    rows: dict[str, Row] = {}
    for phase, full in figures["full"].items():
        empty = figures["empty"][phase]
        rows[f"{phase}, beside {items:,} scheduled"] = {
            "redis_calls_empty": empty["calls"],
            "redis_calls_full": full["calls"],
            "redis_us_empty": empty["redis_us"],
            "redis_us_full": full["redis_us"],
            "redis_us_ratio": full["redis_us"] / empty["redis_us"],
        }
    for question, (_, view) in figures["views"].items():
        rows[f"{question}, with {items:,} scheduled"] = {"view_ms": view["wall_ms"], "view_redis_ms": view["redis_ms"]}
    return rows


def _refusals(counted: dict[str, Any]) -> Row:
    return {
        "refused": sum(counted["refused"].values()),
        "refused_by_code": counted["refused"],
        "unanswered": counted["unanswered"],
        "broken": counted["broken"] + counted["connect_errors"],
        "stalled": counted["stalled"],
        "last_refusal": counted["last_refusal"],
    }


def _arrivals(accepted: int, bench: Bench, arrived: dict[str, Any]) -> Row:
    """Lost: answered 250, and not at the sink, message by message (a total could hide one behind an unanswered one)."""
    seen = bench.sink.seen()
    return {
        "lost": (accepted & ~seen).bit_count(),
        "duplicates": arrived["duplicates"],
        "damaged": arrived["damaged"],
        "unasked": (seen & ~accepted).bit_count(),
    }


def client(bench: Bench, peer: Peer) -> dict[str, Row]:
    """Sending alone: our conversation beside a bare Twisted client, and a node that claims from Redis, sends and settles."""
    if peer.name != "relaycluster":
        raise BenchError("the suite client is about relaycluster alone")
    bench.sink.reset(next(bench.run_ids))
    ways = {"reference": "a bare Twisted client", "client": "our client", "settle": "claimed, sent, settled"}
    return {
        title: dict(measure(way, bench.sink.port, bench.plan.client_messages, bench.work))
        for way, title in ways.items()
    }


SUITES: dict[str, Suite] = {
    "accept": accept,
    "tls": tls,
    "relay": relay,
    "latency": latency,
    "deep": deep,
    "client": client,
}
DEFAULT_SUITES = ("accept", "relay", "latency")
