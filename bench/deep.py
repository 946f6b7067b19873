#!/usr/bin/env python3
"""What claiming and settling cost beside a deep queue: two Redis servers, one full and one empty, get the same work in turn.

    .venv/bin/python -m bench.deep [--items 1000000] [--domains 100000] [--rounds 100] [--json FILE]

The full one is loaded by the queue's own transitions: each item is enqueued, leased and deferred for some hours, as an item is whose
first attempt failed. Then small batches of mail that is due at once go through both, and Redis counts: calls and microseconds
by `INFO commandstats`, and CPU of this process. What an operator asks for is measured beside it.

Redis' microseconds are by the clock on the wall, so that whatever else the machine does is in them: both servers get many short rounds
in turn, and the medians count.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # bench/deep.py by its path: this directory must not shadow the standard library's `profile`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from attrs import asdict, define, evolve, field, fields, frozen
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.task import react

from bench.run import end_on_signals, work_directory
from relaycluster.interfaces import DomainState, Settled
from relaycluster.mail import history, queue_id
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import Envelope
from relaycluster.mail.history import Attempt, Via
from relaycluster.mail.item import Claim, Item
from relaycluster.policy.cluster import Member, Ownership, Snapshot
from relaycluster.policy.ring import partition_of
from relaycluster.store.redis import checks, embedded
from relaycluster.store.redis.checks import parse_info
from relaycluster.store.redis.connection import Credentials, LeanProtocol, RedisConnection
from relaycluster.store.redis.membership import found
from relaycluster.store.redis.operator import RedisOperator
from relaycluster.store.redis.queue import QueueSettings, RedisQueue

T = TypeVar("T", "Cost", "View")
REPLY = "450 4.7.1 <u@d.deep.test>: Recipient address rejected: Greylisted, see http://help.deep.test/"
HOUR_MS = 3_600_000
IN_FLIGHT = 500
"""So many items are loaded at once: what Redis has not answered yet is all that the loader holds in memory."""
PHASES = ("enqueue", "claim", "defer", "finish")
SKEW = 10
"""One of so many items goes to the busiest domains, which are one in a thousand."""
ME = Member(1, "bench", "bench", ("edge", "delivery"))
ALONE = Snapshot(1, 2, (ME,))


@frozen
class Depth:
    """How deep the queue is, and the batches that are measured beside it: `messages` over `active` domains."""

    items: int = 1_000_000
    domains: int = 100_000
    partitions: int = 1024
    size: int = 600
    messages: int = 100
    active: int = 20
    rounds: int = 100


@frozen
class Cost:
    """Of one transition: Redis commands inside of it, Redis microseconds by its own count, and microseconds of CPU of this process."""

    calls: float
    redis_us: float
    python_us: float


@frozen
class View:
    """A question to the store: milliseconds until its answer was there, Redis commands, milliseconds of Redis and of this process."""

    wall_ms: float
    commands: float
    redis_ms: float
    python_ms: float


@define
class Figures:
    """What came out. `empty` and `full` have the median cost of each phase over the rounds; `views` what each question took of both."""

    depth: Depth
    load_seconds: float = 0.0
    redis_mib: float = 0.0
    loader_mib: float = 0.0
    empty: dict[str, Cost] = field(factory=dict)
    full: dict[str, Cost] = field(factory=dict)
    views: dict[str, tuple[View, View]] = field(factory=dict)

    def claim_and_settle(self) -> tuple[float, float]:
        """Redis microseconds of an item's claim and its outcome, beside nothing and beside the full queue: some are deferred and
        others finished, and each weighs the same."""
        empty, full = (
            costs["claim"].redis_us + (costs["defer"].redis_us + costs["finish"].redis_us) / 2
            for costs in (self.empty, self.full)
        )
        return empty, full

    def ratios(self, phase: str) -> tuple[float, float]:
        """Full to empty: Redis commands, Redis microseconds."""
        empty, full = self.empty[phase], self.full[phase]
        return full.calls / empty.calls, full.redis_us / empty.redis_us


class Store:
    """One Redis behind a Unix socket, with everything in it owned by us."""

    def __init__(self, reactor: Any, socket_path: str, partitions: int) -> None:
        async def approve(protocol: LeanProtocol) -> None:
            await checks.approve(protocol, "memory")

        self.redis = RedisConnection(reactor, UNIXClientEndpoint(reactor, socket_path), Credentials(), approve)
        self.partitions = partitions
        self.queue = RedisQueue(self.redis, QueueSettings(partitions=partitions), lambda: time.time_ns() // 1_000_000)
        self.operator = RedisOperator(self.redis, self.queue)
        self.owned: list[Ownership] = []
        self._numbers = iter(range(1, 1 << 60))

    async def start(self) -> None:
        """Connect, found the cluster and own all of it."""
        self.redis.start()
        await self.redis.when_ready()
        await found(self.redis, self.partitions, "bench")
        owners = await gatherResults(
            [self.queue.acquire(each, ME.incarnation, ALONE) for each in range(self.partitions)]
        )
        self.owned = [owner for owner in owners if owner is not None]
        assert len(self.owned) == self.partitions, "somebody else owns a partition"

    async def stop(self) -> None:
        """Disconnect."""
        await self.redis.stop()

    def lease(self, domain: str) -> tuple[Ownership, int]:
        """What a direct lease takes."""
        return self.owned[partition_of(domain, self.partitions)], next(self._numbers)

    def numbers(self, count: int) -> int:
        """The first of so many fresh claim numbers."""
        first = next(self._numbers)
        for _ in range(count - 1):
            next(self._numbers)
        return first

    async def info(self, section: str) -> dict[str, str]:
        """INFO of a section."""
        return dict(parse_info(await self.redis.request("INFO", section)))


def domain_of(number: int, domains: int) -> str:
    """The domain of the `number`th item: all the same often, but a few for one in `SKEW`."""
    if number % SKEW == 0:
        return f"d{number // SKEW % max(1, domains // 1000)}.deep.test"
    return f"d{(number - number // SKEW) % domains}.deep.test"


def assert_largest(depth: Depth, shown: Sequence[DomainState]) -> None:
    """These are the largest queues, with the numbers that were loaded."""
    counts = Counter(domain_of(number, depth.domains) for number in range(depth.items))
    assert [each.waiting for each in shown] == sorted(counts.values(), reverse=True)[: len(shown)]
    assert all(each.waiting == counts[each.domain] for each in shown)
    assert len({each.domain for each in shown}) == len(shown)


def made(domain: str, size: int, arrived_ms: int, entropy: random.Random, partitions: int) -> Item:
    """An item to one recipient there."""
    identifier = queue_id.make(arrived_ms, partition_of(domain, partitions), entropy.getrandbits(queue_id.RANDOM_BITS))
    envelope = Envelope(
        Address("news@sender.test", "sender.test"), (Address(f"u{arrived_ms % 1000}@{domain}", domain),)
    )
    return Item(identifier, domain, envelope, size, arrived_ms)


def attempted(item: Item, now_ms: int) -> tuple[Item, bytes]:
    """The item after an attempt that was deferred, and what its history says of that."""
    attempt = Attempt(
        now_ms,
        Via(f"mx.{item.domain}", "192.0.2.1:25", "TLSv1.3 TLS_AES_256_GCM_SHA384"),
        "rcpt",
        "deferred",
        REPLY,
        0.2,
    )
    return evolve(item, attempts=item.attempts + 1, last_reply=REPLY), history.pack_attempt(item.id, attempt)


async def load(store: Store, depth: Depth, progress: Callable[[int], None] = lambda _count: None) -> None:
    """Fill the queue with scheduled items; bounded in memory whatever the number."""
    entropy = random.Random(4)
    content = bytes(entropy.choices(b"abcdefghijklmnopqrstuvwxyz \n", k=depth.size))
    now_ms = store.queue.now_ms()
    numbers: Iterator[int] = iter(range(depth.items))

    async def lane() -> None:
        for number in numbers:
            item = made(
                domain_of(number, depth.domains),
                depth.size,
                now_ms - entropy.randrange(12 * HOUR_MS),
                entropy,
                depth.partitions,
            )
            claim = await store.queue.enqueue(item, content, store.lease(item.domain))
            assert claim is not None, "the queue knew the item"
            tried, attempts = attempted(item, now_ms)
            delay_ms = HOUR_MS + entropy.randrange(7 * HOUR_MS)
            assert await store.queue.defer(claim, tried, delay_ms, None, attempts) is Settled.DONE
            if number % 50_000 == 0:
                progress(number)

    await gatherResults([Deferred.fromCoroutine(lane()) for _ in range(IN_FLIGHT)])


class Meter:
    """Counts one phase at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def of(self, messages: int, work: Callable[[], Any]) -> tuple[Cost, Any]:
        """Do the work, and what it cost for each message."""
        await self._store.redis.request("CONFIG", "RESETSTAT")
        python = time.process_time()
        result = await work()
        python = time.process_time() - python
        stats = await self._store.info("commandstats")
        calls = redis_us = 0.0
        for name, text in stats.items():
            values = dict(pair.split("=") for pair in text.split(","))
            if name in ("cmdstat_config|resetstat", "cmdstat_config", "cmdstat_info"):
                continue
            if name == "cmdstat_evalsha":
                redis_us += float(values["usec"])
            else:
                calls += float(values["calls"])
        if not redis_us:  # no script: plain commands
            redis_us = sum(
                float(dict(pair.split("=") for pair in text.split(","))["usec"])
                for name, text in stats.items()
                if not name.startswith(("cmdstat_config", "cmdstat_info"))
            )
        return Cost(calls / messages, redis_us / messages, python * 1e6 / messages), result


