"""A session with `ServerConversation`, driven as `net/inbound.py` drives it, with the octets cut in one way or another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, assert_never

from attrs import field, frozen

from relaycluster.mail.reply import Reply
from relaycluster.smtp.server import ServerConversation
from relaycluster.smtp.server_auth import RESPONSE_OCTETS
from relaycluster.smtp.server_events import (
    Aborted,
    AuthAsked,
    CloseAfterSend,
    ConnectAsked,
    Content,
    ContentEnd,
    ContentRefused,
    DataAsked,
    Hello,
    MailAsked,
    RecipientAsked,
    StartTLS,
    Wait,
)
from relaycluster.smtp.server_settings import BareNewline, Dialect, ServerSettings
from tests.fuzz.reference import QUEUED, Limits

TLS_BEGINS = b"\xfe\xfeTLS"  # in an input: what follows is sent under TLS
STRETCH = 0xFD  # in an input: the next octet times 64 letters, for lines that are too long
LONGEST_STRETCH = RESPONSE_OCTETS + 100


@frozen
class Plan:
    """What an input stands for: a listener, and what the client says in clear and under TLS."""

    settings: ServerSettings
    secure: bool
    probe: bool
    seed: int
    segments: tuple[bytes, ...]

    @classmethod
    def of(cls, data: bytes) -> Plan:
        """Two octets of switches, then the client's."""
        flags, seed, rest = data[0:1], data[1:2], data[2:]
        bits = flags[0] if flags else 0
        small = bool(bits & 0x80)
        settings = ServerSettings(
            hostname="relay.test",
            message_size_bytes=64 if small else 4096,
            recipients=2 if small else 10,
            errors=3 if small else 200,
            bare_newline=BareNewline.NORMALIZE if bits & 0x10 else BareNewline.REJECT,
            starttls=bool(bits & 0x01),
            require_tls=bool(bits & 0x02),
            auth=bool(bits & 0x04),
            auth_without_tls=bool(bits & 0x08),
        )
        segments = tuple(stretched(part) for part in rest.split(TLS_BEGINS, 1))
        return cls(settings, bool(bits & 0x20), bool(bits & 0x40), seed[0] if seed else 0, segments)

    @property
    def limits(self) -> Limits:
        """For the reference."""
        return Limits(
            line=dialect_of(self.settings).command_line_octets,
            response=RESPONSE_OCTETS,
            message=self.settings.message_size_bytes,
            normalize=self.settings.bare_newline is BareNewline.NORMALIZE,
        )


def stretched(data: bytes) -> bytes:
    """Long lines out of short inputs."""
    head, *rest = data.split(bytes([STRETCH]), 4)
    most = LONGEST_STRETCH
    pieces = [head]
    for part in rest:
        length = min(part[0] * 64 if part else 0, most)
        most -= length
        pieces += [b"a" * length, part[1:]]
    return b"".join(pieces)


@cache
def dialect_of(settings: ServerSettings) -> Dialect:
    """Made once, as for a listener."""
    return Dialect(settings)


@frozen
class Told:
    """What came of a session: the server's octets, what the driver was told, the messages that it queued."""

    replies: bytes
    events: list[Any]
    messages: list[bytes] = field(factory=list)


def whole(data: bytes) -> Iterator[bytes]:
    """One piece."""
    yield data


def single(data: bytes) -> Iterator[bytes]:
    """Octet by octet."""
    for position in range(len(data)):
        yield data[position : position + 1]


