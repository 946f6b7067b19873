"""The usual cast of a scenario: one Redis, one receiving server, and nodes that send everything to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodes import Cluster, smarthost
from tests.support.processes import Processes
from tests.support.redis_server import RedisServer
from tests.support.sink import Sink

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is a scenario, and may take longer than a unit test."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.scenario)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(600))


@pytest.fixture
def redis(processes: Processes) -> RedisServer:
    """The newest Redis there is, durable."""
    return RedisServer(processes).start()


@pytest.fixture
def sink(processes: Processes) -> Sink:
    """A receiving server that keeps what it is given."""
    return Sink(processes, keep=True).start()


@pytest.fixture
def cluster(processes: Processes, redis: RedisServer, sink: Sink) -> Iterator[Cluster]:
    """No nodes yet; each will route all mail to the sink and try again after a second.

    Whatever else a scenario shows: no node may log an error, which is an exception that nobody expected.
    """
    found = Cluster(
        processes,
        redis,
        {"destination": [smarthost(sink.endpoints, connections=50)], "delivery": {"tls": "none", "retry": ["1s"]}},
    )
    yield found
    errors = [event for event in found.events() if event["event"] == "error"]
    assert not errors, errors[:3]