async def batch(store: Store, depth: Depth, round_number: int) -> dict[str, Cost]:
    """Mail that is due goes through: enqueued, claimed, deferred until now, claimed again, finished. Nothing of it stays."""
    meter, entropy = Meter(store), random.Random(round_number)
    queue = store.queue
    domains = [f"d{entropy.randrange(depth.domains)}.deep.test" for _ in range(depth.active)]
    content = b"x" * depth.size
    items = [
        made(domains[number % len(domains)], depth.size, queue.now_ms(), entropy, depth.partitions)
        for number in range(depth.messages)
    ]
    attempts = {item.id: attempted(item, queue.now_ms()) for item in items}
    names = list(dict.fromkeys(item.domain for item in items))

    async def enqueue() -> None:
        await gatherResults([queue.enqueue(item, content, None) for item in items])

    async def claim() -> list[Claim]:
        waiting = [
            queue.claim(store.owned[partition_of(name, depth.partitions)], name, len(items), store.numbers(len(items)))
            for name in names
        ]
        return [claim for claims in await gatherResults(waiting) for claim in claims]

    async def defer(claims: Sequence[Claim]) -> None:
        done = [queue.defer(each, attempts[each.item.id][0], 0, None, attempts[each.item.id][1]) for each in claims]
        assert set(await gatherResults(done)) == {Settled.DONE}

    async def finish(claims: Sequence[Claim]) -> None:
        done = [queue.finish(each, True, None, attempts[each.item.id][1]) for each in claims]
        assert set(await gatherResults(done)) == {Settled.DONE}

    costs: dict[str, Cost] = {}
    costs["enqueue"], _ = await meter.of(len(items), enqueue)
    costs["claim"], claims = await meter.of(len(items), claim)
    assert len(claims) == len(items), (len(claims), len(items))
    costs["defer"], _ = await meter.of(len(items), lambda: defer(claims))
    claims = await claim()
    assert len(claims) == len(items), (len(claims), len(items))
    costs["finish"], _ = await meter.of(len(items), lambda: finish(claims))
    return costs


