"""One pipelined connection to Redis that comes back by itself, and never leaves a caller waiting.

txredisapi's protocol brings the reply reader; what was measured to be slow or unsafe in it (facts in
docs/decisions/0003-redis-client.md) is replaced here: a command costs one Deferred, everything pending has one deadline, a command
given while there is no connection fails at once, and a connection is usable only after it was authenticated and approved.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import hiredis
import txredisapi
from attrs import frozen
from twisted.application.internet import ClientService, backoffPolicy
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IProtocol, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from relaycluster.interfaces import QueueError, QueueFull, QueueUnavailable
from relaycluster.store.redis.scripts import Script

Argument = bytes | str | int | float
Reply = Any  # bytes, int, None, a list of these, or a QueueError inside of a list


def pack(*arguments: Argument) -> bytes:
    """A command as it goes over the wire, for `request_all`."""
    return _pack_command(arguments)


_pack_command: Callable[[tuple[Argument, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]

REPLY_TIMEOUT_SECONDS = 10.0
MOST_RETRY_SECONDS = 1.0


Pending = deque[tuple[Any, float, str]]
"""Requests without an answer: who waits, since when, for which operation."""


class RedisRefused(QueueError):
    """Redis answered, but it is not what the queue needs: the text names the setting and the fix."""


class ScriptMissing(QueueError):
    """NOSCRIPT: Redis lost its script cache."""


def _error(text: str) -> QueueError:
    """Redis' error reply as what it means to the queue."""
    if text.startswith("OOM") or "command not allowed when used memory" in text:
        return QueueFull(text)
    if text.startswith("NOSCRIPT"):
        return ScriptMissing(text)
    return QueueUnavailable(text)


@frozen
class Credentials:
    """ACL user (empty: the default user) and password."""

    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r})"


class _Gathered:
    """Stands in for the Deferreds of many requests: one list of their replies, for one Deferred."""

    __slots__ = ("_count", "_replies", "_result")

    def __init__(self, count: int, result: Deferred[list[Reply]]) -> None:
        self._count = count
        self._replies: list[Reply] = []
        self._result = result

    def callback(self, reply: Reply) -> None:
        self._replies.append(reply)
        if len(self._replies) == self._count and not self._result.called:
            self._result.callback(self._replies)

    def errback(self, failure: Failure) -> None:
        self._replies.append(None)
        if not self._result.called:
            self._result.errback(failure)


class LeanProtocol(txredisapi.RedisProtocol):  # type: ignore[misc]
    """Requests go out as they come, replies come in the same order."""

    factory: LeanFactory

    def __init__(self, clock: IReactorTime) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self._reader = hiredis.Reader(protocolError=QueueUnavailable, replyError=_error)
        self._clock = clock
        self._pending: Pending = deque()
        self._deadline: IDelayedCall | None = None
        self._closed = False

    def connectionMade(self) -> None:
        transport = self.transport
        if hasattr(transport, "setTcpNoDelay"):
            transport.setTcpNoDelay(True)
        self._deadline = self._clock.callLater(1.0, self._check_deadline)
        self.factory.made(self)

    def request(self, *arguments: Argument, operation: str = "other") -> Deferred[Reply]:
        """Send one command; the Deferred fires with the reply, or fails with a `QueueError`. `operation` names it for the metrics."""
        if self._closed:
            return fail(QueueUnavailable("the connection to Redis was lost"))
        data = _pack_command(arguments)
        result: Deferred[Reply] = Deferred()
        self._pending.append((result, self._clock.seconds(), operation))
        self.transport.write(data)
        return result

    def request_all(self, data: bytes, count: int, operation: str) -> Deferred[list[Reply]]:
        """Send `count` commands that are packed already; fires with all replies, or fails with the first error."""
        if self._closed:
            return fail(QueueUnavailable("the connection to Redis was lost"))
        result: Deferred[list[Reply]] = Deferred()
        if not count:
            result.callback([])
            return result
        self._pending.extend([(_Gathered(count, result), self._clock.seconds(), operation)] * count)
        self.transport.write(data)
        return result

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        reader = self._reader
        reader.feed(data)
        pending = self._pending
        try:
            reply = reader.gets()
            while reply is not False:
                self._answer(pending, reply)
                reply = reader.gets()
        except QueueUnavailable:  # the stream is not RESP
            self.transport.abortConnection()

    def _answer(self, pending: Pending, reply: Reply) -> None:
        result, sent, operation = pending.popleft()
        self.factory.observe(operation, self._clock.seconds() - sent)
        if isinstance(reply, Exception):
            self.factory.failed(reply)
            if str(reply).startswith("READONLY"):
                self.transport.abortConnection()  # it was demoted: connect anew, and look whether it is a primary
            result.errback(Failure(reply))
        else:
            result.callback(reply)

    def _check_deadline(self) -> None:
        """One timer for all: only the oldest request can be late."""
        self._deadline = self._clock.callLater(1.0, self._check_deadline)
        if self._pending and self._clock.seconds() - self._pending[0][1] > REPLY_TIMEOUT_SECONDS:
            self.transport.abortConnection()

    def connectionLost(self, why: Failure) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        # First nobody may use it any more: who hears of the loss may ask again at once.
        self._closed = True
        self.factory.lost(self)
        pending, self._pending = self._pending, deque()
        for result, _, _ in pending:
            result.errback(Failure(QueueUnavailable("the connection to Redis was lost")))


