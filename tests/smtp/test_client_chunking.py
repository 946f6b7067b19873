"""CHUNKING (RFC 3030): a large content goes as one chunk, octet for octet, and nothing but the whole of it can arrive."""

from __future__ import annotations

import pytest

from relaycluster.mail import outcome
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import Envelope
from relaycluster.mail.outcome import Delivered, Failed, Outcome, Stage
from relaycluster.smtp.client import ONE_WRITE, ClientConversation
from relaycluster.smtp.client_events import ContentWanted, Finished, TLSPolicy, Transaction
from relaycluster.smtp.client_states import State

LARGE = b"Subject: large\r\n\r\n" + b".dotted\r\n" * 10_000


async def _nothing():  # type: ignore[no-untyped-def]
    """Stands for a content that is not at hand."""
    yield b""


def conversation(*keywords: str, chunking: bool = True) -> ClientConversation:
    """In READY, with a server that offers these."""
    client = ClientConversation("client.example", "mx.example", TLSPolicy.NONE, chunking)
    client.receive_data(b"220 hi\r\n")
    words = ["mx", *keywords]
    client.receive_data(
        "".join(f"250{'-' if n < len(words) - 1 else ' '}{w}\r\n" for n, w in enumerate(words)).encode()
    )
    assert client.state is State.READY
    client.data_to_send()
    while client.next_event():
        pass
    return client


def transaction(
    content: bytes | None = LARGE, recipients: int = 1, size: int = 0, may_finish: bool = True
) -> Transaction:
    to = tuple(Address(f"u{number}@mx.example", "mx.example") for number in range(recipients))
    envelope = Envelope(Address("a@client.example", "client.example"), to)
    body = content if content is not None else _nothing()
    return Transaction(envelope, body, size or len(content or b""), lambda: may_finish)


def finished(client: ClientConversation) -> tuple[Outcome, ...]:
    while (event := client.next_event()) is not None:
        if isinstance(event, Finished):
            return event.outcomes
    raise AssertionError("nothing is finished")


@pytest.mark.parametrize("keywords", [("CHUNKING", "PIPELINING"), ("CHUNKING",)])
def test_one_chunk(keywords: tuple[str, ...]) -> None:
    """No DATA, no dots, no 354: the octets as they are, behind one command."""
    client = conversation(*keywords)
    client.begin(transaction())
    assert b"DATA" not in client.data_to_send()
    client.receive_data(b"250 ok\r\n")
    client.data_to_send()
    client.receive_data(b"250 ok\r\n")
    assert client.data_to_send() == b"BDAT %d LAST\r\n" % len(LARGE)
    assert isinstance(client.next_event(), ContentWanted)
    sent = b""
    for at in range(0, len(LARGE), 7_000):
        client.send_content(LARGE[at : at + 7_000])
        sent += client.data_to_send()
    assert len(sent) < len(LARGE)
    client.finish()
    assert sent + client.data_to_send() == LARGE
    assert client.state == "final-dot"
    client.receive_data(b"250 2.0.0 taken\r\n")
    assert isinstance(finished(client)[0], Delivered)
    assert client.state == "ready"
    client.begin(transaction(b"small\r\n"))
    assert b"RSET" not in client.data_to_send()


def test_only_where_it_pays() -> None:
    """A small content, one of another length than was said, and one without its last line end go by DATA."""
    for each in (
        transaction(b"x" * (ONE_WRITE - 2) + b"\r\n"),
        transaction(LARGE, size=len(LARGE) + 1),
        transaction(LARGE[:-2]),
    ):
        client = conversation("CHUNKING", "PIPELINING")
        client.begin(each)
        assert client.data_to_send().endswith(b"DATA\r\n")
    client = conversation("PIPELINING")
    client.begin(transaction())
    assert client.data_to_send().endswith(b"DATA\r\n")


def test_held_back() -> None:
    """The lease is asked before the last octets: without it they are not written, so nobody takes the message."""
    client = conversation("CHUNKING", "PIPELINING")
    client.begin(transaction(may_finish=False))
    client.receive_data(b"250 ok\r\n250 ok\r\n")
    client.data_to_send()
    client.send_content(LARGE)
    assert client.data_to_send() == b""
    client.finish()
    assert client.data_to_send() == b""
    (each,) = finished(client)
    assert isinstance(each, outcome.Deferred)
    assert (each.stage, each.may_have_arrived) == (Stage.CONTENT, False)
    assert client.state is State.CLOSED


