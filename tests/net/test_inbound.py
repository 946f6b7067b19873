"""Inbound sessions over a transport in memory and a clock in hand; `test_inbound_sockets.py` has the real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attrs import define, field
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from relaycluster.interfaces import Answer, IContentSink, IIntake, Login
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import Envelope
from relaycluster.mail.reply import Reply
from relaycluster.mail.session import Session
from relaycluster.net.inbound import InboundFactory, InboundProtocol, InboundSessions, SessionLimits, SilentObserver
from relaycluster.net.inbound_observer import ProxyResult
from relaycluster.net.server_tls import ServerTLS
from relaycluster.smtp.server_settings import ServerSettings

QUEUED = Reply.of(250, "2.0.0", "queued as 01JD")
TRANSACTION = b"MAIL FROM:<a@client.example>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"
LIMITS = SessionLimits(
    connections=3,
    connections_per_client=2,
    command_timeout_seconds=100,
    data_timeout_seconds=50,
    transaction_seconds=400,
    minimum_data_rate=10,
    data_rate_grace_seconds=60,
    close_timeout_seconds=5,
    handshake_seconds=60,
)


@implementer(IContentSink)
@define(eq=False)
class Sink:
    """Keeps what it is given; `answer` is what `finish` returns, or raises."""

    answer: Deferred[Reply] | Exception
    throttle: Callable[[bool], None]
    written: bytes = b""
    finished: int = 0
    aborted: int = 0
    broken: bool = False

    def write(self, data: bytes) -> None:
        if self.broken:
            raise RuntimeError("write")
        assert not self.finished
        assert not self.aborted
        self.written += data

    def finish(self) -> Deferred[Reply]:
        self.finished += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def abort(self) -> None:
        self.aborted += 1


@implementer(IIntake)
@define(eq=False)
class Intake:
    """Accepts everything; `says` has other answers by question: a reply, a Deferred, or an exception to raise. AUTH is granted to
    everybody under the name that was given."""

    says: dict[str, Reply | Deferred[Any] | Exception] = field(factory=dict)
    answers: list[Deferred[Reply] | Exception] = field(factory=list)  # of the next sinks; then QUEUED at once
    sinks: list[Sink] = field(factory=list)
    asked: list[tuple[Any, ...]] = field(factory=list)
    throttled_at_once: bool = False

    def _say(self, question: str) -> Any:
        answer = self.says.get(question)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def connect(self, session: Session) -> Answer:
        self.asked.append(("connect", session))
        return self._say("connect")

    def authenticate(self, session: Session, login: Login) -> Deferred[str | Reply]:
        self.asked.append(("authenticate", session, login))
        answer = self._say("authenticate")
        return answer if isinstance(answer, Deferred) else succeed(answer or login.user)

    def mail(self, session: Session, reverse_path: Address, size: int | None) -> Answer:
        self.asked.append(("mail", session, reverse_path, size))
        return self._say("mail")

    def recipient(self, session: Session, reverse_path: Address, forward_path: Address) -> Answer:
        self.asked.append(("recipient", session, reverse_path, forward_path))
        return self._say("recipient")

    def data(self, session: Session, envelope: Envelope, throttle: Callable[[bool], None]) -> IContentSink | Reply:
        self.asked.append(("data", session, envelope))
        if self.throttled_at_once:
            throttle(True)
        refusal = self._say("data")
        if refusal is not None:
            return refusal
        sink = Sink(self.answers.pop(0) if self.answers else succeed(QUEUED), throttle)
        self.sinks.append(sink)
        return sink


class Observer(SilentObserver):
    """Writes everything down."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.commands: list[tuple[str, int]] = []
        self.rejections: list[tuple[Session, str, str]] = []

    def connection_opened(self, session: Session) -> None:
        self.heard.append(("opened",))

    def connection_closed(self, session: Session, seconds: float, messages: int, refused: int, why: str) -> None:
        self.heard.append(("closed", seconds, messages))

    def command(self, verb: str, code: int) -> None:
        self.commands.append((verb, code))

    def message(self, session: Session, reply: Reply, size: int, seconds: float, reverse_path: str) -> None:
        self.heard.append(("message", reply, size, seconds))

    def rejected(
        self, session: Session, reason: str, reply: Reply, reverse_path: str = "", forward_path: str = ""
    ) -> None:
        self.heard.append(("rejected", reason, reply.code))
        self.rejections.append((session, reason, str(reply)))

    def proxied(self, result: ProxyResult) -> None:
        self.heard.append(("proxied", result))

    def failed(self, session: Session, failure: Failure) -> None:
        self.heard.append(("failed", failure.getErrorMessage()))


