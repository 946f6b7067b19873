"""The connection to Redis: nobody waits for ever, nobody gets another's reply, and only a Redis that keeps its word is used."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from relaycluster.interfaces import QueueFull, QueueUnavailable
from relaycluster.store.redis import checks, keys
from relaycluster.store.redis.connection import (
    REPLY_TIMEOUT_SECONDS,
    Credentials,
    LeanFactory,
    LeanProtocol,
    RedisConnection,
)
from relaycluster.store.redis.scripts import script
from tests.contract.servers import server_for


class LeanProtocolTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.lost: list[LeanProtocol] = []
        factory = LeanFactory(LeanProtocol, self.clock, lambda _: None, self.lost.append)
        self.protocol = factory.buildProtocol(None)
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)

    def test_replies_come_in_order_however_they_are_cut(self) -> None:
        """Three requests, their replies octet by octet."""
        asked = [self.protocol.request("GET", str(n)) for n in range(3)]
        for octet in b"$1\r\na\r\n:7\r\n*2\r\n$-1\r\n+OK\r\n":
            self.protocol.dataReceived(bytes([octet]))
        self.assertEqual([self.successResultOf(each) for each in asked], [b"a", 7, [None, b"OK"]])

    def test_arguments_that_cannot_be_packed_shift_nothing(self) -> None:
        """The caller hears of it, nothing is sent, and the next reply is the next one's."""
        first = self.protocol.request("GET", "a")
        before = self.transport.value()
        self.assertRaises(TypeError, self.protocol.request, "GET", object())
        self.assertEqual(self.transport.value(), before)
        second = self.protocol.request("GET", "b")
        self.protocol.dataReceived(b"+one\r\n+two\r\n")
        self.assertEqual([self.successResultOf(each) for each in (first, second)], [b"one", b"two"])

    def test_errors_have_their_meaning(self) -> None:
        """Full is full, everything else is no answer; the connection goes on."""
        asked = [self.protocol.request("SET", "a", "b") for _ in range(3)]
        self.protocol.dataReceived(
            b"-OOM command not allowed when used memory > 'maxmemory'.\r\n-LOADING Redis is loading\r\n+OK\r\n"
        )
        self.failureResultOf(asked[0], QueueFull)
        self.failureResultOf(asked[1], QueueUnavailable)
        self.assertEqual(self.successResultOf(asked[2]), b"OK")

    def test_the_deadline(self) -> None:
        """A Redis that is silent is cut off; one that answers now and then is not."""
        asked = self.protocol.request("PING")
        self.clock.pump([1.0] * int(REPLY_TIMEOUT_SECONDS))
        self.protocol.dataReceived(b"+PONG\r\n")
        self.successResultOf(asked)
        self.clock.pump([1.0] * 30)
        self.assertFalse(self.transport.disconnected)
        self.protocol.request("PING").addErrback(lambda _: None)
        self.clock.pump([1.0] * int(REPLY_TIMEOUT_SECONDS + 2))
        self.assertTrue(self.transport.disconnected)

    def test_the_end(self) -> None:
        """Everybody who waits hears of it, no timer is left, and who asks from then on hears it at once."""
        from twisted.internet.error import ConnectionLost
        from twisted.python.failure import Failure

        asked = [self.protocol.request("PING") for _ in range(3)]
        again: list[Any] = []
        asked[0].addErrback(lambda failure: again.append(self.protocol.request("PING")) or failure)
        self.protocol.connectionLost(Failure(ConnectionLost()))
        for each in [*asked, *again]:
            self.failureResultOf(each, QueueUnavailable)
        self.assertEqual((self.lost, self.clock.getDelayedCalls()), ([self.protocol], []))

    def test_not_redis(self) -> None:
        """What does not speak the protocol is cut off."""
        self.protocol.dataReceived(b"220 mx.example ESMTP\r\n")
        self.assertTrue(self.transport.disconnected)

    def test_the_password_is_not_shown(self) -> None:
        """Not in a representation, and so in no log."""
        self.assertNotIn("secret", repr(Credentials("user", "secret")))


