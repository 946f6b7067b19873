"""The shared queue in Redis: `IQueue`, each method one script (docs/design/queue.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from zope.interface import implementer

from relaycluster.interfaces import (
    MOST_DUE,
    ContentMissing,
    IQueue,
    NotOwner,
    QueueError,
    QueueUnavailable,
    Recovered,
    Settled,
    Tally,
)
from relaycluster.mail import history, queue_id
from relaycluster.mail.envelope import MessageClass
from relaycluster.mail.item import Claim, Item, Notice
from relaycluster.policy.cluster import Ownership, Snapshot
from relaycluster.policy.pause import Why, pack_reason
from relaycluster.policy.ring import partition_of
from relaycluster.store.redis import codec, keys
from relaycluster.store.redis.checks import parse_info
from relaycluster.store.redis.connection import RedisConnection, pack
from relaycluster.store.redis.scripts import script

CHUNK_TTL_SECONDS = 3600
"""A content that is being received may take this long (the longest transaction is far shorter)."""
BODY_WITH_CLAIM = 256 * 1024
"""Larger heads do not come along with a claim."""
SHORT_REPLY = 200
"""Of a domain's last reply so many characters are shown."""
LOOKED_AT = 500
"""So many items are looked at in one step for what must not wait for a destination that gets nothing now."""
MOST_LARGEST = 50
"""Of so many domains of a partition the backlog is told for the metrics."""


@frozen
class QueueSettings:
    """`partitions` as the cluster was founded with; `done_retention_ms` how long a settled id is remembered; `grace_ms` how long
    work that its maker does itself is left alone by the owner; `deaths_that_hold` dead holders that make an item held; `traces`: a history
    of attempts is kept."""

    partitions: int = 1024
    done_retention_ms: int = 30 * 60_000
    grace_ms: int = 5000
    deaths_that_hold: int = 5
    traces: bool = True


def alive_text(snapshot: Snapshot) -> bytes:
    """The living incarnations as the scripts look them up: `,1,5,`."""
    return b",%s," % b",".join(b"%d" % member.incarnation for member in snapshot.members)


def _part(item: Item) -> bytes:
    return item.id[queue_id.LENGTH + 1 :].encode()


def _notes(note: bytes | None, item: Item) -> tuple[str, ...]:
    """Recipients of a note; `*` stands for all."""
    if note is None:
        return ()
    if note == b"*":
        return tuple(recipient.text for recipient in item.envelope.recipients)
    return tuple(note.decode("utf-8", "surrogateescape").split("\n"))


def _note(claim: Claim) -> bytes:
    """The note that the holder knows of."""
    return "\n".join(claim.delivered).encode("utf-8", "surrogateescape")


