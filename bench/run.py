#!/usr/bin/env python3
"""The command line of the benchmark: which peers, which suites, how often; interleaved, bounded, and cleaned up after.

    make bench                          all default suites, relaycluster alone
    BENCH_PEER=postfix make bench       with Postfix on the same work in turn, and ratios
    BENCH_QUICK=1 make bench            a minute, to see that it works

Only the standard library is needed. See docs/operate/benchmark.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

CHECKOUT = Path(__file__).resolve().parent.parent
if not __package__:  # bench/run.py by its path: this directory must not shadow the standard library's `profile`
    sys.path[0] = str(CHECKOUT)

from bench.errors import BenchError  # noqa: E402
from bench.machine import assert_durable, describe  # noqa: E402
from bench.peers import Peer, Site, peer_named  # noqa: E402
from bench.report import Result, broken_promises, redis_table, remarks, table, warnings, write_json  # noqa: E402
from bench.suites import DEFAULT_SUITES, KIB, QUICK, RELAYED_SIZE, SUITES, Bench, Plan, ceilings  # noqa: E402
from bench.tools import Sink, assert_free, build  # noqa: E402

OURS = "relaycluster"
DOMAINS = 100
DEFAULT_PORT = 26525


def titles(plan: Plan) -> dict[str, str]:
    """The heading of each suite in the table."""
    relayed = f"{RELAYED_SIZE // KIB} KiB"
    return {
        "accept": "ACCEPT  queued durably, delivery off; 20 connections, closed loop",
        "tls": f"TLS  {relayed} queued durably, delivery off; 20 connections at a time, for each message a new one with a full "
        "handshake and AUTH PLAIN",
        "relay": f"RELAY  {plan.relay_messages:,} × {relayed} to {DOMAINS} domains; 20 connections, 100 messages on each",
        "latency": f"LATENCY  {relayed}, open loop at {plan.latency_rate:.0f}/s, a connection for each message",
        "client": f"CLIENT  {plan.client_messages:,} × {relayed} to one host over 20 connections",
        "deep": f"DEEP QUEUE  {plan.deep_messages:,} × 2 KiB queued, delivery off",
    }


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Options; each has its environment variable, for `make bench`."""
    env = os.environ
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmark relaycluster, beside its peers.")
    parser.add_argument("--peers", help="comma-separated, in place of relaycluster and BENCH_PEER")
    parser.add_argument("--suites", default=env.get("BENCH_SUITES") or ",".join(DEFAULT_SUITES), help="BENCH_SUITES")
    parser.add_argument("--runs", type=int, default=int(env.get("BENCH_RUNS") or 0), help="BENCH_RUNS, default 3")
    parser.add_argument("--quick", action="store_true", default=bool(env.get("BENCH_QUICK")), help="BENCH_QUICK=1")
    parser.add_argument("--port", type=int, default=int(env.get("BENCH_PORT") or DEFAULT_PORT), help="BENCH_PORT")
    parser.add_argument("--out", type=Path, help="the JSON file; default under bench/results/")
    found = parser.parse_args(words)
    if found.peers is None:
        found.peers = ",".join(name for name in (OURS, env.get("BENCH_PEER")) if name)
    found.runs = found.runs or (1 if found.quick else 3)
    return found


def work_directory() -> Path:
    """Where the queues live: on the disk of the checkout, unless BENCH_WORK says otherwise."""
    work = Path(os.environ.get("BENCH_WORK") or CHECKOUT / "var" / "bench").absolute()
    work.mkdir(parents=True, exist_ok=True)
    assert_durable(work)
    return work


def site_at(port: int) -> Site:
    """The sink on `port`, the peer on the next one, the node's HTTP on the one after."""
    return Site("127.0.0.1", port + 1, port + 2, "127.1.0.", port, DOMAINS)


