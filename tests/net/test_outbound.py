"""Outbound connections: over real loopback sockets with servers that misbehave, and against a clock for the timeouts."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.mail import outcome
from relaycluster.mail.outcome import Delivered, Failed, Outcome, Stage
from relaycluster.mail.reply import Reply
from relaycluster.net.outbound import (
    PIECE,
    ConnectFailed,
    OutboundConnection,
    OutboundSettings,
    Target,
    Timeouts,
    connect,
)
from relaycluster.net.target import MOST_UNCHUNKED
from relaycluster.smtp.client_events import TLSPolicy
from relaycluster.smtp.client_states import State
from tests.net.loopback import CONTENT, SETTINGS, LoopbackCase, chunks, transaction, turn
from tests.net.scripted_server import GOOD, ScriptedServer, ScriptedSession, drop, hang, reset, stop_reading


class LoopbackTests(LoopbackCase):
    """Over real sockets on 127.0.0.1."""

    @inlineCallbacks
    def test_one_connection_carries_many_messages(self) -> Any:
        """Message after message over one connection, with pipelining, and each content arrives as it was."""
        server = ScriptedServer()
        connection = yield Deferred.fromCoroutine(self.connected(server))
        for number in range(20):
            (each,) = yield connection.send(transaction(content=CONTENT + b"%d\r\n" % number))
            self.assertEqual(each, Delivered(Reply.of(250, "2.0.0", "queued"), "mx.example.com"))
            self.assertTrue(connection.usable)
        self.assertEqual(connection.transactions_done, 20)
        self.assertEqual(server.connections, 1)
        self.assertEqual(server.contents, [CONTENT + b"%d\r\n" % number for number in range(20)])

    @inlineCallbacks
    def test_without_pipelining(self) -> Any:
        """The same in lock-step, with a server that knows HELO only."""
        server = ScriptedServer(EHLO=["500 what?"])
        outcomes = yield Deferred.fromCoroutine(self.outcomes(server, "b@example.com", "c@example.com"))
        self.assertEqual([type(each) for each in outcomes], [Delivered, Delivered])
        self.assertEqual(
            server.lines[2:],
            ["MAIL FROM:<a@example.net>", "RCPT TO:<b@example.com>", "RCPT TO:<c@example.com>", "DATA"],
        )

    @inlineCallbacks
    def test_partial_refusal(self) -> Any:
        """Each recipient has its own outcome, over replies of several lines."""
        server = ScriptedServer(RCPT=["550-5.1.1 no\r\n550 5.1.1 such user", "250 ok", "452 4.2.2 full"])
        outcomes = yield Deferred.fromCoroutine(
            self.outcomes(server, "b@example.com", "c@example.com", "d@example.com")
        )
        self.assertEqual([type(each) for each in outcomes], [Failed, Delivered, outcome.Deferred])
        self.assertEqual(outcomes[0].reply.lines, ("no", "such user"))
        self.assertEqual(server.contents, [CONTENT])

    @inlineCallbacks
    def test_dropped_at_each_stage(self) -> Any:
        """A server that goes away is a deferral at the stage where it went, a possible arrival only after the dot."""
        stages = {"MAIL": Stage.MAIL, "RCPT": Stage.RCPT, "DATA": Stage.DATA, "DOT": Stage.FINAL_DOT}
        for verb, stage in stages.items():
            for how in (drop, reset):
                server = ScriptedServer(**{verb: [how]})
                (each,) = yield Deferred.fromCoroutine(self.outcomes(server))
                self.assertIsInstance(each, outcome.Deferred, verb)
                self.assertEqual(each.reply.enhanced, "4.4.2")
                self.assertEqual(each.may_have_arrived, verb == "DOT")
                # With pipelining what was answered before the connection went may still be unread when it is reset.
                self.assertIn(each.stage, {stage} if how is drop else set(stages.values()))
                self.assertFalse(self.connections[-1].usable)

    @inlineCallbacks
    def test_dropped_before_the_session_stands(self) -> Any:
        """The connection fails with the stage, and has nothing to do with TLS."""
        for verb, stage in {"GREETING": Stage.GREETING, "EHLO": Stage.EHLO}.items():
            for how in (drop, reset):
                failed = yield Deferred.fromCoroutine(self.connect_fails(ScriptedServer(**{verb: [how]})))
                self.assertIsInstance(failed.outcome, outcome.Deferred)
                self.assertEqual(failed.outcome.stage, stage)
                self.assertFalse(failed.tls_failed)

    @inlineCallbacks
    def test_refused_session(self) -> Any:
        """The outcome is the server's refusal, and the server hears QUIT."""
        server = ScriptedServer(GREETING=["554 5.7.1 not you"])
        failed = yield Deferred.fromCoroutine(self.connect_fails(server))
        self.assertEqual(failed.outcome, Failed(Reply.of(554, "5.7.1", "not you"), Stage.GREETING, "mx.example.com"))
        while not server.closed:
            yield turn()
        self.assertEqual(server.lines, ["QUIT"])

    @inlineCallbacks
    def test_floods(self) -> Any:
        """At each stage a server that talks without end is cut off after some KiB: it does not get rid of its megabytes."""
        for verb in ("GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT"):
            for flood in (b"x" * 1024, b"250-more\r\n" * 100, b"250 ok\r\n" * 100, b"\0\xff\x1b" * 300):
                said: list[int] = []

                def pour(session: ScriptedSession, flood: bytes = flood, said: list[int] = said) -> None:
                    session.is_deaf = True
                    said.append(len(flood))
                    if len(said) < 8192 and session in session.factory.sessions:
                        session.transport.write(flood)
                        reactor.callLater(0, pour, session)  # type: ignore[attr-defined]

                server = ScriptedServer(**{verb: [pour]})
                try:
                    connection = yield Deferred.fromCoroutine(self.connected(server))
                except ConnectFailed as failed:
                    each = failed.outcome
                else:
                    (each,) = yield connection.send(transaction())
                # One that says no more than fits is a server like any other; all else is no session.
                while server.sessions:
                    yield turn()
                self.assertLess(sum(said), 1024 * 1024, (verb, flood[:10]))
                self.assertLess(len(str(each.reply)), 1000)
                self.assertTrue(str(each.reply).isprintable())

    @inlineCallbacks
    def test_source_address_with_its_name(self) -> Any:
        """The connection comes from the source, and says the source's name, in every greeting of the session."""
        peers: list[Any] = []
        server = ScriptedServer(
            GREETING=[lambda session: (peers.append(session.transport.getPeer().host), session.say("220"))]
        )
        target = attrs.evolve(self.listen(server), source="127.0.0.9", helo_name="mail9.example.net")
        connection = yield connect(reactor, target, SETTINGS)
        self.connections.append(connection)
        self.assertEqual(peers, ["127.0.0.9"])
        self.assertEqual(server.lines, ["EHLO mail9.example.net"])

    @inlineCallbacks
    def test_a_source_that_is_not_ours(self) -> Any:
        """An address that the machine does not have is named as the trouble: it is no fault of the host."""
        target = attrs.evolve(self.listen(ScriptedServer()), source="192.0.2.77")
        failed = yield self.assertFailure(connect(reactor, target, SETTINGS), ConnectFailed)
        self.assertIn("this node can not use the source address 192.0.2.77", str(failed.outcome.reply))
        self.assertEqual(failed.outcome.stage, Stage.CONNECT)

    @inlineCallbacks
    def test_nobody_listens(self) -> Any:
        """A refused TCP connection names the place and the reason."""
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            target = Target("mx.example.com", "127.0.0.1", unused.getsockname()[1])
            failed = yield self.assertFailure(connect(reactor, target, SETTINGS), ConnectFailed)
        self.assertEqual(failed.outcome.stage, Stage.CONNECT)
        self.assertEqual(str(failed.outcome.reply), f"451 4.4.1 can not connect to {target}: Connection refused")

    @inlineCallbacks
    def test_source_address(self) -> Any:
        """The connection comes from the address that the target names; one that is not ours is a deferral."""
        server = ScriptedServer()
        target = attrs.evolve(self.listen(server), source="127.0.0.2")
        connection = yield connect(reactor, target, SETTINGS)
        self.connections.append(connection)
        (session,) = server.sessions
        self.assertEqual(session.transport.getPeer().host, "127.0.0.2")
        elsewhere = attrs.evolve(target, source="192.0.2.1")
        failed = yield self.assertFailure(connect(reactor, elsewhere, SETTINGS), ConnectFailed)
        self.assertEqual(failed.outcome.stage, Stage.CONNECT)

    @inlineCallbacks
    def test_never_two_of_one(self) -> Any:
        """Whoever may have one connection and is refused, or gives up, asks again at once: the server never sees two."""
        for greeting in ("554 go away", "421 busy", "rubbish", hang):
            server = ScriptedServer(GREETING=[greeting, "220 hello"])
            target = self.listen(server)
            connecting = connect(reactor, target, SETTINGS)
            if greeting is hang:
                while not server.sessions:
                    yield turn()
                connecting.cancel()
            yield self.assertFailure(connecting, ConnectFailed)
            self.connections.append((yield connect(reactor, target, SETTINGS)))
            self.assertEqual((server.connections, server.most_at_once), (2, 1), greeting)

    @inlineCallbacks
    def test_421_in_the_session(self) -> Any:
        """The server's words are the outcome, and the connection is not used again."""
        server = ScriptedServer(MAIL=["250 ok", "421 4.3.2 enough for today"])
        connection = yield Deferred.fromCoroutine(self.connected(server))
        yield connection.send(transaction())
        (each,) = yield connection.send(transaction())
        self.assertEqual(
            each, outcome.Deferred(Reply.of(421, "4.3.2", "enough for today"), Stage.MAIL, "mx.example.com")
        )
        self.assertFalse(connection.usable)
        self.assertFalse(connection.went_stale)
        (each,) = yield connection.send(transaction())
        self.assertEqual(each.reply.enhanced, "4.4.2")

    @inlineCallbacks
    def test_idle_connection_that_the_server_closes(self) -> Any:
        """`on_closed` tells of it, once, and a message that meets it is told that it can go again at once."""
        server = ScriptedServer()
        connection = yield Deferred.fromCoroutine(self.connected(server))
        yield connection.send(transaction())
        closed: Deferred[OutboundConnection] = Deferred()
        connection.on_closed = closed.callback
        (session,) = server.sessions
        session.say("421 4.4.2 idle too long")
        session.transport.loseConnection()
        self.assertIs((yield closed), connection)
        self.assertTrue(connection.is_gone)
        self.assertFalse(connection.usable)
        yield connection.send(transaction())
        self.assertTrue(connection.went_stale)

    @inlineCallbacks
    def test_stale_is_only_what_was_lost_without_a_word(self) -> Any:
        """On a used connection, and without a reply. A first transaction, a refusal, or our own giving up is none: sent
        again at once, they would come to the same end."""
        for verb, how, first, stale in (
            ("MAIL", drop, "250 ok", True),
            ("RCPT", drop, "250 ok", False),
            ("MAIL", hang, "250 ok", False),
        ):
            actions = {"MAIL": [first, how]} if verb == "MAIL" else {"RCPT": [first, how]}
            server = ScriptedServer(**actions)
            connection = yield Deferred.fromCoroutine(self.connected(server))
            yield connection.send(transaction())
            sending = connection.send(transaction())
            if how is hang:
                sending.cancel()
            (each,) = yield sending
            self.assertIsInstance(each, outcome.Deferred)
            self.assertIs(connection.went_stale, stale)
        connection = yield Deferred.fromCoroutine(self.connected(ScriptedServer(MAIL=[drop])))
        yield connection.send(transaction())
        self.assertFalse(connection.went_stale)

    @inlineCallbacks
    def test_close_says_quit(self) -> Any:
        """And the connection is gone with the answer."""
        server = ScriptedServer()
        connection = yield Deferred.fromCoroutine(self.connected(server))
        closed: Deferred[OutboundConnection] = Deferred()
        connection.on_closed = closed.callback
        connection.close()
        self.assertFalse(connection.usable)
        yield closed
        self.assertEqual(server.lines[-1], "QUIT")

    @inlineCallbacks
    def test_close_does_not_wait_for_a_silent_server(self) -> Any:
        """QUIT has its own short time."""
        settings = attrs.evolve(SETTINGS, timeouts=Timeouts(quit_seconds=0.05))
        server = ScriptedServer(QUIT=[hang])
        connection = yield Deferred.fromCoroutine(self.connected(server, settings))
        closed: Deferred[OutboundConnection] = Deferred()
        connection.on_closed = closed.callback
        connection.close()
        yield closed

    @inlineCallbacks
    def test_large_content_from_an_iterator(self) -> Any:
        """Eight megabytes arrive as they were, with dots at chunk bounds, and wait for a server that is slow to read."""
        content = (b"." * 76 + b"\r\n") * 100_000
        server = ScriptedServer(CONTENT=[stop_reading])
        connection = yield Deferred.fromCoroutine(self.connected(server))
        transport: Any = connection.transport
        transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sending = connection.send(transaction(content=chunks(content, 10_001), size=len(content)))
        while not transport.producerPaused:
            yield turn()
        self.assertLessEqual(len(transport.dataBuffer) + transport._tempDataLen, 2 * PIECE)
        for _ in range(20):
            yield turn()
        self.assertLessEqual(len(transport.dataBuffer) + transport._tempDataLen, 2 * PIECE)
        (session,) = server.sessions
        session.transport.resumeProducing()
        (each,) = yield sending
        self.assertIsInstance(each, Delivered)
        self.assertEqual(server.contents, [content])

    @inlineCallbacks
    def test_large_content_in_one_piece(self) -> Any:
        """The same from bytes; and the next, short message follows on the same connection."""
        content = os.urandom(3_000_000).replace(b"\r", b"x").replace(b"\n", b"\r\n.") + b"\r\n"
        server = ScriptedServer()
        connection = yield Deferred.fromCoroutine(self.connected(server))
        (first,) = yield connection.send(transaction(content=content, size=len(content)))
        (second,) = yield connection.send(transaction())
        self.assertIsInstance(first, Delivered)
        self.assertIsInstance(second, Delivered)
        self.assertEqual(server.contents, [content, CONTENT])

    @inlineCallbacks
    def test_chunking_that_is_offered_and_not_known(self) -> Any:
        """The message is deferred, and the next connection to that host sends it by DATA."""
        content = (b"x" * 76 + b"\r\n") * 1000
        offers = GOOD["EHLO"].replace("250 8BITMIME", "250-CHUNKING\r\n250 8BITMIME")
        server = ScriptedServer(EHLO=[offers], BDAT=["500 5.5.1 Command unrecognized"])
        target = self.listen(server)
        settings = OutboundSettings("r")
        for expected in (outcome.Deferred, Delivered, Delivered):
            connection = yield connect(reactor, target, settings)
            self.connections.append(connection)
            (each,) = yield connection.send(transaction(content=content, size=len(content)))
            self.assertIs(type(each), expected)
        self.assertEqual((server.heard.count("BDAT"), server.contents), (1, [content, content]))
        for number in range(MOST_UNCHUNKED + 1):
            settings.note_unchunked("192.0.2.1", number)
        self.assertEqual(len(settings.unchunked), MOST_UNCHUNKED)

    @inlineCallbacks
    def test_content_that_cannot_be_read(self) -> Any:
        """Our own trouble is a deferral, the message can not have arrived, and the trouble is logged."""

        async def broken() -> AsyncIterator[bytes]:
            yield b"begin\r\n"
            raise OSError("the store is away")

        server = ScriptedServer()
        connection = yield Deferred.fromCoroutine(self.connected(server))
        (each,) = yield connection.send(transaction(content=broken()))
        self.assertIsInstance(each, outcome.Deferred)
        self.assertEqual((each.stage, each.may_have_arrived), (Stage.CONTENT, False))
        self.assertNotIn("store", str(each.reply))
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        yield Deferred.fromCoroutine(self._all_gone(server))
        self.assertEqual(server.contents, [])

    @inlineCallbacks
    def test_lost_while_the_content_waits_for_room(self) -> Any:
        """The content's source is closed, the outcome is a deferral, and nothing is written behind the gap."""
        closed = []

        async def endless() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 9998 + b"\r\n"
            finally:
                closed.append(True)

        def go(session: Any) -> None:
            stop_reading(session)
            reactor.callLater(0.05, session.transport.abortConnection)  # type: ignore[attr-defined]

        server = ScriptedServer(CONTENT=[go])
        connection = yield Deferred.fromCoroutine(self.connected(server))
        (each,) = yield connection.send(transaction(content=endless()))
        self.assertEqual((each.stage, each.may_have_arrived), (Stage.CONTENT, False))
        self.assertEqual(closed, [True])

    @inlineCallbacks
    def test_refused_in_the_middle_of_the_content(self) -> Any:
        """The server's words are the outcome; the rest is not sent, and the source is closed."""

        def refuse(session: Any) -> None:
            session.say("552 5.3.4 too much")

        closed = []

        async def endless() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 9998 + b"\r\n"
            finally:
                closed.append(True)

        server = ScriptedServer(CONTENT=[refuse])
        connection = yield Deferred.fromCoroutine(self.connected(server))
        (each,) = yield connection.send(transaction(content=endless()))
        self.assertEqual(each, Failed(Reply.of(552, "5.3.4", "too much"), Stage.CONTENT, "mx.example.com"))
        self.assertEqual(closed, [True])

    @inlineCallbacks
    def test_no_dot_without_leave(self) -> Any:
        """A short and a long message whose lease ran out: nothing arrives, and the connection is cut off."""
        for content in (CONTENT, b"x" * 98 + b"\r\n" * 2000):
            server = ScriptedServer()
            connection = yield Deferred.fromCoroutine(self.connected(server))
            (each,) = yield connection.send(transaction(content=content, may_finish=lambda: False))
            self.assertEqual((each.stage, each.may_have_arrived), (Stage.CONTENT, False))
            yield Deferred.fromCoroutine(self._all_gone(server))
            self.assertEqual(server.contents, [])

    @inlineCallbacks
    def test_cancelled_transaction(self) -> Any:
        """The Deferred fires with outcomes, not with a failure; the connection is dropped."""
        server = ScriptedServer(DOT=[hang])
        connection = yield Deferred.fromCoroutine(self.connected(server))
        sending = connection.send(transaction())
        while "DOT" not in server.heard:
            yield turn()
        sending.cancel()
        (each,) = self.successResultOf(sending)
        self.assertEqual((each.stage, each.may_have_arrived), (Stage.FINAL_DOT, True))
        self.assertFalse(connection.usable)

    @inlineCallbacks
    def test_cancelled_connecting(self) -> Any:
        """Before the connection is there, and before the session stands."""
        server = ScriptedServer(GREETING=[hang])
        target = self.listen(server)
        for wait in (False, True):
            connecting = connect(reactor, target, SETTINGS)
            while wait and not server.sessions:
                yield turn()
            connecting.cancel()
            failed = self.failureResultOf(connecting, ConnectFailed).value
            self.assertIsInstance(failed.outcome, outcome.Deferred)

    @inlineCallbacks
    def test_eight_bit_content_for_a_seven_bit_host(self) -> Any:
        """The caller can ask before; not asked, the transaction fails and the host hears nothing of it."""
        server = ScriptedServer(EHLO=["250 mx.example.com"])
        connection = yield Deferred.fromCoroutine(self.connected(server))
        eight = transaction(content="ü\r\n".encode())
        self.assertTrue(connection.needs_seven_bit(eight))
        (each,) = yield connection.send(eight)
        self.assertIsInstance(each, Failed)
        self.assertEqual(each.reply.enhanced, "5.6.3")
        self.assertEqual(len(server.lines), 1)
        self.assertTrue(connection.usable)

    @inlineCallbacks
    def test_next_transaction_from_the_callback_of_the_last(self) -> Any:
        """The hot path: no turn of the reactor lies between the end of one and the start of the next."""
        server = ScriptedServer()
        connection = yield Deferred.fromCoroutine(self.connected(server))
        done: Deferred[int] = Deferred()

        def again(_outcomes: tuple[Outcome, ...], left: int) -> None:
            if left:
                connection.send(transaction()).addCallback(again, left - 1)
            else:
                done.callback(connection.transactions_done)

        connection.send(transaction()).addCallback(again, 9)
        self.assertEqual((yield done), 10)


