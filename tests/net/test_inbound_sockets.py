"""Inbound sessions over real loopback sockets: what a transport in memory cannot show."""

from __future__ import annotations

import smtplib
import socket
import threading
from typing import Any

from twisted.internet import reactor, tcp
from twisted.internet.defer import inlineCallbacks
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from relaycluster.net.immediate import write_now
from relaycluster.net.inbound import InboundFactory, InboundProtocol, InboundSessions, SessionLimits
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
            settings=ServerSettings("mx.example.org", fruitless_commands=10**6),
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
        """Thousands of commands before the first read: the server stops reading, and later every reply comes, in order, none lost
        or doubled where the kernel took only a part of a write."""
        count = 50000
        stopped = threading.Event()
        self.port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        stop = InboundProtocol.pauseProducing

        def pause(session: InboundProtocol) -> None:
            stopped.set()
            stop(session)

        self.patch(InboundProtocol, "pauseProducing", pause)

        def talk() -> bytes:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                client.settimeout(30)
                client.connect(("127.0.0.1", self.number))
                got = client.recv(1)
                left = b"".join(b"VRFY x\r\n" if number % 2 else b"HELP\r\n" for number in range(count)) + b"QUIT\r\n"
                client.setblocking(False)
                while left:
                    try:
                        left = left[client.send(left) :]
                    except BlockingIOError:
                        if not stopped.wait(30):
                            raise AssertionError("the server never stopped reading") from None
                        client.settimeout(30)
                        got += client.recv(65536)
                        client.setblocking(False)
                client.settimeout(30)
                if not stopped.wait(30):
                    raise AssertionError("the server never stopped reading")
                while piece := client.recv(65536):
                    got += piece
                return got

        got = yield deferToThread(talk)
        lines = got.split(b"\r\n")
        self.assertEqual([line[:3] for line in lines[1:-2]], [b"252" if n % 2 else b"214" for n in range(count)])
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


PIECES = [b"%06d" % number * 500 for number in range(2000)]


class Pusher(Protocol):
    """Writes a lot through `write_now` to a peer that does not read yet; then tells it."""

    def __init__(self, pushed: threading.Event) -> None:
        self.pushed = pushed
        self.was_full = False

    def connectionMade(self) -> None:
        transport: Any = self.transport
        for piece in PIECES:
            write_now(transport, piece)
        self.was_full = bool(transport.dataBuffer or transport._tempDataBuffer)
        transport.loseConnection()
        self.pushed.set()


class WriteNow(TestCase):
    """The fast path of writing."""

    timeout = 60

    @inlineCallbacks
    def test_octets_keep_their_order_when_the_kernel_is_full(self) -> Any:
        """Six megabytes in 2,000 writes to a peer that reads only afterwards: first direct, one in part, then buffered; nothing
        overtakes, nothing is lost or doubled."""
        pusher = Pusher(threading.Event())
        factory = Factory.forProtocol(lambda: pusher)  # type: ignore[arg-type]
        port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65537)

        def read() -> bytes:
            with socket.create_connection(("127.0.0.1", port.getHost().port), timeout=30) as client:
                if not pusher.pushed.wait(30):
                    raise AssertionError("nothing was written")
                pieces = []
                while piece := client.recv(65536):
                    pieces.append(piece)
                return b"".join(pieces)

        try:
            got = yield deferToThread(read)
        finally:
            yield port.stopListening()
        self.assertTrue(pusher.was_full)
        self.assertTrue(got == b"".join(PIECES))

    def test_nothing_overtakes_what_is_buffered(self) -> None:
        """While the transport holds anything back, or closes, or speaks TLS, the socket is not touched."""

        class Untouchable:
            def send(self, data: bytes) -> int:
                raise AssertionError("sent past the buffer")

        for attribute, value in (
            ("dataBuffer", b"x"),
            ("_tempDataBuffer", [b"x"]),
            ("TLS", True),
            ("connected", 0),
            ("_writeDisconnecting", True),
        ):
            transport: Any = tcp.Server.__new__(tcp.Server)
            transport.socket = Untouchable()
            transport.connected = 1
            transport._tempDataBuffer = []
            written: list[bytes] = []
            transport.write = written.append
            setattr(transport, attribute, value)
            write_now(transport, b"y")
            self.assertEqual(written, [b"y"], attribute)

    def test_other_transports_are_written_to_as_usual(self) -> None:
        """Whatever is no plain TCP connection gets `write`."""

        class Written:
            data = b""

            def write(self, data: bytes) -> None:
                self.data += data

        transport: Any = Written()
        write_now(transport, b"x")
        self.assertEqual(transport.data, b"x")
