"""Answers of the node that come later: order, time, back-pressure and every way in which a session can end meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from relaycluster.interfaces import Login
from relaycluster.mail.reply import Reply
from relaycluster.smtp.server_settings import ServerSettings
from tests.net.test_inbound import QUEUED, TRANSACTION, House, codes, lose

REFUSED = Reply.of(550, "5.7.1", "not here")
QUESTIONS = ["connect", "mail", "recipient"]
PLAIN = b"AUTH PLAIN AHVzZXIAc2VjcmV0\r\n"  # \0user\0secret


def auth_house() -> House:
    return House(settings=ServerSettings("mx.example.org", auth=True, auth_without_tls=True))


def ask(house: House, question: str) -> tuple[Any, Any, Deferred[Any]]:
    """A session whose question is open, with more commands behind it."""
    answer: Deferred[Any] = Deferred()
    house.intake.says[question] = answer
    protocol, peer = house.connect()
    protocol.dataReceived(b"EHLO client.example\r\n")
    if question == "authenticate":
        peer.clear()
        protocol.dataReceived(PLAIN + b"NOOP\r\n")
    else:
        protocol.dataReceived(TRANSACTION + b"x\r\n.\r\n")
    return protocol, peer, answer


@pytest.mark.parametrize("question", QUESTIONS)
def test_replies_stay_in_order(question: str) -> None:
    """Nothing behind an open question is answered, or asked, before its answer is there; then all goes on as if it had come at once."""
    house = House()
    protocol, peer, answer = ask(house, question)
    assert house.intake.asked[-1][0] == question
    peer.clear()
    protocol.dataReceived(b"NOOP\r\n")
    assert peer.value() == b""
    del house.intake.says[question]
    answer.callback(None)
    assert peer.take()[-2:] == ["250 2.0.0 queued as 01JD", "250 2.0.0 Ok"]
    assert [asked[0] for asked in house.intake.asked] == ["connect", "mail", "recipient", "data"]
    assert house.intake.sinks[0].written == b"x\r\n"


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_late_refusal(question: str) -> None:
    """It is the reply, and it is observed."""
    house = House()
    _, peer, answer = ask(house, question)
    peer.clear()
    answer.callback(REFUSED)
    assert str(REFUSED) in peer.take()
    assert ("rejected", question, 550) in house.observer.heard


@pytest.mark.parametrize("question", [*QUESTIONS, "authenticate"])
def test_an_answer_that_fails(question: str) -> None:
    """A fault of ours is 4yz, and reported; never silence, never 5yz."""
    house = auth_house()
    _, peer, answer = ask(house, question)
    peer.clear()
    answer.errback(RuntimeError("redis"))
    first = codes(peer.take())[0]
    assert first == ("454 4.7.0" if question == "authenticate" else "451 4.3.0")
    assert ("failed", "redis") in house.observer.heard
    assert any(heard[:2] == ("rejected", "internal") for heard in house.observer.heard)


@pytest.mark.parametrize("question", [*QUESTIONS, "authenticate"])
@pytest.mark.parametrize("late", [None, REFUSED, RuntimeError("late")])
@pytest.mark.parametrize("ending", ["lost", "abandoned"])
def test_an_answer_that_comes_too_late(question: str, late: object, ending: str) -> None:
    """The session is over: nothing is written, asked or left behind."""
    house = auth_house()
    protocol, peer, answer = ask(house, question)
    if ending == "lost":
        lose(protocol)
    else:
        protocol.abandon()
        assert peer.take()[-1].startswith("421 4.3.2 ")
    peer.clear()
    asked = len(house.intake.asked)
    if isinstance(late, Exception):
        answer.errback(late)
    else:
        answer.callback("user" if question == "authenticate" and late is None else late)
    if ending == "abandoned":
        lose(protocol)
    assert peer.value() == b""
    assert len(house.intake.asked) == asked
    assert house.intake.sinks == []
    assert len(house.sessions) == 0
    assert house.clock.getDelayedCalls() == []


@pytest.mark.parametrize("question", [*QUESTIONS, "authenticate"])
def test_our_time_is_not_the_clients(question: str) -> None:
    """However long an answer takes, no timeout strikes; the client's time begins with the reply."""
    house = auth_house()
    _, peer, answer = ask(house, question)
    peer.clear()
    for _ in range(100):
        house.clock.advance(10)
    assert peer.value() == b""
    answer.callback("user" if question == "authenticate" else REFUSED)
    peer.clear()
    house.clock.advance(99)
    assert peer.value() == b""
    house.clock.advance(1)
    assert peer.take()[-1].startswith("421 4.4.2 ")


