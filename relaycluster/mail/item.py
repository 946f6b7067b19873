"""An item: what is queued, claimed and settled; one for each recipient domain of a message."""

from __future__ import annotations

from attrs import frozen

from relaycluster.mail.envelope import Envelope, MessageClass


@frozen
class Item:
    """All that a delivery attempt must know, except the content.

    `id` is the message's queue id, with `-n` behind it when the message went to several domains; `home` is the partition
    that holds the content of such a message (-1: the item's own). `size` counts the content's octets, `chunks` the pieces
    that it has beyond its head. `arrived_ms` is queue time. `attempts` counts those that ended in an outcome.
    `possible_duplicate` once a holder died, or lost its connection, when the message may have been sent already.
    """

    id: str
    domain: str
    envelope: Envelope
    size: int
    arrived_ms: int
    message_class: MessageClass = MessageClass.NORMAL
    attempts: int = 0
    last_reply: str = ""
    chunks: int = 0
    home: int = -1
    possible_duplicate: bool = False
    holder_deaths: int = 0
    delay_notified: bool = False


@frozen
class Claim:
    """An item in a holder's hands. `token` proves it; `content` is the content's head (all of it when the item has no
    chunks), None when it was too large to come along or lies elsewhere; `delivered` are recipients (their texts) of whom a
    stale holder reported that they have the message already."""

    item: Item
    partition: int
    token: bytes
    content: bytes | None = None
    delivered: tuple[str, ...] = ()


@frozen
class Notice:
    """A DSN that is owed: complete, under the id that it will be queued with."""

    item: Item
    content: bytes