@pytest.mark.parametrize("octets", [99_999, 100_001, 0])
def test_another_length_than_was_said(octets: int) -> None:
    """One octet more would be a command, one less would swallow one: the connection is cut off before that."""
    client = conversation("CHUNKING", "PIPELINING")
    client.begin(transaction(None, size=100_000))
    client.receive_data(b"250 ok\r\n250 ok\r\n")
    client.data_to_send()
    client.send_content(b"x" * octets)
    written = client.data_to_send()
    client.finish()
    assert len(written + client.data_to_send()) < 100_000
    (each,) = finished(client)
    assert isinstance(each, outcome.Deferred)
    assert not each.may_have_arrived
    assert client.state is State.CLOSED


def test_refusals() -> None:
    """Of all recipients: nothing is written, and RSET goes first next time. Of some: the others get it. Of MAIL: nobody,
    whatever is said to RCPT."""
    client = conversation("CHUNKING", "PIPELINING")
    client.begin(transaction(recipients=2))
    client.data_to_send()
    client.receive_data(b"250 ok\r\n550 no\r\n450 later\r\n")
    assert client.data_to_send() == b""
    assert [type(each) for each in finished(client)] == [Failed, outcome.Deferred]
    client.begin(transaction(recipients=2))
    assert client.data_to_send().startswith(b"RSET\r\nMAIL")
    client.receive_data(b"250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n")
    assert client.data_to_send().startswith(b"BDAT ")
    client.send_content(LARGE)
    client.finish()
    client.receive_data(b"250 ok\r\n")
    assert [type(each) for each in finished(client)] == [Failed, Delivered]
    client.begin(transaction(recipients=2))
    client.data_to_send()
    client.receive_data(b"550 not from you\r\n250 ok\r\n250 ok\r\n")
    assert client.data_to_send() == b""
    assert [type(each) for each in finished(client)] == [Failed, Failed]
    client.begin(transaction())
    assert client.data_to_send().startswith(b"RSET\r\n")


def test_a_reply_before_its_command() -> None:
    """What stands behind the last reply to RCPT would count for a BDAT that was not written."""
    client = conversation("CHUNKING", "PIPELINING")
    client.begin(transaction())
    client.data_to_send()
    client.receive_data(b"250 ok\r\n250 ok\r\n250 delivered, honest\r\n")
    assert client.data_to_send() == b""
    assert client.state is State.CLOSED
    assert isinstance(finished(client)[0], outcome.Deferred)


@pytest.mark.parametrize("all_written", [False, True])
@pytest.mark.parametrize(
    "refusal", [b"500 5.5.1 Command unrecognized: BDAT", b"502 no", b"503 5.5.1 Bad sequence", b"504 no"]
)
def test_offered_and_not_known(refusal: bytes, all_written: bool) -> None:
    """A firewall that lets the offer pass and not the command: the message is deferred, the connection cut off, as what follows might be read
    as commands, and DATA is used the next time."""
    client = conversation("CHUNKING", "PIPELINING")
    client.begin(transaction())
    client.receive_data(b"250 ok\r\n250 ok\r\n")
    client.send_content(LARGE[:-100])
    if all_written:
        client.send_content(LARGE[-100:])
        client.finish()
    client.data_to_send()
    client.receive_data(refusal + b"\r\n")
    assert client.data_to_send() == b""
    (each,) = finished(client)
    assert isinstance(each, outcome.Deferred)
    assert not each.reply.heard  # so that nobody takes it for a refusal of the message
    assert (each.may_have_arrived, client.state, client.chunking) == (False, State.CLOSED, False)


def test_unused_on_request() -> None:
    """Who knows better than what the server offers says so."""
    client = conversation("CHUNKING", "PIPELINING", chunking=False)
    client.begin(transaction())
    assert client.data_to_send().endswith(b"DATA\r\n")


def test_refused_meanwhile() -> None:
    """A server that refuses the chunk before it has it: its words count, and the rest is not written."""
    client = conversation("CHUNKING", "PIPELINING")
    client.begin(transaction())
    client.receive_data(b"250 ok\r\n250 ok\r\n")
    client.send_content(LARGE[:70_000])
    client.data_to_send()
    client.receive_data(b"552 5.3.4 too much\r\n")
    assert client.data_to_send() == b""
    (each,) = finished(client)
    assert isinstance(each, Failed)
    assert each.reply.enhanced == "5.3.4"
    assert client.state is State.CLOSED