@implementer(IQueue)
class RedisQueue:
    """See `IQueue`. `time_ms` is the wall clock in milliseconds, used until the first beat tells Redis' own."""

    def __init__(self, connection: RedisConnection, settings: QueueSettings, time_ms: Callable[[], int]) -> None:
        self._redis = connection
        self._settings = settings
        self._time_ms = time_ms
        self._offset_ms = b"0"
        self._ahead_ms = 0
        self.partitions = settings.partitions
        self.traces = settings.traces
        self.on_unreadable: Callable[[str, str], None] = lambda _identifier, _reason: None
        self._enqueue = script("enqueue")
        self._finish = script("finish")
        self._grace = b"%d" % settings.grace_ms
        self._retention = b"%d" % settings.done_retention_ms

    def set_clock(self, offset_ms: int, ahead_ms: int) -> None:
        """A beat told: queue time is `offset_ms` ahead of Redis TIME, and `ahead_ms` ahead of our wall clock."""
        self._offset_ms = b"%d" % offset_ms
        self._ahead_ms = ahead_ms

    @property
    def offset_ms(self) -> bytes:
        """What queue time is ahead of Redis TIME, as the scripts are given it."""
        return self._offset_ms

    def now_ms(self) -> int:
        return self._time_ms() + self._ahead_ms

    def _tag(self, item: Item) -> bytes:
        return keys.partition_tag(partition_of(item.domain, self.partitions))

    # Intake

    def put_chunk(self, partition: int, message_id: str, number: int, data: bytes) -> Deferred[None]:
        name = keys.key(keys.partition_tag(partition), "BODY", b"%s:%d" % (message_id.encode(), number))
        return self._redis.request(b"SET", name, codec.pack_content(data), b"EX", CHUNK_TTL_SECONDS)

    def drop_chunks(self, partition: int, message_id: str, chunks: int) -> Deferred[None]:
        tag, name = keys.partition_tag(partition), message_id.encode()
        names = [keys.key(tag, "BODY", b"%s:%d" % (name, number)) for number in range(1, chunks + 1)]
        return self._redis.request(b"DEL", *names)

    def enqueue(self, item: Item, content: bytes, lease: tuple[Ownership, int] | None) -> Deferred[Claim | None]:
        partition = partition_of(item.domain, self.partitions)
        identifier = item.id
        owner, number = (lease[0].text, b"%d" % lease[1]) if lease else (b"", b"")
        # What goes straight out is not compressed at all, whatever its size.
        body = b""
        if item.home < 0:
            body = codec.pack_content(content, codec.WORTH_AT_ONCE) if lease is None else codec.RAW + content
        result = self._redis.run(
            self._enqueue,
            keys.partition_tag(partition),
            self._offset_ms,
            identifier,
            codec.pack_item(item),
            body,
            item.message_class.value,
            item.domain,
            item.size,
            keys.done_slot(identifier),
            keys.done_field(identifier),
            item.chunks if item.home < 0 else 0,
            owner,
            number,
        )
        return result.addCallback(self._enqueued, item, partition, content)

    def _enqueued(self, answer: bytes, item: Item, partition: int, content: bytes) -> Claim | None:
        if answer == b"waiting" or answer == b"known":
            return None
        if answer == b"chunks":
            raise QueueUnavailable("pieces of the content are missing")
        return Claim(item, partition, answer, content)

    def cancel(self, item: Item, lease: tuple[Ownership, int] | None) -> Deferred[bool]:
        result = self._redis.run(
            script("cancel"),
            self._tag(item),
            self._offset_ms,
            item.id,
            keys.done_slot(item.id),
            keys.done_field(item.id),
            self._retention,
            item.chunks if item.home < 0 else 0,
            lease[0].text if lease else b"",
        )
        return result.addCallback(lambda answer: answer == b"done")

    def enqueue_spread(self, items: Sequence[Item], content: bytes) -> Deferred[None]:
        first = items[0]
        message = queue_id.message_id(first.id)
        parts = [b"%s:%d" % (_part(item), partition_of(item.domain, self.partitions)) for item in items]
        result = self._redis.run(
            script("enqueue_spread"),
            keys.partition_tag(first.home),
            self._offset_ms,
            message,
            codec.pack_items(items),
            codec.pack_content(content),
            keys.done_slot(message),
            keys.done_field(message),
            first.chunks,
            self._grace,
            keys.trace_name(message, 0),
            self._spread_record(message, items) if self.traces else b"",
            *parts,
        )

        def check(answer: bytes) -> None:
            if answer == b"chunks":
                raise QueueUnavailable("pieces of the content are missing")

        return result.addCallback(check)

    def _spread_record(self, message: str, items: Sequence[Item]) -> bytes:
        where = [(int(_part(item)), partition_of(item.domain, self.partitions), item.domain) for item in items]
        return history.pack_spread(message, history.Spread(items[0].arrived_ms, tuple(where)))

    def spread_done(self, message_id: str) -> Deferred[None]:
        home = keys.partition_tag(queue_id.partition(message_id))
        return self._redis.run(script("spread_done"), home, message_id)

    def spreads(self, partition: int) -> Deferred[Sequence[Sequence[Item]]]:
        return Deferred.fromCoroutine(self._spreads(partition))

    async def _spreads(self, partition: int) -> Sequence[Sequence[Item]]:
        tag = keys.partition_tag(partition)
        found = await self._redis.request(b"HGETALL", keys.key(tag, "SPREAD"))
        result = []
        for message, record in zip(found[::2], found[1::2], strict=True):
            parts = await self._redis.request(b"SMEMBERS", keys.key(tag, "PARTS", message))
            left = {part.split(b":")[0] for part in parts}
            # A part that is not in the set any more was settled: never queue it again.
            try:
                result.append([item for item in codec.unpack_items(record) if _part(item) in left])
            except Exception as error:
                self.on_unreadable(message.decode("ascii", "replace"), str(error))
        return result

    # Holding

    def claim(
        self, owner: Ownership, domain: str, limit: int, number: int, normal_first: int = 0, bulk_first: int = 0
    ) -> Deferred[Sequence[Claim]]:
        result = self._redis.run(
            script("claim"),
            keys.partition_tag(owner.partition),
            self._offset_ms,
            owner.text,
            domain,
            limit,
            number,
            BODY_WITH_CLAIM,
            normal_first,
            bulk_first,
        )
        return result.addCallback(self._claimed, owner.partition)

    def _claimed(self, answer: list[Any], partition: int) -> Sequence[Claim]:
        if answer[0] == b"lost":
            raise NotOwner(f"partition {partition} has another owner")
        claims = []
        for at in range(1, len(answer), 5):
            claim = self.claim_of(partition, *answer[at : at + 5])
            if claim is not None:
                claims.append(claim)
        return claims

    def claim_of(
        self, partition: int, identifier: bytes, token: bytes, packed: bytes, body: bytes | None, note: bytes | None
    ) -> Claim | None:
        """A claimed item as a script gave it; one that can not be read is set aside, and is None."""
        try:
            item = codec.unpack_item(packed)
            content = codec.unpack_content(body) if body else None
        except Exception as error:  # a newer release's, or damaged: the others of the batch must not suffer
            self.on_unreadable(identifier.decode("ascii", "replace"), str(error))
            self._set_aside(partition, identifier, token).addErrback(lambda failure: failure.trap(QueueError))
            return None
        return Claim(item, partition, token, content, _notes(note, item))

    def claim_overdue(
        self,
        owner: Ownership,
        domain: str,
        message_class: MessageClass,
        start: int,
        limit: int,
        number: int,
        expired_before_ms: int,
        delayed_before_ms: int,
    ) -> Deferred[tuple[Sequence[Claim], int]]:
        def read(answer: list[Any]) -> tuple[Sequence[Claim], int]:
            return self._claimed(answer, owner.partition), answer[0]

        return self._redis.run(
            script("claim_overdue"),
            keys.partition_tag(owner.partition),
            self._offset_ms,
            owner.text,
            domain,
            message_class.value,
            limit,
            number,
            BODY_WITH_CLAIM,
            start,
            LOOKED_AT,
            expired_before_ms,
            delayed_before_ms,
            queue_id.make(max(0, expired_before_ms), 0, 0),
            queue_id.make(max(0, delayed_before_ms), 0, 0),
        ).addCallback(read)

    def unclaim(self, owner: Ownership, number: int, limit: int) -> Deferred[None]:
        tag = keys.partition_tag(owner.partition)
        return self._redis.run(script("unclaim"), tag, owner.text, number, limit)

    def set_aside(self, claim: Claim) -> Deferred[Settled]:
        return self._set_aside(claim.partition, claim.item.id.encode(), claim.token).addCallback(self._settled)

    def _set_aside(self, partition: int, identifier: bytes, token: bytes) -> Deferred[Any]:
        return self._redis.run(script("set_aside"), keys.partition_tag(partition), self._offset_ms, identifier, token)

    def content(self, item: Item, chunk: int) -> Deferred[bytes]:
        tag = keys.partition_tag(item.home) if item.home >= 0 else self._tag(item)
        name = queue_id.message_id(item.id) if item.home >= 0 else item.id
        rest = f"{name}:{chunk}" if chunk else name

        def unpack(data: bytes | None) -> bytes:
            if data is None:
                raise ContentMissing(f"the content of {item.id} is not there (piece {chunk} of {item.chunks})")
            return codec.unpack_content(data)

        return self._redis.request(b"GET", keys.key(tag, "BODY", rest.encode())).addCallback(unpack)

    def finish(self, claim: Claim, delivered: bool, notice: Notice | None, attempts: bytes = b"") -> Deferred[Settled]:
        item = claim.item
        identifier = item.id
        return self._redis.run(
            self._finish,
            keys.partition_tag(claim.partition),
            self._offset_ms,
            identifier,
            claim.token,
            keys.done_slot(identifier),
            keys.done_field(identifier),
            self._retention,
            item.chunks if item.home < 0 else 0,
            b"1" if delivered else b"0",
            notice.item.id if notice else b"",
            codec.pack_notice(notice) if notice else b"",
            self._grace,
            keys.trace_name(identifier, item.attempts),
            attempts if self.traces else b"",
            b"" if delivered else _note(claim),
        ).addCallback(self._settled)

    def defer(
        self, claim: Claim, item: Item, delay_ms: int, notice: Notice | None, attempts: bytes = b""
    ) -> Deferred[Settled]:
        return self._redis.run(
            script("defer"),
            keys.partition_tag(claim.partition),
            self._offset_ms,
            item.id,
            claim.token,
            codec.pack_item(item),
            item.message_class.value,
            item.domain,
            item.size,
            delay_ms,
            notice.item.id if notice else b"",
            codec.pack_notice(notice) if notice else b"",
            self._grace,
            _note(claim),
            self._for_waiting(claim),
            keys.trace_name(item.id, 1),
            attempts if self.traces else b"",
            item.last_reply[:SHORT_REPLY].encode("utf-8", "surrogateescape"),
        ).addCallback(self._settled)

    def _for_waiting(self, claim: Claim) -> bytes:
        """The content as it shall be kept now that it has to wait: empty where it stays as it is."""
        content = claim.content
        if claim.item.attempts or claim.item.home >= 0 or content is None or len(content) < codec.WORTH_COMPRESSING:
            return b""
        packed = codec.pack_content(content)
        return packed if packed[:1] == codec.ZSTD else b""

    def put_back(self, claim: Claim) -> Deferred[Settled]:
        tag = keys.partition_tag(claim.partition)
        return self._redis.run(script("put_back"), tag, claim.item.id, claim.token).addCallback(self._settled)

    def _settled(self, answer: bytes | list[bytes]) -> Settled:
        if answer == b"done":
            return Settled.DONE
        return Settled.STALE if answer == b"stale" else Settled.NOTED

    def notes(self, claim: Claim) -> Deferred[tuple[str, ...]]:
        name = keys.key(keys.partition_tag(claim.partition), "NOTES")
        return self._redis.request(b"HGET", name, claim.item.id).addCallback(_notes, claim.item)

    def note(self, claim: Claim, recipients: Sequence[str]) -> Deferred[None]:
        encoded = [recipient.encode("utf-8", "surrogateescape") for recipient in recipients]
        return self._redis.run(script("note"), keys.partition_tag(claim.partition), claim.item.id, *encoded)

    def leave_home(self, item: Item) -> Deferred[None]:
        partition = partition_of(item.domain, self.partitions)
        return self._leave(queue_id.message_id(item.id), item.home, item.chunks, [b"%s:%d" % (_part(item), partition)])

    def _leave(self, message: str, home: int, chunks: int, parts: Sequence[bytes]) -> Deferred[Any]:
        return self._redis.run(
            script("leave_home"),
            keys.partition_tag(home),
            message,
            keys.done_slot(message),
            keys.done_field(message),
            self._retention,
            chunks,
            *parts,
        )

    # Notices

    def notices(self, partition: int) -> Deferred[Sequence[Notice]]:
        name = keys.key(keys.partition_tag(partition), "NOTICES")

        def unpack(pairs: list[bytes]) -> Sequence[Notice]:
            found = []
            for identifier, value in zip(pairs[::2], pairs[1::2], strict=True):
                try:
                    found.append(codec.unpack_notice(value))
                except Exception as error:
                    self.on_unreadable(identifier.decode("ascii", "replace"), str(error))
            return found

        return self._redis.request(b"HGETALL", name).addCallback(unpack)

    def notice_done(self, partition: int, notice_id: str) -> Deferred[None]:
        return self._redis.run(script("notice_done"), keys.partition_tag(partition), notice_id)

    # Owning

    def acquire(self, partition: int, incarnation: int, snapshot: Snapshot) -> Deferred[Ownership | None]:
        result = self._redis.run(
            script("acquire"),
            keys.partition_tag(partition),
            incarnation,
            snapshot.next_incarnation,
            alive_text(snapshot),
        )
        return result.addCallback(lambda fence: Ownership(partition, incarnation, fence) if fence else None)

    def release(self, owner: Ownership) -> Deferred[None]:
        return self._redis.run(script("disown"), keys.partition_tag(owner.partition), owner.text)

    def recover(self, owner: Ownership, snapshot: Snapshot) -> Deferred[Recovered]:
        result = self._redis.run(
            script("recover"),
            keys.partition_tag(owner.partition),
            self._offset_ms,
            owner.text,
            snapshot.next_incarnation,
            alive_text(snapshot),
            self._settings.deaths_that_hold,
        )

        def read(answer: list[bytes]) -> Recovered:
            if answer[0] == b"lost":
                raise NotOwner(f"partition {owner.partition} has another owner")
            found = list(zip(answer[1::2], answer[2::2], strict=True))
            return Recovered(
                waiting=tuple(identifier.decode() for identifier, held in found if held == b"0"),
                held=tuple(identifier.decode() for identifier, held in found if held == b"1"),
            )

        return result.addCallback(read)

    def pause(
        self, owner: Ownership, domain: str, delay_ms: int, why: Why = Why.SPREAD, detail: str = ""
    ) -> Deferred[None]:
        tag = keys.partition_tag(owner.partition)
        reason = pack_reason(why, detail)
        return self._redis.run(script("pause"), tag, self._offset_ms, owner.text, domain, delay_ms, reason)

    def due(self, partitions: Sequence[int], passed_over: Mapping[int, int]) -> Deferred[Sequence[tuple[int, str]]]:
        now = self.now_ms()
        commands = [
            pack(b"ZRANGEBYSCORE", _index(each), b"-inf", now, b"LIMIT", passed_over.get(each, 0), MOST_DUE)
            for each in partitions
        ]

        def read(answers: list[list[bytes]]) -> Sequence[tuple[int, str]]:
            return [
                (partition, domain.decode())
                for partition, found in zip(partitions, answers, strict=True)
                for domain in found
            ]

        return self._redis.request_all(commands, "due").addCallback(read)

    def sweep(self, owner: Ownership, older_than_ms: int) -> Deferred[int]:
        return Deferred.fromCoroutine(self._sweep(owner.partition, older_than_ms))

    async def _sweep(self, partition: int, older_than_ms: int) -> int:
        tag = keys.partition_tag(partition)
        limit = self.now_ms() - older_than_ms
        homes = await self._redis.request(b"ZRANGEBYSCORE", keys.key(tag, "HOMES"), b"-inf", limit, b"LIMIT", 0, 100)
        left = 0
        for name in homes:
            if await self._redis.request(b"HEXISTS", keys.key(tag, "SPREAD"), name):
                continue
            message = name.decode()
            parts = await self._redis.request(b"SMEMBERS", keys.key(tag, "PARTS", name))
            gone, chunks = [], 0
            for part in parts:
                number, where = part.split(b":")
                item_key = keys.key(keys.partition_tag(int(where)), "ITEM", b"%s-%s" % (name, number))
                if not await self._redis.request(b"EXISTS", item_key):
                    gone.append(part)
            if gone:
                # Also when others are left: they may leave meanwhile, and then these are the last.
                while await self._redis.request(b"EXISTS", keys.key(tag, "BODY", b"%s:%d" % (name, chunks + 1))):
                    chunks += 1
                await self._leave(message, partition, chunks, gone)
            left += len(gone)
        return left

    def room(self) -> Deferred[tuple[int, int]]:
        def read(answer: bytes) -> tuple[int, int]:
            info = parse_info(answer)
            return int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))

        return self._redis.request(b"INFO", b"memory").addCallback(read)

    def tally(self, partitions: Sequence[int]) -> Deferred[Tally]:
        return Deferred.fromCoroutine(self._tally(partitions))

    async def _tally(self, partitions: Sequence[int]) -> Tally:
        commands = [_tally_commands(partition) for partition in partitions]
        answers = await self._redis.request_all([each for some in commands for each in some], "tally")
        waiting = octets = leased = held = 0
        oldest = 0
        now = self.now_ms()
        domains: list[tuple[str, int]] = []
        for counts, in_hand, on_hold, backlog, first in zip(*[iter(answers)] * 5, strict=True):
            waiting += int(counts[0] or 0)
            octets += int(counts[1] or 0)
            leased += in_hand
            held += on_hold
            domains += [(name.decode(), int(n)) for name, n in zip(backlog[::2], backlog[1::2], strict=True)]
            if first and not first[0].startswith(b"*") and (due := int(float(first[1]))) <= now:
                oldest = min(oldest, due) if oldest else due
        domains.sort(key=lambda pair: -pair[1])
        ready = await self._ready(domains[: 4 * MOST_LARGEST], now)
        return Tally(waiting, ready, leased, held, octets, oldest, tuple(domains))

    async def _ready(self, domains: Sequence[tuple[str, int]], now: int) -> int:
        """Of the largest backlogs, how many items are due by now."""
        asked = [
            pack(
                b"ZCOUNT",
                keys.key(
                    keys.partition_tag(partition_of(domain, self.partitions)),
                    "DUE",
                    b"%d:%s" % (message_class, domain.encode()),
                ),
                b"-inf",
                now,
            )
            for domain, _ in domains
            for message_class in range(3)
        ]
        return sum(await self._redis.request_all(asked, "tally"))


@cache
def _index(partition: int) -> bytes:
    return keys.key(keys.partition_tag(partition), "INDEX")


@cache
def _tally_commands(partition: int) -> tuple[bytes, ...]:
    tag = keys.partition_tag(partition)
    return (
        pack(b"HMGET", keys.key(tag, "COUNTS"), b"waiting", b"bytes"),
        pack(b"HLEN", keys.key(tag, "LEASED")),
        pack(b"ZCARD", keys.key(tag, "HELD")),
        pack(b"ZREVRANGE", keys.key(tag, "BACKLOG"), 0, MOST_LARGEST - 1, b"WITHSCORES"),
        pack(b"ZRANGE", _index(partition), 0, 0, b"WITHSCORES"),
    )