class SubscribedProtocol(LeanProtocol):
    """A connection that listens: pushes go to the factory's `on_message`, the rest are replies."""

    def _answer(self, pending: Pending, reply: Reply) -> None:
        if isinstance(reply, list) and reply and reply[0] == b"message":
            self.factory.on_message(reply[1], reply[2])
        elif pending:
            super()._answer(pending, reply)


class LeanFactory(Factory):
    """Makes the protocol, and hears of its beginning and its end."""

    noisy = False

    def __init__(
        self,
        protocol: type[LeanProtocol],
        clock: IReactorTime,
        made: Callable[[LeanProtocol], None],
        lost: Callable[[LeanProtocol], None],
    ) -> None:
        self._protocol = protocol
        self._clock = clock
        self.made = made
        self.lost = lost
        self.observe: Callable[[str, float], None] = lambda _operation, _seconds: None
        self.failed: Callable[[Exception], None] = lambda _error: None
        self.on_message: Callable[[bytes, bytes], None] = lambda _channel, _message: None

    def buildProtocol(self, addr: object) -> LeanProtocol:
        protocol = self._protocol(self._clock)
        protocol.factory = self
        return protocol


@implementer(IStreamClientEndpoint)
class _Telling:
    """An endpoint that tells why there is no connection: `ClientService` keeps it to itself."""

    def __init__(self, endpoint: IStreamClientEndpoint, tell: Callable[[BaseException | None], None]) -> None:
        self._endpoint = endpoint
        self._tell = tell

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        def told(failure: Failure) -> Failure:
            self._tell(failure.value)
            return failure

        return self._endpoint.connect(protocolFactory).addErrback(told)


Approve = Callable[[LeanProtocol], Awaitable[None]]