class Peer(StringTransport):
    """A client's end in memory: what it was sent, and whether the server reads, closed or aborted."""

    aborted = False

    def __init__(self, address: str) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", address, 40000))

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True

    def take(self) -> list[str]:
        """The lines that were sent since the last time."""
        lines = self.value().decode("ascii").split("\r\n")
        self.clear()
        assert lines.pop() == "", "replies are whole lines"
        return lines

    @property
    def is_read(self) -> bool:
        return self.producerState == "producing"


@define(eq=False)
class House:
    """A listener with everything around it."""

    clock: Clock = field(factory=Clock)
    intake: Intake = field(factory=Intake)
    observer: Observer = field(factory=Observer)
    limits: SessionLimits = LIMITS
    settings: ServerSettings = field(
        factory=lambda: ServerSettings("mx.example.org", message_size_bytes=10**6, fruitless_commands=10**6)
    )
    tls: ServerTLS | None = None
    implicit_tls: bool = False
    sessions: InboundSessions = field(init=False)
    factory: InboundFactory = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.sessions = InboundSessions(self.limits)
        self.factory = InboundFactory(
            intake=self.intake,
            settings=self.settings,
            sessions=self.sessions,
            clock=self.clock,  # type: ignore[arg-type]
            listener="0.0.0.0:587",
            mode="submission",
            observer=self.observer,
            tls=self.tls,
            implicit_tls=self.implicit_tls,
        )

    def connect(self, address: str = "192.0.2.1") -> tuple[InboundProtocol, Peer]:
        protocol, peer = self.factory.buildProtocol(None), Peer(address)
        protocol.makeConnection(peer)
        return protocol, peer

    def client(self) -> tuple[InboundProtocol, Peer]:
        """A client that said EHLO."""
        protocol, peer = self.connect()
        protocol.dataReceived(b"EHLO client.example\r\n")
        peer.clear()
        return protocol, peer

    def sending(self) -> tuple[InboundProtocol, Peer]:
        """A client that may send content."""
        protocol, peer = self.client()
        protocol.dataReceived(TRANSACTION)
        assert peer.take()[-1].startswith("354 ")
        return protocol, peer


def lose(protocol: InboundProtocol) -> None:
    protocol.connectionLost(Failure(ConnectionDone()))


def codes(lines: list[str]) -> list[str]:
    return [line[:9] if line[3] == " " and line[5:6] == "." else line[:3] for line in lines]


def test_the_test_doubles_are_what_they_stand_for() -> None:
    """Intake and sink keep the interfaces."""
    house = House()
    verifyObject(IIntake, house.intake)
    house.sending()
    verifyObject(IContentSink, house.intake.sinks[0])


def test_a_message() -> None:
    """From the greeting to QUIT: replies joined per turn, content whole, the sink's reply to the client, everything observed."""
    house = House()
    protocol, peer = house.connect()
    assert peer.take() == ["220 mx.example.org ESMTP relaycluster"]
    protocol.dataReceived(b"EHLO client.example\r\n")
    assert peer.take()[0] == "250-mx.example.org"
    protocol.dataReceived(TRANSACTION)
    assert codes(peer.take()) == ["250 2.1.0", "250 2.1.5", "354"]
    protocol.dataReceived(b"Hello.\r\n..\r\n")
    protocol.dataReceived(b".\r\nQUIT\r\n")
    assert peer.take() == ["250 2.0.0 queued as 01JD", "221 2.0.0 mx.example.org closing connection"]
    assert peer.disconnecting
    lose(protocol)
    sink = house.intake.sinks[0]
    assert (sink.written, sink.finished, sink.aborted) == (b"Hello.\r\n.\r\n", 1, 0)
    assert [question[0] for question in house.intake.asked] == ["connect", "mail", "recipient", "data"]
    session = house.intake.asked[-1][1]
    assert (session.helo, session.esmtp, session.peer_address, session.listener, session.mode) == (
        "client.example", True, "192.0.2.1", "0.0.0.0:587", "submission"
    )  # fmt: skip
    assert house.observer.heard == [("opened",), ("message", QUEUED, 11, 0.0), ("closed", 0.0, 1)]
    assert house.observer.commands == [
        ("CONNECT", 220), ("EHLO", 250), ("MAIL", 250), ("RCPT", 250), ("DATA", 354), ("DOT", 250), ("QUIT", 221)
    ]  # fmt: skip
    assert len(house.sessions) == 0
    assert house.clock.getDelayedCalls() == []


