"""The benchmark's tools count what really happened: a figure is worth no more than the count behind it."""

from __future__ import annotations

import os
import re
import smtplib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from bench import tools
from bench.accounting import Cgroup, Group, ProcessTree, end_processes, new_group
from bench.errors import BenchError
from bench.peers import Site, peer_named
from bench.peers.ours import configuration
from bench.redis_stats import RedisStats, command_costs, parse_info
from bench.report import WIDTH, Result, broken_promises, redis_table, table, warnings
from bench.run import arguments, main, titles
from bench.suites import Plan
from bench.tools import Load, Sink, run_load
from relaycluster.config import load as load_configuration
from tests.support.programs import require

needs_compiler = pytest.mark.usefixtures("compiler")
SITE = Site("127.0.0.1", 26526, 26527, "127.1.0.", 26525, 100)


@pytest.fixture
def compiler() -> str:
    """What builds the tools."""
    return os.environ.get("CC") or require("cc")


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sink]:
    """Two receiving addresses on a free port."""
    tools.build()
    with Sink(tmp_path, addresses=2, first_address="127.0.0.1") as found:
        yield found


def send(sink: Sink, work: Path, load: Load, run: int = 7, port: int | None = None) -> tuple[dict[str, object], int]:
    """Clients straight to the sink."""
    return run_load(load, host="127.0.0.1", port=port or sink.port, run=run, work=work, limit_seconds=60)


class ScriptedServer:
    """An SMTP server that refuses or breaks off as told, for one connection at a time."""

    def __init__(self, *, refuse: bytes = b"", break_after_content: int = -1) -> None:
        self._refuse = refuse
        self._break_after_content = break_after_content
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.contents: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as stream:
                self._talk(stream)  # type: ignore[arg-type]

    def _talk(self, stream: BinaryIO) -> None:
        stream.write(b"220 scripted\r\n")
        stream.flush()
        for line in stream:
            verb = line[:4].upper()
            if verb == b"EHLO":
                stream.write(b"250-scripted\r\n250 PIPELINING\r\n")
            elif verb == b"RCPT" and self._refuse:
                stream.write(self._refuse)
            elif verb == b"DATA":
                stream.write(b"354 go\r\n")
                stream.flush()
                content = b"".join(iter(stream.readline, b".\r\n"))
                self.contents.append(content)
                if len(self.contents) - 1 == self._break_after_content:
                    return
                stream.write(b"554 nobody\r\n" if self._refuse else b"250 ok\r\n")
            elif verb == b"QUIT":
                stream.write(b"221 bye\r\n")
            else:
                stream.write(b"250 ok\r\n")
            stream.flush()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@needs_compiler