class RedisConnection:
    """A connection that is kept up. `approve` may run commands on a fresh one and refuse it with `RedisRefused`.

    `on_ready`, `on_lost` and `on_refused(reason)` tell of changes; each is called once a change.
    """

    def __init__(
        self,
        clock: IReactorTime,
        endpoint: IStreamClientEndpoint,
        credentials: Credentials,
        approve: Approve,
        protocol: type[LeanProtocol] = LeanProtocol,
    ) -> None:
        self._credentials = credentials
        self._approve = approve
        self._usable: LeanProtocol | None = None
        self._refusals = 0  # in a row: ClientService forgets its own count with each connection that is made
        self._waiting: list[Deferred[None]] = []
        self.factory = LeanFactory(protocol, clock, self._made, self._connection_lost)
        backoff = backoffPolicy(initialDelay=0.1, maxDelay=MOST_RETRY_SECONDS, factor=1.5)
        self._service = ClientService(
            _Telling(endpoint, self._not_connected),
            self.factory,
            retryPolicy=lambda attempt: backoff(max(attempt, self._refusals)),
            clock=clock,
        )
        self.refusal = "there is no connection to Redis yet"
        self.on_ready: Callable[[], None] = lambda: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_refused: Callable[[str], None] = lambda _reason: None

    @property
    def ready(self) -> bool:
        """Whether commands can be given now."""
        return self._usable is not None

    def start(self) -> None:
        """Begin to connect, and reconnect whenever the connection goes."""
        self._service.startService()

    def stop(self) -> Deferred[None]:
        """Close for good."""
        self._usable = None
        done: Deferred[None] = self._service.stopService()
        return done

    def when_ready(self) -> Deferred[None]:
        """Fires once there is an approved connection."""
        if self._usable is not None:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    async def _prepare(self, protocol: LeanProtocol) -> None:
        if self._credentials.password:
            user = [self._credentials.username] if self._credentials.username else []
            try:
                await protocol.request("AUTH", *user, self._credentials.password)
            except QueueError as error:
                raise RedisRefused(
                    f"Redis refused the user or the password ({error}): set [redis] url or password_file"
                ) from None
        try:
            await self._approve(protocol)
        except QueueError as error:
            if str(error).startswith("NOAUTH"):
                raise RedisRefused("Redis asks for a password: set [redis] url with a user, or password_file") from None
            raise

    def _not_connected(self, error: BaseException | None) -> None:
        number = getattr(error, "osError", None)
        self.refusal = os.strerror(number) if isinstance(number, int) else str(error)

    def _made(self, protocol: LeanProtocol) -> None:
        """There is a connection; it is used once it was authenticated and approved."""

        def usable(_: None) -> None:
            self._usable = protocol
            self._refusals = 0
            self.refusal = ""
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)
            self.on_ready()

        def refused(failure: Failure) -> None:
            self._refusals += 1
            reason = str(failure.value)
            if reason != self.refusal:
                self.refusal = reason
                if failure.check(RedisRefused):
                    self.on_refused(reason)
            protocol.transport.abortConnection()

        Deferred.fromCoroutine(self._prepare(protocol)).addCallbacks(usable, refused)

    def _connection_lost(self, protocol: LeanProtocol) -> None:
        if self._usable is protocol:
            self._usable = None
            self.refusal = "the connection to Redis was lost"
            self.on_lost()

    def request(self, *arguments: Argument) -> Deferred[Reply]:
        """One command. Fails at once with `QueueUnavailable` while there is no connection."""
        if self._usable is None:
            return fail(QueueUnavailable(self.refusal))
        return self._usable.request(*arguments)

    def request_all(self, commands: Sequence[bytes], operation: str) -> Deferred[list[Reply]]:
        """Many commands, each made by `pack`; fires with all replies, or fails with the first error."""
        if self._usable is None:
            return fail(QueueUnavailable(self.refusal))
        return self._usable.request_all(b"".join(commands), len(commands), operation)

    def run(self, script: Script, tag: bytes, *arguments: Argument) -> Deferred[Reply]:
        """One transition on the keys of a tag."""
        usable = self._usable
        if usable is None:
            return fail(QueueUnavailable(self.refusal))
        result = usable.request(b"EVALSHA", script.digest, 1, tag, *arguments, operation=script.name)
        return result.addErrback(self._load_and_run, script, tag, arguments)

    def _load_and_run(self, failure: Failure, script: Script, tag: bytes, arguments: Sequence[Argument]) -> Any:
        failure.trap(ScriptMissing)
        return self.request(b"EVAL", script.source, 1, tag, *arguments)
