"""A domain's rate holds over two delivery nodes and a change of owner, is used up, and disturbs nobody else."""

from __future__ import annotations

from bisect import bisect_left
from statistics import median

from tests.support.capacity import carried, due
from tests.support.ledger import account, settle, waits
from tests.support.load import Load
from tests.support.nodes import Cluster, smarthost
from tests.support.processes import Processes, wait_until
from tests.support.redis_server import RedisServer
from tests.support.sink import Sink

RATE = 50
TOLERANCE = 5
USED = 0.9
WATCHED_SECONDS = 20
HAND_OVER_SECONDS = 3


def test_fifty_a_second_over_a_hand_over(processes: Processes, redis: RedisServer) -> None:
    """More mail than the rate lets through; the owner is drained in the middle of twenty seconds. Nine tenths of the rate are used, as far as
    the cluster carries that at all, and whoever has no limit waits for a small part of what the limited wait."""
    sink = Sink(processes).start()
    cluster = Cluster(
        processes,
        redis,
        {
            "destination": [
                smarthost(sink.endpoints),
                {"match": ["limited.test"], "hosts": sink.endpoints, "rate": f"{RATE}/s"},
            ]
        },
    )
    edge = cluster.node("edge", ["edge"])
    nodes = {f"{name}.relay.test": cluster.node(name, ["delivery"]) for name in ("a", "b")}
    cluster.start()
    before = carried([edge.smtp], sink, 400, other)
    limited = Load([edge.smtp], RATE * (WATCHED_SECONDS + 5), lambda number: [f"u{number}@limited.test"]).start()
    others = Load([edge.smtp], 40 * WATCHED_SECONDS, other, connections=5, per_second=40).start()
    assert len(limited.wait()) == len(limited.accepted())

    wait_until(lambda: len(arrivals(sink)) >= RATE * WATCHED_SECONDS // 2, "half of it went out", 200)
    owner = next(message.helo for message in reversed(sink.messages()) if is_limited(message.recipients))
    drained_at = sink.messages()[-1].at
    assert nodes[owner].drain() == 0
    wait_until(lambda: arrivals(sink)[-1] > arrivals(sink)[0] + WATCHED_SECONDS + 1, "twenty seconds went by", 120)
    others.wait()
    found = settle([limited, others], sink)
    assert not found.duplicates
    assert {message.helo for message in sink.messages() if is_limited(message.recipients)} == set(nodes)

    times = arrivals(sink)
    most = max(bisect_left(times, start + 1.0) - number for number, start in enumerate(times))
    assert most <= RATE + TOLERANCE, f"{most} within one second"
    start, end = times[0], times[0] + WATCHED_SECONDS
    outside = [at for at in times if start <= at < end and not drained_at <= at < drained_at + HAND_OVER_SECONDS]
    after = carried([edge.smtp], sink, 400, other)
    used = len(outside) / (WATCHED_SECONDS - HAND_OVER_SECONDS)
    print(f"at most {most} in a second, {used:.1f} outside of the hand-over")
    assert used >= USED * due(RATE, before, after)

    waited, limited_waited = waits(others, sink), waits(limited, sink)
    assert len(waited) == len(account([others], sink.messages()).accepted)
    print(
        f"others waited {median(waited):.3f} s, at most {waited[-1]:.3f} s; the limited {median(limited_waited):.3f} s"
    )
    assert median(waited) < median(limited_waited) / 20
    assert waited[-1] < median(limited_waited) / 2


def other(number: int) -> list[str]:
    """Recipients without a limit."""
    return [f"u@other{number % 40}.test"]


def is_limited(recipients: list[str]) -> bool:
    return recipients[0].endswith("@limited.test")


def arrivals(sink: Sink) -> list[float]:
    """When the limited domain's messages came."""
    return [message.at for message in sink.messages() if is_limited(message.recipients)]
