"""Properties of the client's conversation over servers of any kind: the cuts of the bytes do not matter, no bytes raise,
memory is bounded, every recipient gets exactly one outcome, and delivered is only what the server took."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail.address import Address
from relaycluster.mail.envelope import Envelope
from relaycluster.mail.outcome import Delivered
from relaycluster.mail.reply import Reply
from relaycluster.smtp.client import ClientConversation
from relaycluster.smtp.client_events import (
    ContentWanted,
    Ended,
    Event,
    Finished,
    Ready,
    TLSPolicy,
    TLSWanted,
    Transaction,
)
from relaycluster.smtp.client_states import State
from relaycluster.smtp.replies import LONGEST_LINE, LONGEST_REPLY

GOOD = {"EHLO": "250-mx\r\n250-PIPELINING\r\n250-STARTTLS\r\n250 8BITMIME", "DATA": "354 go", "STARTTLS": "220 go"}
ODD = st.sampled_from(
    [
        "250 ok",
        "250-one\r\n250-two\r\n250 three",
        "354 go",
        "220 go",
        "221 bye",
        "421 4.3.2 bye",
        "450 4.2.0 later",
        "503 5.5.1 what?",
        "550-5.1.1 no\r\n550 5.1.1 such user",
        "502 no",
        "whatever",
        "250-one\r\n251 two",
        "",
    ]
)
# What the server says to the nth thing that it is asked; "good" is what fits.
ANSWERS = st.lists(st.one_of(st.just("good"), st.just("good"), st.just("good"), ODD), max_size=12)
EHLO = st.sampled_from(["250 mx", "250-mx\r\n250 PIPELINING", GOOD["EHLO"], "250-mx\r\n250 STARTTLS", "500 no"])
CONTENTS = st.sampled_from([b"", b"short\r\n.\r\n", b"no end", b"long line\r\n.\r\n" * 6000])


class CausalServer:
    """A server that answers each command once, when it came, and the content when its dot came; badly, if so told."""

    def __init__(self, answers: list[str], ehlo: str) -> None:
        self._answers = iter(answers)
        self._ehlo = ehlo
        self._in_content = False
        self._buffer = b""
        self.accepted_contents = 0

    def greeting(self) -> bytes:
        return self._next("220 hi")

    def _next(self, good: str) -> bytes:
        answer = next(self._answers, "good")
        return f"{good if answer == 'good' else answer}\r\n".encode()

    def hears(self, data: bytes) -> bytes:
        self._buffer += data
        said = b""
        while True:
            end = b"\r\n.\r\n" if self._in_content and not self._buffer.startswith(b".\r\n") else b"\r\n"
            before, found, rest = self._buffer.partition(end)
            if not found:
                return said
            self._buffer = rest
            if self._in_content:
                self._in_content = False
                answer = self._next("250 2.0.0 queued")
                self.accepted_contents += answer.startswith(b"2")
            else:
                verb = before.split(b" ")[0].decode()
                answer = self._next(self._ehlo if verb == "EHLO" else GOOD.get(verb, "250 ok"))
                self._in_content = verb == "DATA" and answer.startswith(b"354")
            said += answer


def transactions(content: bytes, number: int) -> list[Transaction]:
    recipients = tuple(Address(f"r{each}@example.com", "example.com") for each in range(number))
    envelope = Envelope(Address("a@example.net", "example.net"), recipients)
    return [Transaction(envelope, content, len(content)) for _ in range(3)]


def play(server: CausalServer, sizes: Iterator[int], content: bytes, number: int, policy: TLSPolicy) -> list[object]:
    """Events and octets sent, in the order in which they came, with the server's bytes cut by `sizes`."""
    client = ClientConversation("relay.example.net", "mx.example.com", policy)
    waiting = transactions(content, number)
    seen: list[object] = []
    said = server.greeting()
    while said:
        while said:
            size = next(sizes)
            client.receive_data(said[:size])
            said = said[size:]
        sent = client.data_to_send()
        while (event := client.next_event()) is not None:
            seen.append(event if not isinstance(event, ContentWanted) else "content wanted")
            if isinstance(event, TLSWanted):
                client.tls_started()
            elif isinstance(event, ContentWanted):
                for at in range(0, len(content), 5000):
                    client.send_content(content[at : at + 5000])
                client.finish()
            elif isinstance(event, Ready | Finished) and client.state is State.READY:
                if waiting:
                    client.begin(waiting.pop())
                else:
                    client.close()
            sent += client.data_to_send()
        seen.append(sent)
        said = server.hears(sent)
    return seen


