"""A crowd of bad neighbours costs an honest client little, and a session that only sits there costs little memory.

`SCENARIO_SCALE=full` brings the 5,000 idle sessions, 200 slow and 50 loud ones that the promise is about.
"""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.nodes import Cluster, Node
from tests.support.processes import REPOSITORY
from tests.support.scale import scaled
from tests.support.secured import SecuredEdge

IDLE, SLOW, JUNK = scaled(800, 5000), scaled(60, 200), scaled(15, 50)
MESSAGES = scaled(200, 2000)
KIB = 1024
MOST_BYTES = {False: 20 * KIB, True: 60 * KIB}
TIMES = 3.0

LIMITS = {
    "connections": 10_000,
    "connections_per_client": 1_000,
    "command_timeout": "30min",
    "data_timeout": "30min",
    "transaction_time": "1h",
    "minimum_data_rate": "1B/s",
}
CONTENT = (
    b"Date: Mon, 02 Nov 2026 10:00:00 +0000\r\nFrom: <a@x.test>\r\nMessage-ID: <1@x.test>\r\n\r\n" + b"x" * 70 + b"\r\n"
)


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """As many open files as the system lets us have; nodes inherit it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < IDLE + SLOW + JUNK + 500:
        pytest.skip(f"only {before[1]} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def crowd(port: int, *, idle: int, slow: int = 0, junk: int = 0, tls: bool = False) -> Iterator[dict[str, int]]:
    """The crowd, at work; behind the block the result tells what became of it."""
    command = [sys.executable, "-m", "tests.support.crowd", f"--port={port}", f"--idle={idle}"]
    command += [f"--slow={slow}", f"--junk={junk}", *(["--tls"] if tls else [])]
    result: dict[str, int] = {}
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for wanted in (f"idle {idle}\n", "ready\n"):
                said = process.stdout.readline()
                assert said == wanted, said
            yield result
            process.stdin.close()
            result.update(json.loads(process.stdout.read()))
        finally:
            process.kill()


def accept_seconds(node: Node, count: int) -> list[float]:
    """From the first packet to the 250, a connection for each message."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        with (
            socket.create_connection((node.smtp_host, node.smtp_port), 60) as session,
            session.makefile("rb") as replies,
        ):
            assert replies.readline().startswith(b"220")
            for command, code in (
                (b"HELO honest.test\r\n", b"250"),
                (b"MAIL FROM:<a@x.test>\r\n", b"250"),
                (b"RCPT TO:<b@y.test>\r\n", b"250"),
                (b"DATA\r\n", b"354"),
                (CONTENT + b".\r\n", b"250"),
            ):
                session.sendall(command)
                line = replies.readline()
                assert line.startswith(code), (command, line)
            found.append(time.perf_counter() - start)
    return found


def p95(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.95)]


def test_an_honest_client_in_a_crowd(cluster: Cluster) -> None:
    """Idle, slow and loud neighbours at once: p95 to the 250 stays below three times that of the same node without them, and
    the idle and slow ones are left alone."""
    node = cluster.node("edge", over={"limits": LIMITS}).start()
    accept_seconds(node, 50)
    alone = accept_seconds(node, MESSAGES)
    with crowd(node.smtp_port, idle=IDLE, slow=SLOW, junk=JUNK) as result:
        among = accept_seconds(node, MESSAGES)
    alone += accept_seconds(node, MESSAGES)  # what else the machine did meanwhile counts on both sides
    print(f"p95 {p95(alone) * 1000:.1f} ms alone, {p95(among) * 1000:.1f} ms in the crowd; {result}")
    assert result["idle"] == IDLE
    assert result["slow"] == SLOW
    assert result["thrown out"] > JUNK
    assert p95(among) < TIMES * p95(alone)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_memory_of_an_idle_session(cluster: Cluster, tls: bool) -> None:
    """What the node grows by, divided by the sessions that sit there."""
    edge = SecuredEdge(cluster, ["clear"], over={"limits": LIMITS}).start()
    process = edge.node.process
    port = edge.port("clear")
    first, rest = IDLE // 5, IDLE - IDLE // 5
    with crowd(port, idle=first, tls=tls) as there:
        before = process.resident_bytes()  # what start-up left free has been taken, and what is loaded once is loaded
        with crowd(port, idle=rest, tls=tls) as added:
            assert edge.node.metric("smtp_sessions") >= IDLE
            grown = (process.resident_bytes() - before) / rest
    print(f"{grown / KIB:.1f} KiB for an idle session{' with TLS' if tls else ''}")
    assert (there["idle"], added["idle"]) == (first, rest)
    assert grown < MOST_BYTES[tls]
