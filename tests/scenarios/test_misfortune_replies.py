"""A scenario for each misfortune that a host can put into words: refusals at every stage, and words that are none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attrs import evolve

from tests.support.misfortune import HERE, TWO_HOSTS, Cast, Misfortune, assert_due, cast, check_notice, named
from tests.support.processes import wait_until
from tests.support.sink import Rule

GREYLISTED = "451 4.7.1 greylisted, come back later"


def refused(stage: str, reply: str, name: str, outcome: str, status: str, **more: object) -> Misfortune:
    """A host that says `reply` at a stage."""
    shown = {"dot": "final-dot"}.get(stage, stage)
    return Misfortune(
        name, outcome, (Rule(stage, HERE, reply=reply),), stage=shown, status=status, says=reply[4:], **more
    )  # type: ignore[arg-type]


TABLE = (
    # 4yz at every stage is tried again.
    refused("greeting", "451 4.3.2 not today", "greeting-4", "deferred", "4.3.2"),
    refused("ehlo", "451 4.3.2 not you", "ehlo-4", "deferred", "4.3.2"),
    refused("mail", "451 4.3.5 no sender now", "mail-4", "deferred", "4.3.5"),
    refused("rcpt", "450 4.2.1 box busy", "rcpt-4", "deferred", "4.2.1"),
    refused("data", "451 4.3.0 no disk", "data-4", "deferred", "4.3.0"),
    refused("dot", "451 4.7.0 try later", "dot-4", "deferred", "4.7.0"),
    # 5yz fails once the host knows of the message; before, it speaks of us or of itself.
    refused("greeting", "554 5.7.1 no service for you", "greeting-5", "deferred", "5.7.1"),
    refused("mail", "550 5.1.8 bad sender", "mail-5", "failed", "5.1.8", bounce_class="invalid-sender"),
    refused("rcpt", "550 5.1.1 no such user", "rcpt-5", "failed", "5.1.1", bounce_class="bad-mailbox"),
    refused("data", "554 5.6.0 no content", "data-5", "failed", "5.6.0", bounce_class="content-related"),
    refused("dot", "554 5.7.1 looks like spam", "dot-5", "failed", "5.7.1", bounce_class="spam-related"),
    Misfortune(
        "no-mail-here",
        "failed",
        (Rule("greeting", HERE, reply="521 5.3.2 this host does not accept mail"),),
        stage="greeting",
        status="5.3.2",
        says="does not accept mail",
        bounce_class="bad-domain",
    ),
    # Many lines, and lines that are no reply.
    Misfortune(
        "several-lines",
        "failed",
        (Rule("rcpt", HERE, reply="550-5.1.1 The mailbox\r\n550-5.1.1 does\r\n550 5.1.1 not exist"),),
        stage="rcpt",
        status="5.1.1",
        says="The mailbox does not exist",
        bounce_class="bad-mailbox",
    ),
    Misfortune(
        "control-characters",
        "failed",
        (Rule("rcpt", HERE, reply="550 5.1.1 \x1b[31mno\x07\x00 \u202esuch user"),),
        stage="rcpt",
        status="5.1.1",
        says="\\x1b[31mno\\x07\\x00 \\u202esuch user",
        bounce_class="bad-mailbox",
    ),
    *[
        Misfortune(
            f"malformed-{name}",
            "deferred",
            (Rule("rcpt", HERE, reply=reply),),
            stage=stage,
            status="4.5.0",
            says=says,
            said=False,
        )
        for name, stage, reply, says in (
            ("words", "rcpt", "no thank you", "malformed reply"),
            ("two-codes", "rcpt", "250-one\r\n550 two", "malformed reply"),
            ("binary", "rcpt", "\udcff\udc80\udcfe\x00\x01", "malformed reply"),
            ("endless-line", "rcpt", "250 " + "x" * 100_000, "malformed reply"),
            ("endless-lines", "rcpt", "\r\n".join(["250-more"] * 10_000), "malformed reply"),
            ("nobody-asked", "data", "250 2.1.5 ok\r\n250 2.0.0 by the way\r\n250 2.0.0 and so on", "unexpected reply"),
        )
    ],
    # 421 ends the session at whatever command; another host, if there is one, has it at once.
    Misfortune(
        "421", "deferred", (Rule("mail", HERE, reply="421 4.3.2 closing", drop=True),), stage="mail", status="4.3.2"
    ),
    Misfortune(
        "421-two-hosts",
        "delivered",
        (Rule("mail", HERE, reply="421 4.3.2 closing", drop=True),),
        zone=TWO_HOSTS,
        connections=1,
    ),
    # And those that go well in the end.
    Misfortune(
        "greylisting",
        "delivered",
        (Rule("rcpt", "u@greylisting.test", reply=GREYLISTED, first=1),),
        stage="rcpt",
        status="4.7.1",
        says="greylisted",
        attempts=2,
    ),
    Misfortune("no-pipelining", "delivered", extensions=("SIZE 0", "8BITMIME")),
    Misfortune("no-esmtp", "delivered", (Rule("ehlo", HERE, reply="502 5.5.1 what?", first=1),)),
    Misfortune(
        "size",
        "failed",
        extensions=("PIPELINING", "SIZE 1000", "8BITMIME"),
        content=b"Subject: large\r\n\r\n" + b"x" * 70 + b"\r\n" * 20 + b"y" * 900 + b"\r\n",
        stage="mail",
        status="5.3.4",
        says="larger than the host accepts",
        said=False,
        bounce_class="content-related",
    ),
    Misfortune(
        "smtputf8",
        "failed",
        recipients=("b\u00fccher",),
        stage="mail",
        status="5.6.7",
        says="SMTPUTF8",
        said=False,
        bounce_class="content-related",
    ),
    Misfortune(
        "slow-reader",
        "delivered",
        (Rule("content", HERE, delay_seconds=0.2),),
        content=b"Subject: large\r\n\r\n" + (b"z" * 70 + b"\r\n") * 30_000,
    ),
)


@pytest.fixture(scope="module")
def world() -> Iterator[Cast]:
    with cast([*TABLE, *CHUNKS, MIXED, SESSION]) as found:
        yield found


@named(TABLE)
def test_misfortune(world: Cast, name: str) -> None:
    """It comes out as its row says."""
    world.check(world.rows[name])


MIXED = Misfortune(
    "mixed",
    "failed",
    (
        Rule("rcpt", "gone@mixed.test", reply="550 5.1.1 no such user"),
        Rule("rcpt", "full@mixed.test", reply="452 4.2.2 full", first=1),
    ),
    stage="rcpt",
    status="5.1.1",
    says="no such user",
    bounce_class="bad-mailbox",
    recipients=("fine", "gone", "full"),
)
SESSION = Misfortune(
    "session",
    "delivered",
    (Rule("mail", HERE, reply="421 4.3.2 closing", drop=True, skip=1, first=1),),
    stage="mail",
    status="4.3.2",
    says="closing",
)


def test_mixed_recipients(world: Cast) -> None:
    """One is delivered, one fails, one waits, in one transaction; each is told, and tried again, by itself."""
    row = world.rows["mixed"]
    delivered = world.wait(row, "delivered", 2)
    assert [event["recipients"] for event in delivered] == [["fine@mixed.test"], ["full@mixed.test"]]
    assert [event["attempts"] for event in delivered] == [1, 2]
    (deferred,) = world.events(row, "deferred")
    assert (deferred["recipients"], deferred["stage"]) == (["full@mixed.test"], "rcpt")
    assert_due(deferred, 0)
    (failed,) = world.events(row, "failed")
    assert (failed["recipients"], failed["bounce_class"]) == (["gone@mixed.test"], "bad-mailbox")
    assert [each.recipients for each in world.received(row)] == [["fine@mixed.test"], ["full@mixed.test"]]
    wait_until(lambda: world.notices(row), "the notice", watched=[world.node.process])
    (notice,) = world.notices(row)
    check_notice(notice, evolve(row, recipients=("gone",)))


CHUNKED = ("PIPELINING", "SIZE 0", "8BITMIME", "CHUNKING")
CHUNKS = (
    Misfortune(
        "chunk-of-one-piece",
        "delivered",
        extensions=CHUNKED,
        content=b"Subject: large\r\n\r\n" + b".dotted line\r\n..\r\n" * 6_000,
    ),
    Misfortune(
        "chunk-of-many",
        "delivered",
        extensions=CHUNKED,
        content=b"Subject: large\r\n\r\n" + b".dotted line\r\n.\r\n" * 100_000,
    ),
    Misfortune(
        "chunk-refused",
        "failed",
        (Rule("dot", HERE, reply="554 5.6.0 not this"),),
        extensions=CHUNKED,
        content=b"Subject: large\r\n\r\n" + b"line\r\n" * 100_000,
        stage="final-dot",
        status="5.6.0",
        says="not this",
        bounce_class="content-related",
    ),
)


@named(CHUNKS)
def test_large_contents_go_as_chunks(world: Cast, name: str) -> None:
    """RFC 3030: as they are, behind one BDAT, from one piece or many; and a refusal of one means what it says."""
    row = world.rows[name]
    world.check(row)
    assert all(message.parameters.endswith(" BDAT") for message in world.received(row))


def test_421_in_mid_session(world: Cast) -> None:
    """The second message over a connection is answered 421: it waits for its own next time, and arrives once."""
    row = world.rows["session"]
    world.check(row)
    world.send(row)
    second = world.wait(row, "delivered", 2)[1]
    (deferred,) = world.events(row, "deferred")
    assert (deferred["stage"], deferred["attempts"]) == ("mail", 1)
    assert "421 4.3.2 closing" in deferred["reply"]
    assert_due(deferred, 0)
    assert second["attempts"] == 2
    assert len(world.received(row)) == 2