class TestTools:
    """`load` and `sink`, talking to each other and to servers that misbehave."""

    @pytest.mark.parametrize("stepwise", [False, True])
    @pytest.mark.parametrize("size", [500, 5 * 1024, 300 * 1024])
    def test_everything_sent_is_counted_once_and_found_intact(
        self, sink: Sink, tmp_path: Path, size: int, stepwise: bool
    ) -> None:
        """What the clients were answered 250 for is, number by number, what the sink has; no byte differs."""
        sink.reset(7)
        counted, accepted = send(sink, tmp_path, Load(size=size, messages=205, per_connection=10, stepwise=stepwise))
        arrived = sink.stat()
        assert counted["accepted"] == 205
        assert accepted == sink.seen() == (1 << 205) - 1
        assert (arrived["unique"], arrived["duplicates"], arrived["foreign"], arrived["damaged"]) == (205, 0, 0, 0)
        assert counted["connections"] >= 21

    def test_a_message_has_exactly_the_size_that_was_asked_for(self, tmp_path: Path) -> None:
        """ "10 KiB" in a table means 10 KiB of content on the wire, whatever the message's number."""
        tools.build()
        server = ScriptedServer()
        try:
            send_to = Load(size=10 * 1024, messages=12, connections=1)
            run_load(send_to, host="127.0.0.1", port=server.port, run=7, work=tmp_path, limit_seconds=60)
        finally:
            server.close()
        assert {len(content) for content in server.contents} == {10 * 1024}

    def test_the_same_run_again_is_all_duplicates_and_another_run_foreign(self, sink: Sink, tmp_path: Path) -> None:
        """A relay that sends twice, or mail that is not of this measurement, cannot pass as throughput."""
        sink.reset(7)
        for run in (7, 7, 8):
            send(sink, tmp_path, Load(size=2048, messages=40), run=run)
        arrived = sink.stat()
        assert (arrived["unique"], arrived["duplicates"], arrived["foreign"]) == (40, 40, 40)

    def test_altered_content_is_noticed(self, sink: Sink, tmp_path: Path) -> None:
        """The same message through smtplib is intact; with one letter changed, or a dot stuffed twice, it is damaged."""
        tools.build()
        server = ScriptedServer()
        try:
            one = Load(size=2048, messages=3, connections=1)
            run_load(one, host="127.0.0.1", port=server.port, run=7, work=tmp_path, limit_seconds=60)
        finally:
            server.close()
        intact = [re.sub(rb"(?m)^\.\.", b".", content) for content in server.contents]
        head, _, body = intact[1].partition(b"\r\n\r\n")
        changed = head + b"\r\n\r\n" + bytes([body[0] ^ 1]) + body[1:]
        stuffed_twice = re.sub(rb"(?m)^\.", b"..", intact[2])
        sink.reset(7)
        with smtplib.SMTP("127.0.0.2", sink.port) as client:
            for content in (
                b"Received: from us\r\n" + intact[0],
                changed,
                stuffed_twice,
                b"Subject: a stranger\r\n\r\n",
                b"",
            ):
                client.sendmail("a@sender.test", ["b@d1.test"], content)
        arrived = sink.stat()
        assert (arrived["unique"], arrived["damaged"], arrived["foreign"]) == (3, 2, 2)

    def test_an_open_loop_keeps_its_rate_and_counts_latency_from_the_due_time(self, sink: Sink, tmp_path: Path) -> None:
        """A server that answers each dot 100 ms late, with 2 clients for 100 messages/s, shows its queue as latency."""
        sink.reset(7)
        swift, _ = send(sink, tmp_path, Load(size=2048, messages=40, rate=200, connections=50))
        assert swift["accepted"] == swift["connections"] == 40
        assert float(str(swift["seconds"])) >= 39 / 200
        sink.delay(100)
        slow, _ = send(sink, tmp_path, Load(size=2048, messages=20, rate=100, connections=2), run=8)
        assert slow["accepted"] == 20
        percentiles = slow["latency_ms"]
        assert isinstance(percentiles, dict)
        # the last message is due after 0.19 s; two clients answer it after ten turns of 0.1 s at the earliest
        assert percentiles["max"] >= 750
        assert percentiles["p50"] >= 100

    def test_refusals_are_counted_by_code_and_the_session_goes_on(self, tmp_path: Path) -> None:
        """Each refused recipient is one refusal with its code, although 354 came, and the connection is kept."""
        tools.build()
        server = ScriptedServer(refuse=b"451 4.3.0 not now\r\n")
        try:
            load = Load(size=2048, messages=6, connections=1, per_connection=3)
            counted, accepted = run_load(
                load, host="127.0.0.1", port=server.port, run=7, work=tmp_path, limit_seconds=60
            )
        finally:
            server.close()
        assert counted["refused"] == {"451": 6}
        assert accepted == 0
        assert (counted["connections"], counted["broken"]) == (2, 0)
        assert server.contents == [b""] * 6  # a lone dot: nobody gets the content

    def test_a_message_that_may_have_been_accepted_is_not_sent_again(self, tmp_path: Path) -> None:
        """A connection that breaks after the final dot leaves one unanswered message; the rest goes on elsewhere."""
        tools.build()
        server = ScriptedServer(break_after_content=2)
        try:
            load = Load(size=2048, messages=10, connections=1)
            counted, accepted = run_load(
                load, host="127.0.0.1", port=server.port, run=7, work=tmp_path, limit_seconds=60
            )
        finally:
            server.close()
        assert (counted["accepted"], counted["unanswered"], counted["broken"]) == (9, 1, 1)
        assert accepted == 0b1111111011
        assert len(server.contents) == 10

    def test_a_port_that_is_taken_is_refused(self, sink: Sink, tmp_path: Path) -> None:
        """Neither the sink nor a peer is started over somebody else's server."""
        with pytest.raises(BenchError, match="in use"):
            Sink(tmp_path, addresses=1, first_address="127.0.0.1", port=sink.port)
        with pytest.raises(BenchError, match=f"127.0.0.1:{sink.port} is taken"):
            tools.assert_free("127.0.0.1", sink.port)

    def test_the_sink_does_not_outlive_the_benchmark(self, tmp_path: Path) -> None:
        """Even a benchmark that is killed outright leaves no sink behind."""
        tools.build()
        script = (
            "import os, signal, sys; from pathlib import Path; from bench.tools import Sink\n"
            "sink = Sink(Path(sys.argv[1]), addresses=1, first_address='127.0.0.1')\n"
            "print(sink.process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, cwd=tools.HERE.parent, check=False
        )
        assert gone(int(done.stdout))