class RedisConnectionTest(TestCase):
    """Over a real server."""

    timeout = 30

    def connection(self, durability: str = "fsync") -> RedisConnection:
        path = server_for(7) or server_for(6)
        if path is None:
            raise SkipTest("no Redis server on this machine")

        async def approve(protocol: Any) -> None:
            await checks.approve(protocol, durability)

        made = RedisConnection(reactor, UNIXClientEndpoint(reactor, path), Credentials(), approve)
        self.addCleanup(made.stop)
        return made

    def test_without_a_connection(self) -> Any:
        """A command fails at once: the caller decides what to do meanwhile."""
        redis = self.connection()
        self.failureResultOf(redis.request("PING"), QueueUnavailable)
        self.failureResultOf(redis.run(script("disown"), b"{t}", "1:1"), QueueUnavailable)

    async def test_scripts_that_redis_forgot(self) -> None:
        """After SCRIPT FLUSH the transition runs all the same."""
        redis = self.connection()
        redis.start()
        await redis.when_ready()
        await redis.request("FLUSHALL")
        tag = keys.partition_tag(1)
        await redis.request("SCRIPT", "FLUSH")
        self.assertEqual(await redis.run(script("acquire"), tag, 1, 5, b",1,"), 1)
        self.assertEqual(await redis.run(script("acquire"), tag, 2, 5, b",1,2,"), 0)

    async def test_it_comes_back(self) -> None:
        """The server drops us: what is asked then fails, and soon there is a connection again."""
        redis = self.connection()
        lost: Deferred[None] = Deferred()
        redis.on_lost = lambda: lost.callback(None)
        redis.start()
        await redis.when_ready()
        redis.request("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no").addErrback(lambda _: None)
        await lost
        await self.assertFailure(redis.request("PING"), QueueUnavailable)
        await redis.when_ready()
        self.assertEqual(await redis.request("PING"), b"PONG")

    async def test_a_redis_that_may_lose_mail_is_refused(self) -> None:
        """Each setting that breaks the promise is named with its fix; nothing can be asked meanwhile; when it is mended the
        connection is used."""
        admin = self.connection()
        admin.start()
        await admin.when_ready()
        for name, wrong, right in (
            ("appendfsync", "everysec", "always"),
            ("no-appendfsync-on-rewrite", "yes", "no"),
            ("maxmemory-policy", "allkeys-lru", "noeviction"),
        ):
            await admin.request("CONFIG", "SET", name, wrong)
            try:
                redis = self.connection()
                refused: Deferred[str] = Deferred()
                redis.on_refused = lambda reason, refused=refused: refused.callback(reason)  # type: ignore[misc]
                redis.start()
                reason = await refused
                self.assertIn(f"CONFIG SET {name} {right}", reason)
                self.assertNotIn("\n", reason)
                self.assertFalse(redis.ready)
            finally:
                await admin.request("CONFIG", "SET", name, right)
            await redis.when_ready()

    async def test_a_wrong_password(self) -> None:
        """One line that says where the password is set."""
        redis = self.connection()
        redis._credentials = Credentials("nobody", "wrong")
        refused: Deferred[str] = Deferred()
        redis.on_refused = refused.callback
        redis.start()
        self.assertIn("password", await refused)

    async def test_no_password(self) -> None:
        """The same for a Redis that wants one and was given none, whatever the first command is."""
        admin = self.connection()
        admin.start()
        await admin.when_ready()
        await admin.request("CONFIG", "SET", "requirepass", "secret")
        try:
            for approve in (lambda protocol: protocol.request("GET", "x"), lambda each: checks.approve(each, "none")):
                redis = self.connection()
                redis._approve = approve
                refused: Deferred[str] = Deferred()
                redis.on_refused = refused.callback
                redis.start()
                self.assertIn("Redis asks for a password", await refused)
                await redis.stop()
        finally:
            await admin.request("CONFIG", "SET", "requirepass", "")

    async def test_why_there_is_no_connection(self) -> None:
        """Who asks meanwhile hears what the system said."""
        redis = RedisConnection(reactor, UNIXClientEndpoint(reactor, "/no/such/socket"), Credentials(), checks.approve)  # type: ignore[arg-type]
        redis.start()
        await self.assertFailure(redis._service.whenConnected(failAfterFailures=1), ConnectError)
        await deferLater(reactor, 0)  # type: ignore[arg-type]  # out of the service's own call
        error = await self.assertFailure(redis.request("PING"), QueueUnavailable)
        self.assertIn("No such file or directory", str(error))
        await redis.stop()


def test_versions() -> None:
    """Older than 6.2 is refused; what is newer, or Valkey's, is not."""
    for shown, fits in (("6.0.16", False), ("6.2.14", True), ("7.2.4", True), ("8.0", True), ("", False)):
        assert (checks.version_of({"redis_version": shown}) >= checks.OLDEST) is fits
