"""Is this Redis what the queue needs? Asked of each fresh connection, before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relaycluster.interfaces import QueueError
from relaycluster.store.redis.connection import LeanProtocol, RedisRefused
from relaycluster.store.redis.scripts import names, script

OLDEST = (6, 2)

WANTED = {
    "appendonly": ("yes", "every acknowledged message must be in the append-only file"),
    "appendfsync": ("always", "a 250 is a promise that the message is on disk"),
    "no-appendfsync-on-rewrite": ("no", "the promise also holds while the file is rewritten"),
}


def parse_info(data: bytes) -> Mapping[str, str]:
    """INFO's lines as a mapping."""
    lines = (line.partition(":") for line in data.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def version_of(info: Mapping[str, str]) -> tuple[int, ...]:
    """The server's version, Valkey's as the Redis version that it speaks."""
    return tuple(int(part) for part in info.get("redis_version", "0").split(".") if part.isdigit())


async def approve(protocol: LeanProtocol, durability: str) -> None:
    """Raise `RedisRefused`, with the setting and its fix, unless this server keeps what it acknowledges; then load the scripts."""
    info = parse_info(await protocol.request("INFO"))
    if info.get("loading") == "1":
        raise RedisRefused("Redis is loading its data")
    if version_of(info) < OLDEST:
        raise RedisRefused(f"Redis {info.get('redis_version')} is too old: 6.2 is the oldest that works")
    if info.get("role", "master") != "master":
        raise RedisRefused("this Redis is a replica: set [redis] url to the primary")
    if info.get("cluster_enabled") == "1":
        raise RedisRefused("this Redis runs in cluster mode, which is not available yet: use a single primary")
    await _approve_policy(protocol, info)
    if durability == "fsync":
        for name, (value, why) in WANTED.items():
            found = await _setting(protocol, name)
            if found != value:
                raise RedisRefused(
                    f'Redis has {name} {found}, [redis] durability = "fsync" needs {value} ({why}): CONFIG SET {name} {value}'
                )
    for name in names():
        await protocol.request("SCRIPT", "LOAD", script(name).source)


async def _approve_policy(protocol: LeanProtocol, info: Mapping[str, str]) -> None:
    policy = info.get("maxmemory_policy") or await _setting(protocol, "maxmemory-policy")
    if policy != "noeviction":
        raise RedisRefused(
            f"Redis has maxmemory-policy {policy}, which deletes queued mail when memory runs out: "
            "CONFIG SET maxmemory-policy noeviction"
        )


async def _setting(protocol: LeanProtocol, name: str) -> str:
    try:
        answer: list[Any] = await protocol.request("CONFIG", "GET", name)
    except QueueError as error:
        raise RedisRefused(f"cannot see Redis' setting {name} ({error}): allow this user CONFIG GET") from None
    return answer[1].decode() if len(answer) > 1 else ""
