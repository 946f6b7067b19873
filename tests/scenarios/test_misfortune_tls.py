"""A scenario for each misfortune of STARTTLS under each policy: what goes in clear, what waits, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.misfortune import HERE, Cast, Misfortune, cast, named
from tests.support.processes import wait_until
from tests.support.sink import Rule

INJECTED = "220 2.0.0 go\r\n250-sink.test\r\n250 PIPELINING"


def broken(
    name: str, policy: str, *rules: Rule, certificate: str = "good", status: str = "4.7.5", says: str = ""
) -> Misfortune:
    """Under a policy that requires TLS the mail waits, and nothing is said in clear."""
    return Misfortune(
        name, "deferred", rules, stage="tls", status=status, says=says, said=False, tls=policy, certificate=certificate
    )


def protected(name: str, policy: str, certificate: str) -> Misfortune:
    """It arrives, encrypted."""
    return Misfortune(name, "delivered", tls=policy, certificate=certificate, used_tls=True, connections=1)


DROPS = Rule("starttls", HERE, drop=True)
TABLE = (
    protected("may", "may", "good"),
    protected("may-expired", "may", "expired"),
    protected("may-stranger", "may", "stranger"),
    protected("encrypt-unknown", "encrypt", "unknown"),
    protected("verify", "verify", "good"),
    Misfortune("may-not-offered", "delivered", tls="may", connections=1),
    Misfortune("none-offered", "delivered", tls="none", certificate="good", connections=1),
    # Under "may": once more, in clear, in the same attempt.
    Misfortune("may-drops", "delivered", (DROPS,), tls="may", certificate="good", connections=2),
    Misfortune(
        "may-injected",
        "delivered",
        (Rule("starttls", HERE, reply=INJECTED),),
        tls="may",
        certificate="good",
        connections=2,
    ),
    Misfortune(
        "may-no-handshake",
        "delivered",
        (Rule("starttls", HERE, reply="220 go"),),
        tls="may",
        certificate="good",
        connections=2,
    ),
    Misfortune(
        "may-hangs",
        "delivered",
        (Rule("starttls", HERE, delay_seconds=1000),),
        tls="may",
        certificate="good",
        connections=2,
    ),
    Misfortune(
        "may-refused",
        "delivered",
        (Rule("starttls", HERE, reply="454 4.7.0 no TLS today"),),
        tls="may",
        certificate="good",
        connections=1,
    ),
    broken("encrypt-drops", "encrypt", DROPS, status="4.4.2", says="connection lost"),
    broken(
        "encrypt-injected",
        "encrypt",
        Rule("starttls", HERE, reply=INJECTED),
        says="more came than the reply to STARTTLS",
    ),
    broken("verify-expired", "verify", certificate="expired", says="the certificate has expired"),
    broken(
        "verify-stranger",
        "verify",
        certificate="stranger",
        says="the certificate does not name mx.verify-stranger.test",
    ),
    broken("verify-unknown", "verify", certificate="unknown", says="the certificate's issuer is unknown"),
    Misfortune(
        "encrypt-not-offered",
        "deferred",
        tls="encrypt",
        stage="tls",
        status="4.7.4",
        says="the host does not offer it",
        said=False,
    ),
    Misfortune(
        "verify-refused",
        "deferred",
        (Rule("starttls", HERE, reply="454 4.7.0 no TLS today"),),
        tls="verify",
        certificate="good",
        stage="tls",
        status="4.7.4",
        says="no TLS today",
        said=False,
    ),
)


@pytest.fixture(scope="module")
def world() -> Iterator[Cast]:
    with cast(TABLE) as found:
        yield found


@named(TABLE)
def test_misfortune(world: Cast, name: str) -> None:
    """It comes out as its row says."""
    world.check(world.rows[name])


def test_a_broken_host_is_remembered(world: Cast) -> None:
    """The next message goes to clear at once: its connection is the only one that it makes."""
    row = world.rows["may-drops"]
    world.check(row)
    endpoint = f"{row.host}:{world.sink.port}"
    wait_until(lambda: world.sink.stat().now.get(endpoint) == 0, "its connections are closed")
    world.send(row)
    world.wait(row, "delivered", 2)
    assert world.sink.stat().connections[endpoint] == 3
    assert not world.events(row, "deferred")
