"""The scripts as files: each says what it is, and those that empty the queue begin with a command that a full Redis allows."""

from __future__ import annotations

import hashlib
import re

import pytest

from relaycluster.store.redis import keys, scripts

GROWS = {"enqueue": "SET", "enqueue_spread": "HSETNX", "found": "HSETNX"}
ONLY_READS = {"attempt_wait", "share"}
FREES = {"DEL", "HDEL", "ZREM", "SREM"}
READS = {
    "LINDEX",
    "LLEN",
    "ZCARD",
    "GET",
    "HGET",
    "HMGET",
    "HGETALL",
    "EXISTS",
    "HEXISTS",
    "HLEN",
    "SCARD",
    "STRLEN",
    "TIME",
    "ZRANGE",
    "ZRANGEBYSCORE",
    "ZSCORE",
}
_STEP = re.compile(r"redis\.call\('([A-Z]+)'|\b([a-z_]+)\(")


def _functions() -> dict[str, str]:
    """The bodies of lua/lib's functions."""
    found: dict[str, str] = {}
    for path in (
        *("back", "clock", "dead", "item", "lease", "now", "operator", "settle", "take", "trace", "tried"),
        *("waiting", "wake"),
    ):
        text = scripts._read(f"lib/{path}.lua")
        for each in re.finditer(r"local function (\w+)\(.*?\)(.*?)(?=^local function|\Z)", text, re.S | re.M):
            found[each[1]] = each[2]
    return found


def _writes(text: str, functions: dict[str, str]) -> list[str]:
    """The writing commands of a text in the order in which they stand, functions put in their places."""
    found: list[str] = []
    for step in _STEP.finditer(re.sub(r"--.*", "", text)):
        if step[1]:
            found += [step[1]] if step[1] not in READS else []
        elif step[2] in functions:
            found += _writes(functions[step[2]], functions)
    return found


@pytest.mark.parametrize("name", scripts.names())
def test_header(name: str) -> None:
    """A script opens with its name and purpose, its KEYS, ARGV, result and first write."""
    lines = scripts._read(f"{name}.lua").splitlines()
    head = lines[: next(n for n, line in enumerate(lines) if not line.startswith("--"))]
    assert head[0].startswith(f"-- {name}: ")
    for field in ("KEYS: 1 ", "ARGV: ", "Result: ", "First write: "):
        assert any(line.startswith(f"-- {field}") for line in head), field


@pytest.mark.parametrize("name", scripts.names())
def test_first_write(name: str) -> None:
    """What the header says is so; only intake and the founding begin with a command that a full Redis refuses."""
    text = scripts._read(f"{name}.lua")
    said = re.search(r"^-- First write: (.*)$", text, re.M)
    assert said is not None
    writes = _writes(text, _functions())
    assert bool(writes) == (name not in ONLY_READS)
    if name in ONLY_READS:
        assert said[1].startswith("none")
        return
    first = writes[0]
    assert first in re.findall(r"[A-Z]{3,}", said[1])
    if name in GROWS:
        assert first == GROWS[name]
    else:
        assert first in FREES


@pytest.mark.parametrize("name", scripts.names())
def test_source(name: str) -> None:
    """The digest is Redis' own; every constant is defined, and every function that is used comes along."""
    made = scripts.script(name)
    assert made.digest == hashlib.sha1(made.source).hexdigest().encode()
    text = made.source.decode()
    for word in set(re.findall(r"K \.\. ([A-Z]+)", text)):
        assert f"local {word}='{keys.SUFFIXES[word].decode()}'" in text
    for function in _functions():
        if re.search(rf"\b{function}\(", re.sub(r"--.*", "", text)):
            assert f"local function {function}(" in text, function


def test_one_tag() -> None:
    """Every key that a script touches begins with its one tag: so it runs on Redis Cluster."""
    for name in scripts.names():
        text = re.sub(r"--.*", "", scripts.script(name).source.decode())
        for command, argument in re.findall(r"redis\.call\('([A-Z]+)'(?:, ([^,)]+))?", text):
            if command not in ("TIME", "PUBLISH"):
                assert argument == "K" or argument.startswith("K ..") or argument == "due_key", (
                    name,
                    command,
                    argument,
                )


def test_keys() -> None:
    """One braces' tag in each key; a limit's name cannot close it early; suffixes do not collide."""
    for tag in (keys.CLUSTER, keys.partition_tag(17), keys.limit_tag("a}b{c")):
        for suffix in keys.SUFFIXES:
            key = keys.key(tag, suffix, b"rest")
            assert (key[:1], key.index(b"}")) == (b"{", len(tag) - 1)
    assert keys.partition_tag(17) == b"{rc:0017}"
    assert len(set(keys.SUFFIXES.values())) == len(keys.SUFFIXES)
    assert keys.limit_tag("a") != keys.limit_tag("b")
