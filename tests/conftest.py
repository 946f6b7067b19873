"""What every test may ask for, and what the report of a failed scenario shows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import hypothesis
import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.support.processes import Processes

# Machines are shared and of every speed: how long an example took says nothing about it.
hypothesis.settings.register_profile("shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shared")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    # The logs belong into the report itself: the directory is gone when the test is over.
    processes = getattr(item, "funcargs", {}).get("processes")
    if report.when == "call" and report.failed and isinstance(processes, Processes):
        report.sections.append(("logs of the scenario's processes", processes.tails()))
    return report


@pytest.fixture(autouse=True, scope="session")
def files_of_trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What trial's `mktemp` makes stands with the other files of this run: trial itself would put it where it was started."""
    directory, numbers = tmp_path_factory.mktemp("trial"), count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SynchronousTestCase, "mktemp", lambda _: str(directory / str(next(numbers))))
        yield


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Real processes, all of which are gone when the test ends."""
    found = Processes()
    try:
        yield found
    finally:
        found.close()