class Wire(StringTransport):
    """Remembers that it was cut off, and, when `is_slow`, is full after each write."""

    aborting = False
    is_slow = False

    def abortConnection(self) -> None:
        self.aborting = True

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.is_slow and self.producer is not None:
            self.producer.pauseProducing()


class TimeoutTests(SynchronousTestCase):
    """Each stage has its time, from the last complete reply on; one timer watches them all."""

    TIMEOUTS = Timeouts(
        greeting_seconds=10,
        ehlo_seconds=20,
        mail_seconds=30,
        rcpt_seconds=40,
        data_seconds=12,
        content_seconds=25,
        final_dot_seconds=60,
        quit_seconds=5,
    )

    def setUp(self) -> None:
        self.clock = Clock()
        self.transport = Wire()
        target = Target("mx.example.com", "192.0.2.1", tls=TLSPolicy.NONE)
        self.connection = OutboundConnection(self.clock, target, OutboundSettings("r", timeouts=self.TIMEOUTS))
        self.established: Deferred[OutboundConnection] = Deferred()
        self.connection._established = self.established
        self.connection.makeConnection(self.transport)

    def says(self, *lines: str) -> None:
        self.connection.dataReceived("".join(f"{line}\r\n" for line in lines).encode())

    def stand(self) -> None:
        self.says("220 hi")
        self.says("250-mx", "250 PIPELINING")
        self.assertIs(self.successResultOf(self.established), self.connection)

    def assert_times_out_after(self, seconds: float, waiting: Deferred[Any]) -> Any:
        """Not a moment before, and without a word from the server."""
        for _ in range(10):
            self.clock.advance(seconds / 10 * 0.999)
            self.assertNoResult(waiting)
        self.clock.advance(seconds * 0.002)
        self.assertTrue(self.transport.disconnecting or self.transport.aborting)
        if waiting is self.established:
            self.assertNoResult(waiting)
            self.connection.connectionLost(Failure(ConnectionLost()))
        return waiting

    def test_greeting(self) -> None:
        """The server that accepts and says nothing."""
        failed = self.failureResultOf(self.assert_times_out_after(10, self.established), ConnectFailed).value
        self.assertEqual(str(failed.outcome.reply), "451 4.4.2 timed out while waiting for the greeting")
        self.assertEqual(failed.outcome.stage, Stage.GREETING)

    def test_ehlo(self) -> None:
        """The time begins with the greeting."""
        self.clock.advance(9)
        self.says("220 hi")
        failed = self.failureResultOf(self.assert_times_out_after(20, self.established), ConnectFailed).value
        self.assertEqual(failed.outcome.stage, Stage.EHLO)

    def test_each_stage_of_a_transaction(self) -> None:
        """MAIL, RCPT, DATA and the final dot have their own times."""
        said: list[str] = []
        stages = [
            (30, Stage.MAIL, "250 ok"),
            (40, Stage.RCPT, "250 ok"),
            (12, Stage.DATA, "354 go"),
            (60, Stage.FINAL_DOT, ""),
        ]
        for seconds, stage, reply in stages:
            self.setUp()
            self.stand()
            self.clock.advance(1000)  # idle has no time of its own here
            sending = self.connection.send(transaction())
            for each in said:
                self.clock.advance(9)
                self.says(each)
            (each_outcome,) = self.successResultOf(self.assert_times_out_after(seconds, sending))
            self.assertEqual(each_outcome.stage, stage)
            self.assertEqual(each_outcome.may_have_arrived, stage is Stage.FINAL_DOT)
            said.append(reply)

    def test_a_trickle_of_octets_is_no_progress(self) -> None:
        """An octet now and then does not hold the connection; only a complete reply begins a new time."""
        self.stand()
        sending = self.connection.send(transaction())
        for octet in b"250-2.1.0 ":
            self.clock.advance(2.999)
            self.connection.dataReceived(bytes([octet]))
        self.assertNoResult(sending)
        self.clock.advance(0.1)
        (each,) = self.successResultOf(sending)
        self.assertEqual(each.stage, Stage.MAIL)

    def test_a_server_that_uses_up_the_time_of_each_stage(self) -> None:
        """One reply just in time for each of many recipients does not hold a transaction for days. What was accepted by
        then is deferred: nothing was taken."""
        timeouts = attrs.evolve(
            self.TIMEOUTS, transaction_seconds=100, recipient_seconds=1, slowest_octets_per_second=50
        )
        self.connection._settings = OutboundSettings("r", timeouts=timeouts)
        self.stand()
        sending = self.connection.send(transaction(*["b@example.com"] * 50, size=500))
        self.says("250 ok")
        spent = 0
        while not sending.called:
            self.clock.advance(10)
            spent += 10
            self.says("250 ok")
            self.assertLess(spent, 200)
        self.assertEqual(spent, 100 + 50 + 500 / 50)
        outcomes = self.successResultOf(sending)
        self.assertEqual({(each.stage, each.may_have_arrived) for each in outcomes}, {(Stage.RCPT, False)})
        self.assertTrue(self.transport.aborting)

    def test_the_final_dot_has_all_of_its_time(self) -> None:
        """However long the rest took: to hang up after the dot is to make a duplicate."""
        timeouts = attrs.evolve(self.TIMEOUTS, transaction_seconds=20, recipient_seconds=0)
        self.connection._settings = OutboundSettings("r", timeouts=timeouts)
        self.stand()
        sending = self.connection.send(transaction())
        self.clock.advance(19)
        self.says("250 ok", "250 ok", "354 go")
        self.clock.advance(59)
        self.assertNoResult(sending)
        self.says("250 taken")
        self.assertIsInstance(self.successResultOf(sending)[0], Delivered)

    def test_a_content_that_the_server_does_not_take(self) -> None:
        """Each block has its time."""
        self.stand()
        sending = self.connection.send(transaction(content=b"x" * 998 + b"\r\n" * 200_000))
        self.transport.is_slow = True
        self.says("250 ok", "250 ok", "354 go")
        for _ in range(3):
            self.clock.advance(24)
            self.assertNoResult(sending)
            producer: Any = self.transport.producer
            producer.resumeProducing()
        (each,) = self.successResultOf(self.assert_times_out_after(25, sending))
        self.assertEqual((each.stage, each.may_have_arrived), (Stage.CONTENT, False))

    def test_a_long_content_lets_others_have_the_reactor(self) -> None:
        """However fast the server reads, after four pieces the reactor turns."""
        self.stand()
        self.connection.send(transaction(content=b"x" * 998 + b"\r\n" * 10 * PIECE))
        self.transport.clear()
        self.says("250 ok", "250 ok", "354 go")
        self.assertLessEqual(len(self.transport.value()), 4 * PIECE)
        self.assertEqual(self.connection._conversation.state, State.CONTENT)
        self.clock.advance(0)
        self.assertGreater(len(self.transport.value()), 20 * PIECE)
        self.assertEqual(self.connection._conversation.state, State.FINAL_DOT)

    def test_nothing_is_written_behind_a_gap(self) -> None:
        """When the transport is lost, what it held is lost. A content that went on then could reach a server that closed
        its own side only, with a hole in it."""
        self.stand()
        sending = self.connection.send(transaction(content=b"x" * 998 + b"\r\n" * PIECE))
        self.transport.is_slow = True
        self.says("250 ok", "250 ok", "354 go")
        written = len(self.transport.value())
        producer: Any = self.transport.producer
        producer.stopProducing()
        self.assertEqual(len(self.transport.value()), written)
        self.connection.connectionLost(Failure(ConnectionDone()))
        (each,) = self.successResultOf(sending)
        self.assertEqual((each.stage, each.may_have_arrived), (Stage.CONTENT, False))
        self.assertEqual(len(self.transport.value()), written)

    def test_quit(self) -> None:
        """QUIT has little time, though another timer was running."""
        self.stand()
        sending = self.connection.send(transaction())
        self.says("250 ok", "250 ok", "354 go")
        self.says("250 ok")
        self.successResultOf(sending)
        self.connection.close()
        self.clock.advance(4.9)
        self.assertFalse(self.transport.aborting)
        self.clock.advance(0.2)
        self.assertTrue(self.transport.aborting)

    def test_a_server_that_does_not_let_go(self) -> None:
        """After a polite end the connection is cut off when it does not close by itself. Until it is gone it counts as one."""
        self.says("554 no")
        self.assertTrue(self.transport.disconnecting)
        self.assertFalse(self.transport.aborting)
        self.clock.advance(5.1)
        self.assertTrue(self.transport.aborting)
        self.assertNoResult(self.established)
        self.connection.connectionLost(Failure(ConnectionLost()))
        failed = self.failureResultOf(self.established, ConnectFailed).value
        self.assertEqual(failed.outcome.reply.code, 554)

    def test_silence(self) -> None:
        """A host that owes a reply in its first transaction is silent since it was asked last; not while it has the content, nor
        after it has answered one transaction."""
        self.assertIsNone(self.connection.silent_since)
        self.stand()
        self.assertIsNone(self.connection.silent_since)
        self.clock.advance(1)
        sending = self.connection.send(transaction())
        self.clock.advance(1)
        self.assertEqual(self.connection.silent_since, 1)
        self.says("250 ok", "250 ok")
        self.clock.advance(1)
        self.assertEqual(self.connection.silent_since, 2)
        self.says("354 go")
        self.assertIsNone(self.connection.silent_since)
        self.says("250 ok")
        self.successResultOf(sending)
        self.connection.send(transaction())
        self.assertIsNone(self.connection.silent_since)

    def test_given_up_for_a_reason(self) -> None:
        """What is under way is deferred with it; the connection is cut off, and is silent no more."""
        self.stand()
        sending = self.connection.send(transaction())
        self.connection.give_up(Reply.of(451, "4.4.1", "too slow"))
        (each,) = self.successResultOf(sending)
        self.assertEqual((each.reply.lines, each.stage), (("too slow",), Stage.MAIL))
        self.assertTrue(self.transport.aborting)
        self.assertIsNone(self.connection.silent_since)

    def test_one_timer_for_all(self) -> None:
        """A thousand transactions leave one timer behind, and a lost connection none."""
        self.stand()
        for _ in range(1000):
            sending = self.connection.send(transaction())
            self.says("250 ok", "250 ok", "354 go")
            self.clock.advance(0.001)
            self.says("250 ok")
            self.successResultOf(sending)
        self.assertLessEqual(len(self.clock.getDelayedCalls()), 1)
        self.connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_given_up_before_the_connection_is_there(self) -> None:
        """A connection that comes after it was given up is closed at once."""
        target = Target("mx.example.com", "192.0.2.1")
        connection = OutboundConnection(self.clock, target, SETTINGS)
        connection.abort()
        transport = Wire()
        connection.makeConnection(transport)
        self.assertTrue(transport.aborting)
        self.assertEqual(connection._conversation.state, State.CLOSED)


