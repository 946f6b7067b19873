"""One inbound SMTP session over a socket: drives the conversation and asks the node's `IIntake`.

It decides nothing about SMTP (that is `smtp/server.py`) and nothing about mail (that is the intake). It owns time,
back-pressure, TLS, and the order of writing and closing. Whatever goes wrong inside becomes a 4yz reply and a report to
the observer, never silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from relaycluster.interfaces import Answer, IContentSink, Login
from relaycluster.mail.reply import Reply
from relaycluster.mail.session import Session, TLSFacts
from relaycluster.net.inbound_sessions import DRAINING
from relaycluster.net.inbound_times import Times
from relaycluster.net.peer import Origin, origin_of
from relaycluster.net.tls_channel import TLSTrouble
from relaycluster.net.wire import Wire
from relaycluster.smtp.server import ServerConversation
from relaycluster.smtp.server_events import (
    NEED_DATA,
    PAUSED,
    Aborted,
    AuthAsked,
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
    StartTLS,
)

if TYPE_CHECKING:
    from relaycluster.net.inbound import InboundFactory

_LOCAL_ERROR: Final = Reply.of(451, "4.3.0", "Local error in processing, try again later")
_AUTH_ERROR: Final = Reply.of(454, "4.7.0", "Temporary authentication failure, try again later")  # RFC 4954 6
STRESS_FRUITLESS_COMMANDS: Final = 10
"""Under stress, so many commands without a message are answered."""
_BACKLOG_OCTETS: Final = 65536  # so much may wait behind an open question before we stop reading

# Why reading is paused: one bit each.
_SINK: Final = 1  # the sink asked for it
_OUTPUT: Final = 2  # the client does not read our replies
_BACKLOG: Final = 4  # the client sends on while a question is open


def _changed(old: Session, helo: str, esmtp: bool, tls: TLSFacts | None, user: str) -> Session:
    """The session after EHLO, STARTTLS or AUTH. Not `attrs.evolve`: that costs 20 µs, and this happens in each session."""
    return Session(
        old.id,
        old.listener,
        old.mode,
        old.peer_address,
        old.peer_port,
        old.local_address,
        old.local_port,
        helo,
        esmtp,
        tls,
        user,
        old.via,
    )


@implementer(IPushProducer, IHalfCloseableProtocol)
class InboundProtocol(StreamProtocol):
    """One inbound session."""

    session: Session
    transport: Any  # a stream transport that is a push producer and a consumer: TCP, or a test's

    def __init__(self, factory: InboundFactory, origin: Origin | None = None) -> None:
        self._factory = factory
        self._origin = origin
        self._intake = factory.intake
        self._observer = factory.observer
        self._sessions = factory.sessions
        self._limits = factory.sessions.limits
        self._clock = factory.clock
        self._hostname = factory.dialect.settings.hostname
        self._conversation = ServerConversation(
            factory.dialect,
            factory.observer.command,
            secure=factory.implicit_tls,
            probe=origin is not None and origin.is_probe,
        )
        self._times = Times(factory.clock.seconds())
        self._client = ""  # who is counted
        self._sink: IContentSink | None = None
        self._admitted = False
        self._pumping = False
        self._asking = False  # a question to the node is open
        self._finishing = False  # the sink's `finish` has not fired
        self._closing = False
        self._lost = False
        self._paused = 0
        self._timer: IDelayedCall | None = None
        self._messages = 0
        self._why = ""  # how it ended
        self._paths = ("", "")  # the reverse-path and forward-path that the last question was about
        self._half_closed = False
        self._content_number = 0  # tells a late call of an old sink's `throttle` from the present one's

    # --- connection

    def connectionMade(self) -> None:
        """Admit the client and greet it, or turn it away."""
        transport, factory, sessions = self.transport, self._factory, self._sessions
        self._wire = Wire(transport)
        origin = self._origin or origin_of(transport)
        self._origin = None
        self.session = factory.session_of(origin)
        self._client = "" if origin.is_probe else origin.peer_address
        refusal = sessions.admit(self, self._client, self._times.opened_at)
        if refusal is not None:
            self._turn_away(refusal.reason, refusal.reply(self._hostname))
            return
        self._admitted = True
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)  # replies are whole when they are written: waiting gains nothing
        transport.registerProducer(self, True)
        limits = self._limits
        first_look = limits.shortest_seconds
        if sessions.is_stressed:
            self._conversation.errors_limit = min(self._conversation.errors_limit, limits.stress_errors)
            self._conversation.fruitless_limit = STRESS_FRUITLESS_COMMANDS
            first_look = min(first_look, limits.stress_seconds)
        self._timer = self._clock.callLater(first_look, self._look_at_time)
        self._observer.connection_opened(self.session)
        if not factory.implicit_tls:
            self._pump()
            return
        try:
            self._start_tls()
        except Exception:
            self._report()
            self._closing = True
            self._abort_connection()

    def _turn_away(self, reason: str, reply: Reply) -> None:
        self._observer.command("CONNECT", reply.code)
        self._observer.rejected(self.session, reason, reply)
        if self._factory.implicit_tls:
            # A handshake is the dearest thing that we have: whoever is too many does not get one only to hear so.
            self._closing = True
            self._wire.abort()
            return
        self._wire.send(reply.encode())
        self._close()

    def dataReceived(self, data: bytes) -> None:
        """Octets from the client."""
        if self._closing:
            return
        if self._wire.channel is None:
            self._received(data)
        else:
            self._decrypt(data)

    def _received(self, data: bytes) -> None:
        times = self._times
        times.heard_at = self._clock.seconds()
        times.content_octets += len(data)
        self._conversation.receive_data(data)
        self._pump()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """The client is gone: a message that was not complete is forgotten."""
        if (
            not self._closing
            and self._wire.is_shaking_hands
            and self._wire.channel is not None
            and self._wire.channel.has_begun
        ):
            self._tls_refused("the client closed the connection")
        self._lost = self._closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._abort_sink()
        if not self._admitted:
            return
        self._sessions.disconnected(self._client)
        if not self._finishing:
            self._sessions.over(self)
        seconds = self._clock.seconds() - self._times.opened_at
        refused, why = self._conversation.refusals, self._why or "lost"
        self._observer.connection_closed(self.session, seconds, self._messages, refused, why)

    def readConnectionLost(self) -> None:
        """The client will send no more, but may still read: a message that is complete gets its reply."""
        self._half_closed = True
        if not self._asking:
            self._close()

    def writeConnectionLost(self) -> None:
        """Never: nobody here closes one half."""

    def drain(self) -> None:
        """Close with 421 as soon as no transaction is open."""
        self._conversation.drain(DRAINING.reply(self._hostname))
        self._pump()

    def abandon(self) -> None:
        """Close with 421 now."""
        if self._closing or self._wire.is_shaking_hands:
            self._abort_connection()
        else:
            self._conversation.close(DRAINING.reply(self._hostname))
            self._pump()

    # --- TLS

    def _start_tls(self) -> None:
        tls = self._factory.tls
        if tls is None:
            raise RuntimeError("a listener offered TLS without certificates")
        self._times.handshake_at = self._clock.seconds()
        self._wire.start_tls(tls.channel())

    def _decrypt(self, data: bytes) -> None:
        wire = self._wire
        channel = wire.channel
        assert channel is not None
        try:
            data = channel.receive(data)
        except TLSTrouble as trouble:
            self._tls_refused(str(trouble))
            wire.flush()  # the alert
            self._close()
            return
        if wire.is_shaking_hands:
            leaves_only_tickets = False
            if channel.is_open:
                facts = channel.facts()
                self._secured(facts)
                # Those of TLS 1.3 are of no use to this connection: they go out with what is said next, or with close_notify.
                leaves_only_tickets = facts.version == "TLSv1.3"
            if not leaves_only_tickets and not self._closing:
                wire.flush()
        if data:
            self._received(data)
        if channel.peer_closed:
            self.readConnectionLost()

    def _secured(self, facts: TLSFacts) -> None:
        """The handshake is over: the session begins anew, with nothing of what was said in clear (RFC 3207 4.2)."""
        self._wire.is_shaking_hands = False
        self._times.said_at = self._clock.seconds()
        self.session = _changed(self.session, "", False, facts, "")
        if not self._factory.implicit_tls:
            self._conversation.secured()
        self._pump()

    def _tls_refused(self, why: str) -> None:
        self._why = "tls"
        what = "TLS handshake failed" if self._wire.is_shaking_hands else "TLS failed"
        self._observer.rejected(self.session, "tls", Reply.of(454, "4.7.0", f"{what}: {why}"))

    # --- conversation

    def _pump(self) -> None:
        """Let the conversation go on as far as it can, then write its replies in one piece."""
        wire = self._wire
        if self._pumping or self._closing or wire.is_shaking_hands:
            return
        self._pumping = True
        conversation = self._conversation
        next_event, serve = conversation.next_event, SERVED
        try:
            while True:
                event = next_event()
                if event is NEED_DATA or event is PAUSED:
                    break
                serve[type(event)](self, event)
                if wire.is_shaking_hands:
                    self._resume(_BACKLOG)  # what waited behind STARTTLS in the clear is thrown away
                    return
            asking = self._asking = event is PAUSED
            if asking:
                if conversation.pending > _BACKLOG_OCTETS:
                    self._pause(_BACKLOG)
            elif self._paused & _BACKLOG:
                self._resume(_BACKLOG)
            self._flush()
            if self._half_closed and not asking:
                self._close()
        except Exception:
            self._report()
            self._break_off()
        finally:
            self._pumping = False

    # One for each kind of event: see SERVED.

    def _connect_asked(self, event: ConnectAsked) -> None:
        self._ask("connect", self._intake.connect, self.session)

    def _hello(self, event: Hello) -> None:
        session = self.session
        if event.name != session.helo or event.esmtp != session.esmtp:
            self.session = _changed(session, event.name, event.esmtp, session.tls, session.user)

    def _tls_asked(self, event: StartTLS) -> None:
        self._flush()  # the 220, the last octets in clear
        self._start_tls()

    def _auth_asked(self, event: AuthAsked) -> None:
        self._paths = ("", "")
        self._authenticate(Login(event.mechanism, event.user, event.password, event.authorization))

    def _mail_asked(self, event: MailAsked) -> None:
        self._times.mail_at = self._times.heard_at
        self._paths = (event.reverse_path.text, "")
        self._ask("mail", self._intake.mail, self.session, event.reverse_path, event.size)

    def _recipient_asked(self, event: RecipientAsked) -> None:
        self._paths = (event.reverse_path.text, event.forward_path.text)
        self._ask("recipient", self._intake.recipient, self.session, event.reverse_path, event.forward_path)

    def _content_refused(self, event: ContentRefused) -> None:
        self._observer.rejected(self.session, "content", event.reply, self._paths[0])

    def _content_aborted(self, event: Aborted) -> None:
        self._abort_sink()

    def _parted(self, event: CloseAfterSend) -> None:
        self._why = self._why or ("quit" if event.reply.code == 221 else str(event.reply))
        self._close()

    # --- questions to the intake, whose answers may come later

    def _ask(self, reason: str, question: Callable[..., Answer], *arguments: object) -> None:
        """Put a question to the intake and hand its answer to the conversation."""
        try:
            answer = question(*arguments)
        except Exception:
            self._report()
            self._answer("internal", _LOCAL_ERROR)
            return
        if isinstance(answer, Deferred):
            self._times.asked_at = self._clock.seconds()
            answer.addCallbacks(self._answer_late, self._no_answer, (reason,), errbackArgs=(_LOCAL_ERROR,))
        else:
            self._answer(reason, answer)

    def _answer(self, reason: str, reply: Reply | None) -> None:
        if reply is None or reply.is_positive:
            self._conversation.accept(reply)
        else:
            self._observer.rejected(self.session, reason, reply, *self._paths)
            self._conversation.reject(reply)

    def _answer_late(self, reply: Reply | None, reason: str) -> None:
        """From a Deferred; the client may be gone by now, or cut off."""
        if self._closing:
            return
        self._times.answered(self._clock.seconds())
        try:
            self._answer(reason, reply)
        except Exception:
            self._report()
            self._break_off()
            return
        self._pump()

    def _no_answer(self, failure: Failure, reply: Reply) -> None:
        self._observer.failed(self.session, failure)
        self._answer_late(reply, "internal")

    def _authenticate(self, login: Login) -> None:
        try:
            answer = self._intake.authenticate(self.session, login)
        except Exception:
            self._report()
            self._answer("internal", _AUTH_ERROR)
            return
        self._times.asked_at = self._clock.seconds()
        answer.addCallbacks(self._authenticated, self._no_answer, errbackArgs=(_AUTH_ERROR,))

    def _authenticated(self, answer: str | Reply) -> None:
        if isinstance(answer, Reply):
            self._answer_late(answer, "auth")
        elif not self._closing:
            session = self.session
            self.session = _changed(session, session.helo, session.esmtp, session.tls, answer)
            self._answer_late(None, "auth")

    # --- content

    def _begin_content(self, event: DataAsked) -> None:
        envelope = event.envelope
        self._paths = (envelope.reverse_path.text, "")
        throttle = partial(self._throttle, self._content_number)
        reason = "data"
        try:
            answer = self._intake.data(self.session, envelope, throttle)
        except Exception:
            self._report()
            answer, reason = _LOCAL_ERROR, "internal"
        if isinstance(answer, Reply):
            self._forget_throttle()
            self._observer.rejected(self.session, reason, answer, self._paths[0])
            self._conversation.reject(answer)
            return
        self._sink = answer
        self._times.content_begins()
        self._conversation.accept()

    def _take_content(self, event: Content) -> None:
        sink = self._sink
        if sink is None:  # it failed at an earlier piece of the same chunk
            return
        try:
            sink.write(event.data)
        except Exception:
            self._report()
            self._abort_sink()
            self._conversation.refuse_content(_LOCAL_ERROR)

    def _end_content(self, event: ContentEnd) -> None:
        size = event.size
        sink, self._sink = self._sink, None
        assert sink is not None
        self._forget_throttle()
        self._times.dot_at = self._clock.seconds()
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
        times = self._times
        times.heard_at = self._clock.seconds()
        self._observer.message(self.session, reply, size, times.heard_at - times.dot_at, self._paths[0])
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
            self._times.said_at = self._clock.seconds()
            self._wire.send(data)

    def _close(self) -> None:
        """Say what is to be said, close when everything is written, and soon in any case."""
        if self._closing:
            return
        self._closing = True
        last = b"" if self._wire.is_shaking_hands else self._conversation.data_to_send()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.callLater(self._limits.close_timeout_seconds, self._look_at_time)
        if self._admitted:
            self.transport.unregisterProducer()
        self._wire.close(last)

    def _abort_connection(self) -> None:
        if not self._lost:
            self._wire.abort()

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
        self._close()

    # --- back-pressure

    def _throttle(self, content_number: int, wanted: bool) -> None:
        if content_number != self._content_number or self._closing:
            return
        if not wanted:
            self._unthrottle()
        elif not self._paused & _SINK:
            self._times.sink_paused_at = self._clock.seconds()
            self._pause(_SINK)

    def _forget_throttle(self) -> None:
        """The present sink has no more to say about the flow."""
        self._content_number += 1
        self._unthrottle()

    def _unthrottle(self) -> None:
        if self._paused & _SINK:
            self._times.sink_resumed(self._clock.seconds())
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
        limits, is_stressed = self._limits, self._sessions.is_stressed
        longest = min(limits.shortest_seconds, limits.stress_seconds) if is_stressed else limits.shortest_seconds
        shakes_hands = self._wire.is_shaking_hands
        if (self._asking or self._paused & _SINK) and not shakes_hands:  # it is our turn
            self._timer = self._clock.callLater(longest, self._look_at_time)
            return
        if shakes_hands:
            deadline, reason, text = self._times.handshake_deadline(limits, is_stressed)
        else:
            deadline, reason, text = self._times.deadline(
                limits, is_stressed, self._conversation.state, self._sink is not None
            )
        left = deadline - self._clock.seconds()
        if left > 0:
            self._timer = self._clock.callLater(min(max(left, 0.001), longest), self._look_at_time)
            return
        reply = Reply.of(421, "4.4.2", f"{self._hostname} {text}")
        self._why = "timeout"
        self._observer.rejected(self.session, reason, reply)
        if shakes_hands:  # there is no way to say so
            self._closing = True
            self._abort_connection()
            return
        self._conversation.close(reply)
        self._pump()


SERVED: Final[Mapping[type[Event], Callable[[InboundProtocol, Any], None]]] = {
    ConnectAsked: InboundProtocol._connect_asked,
    Hello: InboundProtocol._hello,
    StartTLS: InboundProtocol._tls_asked,
    AuthAsked: InboundProtocol._auth_asked,
    MailAsked: InboundProtocol._mail_asked,
    RecipientAsked: InboundProtocol._recipient_asked,
    DataAsked: InboundProtocol._begin_content,
    Content: InboundProtocol._take_content,
    ContentEnd: InboundProtocol._end_content,
    Aborted: InboundProtocol._content_aborted,
    ContentRefused: InboundProtocol._content_refused,
    CloseAfterSend: InboundProtocol._parted,
}
"""What is done about each event of the conversation; a test sees to it that none is missing."""
