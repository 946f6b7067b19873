"""A thousand domains, of which fifty hang and fifty answer 4xx: the other nine hundred hardly notice.

`SCENARIO_SCALE=full` runs five interleaved pairs with more mail each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import pytest

from tests.support.dns import FakeDNS
from tests.support.load import Load
from tests.support.nodes import Cluster
from tests.support.processes import Processes, free_port, wait_until
from tests.support.scale import scaled
from tests.support.sink import Rule, Sink

GOOD, SILENT, LATER = 900, 50, 50
PAIRS = scaled(3, 5)
MESSAGES = scaled(2_700, 9_000)
KEPT = scaled(0.2, 0.85)
"""Three short pairs beside other tests show the gross; five long ones, with the machine to themselves, what is promised."""
GOOD_HOST, SILENT_HOST = "127.0.0.11", "127.0.0.12"


def zone() -> str:
    """One host each for all that answer and all that hang."""
    lines = [f"mx.good.test A {GOOD_HOST}", f"mx.silent.test A {SILENT_HOST}"]
    lines += [f"good{n}.test MX 10 mx.good.test" for n in range(GOOD)]
    lines += [f"later{n}.test MX 10 mx.good.test" for n in range(LATER)]
    lines += [f"silent{n}.test MX 10 mx.silent.test" for n in range(SILENT)]
    return "\n".join(lines)


@pytest.fixture
def mx(processes: Processes) -> Sink:
    sink = Sink(processes, "mx", hosts=[GOOD_HOST, SILENT_HOST]).start()
    sink.rules(
        Rule("greeting", match=f"{SILENT_HOST}:*", delay_seconds=600),
        Rule("rcpt", match="*@later*.test", reply="451 4.7.1 come again"),
    )
    return sink


@pytest.fixture
def dns() -> Iterator[FakeDNS]:
    with FakeDNS(zone(), f"127.0.0.1:{free_port()}") as server:
        yield server


@pytest.mark.timeout(1200)
def test_the_others_keep_their_rate(processes: Processes, mx: Sink, dns: FakeDNS) -> None:
    """Each run has a node with a Redis of its own; alone and beside the bad ones in turn, whose mail is a tenth of all, as they
    are a tenth of the domains. The medians of what the nine hundred get are compared. All is done by the same two cores, the bad ones' tenth as
    well: a tenth is what fairness costs."""
    cluster = Cluster(
        processes,
        None,
        {
            "dns": {"servers": [dns.address]},
            "destination": [{"match": ["*"], "port": mx.port}],
            "delivery": {"tls": "none"},
        },
    )
    alone: list[float] = []
    beside: list[float] = []
    for pair in range(PAIRS):
        for with_bad in (False, True) if pair % 2 else (True, False):
            number = len(alone) + len(beside) + 1
            (beside if with_bad else alone).append(rate(cluster, f"run{number}", mx, with_bad))
    print(f"alone {[round(each) for each in alone]}/s, beside the bad {[round(each) for each in beside]}/s")
    print(f"kept: {median(beside) / median(alone):.2f}")
    assert median(beside) >= KEPT * median(alone)


def rate(cluster: Cluster, name: str, mx: Sink, with_bad: bool) -> float:
    """What the good domains got a second, from the first message in to the last one out."""
    node = cluster.node(name).start()
    warm = Load([node.smtp], GOOD, lambda n: [f"warm@good{n % GOOD}.test"]).start()
    warm.wait()
    wait_until(lambda: arrived(mx, warm.run) == GOOD, "the first have arrived", 60)
    if with_bad:
        bad = Load([node.smtp], (SILENT + LATER) * 2, lambda n: [f"u@{bad_domain(n)}"]).start()
        bad.wait()
        wait_until(lambda: len(node.events_named("deferred")) > LATER, "the bad ones are bad", 60)
        trouble = Load([node.smtp], MESSAGES // 9, lambda n: [f"u@{bad_domain(n)}"], connections=3).start()
    began = time.monotonic()
    load = Load([node.smtp], MESSAGES, lambda n: [f"u@good{n % GOOD}.test"]).start()
    load.wait(300)
    wait_until(lambda: arrived(mx, load.run) == MESSAGES, "all have arrived", 300)
    ended = max(message.at for message in mx.messages() if of_run(message.load_id, load.run))
    if with_bad:
        trouble.stop()
        hanging = mx.stat().most[f"{SILENT_HOST}:{mx.port}"]
        assert hanging >= SILENT, f"at most {hanging} connections hung at once: this shows nothing"
    node.kill()
    return MESSAGES / (ended - began)


def bad_domain(number: int) -> str:
    """Silent and unwilling in turn."""
    return f"{'silent' if number % 2 else 'later'}{number // 2 % 50}.test"


def of_run(load_id: str, run: int) -> bool:
    return load_id.startswith(f"r{run}n")


def arrived(mx: Sink, run: int) -> int:
    """How many of a load's messages have come."""
    return sum(of_run(message.load_id, run) for message in mx.messages())
