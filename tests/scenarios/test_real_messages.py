"""Messages as they are found in the world go through with identical content."""

from __future__ import annotations

import email
import os
import random
import smtplib
from pathlib import Path

import pytest

from tests.support.nodes import Cluster, Node, smarthost
from tests.support.processes import Processes, wait_until
from tests.support.redis_server import RedisServer
from tests.support.sink import Received, Sink


def submit(node: Node, content: bytes, options: tuple[str, ...] = ()) -> tuple[int, bytes]:
    """One message; the reply to its final dot."""
    with smtplib.SMTP(node.smtp_host, node.smtp_port, timeout=120) as client:
        client.ehlo("client.test")
        assert client.mail("a@example.com", options)[0] == 250
        assert client.rcpt("b@example.org")[0] == 250
        # Not client.data(): it would mend line ends.
        assert client.docmd("DATA")[0] == 354
        dots = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]
        client.send(dots + (b"" if not content or content.endswith(b"\r\n") else b"\r\n") + b".\r\n")
        return client.getreply()


def behind_ours(message: Received, sent: bytes) -> bytes:
    """The content behind the fields that the relay may put in front: Received:, and Date: and Message-ID: where they were missing."""
    assert message.content.startswith(b"Received: ")
    fields = email.message_from_bytes(message.content[: len(message.content) - len(sent)] + b"\r\n")
    assert set(fields.keys()) <= {"Received", "Date", "Message-ID"}, fields.keys()
    return message.content[-len(sent) :] if sent else b""


def real_messages() -> dict[str, bytes]:
    """CPython's own test messages, line ends made CRLF."""
    try:
        import test.test_email as package
    except ImportError:
        reason = "this Python came without its tests (Debian package libpython3-testsuite)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    found = {}
    for path in sorted((Path(package.__file__).parent / "data").glob("msg_*.txt")):
        data = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
        found[path.name] = data if data.endswith(b"\r\n") else data + b"\r\n"
    assert len(found) > 40
    return found


def made_messages() -> dict[str, bytes]:
    """What the real ones do not show."""
    noise = random.Random(2).randbytes(3_000_000).replace(b"\r", b"").replace(b"\n", b"")
    long = b"\r\n".join(noise[start : start + 900] for start in range(0, 900_000, 900))
    head = b"Subject: made\r\n\r\n"
    return {
        "empty": b"",
        "one dot": b".\r\n",
        "bare dots": head + b".\r\n..\r\n...\r\n.\r\n\r\n.a\r\n",
        "dot at chunk ends": head + b"".join(b"x" * (1 << shift) + b"\r\n.\r\n" for shift in range(1, 10)) * 40,
        "no header": b"just text\r\n",
        "blank first": b"\r\n\r\nbody\r\n",
        "8-bit": head + "Grüße, Jürgen; ζεστό; 日本語\r\n".encode(),
        "8-bit header": "Subject: Grüße\r\n\r\n".encode("latin-1") + bytes(range(128, 256)) + b"\r\n",
        "longest line": head + b"x" * 998 + b"\r\n",
        "1 MB": head + long + b"\r\n",
    }


def test_all_kinds_of_content(cluster: Cluster, sink: Sink) -> None:
    """CPython's messages, dots, 8-bit, no header, no body: what comes out is what went in."""
    node = cluster.node("node").start()
    messages = {**real_messages(), **made_messages()}
    queue_ids = {}
    for name, content in messages.items():
        options = () if content.isascii() else ("BODY=8BITMIME",)
        code, text = submit(node, content, options)
        assert code == 250, (name, text)
        queue_ids[name] = text.decode().split()[-1]
    by_id = {message.queue_id: message for message in sink.wait_for(len(messages), watched=[node.process])}
    assert len(sink.messages()) == len(by_id) == len(messages)
    for name, content in messages.items():
        message = by_id[queue_ids[name]]
        assert behind_ours(message, content) == content, name
        assert ("BODY=8BITMIME" in message.parameters) == (not content.isascii()), name
    assert sink.problems() == []


def test_nul_is_carried_or_refused_but_never_changed(cluster: Cluster, sink: Sink) -> None:
    """NUL octets are no text (RFC 5321 4.5.2 asks that content passes unharmed): they go through as they are."""
    node = cluster.node("node").start()
    content = b"Subject: nul\r\n\r\na\x00b\r\n"
    code, text = submit(node, content)
    assert code == 250, text
    assert behind_ours(sink.wait_for(1)[0], content) == content


def test_25_megabytes(processes: Processes, redis: RedisServer) -> None:
    """A message of the default size limit goes through, a larger one is refused at MAIL and, if it lied, at the end."""
    sink = Sink(processes, keep=True).start()
    node = Cluster(processes, redis, {"destination": [smarthost(sink.endpoints)]}).node("node").start()
    limit = 25 << 20
    line = random.Random(3).randbytes(700).hex()[:76].encode() + b"\r\n"
    head = b"Subject: large\r\n\r\n"
    content = head + line * ((limit - len(head)) // len(line))
    code, text = submit(node, content, (f"SIZE={len(content)}",))
    assert code == 250, text
    received = sink.wait_for(1, 120, watched=[node.process])[0]
    assert behind_ours(received, content) == content

    with smtplib.SMTP(node.smtp_host, node.smtp_port, timeout=120) as client:
        client.ehlo("client.test")
        assert client.mail("a@example.com", (f"SIZE={limit + 1}",))[0] == 552
    assert submit(node, content + line * 10)[0] == 552
    assert submit(node, b"Subject: after\r\n\r\nx\r\n")[0] == 250
    sink.wait_for(2, watched=[node.process])


def test_bare_line_ends_are_refused(cluster: Cluster, sink: Sink) -> None:
    """A lone LF or CR is the stuff of SMTP smuggling: refused with 5yz, and the session stays usable."""
    node = cluster.node("node").start()
    for bad in (b"a\nb\r\n", b"a\rb\r\n", b"x\n.\nMAIL FROM:<evil@x.test>\r\n", b"x\n.\r\ny\r\n"):
        code, text = submit(node, b"Subject: bare\r\n\r\n" + bad)
        assert 500 <= code < 600, (bad, code, text)
    assert submit(node, b"Subject: good\r\n\r\n")[0] == 250
    good = b"Subject: good\r\n\r\n"
    assert [behind_ours(message, good) for message in sink.wait_for(1)] == [good]


def test_8_bit_content_to_a_7_bit_host(processes: Processes, redis: RedisServer) -> None:
    """Never sent raw: converted so that it decodes to the same, or returned to its sender."""
    seven = Sink(processes, keep=True, extensions={"*": ("PIPELINING", "SIZE 0", "ENHANCEDSTATUSCODES")}).start()
    other = Sink(processes, "other", keep=True).start()
    destinations = [{"match": ["example.org"], "hosts": seven.endpoints}, smarthost(other.endpoints)]
    node = Cluster(processes, redis, {"destination": destinations}).node("node").start()
    body = "Grüße\r\n"
    head = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    assert submit(node, head + body.encode(), ("BODY=8BITMIME",))[0] == 250
    wait_until(lambda: seven.messages() or other.messages(), "it is delivered or returned", watched=[node.process])
    assert seven.problems() == []
    for message in seven.messages():
        assert email.message_from_bytes(message.content).get_payload(decode=True) == body.encode()
    for message in other.messages():
        assert (message.reverse_path, message.recipients) == ("", ["a@example.com"])
