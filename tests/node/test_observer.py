"""What the observer makes of a session's life: one line each, with who, from where, over which balancer and which TLS."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import evolve
from prometheus_client import CollectorRegistry

from relaycluster.events import EventLog
from relaycluster.interfaces import Login
from relaycluster.mail.reply import Reply
from relaycluster.mail.session import Session, TLSFacts
from relaycluster.metrics import Metrics
from relaycluster.net.inbound_observer import InboundObserver
from relaycluster.node.login import LoginObserver, LoginResult
from relaycluster.node.observer import MOST_TOLD_A_SECOND, Observer

PLAIN = Session("s1", "0.0.0.0:587", "submission", "192.0.2.7", 4025, "192.0.2.1", 587, "client.test")
SECURE = evolve(
    PLAIN, tls=TLSFacts("TLSv1.3", "TLS_AES_256_GCM_SHA384"), user="alice", via="10.0.0.9", peer_address="2001:db8::7"
)
REFUSED = Reply.of(550, "5.7.1", "No")


class World:
    """An observer with what it counted and told."""

    def __init__(self) -> None:
        self.metrics = Metrics(CollectorRegistry(), version="1", listeners=["0.0.0.0:587"])
        self.written: list[bytes] = []
        self.now = 0.0
        self.observer = Observer(self.metrics, EventLog(self.written.append, lambda: 0.0), lambda: self.now)

    def told(self) -> dict[str, Any]:
        (line,) = self.written
        self.written.clear()
        event: dict[str, Any] = json.loads(line)
        return event


@pytest.fixture
def world() -> World:
    return World()


def test_it_is_what_sessions_and_logins_tell(world: World) -> None:
    """The types say so; `mypy` reads this line."""
    sessions: InboundObserver = world.observer
    logins: LoginObserver = world.observer
    assert sessions is logins


def test_a_flood_of_connections_is_no_flood_of_the_log(world: World) -> None:
    """All are counted; some have their line, the others one line together, a second later."""
    busy = Reply.of(421, "4.3.2", "Too many connections")
    for _ in range(1000):
        world.observer.rejected(SECURE, "connections", busy)
    assert len(world.written) == MOST_TOLD_A_SECOND
    world.observer.rejected(SECURE, "recipient", REFUSED)
    assert len(world.written) == MOST_TOLD_A_SECOND + 1, "what a client said is always told"
    world.now = 1.0
    world.observer.rejected(SECURE, "proxy_untrusted", busy)
    assert f"{1000 - MOST_TOLD_A_SECOND} more connections" in world.written[-2].decode()
    assert json.loads(world.written[-1])["event"] == "proxy_refused"


def test_a_session_is_one_line(world: World) -> None:
    """Who, from where, via whom, TLS, how many messages and refusals, how it ended."""
    world.observer.connection_opened(SECURE)
    assert world.metrics.smtp_sessions.value == 1
    world.observer.connection_closed(SECURE, 2.5, 3, 2, "quit")
    event = world.told()
    assert {key: event[key] for key in ("event", "session", "listener", "peer", "via", "helo", "user", "tls")} == {
        "event": "session_closed",
        "session": "s1",
        "listener": "0.0.0.0:587",
        "peer": "[2001:db8::7]:4025",
        "via": "10.0.0.9",
        "helo": "client.test",
        "user": "alice",
        "tls": "TLSv1.3 TLS_AES_256_GCM_SHA384",
    }
    assert (event["messages"], event["refused"], event["seconds"], event["why"]) == (3, 2, 2.5, "quit")
    assert world.metrics.smtp_sessions.value == 0
    assert world.metrics.smtp_tls_sessions["TLSv1.3"].value == 1


def test_sessions_are_counted_by_tls_version(world: World) -> None:
    """A version that we do not know makes no new series."""
    for version in ("TLSv1.2", "TLSv9", None):
        tls = TLSFacts(version, "x") if version else None
        world.observer.connection_closed(evolve(PLAIN, tls=tls), 1.0, 0, 0, "quit")
    assert {name: count.value for name, count in world.metrics.smtp_tls_sessions.items()} == {
        "TLSv1.2": 1,
        "TLSv1.3": 0,
        "none": 1,
        "other": 1,
    }


def test_a_refused_message_is_one_line_with_its_size(world: World) -> None:
    """And a message that was queued has its line from the edge, not from here."""
    world.observer.message(SECURE, Reply.of(250, "2.0.0", "queued as x"), 100, 0.1, "a@example.com")
    assert world.written == []
    world.observer.message(SECURE, Reply.of(554, "5.6.0", "Bare newline"), 4321, 0.1, "a@example.com")
    event = world.told()
    assert (event["event"], event["stage"], event["size"], event["user"], event["via"]) == (
        "message_refused",
        "content",
        4321,
        "alice",
        "10.0.0.9",
    )
    assert (event["reverse_path"], event["forward_path"]) == ("a@example.com", "")
    assert event["tls"].startswith("TLSv1.3")
    assert world.metrics.smtp_messages["refused"].value == 1
    assert world.metrics.smtp_rejects["content"].value == 1


def test_proxy_trouble_is_no_reply_to_a_client(world: World) -> None:
    """Nobody was told anything: it has its own event and its own count."""
    world.observer.proxied("untrusted")
    world.observer.rejected(PLAIN, "proxy_untrusted", REFUSED)
    event = world.told()
    assert (event["event"], event["listener"], event["peer"]) == ("proxy_refused", "0.0.0.0:587", "192.0.2.7:4025")
    assert world.metrics.smtp_proxy["untrusted"].value == 1
    assert not any(count.value for count in world.metrics.smtp_rejects.values())


@pytest.mark.parametrize("reason", ["tls", "tls_timeout"])
def test_a_failed_handshake(world: World, reason: str) -> None:
    """It is told, and counted apart from replies."""
    world.observer.rejected(PLAIN, reason, REFUSED)
    assert world.told()["stage"] == reason
    assert world.metrics.smtp_tls_failures.value == 1
    assert not any(count.value for count in world.metrics.smtp_rejects.values())


def test_a_failed_login_is_one_line_without_the_password(world: World) -> None:
    """The name that was tried, why, from where; the refusal of AUTH that follows adds a count, not a second line."""
    login = Login("PLAIN", "root\r\n\x1b[2J", b"hunter2")
    world.observer.login(evolve(PLAIN, via="10.0.0.9"), login, LoginResult.CREDENTIALS, 0.5)
    world.observer.rejected(PLAIN, "auth", Reply.of(535, "5.7.8", "Authentication credentials invalid"))
    assert b"hunter2" not in world.written[0]
    event = world.told()
    assert (event["event"], event["severity"], event["user"], event["mechanism"], event["why"], event["via"]) == (
        "auth_failed",
        "warning",
        login.user,
        "PLAIN",
        "credentials",
        "10.0.0.9",
    )
    assert world.metrics.smtp_auth["refused"].value == 1
    assert world.metrics.smtp_rejects["authentication"].value == 1


@pytest.mark.parametrize("result", LoginResult)
def test_every_login_is_counted(world: World, result: LoginResult) -> None:
    """Each way in which a login can end has its series; a success has no line of its own, since the session's says it."""
    world.observer.login(PLAIN, Login("LOGIN", "alice", b""), result, 0.1)
    assert sum(count.value for count in world.metrics.smtp_auth.values()) == 1
    assert len(world.written) == (result is not LoginResult.ACCEPTED)


def test_a_lockout_is_a_warning(world: World) -> None:
    """Whom it concerns, and for how long."""
    world.observer.shut(PLAIN, "address 192.0.2.7", 30.0)
    event = world.told()
    assert (event["event"], event["severity"], event["subject"], event["seconds"]) == (
        "auth_locked_out",
        "warning",
        "address 192.0.2.7",
        30,
    )


def test_stress(world: World) -> None:
    """Its beginning is a warning, its end is not; the gauge says which of the two holds."""
    world.observer.stressed(True, 80, 100)
    assert (world.told()["event"], world.metrics.smtp_stress.value) == ("stress_began", 1)
    world.observer.stressed(False, 60, 100)
    assert (world.told()["event"], world.metrics.smtp_stress.value) == ("stress_ended", 0)
