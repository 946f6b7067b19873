"""A scenario for each misfortune on the way from a domain to an address (RFC 5321 5.1)."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.support.misfortune import Cast, Misfortune, cast, named

IPV6 = "::1"
CLOSED = "{domain} MX 10 mx.{domain}\nmx.{domain} AAAA 2001:db8::25\nmx.{domain} A {host}"


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind((IPV6, 0))
    except OSError:
        return False
    return True


def nowhere(name: str, zone: str, status: str, says: str, bounce_class: str) -> Misfortune:
    """There is no way to the domain, and never will be: the sender is told at once."""
    return Misfortune(
        name, "failed", zone=zone, stage="routing", status=status, says=says, said=False, bounce_class=bounce_class
    )


def unknown(name: str, zone: str) -> Misfortune:
    """DNS does not tell: it is asked again."""
    return Misfortune(name, "deferred", zone=zone, stage="routing", status="4.4.3", said=False)


TABLE = (
    nowhere("nxdomain", "", "5.1.2", "does not exist", "bad-domain"),
    nowhere("null-mx", "{domain} MX 0 .", "5.1.10", "null MX", "bad-domain"),
    nowhere("self-loop", "{domain} MX 10 node.relay.test", "5.4.6", "this system itself", "routing-errors"),
    nowhere(
        "self-loop-second",
        "{domain} MX 10 node.relay.test\n{domain} MX 10 mx.{domain}\nmx.{domain} A {host}",
        "5.4.6",
        "this system itself",
        "routing-errors",
    ),
    nowhere("mx-without-address", "{domain} MX 10 nothing.{domain}", "5.4.4", "has an address", "routing-errors"),
    unknown("servfail", "{domain} SERVFAIL"),
    unknown("dns-refused", "{domain} REFUSED"),
    unknown("dns-time-out", "{domain} TIMEOUT"),
    unknown("mx-address-servfail", "{domain} MX 10 mx.{domain}\nmx.{domain} SERVFAIL"),
    Misfortune(
        "cname", "delivered", zone="{domain} CNAME real.{domain}\nreal.{domain} MX 10 mx.{domain}\nmx.{domain} A {host}"
    ),
    Misfortune(
        "mx-cname", "delivered", zone="{domain} MX 10 mx.{domain}\nmx.{domain} CNAME a.{domain}\na.{domain} A {host}"
    ),
    Misfortune("implicit-mx", "delivered", zone="{domain} A {host}"),
    Misfortune(
        "better-than-us",
        "delivered",
        zone="{domain} MX 20 node.relay.test\n{domain} MX 10 mx.{domain}\nmx.{domain} A {host}",
    ),
    Misfortune(
        "one-of-two-unknown",
        "delivered",
        zone="{domain} MX 10 a.{domain}\na.{domain} SERVFAIL\n{domain} MX 20 b.{domain}\nb.{domain} A {host}",
    ),
    Misfortune("two-addresses", "delivered", zone=CLOSED),
    *(
        [Misfortune("ipv6-only", "delivered", zone="{domain} MX 10 mx.{domain}\nmx.{domain} AAAA {host}", host=IPV6)]
        if _has_ipv6()
        else []
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
