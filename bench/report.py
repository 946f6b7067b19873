"""The table, at most 100 columns wide, and the JSON file. A row's figure is the median of its runs, with the extremes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

WIDTH = 100
LABEL_WIDTH = 40
RATIO_WIDTH = 8
SUSPICIOUS_CORES = 0.25


@dataclass(frozen=True)
class Result:
    """One run of one case of one suite with one peer."""

    suite: str
    case: str
    peer: str
    run: int
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A figure of the table: where it is found, what it is called, how many decimals it has."""

    key: str
    label: str
    decimals: int = 0
    total: bool = False  # a sum over the runs instead of a median: what must not happen even once
    quiet: bool = False  # shown only when it is not zero


COMMON = (
    Line("refused", "refused", total=True, quiet=True),
    Line("broken", "connections lost", total=True, quiet=True),
    Line("unanswered", "unanswered", total=True, quiet=True),
    Line("unasked", "arrived though not answered 250", total=True, quiet=True),
)
ARRIVALS = (
    Line("lost", "lost", total=True),
    Line("duplicates", "duplicated", total=True),
    Line("damaged", "damaged", total=True, quiet=True),
)
COSTS = (
    Line("cpu_per_1000", "CPU seconds per 1,000", 3),
    Line("python_microseconds", "Python, µs per message", 0),
    Line("redis_microseconds", "Redis, µs per message", 0),
    Line("flushes_per_message", "disk flushes per message", 2),
)
LINES: dict[str, tuple[Line, ...]] = {
    "accept": (Line("rate", "messages/s"), Line("cpu_per_1000", "CPU seconds per 1,000", 3), *COMMON),
    "tls": (
        Line("rate", "messages/s"),
        Line("cpu_per_1000", "CPU seconds per 1,000", 3),
        Line("accepted_p50_ms", "connect to 250, p50 ms", 1),
        Line("accepted_p99_ms", "connect to 250, p99 ms", 1),
        *COMMON,
    ),
    "relay": (
        Line("rate", "end to end, messages/s"),
        Line("accept_rate", "accepted meanwhile, messages/s"),
        *ARRIVALS,
        *COSTS,
        Line("pss_mib", "peak memory (PSS), MiB"),
        Line("delivered_p50_ms", "in to out p50, ms", 1),
        Line("delivered_p99_ms", "in to out p99, ms", 1),
        *COMMON,
    ),
    "latency": (
        Line("accepted_p50_ms", "due to 250, p50 ms", 1),
        Line("accepted_p99_ms", "due to 250, p99 ms", 1),
        Line("delivered_p50_ms", "due to delivered, p50 ms", 1),
        Line("delivered_p99_ms", "due to delivered, p99 ms", 1),
        *ARRIVALS,
        *COSTS,
        *COMMON,
    ),
    "client": (Line("rate", "messages/s"), Line("cpu_microseconds", "Python, µs per message", 0)),
    "deep": (
        Line("rate_first", "first tenth, messages/s"),
        Line("rate_last", "last tenth, messages/s"),
        Line("redis_calls_empty", "Redis commands, empty queue", 2),
        Line("redis_calls_full", "Redis commands, deep queue", 2),
        Line("redis_us_empty", "Redis µs, empty queue", 1),
        Line("redis_us_full", "Redis µs, deep queue", 1),
        Line("redis_us_ratio", "deep to empty", 2),
        Line("view_ms", "until it is answered, ms", 1),
        Line("view_redis_ms", "of that in Redis, ms", 1),
        *COSTS,
        Line("pss_mib", "peak memory (PSS), MiB"),
        *COMMON,
    ),
}


def table(results: Sequence[Result], titles: dict[str, str]) -> str:
    """All suites, one column per peer; with two peers or more, the first one's ratio to the second."""
    out: list[str] = []
    peers = list(dict.fromkeys(result.peer for result in results))
    for suite in dict.fromkeys(result.suite for result in results):
        head = titles.get(suite, suite)
        if out:
            out.append("")
        out += [head[:WIDTH], _columns("", [*peers, "ratio"] if len(peers) > 1 else peers)]
        mine = [result for result in results if result.suite == suite]
        for case in dict.fromkeys(result.case for result in mine):
            rows = [result for result in mine if result.case == case]
            if case != suite:
                out.append(f"  {case}")
            indent = "    " if case != suite else "  "
            out += [text for line in LINES[suite] if (text := _figures(line, rows, peers, indent))]
    return "\n".join(out)