def test_session_ids_differ_between_listeners() -> None:
    """Ids come from what the listeners share."""
    house = House()
    other = InboundFactory(
        intake=house.intake,
        settings=house.settings,
        sessions=house.sessions,
        clock=house.clock,  # type: ignore[arg-type]
        listener="x",
        mode="mx",
    )
    first, _ = house.connect()
    second = other.buildProtocol(None)
    second.makeConnection(Peer("192.0.2.9"))
    assert first.session.id != second.session.id


def test_nothing_is_answered_before_the_message_is_safe() -> None:
    """While `finish` has not fired, the client hears nothing; what it pipelined is answered behind the message, in one write."""
    house = House()
    answer: Deferred[Reply] = Deferred()
    house.intake.answers = [answer]
    protocol, peer = house.sending()
    protocol.dataReceived(b"x\r\n.\r\nNOOP\r\n")
    protocol.dataReceived(TRANSACTION)
    assert peer.value() == b""
    house.clock.advance(1000)
    assert peer.value() == b""
    answer.callback(QUEUED)
    assert codes(peer.take()) == ["250 2.0.0", "250 2.0.0", "250 2.1.0", "250 2.1.5", "354"]
    assert house.observer.heard[1] == ("message", QUEUED, 3, 1000.0)


@pytest.mark.parametrize("ending", [b"", b"\r\n.\r"])
def test_a_connection_lost_in_content_aborts_the_message(ending: bytes) -> None:
    """The sink is told once, and never finished."""
    house = House()
    protocol, _ = house.sending()
    protocol.dataReceived(b"half" + ending)
    lose(protocol)
    sink = house.intake.sinks[0]
    assert (sink.finished, sink.aborted) == (0, 1)
    assert house.clock.getDelayedCalls() == []


def test_a_connection_lost_while_the_message_is_being_queued() -> None:
    """The message's fate is still observed, nothing is written, and a drain waits for it."""
    house = House()
    answer: Deferred[Reply] = Deferred()
    house.intake.answers = [answer]
    protocol, peer = house.sending()
    protocol.dataReceived(b"x\r\n.\r\n")
    lose(protocol)
    gone = house.sessions.drain()
    assert not gone.called
    assert house.sessions.connections == 0
    answer.callback(QUEUED)
    assert gone.called
    assert peer.value() == b""
    assert house.observer.heard[1:] == [("closed", 0.0, 0), ("message", QUEUED, 3, 0.0)]
    sink = house.intake.sinks[0]
    assert (sink.finished, sink.aborted) == (1, 0)


@pytest.mark.parametrize("question", ["mail", "recipient", "data"])
def test_an_exception_in_the_intake_is_451(question: str) -> None:
    """The client is told to try again, the observer hears of it, and the session stays usable."""
    house = House()
    house.intake.says[question] = RuntimeError("intake")
    protocol, peer = house.client()
    protocol.dataReceived(TRANSACTION)
    assert "451 4.3.0" in codes(peer.take())
    assert ("failed", "intake") in house.observer.heard
    assert ("rejected", "internal", 451) in house.observer.heard
    house.intake.says.clear()
    protocol.dataReceived(b"RSET\r\n" + TRANSACTION + b"x\r\n.\r\n")
    assert peer.take()[-1] == "250 2.0.0 queued as 01JD"


def test_an_exception_at_connect_gives_no_greeting() -> None:
    """Without a decision nobody is greeted with 220."""
    house = House()
    house.intake.says["connect"] = RuntimeError("intake")
    _, peer = house.connect()
    assert codes(peer.take()) == ["451 4.3.0"]


def test_an_exception_in_write_is_451_after_the_dot() -> None:
    """The sink is aborted once; the rest of the content is read and forgotten; the next message goes through."""
    house = House()
    protocol, peer = house.sending()
    house.intake.sinks[0].broken = True
    protocol.dataReceived(b"one\r\n")
    protocol.dataReceived(b"QUIT\r\n")
    assert peer.value() == b""
    protocol.dataReceived(b".\r\n")
    assert codes(peer.take()) == ["451 4.3.0"]
    sink = house.intake.sinks[0]
    assert (sink.finished, sink.aborted) == (0, 1)
    protocol.dataReceived(TRANSACTION + b"two\r\n.\r\n")
    assert peer.take()[-1] == "250 2.0.0 queued as 01JD"


