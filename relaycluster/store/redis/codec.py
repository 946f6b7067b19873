"""Packed, versioned values: items, spread records, notices, members and contents, as bytes that live in Redis.

An item opens with a head that the scripts read (lua/lib/item.lua): version, flags, holder deaths, class, length of the
domain, the domain, and the content's size in four octets. Behind it stands everything else as one MessagePack array: ten
values, and an eleventh with what the sender asked for (DSN) when that is anything. A reader takes the values that it knows, so a release
that is older than the last of them delivers the mail without it. A version that is not known is refused: a node that is too old
must not guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import zstandard
from attrs import evolve

from relaycluster.interfaces import QueueError
from relaycluster.mail import queue_id
from relaycluster.mail.address import NULL, Address
from relaycluster.mail.envelope import NO_REQUESTS, BodyType, Envelope, MessageClass, Notify, NotifyRequest, Ret
from relaycluster.mail.item import Item, Notice
from relaycluster.policy.cluster import Member

VERSION = 1
POSSIBLE_DUPLICATE = 1
DELAY_NOTIFIED = 2

_CLASSES = {message_class.value: message_class for message_class in MessageClass}
_EIGHT_BIT, _SMTPUTF8 = 1, 2
_NOTIFY_BITS = {Notify.SUCCESS: 1, Notify.FAILURE: 2, Notify.DELAY: 4}

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
_compressor = zstandard.ZstdCompressor(level=1)
_decompressor = zstandard.ZstdDecompressor()

RAW, ZSTD = b"0", b"z"
WORTH_COMPRESSING = 1024
"""Smaller contents stay as they are: they gain less than a key's overhead."""
WORTH_AT_ONCE = 16 * 1024
"""Most mail lives for milliseconds: what is smaller than this is compressed when it has to wait, at its first deferral. It costs 50 µs
for 10 KiB, a tenth of accepting it."""
MOST_KEPT = 0.9
"""Compressed only when it saves a tenth: else reading it back costs time for nothing."""


class UnknownVersion(QueueError):
    """A value was written by a newer release."""


def pack_item(item: Item) -> bytes:
    """An item as bytes."""
    domain = item.domain.encode("ascii")
    envelope = item.envelope
    flags = item.possible_duplicate * POSSIBLE_DUPLICATE | item.delay_notified * DELAY_NOTIFIED
    head = bytes((VERSION, flags, item.holder_deaths, item.message_class.value, len(domain)))
    kinds = (envelope.body is BodyType.EIGHT_BIT) * _EIGHT_BIT | envelope.smtputf8 * _SMTPUTF8
    rest: tuple[Any, ...] = (
        item.id,
        envelope.reverse_path.text,
        envelope.reverse_path.domain,
        [recipient.text for recipient in envelope.recipients],
        kinds,
        item.arrived_ms,
        item.attempts,
        item.last_reply,
        item.chunks,
        item.home,
    )
    if envelope.requests or envelope.envelope_id or envelope.ret is not None:
        rest += _wishes(envelope)
    packed: bytes = _pack(rest)
    return b"%s%s%s%s" % (head, domain, item.size.to_bytes(4, "big"), packed)


def unpack_item(data: bytes) -> Item:
    """The item that `pack_item` wrote; flags and deaths as the scripts left them. Raises `UnknownVersion`."""
    if data[0] != VERSION:
        raise UnknownVersion(
            f"a queued item has format version {data[0]}, this release reads {VERSION}: upgrade this node"
        )
    end = 5 + data[4]
    domain = data[5:end].decode("ascii")
    rest = msgpack.unpackb(data[end + 4 :])
    identifier, sender, sender_domain, recipients, kinds, arrived_ms, attempts, last_reply, chunks, home = rest[:10]
    flags = data[1]
    envelope = Envelope(
        reverse_path=Address(sender, sender_domain) if sender else NULL,
        recipients=tuple([Address(text, domain) for text in recipients]),
        body=BodyType.EIGHT_BIT if kinds & _EIGHT_BIT else BodyType.SEVEN_BIT,
        smtputf8=bool(kinds & _SMTPUTF8),
    )
    return Item(
        id=identifier,
        domain=domain,
        envelope=envelope if len(rest) == 10 else _with_wishes(envelope, rest[10]),
        size=int.from_bytes(data[end : end + 4], "big"),
        arrived_ms=arrived_ms,
        message_class=_CLASSES[data[3]],
        attempts=attempts,
        last_reply=last_reply,
        chunks=chunks,
        home=home,
        possible_duplicate=bool(flags & POSSIBLE_DUPLICATE),
        holder_deaths=data[2],
        delay_notified=bool(flags & DELAY_NOTIFIED),
    )


