"""The harness itself: a ledger that cannot find a lost message proves nothing."""

from __future__ import annotations

import os
import signal
import smtplib
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.ledger import account, settle
from tests.support.load import Accepted, Load, Refused, Unanswered, over_domains
from tests.support.nodes import merge, render_toml
from tests.support.processes import REPOSITORY, Impatient, Processes, free_port, processes_of, wait_until
from tests.support.redis_server import RedisError, RedisServer, servers
from tests.support.sink import Rule, Sink


def test_close_leaves_no_process_behind(processes: Processes) -> None:
    """Also the grandchild that went into a session of its own and the one that was stopped are gone."""
    script = (
        "import subprocess, sys; "
        "subprocess.Popen(['sleep', '1000'], start_new_session=True); "
        "print('started', flush=True); sys.stdin.read(); import time; time.sleep(1000)"
    )
    process = processes.start("parent", [sys.executable, "-c", script])
    process.wait_for_output("started")
    assert len(processes_of(processes.directory)) == 2
    process.freeze()
    processes.close()
    assert processes_of(processes.directory) == []
    assert not processes.directory.exists()


def test_processes_die_with_a_killed_test_run() -> None:
    """SIGKILL to the test run itself leaves no process and no directory."""
    script = (
        "import sys, time; from tests.support.processes import Processes; p = Processes(); "
        "p.start('sleeper', ['sleep', '1000']); print(p.directory, flush=True); time.sleep(1000)"
    )
    run = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    directory = Path(run.stdout.readline().strip())
    assert len(processes_of(directory)) == 1
    run.send_signal(signal.SIGKILL)
    run.communicate()
    wait_until(lambda: not processes_of(directory) and not directory.exists(), "everything is gone")


def test_waiting_ends_with_the_watched_process(processes: Processes) -> None:
    """A process that dies is reported at once, with its log, instead of at the end of the wait."""
    process = processes.start("short", ["sh", "-c", "echo last words; exit 3"])
    with pytest.raises(Impatient, match=r"ended with 3(.|\n)*last words"):
        wait_until(lambda: False, "never", 1000, watched=[process])


