"""The history of an item: what was tried, where, how it ended, and what an operator did; packed small, one record after the other.

Records of many items stand behind each other in one value, so each names its item by the part of the id that its place does not tell
(`mark`). They are MessagePack arrays: a reader that is older skips what it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgpack
from attrs import frozen

from relaycluster.mail import queue_id

LONGEST_REPLY = 300
"""Of a remote reply so many characters are kept: what decides stands in front."""

_ATTEMPT, _ACT, _SPREAD = 1, 2, 3
_MARK_FROM = queue_id.TIME_LENGTH + queue_id.PARTITION_LENGTH

_pack = msgpack.Packer(use_bin_type=True, autoreset=True, unicode_errors="surrogateescape").pack


@frozen
class Via:
    """How a host was reached: its `host` name, the `address` and port, the TLS `version and cipher` (empty in clear), and the local
    `source` address (empty for the system's choice). The same for all attempts over one connection."""

    host: str = ""
    address: str = ""
    tls: str = ""
    source: str = ""


NOWHERE = Via()
"""No host was reached, or none was asked."""


@frozen
class Attempt:
    """One transaction, or a connection that could not be made. `at_ms` is queue time when it ended, `seconds` how long it took; `stage`
    is how far it came, `result` "delivered", "deferred" or "failed", `reply` what was said last. `recipients` are those whom it is
    about; empty for all that the item then had."""

    at_ms: int
    via: Via
    stage: str
    result: str
    reply: str
    seconds: float = 0.0
    recipients: tuple[str, ...] = ()


@frozen
class Act:
    """What an operator did: `verb`, to which item or domain (`subject`), `who`, and why. `domain` where its mail shall be tried now."""

    at_ms: int
    verb: str
    subject: str
    who: str
    reason: str = ""
    domain: str = ""


@frozen
class Spread:
    """A message for several domains became items: (number, partition, domain) of each."""

    at_ms: int
    parts: tuple[tuple[int, int, str], ...]


Record = Attempt | Act | Spread


def mark(identifier: str) -> str:
    """What names an item, or a message with all of its items, within one place."""
    return identifier[_MARK_FROM:]


def pack_attempt(identifier: str, attempt: Attempt) -> bytes:
    """An attempt for the item's history. It is done for each delivered message: 2 µs."""
    via = attempt.via
    packed: bytes = _pack(
        (
            identifier[_MARK_FROM:],
            _ATTEMPT,
            attempt.at_ms,
            via.host,
            via.address,
            via.tls,
            via.source,
            attempt.stage,
            attempt.result,
            attempt.reply[:LONGEST_REPLY],
            round(attempt.seconds * 1000),
            attempt.recipients,
        )
    )
    return packed


def pack_attempts(identifier: str, attempts: Sequence[Attempt]) -> bytes:
    """Several, in their order."""
    return b"".join([pack_attempt(identifier, attempt) for attempt in attempts])


def pack_act(identifier: str, act: Act) -> bytes:
    """An operator's act for the item's history; `identifier` is empty where it is about a domain."""
    packed: bytes = _pack(
        (mark(identifier), _ACT, act.at_ms, act.verb, act.subject, act.who, act.reason[:LONGEST_REPLY], act.domain)
    )
    return packed


def pack_spread(identifier: str, spread: Spread) -> bytes:
    """Where a message's items went."""
    packed: bytes = _pack((mark(identifier), _SPREAD, spread.at_ms, spread.parts))
    return packed


def unpack(data: bytes) -> Iterator[tuple[str, Record]]:
    """All records of a value with their marks; what is damaged ends it, what is unknown is left out."""
    unpacker = msgpack.Unpacker(use_list=False, unicode_errors="surrogateescape", max_buffer_size=max(1, len(data)))
    unpacker.feed(data)
    while True:
        try:
            values = unpacker.unpack()
            record = _record(values)
        except Exception:  # the end, too: whatever stands in Redis, a reader shows what it can
            return
        if record is not None:
            yield values[0], record


def _record(values: tuple[object, ...]) -> Record | None:
    fields: tuple[object, ...] = values[2:]
    if values[1] == _ATTEMPT:
        at_ms, host, address, tls, source, stage, result, reply, milliseconds, recipients = fields[:10]
        via = Via(host, address, tls, source)  # type: ignore[arg-type]
        return Attempt(at_ms, via, stage, result, reply, milliseconds / 1000, recipients)  # type: ignore[arg-type, operator]
    if values[1] == _ACT:
        return Act(*fields[:6])  # type: ignore[arg-type]
    if values[1] == _SPREAD:
        return Spread(*fields[:2])  # type: ignore[arg-type]
    return None


def of(identifier: str, data: bytes) -> Iterator[tuple[str, Record]]:
    """The records of an item, or of a message with all of its items; each with the item's id."""
    wanted, head = mark(identifier), identifier[:_MARK_FROM]
    for found, record in unpack(data):
        if found == wanted or (len(wanted) == queue_id.RANDOM_LENGTH and found.startswith(f"{wanted}-")):
            yield head + found, record
