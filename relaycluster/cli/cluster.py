"""How a verb reaches the cluster: options that all verbs share, one connection to the queue's Redis, and an answer as table or JSON."""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import click
from attrs import field, frozen
from rich.console import Console
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from relaycluster import config
from relaycluster.cli.connection import connected
from relaycluster.config import Config
from relaycluster.interfaces import IMXResolver, IOperator, IQueue, ISuspensions, QueueError
from relaycluster.store.redis import keys
from relaycluster.store.redis.connection import LeanProtocol, RedisConnection, RedisRefused
from relaycluster.store.redis.membership import SCHEMA_VERSION
from relaycluster.store.redis.operator import RedisOperator
from relaycluster.store.redis.queue import QueueSettings, RedisQueue
from relaycluster.store.redis.suspensions import RedisSuspensions

CONNECT_SECONDS = 5.0

DONE, NOT_DONE, WRONG_USE, NO_QUEUE = 0, 1, 2, 3
"""Exit statuses: all was done; something was not; the command or the configuration is wrong; the queue can not be reached."""


@frozen
class Cluster:
    """What a verb works with. `who` names the operator in events; `reactor` is for timers and sockets of its own, `resolver` for DNS
    (None: one is made when it is needed)."""

    operator: IOperator
    suspensions: ISuspensions
    queue: IQueue
    config: Config
    who: str
    reactor: Any = None
    resolver: IMXResolver | None = None


@frozen
class Answer:
    """What a verb found: `json` as it is printed with --json, `show` prints it for a person, `status` is the exit status."""

    json: Any
    show: Callable[[Console], None]
    status: int = field(default=DONE)


class QueueVerb(click.Command):
    """A verb that works with a cluster; `body` is what it does with one."""

    body: Callable[..., Awaitable[Answer]]


def verb(name: str) -> Callable[[Callable[..., Awaitable[Answer]]], QueueVerb]:
    """Makes a coroutine function that takes a `Cluster` and its own options a command of this name."""

    def register(function: Callable[..., Awaitable[Answer]]) -> QueueVerb:
        @click.command(name, cls=QueueVerb, help=function.__doc__)
        @click.option(
            "--config",
            "path",
            metavar="FILE",
            envvar="RELAYCLUSTER_CONFIG",
            help="The configuration of a node of the cluster. Also in RELAYCLUSTER_CONFIG.",
        )
        @click.option("--redis", "url", metavar="URL", help="The queue's Redis, instead of the file's [redis] url.")
        @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
        @click.pass_context
        def command(
            context: click.Context, /, path: str | None, url: str | None, as_json: bool, **options: Any
        ) -> None:
            context.exit(_run(lambda cluster: function(cluster, **options), path, url, as_json))

        # The options of its own stand on the function, where click put them.
        command.body = function
        command.params[:0] = reversed(getattr(function, "__click_params__", []))
        return command

    return register


def _run(body: Callable[[Cluster], Awaitable[Answer]], path: str | None, url: str | None, as_json: bool) -> int:
    try:
        read = config.load(path, os.environ, {"redis.url": url} if url else {})
    except config.ConfigError as error:
        for line in error.lines:
            click.echo(line, err=True)
        return WRONG_USE
    found: list[Answer | Exception] = []

    async def main(reactor: Any) -> None:
        try:
            found.append(await _with_cluster(reactor, read, body))
        except (QueueError, OSError, click.ClickException, click.Abort) as error:
            found.append(error)

    try:
        react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
    except SystemExit as end:
        if end.code:
            return NOT_DONE  # what it was has been printed
    answer = found[0] if found else click.Abort()
    if isinstance(answer, click.ClickException | click.Abort):
        raise answer
    if isinstance(answer, Exception):
        click.echo(f"relaycluster: {answer}", err=True)
        return NO_QUEUE
    if as_json:
        click.echo(json.dumps(answer.json, ensure_ascii=True, indent=2))
    else:
        answer.show(Console(highlight=False, markup=False, emoji=False, soft_wrap=False))
    return answer.status


async def _with_cluster(reactor: Any, read: Config, body: Callable[[Cluster], Awaitable[Answer]]) -> Answer:
    partitions: list[int] = []

    async def approve(protocol: LeanProtocol) -> None:
        if read.redis.target.database:
            await protocol.request("SELECT", read.redis.target.database)
        version, number = await protocol.request("HMGET", keys.key(keys.CLUSTER, "SCHEMA"), "version", "partitions")
        if number is None:
            raise RedisRefused("there is no cluster in this Redis: no node has been started with it")
        if int(version) != SCHEMA_VERSION:
            raise RedisRefused(f"the queue has schema version {int(version)}, this command knows {SCHEMA_VERSION}")
        partitions.append(int(number))

    connection = await connected(read, reactor, approve, CONNECT_SECONDS)
    try:
        settings = QueueSettings(
            partitions[-1], int(read.redis.done_retention * 1000), traces=read.redis.trace_memory > 0
        )
        queue = RedisQueue(connection, settings, lambda: int(_wall_clock() * 1000))
        await _set_clock(connection, queue)
        operator = RedisOperator(connection, queue, settings.done_retention_ms)
        return await body(Cluster(operator, RedisSuspensions(connection, queue), queue, read, _who(), reactor))
    finally:
        await connection.stop()


async def _set_clock(connection: RedisConnection, queue: RedisQueue) -> None:
    """Queue time, as a beat would tell it."""
    offset = int(await connection.request("HGET", keys.key(keys.CLUSTER, "CLOCK"), "offset") or 0)
    seconds, microseconds = await connection.request("TIME")
    now = int(seconds) * 1000 + int(microseconds) // 1000
    queue.set_clock(offset, now + offset - int(_wall_clock() * 1000))


def _who() -> str:
    """The operator, as events and histories name them: behind sudo, who called it."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _wall_clock() -> float:
    # A command is where the outside world comes in: nothing passes it a clock.
    return time.time()  # noqa: TID251