def test_free_port_is_never_given_twice() -> None:
    """Neither within a process nor to another one."""
    script = "from tests.support.processes import free_port; print(*[free_port() for _ in range(20)]); input()"
    others = [
        subprocess.Popen(
            [sys.executable, "-c", script], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    ports = [free_port() for _ in range(20)]
    for other in others:
        assert other.stdout is not None
        ports += [int(port) for port in other.stdout.readline().split()]
    for other in others:
        other.communicate("\n")
    assert len(set(ports)) == len(ports) == 60


@pytest.mark.parametrize("version", sorted(servers()))
def test_redis_keeps_what_it_answered(processes: Processes, version: str) -> None:
    """SIGKILL right after an answer loses nothing; the same directory comes back with the same data."""
    redis = RedisServer(processes, version=version).start()
    assert redis.info()["redis_version"].startswith(version)
    for number in range(50):
        redis.call("SET", f"key{number}", number)
    redis.kill()
    with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
        redis.call("PING")
    redis.start()
    assert redis.call("DBSIZE") == 50
    redis.stop()


def test_redis_with_a_user_and_limits(processes: Processes) -> None:
    """ACL user, port and options are in force."""
    redis = RedisServer(processes, user="relay", password="secret", tcp=True, options={"maxmemory": "3mb"}).start()
    assert redis.url == f"redis://relay:secret@127.0.0.1:{redis.port}/0"

    def fill() -> None:
        for number in range(10_000):
            redis.call("SET", f"key{number}", "x" * 100_000)

    with pytest.raises(RedisError, match="OOM"):
        fill()
    with socket.create_connection(("127.0.0.1", redis.port)) as stranger:
        stranger.sendall(b"PING\r\n")
        assert stranger.recv(100).startswith(b"-NOAUTH")


def client(sink: Sink, host: str = "127.0.0.1") -> smtplib.SMTP:
    return smtplib.SMTP(host, sink.port, timeout=20)


def test_sink_records_exactly_what_came(processes: Processes) -> None:
    """Dots unstuffed, everything else as sent; with envelope, parameters and time."""
    sink = Sink(processes, keep=True).start()
    content = b".\r\n..two\r\n.x\r\n\xff\x00 bytes\r\n\r\nlast"
    before = time.monotonic()
    with client(sink) as smtp:
        smtp.sendmail("a@x.test", ["b@y.test", "c@y.test"], content, ["BODY=8BITMIME"])
        smtp.sendmail("a@x.test", ["b@y.test"], b".")
    first, second = sink.wait_for(2)
    assert first.content == content + b"\r\n"
    assert second.content == b".\r\n"
    assert (first.reverse_path, first.recipients, first.parameters.split()[-1]) == (
        "a@x.test",
        ["b@y.test", "c@y.test"],
        "BODY=8BITMIME",
    )
    assert before < first.at < second.at < time.monotonic()
    assert sink.problems() == []


def test_sink_misbehaves_as_told(processes: Processes) -> None:
    """Replies by recipient, greylisting, dropping before and after taking the message, refusing connections."""
    sink = Sink(processes, hosts=("127.0.0.1", "127.0.0.2")).start()
    sink.rules(
        Rule("rcpt", "*@gone.test", reply="550 5.1.1 no such user"),
        Rule("rcpt", "*@grey.test", reply="450 4.7.1 later", first=1),
        Rule("dot", "*@lost.test", drop=True),
        Rule("dot", "*@twice.test", drop=True, record=True),
        Rule("content", "*@big.test", after_bytes=1000),
        Rule("greeting", f"127.0.0.2:{sink.port}", reply="421 4.3.2 not now", drop=True),
    )
    with client(sink) as smtp:
        smtp.mail("a@x.test")
        assert smtp.rcpt("u@gone.test")[0] == 550
        assert smtp.rcpt("u@grey.test")[0] == 450
        assert smtp.rcpt("u@grey.test")[0] == 250
        assert smtp.rcpt("v@grey.test")[0] == 450
    for domain, error in (
        ("lost.test", smtplib.SMTPServerDisconnected),
        ("twice.test", smtplib.SMTPServerDisconnected),
        ("big.test", (smtplib.SMTPServerDisconnected, ConnectionError)),
    ):
        with client(sink) as smtp, pytest.raises(error):
            smtp.sendmail("a@x.test", [f"u@{domain}"], b"x" * 60 + b"\r\n" + b"y" * 5000)
    assert [message.recipients for message in sink.messages()] == [["u@twice.test"]]
    with pytest.raises(smtplib.SMTPConnectError, match="421"):
        client(sink, "127.0.0.2")
    sink.refuse(sink.endpoints[0])
    with pytest.raises(ConnectionRefusedError):
        client(sink)
    sink.rules()
    sink.listen(sink.endpoints[0])
    with client(sink) as smtp:
        smtp.sendmail("a@x.test", ["u@gone.test"], b"now")
    assert len(sink.wait_for(2)) == 2


def test_sink_delays_one_session_only(processes: Processes) -> None:
    """While one session waits for its reply the others go on."""
    sink = Sink(processes).start()
    sink.rules(Rule("dot", "*@slow.test", delay_seconds=1000))
    slow = Load([f"127.0.0.1:{sink.port}"], 1, lambda n: ["u@slow.test"], connections=1).start()
    sink.wait_for(1)
    Load([f"127.0.0.1:{sink.port}"], 100, over_domains(3), connections=5).start().wait()
    assert slow.alive
    assert sink.stat().most["slow.test"] == 1
    sink.drop_all()
    assert isinstance(slow.wait()[0].answer, Unanswered)


def test_sink_notes_what_a_client_does_wrong(processes: Processes) -> None:
    """Bare LF, pipelining and 8-bit content that were not offered, long lines."""
    sink = Sink(processes, extensions={"*": ()}).start()
    content = b"bare\nline\r\n" + b"\xff" * 1000
    with socket.create_connection(("127.0.0.1", sink.port)) as raw, raw.makefile("rb") as replies:
        raw.sendall(b"EHLO x.test\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n")
        while not replies.readline().startswith(b"354"):
            pass
        raw.sendall(content + b"\r\n.\r\n")
        assert replies.readline() == b"250 2.0.0 taken\r\n"
    said = "\n".join(sink.problems())
    for problem in ("pipelined", "bare CR or LF", "8-bit", "998"):
        assert problem in said


def test_ledger_balances_and_is_fast_enough(processes: Processes) -> None:
    """A load straight into a sink: all delivered, none twice, all intact; at a rate that does not hold scenarios up."""
    sink = Sink(processes).start()
    load = Load([f"127.0.0.1:{sink.port}"], 3000, over_domains(300), connections=20).start()
    load.wait()
    found = settle([load], sink)
    assert len(found.accepted) == 3000
    assert not found.duplicates
    assert not found.damaged
    assert not found.foreign
    first, last = sink.messages()[0].at, sink.messages()[-1].at
    print(f"{3000 / (last - first):.0f} messages/s into the sink")


def test_ledger_sees_loss_duplicates_damage_and_bounces(processes: Processes) -> None:
    """Each way in which an account can be wrong is found."""
    sink = Sink(processes, keep=True).start()
    load = Load([f"127.0.0.1:{sink.port}"], 6, over_domains(2), connections=1).start()
    load.wait()
    received = list(sink.messages())
    lost, doubled = received[0], received[1]
    with client(sink) as smtp:
        smtp.sendmail("", [f"{received[2].load_id}@bounce.test"], b"a notice")
        smtp.sendmail(received[3].reverse_path, received[3].recipients, received[3].content[:-10] + b"........\r\n")
        smtp.sendmail("x@x.test", ["u@elsewhere.test"], received[4].content)
    notice, damaged, foreign = sink.messages()[-3:]
    found = account([load], [doubled, doubled, *received[5:], notice, damaged, foreign])
    assert found.missing == {(message.load_id, message.recipients[0]) for message in (lost, received[4])}
    assert found.duplicates == {(doubled.load_id, doubled.recipients[0]): 2}
    assert found.unmarked([]) == found.duplicates
    assert found.damaged == {damaged.load_id}
    assert found.foreign == {(foreign.load_id, "u@elsewhere.test")}
    assert found.bounced == {(received[2].load_id, received[2].recipients[0])}
    partial = _Only([doubled, *received[5:], notice, damaged])
    with pytest.raises(AssertionError, match="2 of 6 accepted are neither"):
        settle([load], partial, timeout_seconds=0.1)  # type: ignore[arg-type]


class _Only:
    """A sink that shows only some of what came."""

    def __init__(self, received: list[object]) -> None:
        self._received = received

    def messages(self) -> list[object]:
        return self._received


def test_load_survives_refusals_and_death(processes: Processes) -> None:
    """A dead edge's load goes on at the other; refused ids are replaced; what DATA left open is told as such."""
    first, second = Sink(processes, "first").start(), Sink(processes, "second").start()
    second.rules(Rule("rcpt", "*@d1.test", reply="452 4.3.1 full", first=1))

    edges = [f"127.0.0.1:{sink.port}" for sink in (first, second)]

    def kill_first(number: int, edge: str) -> None:
        if number >= 50 and edge == edges[0]:
            first.process.kill()

    load = Load(
        edges,
        200,
        over_domains(4),
        connections=4,
        accept_all=True,
        pause_after_refusal_seconds=0,
        on_content=kill_first,
    ).start()
    load.wait()
    kinds = [type(sent.answer) for sent in load.sent]
    assert kinds.count(Accepted) == 200
    assert kinds.count(Refused) == sum(load.refusals().values()) > 0
    assert set(load.refusals()) == {"452 4.3.1 full"}
    assert 1 <= kinds.count(Unanswered) <= 2
    assert len({sent.load_id for sent in load.sent}) == len(load.sent)
    found = account([load], [*first.messages(), *second.messages()])
    assert not found.missing
    assert not found.refused_but_delivered


def test_configuration_is_rendered_as_toml() -> None:
    """What is rendered reads back as what was meant."""
    settings = {
        "node": {"id": 'a "quoted" \\ name', "roles": ["edge"], "weight": 1.5, "workers": 2},
        "destination": [{"match": ["*"], "hosts": ["[::1]:25"]}, {"match": ["x.test"], "rate": "50/s"}],
        "empty": {},
    }
    assert tomllib.loads(render_toml(settings)) == settings
    merged = merge(settings, {"node": {"id": "b"}, "destination": []})
    assert merged["node"] == {"id": "b", "roles": ["edge"], "weight": 1.5, "workers": 2}
    assert merged["destination"] == []


def test_a_missing_program_is_a_skip_by_name_or_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipped with program and package; with CI=true a failure; a program outside the list is a mistake."""
    monkeypatch.setattr(programs, "SEARCH_PATH", os.devnull)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"haproxy is missing \(Debian package haproxy\)"):
        programs.require("haproxy")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"promtool is missing \(Debian package prometheus\)"):
        programs.require("promtool")
    with pytest.raises(KeyError):
        programs.require("exim")