def end_on_signals() -> None:
    """SIGTERM and SIGHUP clean up as Ctrl-C does; once it has begun, cleaning up is not interrupted."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, interrupt)


def chosen(names: str, known: object, what: str) -> list[str]:
    """A comma-separated list, checked."""
    found = [name.strip() for name in names.split(",") if name.strip()]
    for name in found:
        if name not in known:  # type: ignore[operator]
            raise BenchError(f"there is no {what} {name!r}; known: {', '.join(known)}")  # type: ignore[arg-type]
    return found


def measure(bench: Bench, peers: Sequence[Peer], suites: Sequence[str], runs: int, results: list[Result]) -> list[str]:
    """Every suite `runs` times, the peers in turn within each. What failed is told and not tried again."""
    failures: dict[tuple[str, str], str] = {}
    for run in range(1, runs + 1):
        for suite in suites:
            for peer in peers:
                if (suite, peer.name) in failures:
                    continue
                progress(f"run {run}/{runs}  {suite}  {peer.name} …")
                start = time.monotonic()
                try:
                    rows = SUITES[suite](bench, peer)
                except BenchError as error:
                    failures[suite, peer.name] = f"{suite}, {peer.name}: {error}"
                    progress(failures[suite, peer.name])
                    continue
                results += [Result(suite, case, peer.name, run, values) for case, values in rows.items()]
                rates = [f"{row['rate']:,.0f}/s" for row in rows.values() if "rate" in row]
                progress(f"    {', '.join(rates) or 'done'}   ({time.monotonic() - start:.0f} s)")
    return list(failures.values())


def progress(text: str) -> None:
    """A line for whoever waits; the table alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 when mail was lost or doubled or a suite failed, 2 when it could not begin."""
    options = arguments(words)
    end_on_signals()
    results: list[Result] = []
    try:
        suites = chosen(options.suites, SUITES, "suite")
        peers = [peer_named(name) for name in chosen(options.peers, ("relaycluster", "postfix"), "peer")]
        plan = QUICK if options.quick else Plan()
        site = site_at(options.port)
        work = work_directory()
        for peer in peers:
            peer.assert_usable(work)
        build()
        for port in (site.port, site.http_port):
            assert_free(site.host, port)
        head = {
            **describe(work, CHECKOUT),
            "plan": vars(plan),
            "runs": options.runs,
            "settings": {
                name: value for name, value in os.environ.items() if name.startswith(("BENCH_", "RELAYCLUSTER_"))
            },
        }
        with Sink(work, addresses=DOMAINS, port=site.sink_port) as sink:
            bench = Bench(site, work, sink, plan)
            head["tool_ceilings"] = ceilings(bench)
            failures = measure(bench, peers, suites, options.runs, results)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted; everything is stopped", file=sys.stderr)
        return 130
    print_report(head, plan, results, failures)
    out = options.out or CHECKOUT / "bench" / "results" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    write_json(out, {**head, "failures": failures}, results)
    print(f"\n{out}")
    return 1 if failures or broken_promises(results, OURS) else 0


def print_report(head: dict[str, object], plan: Plan, results: list[Result], failures: list[str]) -> None:
    """The table with its circumstances."""
    tools = head["tool_ceilings"]
    assert isinstance(tools, dict)
    print(f"\n{head['date']}  commit {head['commit'] or '?'}  {head['cpus']} × {head['cpu']}")
    print(
        f"Linux {head['kernel']}, Python {head['python']}; {head['file_system']}, {head['fsyncs_per_second']:,} fsyncs/s "
        f"one after the other"
    )
    ceiling = ", ".join(f"{rate:,.0f} ({name})" for name, rate in tools.items())
    print(f"generator straight to sink, messages/s: {ceiling}")
    for result in results:
        if durability := result.values.get("durability"):
            print("Redis " + ", ".join(f"{name} {value}" for name, value in durability.items()))
            break
    print(f"medians of {head['runs']}; (least–most)\n")
    print(table(results, titles(plan)))
    if notes := remarks(results):
        print("\n" + "\n".join(f"  {note}" for note in notes))
    if costs := redis_table(result for result in results if result.suite == "relay"):
        print(f"\n{costs}")
    for text in [*warnings(results), *broken_promises(results, OURS), *failures]:
        print(f"\n! {text}")


if __name__ == "__main__":
    raise SystemExit(main())
