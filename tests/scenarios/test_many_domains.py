"""A thousand domains, of which fifty hang and fifty answer 4xx: the other nine hundred hardly notice.

`SCENARIO_SCALE=full` asks with bursts of ten messages a domain instead of three.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import pytest

from tests.support.capacity import carried
from tests.support.dns import FakeDNS
from tests.support.load import Load
from tests.support.nodes import Cluster, Node
from tests.support.processes import Processes, free_port, wait_until
from tests.support.scale import scaled
from tests.support.sink import Rule, Sink

GOOD, SILENT, LATER = 900, 50, 50
PAIRS = 5
MESSAGES = scaled(3, 10) * GOOD
KEPT = 0.85
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
    """Two nodes, each with a Redis of its own. One has the good domains alone; at the other all the bad ones hang and wait, and while
    it gets a burst, a tenth of all mail is for them, as they are a tenth of the domains. Both get their bursts in turn, so
    that a machine that changes its speed changes it for both, and the medians are compared."""
    cluster = Cluster(
        processes,
        None,
        {
            "dns": {"servers": [dns.address]},
            "destination": [{"match": ["*"], "port": mx.port}],
            "delivery": {"tls": "none"},
        },
    )
    alone, beside = (cluster.node(name).start() for name in ("alone", "beside"))
    for node in (alone, beside):
        carried([node.smtp], mx, GOOD, good)
    bad = Load([beside.smtp], (SILENT + LATER) * 2, lambda n: [f"u@{bad_domain(n)}"]).start()
    bad.wait()
    wait_until(lambda: len(beside.events_named("deferred")) > LATER, "the bad ones are bad", 60)

    rates: dict[Node, list[float]] = {alone: [], beside: []}
    for pair in range(PAIRS):
        for node in (alone, beside) if pair % 2 else (beside, alone):
            if node is beside:
                trouble = Load([node.smtp], MESSAGES // 9, lambda n: [f"u@{bad_domain(n)}"], connections=3).start()
            rates[node].append(carried([node.smtp], mx, MESSAGES, good))
            if node is beside:
                trouble.stop()
    hanging = mx.stat().most[f"{SILENT_HOST}:{mx.port}"]
    assert hanging >= SILENT, f"at most {hanging} connections hung at once: this shows nothing"
    for node, found in rates.items():
        print(f"{node.name}: {[round(each) for each in found]}/s")
    kept = median(rates[beside]) / median(rates[alone])
    print(f"kept: {kept:.2f}")
    assert kept >= KEPT


def good(number: int) -> list[str]:
    """Nine hundred domains in turn."""
    return [f"u@good{number % GOOD}.test"]


def bad_domain(number: int) -> str:
    """Silent and unwilling in turn."""
    return f"{'silent' if number % 2 else 'later'}{number // 2 % 50}.test"