@pytest.mark.parametrize("how", ["raises", "fails"])
def test_a_finish_that_breaks_is_451(how: str) -> None:
    """A sink that breaks its promise never turns into 250, 5yz or silence."""
    house = House()
    answer: Deferred[Reply] = Deferred()
    house.intake.answers = [RuntimeError("finish") if how == "raises" else answer]
    protocol, peer = house.sending()
    protocol.dataReceived(b"x\r\n.\r\nNOOP\r\n")
    if how == "fails":
        answer.errback(RuntimeError("finish"))
    assert codes(peer.take()) == ["451 4.3.0", "250 2.0.0"]
    assert ("failed", "finish") in house.observer.heard


def test_an_exception_of_our_own_closes_with_421() -> None:
    """When the session itself breaks (here: its observer does), it says so and closes."""
    house = House()
    protocol, peer = house.sending()
    protocol.dataReceived(b"half")
    house.observer.message = None  # type: ignore[assignment,method-assign]
    protocol.dataReceived(b"\r\n.\r\n")
    assert codes(peer.take()) == ["250 2.0.0", "421 4.3.0"], "what is queued is answered 250 all the same"
    assert peer.disconnecting
    assert house.observer.heard[-1][0] == "failed"
    lose(protocol)
    assert len(house.sessions) == 0


def test_refusals_of_the_intake_are_passed_on_and_counted() -> None:
    """Each question's refusal reaches the client as it is, with its reason for the metrics."""
    for question, reason in (("connect", "connect"), ("mail", "mail"), ("recipient", "recipient"), ("data", "data")):
        house = House()
        house.intake.says[question] = Reply.of(550, "5.7.1", f"not for {question}")
        protocol, peer = house.connect()
        protocol.dataReceived(b"EHLO client.example\r\n" + TRANSACTION)
        assert f"550 5.7.1 not for {question}" in peer.take()
        assert ("rejected", reason, 550) in house.observer.heard


def test_a_void_message_is_aborted_at_once() -> None:
    """Too large, or with a bare newline: the sink is told as soon as that is known, the client after the dot."""
    for content, code in ((b"x" * 10**6, "552 5.3.4"), (b"one\ntwo", "554 5.6.0")):
        house = House()
        protocol, peer = house.sending()
        protocol.dataReceived(content + b"\r\n")
        protocol.dataReceived(b"z\r\n")
        sink = house.intake.sinks[0]
        assert (sink.finished, sink.aborted) == (0, 1)
        assert peer.value() == b""
        protocol.dataReceived(b".\r\n")
        assert codes(peer.take()) == [code]
        assert house.observer.heard[-1] == ("rejected", "content", int(code[:3]))


# --- how many


def test_connections_of_one_client_are_limited() -> None:
    """One more than a client may have is told 421 4.7.0 and closed; others are not touched; a place that is left is free."""
    house = House()
    first, _ = house.connect()
    house.connect()
    refused, peer = house.connect()
    assert codes(peer.take()) == ["421 4.7.0"]
    assert peer.disconnecting
    refused.dataReceived(b"EHLO x\r\n")
    assert peer.value() == b""
    lose(refused)
    _, other = house.connect("192.0.2.2")
    assert codes(other.take()) == ["220"]
    lose(first)
    _, again = house.connect()
    assert codes(again.take()) == ["220"]
    assert ("rejected", "connections_per_client", 421) in house.observer.heard


def test_connections_of_the_process_are_limited() -> None:
    """One more than there may be in all is told 421 4.3.2, before anybody is asked about it."""
    house = House()
    for number in range(3):
        house.connect(f"192.0.2.{number}")
    asked = len(house.intake.asked)
    refused, peer = house.connect("192.0.2.9")
    assert codes(peer.take()) == ["421 4.3.2"]
    assert len(house.intake.asked) == asked
    house.clock.advance(LIMITS.close_timeout_seconds)
    assert peer.aborted, "a client that does not go is cut off"
    lose(refused)
    assert house.sessions.connections == 3


# --- how long


def test_a_client_that_says_nothing_is_told_so() -> None:
    """421 4.4.2 when the command timeout is over, not before; the connection is cut when the client does not take it."""
    house = House()
    protocol, peer = house.client()
    house.clock.pump([1.0] * 99)
    assert peer.value() == b""
    house.clock.advance(1)
    assert codes(peer.take()) == ["421 4.4.2"]
    assert peer.disconnecting
    assert not peer.aborted
    house.clock.advance(LIMITS.close_timeout_seconds)
    assert peer.aborted
    lose(protocol)
    assert ("rejected", "command_timeout", 421) in house.observer.heard
    assert house.clock.getDelayedCalls() == []