def _figures(line: Line, rows: Sequence[Result], peers: Sequence[str], indent: str) -> str:
    cells: list[str] = []
    middles: list[float | None] = []
    for peer in peers:
        values = [row.values[line.key] for row in rows if row.peer == peer and row.values.get(line.key) is not None]
        middle = None if not values else float(sum(values)) if line.total else float(statistics.median(values))
        middles.append(middle)
        cells.append("-" if middle is None else _figure(middle, [] if line.total else values, line.decimals))
    if all(middle is None for middle in middles) or (line.quiet and not any(middles)):
        return ""
    if len(peers) > 1 and not line.total and middles[0] is not None and middles[1]:
        cells.append(f"{middles[0] / middles[1]:.2f}")
    return _columns(indent + line.label, cells)


def _figure(middle: float, values: Sequence[float], decimals: int) -> str:
    text = f"{middle:,.{decimals}f}"
    if len(values) > 1:
        text += f" ({min(values):,.{decimals}f}–{max(values):,.{decimals}f})"
    return text


def _columns(label: str, cells: Sequence[str]) -> str:
    ratio = len(cells) > 2
    peers = cells[:-1] if ratio else cells
    width = min(26, (WIDTH - LABEL_WIDTH - RATIO_WIDTH) // max(len(peers), 1))
    text = f"{label:<{LABEL_WIDTH}}" + "".join(f"{cell:>{width}}" for cell in peers)
    return (text + (f"{cells[-1]:>{RATIO_WIDTH}}" if ratio else "")).rstrip()[:WIDTH]


def redis_table(results: Iterable[Result], rows: int = 8) -> str:
    """The dearest Redis commands of the relay suite, medians over the runs; empty without an own Redis."""
    runs = [result.values["redis_commands"] for result in results if result.values.get("redis_commands")]
    if not runs:
        return ""
    found = []
    for name in {name for run in runs for name in run}:
        calls = statistics.median(run.get(name, {}).get("calls_per_message", 0.0) for run in runs)
        microseconds = statistics.median(run.get(name, {}).get("microseconds_per_message", 0.0) for run in runs)
        found.append((microseconds, calls, name))
    out = [f"{'Redis by its own count, per message':<{LABEL_WIDTH}}{'calls':>12}{'µs':>12}"]
    out += [
        f"  {name:<{LABEL_WIDTH - 2}}{calls:>12.2f}{us:>12.1f}" for us, calls, name in sorted(found)[: -rows - 1 : -1]
    ]
    return "\n".join([*out, "  (what a script calls counts there and under evalsha, too)"])


def remarks(results: Sequence[Result]) -> list[str]:
    """What the suite tls compares: not only speed, but also what each peer does for a password."""
    found = [f"{result.peer}: {check}" for result in results if (check := result.values.get("password_check"))]
    found += [f"TLS: {negotiated}" for result in results if (negotiated := result.values.get("tls"))]
    return list(dict.fromkeys(found))


def warnings(results: Sequence[Result]) -> list[str]:
    """What a reader must know before believing the figures."""
    found = []
    disturbed = [result for result in results if result.values.get("foreign_cores", 0) > SUSPICIOUS_CORES]
    if disturbed:
        most = max(result.values["foreign_cores"] for result in disturbed)
        found.append(
            f"{len(disturbed)} of {len(results)} cases ran while up to {most:.1f} cores were used elsewhere: "
            "measure again on a quiet machine"
        )
    stolen = max((result.values.get("stolen_cores", 0) for result in results), default=0)
    if stolen > SUSPICIOUS_CORES:
        found.append(f"the hypervisor took up to {stolen:.1f} cores: measure again")
    if any(result.values.get("counted_by") == "/proc walk" for result in results):
        found.append("no cgroup v2 here: the CPU of processes that live briefly is not counted in full")
    for result in results:
        if result.values.get("stalled"):
            found.append(f"{result.peer}, {result.suite}, run {result.run}: nothing moved any more, given up")
        if result.values.get("refused"):
            found.append(f"{result.peer} refused, run {result.run}: {result.values.get('last_refusal')}")
    return list(dict.fromkeys(found))


def broken_promises(results: Iterable[Result], peer: str) -> list[str]:
    """Lost, doubled or altered mail of one peer: the benchmark fails then, whatever the speed."""
    found = []
    for result in results:
        bad = {name: result.values[name] for name in ("lost", "duplicates", "damaged") if result.values.get(name)}
        if result.peer == peer and bad:
            found.append(f"{peer}, {result.suite}, run {result.run}: {', '.join(f'{n} {k}' for k, n in bad.items())}")
    return found


def write_json(path: Path, head: dict[str, Any], results: Sequence[Result]) -> None:
    """Everything, run by run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**head, "results": [asdict(result) for result in results]}, indent=1) + "\n")
