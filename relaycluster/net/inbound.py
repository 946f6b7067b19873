"""Inbound SMTP over sockets: a factory and a protocol that drive the conversation and ask the node's `IIntake`.

The protocol decides nothing about SMTP (that is `smtp/server.py`) and nothing about mail (that is the intake). It owns
time, back-pressure, and the order of writing and closing. Whatever goes wrong inside becomes a 4yz reply and a report to
the observer, never silence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, assert_never

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Factory
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from relaycluster.interfaces import IContentSink, IIntake
from relaycluster.mail.envelope import Envelope
from relaycluster.mail.reply import Reply
from relaycluster.mail.session import Session
from relaycluster.net.immediate import write_now
from relaycluster.net.inbound_sessions import DRAINING, InboundSessions, SessionLimits
from relaycluster.smtp.server import ServerConversation
from relaycluster.smtp.server_events import (
    PAUSED,
    Aborted,
    CloseAfterSend,
    ConnectAsked,
    Content,
    ContentEnd,
    ContentRefused,
    DataAsked,
    Event,
    Hello,
    MailAsked,
    RecipientAsked,
    Wait,
)
from relaycluster.smtp.server_settings import Dialect, ServerSettings
from relaycluster.smtp.server_states import State

__all__ = ["InboundFactory", "InboundObserver", "InboundProtocol", "InboundSessions", "SessionLimits", "SilentObserver"]

_LOCAL_ERROR: Final = Reply.of(451, "4.3.0", "Local error in processing, try again later")
_BACKLOG_OCTETS: Final = 65536  # so much may wait behind an open question before we stop reading

# Why reading is paused: one bit each.
_SINK: Final = 1  # the sink asked for it
_OUTPUT: Final = 2  # the client does not read our replies
_BACKLOG: Final = 4  # the client sends on while a question is open


class InboundObserver(Protocol):
    """Hears what happens, for metrics and the event log. Reasons and verbs come from fixed sets; calls must be cheap."""

    def connection_opened(self, session: Session) -> None:
        """A client connected and was counted in."""

    def connection_closed(self, session: Session, seconds: float, messages: int) -> None:
        """It is gone, after so long and so many messages with a positive reply."""

    def command(self, verb: str, code: int) -> None:
        """A reply was given. `verb` is a command's name, or OTHER, NOT IMPLEMENTED, FOREIGN, CONNECT, DOT, FAREWELL."""

    def message(self, session: Session, reply: Reply, size: int, seconds: float) -> None:
        """A whole message of `size` octets was answered, `seconds` after its final dot."""

    def rejected(self, session: Session, reason: str, reply: Reply) -> None:
        """Something was refused. `reason`: draining, connections, connections_per_client, connect, mail, recipient, data,
        content, command_timeout, data_timeout, transaction_time, data_rate, internal."""

    def failed(self, session: Session, failure: Failure) -> None:
        """An exception inside; the client was told 4yz."""


class SilentObserver:
    """Counts nothing; internal errors go to Twisted's log."""

    _log = Logger()

    def connection_opened(self, session: Session) -> None:
        """Nothing."""

    def connection_closed(self, session: Session, seconds: float, messages: int) -> None:
        """Nothing."""

    def command(self, verb: str, code: int) -> None:
        """Nothing."""

    def message(self, session: Session, reply: Reply, size: int, seconds: float) -> None:
        """Nothing."""

    def rejected(self, session: Session, reason: str, reply: Reply) -> None:
        """Nothing."""

    def failed(self, session: Session, failure: Failure) -> None:
        """Log it."""
        self._log.failure("inbound session {session_id}", failure, session_id=session.id)


def _introduced(session: Session, hello: Hello) -> Session:
    """The session after EHLO or HELO. Not `attrs.evolve`: that costs 20 µs, and this happens in each session."""
    return Session(
        session.id,
        session.listener,
        session.mode,
        session.peer_address,
        session.peer_port,
        session.local_address,
        session.local_port,
        hello.name,
        hello.esmtp,
        session.tls,
        session.user,
    )


