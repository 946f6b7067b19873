"""The items of the queue as an operator sees them, read in pages: no reply is long, whatever the queue holds, and what nodes do meanwhile
moves nobody out of sight."""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Iterable, Sequence
from typing import Any

from attrs import evolve

from relaycluster.interfaces import ItemState, Shown, Wanted
from relaycluster.policy.ring import partition_of
from relaycluster.store.redis import codec, keys
from relaycluster.store.redis.connection import RedisConnection, pack
from relaycluster.store.redis.queue import RedisQueue

PAGE = 200
KEYS_AT_ONCE = 50
"""The first pages of so many keys are asked for in one step."""
PARTITIONS_AT_ONCE = 16
LOOKS = 3
"""An item that is where nobody looks just then, because it moves, is looked at so often."""

_CLASSES = (0, 1, 2)

Place = tuple[int, bytes]
"""A partition, and an id or a key in it."""


class QueuedItems:
    """Reads items. Deferreds may fail with a `QueueError`."""

    def __init__(self, connection: RedisConnection, queue: RedisQueue) -> None:
        self._redis = connection
        self._queue = queue

    async def look(self, places: Sequence[Place]) -> list[Shown]:
        """These items as they are; those that do not exist are left out."""
        found: list[Shown] = []
        for _ in range(LOOKS):
            shown, places = await self._look(places)
            found += shown
            if not places:
                break
        return found

    async def _look(self, places: Sequence[Place]) -> tuple[list[Shown], list[Place]]:
        """Those that were found, and those that moved between the two steps."""
        commands = []
        for partition, item_id in places:
            tag = keys.partition_tag(partition)
            commands.append(pack(b"GET", keys.key(tag, "ITEM", item_id)))
            commands.append(pack(b"HGET", keys.key(tag, "LEASED"), item_id))
            commands.append(pack(b"ZSCORE", keys.key(tag, "HELD"), item_id))
            commands.append(pack(b"ZSCORE", keys.key(tag, "BOUNCING"), item_id))
        answers = await self._redis.request_all(commands, "show")
        there = [
            (place, _shown(*place, *answers[4 * at : 4 * at + 4]))
            for at, place in enumerate(places)
            if answers[4 * at] is not None
        ]
        commands = []
        for (partition, item_id), shown in there:
            due = b"%d:%s" % (shown.item.message_class.value, shown.item.domain.encode())
            commands.append(pack(b"ZSCORE", keys.key(keys.partition_tag(partition), "DUE", due), item_id))
        now, found, moved = self._queue.now_ms(), [], []
        for (place, shown), score in zip(there, await self._redis.request_all(commands, "show"), strict=True):
            if shown.state is not ItemState.READY:
                found.append(shown)
            elif score is not None:
                at_ms = _ms(score)
                found.append(evolve(shown, at_ms=at_ms, state=ItemState.READY if at_ms <= now else ItemState.SCHEDULED))
            else:
                moved.append(place)
        return found, moved

    async def pages(self, wanted: Wanted, besides: Container[str]) -> AsyncIterator[list[Shown]]:
        """All that are wanted, each once, but those whose ids are among `besides`."""
        total = self._queue.partitions
        every = [partition_of(wanted.domain, total)] if wanted.domain else range(total)
        for at in range(0, len(every), PARTITIONS_AT_ONCE):
            seen: set[bytes] = set()
            async for places in _filled(self._places(every[at : at + PARTITIONS_AT_ONCE], wanted)):
                new = [place for place in places if place[1] not in seen and place[1].decode() not in besides]
                page = await self.look(list(dict.fromkeys(new)))
                seen.update(shown.item.id.encode() for shown in page)
                if page := [shown for shown in page if wanted.fits(shown)]:
                    yield page

    async def _places(self, partitions: Sequence[int], wanted: Wanted) -> AsyncIterator[list[Place]]:
        """Where items may be. What waits comes first: what leaves it meanwhile is found where it went."""
        states = wanted.states
        if states & {ItemState.READY, ItemState.SCHEDULED}:
            classes = _CLASSES if wanted.message_class is None else (wanted.message_class.value,)
            domains = [(partitions[0], wanted.domain.encode())] if wanted.domain else await self._domains(partitions)
            names = [
                (each, keys.key(keys.partition_tag(each), "DUE", b"%d:%s" % (kind, domain)))
                for each, domain in domains
                for kind in classes
            ]
            async for places in self._members(names):
                yield places
        if ItemState.LEASED in states:
            async for places in self._fields(_names(partitions, "LEASED")):
                yield places
        for state, name in ((ItemState.HELD, "HELD"), (ItemState.BOUNCING, "BOUNCING")):
            if state in states:
                async for places in self._members(_names(partitions, name)):
                    yield places

    async def _domains(self, partitions: Sequence[int]) -> list[Place]:
        commands = [pack(b"ZRANGE", name, 0, -1) for _, name in _names(partitions, "BACKLOG")]
        answers = await self._redis.request_all(commands, "list")
        return [(each, domain) for each, found in zip(partitions, answers, strict=True) for domain in found]

    async def _members(self, names: Sequence[Place]) -> AsyncIterator[list[Place]]:
        """The members of sorted sets in their order."""
        for at in range(0, len(names), KEYS_AT_ONCE):
            some = names[at : at + KEYS_AT_ONCE]
            answers = await self._redis.request_all([_range(name, b"-inf", PAGE) for _, name in some], "list")
            for (partition, name), answer in zip(some, answers, strict=True):
                page = _scored(answer)
                yield [(partition, member) for _, member in page]
                if len(page) == PAGE:
                    async for more in self._behind(name, page[-1]):
                        yield [(partition, member) for _, member in more]

    async def _behind(self, name: bytes, last: tuple[float, bytes]) -> AsyncIterator[list[tuple[float, bytes]]]:
        """The members behind this one. A place is a score and a name, never a rank: ranks move when somebody leaves."""
        most = PAGE
        while True:
            (answer,) = await self._redis.request_all([_range(name, repr(last[0]).encode(), most)], "list")
            page = _scored(answer)
            behind = [each for each in page if each > last]
            if behind:
                yield behind
                last = behind[-1]
            if len(page) < most:
                return
            if not behind:
                most *= 2  # so many have one score

    async def _fields(self, names: Sequence[Place]) -> AsyncIterator[list[Place]]:
        """The fields of hashes; some perhaps twice."""
        left = [(partition, name, b"0") for partition, name in names]
        while left:
            commands = [pack(b"HSCAN", name, cursor, b"COUNT", PAGE) for _, name, cursor in left]
            answers = await self._redis.request_all(commands, "list")
            following = []
            for (partition, name, _), (cursor, fields) in zip(left, answers, strict=True):
                yield [(partition, field) for field in fields[::2]]
                if cursor != b"0":
                    following.append((partition, name, cursor))
            left = following