def gone(pid: int, patience_seconds: float = 10.0) -> bool:
    """Whether a process ends, or is only a zombie that nobody asked after."""
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return True
        if text[text.rindex(")") + 2] == "Z":
            return True
        threading.Event().wait(0.02)
    return False


@pytest.mark.parametrize("kind", ["cgroup", "walk"])
def test_every_process_of_a_peer_is_counted_and_ended(kind: str) -> None:
    """A grandchild in a session of its own, as an embedded Redis is, is found, its CPU counted, and stopped."""
    name = f"bench-test-{os.getpid()}"
    group: Group | None = Cgroup.create(name) if kind == "cgroup" else ProcessTree(name)
    if group is None:
        pytest.skip("no cgroup v2 can be made here")
    script = "import os\nif os.fork() == 0:\n  os.setsid()\n  while True: pass\nprint('.', flush=True)\nos.wait()\n"
    process = subprocess.Popen(
        group.wrap([sys.executable, "-c", script]), stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        group.started(process.pid)
        assert process.stdout is not None
        assert process.stdout.read(1) == b"."
        found = group.processes()
        assert process.pid in found
        assert len(found) == 2
        deadline = time.monotonic() + 20
        while group.cpu_seconds() < 0.1 and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        assert group.cpu_seconds() >= 0.1
        # the parent does not pass the signal on: the child is adopted by init, and is still ours to end
        assert end_processes(group, process.pid, patience_seconds=0.3)
        process.wait(5)
        assert all(gone(pid) for pid in found)
    finally:
        end_processes(group, process.pid, patience_seconds=0)
        process.wait(5)
        process.stdout.close()  # type: ignore[union-attr]
        group.remove()


def test_a_group_can_always_be_had() -> None:
    """Without the right to make a cgroup there is the walk through /proc."""
    group = new_group(f"bench-test-new-{os.getpid()}")
    try:
        assert group.kind in ("cgroup v2", "/proc walk")
        assert group.processes() == []
    finally:
        group.remove()


class TestPeers:
    """What is measured is configured as its users would."""

    @pytest.mark.parametrize("mode", ["accept", "relay"])
    def test_our_configuration_is_one(self, tmp_path: Path, mode: str) -> None:
        """The file that the benchmark writes is valid and asks for the durability that the figures claim."""
        path = tmp_path / "relaycluster.toml"
        path.write_text(configuration(tmp_path / "state", mode, SITE))  # type: ignore[arg-type]
        found = load_configuration(path)
        assert found.redis.durability == "fsync"
        assert set(found.node.roles) == ({"edge"} if mode == "accept" else {"edge", "delivery"})
        assert len(found.destination) == 100

    def test_postfix_keeps_to_its_own_directory(self, tmp_path: Path) -> None:
        """Queue, data and log of the benchmark's Postfix lie below its directory; without delivery there is no qmgr."""
        require("postfix")
        if os.geteuid() != 0:
            pytest.skip("this is not root")
        command = peer_named("postfix").prepare(tmp_path, "accept", SITE)
        assert command[1:] == ["-c", str(tmp_path / "etc"), "start-fg"]
        done = subprocess.run(["postconf", "-c", tmp_path / "etc", "-n"], capture_output=True, text=True, check=False)
        assert done.stderr == ""
        for name in ("queue_directory", "data_directory", "maillog_file"):
            assert f"{name} = {tmp_path}/" in done.stdout
        assert "qmgr" not in (tmp_path / "etc" / "master.cf").read_text()


def results(peers: tuple[str, ...] = ("relaycluster", "postfix")) -> list[Result]:
    """Three runs with figures as wide as they can get."""
    found = []
    for run in (1, 2, 3):
        for n, peer in enumerate(peers):
            relay = {
                "rate": 12345.6 / (n * 3 + 1) + run,
                "accept_rate": 100000.0,
                "lost": 0,
                "duplicates": n,
                "cpu_per_1000": 0.3,
                "python_microseconds": None if n else 280.0,
                "redis_commands": {}
                if n
                else {"evalsha": {"calls_per_message": 3.0, "microseconds_per_message": 99.5}},
                "flushes_per_message": 0.25,
                "foreign_cores": 0.0,
            }
            found.append(Result("relay", "relay", peer, run, relay))
            found.append(Result("accept", "10 KiB, 100 per connection", peer, run, {"rate": 1000.0 * (run + n)}))
    return found


class TestReport:
    """The table says what was measured, in its width."""

    def test_the_table_fits_and_has_the_ratio_of_the_medians(self) -> None:
        """Neither the widest figures nor the headings break the width that people's terminals have."""
        text = table(results(), titles(Plan()))
        assert max(len(line) for line in text.splitlines()) <= WIDTH
        rate = next(line for line in text.splitlines() if "100 per connection" not in line and "  messages/s" in line)
        assert rate.split() == ["messages/s", "2,000", "(1,000–3,000)", "3,000", "(2,000–4,000)", "0.67"]
        assert re.search(r"Python, µs per message\s+280 \(280–280\)\s+-$", text, re.MULTILINE)
        assert "evalsha" in redis_table(results())

    def test_one_peer_alone_has_no_ratio(self) -> None:
        """There is nothing to compare with."""
        assert "ratio" not in table(results(("relaycluster",)), titles(Plan()))

    def test_our_lost_or_doubled_mail_fails_the_benchmark_and_a_peers_does_not(self) -> None:
        """Speed does not excuse it."""
        found = results()
        assert broken_promises(found, "relaycluster") == []
        found.append(Result("relay", "relay", "relaycluster", 4, {"lost": 1, "duplicates": 0}))
        assert broken_promises(found, "relaycluster") == ["relaycluster, relay, run 4: 1 lost"]

    def test_a_disturbed_measurement_says_so(self) -> None:
        """CPU that neither the peer nor the tools used makes the figures doubtful."""
        assert warnings(results()) == []
        assert "1.5 cores" in warnings([Result("relay", "relay", "p", 1, {"foreign_cores": 1.5})])[0]


def test_redis_costs_are_differences_per_message() -> None:
    """The cost of a command is what it added between two looks, for each message."""
    before = parse_info(
        "# Commandstats\r\ncmdstat_evalsha:calls=100,usec=5000,usec_per_call=50.00\r\nused_memory:1\r\n"
    )
    after = parse_info("cmdstat_evalsha:calls=400,usec=35000,usec_per_call=87.50\r\ncmdstat_ping:calls=1,usec=1\r\n")
    found = command_costs(before, after, 100)
    assert found["evalsha"] == {"calls_per_message": 3.0, "microseconds_per_message": 300.0}
    assert list(found) == ["evalsha", "ping"]


def test_a_nodes_redis_is_found_by_its_socket(tmp_path: Path) -> None:
    """Wherever below its directory, at the end of however long a path, a node keeps it."""
    require("redis-server")
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    assert RedisStats.find(tmp_path) is None
    process = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", "r.sock", "--appendonly", "yes", "--appendfsync", "always"],
        cwd=deep,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while (found := RedisStats.find(tmp_path)) is None and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        assert found is not None
        assert found.settings()["appendfsync"] == "always"
        assert "cmdstat_config" in next(name for name in found.info() if name.startswith("cmdstat_config"))
        with pytest.raises(ValueError, match="unknown command"):
            found.ask("NONSENSE")
        found.close()
    finally:
        process.terminate()
        process.wait(10)


def test_options_come_from_the_environment_and_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make bench` passes nothing but the environment."""
    for name in ("BENCH_PEER", "BENCH_RUNS", "BENCH_QUICK", "BENCH_SUITES", "BENCH_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert (arguments([]).peers, arguments([]).runs) == ("relaycluster", 3)
    monkeypatch.setenv("BENCH_PEER", "postfix")
    monkeypatch.setenv("BENCH_QUICK", "1")
    assert (arguments([]).peers, arguments([]).runs) == ("relaycluster,postfix", 1)
    assert arguments(["--peers", "postfix", "--runs", "5"]).runs == 5


def test_what_cannot_begin_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown peer or suite, and a queue in memory, are refused before anything starts."""
    monkeypatch.setattr("bench.run.end_on_signals", lambda: None)
    assert main(["--peers", "sendmail"]) == 2
    assert capsys.readouterr().err == "bench: there is no peer 'sendmail'; known: relaycluster, postfix\n"
    assert main(["--suites", "unknown"]) == 2
    assert capsys.readouterr().err.startswith("bench: there is no suite 'unknown'; known: accept, tls, relay")
