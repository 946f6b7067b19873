"""The content of a claimed item, as a transaction wants it: in one piece, piece by piece, or in seven bits."""

from __future__ import annotations

from collections.abc import AsyncIterator

from relaycluster.interfaces import IQueue
from relaycluster.mail import downgrade
from relaycluster.mail.item import Claim, Item


async def head_of(queue: IQueue, claim: Claim) -> bytes:
    """The content's head: with the claim, or fetched."""
    if claim.content is not None:
        return claim.content
    return await queue.content(claim.item, 0)


async def pieces(queue: IQueue, item: Item, head: bytes) -> AsyncIterator[bytes]:
    """All of a large content, a piece at a time: one is in memory while it is sent."""
    yield head
    for number in range(1, item.chunks + 1):
        yield await queue.content(item, number)


async def in_seven_bits(queue: IQueue, item: Item, head: bytes) -> bytes | None:
    """The content for a host without 8BITMIME, None when it cannot be converted (RFC 6152 section 3)."""
    content = head
    if item.chunks:
        content = b"".join([piece async for piece in pieces(queue, item, head)])
    return downgrade.downgrade(content)