async def views(store: Store, top: int = 50, times: int = 5) -> tuple[dict[str, View], Sequence[DomainState]]:
    """What an operator asks for, and a node's own rounds, the fastest of some; and the largest queues."""
    every = range(store.partitions)
    asked: dict[str, Callable[[], Any]] = {
        f"queue, top {top}": lambda: store.operator.domains(top),
        "gauges of all partitions": lambda: store.queue.tally(every),
        "poll of all partitions": lambda: store.queue.due(every, {}),
    }
    found: dict[str, View] = {}
    for name, ask in asked.items():
        looks = []
        for _ in range(times):
            start = time.monotonic()
            cost, _ = await Meter(store).of(1, ask)
            wall_ms = (time.monotonic() - start) * 1000
            looks.append(View(wall_ms, cost.calls, cost.redis_us / 1000, cost.python_us / 1000))
        found[name] = _each(min, View, looks)
    return found, await store.operator.domains(top)


async def compare(empty: Store, full: Store, depth: Depth, progress: Callable[[str], None]) -> Figures:
    """Load `full`, then give both the same batches in turn."""
    figures = Figures(depth)
    start = time.monotonic()
    await full.redis.request("CONFIG", "SET", "appendfsync", "everysec")
    await load(full, depth, lambda count: progress(f"{count:,} of {depth.items:,} items loaded"))
    await full.redis.request("CONFIG", "SET", "appendfsync", "always")
    figures.load_seconds = round(time.monotonic() - start, 1)
    figures.redis_mib = round(int((await full.info("memory"))["used_memory"]) / 2**20, 1)
    figures.loader_mib = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    (unfilled, _), (filled, largest) = await views(empty), await views(full)
    figures.views = {name: (unfilled[name], filled[name]) for name in filled}
    assert_largest(depth, largest)
    rounds: list[dict[Store, dict[str, Cost]]] = []
    for number in range(depth.rounds + 1):
        order = (empty, full) if number % 2 else (full, empty)
        rounds.append({store: await batch(store, depth, number) for store in order})
    for phase in PHASES:
        figures.empty[phase], figures.full[phase] = (
            _each(statistics.median, Cost, [done[store][phase] for done in rounds[1:]])  # the first warms both up
            for store in (empty, full)
        )
    tally = await full.queue.tally(range(depth.partitions))
    assert tally.waiting == depth.items, (tally.waiting, depth.items)
    return figures