def test_dripping_octets_do_not_prolong_the_command_timeout() -> None:
    """What counts is a command that is complete."""
    house = House()
    protocol, peer = house.client()
    for _ in range(100):
        protocol.dataReceived(b"x")
        house.clock.advance(1)
    assert codes(peer.take()) == ["421 4.4.2"]


def test_commands_prolong_the_command_timeout() -> None:
    """A client that goes on is not cut off."""
    house = House()
    protocol, peer = house.client()
    for _ in range(20):
        house.clock.advance(60)
        protocol.dataReceived(b"NOOP\r\n")
    assert codes(peer.take()) == ["250 2.0.0"] * 20


def test_content_that_stops_coming_is_a_timeout() -> None:
    """421 4.4.2 after the data timeout since the last piece; the message is aborted."""
    house = House()
    protocol, peer = house.sending()
    house.clock.advance(40)
    protocol.dataReceived(b"x" * 5000)
    house.clock.pump([1.0] * 49)
    assert peer.value() == b""
    house.clock.advance(1)
    assert codes(peer.take()) == ["421 4.4.2"]
    assert house.intake.sinks[0].aborted == 1
    assert ("rejected", "data_timeout", 421) in house.observer.heard


def test_content_that_comes_too_slowly() -> None:
    """Under the minimum rate on average, after the grace: closed, though something came all the time."""
    house = House()
    protocol, peer = house.sending()
    seconds = 0
    while not peer.disconnecting:
        protocol.dataReceived(b"x" * 5)
        house.clock.advance(1)
        seconds += 1
    assert 119 <= seconds <= 121, "60 of grace and 5 of every 10 octets: twice 60"
    assert ("rejected", "data_rate", 421) in house.observer.heard


def test_a_transaction_that_never_ends() -> None:
    """Fast enough everywhere, and still over at the transaction's limit, in content as among recipients."""
    house = House()
    protocol, peer = house.sending()
    seconds = 0
    while not peer.disconnecting:
        protocol.dataReceived(b"x" * 100)
        house.clock.advance(1)
        seconds += 1
    assert seconds == LIMITS.transaction_seconds
    protocol, peer = house.client()
    protocol.dataReceived(b"MAIL FROM:<a@client.example>\r\n")
    seconds = 0
    while not peer.disconnecting:
        protocol.dataReceived(b"RCPT TO:<b%d@example.net>\r\n" % seconds)
        house.clock.advance(1)
        seconds += 1
    assert seconds == LIMITS.transaction_seconds


def test_one_timer_a_session() -> None:
    """Whatever happens, a session has one delayed call, and traffic does not move it."""
    house = House()
    protocol, _ = house.sending()
    before = house.clock.getDelayedCalls()
    assert len(before) == 1
    at = before[0].getTime()
    for _ in range(40):
        protocol.dataReceived(b"x" * 1000)
        house.clock.advance(1)
    assert house.clock.getDelayedCalls() == before
    assert before[0].getTime() == at


# --- back-pressure


def test_the_sink_can_pause_the_flow() -> None:
    """`throttle(True)` stops reading, `throttle(False)` starts it; the client is not blamed for the time between."""
    house = House()
    protocol, peer = house.sending()
    protocol.dataReceived(b"x" * 100)
    throttle = house.intake.sinks[0].throttle
    throttle(True)
    assert not peer.is_read
    house.clock.pump([10.0] * 99)
    assert peer.value() == b""
    throttle(False)
    assert peer.is_read
    house.clock.advance(10)  # the timer looks: 1,000 seconds, of which 990 are not the client's
    house.clock.advance(39)
    assert peer.value() == b""
    protocol.dataReceived(b"x" * 100 + b"\r\n.\r\n")
    assert codes(peer.take()) == ["250 2.0.0"]


def test_a_sink_can_pause_the_flow_from_the_start() -> None:
    """Already while it is being made."""
    house = House()
    house.intake.throttled_at_once = True
    _, peer = house.sending()
    assert not peer.is_read
    house.intake.sinks[0].throttle(False)
    assert peer.is_read


