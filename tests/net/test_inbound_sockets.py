"""Inbound sessions over real loopback sockets: what a transport in memory cannot show."""

from __future__ import annotations

import smtplib
import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from relaycluster.net.immediate import write_now
from relaycluster.net.inbound import InboundFactory, InboundSessions, SessionLimits
from relaycluster.smtp.server_settings import ServerSettings
from tests.net.test_inbound import Intake


class InboundOverSockets(TestCase):
    """A listener on an ephemeral port of 127.0.0.1."""

    timeout = 60

    def setUp(self) -> None:
        self.intake = Intake()
        self.sessions = InboundSessions(SessionLimits())
        factory = InboundFactory(
            intake=self.intake,
            settings=ServerSettings("mx.example.org"),
            sessions=self.sessions,
            clock=reactor,  # type: ignore[arg-type]
            listener="127.0.0.1:0",
            mode="mx",
        )
        self.port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.number = self.port.getHost().port

    @inlineCallbacks
    def tearDown(self) -> Any:
        yield self.port.stopListening()
        gone = self.sessions.drain()
        self.sessions.abandon()
        yield gone

    @inlineCallbacks
    def test_smtplib_sends_what_arrives(self) -> Any:
        """A client that somebody else wrote: small, large and dotty messages over one connection arrive byte for byte."""
        contents = [b"Subject: x\r\n\r\nHello.\r\n", b".\r\n..\r\n.x\r\n" * 1000, (b"y" * 76 + b"\r\n") * 40000]

        def send() -> None:
            with smtplib.SMTP("127.0.0.1", self.number, timeout=30) as client:
                for content in contents:
                    client.sendmail("a@client.example", ["b@example.net", "c@example.net"], content)

        yield deferToThread(send)
        self.assertEqual([sink.written for sink in self.intake.sinks], contents)

    @inlineCallbacks
    def test_a_client_that_pipelines_without_reading(self) -> Any:
        """Thousands of commands before the first read: every reply comes, in order, and none is lost or doubled when the kernel
        takes only a part of a write."""
        count = 40000

        def talk() -> bytes:
            with socket.create_connection(("127.0.0.1", self.number), timeout=30) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                got = client.recv(1)
                sent = b"".join(b"VRFY x\r\n" if number % 2 else b"NOOP\r\n" for number in range(count)) + b"QUIT\r\n"
                client.setblocking(False)
                while sent:
                    try:
                        sent = sent[client.send(sent) :]
                    except BlockingIOError:  # the server has stopped reading until its replies are read
                        client.setblocking(True)
                        got += client.recv(65536)
                        client.setblocking(False)
                client.setblocking(True)
                while piece := client.recv(65536):
                    got += piece
                return got

        got = yield deferToThread(talk)
        lines = got.split(b"\r\n")
        self.assertEqual([line[:3] for line in lines[1:-2]], [b"252" if n % 2 else b"250" for n in range(count)])
        self.assertTrue(lines[-2].startswith(b"221 "))

    @inlineCallbacks
    def test_drain_over_sockets(self) -> Any:
        """An idle client reads its 421 and the end of the connection, and the drain is over."""

        def talk(client: socket.socket) -> bytes:
            got = b""
            while piece := client.recv(4096):
                got += piece
            return got

        client = socket.socket()
        client.settimeout(30)
        yield deferToThread(client.connect, ("127.0.0.1", self.number))
        greeting = yield deferToThread(client.recv, 4096)
        self.assertTrue(greeting.startswith(b"220 "))
        reading = deferToThread(talk, client)
        yield self.sessions.drain()
        farewell = yield reading
        client.close()
        self.assertTrue(farewell.startswith(b"421 4.3.2 "))


class Pusher(Protocol):
    """Writes a lot through `write_now`, whatever the kernel takes."""

    def connectionMade(self) -> None:
        for number in range(2000):
            write_now(self.transport, b"%06d" % number * 500)
        self.transport.loseConnection()


class WriteNow(TestCase):
    """The fast path of writing."""

    timeout = 60

    @inlineCallbacks
    def test_octets_keep_their_order_when_the_kernel_is_full(self) -> Any:
        """Six megabytes in 2,000 writes to a peer that reads late: first direct, then buffered, nothing overtakes or is lost."""
        factory = Factory.forProtocol(Pusher)
        port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]

        def read() -> bytes:
            with socket.create_connection(("127.0.0.1", port.getHost().port), timeout=30) as client:
                pieces = []
                while piece := client.recv(65536):
                    pieces.append(piece)
                return b"".join(pieces)

        try:
            got = yield deferToThread(read)
        finally:
            yield port.stopListening()
        self.assertEqual(got, b"".join(b"%06d" % number * 500 for number in range(2000)))

    def test_other_transports_are_written_to_as_usual(self) -> None:
        """Whatever is no plain TCP connection gets `write`."""

        class Written:
            data = b""

            def write(self, data: bytes) -> None:
                self.data += data

        transport: Any = Written()
        write_now(transport, b"x")
        self.assertEqual(transport.data, b"x")