@given(
    ANSWERS,
    EHLO,
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    CONTENTS,
    st.integers(1, 3),
    st.sampled_from(TLSPolicy),
)
def test_the_cuts_do_not_matter(
    answers: list[str], ehlo: str, sizes: list[int], content: bytes, number: int, policy: TLSPolicy
) -> None:
    """Whole or in pieces of any size, the same bytes give the same events, and the same bytes in return."""
    whole = play(CausalServer(answers, ehlo), cycle([1 << 20]), content, number, policy)
    assert play(CausalServer(answers, ehlo), cycle(sizes), content, number, policy) == whole
    assert play(CausalServer(answers, ehlo), cycle([1]), content, number, policy) == whole


@given(ANSWERS, EHLO, CONTENTS, st.integers(1, 3))
def test_every_recipient_has_one_outcome_and_delivered_is_what_was_taken(
    answers: list[str], ehlo: str, content: bytes, number: int
) -> None:
    """However the server answers: never more deliveries than contents that it said 2yz to."""
    server = CausalServer(answers, ehlo)
    seen = play(server, cycle([1 << 20]), content, number, TLSPolicy.NONE)
    finished = [event for event in seen if isinstance(event, Finished)]
    assert all(len(event.outcomes) == number for event in finished)
    taken = [event for event in finished if any(isinstance(outcome, Delivered) for outcome in event.outcomes)]
    assert len(taken) <= server.accepted_contents
    assert len([event for event in seen if isinstance(event, Ended)]) <= 1


RUBBISH = st.lists(
    st.one_of(
        st.binary(max_size=30),
        ODD.map(lambda text: f"{text}\r\n".encode()),
        st.sampled_from(
            [
                b"250-",
                b"\r\n",
                b"250 ok\r\n",
                b"354 go\r\n",
                b"220 hi\r\n",
                b"x" * 1500,
                b"250-" + b"y" * 1500 + b"\r\n",
            ]
        ),
    ),
    max_size=30,
)


@given(RUBBISH, st.sampled_from(TLSPolicy))
def test_no_bytes_raise_and_none_pile_up(pieces: list[bytes], policy: TLSPolicy) -> None:
    """A server that sends anything at any time meets a client that stays calm and small."""
    client = ClientConversation("relay.example.net", "mx.example.com", policy)
    waiting = transactions(b"content\r\n", 2)
    events: list[Event] = []
    for piece in pieces:
        client.receive_data(piece)
        while (event := client.next_event()) is not None:
            events.append(event)
            if isinstance(event, TLSWanted):
                client.tls_started()
            elif isinstance(event, Ready | Finished) and client.state is State.READY and waiting:
                client.begin(waiting.pop())
        client.data_to_send()
        reader = client._replies
        assert len(reader._buffer) - reader._at <= LONGEST_LINE
        assert sum(map(len, reader._lines)) <= LONGEST_REPLY
    client.connection_lost("the end")
    while (event := client.next_event()) is not None:
        events.append(event)
    assert client.state is State.CLOSED
    assert isinstance(events[-1], Ended)
    assert sum(isinstance(event, Ended) for event in events) == 1


def test_a_server_that_never_stops_talking() -> None:
    """Megabytes of replies that nobody asked for leave nothing behind."""
    client = ClientConversation("relay.example.net", "mx.example.com")
    client.receive_data(Reply.of(220, "", "hi").encode())
    for _ in range(100):
        client.receive_data(b"250 ok\r\n" * 8000)
    assert client.state is State.CLOSED
    assert client._replies.is_empty
    assert [type(event) for event in client._events] == [Ended]
    assert client.data_to_send() == b""