def test_an_old_sink_has_no_say() -> None:
    """`throttle` of a message that is over does nothing, and a pause does not outlive its message."""
    house = House()
    protocol, peer = house.sending()
    old = house.intake.sinks[0].throttle
    old(True)
    protocol.dataReceived(b"x\r\n.\r\n")
    assert peer.is_read
    old(True)
    assert peer.is_read
    protocol.dataReceived(TRANSACTION)
    house.intake.sinks[1].throttle(True)
    old(False)
    assert not peer.is_read
    lose(protocol)
    house.intake.sinks[1].throttle(False)


def test_a_client_that_does_not_read_is_not_read() -> None:
    """When the transport's buffer is full of replies, reading stops until it is empty again."""
    house = House()
    _, peer = house.client()
    assert peer.producer is not None
    peer.producer.pauseProducing()
    assert not peer.is_read
    peer.producer.resumeProducing()
    assert peer.is_read


def test_a_client_that_sends_on_behind_an_open_question_is_not_read() -> None:
    """What waits behind the final dot stays small; reading goes on with the answer."""
    house = House()
    answer: Deferred[Reply] = Deferred()
    house.intake.answers = [answer]
    protocol, peer = house.sending()
    protocol.dataReceived(b"x\r\n.\r\n")
    assert peer.is_read
    protocol.dataReceived(b"NOOP\r\n" * 12000)
    assert not peer.is_read
    answer.callback(QUEUED)
    assert peer.is_read
    assert len(peer.take()) == 12001


# --- the end


def test_drain_closes_idle_sessions_and_waits_for_the_others() -> None:
    """Idle: 421 at once. In a transaction: the message gets its reply, then 421. New: 421. Then the drain is over."""
    house = House()
    answer: Deferred[Reply] = Deferred()
    house.intake.answers = [answer]
    idle, idle_peer = house.client()
    busy, busy_peer = house.sending()
    gone = house.factory.drain()
    assert codes(idle_peer.take()) == ["421 4.3.2"]
    assert idle_peer.disconnecting
    _, new_peer = house.connect("192.0.2.7")
    assert codes(new_peer.take()) == ["421 4.3.2"]
    lose(idle)
    busy.dataReceived(b"x\r\n.\r\n" + TRANSACTION)
    assert busy_peer.value() == b""
    assert not gone.called
    answer.callback(QUEUED)
    assert codes(busy_peer.take()) == ["250 2.0.0", "421 4.3.2"]
    assert busy_peer.disconnecting
    assert not gone.called
    lose(busy)
    assert gone.called
    assert len(house.intake.sinks) == 1, "the second transaction was not begun"


def test_a_drain_without_sessions_is_over_at_once() -> None:
    """And so is a second one."""
    house = House()
    assert house.sessions.drain().called
    assert house.sessions.drain().called


def test_abandon_closes_everything() -> None:
    """The drain's deadline: content that is coming is aborted, a message whose fate is open is not answered; what is closing
    already is cut."""
    house = House()
    answer: Deferred[Reply] = Deferred()
    house.intake.answers = [answer]
    open_question, first = house.sending()
    open_question.dataReceived(b"x\r\n.\r\n")
    content, second = house.sending()
    content.dataReceived(b"half")
    house.sessions.drain()
    house.sessions.abandon()
    assert codes(first.take()) == ["421 4.3.2"]
    assert codes(second.take()) == ["421 4.3.2"]
    assert [(sink.finished, sink.aborted) for sink in house.intake.sinks] == [(1, 0), (0, 1)]
    answer.callback(QUEUED)
    assert first.value() == b""
    house.sessions.abandon()
    assert first.aborted
    assert second.aborted
    lose(open_question)
    lose(content)
    assert len(house.sessions) == 0


def test_a_client_that_only_closed_its_sending_side_gets_its_reply() -> None:
    """As `printf … | nc` does: the message that is complete is answered; a session without one is closed."""
    house = House()
    answer: Deferred[Reply] = Deferred()
    house.intake.answers = [answer]
    protocol, peer = house.sending()
    protocol.dataReceived(b"x\r\n.\r\nQUIT\r\n")
    protocol.readConnectionLost()
    assert not peer.disconnecting
    answer.callback(QUEUED)
    assert codes(peer.take()) == ["250 2.0.0", "221 2.0.0"]
    assert peer.disconnecting
    protocol, peer = house.sending()
    protocol.readConnectionLost()
    assert peer.disconnecting
    lose(protocol)
    assert house.intake.sinks[1].aborted == 1