def _each(choose: Callable[[Sequence[float]], float], kind: type[T], values: Sequence[T]) -> T:
    """Of each figure the one that is chosen."""
    return kind(*(choose([getattr(value, each.name) for value in values]) for each in fields(kind)))


def text(figures: Figures) -> str:
    """The table."""
    depth = figures.depth
    lines = [
        f"{depth.items:,} scheduled items over {depth.domains:,} domains in {depth.partitions} partitions: loaded in "
        f"{figures.load_seconds:.0f} s, {figures.redis_mib:,.0f} MiB of Redis ({figures.redis_mib * 2**20 / depth.items:,.0f} octets "
        f"an item with {depth.size} of content)",
        "",
        f"{'a message':<12}{'Redis commands':>28}{'Redis µs':>28}{'Python µs':>20}",
        f"{'':<12}{'empty':>10}{'full':>9}{'ratio':>9}{'empty':>10}{'full':>9}{'ratio':>9}{'empty':>11}{'full':>9}",
    ]
    for phase in PHASES:
        empty, full, (calls, redis_us) = figures.empty[phase], figures.full[phase], figures.ratios(phase)
        lines.append(
            f"{phase:<12}{empty.calls:>10.2f}{full.calls:>9.2f}{calls:>9.2f}{empty.redis_us:>10.1f}{full.redis_us:>9.1f}"
            f"{redis_us:>9.2f}{empty.python_us:>11.1f}{full.python_us:>9.1f}"
        )
    before, after = figures.claim_and_settle()
    lines.append(f"claim, and defer or finish{before:>34.1f}{after:>9.1f}{after / before:>9.2f}")
    lines += ["", f"{'a question, ms':<28}{'empty':>10}{'full':>10}{'commands':>12}{'Redis':>10}{'Python':>10}"]
    for name, (unfilled, filled) in figures.views.items():
        lines.append(
            f"{name:<28}{unfilled.wall_ms:>10.1f}{filled.wall_ms:>10.1f}{filled.commands:>12,.0f}{filled.redis_ms:>10.1f}"
            f"{filled.python_ms:>10.1f}"
        )
    return "\n".join(lines)


def run(depth: Depth, work: Path, json_path: Path | None = None) -> None:
    """Start both servers under `work`, compare, stop them, print."""
    directory = work / f"deep.{os.getpid()}"
    servers = []
    try:
        for name in ("empty", "full"):
            (directory / name).mkdir(parents=True)
            servers.append(embedded.start(directory / name))

        async def main(reactor: Any) -> None:
            empty, full = (Store(reactor, server.socket_path, depth.partitions) for server in servers)
            for store in (empty, full):
                await store.start()
                # A rewrite of the log would fork in the midst of what is measured.
                await store.redis.request("CONFIG", "SET", "auto-aof-rewrite-percentage", 0)
            figures = await compare(empty, full, depth, lambda line: print(line, file=sys.stderr, flush=True))
            for store in (empty, full):
                await store.stop()
            print(text(figures), flush=True)
            if json_path is not None:
                found = {**asdict(figures), "claim_and_settle": figures.claim_and_settle()}
                json_path.write_text(json.dumps(found, indent=1) + "\n")

        react(main)
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)


def main(words: Sequence[str] | None = None) -> None:
    """Ends the process with `react`'s status."""
    usual = Depth()
    parser = argparse.ArgumentParser(prog="python -m bench.deep", description="Claim and settle beside a deep queue.")
    for name in ("items", "domains", "partitions", "size", "messages", "active", "rounds"):
        parser.add_argument(
            f"--{name}", type=int, default=getattr(usual, name), help=f"default {getattr(usual, name):,}"
        )
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--work", type=Path, help="where the queues live; default as for the benchmark (BENCH_WORK)")
    options = vars(parser.parse_args(words))
    json_path, work = options.pop("json"), options.pop("work")
    end_on_signals()
    run(Depth(**options), work or work_directory(), json_path)


if __name__ == "__main__":
    main()
