"""What `doctor` asks of the node itself and of its Redis."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from relaycluster.cli.connection import connected
from relaycluster.cli.doctor.findings import Finding, failed, ok, skipped, warning
from relaycluster.config import Config
from relaycluster.interfaces import QueueUnavailable
from relaycluster.store.redis import checks
from relaycluster.store.redis.connection import LeanProtocol, RedisRefused

REDIS_SECONDS = 10.0
CLOCK_SECONDS = 2.0


def readiness(config: Config, timeout_seconds: float = 5.0) -> Finding:
    """What the node says of itself at /readyz."""
    listen = config.http.listen
    if listen is None:
        return skipped("http", "readyz", "http.listen is empty")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listen.port}/readyz"
    try:
        with urllib.request.urlopen(url, timeout=timeout_seconds) as response:
            return ok("http", "readyz", response.read(2000).decode("utf-8", "replace").strip() or "ready")
    except urllib.error.HTTPError as error:
        said = " ".join(error.read(2000).decode("utf-8", "replace").split())
        return failed("http", "readyz", f"{error.code}: {said}")
    except OSError as error:
        return failed("http", "readyz", f"{url}: {getattr(error, 'reason', error)}; does the node run on this machine?")


def redis(config: Config) -> list[Finding]:
    """Does the Redis of the configuration keep what the durability promises? To be called once in a process."""
    found: list[Finding] = []

    async def ask(reactor: Any) -> None:
        found.extend([finding async for finding in _ask_redis(config, reactor)])

    try:
        react(lambda reactor: Deferred.fromCoroutine(ask(reactor)))
    except SystemExit as end:
        if end.code:
            found.append(failed("redis", "connection", "the check itself broke off"))
    return found


async def _ask_redis(config: Config, reactor: Any) -> Any:
    info: dict[str, str] = {}
    difference: list[float] = []

    async def approve(protocol: LeanProtocol) -> None:
        await checks.approve(protocol, config.redis.durability)
        info.update(checks.parse_info(await protocol.request("INFO")))
        seconds, microseconds = await protocol.request("TIME")
        difference.append(int(seconds) + int(microseconds) / 1e6 - _wall_clock())

    try:
        connection = await connected(config, reactor, approve, REDIS_SECONDS)
    except QueueUnavailable as error:
        yield failed("redis", "connection", str(error))
        return
    except RedisRefused as error:
        yield failed("redis", "durability", str(error))
        return
    await connection.stop()
    for finding in judge(info, config, difference[0]):
        yield finding


def judge(info: Mapping[str, str], config: Config, ahead_seconds: float) -> Iterator[Finding]:
    """What INFO tells of an approved Redis. `ahead_seconds`: of its clock before ours."""
    version = ".".join(map(str, checks.version_of(info)))
    if config.redis.durability == "fsync":
        yield ok(
            "redis", "durability", f"Redis {version}: appendonly yes, appendfsync always, maxmemory-policy noeviction"
        )
    else:
        yield warning("redis", "durability", 'durability = "memory": what was answered 250 does not survive Redis')
    for key, what in (
        ("aof_last_write_status", "its last write to disk"),
        ("aof_last_bgrewrite_status", "its last rewrite"),
    ):
        if info.get(key, "ok") != "ok":
            yield failed("redis", "disk", f"{what} failed ({key}:{info[key]}): is the disk full?")
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not limit:
        yield warning("redis", "memory", f"{_mebibytes(used)} used, no maxmemory: a long queue takes the machine's")
    elif used > limit * config.redis.memory_watermark:
        yield failed(
            "redis", "memory", f"{_mebibytes(used)} of {_mebibytes(limit)}: above memory_watermark, new mail is put off"
        )
    else:
        yield ok("redis", "memory", f"{_mebibytes(used)} of {_mebibytes(limit)} used")
    if abs(ahead_seconds) > CLOCK_SECONDS:
        yield warning(
            "redis", "clock", f"Redis' clock is {ahead_seconds:+.1f} s from this machine's: does NTP run on both?"
        )
    else:
        yield ok("redis", "clock", "within 2 s of this machine's")


def _mebibytes(octets: int) -> str:
    return f"{octets / (1 << 20):,.0f} MiB"


def _wall_clock() -> float:
    # A command is where the outside world comes in: nothing passes it a clock.
    return time.time()  # noqa: TID251
