"""What we sign verifies with verifiers of others, for both kinds of keys: at once, and behind a Postfix that passed it on."""

from __future__ import annotations

import smtplib
from pathlib import Path

import pytest

from tests.node.dkim_world import LETTER, NOW, ODD, Keys
from tests.scenarios.dkim_verifiers import VERIFIERS, Results
from tests.support.nodes import Cluster, smarthost
from tests.support.postfix import Postfix
from tests.support.processes import Processes
from tests.support.redis_server import RedisServer
from tests.support.sink import Rule, Sink

RSA = "s1._domainkey.example.net"
EDWARDS = "ed._domainkey.example.net"
BOTH = [(RSA, "pass"), (EDWARDS, "pass")]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """A key of each kind for one domain."""
    directory = tmp_path / "keys"
    directory.mkdir()
    found = Keys(directory)
    found.add(EDWARDS, "ed25519")
    found.add(RSA)
    return found


def judged(verifier: str, directory: Path, keys: Keys, messages: list[bytes]) -> list[Results]:
    return VERIFIERS[verifier](directory, keys.records, messages)


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_odd_messages(tmp_path: Path, keys: Keys, verifier: str) -> None:
    """Both signatures of every odd message verify; a changed body, a changed field and an added one do not."""
    signer = keys.signer()
    results = judged(verifier, tmp_path, keys, [signer.sign(message, NOW) for message in ODD.values()])
    assert {name: sorted(result) for name, result in zip(ODD, results, strict=True)} == dict.fromkeys(ODD, sorted(BOTH))
    signed = signer.sign(LETTER, NOW)
    broken = [
        signed.replace(b"Dear Bob", b"Dear Rob"),
        signed.replace(b"Subject: F", b"Subject: f"),
        signed.replace(b"From: Ann", b"Subject: another\r\nFrom: Ann"),
        signed.replace(b"From: Ann", b"List-Unsubscribe: <https://evil.example>\r\nFrom: Ann"),
    ]
    for result in judged(verifier, tmp_path, keys, broken):
        assert sorted(name for name, _ in result) == sorted([RSA, EDWARDS])
        assert "pass" not in {found for _, found in result}


def complete(message: bytes) -> bytes:
    """With what a submission server adds, so that a Postfix adds nothing."""
    missing = [
        field
        for field in (b"Date: Mon, 02 Nov 2026 10:00:00 +0000\r\n", b"Message-ID: <1@example.net>\r\n")
        if field.partition(b":")[0].lower() + b":" not in message.lower()
    ]
    return b"".join(missing) + message


def test_behind_postfix(processes: Processes, tmp_path: Path, keys: Keys, sink: Sink) -> None:
    """Debian's Postfix takes what we signed and sends it on: both signatures still verify with both verifiers."""
    postfix = Postfix(processes, {"relayhost": f"[127.0.0.1]:{sink.endpoints[0].rpartition(':')[2]}"}).start()
    signer = keys.signer()
    sent = {name: signer.sign(complete(message), NOW) for name, message in ODD.items()}
    with smtplib.SMTP("127.0.0.1", postfix.port) as client:
        for message in sent.values():
            client.sendmail("ann@example.net", ["bob@example.org"], message, ["BODY=8BITMIME"])
    received = [message.content for message in sink.wait_for(len(sent), 60, watched=[postfix.process])]
    assert all(b"by postfix.client.test (Postfix)" in content for content in received)
    for verifier in VERIFIERS:
        assert [sorted(result) for result in judged(verifier, tmp_path, keys, received)] == [sorted(BOTH)] * len(sent)


def dkim_tables(keys: Keys) -> list[dict[str, object]]:
    return [
        {"domain": entry.domain, "selector": entry.selector, "key_file": entry.key_file, "fallback": entry.fallback}
        for entry in keys.entries
    ]


def test_the_relay(processes: Processes, tmp_path: Path, keys: Keys, sink: Sink, cluster: Cluster) -> None:
    """A node signs what its users send, whatever it looks like and however large, and its own notices."""
    keys.add("s1._domainkey.edge.relay.test", "ed25519")
    edge = cluster.node("edge", over={"dkim": dkim_tables(keys)})
    cluster.start()
    sink.rules(Rule("rcpt", "unknown@*", reply="550 5.1.1 no such user"))
    large = complete(LETTER) + b"A line of a large message, which comes in pieces.\r\n" * 20_000
    messages = [*map(complete, ODD.values()), large]
    with smtplib.SMTP("127.0.0.1", edge.smtp_port) as client:
        for message in messages:
            client.sendmail("ann@example.net", ["bob@example.org"], message, ["BODY=8BITMIME"])
        client.sendmail("ann@example.net", ["unknown@example.org"], LETTER, ["BODY=8BITMIME"])
    received = sink.wait_for(len(messages) + 1, 60, watched=[edge.process])
    notices = [message.content for message in received if not message.reverse_path]
    passed_on = [message.content for message in received if message.reverse_path]
    assert all(content.startswith(b"DKIM-Signature: ") for content in (*notices, *passed_on))
    for verifier in VERIFIERS:
        results = judged(verifier, tmp_path, keys, passed_on)
        assert [sorted(result) for result in results] == [sorted(BOTH)] * len(messages)
        assert judged(verifier, tmp_path, keys, notices) == [[("s1._domainkey.edge.relay.test", "pass")]]
    assert edge.metric("dkim_signatures_total", result="signed") == len(messages) + 2
    signed = [tuple(event["signed"]) for event in edge.events_named("message_queued")]
    assert signed.count((RSA, EDWARDS)) == len(messages) + 1


def test_behind_a_conversion(processes: Processes, redis: RedisServer, tmp_path: Path, keys: Keys) -> None:
    """A next hop without 8BITMIME gets the message in seven bits (RFC 6152 section 3), with signatures that fit what it gets."""
    seven = Sink(processes, keep=True, extensions={"*": ("PIPELINING", "SIZE 0")}).start()
    node = (
        Cluster(processes, redis, {"destination": [smarthost(seven.endpoints)], "dkim": dkim_tables(keys)})
        .node("node")
        .start()
    )
    head = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
    message = complete(head + b"From: ann@example.net\r\nSubject: eight bits\r\n\r\n" + "Grüße\r\n".encode())
    with smtplib.SMTP("127.0.0.1", node.smtp_port) as client:
        client.sendmail("ann@example.net", ["bob@example.org"], message, ["BODY=8BITMIME"])
    (received,) = seven.wait_for(1, 60, watched=[node.process])
    assert received.content.isascii()
    for verifier in VERIFIERS:
        assert [sorted(result) for result in judged(verifier, tmp_path, keys, [received.content])] == [sorted(BOTH)]
