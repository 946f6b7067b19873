"""What tests over real loopback sockets share: a test case that connects to a scripted server and leaves nothing open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from relaycluster.mail.address import Address
from relaycluster.mail.envelope import BodyType, Envelope
from relaycluster.mail.outcome import Outcome
from relaycluster.net.outbound import (
    ConnectFailed,
    OutboundConnection,
    OutboundSettings,
    Target,
    Timeouts,
    connect,
)
from relaycluster.smtp.client_events import TLSPolicy, Transaction
from tests.net.scripted_server import ScriptedServer

SETTINGS = OutboundSettings("relay.example.net", timeouts=Timeouts(connect_seconds=5))
CONTENT = b"Subject: hello\r\n\r\n.dot\r\n.\r\n"


def transaction(
    *recipients: str,
    content: bytes | AsyncIterator[bytes] = CONTENT,
    size: int = 100,
    body: BodyType = BodyType.SEVEN_BIT,
    may_finish: Callable[[], bool] = lambda: True,
) -> Transaction:
    to = tuple(Address(each, "example.com") for each in recipients or ("b@example.com",))
    envelope = Envelope(Address("a@example.net", "example.net"), to, body)
    return Transaction(envelope, content, size, may_finish)


async def chunks(content: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


def turn() -> Deferred[None]:
    """The reactor's next turn."""
    done: Deferred[None] = Deferred()
    reactor.callLater(0, done.callback, None)  # type: ignore[attr-defined]
    return done


class LoopbackCase(TestCase):
    """Over real sockets on 127.0.0.1."""

    timeout = 20

    def setUp(self) -> None:
        self.connections: list[OutboundConnection] = []

    def listen(self, server: ScriptedServer) -> Target:
        port: Any = reactor.listenTCP(0, server, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(self._all_closed, server)
        self.addCleanup(port.stopListening)
        return Target("mx.example.com", "127.0.0.1", port.getHost().port, TLSPolicy.NONE)

    async def _all_gone(self, server: ScriptedServer) -> None:
        for connection in self.connections:
            if not connection.is_gone:
                gone: Deferred[object] = Deferred()
                connection.on_closed = gone.callback
                connection.abort()
                await gone
        for session in list(server.sessions):
            session.transport.abortConnection()
        while server.sessions:
            await turn()

    def _all_closed(self, server: ScriptedServer) -> Deferred[None]:
        return Deferred.fromCoroutine(self._all_gone(server))

    async def connected(self, server: ScriptedServer, settings: OutboundSettings = SETTINGS) -> OutboundConnection:
        connection = await connect(reactor, self.listen(server), settings)
        self.connections.append(connection)
        return connection

    async def outcomes(self, server: ScriptedServer, *recipients: str) -> tuple[Outcome, ...]:
        """Of one transaction with the server."""
        connection = await self.connected(server)
        return await connection.send(transaction(*recipients))

    async def connect_fails(self, server: ScriptedServer, settings: OutboundSettings = SETTINGS) -> ConnectFailed:
        try:
            self.connections.append(await connect(reactor, self.listen(server), settings))
        except ConnectFailed as failed:
            return failed
        raise AssertionError("connected")
