"""One question to one server over one socket of its own: a UDP datagram or a TCP connection, and its first true answer.

Each UDP question has a fresh socket, so that the kernel draws a fresh source port (RFC 5452 9.2), and the socket is
connected, so that the kernel drops what another address sent (RFC 5452 9.1) and reports at once that nobody listens.
It is read by the reactor directly: `listenUDP` would log two lines per question. The Deferreds here never fail, except
with the CancelledError of the one who cancels; a cancelled exchange closes its socket at once.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Protocol as Structural

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IConnector, IReadDescriptor, ITCPTransport
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.protocols.basic import Int16StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from relaycluster.net.dns_wire import Reading, ServerTrouble, Stray, Truncated
from relaycluster.policy.routing import HostPort

MOST_STRAYS = 16
"""So many packets that are no answer mean that somebody guesses: ask over TCP, where guessing does not help."""

_CONNECT_SECONDS = 30.0  # only a backstop: whoever asks gives up earlier, by cancelling

Read = Callable[[bytes], Reading]


class IOReactor(Structural):
    """What the exchanges need of a reactor: `IReactorFDSet` and `IReactorTCP`, as every reactor on Unix has them."""

    def addReader(self, reader: IReadDescriptor) -> object: ...

    def removeReader(self, reader: IReadDescriptor) -> object: ...

    def connectTCP(self, host: str, port: int, factory: ClientFactory, timeout: float) -> IConnector: ...


def ask_udp(reactor: IOReactor, server: HostPort, query: bytes, read: Read) -> Deferred[Reading]:
    """Send `query` in a datagram; fires with the first reading that is not a `Stray`."""
    try:
        exchange = _Datagram(reactor, server, read)
    except OSError as error:
        return _later_trouble(error)
    return exchange.ask(query)


def ask_tcp(reactor: IOReactor, server: HostPort, query: bytes, read: Read) -> Deferred[Reading]:
    """Send `query` over a new connection; fires with the reading of its answer."""
    stream = _Stream(query, read)
    stream.connector = reactor.connectTCP(server.host, server.port, stream, timeout=_CONNECT_SECONDS)
    return stream.answer


def _later_trouble(error: OSError) -> Deferred[Reading]:
    answer: Deferred[Reading] = Deferred()
    answer.callback(_trouble(error))
    return answer


def _trouble(error: OSError) -> ServerTrouble:
    return ServerTrouble(os.strerror(error.errno) if error.errno else str(error), is_down=True)


@implementer(IReadDescriptor)
class _Datagram:
    """A connected UDP socket, for one question."""

    def __init__(self, reactor: IOReactor, server: HostPort, read: Read) -> None:
        family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect((server.host, server.port))
        except OSError:
            self._socket.close()
            raise
        self._reactor = reactor
        self._read = read
        self._strays = 0
        self._answer: Deferred[Reading] | None = Deferred(lambda _: self._close())

    def ask(self, query: bytes) -> Deferred[Reading]:
        answer = self._answer
        assert answer is not None
        try:
            self._socket.send(query)
        except OSError as error:
            self._finish(_trouble(error))
        else:
            self._reactor.addReader(self)
        return answer

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "dns"

    def doRead(self) -> None:
        while self._answer is not None:
            try:
                packet = self._socket.recv(65535)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._finish(_trouble(error))
                return
            reading = self._read(packet)
            if not isinstance(reading, Stray):
                self._finish(reading)
            else:
                self._strays += 1
                if self._strays >= MOST_STRAYS:
                    self._finish(Truncated())

    def connectionLost(self, reason: Failure) -> None:
        """The reactor found an error on the socket; on Linux a refused port comes this way."""
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if self._answer is not None else 0
        self._finish(ServerTrouble(os.strerror(number) if number else reason.getErrorMessage(), is_down=True))

    def _finish(self, reading: Reading) -> None:
        answer = self._answer
        if answer is not None:
            self._close()
            answer.callback(reading)

    def _close(self) -> None:
        self._answer = None
        self._reactor.removeReader(self)
        self._socket.close()


class _Stream(ClientFactory):
    """A connection for one question."""

    noisy = False

    def __init__(self, query: bytes, read: Read) -> None:
        self.query = query
        self.connector: IConnector | None = None
        self.answer: Deferred[Reading] = Deferred(lambda _: self._abort())
        self._read = read
        self._is_over = False
        self._protocol: _StreamProtocol | None = None

    def buildProtocol(self, address: IAddress | None) -> Protocol | None:
        if self._is_over:
            return None
        self._protocol = _StreamProtocol(self)
        return self._protocol

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        self.finish(ServerTrouble(f"TCP: {reason.getErrorMessage()}"))

    def clientConnectionLost(self, connector: IConnector, reason: Failure) -> None:
        self.finish(ServerTrouble("TCP: connection closed without an answer"))

    def received(self, packet: bytes) -> None:
        reading = self._read(packet)
        if isinstance(reading, Stray):
            reading = ServerTrouble(f"TCP: {reading.reason}")
        elif isinstance(reading, Truncated):
            reading = ServerTrouble("TCP: truncated answer")
        self.finish(reading)

    def finish(self, reading: Reading) -> None:
        if not self._is_over:
            self._abort()
            self.answer.callback(reading)

    def _abort(self) -> None:
        self._is_over = True
        if self._protocol is not None and ITCPTransport.providedBy(self._protocol.transport):
            self._protocol.transport.abortConnection()
        elif self.connector is not None:
            self.connector.disconnect()


class _StreamProtocol(Int16StringReceiver):
    """RFC 1035 4.2.2: each message after its length in two bytes."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def connectionMade(self) -> None:
        query = self._stream.query
        assert self.transport is not None
        self.transport.write(len(query).to_bytes(2, "big") + query)

    def stringReceived(self, packet: bytes) -> None:
        self._stream.received(packet)