def unpack_head(identifier: str, data: bytes) -> Item:
    """What each release and the scripts can read of an item that `unpack_item` can not: all but the envelope and the attempts."""
    data = data.ljust(5, b"\0")
    end = 5 + data[4]
    return Item(
        id=identifier,
        domain=data[5:end].decode("ascii", "replace"),
        envelope=Envelope(NULL, ()),
        size=int.from_bytes(data[end : end + 4], "big"),
        arrived_ms=queue_id.time_ms(identifier),
        message_class=_CLASSES.get(data[3], MessageClass.NORMAL),
        possible_duplicate=bool(data[1] & POSSIBLE_DUPLICATE),
        holder_deaths=data[2],
        delay_notified=bool(data[1] & DELAY_NOTIFIED),
    )


def _wishes(envelope: Envelope) -> tuple[Any, ...]:
    """The eleventh value: RET, ENVID, and for each recipient, in their order, nothing or [NOTIFY, ORCPT]; no value when it would be
    empty. NOTIFY is -1 when it was not said."""
    requests = [envelope.requests.get(recipient.text) for recipient in envelope.recipients]
    ret = "" if envelope.ret is None else envelope.ret.value
    if not (ret or envelope.envelope_id or any(requests)):
        return ()
    packed = [request and [_notify_bits(request), request.original_recipient] for request in requests]
    return ([ret, envelope.envelope_id, packed],)


def _notify_bits(request: NotifyRequest) -> int:
    return -1 if request.notify is None else sum(_NOTIFY_BITS[each] for each in request.notify)


def _with_wishes(envelope: Envelope, packed: Any) -> Envelope:
    """The envelope with what `_wishes` wrote. More values than are known here come from a newer release."""
    ret, envelope_id, requests = packed[:3]
    return evolve(
        envelope,
        ret=Ret(ret) if ret else None,
        envelope_id=envelope_id,
        requests={
            recipient.text: NotifyRequest(
                None if request[0] < 0 else frozenset(each for each, bit in _NOTIFY_BITS.items() if request[0] & bit),
                request[1],
            )
            for recipient, request in zip(envelope.recipients, requests, strict=True)
            if request
        }
        or NO_REQUESTS,
    )


def pack_content(content: bytes, least: int = WORTH_COMPRESSING) -> bytes:
    """A body or a chunk: a marker octet, and the octets raw or compressed, whichever pays; those shorter than `least` raw."""
    if len(content) >= least:
        compressed = _compressor.compress(content)
        if len(compressed) < MOST_KEPT * len(content):
            return ZSTD + compressed
    return RAW + content


def unpack_content(data: bytes) -> bytes:
    """What `pack_content` was given."""
    return _decompressor.decompress(data[1:]) if data[:1] == ZSTD else data[1:]


def pack_items(items: Sequence[Item]) -> bytes:
    """The record of a message for several domains."""
    packed: bytes = _pack([pack_item(item) for item in items])
    return packed


def unpack_items(data: bytes) -> tuple[Item, ...]:
    """The items of such a record."""
    return tuple(unpack_item(item) for item in msgpack.unpackb(data))


def pack_notice(notice: Notice) -> bytes:
    """A notice that is owed."""
    packed: bytes = _pack((pack_item(notice.item), notice.content))
    return packed


def unpack_notice(data: bytes) -> Notice:
    """The notice that `pack_notice` wrote."""
    item, content = msgpack.unpackb(data)
    return Notice(unpack_item(item), content)


def pack_member(member: Member) -> bytes:
    """A member as `beat` sends it: name and key in lines of their own, then the rest."""
    rest = _pack((list(member.roles), member.weight, member.hostname, member.draining))
    return b"%s\n%s\n%s" % (member.id.encode(), member.key.encode(), rest)


def unpack_member(incarnation: int, data: bytes) -> Member:
    """The member that `pack_member` wrote."""
    name, key, rest = data.split(b"\n", 2)
    roles, weight, hostname, draining = msgpack.unpackb(rest)
    return Member(incarnation, name.decode(), key.decode(), tuple(roles), weight, hostname, draining)