class ValueTests(SynchronousTestCase):
    """Targets and timeouts."""

    def test_equal_targets(self) -> None:
        """The pool's key: all parts count, and the policy may come as the configuration's word."""
        target = Target("mx.example.com", "192.0.2.1", 25, TLSPolicy.MAY, "")
        self.assertEqual(target, Target("mx.example.com", "192.0.2.1", tls="may"))  # type: ignore[arg-type]
        self.assertEqual(hash(target), hash(Target("mx.example.com", "192.0.2.1")))
        for change in (
            {"host": "mx2"},
            {"address": "192.0.2.2"},
            {"port": 26},
            {"tls": "none"},
            {"source": "192.0.2.9"},
            {"helo_name": "mail1.example.net"},
        ):
            self.assertNotEqual(target, attrs.evolve(target, **change))
        self.assertRaises(ValueError, Target, "mx", "192.0.2.1", 25, "sometimes")

    def test_every_state_that_waits_has_a_time(self) -> None:
        """No state can wait for ever, but the idle one, which is the pool's."""
        self.assertEqual(set(Timeouts().by_state), set(State) - {State.READY, State.CLOSED})

    def test_no_time_is_nothing(self) -> None:
        """A timeout of 0 would end every connection."""
        self.assertRaises(ValueError, Timeouts, mail_seconds=0)
