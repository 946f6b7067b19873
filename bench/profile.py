#!/usr/bin/env python3
"""Where the Python time of a relayed message goes: the relay suite with twistd under cProfile.

    .venv/bin/python -m bench.profile [--messages 5000] [--rows 40] [--sort tottime|cumtime] [--keep FILE]

cProfile makes every call dearer, small functions most of all: read the order and the call counts, not the total.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # bench/profile.py by its path: this directory must not shadow the standard library's `profile`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import pstats
import shutil
from collections.abc import Sequence

from bench.errors import BenchError
from bench.node import Node
from bench.peers.ours import Relaycluster
from bench.report import WIDTH
from bench.run import CHECKOUT, DEFAULT_PORT, DOMAINS, end_on_signals, site_at, work_directory
from bench.suites import QUICK, Bench, relay_once, warm_up
from bench.tools import Sink, build

Times = tuple[int, int, float, float, object]  # pstats: primitive calls, calls, own seconds, with callees, callers


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description="Profile a relaying node.")
    parser.add_argument("--messages", type=int, default=5_000)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--sort", default="tottime", choices=("tottime", "cumtime", "ncalls"))
    parser.add_argument("--keep", type=Path, help="keep the profile in this file (for pstats, snakeviz, …)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    options = parser.parse_args(words)
    end_on_signals()
    try:
        return profile(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted; everything is stopped", file=sys.stderr)
        return 130


def profile(options: argparse.Namespace) -> int:
    """Run, stop, print."""
    work, site = work_directory(), site_at(options.port)
    build()
    stats_path = work / "relaycluster.profile"
    stats_path.unlink(missing_ok=True)
    peer = Relaycluster(profile=stats_path)
    peer.assert_usable(work)
    with Sink(work, addresses=DOMAINS, port=site.sink_port) as sink:
        bench = Bench(site, work, sink, QUICK)
        node = Node(peer, "relay", site, work)
        with node:
            warm_up(bench, relaying=True)
            row = relay_once(bench, node, options.messages)
    if not stats_path.exists():
        raise BenchError(
            f"twistd wrote no profile within {peer.patience_seconds:.0f} s of SIGTERM; its log: {node.log_path}"
        )
    print(f"{row['rate']:,.0f} messages/s while profiled; lost {row['lost']}, duplicated {row['duplicates']}")
    print(table(pstats.Stats(str(stats_path)), options.messages + QUICK.warm_up_messages, options.sort, options.rows))
    if options.keep:
        shutil.copy(stats_path, options.keep)
        print(options.keep)
    stats_path.unlink()
    return 0


def table(statistics: pstats.Stats, messages: int, sort: str, rows: int) -> str:
    """The dearest functions, everything divided by the messages of the whole run (start and stop are in it, too)."""
    measured: dict[tuple[str, int, str], Times] = statistics.stats  # type: ignore[attr-defined]
    out = [f"per message, of {messages:,}:", f"{'own µs':>9}{'with callees':>14}{'calls':>9}  function"]
    for (path, line, name), (_, calls, own, whole, _) in sorted(
        measured.items(), key=lambda item: -_weight(item[1], sort)
    )[:rows]:
        where = f"{_short(path)}:{line} {name}" if line else name
        out.append(
            f"{own / messages * 1e6:>9.1f}{whole / messages * 1e6:>14.1f}{calls / messages:>9.2f}  {where}"[:WIDTH]
        )
    total = sum(times[2] for times in measured.values())
    return "\n".join([*out, f"{total / messages * 1e6:>9.1f}{'':>14}{'':>9}  all functions, with waiting in poll"])


def _weight(times: Times, sort: str) -> float:
    _, calls, own, whole, _ = times
    return whole if sort == "cumtime" else own if sort == "tottime" else calls


def _short(path: str) -> str:
    """The path from the package on."""
    return path.rpartition("site-packages/")[2].removeprefix(f"{CHECKOUT}/")


if __name__ == "__main__":
    raise SystemExit(main())
