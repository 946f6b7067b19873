"""A command's own connection to the queue's Redis: made once, or refused with one line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, TimeoutError
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint

from relaycluster.config import Config
from relaycluster.interfaces import QueueUnavailable
from relaycluster.store.redis.connection import Credentials, LeanProtocol, RedisConnection, RedisRefused


async def connected(
    read: Config, reactor: Any, approve: Callable[[LeanProtocol], Awaitable[None]], timeout_seconds: float
) -> RedisConnection:
    """A connection that `approve` has accepted; whoever asked for it stops it. Raises `QueueUnavailable`, or `RedisRefused` with what
    Redis or `approve` had against it."""
    endpoint, where = _endpoint_of(read, reactor)
    if endpoint is None:
        raise QueueUnavailable(where)
    target = read.redis.target
    connection = RedisConnection(reactor, endpoint, Credentials(target.username, target.password), approve)
    refusals: list[str] = []
    ready = connection.when_ready()

    def refused(reason: str) -> None:
        refusals.append(reason)
        ready.cancel()

    connection.on_refused = refused
    ready.addTimeout(timeout_seconds, reactor)
    connection.start()
    try:
        await ready
    except (CancelledError, TimeoutError):
        why = connection.refusal
        await connection.stop()
        if refusals:
            raise RedisRefused(f"{where}: {refusals[0]}") from None
        raise QueueUnavailable(f"no Redis answers at {where} ({why})") from None
    return connection


def _endpoint_of(read: Config, reactor: Any) -> tuple[IStreamClientEndpoint | None, str]:
    """Where the queue's Redis is, and its name; without an endpoint the reason."""
    target = read.redis.target
    if target.kind == "tcp":
        endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, target.host, target.port, timeout=5)
        if target.tls:
            from relaycluster.app.settings import tls_for

            endpoint = wrapClientTLS(tls_for(target.host, target.ca_file), endpoint)
        return endpoint, f"{target.host}:{target.port}"
    path = target.path
    if target.kind == "embedded":
        written = Path(read.node.state_dir) / "redis" / "redis.conf"
        try:
            lines = [line.split(" ", 1) for line in written.read_text("utf-8").splitlines() if " " in line]
        except OSError as error:
            return None, f"{written}: {error.strerror}; has the node ever run, and may this user read it?"
        path = dict(lines).get("unixsocket", "")
    return UNIXClientEndpoint(reactor, path), path