def _names(partitions: Iterable[int], name: str) -> list[Place]:
    return [(each, keys.key(keys.partition_tag(each), name)) for each in partitions]


def _range(name: bytes, least: bytes, most: int) -> bytes:
    return pack(b"ZRANGEBYSCORE", name, least, b"+inf", b"WITHSCORES", b"LIMIT", 0, most)


def _scored(answer: Sequence[bytes]) -> list[tuple[float, bytes]]:
    return list(zip(map(float, answer[1::2]), answer[::2], strict=True))


async def _filled(pages: AsyncIterator[list[Place]]) -> AsyncIterator[list[Place]]:
    """The same in pages of some size: many domains have a single item."""
    page: list[Place] = []
    async for places in pages:
        page += places
        while len(page) >= PAGE:
            yield page[:PAGE]
            page = page[PAGE:]
    if page:
        yield page


def _shown(partition: int, item_id: bytes, packed: bytes, token: bytes | None, held: Any, bouncing: Any) -> Shown:
    unreadable = ""
    try:
        item = codec.unpack_item(packed)
    except Exception as error:  # a newer release's, or damaged: an operator must see it all the same
        item, unreadable = codec.unpack_head(item_id.decode(), packed), str(error) or type(error).__name__
    shown = Shown(item, partition, ItemState.READY, 0, packed=packed, unreadable=unreadable)
    if token is not None:
        incarnation, due = token.partition(b":")[0], token.rsplit(b":", 1)[1]
        return evolve(shown, state=ItemState.LEASED, at_ms=int(due), incarnation=int(incarnation))
    if held is not None:
        return evolve(shown, state=ItemState.HELD, at_ms=_ms(held))
    return shown if bouncing is None else evolve(shown, state=ItemState.BOUNCING, at_ms=_ms(bouncing))


def _ms(score: bytes) -> int:
    """A score as the time that it is."""
    return int(float(score))