def test_a_flood_behind_an_open_question_is_not_read() -> None:
    """More than 64 KiB wait: reading stops, and goes on with the answer."""
    house = House()
    protocol, peer, answer = ask(house, "mail")
    protocol.dataReceived(b"NOOP\r\n" * 12000)
    assert not peer.is_read
    answer.callback(REFUSED)
    assert peer.is_read


def test_half_closed_while_a_question_is_open() -> None:
    """The client sends no more but reads: the whole pipelined group is answered before we close."""
    house = House()
    protocol, peer, answer = ask(house, "mail")
    peer.clear()
    protocol.readConnectionLost()
    assert not peer.disconnecting
    answer.callback(None)
    assert peer.take()[-1] == "250 2.0.0 queued as 01JD"
    assert peer.disconnecting


def test_a_drain_waits_for_the_answer() -> None:
    """The transaction that the answer opens comes to its end; one that it refuses is over with it."""
    house = House()
    _, peer, answer = ask(house, "mail")
    house.sessions.drain()
    peer.clear()
    answer.callback(None)
    lines = peer.take()
    assert lines[-2] == "250 2.0.0 queued as 01JD"
    assert lines[-1].startswith("421 4.3.2 ")


def test_answers_that_are_there_already() -> None:
    """A Deferred that has fired costs nothing in order or in replies."""
    house = House()
    house.intake.says = {question: succeed(None) for question in QUESTIONS}
    protocol, peer = house.connect()
    protocol.dataReceived(b"EHLO client.example\r\n")
    peer.clear()
    house.intake.says["mail"] = succeed(None)
    protocol.dataReceived(TRANSACTION + b"x\r\n.\r\n")
    assert codes(peer.take()) == ["250 2.1.0", "250 2.1.5", "354", "250 2.0.0"]
    assert house.observer.heard[-1][:2] == ("message", QUEUED)


def test_an_observer_that_breaks_at_a_late_refusal() -> None:
    """The session ends with 421, not in silence."""
    house = House()
    _, peer, answer = ask(house, "mail")

    def broken(*_: object) -> None:
        raise RuntimeError("observer")

    house.observer.rejected = broken  # type: ignore[method-assign]
    peer.clear()
    answer.callback(REFUSED)
    assert peer.take()[-1].startswith("421 4.3.0 ")
    assert peer.disconnecting
    assert ("failed", "observer") in house.observer.heard


# --- AUTH


def test_auth() -> None:
    """The login goes to the node as it was given, the name of the user into the session; the password is in no `repr`."""
    house = auth_house()
    protocol, peer, answer = ask(house, "authenticate")
    _, session, login = house.intake.asked[-1]
    assert login == Login("PLAIN", "user", b"secret")
    assert "secret" not in repr(login)
    assert session.user == protocol.session.user == ""
    assert peer.value() == b""
    answer.callback("user@example.org")
    assert codes(peer.take()) == ["235 2.7.0", "250 2.0.0"]
    assert protocol.session.user == "user@example.org"
    protocol.dataReceived(TRANSACTION)
    assert house.intake.asked[-1][1].user == "user@example.org"
    protocol.dataReceived(b"x\r\n.\r\nEHLO again.example\r\n")
    assert (protocol.session.user, protocol.session.helo) == ("user@example.org", "again.example")


def test_auth_refused() -> None:
    """The node's reply, observed; the session has no user."""
    house = auth_house()
    house.intake.says["authenticate"] = Reply.of(535, "5.7.8", "Authentication credentials invalid")  # type: ignore[assignment]
    protocol, peer = house.client()
    protocol.dataReceived(PLAIN)
    assert codes(peer.take()) == ["535 5.7.8"]
    assert ("rejected", "auth", 535) in house.observer.heard
    assert protocol.session.user == ""


@pytest.mark.parametrize("how", [RuntimeError("raised"), fail(RuntimeError("failed"))])
def test_auth_that_breaks(how: Any) -> None:
    """454 4.7.0 (RFC 4954 6), and the client may try again."""
    house = auth_house()
    house.intake.says["authenticate"] = how
    protocol, peer = house.client()
    protocol.dataReceived(PLAIN)
    assert codes(peer.take()) == ["454 4.7.0"]
    house.intake.says.clear()
    protocol.dataReceived(PLAIN)
    assert codes(peer.take()) == ["235 2.7.0"]


def test_guessing_passwords_ends_the_session() -> None:
    """Refused logins are errors of the session as any others."""
    house = House(settings=ServerSettings("mx.example.org", errors=3, auth=True, auth_without_tls=True))
    house.intake.says["authenticate"] = Reply.of(535, "5.7.8", "Authentication credentials invalid")  # type: ignore[assignment]
    protocol, peer = house.client()
    protocol.dataReceived(PLAIN * 10)
    assert codes(peer.take()) == ["535 5.7.8"] * 3 + ["421 4.7.0"]
    assert peer.disconnecting
