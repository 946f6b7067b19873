"""A connection to a next hop: drives the client's conversation over TCP and TLS, each stage within its time.

`connect` gives an `OutboundConnection` whose session stands; `send` carries transactions over it, one after another.
Neither is silent about trouble: the first fails with `ConnectFailed`, the second answers with outcomes and never fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, assert_never

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectBindError, ConnectError, ConnectionDone, ConnectionLost, TimeoutError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHandshakeListener,
    IReactorTime,
    ISSLTransport,
    ITCPTransport,
    ITLSTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from relaycluster.mail import outcome
from relaycluster.mail.outcome import Outcome, Stage
from relaycluster.mail.reply import Reply
from relaycluster.mail.session import TLSFacts
from relaycluster.net import tls
from relaycluster.net.flow import Flow
from relaycluster.net.immediate import write_now
from relaycluster.net.target import ConnectFailed, OutboundSettings, Target, Timeouts
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
from relaycluster.smtp.extensions import Extensions

__all__ = ["PIECE", "ConnectFailed", "OutboundConnection", "OutboundSettings", "Target", "Timeouts", "connect"]

PIECE = 64 * 1024
"""Octets of a long content that are written at once."""

_BURST = 4
"""Pieces that one connection writes before it lets the others have the reactor."""

_BEFORE_CONTENT = frozenset({State.MAIL, State.RCPT, State.DATA})

_REPLY_CLOSED = Reply.of(451, "4.4.2", "the connection was closed before the transaction began")
_REPLY_GIVEN_UP = Reply.of(451, "4.3.0", "given up by this node")
_REPLY_NO_CONTENT = Reply.of(451, "4.3.0", "the content could not be read")


def connect(reactor: Any, target: Target, settings: OutboundSettings) -> Deferred[OutboundConnection]:
    """A connection to the target whose session stands: greeting, EHLO and, by policy, TLS are done.

    Under "may", where TLS breaks off the host is asked again in clear at once; when that works, it is asked in clear from
    the start for some minutes, unless it takes nothing so. Fails with `ConnectFailed` and nothing else, once the TCP connection is gone: whoever counts
    connections must not count it any more. When it is cancelled it fails with it at once, and nothing that is begun then gets on its
    way before the connection has been cut off. `reactor` provides IReactorTCP and IReactorTime.
    """
    policy, ours = target.tls, settings.tls
    if policy is not TLSPolicy.MAY:
        return _session(reactor, target, settings, policy)
    if ours is None:
        return _session(reactor, target, settings, TLSPolicy.NONE, "this node has no TLS")
    broken = ours.broken(target.address, target.port, reactor.seconds())
    if broken:
        return _session(reactor, target, settings, TLSPolicy.NONE, broken)

    def in_clear(failure: Failure) -> Deferred[OutboundConnection]:
        error = failure.value
        if not isinstance(error, ConnectFailed) or not error.tls_failed:
            return fail(failure)
        why = " ".join(error.outcome.reply.lines)

        def works(connection: OutboundConnection) -> OutboundConnection:
            # Only now it is known that TLS was the trouble, and not the host or the network.
            ours.note_broken(target.address, target.port, why, reactor.seconds())
            return connection

        return _session(reactor, target, settings, TLSPolicy.NONE, why).addCallback(works)

    return _session(reactor, target, settings, policy).addErrback(in_clear)


def _session(
    reactor: Any, target: Target, settings: OutboundSettings, policy: TLSPolicy, why_clear: str = ""
) -> Deferred[OutboundConnection]:
    """One TCP connection, under one policy."""
    connection = OutboundConnection(reactor, target, settings, policy, why_clear)
    endpoint_class = TCP6ClientEndpoint if ":" in target.address else TCP4ClientEndpoint
    endpoint = endpoint_class(
        reactor,
        target.address,
        target.port,
        timeout=settings.timeouts.connect_seconds,
        bindAddress=(target.source, 0) if target.source else None,
    )

    def cancel(_established: Deferred[OutboundConnection]) -> None:
        connection.abort()
        connection._fail()
        attempt.cancel()

    established: Deferred[OutboundConnection] = Deferred(cancel)
    connection._established = established
    attempt: Deferred[Any] = endpoint.connect(_OneConnection(connection))
    attempt.addErrback(connection._not_connected)
    return established


class _OneConnection(Factory):
    noisy = False

    def __init__(self, connection: OutboundConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: IAddress | None) -> OutboundConnection:
        return self._connection


@implementer(IHandshakeListener)
class OutboundConnection(Protocol):
    """One session with a target. Made by `connect`.

    `target` is where it goes, `tls` what was negotiated (None in clear), `transactions_done` counts those that got to
    their end. `on_closed`, when set, is called once with the connection when the connection is gone, whoever closed it.
    `policy` may be weaker than the target's where TLS is known to be broken; `why_clear` tells why then.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        target: Target,
        settings: OutboundSettings,
        policy: TLSPolicy | None = None,
        why_clear: str = "",
    ) -> None:
        self.target = target
        self.tls: TLSFacts | None = None
        self.transactions_done = 0
        self.went_stale = False
        self.on_closed: Callable[[OutboundConnection], None] | None = None
        self._reactor = reactor
        self._settings = settings
        self._why_clear = why_clear
        self._shaking_hands: SSL.Connection | None = None
        helo_name = target.helo_name or settings.helo_name
        self._conversation = ClientConversation(
            helo_name,
            target.host,
            target.tls if policy is None else policy,
            (target.address, target.port) not in settings.unchunked,
        )
        self._established: Deferred[OutboundConnection] | None = None
        self._failure: ConnectFailed | None = None  # why it will not be established, until the connection is gone
        self._sending: Deferred[tuple[Outcome, ...]] | None = None
        self._transaction: Transaction | None = None
        self._began = 0.0  # the transaction
        self._waits_since = 0.0  # for what the conversation waits for now
        self._is_connected = False
        self._given_up = False
        self._replies_before = 0
        self._content_sent: Deferred[None] | None = None
        self._burst = 0
        # One timer, set so that it fires at or before any deadline that can come up, and looked at only then.
        self._by_state = settings.timeouts.by_state
        self._shortest = settings.timeouts.shortest_seconds
        self._deadline: float | None = None
        self._timer: IDelayedCall | None = None

    # What the caller wants

    @property
    def usable(self) -> bool:
        """Whether `send` may be called: the session stands and no transaction is under way."""
        return self._conversation.state is State.READY and self._sending is None

    @property
    def is_gone(self) -> bool:
        """Whether the TCP connection is gone."""
        return not self._is_connected

    @property
    def silent_since(self) -> float | None:
        """Since when the host owes a reply before the content of its first transaction: it has taken a connection, and whether it takes
        mail nobody knows yet. None when it owes none, or has answered a transaction."""
        if self.transactions_done or self._conversation.state not in _BEFORE_CONTENT:
            return None
        return self._waits_since

    @property
    def tls_used(self) -> str:
        """How the session is protected, in words for the history of an attempt: "TLSv1.3 TLS_AES_256_GCM_SHA384, verified",
        "clear: not offered"; empty where the policy is "none"."""
        tls = self.tls
        if tls is not None:
            return f"{tls.version} {tls.cipher}{', verified' if self._verifies else ''}"
        if self.target.tls is TLSPolicy.NONE:
            return ""
        if self._why_clear:
            return f"clear: {self._why_clear}"
        return "clear: STARTTLS refused" if self._conversation.extensions.starttls else "clear: not offered"

    @property
    def extensions(self) -> Extensions:
        """What the server offers, as of its last reply to EHLO."""
        return self._conversation.extensions

    def serve(self, target: Target) -> None:
        """What follows goes to this target, which has the same place: outcomes name its host."""
        self.target = target
        self._conversation.host = target.host

    def needs_seven_bit(self, transaction: Transaction) -> bool:
        """Whether the content must be converted to seven bits before `send`, because the host does not offer 8BITMIME.
        Sent nevertheless, the transaction fails with 5.6.3 without a byte of it on the wire."""
        return self._conversation.needs_seven_bit(transaction)

    def send(self, transaction: Transaction) -> Deferred[tuple[Outcome, ...]]:
        """Carry out the transaction. Fires with one outcome for each recipient, in order; never fails. Cancelling it
        drops the connection, and fires it with what is known by then.

        After it, `usable` tells whether the connection takes another one. `went_stale` is true when the connection had
        ended before, or had carried others and was lost without a single reply: the server, or something on the way, had
        let go of it meanwhile. Nothing was taken, so that the transaction can be sent at once over a new one. Not so after
        a 421 in reply, which may be the server's word on how much it wants, nor after a timeout, nor when we gave up.
        """
        if not self.usable:
            closed = outcome.Deferred(_REPLY_CLOSED, Stage.MAIL, self.target.host)
            self.went_stale = self._conversation.state is State.CLOSED and not self._given_up
            return succeed((closed,) * len(transaction.envelope.recipients))
        sending: Deferred[tuple[Outcome, ...]] = Deferred(self._cancelled)
        self._sending = sending
        self._transaction = transaction
        self._replies_before = self._conversation.replies_seen
        self._conversation.begin(transaction)
        self._pump()
        self._began = self._set_deadline()
        return sending

    def close(self) -> None:
        """End the session with QUIT, and the connection with the answer to it or soon after. When a transaction is under
        way, or the session does not stand, the same as `abort`."""
        if not self.usable:
            self.abort()
            return
        self._conversation.close()
        self._pump()
        self._stop_timer()  # QUIT has less time than the timer that may run
        self._set_deadline()

    def abort(self) -> None:
        """Drop the connection. What is under way is deferred."""
        self.give_up(_REPLY_GIVEN_UP)

    def give_up(self, reply: Reply) -> None:
        """Drop the connection, for a reason of ours: what is under way is deferred with `reply`."""
        self._given_up = True
        self._conversation.give_up(reply)
        self._pump()
        self._cut_off()

    # What Twisted says

    def connectionMade(self) -> None:
        """See `IProtocol`."""
        transport = self.transport
        self._is_connected = True
        if ITCPTransport.providedBy(transport):
            # We write whole commands and whole messages: Nagle would only wait for the acknowledgement of the last one.
            transport.setTcpNoDelay(True)
        if self._conversation.state is State.CLOSED:  # given up before
            self._cut_off()
            return
        self._set_deadline()

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol`."""
        conversation = self._conversation
        seen = conversation.replies_seen
        conversation.receive_data(data)
        self._pump()
        # A server that sends a byte now and then gets no more time than one that sends none.
        if conversation.replies_seen != seen:
            self._set_deadline()

    def handshakeCompleted(self) -> None:
        """See `IHandshakeListener`."""
        self._shaking_hands = None
        target, settings = self.target, self._settings.tls
        connection = self._tls_handle()
        if self._conversation.state is not State.TLS or settings is None or connection is None:
            return
        try:
            if target.tls is TLSPolicy.VERIFY:
                settings.verify_host(connection, target.host)
        except tls.NotTrusted as error:
            self._conversation.tls_failed(str(error))
        else:
            self.tls = tls.facts(connection)
            self._conversation.tls_started()
        self._pump()
        self._set_deadline()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        self._is_connected = False
        self._stop_timer()
        if self._conversation.state is State.TLS:
            ours, shaking, why = self._settings.tls, self._shaking_hands, ""
            if ours is not None and shaking is not None:
                ours.forget(self.target.host, self.target.port, verify=self._verifies)
                why = ours.certificate_trouble(shaking)
            self._conversation.tls_failed(why or _why_lost(reason))
        else:
            self._conversation.connection_lost(_why_lost(reason))
        self._shaking_hands = None
        self._pump()
        self._fail()
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed(self)

    def _not_connected(self, failure: Failure) -> None:
        """The TCP connection could not be made."""
        established, self._established = self._established, None
        if established is None:
            return
        error = failure.value
        if isinstance(error, TimeoutError):
            why = f"no answer within {self._settings.timeouts.connect_seconds:g} s"
        elif isinstance(error, ConnectError) and isinstance(error.osError, int):
            why = os.strerror(error.osError)
        else:
            why = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ConnectBindError):
            why = f"this node can not use the source address {self.target.source}: {why}"
        reply = Reply.of(451, "4.4.1", f"can not connect to {self.target}: {why}")
        established.errback(ConnectFailed(outcome.Deferred(reply, Stage.CONNECT, self.target.host)))

    # Events of the conversation

    def _pump(self) -> None:
        """Write what the conversation has to say and act on what it found out, until there is nothing more."""
        conversation = self._conversation
        while True:
            data = conversation.data_to_send()
            if data and self._is_connected:
                write_now(self.transport, data)  # type: ignore[arg-type]
            event = conversation.next_event()
            if event is None:
                return
            if type(event) is Finished:  # the usual one
                self._finished(event.outcomes)
            else:
                self._act_on(event)

    def _act_on(self, event: Event) -> None:
        if isinstance(event, Finished):
            self._finished(event.outcomes)
        elif isinstance(event, ContentWanted):
            self._content_sent = Deferred.fromCoroutine(self._send_content(event.transaction))
            self._content_sent.addErrback(self._no_content)
        elif isinstance(event, TLSWanted):
            self._start_tls()
        elif isinstance(event, Ready):
            self._ready()
        elif isinstance(event, Ended):
            self._ended(event)
        else:
            assert_never(event)

    def _ready(self) -> None:
        connection = self._tls_handle()
        if self._conversation.encrypted and self._settings.tls is not None and connection is not None:
            self._settings.tls.remember(connection, self.target.host, self.target.port, verify=self._verifies)
            self._settings.tls.note_wanted(self.target.address, self.target.port)
        established, self._established = self._established, None
        if established is not None:
            established.callback(self)

    def _finished(self, outcomes: tuple[Outcome, ...]) -> None:
        conversation = self._conversation
        if conversation.state is not State.CLOSED:
            self.transactions_done += 1
        elif not self._is_connected:
            self.went_stale = self.transactions_done > 0 and conversation.replies_seen == self._replies_before
        if not conversation.chunking:
            self._settings.note_unchunked(self.target.address, self.target.port)
        content_sent, self._content_sent = self._content_sent, None
        if content_sent is not None:
            content_sent.cancel()  # does nothing, unless the content is still on its way
        sending, self._sending = self._sending, None
        self._transaction = None
        if self._why_clear and self._settings.tls is not None and any(map(tls.is_required_by, outcomes)):
            # We are in clear since TLS broke off lately, and it is wanted: the next connection tries it again.
            self._settings.tls.note_wanted(self.target.address, self.target.port)
            self.close()
        if sending is not None:
            sending.callback(outcomes)

    def _ended(self, event: Ended) -> None:
        self._stop_timer()
        if self._is_connected:
            transport: Any = self.transport
            if event.polite:
                transport.loseConnection()
                # A server that takes nothing more would keep it for ever.
                self._timer = self._reactor.callLater(self._settings.timeouts.quit_seconds, self._cut_off)
            else:
                transport.abortConnection()
        if event.outcome is not None:
            # What we gave up ourselves is no sign of broken TLS.
            tls_failed = event.tls_failed and not self._given_up
            self._failure = ConnectFailed(event.outcome, tls_failed=tls_failed)
            if not self._is_connected:
                self._fail()

    def _fail(self) -> None:
        """No session comes of it, and the connection is gone."""
        failure, self._failure = self._failure, None
        if failure is not None and self._established is not None:
            established, self._established = self._established, None
            established.errback(failure)

    def _start_tls(self) -> None:
        transport: Any = self.transport
        settings = self._settings.tls
        if settings is None or not ITLSTransport.providedBy(transport):
            self._conversation.tls_failed("this node has no TLS for outbound connections")
            return
        try:
            creator = settings.connection_to(self.target.host, self.target.port, verify=self._verifies)
        except (ValueError, TypeError, SSL.Error) as error:  # a host whose name is none
            self._conversation.tls_failed(tls.reason(error))
            return
        self._shaking_hands = creator.connection
        transport.startTLS(creator)

    @property
    def _verifies(self) -> bool:
        return self.target.tls is TLSPolicy.VERIFY

    def _tls_handle(self) -> Any:
        transport: Any = self.transport
        is_encrypted = ISSLTransport.providedBy(transport)
        return transport.getHandle() if is_encrypted else None

    # Long contents

    async def _send_content(self, transaction: Transaction) -> None:
        content = transaction.content
        flow = Flow(self.transport)
        flow.open()
        try:
            if isinstance(content, bytes):
                if not await self._send_chunk(content, flow):
                    return
            else:
                chunks = aiter(content)
                try:
                    async for chunk in chunks:
                        if not await self._send_chunk(chunk, flow):
                            return
                finally:
                    aclose = getattr(chunks, "aclose", None)
                    if aclose is not None:
                        await aclose()
        finally:
            flow.close()
        self._content_sent = None  # what `finish` leads to must not cancel the coroutine that it runs in
        self._conversation.finish()
        self._pump()
        self._set_deadline()

    async def _send_chunk(self, chunk: bytes, flow: Flow) -> bool:
        """Whether the content is still wanted after it."""
        conversation = self._conversation
        for at in range(0, len(chunk), PIECE):
            conversation.send_content(chunk[at : at + PIECE])
            self._pump()
            if conversation.state is not State.CONTENT:
                return False
            self._set_deadline()
            room = flow.room()
            if room is not None:
                self._burst = 0
                await room
            else:
                self._burst += 1
                if self._burst >= _BURST:
                    self._burst = 0
                    await deferLater(self._reactor, 0)
        return True

    def _no_content(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        self._log.failure("The content for {target} could not be read", failure, target=str(self.target))
        self.give_up(_REPLY_NO_CONTENT)

    # The ends

    def _cancelled(self, _sending: Deferred[tuple[Outcome, ...]]) -> None:
        self.abort()

    def _cut_off(self) -> None:
        if self._is_connected:
            transport: Any = self.transport
            transport.abortConnection()

    # Time

    def _set_deadline(self) -> float:
        """Start the time of the stage that the conversation is in. Returns the time that it is."""
        seconds = self._by_state.get(self._conversation.state)
        if seconds is None or not self._is_connected:
            self._deadline = None
            return 0.0
        clock: IReactorTime = self._reactor
        now = self._waits_since = clock.seconds()
        self._deadline = now + seconds
        if self._timer is None:
            # No stage is shorter than this, so no deadline that is set later comes before the timer.
            self._timer = clock.callLater(min(seconds, self._shortest), self._look_at_deadline)
        return now

    def _look_at_deadline(self) -> None:
        self._timer = None
        deadline = self._deadline
        if deadline is None:
            return
        now = self._reactor.seconds()
        left = deadline - now
        if left > 0 and not self._is_overdue(now):
            self._timer = self._reactor.callLater(min(left, self._shortest), self._look_at_deadline)
            return
        self._conversation.timed_out()
        self._pump()
        self._cut_off()

    def _is_overdue(self, now: float) -> bool:
        """Whether the transaction as a whole has had its time, though each of its stages has some left."""
        transaction = self._transaction
        if transaction is None or self._conversation.state is State.FINAL_DOT:
            return False
        return now - self._began >= self._settings.timeouts.longest_seconds(transaction)

    def _stop_timer(self) -> None:
        self._deadline = None
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


def _why_lost(failure: Failure) -> str:
    if failure.check(ConnectionDone):
        return "closed by the server"
    if failure.check(ConnectionLost):
        return "reset, or cut off on the way"
    return tls.reason(failure.value)