class InboundFactory(Factory):
    """Makes the sessions of one listener. `settings` and `intake` may be replaced; sessions that are open keep theirs."""

    noisy = False

    def __init__(
        self,
        *,
        intake: IIntake,
        settings: ServerSettings,
        sessions: InboundSessions,
        clock: IReactorTime,
        listener: str,
        mode: str,
        observer: InboundObserver | None = None,
    ) -> None:
        """`listener` and `mode` go into each `Session`. `sessions` is shared by all listeners of the process."""
        self.intake = intake
        self.dialect = Dialect(settings)
        self.sessions = sessions
        self.clock = clock
        self.listener = listener
        self.mode = mode
        self.observer: InboundObserver = observer if observer is not None else SilentObserver()

    def buildProtocol(self, addr: IAddress | None) -> InboundProtocol:
        """A session; who is there is learned from its transport, so that a PROXY header can say it."""
        return InboundProtocol(self)

    def drain(self) -> Deferred[None]:
        """`InboundSessions.drain`, of all listeners that share the sessions."""
        return self.sessions.drain()


@implementer(IPushProducer, IHalfCloseableProtocol)
class InboundProtocol(StreamProtocol):
    """One inbound session."""

    session: Session
    transport: Any  # a stream transport that is a push producer and a consumer: TCP, TLS, or a test's

    def __init__(self, factory: InboundFactory) -> None:
        self._origin = factory
        self._intake = factory.intake
        self._observer = factory.observer
        self._sessions = factory.sessions
        self._limits = factory.sessions.limits
        self._clock = factory.clock
        self._hostname = factory.dialect.settings.hostname
        self._conversation = ServerConversation(factory.dialect, factory.observer.command)
        self._sink: IContentSink | None = None
        self._admitted = False
        self._pumping = False
        self._finishing = False  # the sink's `finish` has not fired
        self._closing = False
        self._lost = False
        self._paused = 0
        self._timer: IDelayedCall | None = None
        self._messages = 0
        self._half_closed = False
        self._content_number = 0  # tells a late call of an old sink's `throttle` from the present one's
        self._content_octets = 0
        # Times, on the clock that was passed in.
        self._opened_at = self._heard_at = self._said_at = self._mail_at = self._content_at = self._sink_paused_at = 0.0
        self._dot_at = 0.0

    # --- connection

    def connectionMade(self) -> None:
        """Admit the client and greet it, or turn it away."""
        transport = self.transport
        peer, host = transport.getPeer(), transport.getHost()
        self.session = Session(
            id=self._sessions.next_id(),
            listener=self._origin.listener,
            mode=self._origin.mode,
            peer_address=getattr(peer, "host", ""),  # a UNIX socket has none
            peer_port=getattr(peer, "port", 0),
            local_address=getattr(host, "host", ""),
            local_port=getattr(host, "port", 0),
        )
        self._opened_at = self._heard_at = self._said_at = self._clock.seconds()
        refusal = self._sessions.admit(self, self.session.peer_address)
        if refusal is not None:
            reply = refusal.reply(self._hostname)
            self._observer.command("CONNECT", reply.code)
            self._observer.rejected(self.session, refusal.reason, reply)
            write_now(transport, reply.encode())
            self._close()
            return
        self._admitted = True
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)  # replies are whole when they are written: waiting gains nothing
        transport.registerProducer(self, True)
        self._timer = self._clock.callLater(self._limits.shortest_seconds, self._look_at_time)
        self._observer.connection_opened(self.session)
        self._pump()

    def dataReceived(self, data: bytes) -> None:
        """Octets from the client."""
        if self._closing:
            return
        self._heard_at = self._clock.seconds()
        self._content_octets += len(data)
        self._conversation.receive_data(data)
        self._pump()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """The client is gone: a message that was not complete is forgotten."""
        self._lost = self._closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._abort_sink()
        if not self._admitted:
            return
        self._sessions.disconnected(self.session.peer_address)
        if not self._finishing:
            self._sessions.over(self)
        self._observer.connection_closed(self.session, self._clock.seconds() - self._opened_at, self._messages)

    def readConnectionLost(self) -> None:
        """The client will send no more, but may still read: a message that is complete gets its reply."""
        self._half_closed = True
        if not self._finishing:
            self._close()

    def writeConnectionLost(self) -> None:
        """Never: nobody here closes one half."""

    def drain(self) -> None:
        """Close with 421 as soon as no transaction is open."""
        self._conversation.drain(DRAINING.reply(self._hostname))
        self._pump()

    def abandon(self) -> None:
        """Close with 421 now."""
        if self._closing:
            self._abort_connection()
        else:
            self._conversation.close(DRAINING.reply(self._hostname))
            self._pump()

    # --- conversation

    def _pump(self) -> None:
        """Let the conversation go on as far as it can, then write its replies in one piece."""
        if self._pumping or self._closing:
            return
        self._pumping = True
        conversation = self._conversation
        try:
            while True:
                event = conversation.next_event()
                if isinstance(event, Wait):
                    break
                self._serve(event)
            if event is PAUSED:
                if conversation.pending > _BACKLOG_OCTETS:
                    self._pause(_BACKLOG)
            elif self._paused & _BACKLOG:
                self._resume(_BACKLOG)
            self._flush()
            if self._half_closed and not self._finishing:
                self._close()
        except Exception:
            self._report()
            self._break_off()
        finally:
            self._pumping = False

    def _serve(self, event: Event) -> None:
        if isinstance(event, Content):
            self._take_content(event.data)
        elif isinstance(event, RecipientAsked):
            self._ask("recipient", self._intake.recipient, self.session, event.reverse_path, event.forward_path)
        elif isinstance(event, MailAsked):
            self._mail_at = self._heard_at
            self._ask("mail", self._intake.mail, self.session, event.reverse_path, event.size)
        elif isinstance(event, DataAsked):
            self._begin_content(event.envelope)
        elif isinstance(event, ContentEnd):
            self._end_content(event.size)
        elif isinstance(event, Hello):
            if event.name != self.session.helo or event.esmtp != self.session.esmtp:
                self.session = _introduced(self.session, event)
        elif isinstance(event, ConnectAsked):
            self._ask("connect", self._intake.connect, self.session)
        elif isinstance(event, CloseAfterSend):
            self._flush()
            self._close()
        elif isinstance(event, Aborted):
            self._abort_sink()
        elif isinstance(event, ContentRefused):
            self._observer.rejected(self.session, "content", event.reply)
        else:
            assert_never(event)

    def _ask(self, reason: str, question: Callable[..., Reply | None], *arguments: object) -> None:
        """Put a question to the intake and hand its answer to the conversation."""
        try:
            reply = question(*arguments)
        except Exception:
            self._report()
            reply, reason = _LOCAL_ERROR, "internal"
        if reply is None or reply.is_positive:
            self._conversation.accept(reply)
        else:
            self._observer.rejected(self.session, reason, reply)
            self._conversation.reject(reply)

    # --- content

    def _begin_content(self, envelope: Envelope) -> None:
        throttle = partial(self._throttle, self._content_number)
        reason = "data"
        try:
            answer = self._intake.data(self.session, envelope, throttle)
        except Exception:
            self._report()
            answer, reason = _LOCAL_ERROR, "internal"
        if isinstance(answer, Reply):
            self._forget_throttle()
            self._observer.rejected(self.session, reason, answer)
            self._conversation.reject(answer)
            return
        self._sink = answer
        self._content_octets = 0
        self._content_at = self._heard_at
        self._conversation.accept()

    def _take_content(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:  # it failed at an earlier piece of the same chunk
            return
        try:
            sink.write(data)
        except Exception:
            self._report()
            self._abort_sink()
            self._conversation.refuse_content(_LOCAL_ERROR)

    def _end_content(self, size: int) -> None:
        sink, self._sink = self._sink, None
        assert sink is not None
        self._forget_throttle()
        self._dot_at = self._clock.seconds()
        self._finishing = True
        try:
            answered = sink.finish()
        except Exception:
            self._report()
            self._answer_message(size, _LOCAL_ERROR)
            return
        answered.addBoth(self._finished, size)

    def _finished(self, result: Reply | Failure, size: int) -> None:
        if isinstance(result, Failure):
            self._observer.failed(self.session, result)
            result = _LOCAL_ERROR
        try:
            self._answer_message(size, result)
        except Exception:
            self._report()
            self._break_off()

    def _answer_message(self, size: int, reply: Reply) -> None:
        """The message's fate is known. The client may be gone by now, or cut off."""
        self._finishing = False
        if self._lost:
            self._sessions.over(self)
        elif reply.is_positive:
            self._messages += 1
            self._conversation.accept(reply)
        else:
            self._conversation.reject(reply)
        # Behind the answer: a message that is queued gets its 250 even when the observer breaks.
        self._observer.message(self.session, reply, size, self._clock.seconds() - self._dot_at)
        self._pump()

    def _abort_sink(self) -> None:
        sink, self._sink = self._sink, None
        if sink is None:
            return
        self._forget_throttle()
        try:
            sink.abort()
        except Exception:
            self._report()

    # --- writing and closing

    def _flush(self) -> None:
        data = self._conversation.data_to_send()
        if data and not self._lost:
            self._said_at = self._clock.seconds()
            write_now(self.transport, data)

    def _close(self) -> None:
        """Close when everything is written, and soon in any case."""
        if self._closing:
            return
        self._closing = True
        transport = self.transport
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.callLater(self._limits.close_timeout_seconds, self._look_at_time)
        if self._admitted:
            transport.unregisterProducer()
        transport.loseConnection()

    def _abort_connection(self) -> None:
        if self._lost:
            return
        self.transport.abortConnection()

    def _report(self) -> None:
        """Tell the observer about the exception that is being dealt with."""
        self._observer.failed(self.session, Failure())

    def _break_off(self) -> None:
        """Something in here is broken: say so and close, since what comes next is not certain any more."""
        self._abort_sink()
        if self._lost:
            self._sessions.over(self)
        if self._closing:
            return
        self._conversation.close(Reply.of(421, "4.3.0", f"{self._hostname} Local error in processing, try again later"))
        self._flush()
        self._close()

    # --- back-pressure

    def _throttle(self, content_number: int, wanted: bool) -> None:
        if content_number != self._content_number or self._closing:
            return
        if not wanted:
            self._unthrottle()
        elif not self._paused & _SINK:
            self._sink_paused_at = self._clock.seconds()
            self._pause(_SINK)

    def _forget_throttle(self) -> None:
        """The present sink has no more to say about the flow."""
        self._content_number += 1
        self._unthrottle()

    def _unthrottle(self) -> None:
        if self._paused & _SINK:
            # The time in which we kept the client waiting is not held against it.
            now = self._clock.seconds()
            waited = now - self._sink_paused_at
            self._content_at += waited
            self._mail_at += waited
            self._heard_at = now
            self._resume(_SINK)

    def _pause(self, why: int) -> None:
        if not self._paused and not self._lost:
            self.transport.pauseProducing()
        self._paused |= why

    def _resume(self, why: int) -> None:
        before, self._paused = self._paused, self._paused & ~why
        if before and not self._paused and not self._closing and not self._half_closed:
            self.transport.resumeProducing()

    def pauseProducing(self) -> None:
        """The transport's: its buffer is full of replies that the client does not read."""
        self._pause(_OUTPUT)

    def resumeProducing(self) -> None:
        """The transport's: the buffer is empty again."""
        self._resume(_OUTPUT)

    def stopProducing(self) -> None:
        """The transport's: `connectionLost` does what is to be done."""

    # --- time

    def _look_at_time(self) -> None:
        """The session's one timer. It is not moved when something happens: it looks what happened, and is set again."""
        self._timer = None
        if self._closing:
            self._abort_connection()
            return
        now = self._clock.seconds()
        deadline, reason, text = self._deadline(now)
        if now < deadline:
            wait = min(max(deadline - now, 0.001), self._limits.shortest_seconds)
            self._timer = self._clock.callLater(wait, self._look_at_time)
            return
        reply = Reply.of(421, "4.4.2", f"{self._hostname} {text}")
        self._observer.rejected(self.session, reason, reply)
        self._conversation.close(reply)
        self._pump()

    def _deadline(self, now: float) -> tuple[float, str, str]:
        """Until when the client must have done something, and what to say when it has not."""
        limits = self._limits
        if self._finishing or self._paused & _SINK:
            return now + limits.shortest_seconds, "", ""  # it is our turn
        state = self._conversation.state
        if state is State.CONTENT:
            rate = limits.minimum_data_rate
            earned = self._content_octets / rate if rate > 0 else float("inf")
            return min(
                (self._heard_at + limits.data_timeout_seconds, "data_timeout", "Timeout while receiving content"),
                (self._mail_at + limits.transaction_seconds, "transaction_time", "Transaction takes too long"),
                (self._content_at + limits.data_rate_grace_seconds + earned, "data_rate", "Content comes too slowly"),
            )
        idle = (
            self._said_at + limits.command_timeout_seconds,
            "command_timeout",
            "Timeout while waiting for a command",
        )
        if state is State.MAIL or state is State.RECIPIENTS:
            over = (self._mail_at + limits.transaction_seconds, "transaction_time", "Transaction takes too long")
            return min(idle, over)
        return idle