class Random:
    """Pieces of all sizes, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._state = seed * 2654435761 % 2**32 or 1

    def __call__(self, data: bytes) -> Iterator[bytes]:
        position = 0
        while position < len(data):
            self._state = (self._state * 1664525 + 1013904223) % 2**32
            size = 1 + (self._state >> 24) % (3 if self._state & 0x10000 else 40)
            yield data[position : position + size]
            position += size


class Driver:
    """One session; the names that the client gives decide what is refused."""

    def __init__(self, plan: Plan) -> None:
        self.said: list[bytes] = []
        self.events: list[Any] = []
        self.messages: list[bytes] = []
        self._counted = 0
        self._content: bytearray | None = None
        self._closed = False
        self._securing = False
        # An overlong line is given up; nothing else is kept. What TLS or a balancer's header leaves is fed at once.
        self._most_pending = RESPONSE_OCTETS + 2
        dialect = dialect_of(plan.settings)
        self.conversation = ServerConversation(dialect, self._count, secure=plan.secure, probe=plan.probe)

    def _count(self, verb: str, code: int) -> None:
        assert 200 <= code <= 599, (verb, code)
        self._counted += 1

    def run(self, segments: Iterable[bytes], cut: Any) -> Told:
        """The client's octets in these pieces."""
        self._turn()
        for number, segment in enumerate(segments):
            if number and not self._secured():
                break
            for piece in cut(segment):
                if self._closed or self._securing:
                    break  # a driver reads nothing more in clear
                self.conversation.receive_data(piece)
                self._turn()
                assert self.conversation.pending <= self._most_pending, self.conversation.pending
        replies = b"".join(self.said)
        return Told(replies, self.events, self.messages)

    def _secured(self) -> bool:
        if not self._securing:
            return False
        self._securing = False
        self.conversation.secured()
        self._turn()
        return True

    def _turn(self) -> None:
        conversation = self.conversation
        while not isinstance(event := conversation.next_event(), Wait):
            assert not self._closed, event
            self._take(event)
        self.said.append(conversation.data_to_send())

    def _take(self, event: Any) -> None:
        answer = self.conversation
        match event:
            case Content(data):
                assert self._content is not None
                assert data
                self._content += data
                return
            case ConnectAsked() | MailAsked() | RecipientAsked() | AuthAsked() | DataAsked():
                refusal = _refusal(event)
                if refusal is not None:
                    answer.reject(refusal)
                else:
                    answer.accept()
                if isinstance(event, DataAsked):
                    assert self._content is None, "a content begins within another"
                    assert event.envelope.recipients
                    if refusal is None:
                        self._content = bytearray()
            case ContentEnd(size):
                assert self._content is not None
                content, self._content = bytes(self._content), None
                assert len(content) == size, (len(content), size)
                assert not content or content.endswith(b"\r\n")
                if content.startswith(b"later"):
                    answer.reject(Reply.of(451, "4.3.0", "Not now"))
                else:
                    self.messages.append(content)
                    answer.accept(Reply.of(250, "2.0.0", f"{QUEUED} {len(self.messages)}"))
                event = (ContentEnd, content)
            case Aborted():
                assert self._content is not None, "an abort without a content"
                self._content = None
            case StartTLS():
                self._securing = True
            case CloseAfterSend():
                self._closed = True
            case Hello() | ContentRefused():
                assert self._content is None
            case _:
                assert_never(event)
        self.events.append(event)


def _refusal(event: Any) -> Reply | None:
    """The listener's policy: by the first letter."""
    if isinstance(event, MailAsked) and event.reverse_path.text.startswith("refused"):
        return Reply.of(550, "5.7.1", "Not you")
    if isinstance(event, RecipientAsked):
        if event.forward_path.text.startswith("later"):
            return Reply.of(451, "4.3.0", "Not now")
        if event.forward_path.text.startswith("refused"):
            return Reply.of(550, "5.1.1", "Nobody")
        if event.forward_path.text.startswith("bye"):
            return Reply.of(421, "4.3.2", "Bye")
    if isinstance(event, DataAsked) and event.envelope.reverse_path.text.startswith("nodata"):
        return Reply.of(451, "4.3.0", "No room")
    if isinstance(event, AuthAsked) and event.user.startswith("refused"):
        return Reply.of(535, "5.7.8", "Wrong")
    return None
