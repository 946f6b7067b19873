"""Postfix sends everything through us as its relayhost: verified TLS, SASL, many messages over few connections."""

from __future__ import annotations

import smtplib

import pytest

from tests.support import programs
from tests.support.letters import check, letter
from tests.support.nodes import Cluster
from tests.support.postfix import Postfix
from tests.support.processes import Processes, wait_until
from tests.support.secured import USER, SecuredEdge
from tests.support.sink import Received, Sink

PASSWORD = "simple-password"


def client(processes: Processes, edge: SecuredEdge, listener: str, mechanism: str, password: str = PASSWORD) -> Postfix:
    """A Postfix with this relayhost; the certificate has to verify."""
    programs.require_package("libsasl2-modules")
    relayhost = f"[localhost]:{edge.port(listener)}"
    passwords = processes.directory / "sasl_passwd"
    passwords.write_text(f"{relayhost} {USER}:{password}\n")
    parameters = {
        "relayhost": relayhost,
        "smtp_sasl_auth_enable": "yes",
        "smtp_sasl_password_maps": f"texthash:{passwords}",
        "smtp_sasl_security_options": "noanonymous",
        "smtp_sasl_mechanism_filter": mechanism,
        "smtp_tls_security_level": "secure",
        "smtp_tls_secure_cert_match": "localhost",
        "smtp_tls_CAfile": edge.root,
        "smtp_tls_wrappermode": "yes" if listener == "implicit" else "no",
        "smtp_tls_loglevel": "1",
    }
    return Postfix(processes, parameters).start()


@pytest.fixture
def edge(cluster: Cluster) -> SecuredEdge:
    """One user."""
    found = SecuredEdge(cluster, ["starttls", "implicit"])
    found.add_user(USER, PASSWORD)
    return found.start()


def passed_on(received: Received, content: bytes) -> bytes:
    """What Postfix sent: the letter behind its own trace field."""
    start = received.content.index(b"\r\nReceived: from ") + 2
    sent = received.content[start:]
    assert b"by postfix.client.test (Postfix)" in sent[:400]
    assert sent.endswith(content)
    return sent


@pytest.mark.parametrize(
    ("listener", "mechanism"), [("starttls", "plain"), ("starttls", "login"), ("implicit", "plain")]
)
def test_postfix_relays_through_us(
    processes: Processes, edge: SecuredEdge, sink: Sink, listener: str, mechanism: str
) -> None:
    """Sixty messages: each arrives once and as Postfix sent it, authenticated, under TLS; none is tried a second time."""
    postfix = client(processes, edge, listener, mechanism)
    contents = {number: letter(f"number {number} by {mechanism}", USER) for number in range(60)}
    with smtplib.SMTP("127.0.0.1", postfix.port) as submission:
        for content in contents.values():
            submission.sendmail(USER, ["bob@example.org"], content, ["BODY=8BITMIME"])
    received = sink.wait_for(60, 60, watched=[postfix.process])
    for message in received:
        number = int(message.content.partition(b"\r\nSubject: number ")[2].split(b" ", 1)[0])
        trace = check(edge, message, passed_on(message, contents.pop(number)), user=USER)
        assert trace.helo == "postfix.client.test"
    assert not contents
    assert len(sink.messages()) == 60
    # The queue id of our 250 stands in Postfix's log: an operator can follow a message from one to the other.
    wait_until(lambda: postfix.log().count("status=sent") == 60, "Postfix has logged all of them")
    log = postfix.log()
    assert all(f"queued as {message.queue_id}" in log for message in received)
    assert "status=deferred" not in log
    assert "Verified TLS connection established" in log


def test_a_refused_login_keeps_the_mail_at_postfix(processes: Processes, edge: SecuredEdge, sink: Sink) -> None:
    """535 is no bounce: Postfix defers, says why, and nothing reaches us."""
    postfix = client(processes, edge, "starttls", "plain", "wrong")
    with smtplib.SMTP("127.0.0.1", postfix.port) as submission:
        submission.sendmail(USER, ["bob@example.org"], letter("kept"), ["BODY=8BITMIME"])
    wait_until(lambda: "status=" in postfix.log(), "Postfix has tried", watched=[postfix.process])
    assert "SASL authentication failed" in postfix.log()
    assert "status=deferred" in postfix.log()
    assert sink.messages() == []
