"""A scenario for each misfortune of a connection: refused, lost at every stage, silent at every stage, slow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.misfortune import HERE, TWO_HOSTS, Cast, Misfortune, cast, named
from tests.support.sink import Rule

STAGES = ("greeting", "ehlo", "mail", "rcpt", "data")
LATE = 1000.0
NOBODY = "127.0.4.1"

TABLE = (
    Misfortune("refused", "deferred", refuses=True, stage="connect", status="4.4.1", says="Connection refused"),
    Misfortune("first-dead", "delivered", zone=TWO_HOSTS, refuses=True),
    Misfortune("first-silent", "delivered", (Rule("greeting", HERE, delay_seconds=LATE),), zone=TWO_HOSTS),
    Misfortune("first-drops", "delivered", (Rule("rcpt", HERE, drop=True),), zone=TWO_HOSTS, connections=1),
    Misfortune(
        "all-dead",
        "deferred",
        zone=TWO_HOSTS.replace("{second}", NOBODY),
        refuses=True,
        stage="connect",
        status="4.4.1",
        says="Connection refused",
    ),
    # Closed without a word: nothing was taken, so it goes again when it is due.
    *[
        Misfortune(
            f"drop-{stage}", "deferred", (Rule(stage, HERE, drop=True),), stage=stage, status="4.4.2", says="lost"
        )
        for stage in STAGES
    ],
    Misfortune(
        "drop-content",
        "deferred",
        (Rule("content", HERE, after_bytes=100_000),),
        content=b"Subject: long\r\n\r\n" + (b"x" * 70 + b"\r\n") * 100_000,
        stage="content",
        status="4.4.2",
    ),
    Misfortune(
        "drop-once", "delivered", (Rule("mail", HERE, drop=True, first=1),), stage="mail", status="4.4.2", attempts=2
    ),
    # After the final dot nobody knows: the next attempt may make a duplicate, and is marked. No other host is asked at once.
    Misfortune(
        "drop-dot",
        "deferred",
        (Rule("dot", HERE, drop=True),),
        zone=TWO_HOSTS,
        stage="final-dot",
        status="4.4.2",
        may_have_arrived=True,
    ),
    Misfortune(
        "drop-dot-taken",
        "delivered",
        (Rule("dot", HERE, drop=True, record=True, first=1),),
        stage="final-dot",
        status="4.4.2",
        attempts=2,
        may_have_arrived=True,
        copies=2,
    ),
    Misfortune(
        "malformed-after-dot",
        "delivered",
        (Rule("dot", HERE, reply="ok, whatever", record=True, first=1),),
        stage="final-dot",
        status="4.5.0",
        attempts=2,
        may_have_arrived=True,
        copies=2,
    ),
    Misfortune(
        "421-after-dot",
        "delivered",
        (Rule("dot", HERE, reply="421 4.3.2 closing", drop=True, first=1),),
        stage="final-dot",
        status="4.3.2",
        attempts=2,
    ),
    # Silent.
    *[
        Misfortune(
            f"hang-{stage}",
            "deferred",
            (Rule(stage, HERE, delay_seconds=LATE),),
            stage=stage,
            status="4.4.2",
            says="timed out",
        )
        for stage in STAGES
    ],
    Misfortune(
        "hang-dot",
        "deferred",
        (Rule("dot", HERE, delay_seconds=LATE),),
        stage="final-dot",
        status="4.4.2",
        says="timed out",
        may_have_arrived=True,
        copies=2,
    ),
    Misfortune(
        "reads-nothing",
        "deferred",
        (Rule("content", HERE, delay_seconds=LATE),),
        content=b"Subject: long\r\n\r\n" + (b"x" * 70 + b"\r\n") * 300_000,
        stage="content",
        status="4.4.2",
        says="timed out",
    ),
    # Slow, but alive.
    Misfortune("late-replies", "delivered", tuple(Rule(stage, HERE, delay_seconds=0.5) for stage in (*STAGES, "dot"))),
    Misfortune(
        "slow-reader",
        "delivered",
        (Rule("content", HERE, delay_seconds=0.2),),
        content=b"Subject: large\r\n\r\n" + (b"z" * 70 + b"\r\n") * 30_000,
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
