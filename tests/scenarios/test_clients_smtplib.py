"""Python's smtplib submits over STARTTLS and over SMTPS, with AUTH PLAIN and AUTH LOGIN, and is refused where it must be."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Callable

import pytest

from tests.support.letters import check, letter
from tests.support.nodes import Cluster
from tests.support.secured import HOSTNAME, PASSWORD, USER, SecuredEdge
from tests.support.sink import Sink


def connect(edge: SecuredEdge, listener: str) -> smtplib.SMTP:
    """A client under TLS, where the listener has it, that has verified the certificate."""
    context = ssl.create_default_context(cafile=edge.root)
    if listener == "implicit":
        return smtplib.SMTP_SSL("localhost", edge.port(listener), local_hostname="client.test", context=context)
    client = smtplib.SMTP("localhost", edge.port(listener), local_hostname="client.test")
    if listener != "clear":
        client.starttls(context=context)
    return client


def login(
    client: smtplib.SMTP, mechanism: str, initial_response: bool, user: str = USER, password: str = PASSWORD
) -> None:
    """AUTH with this mechanism and no other; smtplib's own methods are ASCII only."""
    client.ehlo()
    assert mechanism in client.esmtp_features["auth"].split()
    answers: dict[str, Callable[[bytes | None], str]] = {
        "PLAIN": lambda challenge=None: "\0" + user + "\0" + password,
        "LOGIN": lambda challenge=None: user if challenge is None or b"assword" not in challenge else password,
    }
    if mechanism == "LOGIN":
        client.user, client.password = user, password
    client.auth(mechanism, answers[mechanism], initial_response_ok=initial_response)


@pytest.fixture
def edge(cluster: Cluster) -> SecuredEdge:
    """The listeners that this file's stories use, with one user; the password is ASCII, since smtplib's AUTH is."""
    found = SecuredEdge(cluster, ["starttls", "implicit", "clear"])
    found.add_user(USER, "simple password")
    return found.start()


def test_each_mechanism_on_each_listener(edge: SecuredEdge, sink: Sink) -> None:
    """PLAIN and LOGIN, with and without an initial response: every message arrives as sent, and the trace tells how."""
    number = 0
    for listener in ("starttls", "implicit", "clear"):
        for mechanism in ("PLAIN", "LOGIN"):
            for initial_response in (True, False):
                number += 1
                content = letter(f"{listener} {mechanism} {number}")
                with connect(edge, listener) as client:
                    login(client, mechanism, initial_response, password="simple password")
                    client.sendmail(USER, ["bob@example.org"], content, ["BODY=8BITMIME"])
                received = sink.wait_for(number)[-1]
                trace = check(edge, received, content, user=USER, tls=listener != "clear")
                assert trace.helo == "client.test"
    assert edge.node.metric("smtp_messages_total", result="queued") == number


def test_login_chooses_for_itself(edge: SecuredEdge, sink: Sink) -> None:
    """`login` takes the best of what is offered and gets through; the session then sends several messages."""
    contents = [letter(f"one of three {number}") for number in range(3)]
    with connect(edge, "starttls") as client:
        code, _ = client.login(USER, "simple password")
        assert code == 235
        for content in contents:
            client.sendmail(USER, ["bob@example.org"], content, ["BODY=8BITMIME"])
    for received, content in zip(sink.wait_for(3), contents, strict=True):
        check(edge, received, content, user=USER)


def test_what_is_refused(edge: SecuredEdge, sink: Sink) -> None:
    """No AUTH, no relaying; no TLS, no AUTH and no MAIL; a wrong password and an unknown user look the same."""
    with connect(edge, "starttls") as client:
        client.ehlo()
        code, text = client.mail("ann@example.com")
        assert (code, text.split()[0]) == (530, b"5.7.0")
    with connect(edge, "starttls") as client:
        wrong = client_error(lambda: client.login(USER, "wrong"))
    with connect(edge, "starttls") as client:
        nobody = client_error(lambda: client.login("nobody@example.com", "wrong"))
    assert wrong == nobody
    assert wrong[0] == 535
    with smtplib.SMTP("localhost", edge.port("starttls")) as client:
        client.ehlo()
        assert "auth" not in client.esmtp_features
        assert "starttls" in client.esmtp_features
        assert client.docmd("AUTH", "PLAIN")[0] in (530, 538)
        assert client.mail("ann@example.com")[0] == 530
    with connect(edge, "starttls") as client:
        client.login(USER, "simple password")
        client.ehlo()
        assert client.docmd("AUTH", "PLAIN")[0] == 503
        assert "starttls" not in client.esmtp_features
    assert sink.messages() == []


def client_error(call: Callable[[], object]) -> tuple[int, bytes]:
    """Code and text of the refusal."""
    with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
        call()
    return caught.value.smtp_code, caught.value.smtp_error


def test_the_certificate_is_the_one_that_was_configured(edge: SecuredEdge) -> None:
    """A client that knows the host by its name verifies it; under a name that the certificate does not have it stops."""
    context = ssl.create_default_context(cafile=edge.root)
    with smtplib.SMTP("127.0.0.1", edge.port("starttls")) as client:
        client._host = HOSTNAME  # type: ignore[attr-defined]  # what smtplib verifies the certificate against
        assert client.starttls(context=context)[0] == 220
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.sock.version() == "TLSv1.3"
    with smtplib.SMTP("127.0.0.1", edge.port("starttls")) as client:
        client._host = "elsewhere.test"  # type: ignore[attr-defined]
        with pytest.raises(ssl.SSLCertVerificationError):
            client.starttls(context=context)
        client.close()
