"""SIGTERM: a node finishes what is open, hands over, and leaves within its deadline; nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import signal
import smtplib
import socket

from tests.support.ledger import settle
from tests.support.load import Load, Refused, Unanswered, over_domains
from tests.support.nodes import Cluster, smarthost
from tests.support.processes import answers, wait_until
from tests.support.sink import Rule, Sink

DEADLINE_SECONDS = 30  # as in nodes.py


def test_a_node_leaves_under_load(cluster: Cluster, sink: Sink) -> None:
    """Every client gets its answer, what is in flight is settled, and no message is delivered twice."""
    a, b = cluster.node("a"), cluster.node("b")
    cluster.start()
    sink.rules(Rule("dot", "*@d1.test", delay_seconds=2.0))
    load = Load([a.smtp, b.smtp], 2_000, over_domains(100), connections=10, per_connection=20, accept_all=True).start()
    load.wait_for(800, watched=[a.process, b.process])
    assert b.drain(DEADLINE_SECONDS) == 0
    load.wait(watched=[a.process])
    found = settle([load], sink, watched=[a.process])
    assert not any(isinstance(sent.answer, Unanswered) for sent in load.sent), load.summary()
    assert {sent.answer.reply[:3] for sent in load.sent if isinstance(sent.answer, Refused)} <= {"421"}
    assert not found.duplicates, found.explain(found.duplicates)
    assert not found.damaged
    assert {message.helo for message in sink.messages()} == {"a.relay.test", "b.relay.test"}


def test_what_each_client_sees(cluster: Cluster, sink: Sink) -> None:
    """The idle session gets 421, the one in DATA its 250, a new one no connection; /readyz says 503 meanwhile."""
    node = cluster.node("node").start()
    idle = socket.create_connection((node.smtp_host, node.smtp_port), 20)
    assert idle.recv(1000).startswith(b"220 ")
    # Not as a context manager: that says QUIT, and after its message this session ends with 421.
    with contextlib.closing(smtplib.SMTP(node.smtp_host, node.smtp_port, timeout=20)) as busy:
        busy.ehlo("client.test")
        busy.mail("a@example.com")
        busy.rcpt("b@example.org")
        assert busy.docmd("DATA")[0] == 354
        node.process.signal(signal.SIGTERM)
        with idle.makefile("rb") as replies:
            assert replies.readline().startswith(b"421 ")
            assert replies.read() == b""
        idle.close()
        wait_until(lambda: not answers(node.smtp_host, node.smtp_port), "it does not listen any more")
        assert node.ready()[0] == 503
        busy.send(b"Subject: the last one\r\n\r\n.\r\n")
        assert busy.getreply()[0] == 250
    assert node.process.wait(DEADLINE_SECONDS) in (0, -signal.SIGTERM)
    if not sink.messages():
        # Answered 250 so late that its node was gone before it could send: it is queued, and goes out with the next.
        node.start()
        sink.wait_for(1, watched=[node.process])
    assert len(sink.messages()) == 1


def test_the_deadline_holds(cluster: Cluster, sink: Sink) -> None:
    """A remote server that does not answer and a client that does not go on cannot keep a node; the mail stays queued."""
    # Each by itself: of two that share their hosts, one that hangs may keep the other from being begun.
    destinations = [{"match": ["stuck.test"], "hosts": sink.endpoints}, smarthost(sink.endpoints)]
    a = cluster.node("a", over={"node": {"drain_deadline": "3s"}, "destination": destinations}).start()
    sink.rules(Rule("dot", "*@stuck.test", delay_seconds=1000), Rule("rcpt", "*@shy.test", delay_seconds=1000))
    load = Load(
        [a.smtp], 20, lambda number: [f"u{number}@{'stuck' if number % 2 else 'shy'}.test"], connections=1
    ).start()
    assert len(load.wait()) == len(load.accepted()) == 20
    silent = smtplib.SMTP(a.smtp_host, a.smtp_port, timeout=20)
    silent.ehlo("client.test")
    silent.mail("a@example.com")
    wait_until(lambda: sum("stuck" in m.recipients[0] for m in sink.messages()) >= 1, "some is in flight")
    assert a.drain(20) == 0
    silent.close()
    sink.rules()
    b = cluster.node("b").start()
    found = settle([load], sink, watched=[b.process])
    assert not found.unmarked(cluster.marked()), found.explain(found.unmarked(cluster.marked()))
