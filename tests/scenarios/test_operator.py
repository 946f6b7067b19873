"""A day of an operator on a running node: what the command writes binds the node at once, survives its restart, and stands in its log."""

from __future__ import annotations

import json
import re
import smtplib
import subprocess
import sys
from typing import Any

from tests.support.nodes import Cluster, Node
from tests.support.processes import wait_until
from tests.support.sink import Rule, Sink


def say(node: Node, *arguments: str) -> dict[str, Any]:
    """A verb, as the operator of the node's own machine gives it."""
    done = subprocess.run(
        [sys.executable, "-m", "relaycluster.cli", *arguments, "--config", str(node.config), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def send(node: Node, recipient: str) -> str:
    """One message; its queue id."""
    with smtplib.SMTP(node.smtp_host, node.smtp_port) as client:
        client.ehlo()
        client.mail("sender@example.com")
        client.rcpt(recipient)
        _, text = client.data(b"Subject: x\r\n\r\nbody\r\n")
    return text.decode().rsplit(" ", 1)[1]


def told(node: Node, event: str) -> list[dict[str, Any]]:
    return [each for each in node.events() if each["event"] == event]


def test_suspend_and_resume(cluster: Cluster, sink: Sink) -> None:
    """A suspended domain gets nothing, also after a restart, while others get theirs; resumed, it gets all within some seconds."""
    node = cluster.node("node").start()
    say(node, "suspend", "example.org", "--reason", "they asked")
    wait_until(lambda: told(node, "delivery_suspended"), "the node knows")
    held = [send(node, f"u{number}@example.org") for number in range(3)]
    send(node, "other@example.net")
    assert sink.wait_for(1)[0].recipients == ["other@example.net"]
    (reason,) = [
        each for each in say(node, "explain", held[0], "--no-dns")["items"][0]["reasons"] if "suspended" in each
    ]
    assert "they asked" in reason
    node.kill()
    node.start()
    send(node, "again@example.net")
    sink.wait_for(2)
    assert say(node, "queue")["domains"][0]["waiting"] == 3
    say(node, "resume", "example.org")
    assert sorted(message.queue_id for message in sink.wait_for(5)[2:]) == sorted(held)
    assert told(node, "delivery_resumed")


def test_hold_bounce_trace(cluster: Cluster, sink: Sink) -> None:
    """A deferred message is held, bounced with a reason, and its sender is told; each attempt and each act stands in its history."""
    node = cluster.node("node").start()
    sink.rules(Rule("rcpt", "*@slow.test", reply="451 4.7.1 not now"))
    identifier = send(node, "u@slow.test")
    wait_until(lambda: told(node, "deferred"), "it was deferred")
    # Held in whatever state it is: it is tried every second.
    say(node, "hold", identifier, "--reason", "look at it")
    wait_until(lambda: say(node, "show", identifier)["items"][0]["state"] == "held", "it is held")
    say(node, "bounce", identifier, "--reason", "the list was wrong")
    notice = sink.wait_for(1)[0]
    assert (notice.reverse_path, notice.recipients) == ("", ["sender@example.com"])
    assert b"the list was wrong" in notice.content
    wait_until(lambda: len(told(node, "operator_acted")) == 2, "the acts are in the log")
    records = say(node, "trace", identifier)["records"]
    assert records[0]["kind"] == "attempt"
    assert (records[0]["stage"], records[0]["reply"]) == ("rcpt", "451 4.7.1 not now")
    assert records[0]["address"]
    assert [each["verb"] for each in records if each["kind"] == "act"] == ["hold", "bounce"]
    assert records[-1]["result"] == "failed"
    delivered = send(node, "fine@example.net")
    sink.wait_for(2)
    wait_until(lambda: told(node, "delivered"), "it is settled")
    (attempt,) = say(node, "trace", delivered)["records"]
    assert (attempt["result"], attempt["stage"], attempt["tls"]) == ("delivered", "final-dot", "")


def test_flush_of_dead_hosts(cluster: Cluster, sink: Sink) -> None:
    """The hosts are dead, and left alone for a while; they come back, and the operator says so: all goes before that while is over."""
    node = cluster.node("node").start()
    for endpoint in sink.endpoints:
        sink.refuse(endpoint)
    waiting = [send(node, f"u{number}@example.org") for number in range(10)]

    def park() -> dict[str, Any]:
        return say(node, "explain", "example.org", "--no-dns")

    # Left alone for 15 s first, then for 30 s.
    wait_until(lambda: re.search(r"the next try is in [23]\ds", " ".join(park()["reasons"])), "it is dead", 90)
    for endpoint in sink.endpoints:
        sink.listen(endpoint)
    until = park()["paused_until"]
    say(node, "flush", "example.org")
    assert sorted(message.queue_id for message in sink.wait_for(10)) == sorted(waiting)
    wait_until(lambda: len(told(node, "delivered")) == 10, "all is settled")
    assert all(each["time"] < until for each in told(node, "delivered"))
