"""The open-relay battery against every kind of listener of a live node, through `relaycluster doctor` and by hand."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from typing import Any

import pytest

from relaycluster.cli.doctor.client import ProbingClient, proxy_header
from relaycluster.cli.doctor.examination import unverified
from relaycluster.cli.doctor.relay_attempts import attempts
from tests.support.nodes import COMMAND, Cluster
from tests.support.secured import HOSTNAME, LISTENERS, SecuredEdge
from tests.support.sink import Sink

STRANGER = "127.0.0.66"  # in nobody's list of networks
OTHERS = {
    "plain": {"mode": "submission", "tls": "none"},
    "mx-proxy": {"mode": "mx", "tls": "none", "proxy_protocol_from": ["127.0.0.0/8"]},
}


def doctor(*options: str) -> tuple[int, dict[str, Any]]:
    """Exit status, and what it says as JSON."""
    done = subprocess.run([COMMAND, "doctor", "--json", *options], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def results(said: dict[str, Any], check: str) -> dict[str, dict[str, str]]:
    """Subject → the finding of this name."""
    return {finding["subject"]: finding for finding in said["findings"] if finding["check"] == check}


@pytest.fixture
def edge(cluster: Cluster) -> SecuredEdge:
    """Every kind of listener; only 127.0.0.1 may relay, so that the rest of loopback is the world."""
    found = SecuredEdge(cluster, {**LISTENERS, **OTHERS}, over={"access": {"networks": ["127.0.0.1/32"]}})
    found.add_user()
    return found.start()


def test_doctor_finds_nothing_on_a_sound_node(edge: SecuredEdge, sink: Sink) -> None:
    """Every listener was tested as a stranger, with every attempt refused; TLS, passwords, PROXY, Redis and readiness are in
    order; and no mail came of it."""
    status, said = doctor("--config", str(edge.node.config))
    bad = [finding for finding in said["findings"] if finding["result"] == "failed"]
    assert not bad, bad
    assert (status, said["ok"]) == (0, True)
    tested = results(said, "open relay")
    assert set(tested) == {f"127.0.0.1:{port}" for port in edge.ports.values()}
    for finding in tested.values():
        assert finding["result"] == "ok", finding
        assert "attempts were refused" in finding["detail"]
    for listener, client in (("starttls", "127.77.77.77"), ("mx", "127.0.0.1"), ("proxy", "198.51.100.77")):
        assert tested[f"127.0.0.1:{edge.port(listener)}"]["detail"].startswith(f"as {client}, all ")
    for check in ("durability", "readyz"):
        assert [finding["result"] for finding in results(said, check).values()] == ["ok"]
    assert results(said, "certificate's names")[f"127.0.0.1:{edge.port('mx')}"]["result"] == "ok"
    assert results(said, "old TLS versions")[f"127.0.0.1:{edge.port('implicit')}"]["result"] in ("ok", "not tested")
    assert results(said, "AUTH in clear")[f"127.0.0.1:{edge.port('starttls')}"]["result"] == "ok"
    assert edge.node.events_named("message_queued") == []
    assert sink.messages() == []


def test_an_allowed_address_proves_nothing(cluster: Cluster) -> None:
    """Where all of this machine may relay, the battery is not run, and doctor says what to do instead."""
    edge = SecuredEdge(cluster, ["starttls", "mx", "proxy"], over={"access": {"networks": ["127.0.0.0/8"]}}).start()
    status, said = doctor("--config", str(edge.node.config))
    tested = results(said, "open relay")
    skipped = tested[f"127.0.0.1:{edge.port('starttls')}"]
    assert skipped["result"] == "not tested"
    assert "may relay here (access.networks)" in skipped["detail"]
    # Nobody relays by address on a listener of mode "mx", and behind a balancer the header says who the client is.
    assert tested[f"127.0.0.1:{edge.port('mx')}"]["result"] == "ok"
    assert tested[f"127.0.0.1:{edge.port('proxy')}"]["result"] == "ok"
    assert status == 0, said


def test_doctor_sees_an_open_relay(cluster: Cluster) -> None:
    """The whole world as an allowed network is what it is there to find: exit status 1, and the attempts by name."""
    edge = SecuredEdge(cluster, ["starttls"], over={"access": {"networks": ["127.0.0.0/8"]}}).start()
    port = str(edge.port("starttls"))
    status, said = doctor("--host", "127.0.0.1", "--port", port, "--source", STRANGER)
    (finding,) = results(said, "open relay").values()
    assert (status, finding["result"]) == (1, "failed")
    assert finding["detail"].startswith(f"as {STRANGER}, ")
    assert "plain (MAIL FROM:<" in finding["detail"]
    assert f"if {STRANGER} is an address that may relay there" in finding["detail"]


def test_a_stranger_at_a_proxy_listener(cluster: Cluster) -> None:
    """Who is no balancer is closed out with a forged header and without; doctor says what it could not see from there."""
    listeners = {"proxy": {"mode": "submission", "tls": "none", "proxy_protocol_from": ["127.0.0.5/32"]}}
    edge = SecuredEdge(cluster, listeners).start()
    port = edge.port("proxy")
    status, said = doctor("--config", str(edge.node.config))
    assert results(said, "PROXY from a stranger")[f"127.0.0.1:{port}"]["result"] == "ok"
    assert results(said, "everything else")[f"127.0.0.1:{port}"]["result"] == "not tested"
    assert status == 0
    for preface in (b"", proxy_header("192.0.2.9", "127.0.0.1", port)):
        # Closed without a word; what was not read then makes it a reset, perhaps already of the connect.
        with contextlib.suppress(ConnectionResetError), socket.create_connection(("127.0.0.1", port), 10) as raw:
            raw.sendall(preface + b"EHLO x.test\r\n")
            assert raw.recv(1000) == b""
    status, said = doctor("--config", str(edge.node.config), "--source", "127.0.0.5")
    assert results(said, "open relay")[f"127.0.0.1:{port}"]["result"] == "ok"
    assert status == 0


@pytest.mark.parametrize("listener", [*LISTENERS, *OTHERS])
def test_every_attempt_by_itself(edge: SecuredEdge, listener: str) -> None:
    """Without the doctor: each attempt is answered 5yz at RCPT or before, whatever came before it in the session."""
    preface = proxy_header("198.51.100.7", "127.0.0.1", edge.port(listener)) if "proxy" in listener else b""
    implicit = unverified() if "implicit" in listener else None
    source = "127.0.0.1" if listener.startswith("proxy") else STRANGER  # only balancers get as far as a greeting
    left = attempts(HOSTNAME, "127.0.0.1", ["ours.test"])
    while left:
        with ProbingClient("127.0.0.1", edge.port(listener), source=source, preface=preface, tls=implicit) as client:
            assert client.reply().code == 220
            if "STARTTLS" in client.ehlo():
                assert client.command("STARTTLS").code == 220
                client.start_tls(unverified())
            for attempt in left[:8]:
                assert client.command(f"EHLO {attempt.ehlo or 'stranger.test'}").code == 250
                said = client.command(f"MAIL FROM:{attempt.mail}")
                if said.code == 250:
                    said = client.command(f"RCPT TO:{attempt.rcpt}")
                assert 500 <= said.code <= 599, (attempt, said)
            del left[:8]


def test_what_must_not_be_refused_is_not(edge: SecuredEdge) -> None:
    """The battery would also pass on a server that refuses everybody: mail for our own domain, and for postmaster, is taken."""
    with ProbingClient("127.0.0.1", edge.port("mx"), source=STRANGER) as client:
        client.reply()
        client.ehlo()
        for mail, rcpt in (
            ("<a@elsewhere.example>", "<bob@ours.test>"),
            ("<>", "<BOB@OURS.TEST>"),
            ("<a@elsewhere.example>", "<@elsewhere.example:bob@ours.test>"),
            ("<a@elsewhere.example>", '<"bob smith"@ours.test>'),
        ):
            assert client.command(f"MAIL FROM:{mail}").code == 250
            said = client.command(f"RCPT TO:{rcpt}")
            assert said.code == 250, (rcpt, said)
            client.command("RSET")
    with ProbingClient("127.0.0.1", edge.port("plain"), source="127.0.0.1") as client:
        client.reply()
        client.ehlo()
        assert client.command("MAIL FROM:<a@x.test>").code == 250
        assert client.command("RCPT TO:<b@elsewhere.example>").code == 250
