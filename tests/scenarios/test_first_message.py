"""The first thing that anyone tries: a message from a script and one from swaks arrive as they were sent."""

from __future__ import annotations

import email
import re
import smtplib
import subprocess

from tests.support import programs
from tests.support.nodes import Cluster
from tests.support.processes import wait_until
from tests.support.sink import Received, Rule, Sink


def trace(received: Received, sent: bytes) -> bytes:
    """The fields that the relay put in front; everything behind them is what was sent, byte for byte."""
    assert received.content.endswith(sent), received.content[:2000]
    return received.content[: -len(sent)]


def check_trace(received: Received, sent: bytes, queue_id: str) -> None:
    """One Received: field, complete (RFC 5321 4.4), that carries the id of the 250; and what a submission lacked (RFC 6409 8)."""
    fields = email.message_from_bytes(trace(received, sent) + b"\r\n")
    assert sorted(fields.keys()) == ["Date", "Message-ID", "Received"]
    assert fields["Received"].count("from ") == 1
    flat = re.sub(r"\s+", " ", fields["Received"])
    assert re.match(r"from \S+ \(\[?127\.0\.0\.1\]?.*\) by node\.relay\.test .*with ESMTP id \S+", flat), flat
    assert queue_id in flat
    assert received.queue_id == queue_id


def test_smtplib_and_swaks(cluster: Cluster, sink: Sink) -> None:
    """Both messages arrive with our Received: field and the missing Date: and Message-ID: before them, and nothing else changed."""
    swaks = programs.require("swaks")
    node = cluster.node("node").start()

    content = b"From: a@example.com\r\nSubject: first\r\n\r\n.\r\n..two\r\nbody\r\n"
    with smtplib.SMTP(node.smtp_host, node.smtp_port, local_hostname="client.test") as client:
        client.ehlo()
        assert {"pipelining", "8bitmime", "enhancedstatuscodes", "size"} <= client.esmtp_features.keys()
        client.mail("a@example.com")
        client.rcpt("b@example.org")
        code, text = client.data(content)
    assert code == 250
    found = re.fullmatch(r"2\.0\.0 queued as (\S{26})", text.decode())
    assert found, text
    first = sink.wait_for(1)[0]
    check_trace(first, content, found[1])
    assert (first.reverse_path, first.recipients) == ("a@example.com", ["b@example.org"])

    said = subprocess.run(
        [
            *(swaks, "--server", node.smtp, "--from", "a@example.com", "--to", "b@example.org", "--pipeline"),
            *("--data", "Subject: from swaks\\n\\nHello\\n.dotted\\nend", "--timeout", "20"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    found = re.search(r"250 2\.0\.0 queued as (\S{26})", said.stdout)
    assert found, said.stdout
    second = sink.wait_for(2)[1]
    check_trace(second, b"Subject: from swaks\r\n\r\nHello\r\n.dotted\r\nend\r\n", found[1])
    assert sink.problems() == []


def test_one_message_to_several_domains(cluster: Cluster, sink: Sink) -> None:
    """Each recipient gets it exactly once, and the trace field names no recipient to another."""
    node = cluster.node("node").start()
    recipients = [f"user{number}@d{number % 7}.test" for number in range(20)]
    with smtplib.SMTP(node.smtp_host, node.smtp_port) as client:
        client.sendmail("a@example.com", recipients, b"Subject: to all\r\n\r\nx\r\n")
    received = sink.wait_for(7)
    assert sorted(recipient for message in received for recipient in message.recipients) == sorted(recipients)
    assert len({message.queue_id for message in received}) == 1
    for message in received:
        assert b"@d" not in message.content


def test_a_bounce_reaches_the_sender_and_never_bounces_back(cluster: Cluster, sink: Sink) -> None:
    """550 at RCPT becomes an RFC 3464 notice from <>; a notice that is refused itself ends there, with an event."""
    node = cluster.node("node").start()
    sink.rules(Rule("rcpt", "*@gone.test", reply="550 5.1.1 no such user"))
    with smtplib.SMTP(node.smtp_host, node.smtp_port) as client:
        client.sendmail("sender@example.com", ["u@gone.test"], b"Subject: lost\r\n\r\nsecret body\r\n")
    notice = sink.wait_for(1)[0]
    assert (notice.reverse_path, notice.recipients) == ("", ["sender@example.com"])
    report = email.message_from_bytes(notice.content)
    assert report.get_content_type() == "multipart/report"
    assert report.get_param("report-type") == "delivery-status"
    status = report.get_payload()[1].get_payload()
    fields = {key.lower(): value for part in status for key, value in part.items()}
    assert fields["final-recipient"].replace(" ", "").lower() == "rfc822;u@gone.test"
    assert (fields["action"], fields["status"]) == ("failed", "5.1.1")
    assert "550 5.1.1 no such user" in fields["diagnostic-code"]

    with smtplib.SMTP(node.smtp_host, node.smtp_port) as client:
        client.sendmail("sender@gone.test", ["u@gone.test"], b"Subject: double\r\n\r\n")
    wait_until(lambda: node.metric("queue_items") == 0 and len(sink.messages()) == 1, "the queue is empty")
    with smtplib.SMTP(node.smtp_host, node.smtp_port) as client:
        client.sendmail("sender@example.com", ["u@fine.test"], b"Subject: after\r\n\r\n")
    assert sink.wait_for(2)[1].recipients == ["u@fine.test"]
