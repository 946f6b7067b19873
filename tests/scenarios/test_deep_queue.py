"""A deep queue costs its neighbours nothing: mail that is due is claimed and settled as if nothing else waited, and an operator
sees the largest queues from counters. A million items over 100,000 domains: `python -m bench.deep`."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.support.processes import PATIENCE, REPOSITORY, Processes
from tests.support.scale import scaled

# As many domains in a partition as 100,000 make in 1,024: that is what a transition meets.
ITEMS, DOMAINS, PARTITIONS = scaled(50_000, 1_000_000), scaled(5_000, 100_000), scaled(64, 1024)
MOST = 1.2


@pytest.fixture(scope="module")
def figures() -> Any:
    """What the benchmark's comparison of a full and an empty Redis found; it has checked that nothing was lost or added."""
    processes = Processes()
    try:
        target = processes.directory / "figures.json"
        words: list[object] = ["--items", ITEMS, "--domains", DOMAINS, "--partitions", PARTITIONS, "--rounds", 150]
        words += ["--work", processes.directory / "work", "--json", target]
        process = processes.start(
            "deep",
            [sys.executable, "-m", "bench.deep", *map(str, words)],
            environment={"PYTHONPATH": str(REPOSITORY)},
        )
        assert process.wait(scaled(300, 3000) * PATIENCE) == 0, process.tail()
        yield json.loads(target.read_text())
    finally:
        processes.close()


@pytest.mark.timeout(scaled(600, 6000))
def test_transitions_cost_what_they_cost_in_an_empty_queue(figures: Any) -> None:
    """Enqueue, claim, defer and finish: the same Redis commands, and at most a fifth more of Redis' time."""
    empty, full = figures["empty"], figures["full"]
    for phase in ("enqueue", "claim", "defer", "finish"):
        assert full[phase]["calls"] <= 1.01 * empty[phase]["calls"], phase
    alone, beside = figures["claim_and_settle"]
    assert beside <= MOST * alone, (empty, full)


@pytest.mark.timeout(scaled(600, 6000))
def test_the_largest_queues_are_there_at_once(figures: Any) -> None:
    """`queue` reads counters: a few commands for each partition and each domain that it shows, whatever is queued."""
    _, view = figures["views"]["queue, top 50"]
    assert view["commands"] <= 2 * PARTITIONS + 50 * 20
    assert view["redis_ms"] * 1000 <= 20 * view["commands"], "a command that takes long keeps all others waiting"
