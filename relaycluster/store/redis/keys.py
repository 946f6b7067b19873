"""Every key name, in one place, for Python and for the scripts.

A key is a tag and a suffix. The tag in braces decides the slot in Redis Cluster: a partition, a limit, or the cluster.
The scripts get the tag as KEYS[1] and the suffixes below as Lua constants (see `scripts.py`).
"""

from __future__ import annotations

import hashlib
from functools import cache

from relaycluster.mail import queue_id

CLUSTER = b"{rc:cluster}"
ATTEMPTS = b"{rc:attempts}"
MEMBERSHIP_CHANNEL = b"rc:cluster"
WAKE_CHANNEL = b"rc:wake:"  # and the owner's incarnation

SUFFIXES = {
    "OWNER": b":owner",
    "INDEX": b":index",
    "DUE": b":due:",  # class ":" domain
    "LEASED": b":leased",
    "ITEM": b":item:",  # id
    "BODY": b":body:",  # id, or id ":" chunk
    "DONE": b":done:",  # slot
    "SPREAD": b":spread",
    "PARTS": b":parts:",  # id
    "HOMES": b":homes",
    "NOTICES": b":notices",
    "NOTES": b":notes",
    "HELD": b":held",
    "PAUSED": b":paused",
    "BACKLOG": b":backlog",
    "COUNTS": b":counts",
    "REPLIES": b":replies",
    "ACTS": b":acts",
    "BOUNCING": b":bouncing",
    "TRACE": b":trace:",  # slot, or id
    "TRACES": b":traces",
    "SCHEMA": b":schema",
    "CLOCK": b":clock",
    "MEMBERS": b":members",
    "BEATS": b":beats",
    "SUSPENDED": b":suspended",
    "RATE": b":rate",
    "SLOTS": b":slots",
    "WISHES": b":wishes",
    "TRIED": b":tried:",  # subject
}


DONE_SLOT_LENGTH = 7
"""Settled ids are kept together by so many characters of the id, which are its time in steps of 32.8 s: small hashes, which
Redis packs densely, and one look-up tells."""


@cache
def partition_tag(partition: int) -> bytes:
    """The hash tag of a partition: `{rc:0017}`."""
    return b"{rc:%04d}" % partition


def limit_tag(limit: str) -> bytes:
    """The hash tag of a limit."""
    return b"{rc:limit:%s}" % limit.encode().replace(b"}", b"%7D")


def subject_digest(subject: str) -> bytes:
    """A subject of `policy/backoff.py` in a key: short, whatever a client sent as its name, which now and then is a password."""
    return hashlib.blake2b(subject.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest().encode()


TRACE_BLOCK = 512
"""The octets of a key of history are counted in blocks of so many."""
TRACE_OVERHEAD = 320
"""What a key of history is counted besides: the key itself, its name, its place in `:traces`, and a quarter of a block."""


def trace_octets(length: int) -> int:
    """What a key of history is counted (lua/lib/trace.lua)."""
    return length // TRACE_BLOCK * TRACE_BLOCK + TRACE_OVERHEAD


def trace_name(identifier: str, attempts: int) -> bytes:
    """Where an item's history goes: that of a first attempt together with others of its time, in one key that many share; what comes
    later under the item's own name, so that it stays while the item does."""
    return identifier.encode() if attempts else identifier[:DONE_SLOT_LENGTH].encode()


def done_slot(identifier: str) -> bytes:
    """The slot that an id will be looked up in once it is settled."""
    return identifier[:DONE_SLOT_LENGTH].encode()


def done_field(identifier: str) -> bytes:
    """An id within its slot: its random part, and the item's number."""
    return identifier[queue_id.TIME_LENGTH + queue_id.PARTITION_LENGTH :].encode()


def key(tag: bytes, name: str, rest: bytes = b"") -> bytes:
    """The key `name` of SUFFIXES under a tag."""
    return tag + SUFFIXES[name] + rest
