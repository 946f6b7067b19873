"""What sending costs, as a ratio to the least that it can cost, measured in turn in one sitting: no figure of any machine."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import tools
from bench.client import measure
from bench.tools import Sink
from tests.support.programs import require
from tests.support.scale import scaled

pytestmark = pytest.mark.scenario  # seconds of measuring: not in `make check`

SITTINGS = 3
ROUNDS = 7
MESSAGES = 3_000
SETTLED = scaled(1 / 5, 1 / 3)


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sink]:
    """The receiving side that all ways share."""
    os.environ.get("CC") or require("cc")
    tools.build()
    with Sink(tmp_path, addresses=1, first_address="127.1.0.1") as found:
        yield found


@pytest.mark.timeout(600)
def test_the_client_beside_a_bare_one(sink: Sink, tmp_path: Path) -> None:
    """Our conversation, with all that it checks, costs at most 1.5 times a Twisted protocol that counts lines.

    By the CPU of the sending process, all rounds together: other programs disturb that less than a rate. A sitting that was disturbed
    counts for nothing: one of three must show it.
    """
    ratios = []
    for _ in range(SITTINGS):
        bare, ours = [], []
        for _ in range(ROUNDS):
            bare.append(measure("reference", sink.port, MESSAGES, tmp_path)["cpu_microseconds"])
            ours.append(measure("client", sink.port, MESSAGES, tmp_path)["cpu_microseconds"])
        ratios.append(sum(ours) / sum(bare))
        print(f"our client costs {ratios[-1]:.2f} times a bare one")
        if ratios[-1] <= 1.5:
            return
    raise AssertionError(f"our client costs {ratios} times a bare one")


@pytest.mark.timeout(600)
def test_a_node_beside_the_client_alone(sink: Sink, tmp_path: Path) -> None:
    """Claimed, sent and settled, with every write on the disk: at least a third of what the client does without a queue.

    With `SCENARIO_SCALE=full` by the rates, alone on a quiet machine. In `make test` a fifth, by the CPU of the sending process, since
    the disk and the other core are shared.
    """
    ratios = []
    for _ in range(SITTINGS):
        alone, settled = [], []
        for _ in range(5):
            alone.append(measure("client", sink.port, MESSAGES, tmp_path))
            settled.append(measure("settle", sink.port, MESSAGES, tmp_path))
        rates = median_of(settled, "rate") / median_of(alone, "rate")
        cpu = median_of(alone, "cpu_microseconds") / median_of(settled, "cpu_microseconds")
        print(f"a node settles {rates:.2f} of what its client can send; by CPU {cpu:.2f}")
        ratios.append(scaled(cpu, rates))
        if ratios[-1] >= SETTLED:
            return
    raise AssertionError(f"a node settles {ratios} of what its client can send")


def median_of(found: list[dict[str, float]], figure: str) -> float:
    """Of several runs."""
    return statistics.median(each[figure] for each in found)
