"""The edge: what inbound sessions ask is answered here, and content becomes a message in the queue before anybody says 250."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from attrs import evolve, frozen
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from relaycluster import events
from relaycluster.events import EventLog
from relaycluster.interfaces import IContentSink, IIntake, IQueue, QueueError, QueueFull
from relaycluster.mail import queue_id, trace
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import BodyType, Envelope, MessageClass
from relaycluster.mail.item import Claim, Item
from relaycluster.mail.reply import Reply
from relaycluster.mail.session import Session
from relaycluster.node.access import Access
from relaycluster.node.delivery import Delivery
from relaycluster.policy.cluster import Ownership
from relaycluster.policy.ring import partition_of

PIECE = 256 * 1024
"""Content beyond this is written to the queue in pieces while it arrives."""
MOST_UNWRITTEN = 2
"""So many pieces may be on their way before the client is asked to wait."""
REPEAT_SECONDS = 0.25
DEADLINE_SECONDS = 20.0
"""So long an enqueue is repeated; then the client hears 451. RFC 5321 4.5.3.2.6 gives it ten minutes of patience."""
CANCEL_SECONDS = 1.0

Lease = tuple[Ownership, int]

_BUSY = Reply.of(451, "4.3.0", "The message could not be queued now, try again later")
_FULL = Reply.of(452, "4.3.1", "The queue is full, try again later")
_LOOP = Reply.of(554, "5.4.6", "Too many hops: this message is in a loop")


@frozen
class EdgeSettings:
    """`hostname` for `Received:`; `classes` gives each listener's class of mail."""

    hostname: str
    classes: dict[str, MessageClass]


@implementer(IIntake)
class Edge:
    """See `IIntake`. `time` is seconds since the epoch, `entropy` gives 65 random bits; `refusal` tells why no mail is taken now,
    if that is so; `delivery` is this process's own delivery role, None on an edge-only node."""

    def __init__(
        self,
        clock: IReactorTime,
        queue: IQueue,
        access: Access,
        settings: EdgeSettings,
        time: Callable[[], float],
        entropy: Callable[[], int],
        log: EventLog,
        refusal: Callable[[], Reply | None],
        delivery: Delivery | None,
    ) -> None:
        self.clock = clock
        self.queue = queue
        self.access = access
        self.settings = settings
        self.time = time
        self.entropy = entropy
        self.log = log
        self.refusal = refusal
        self.delivery = delivery
        self.dates = trace.DateTimes()
        self._cancelled: dict[str, tuple[Item, Lease | None]] = {}
        self._may_relay = lru_cache(maxsize=4096)(access.may_relay)

    def use(self, access: Access) -> None:
        """Other rules, from the next question on."""
        self.access = access
        self._may_relay = lru_cache(maxsize=4096)(access.may_relay)

    def connect(self, session: Session) -> Reply | None:
        return None

    def mail(self, session: Session, reverse_path: Address, size: int | None) -> Reply | None:
        return self.refusal()

    def recipient(self, session: Session, reverse_path: Address, forward_path: Address) -> Reply | None:
        may_relay = self._may_relay(session.listener, session.peer_address)
        return self.access.recipient(may_relay, forward_path)

    def data(self, session: Session, envelope: Envelope, throttle: Callable[[bool], None]) -> IContentSink | Reply:
        refusal = self.refusal()
        return refusal if refusal is not None else MessageSink(self, session, envelope, throttle)

    # Enqueues without an answer

    def give_up(self, item: Item, lease: Lease | None) -> None:
        """The client hears 451: whatever the queue knows of the item must go."""
        self._cancelled[item.id] = (item, lease)
        self.clock.callLater(CANCEL_SECONDS, self._cancel, item.id)

    def _cancel(self, identifier: str) -> None:
        item, lease = self._cancelled[identifier]

        def told(forgotten: bool) -> None:
            del self._cancelled[identifier]
            if not forgotten:
                self.log.emit(
                    events.PossibleDuplicate(
                        item.id, item.domain, "its enqueue had no answer, and the client was told 451"
                    )
                )

        def again(failure: Failure) -> None:
            failure.trap(QueueError)
            self.clock.callLater(CANCEL_SECONDS, self._cancel, identifier)

        self.queue.cancel(item, lease).addCallbacks(told, again)


@implementer(IContentSink)
class MessageSink:
    """Takes one message's content; the head stays in memory, the rest goes to the queue as it comes."""

    __slots__ = (
        "_all_written",
        "_edge",
        "_eight_bit",
        "_envelope",
        "_failure",
        "_head",
        "_home",
        "_id",
        "_pieces",
        "_session",
        "_size",
        "_tail",
        "_throttle",
        "_unwritten",
        "_written",
    )

    def __init__(self, edge: Edge, session: Session, envelope: Envelope, throttle: Callable[[bool], None]) -> None:
        self._edge = edge
        self._session = session
        self._envelope = envelope
        self._throttle = throttle
        now = edge.time()
        self._home = partition_of(envelope.recipients[0].domain, edge.queue.partitions)
        self._id = queue_id.make(int(now * 1000), self._home, edge.entropy())
        self._pieces = [trace.received(session, envelope, edge.settings.hostname, self._id, edge.dates(now))]
        self._size = len(self._pieces[0])
        self._tail = self._size  # octets in `_pieces`
        self._eight_bit = False
        self._head: bytes | None = None
        self._written = 0
        self._unwritten = 0
        self._failure: QueueError | None = None
        self._all_written: Deferred[None] | None = None

    def write(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        self._tail += len(data)
        if self._tail > PIECE:
            self._spill()

    def abort(self) -> None:
        self._pieces = []
        if self._written:
            dropped = self._edge.queue.drop_chunks(self._home, self._id, self._written)
            dropped.addErrback(lambda failure: failure.trap(QueueError))  # they vanish by themselves, later
            self._written = 0

    def _refuse(self, reply: Reply) -> Reply:
        """The message will not be queued: nothing of it stays."""
        self.abort()
        return reply

    def _spill(self) -> None:
        """Write whole pieces out."""
        content = b"".join(self._pieces)
        if not content.isascii():
            self._eight_bit = True
        at = 0
        if self._head is None:
            self._head, at = content[:PIECE], PIECE
        while len(content) - at >= PIECE:
            self._put(content[at : at + PIECE])
            at += PIECE
        self._pieces = [content[at:]]
        self._tail = len(content) - at

    def _put(self, piece: bytes) -> None:
        self._written += 1
        self._unwritten += 1
        if self._unwritten > MOST_UNWRITTEN:
            self._throttle(True)
        done = self._edge.queue.put_chunk(self._home, self._id, self._written, piece)
        done.addErrback(self._not_put).addCallback(self._put_done)

    def _not_put(self, failure: Failure) -> None:
        if not isinstance(failure.value, QueueError):
            raise failure.value or RuntimeError()
        self._failure = failure.value

    def _put_done(self, _: object) -> None:
        self._unwritten -= 1
        if self._unwritten <= MOST_UNWRITTEN:
            self._throttle(False)
        if not self._unwritten and self._all_written is not None:
            self._all_written.callback(None)

    def finish(self) -> Deferred[Reply]:
        head = self._head
        if head is None:
            head = b"".join(self._pieces)
        header_end = trace.header_end(head)
        if trace.is_looping(head[:header_end]):
            return succeed(self._refuse(_LOOP))
        recipients = self._envelope.recipients
        domain = recipients[0].domain
        if self._head is None and len(recipients) == 1:
            item = self._item(self._id, domain, self._envelope)
            delivery = self._edge.delivery
            lease = delivery.lease_for(domain) if delivery is not None else None
            queued = self._edge.queue.enqueue(item, head, lease)
            return queued.addCallbacks(self._queued, self._again, callbackArgs=(1,), errbackArgs=(item, head, lease))
        return Deferred.fromCoroutine(self._finish_slowly(head))

    def _item(self, identifier: str, domain: str, envelope: Envelope, home: int = -1) -> Item:
        return Item(
            identifier,
            domain,
            envelope,
            self._size,
            self._edge.queue.now_ms(),
            self._edge.settings.classes.get(self._session.listener, MessageClass.NORMAL),
            chunks=self._written,
            home=home,
        )

    def _queued(self, claim: Claim | None, items: int) -> Reply:
        """It exists, durably. From here on it is our responsibility (RFC 5321 4.2.5)."""
        if claim is not None and self._edge.delivery is not None:
            self._edge.delivery.offer(claim)
        session = self._session
        reply = Reply(250, "2.0.0", (f"queued as {self._id}",))
        self._edge.log.emit(
            events.MessageQueued(
                self._id,
                session.id,
                session.peer_address,
                session.user,
                self._envelope.reverse_path.text,
                len(self._envelope.recipients),
                items,
                self._size,
                f"250 2.0.0 queued as {self._id}",
            )
        )
        return reply

    # What is not hot: several domains, large contents, trouble

    def _again(self, failure: Failure, item: Item, content: bytes, lease: Lease | None) -> Deferred[Reply] | Reply:
        failure.trap(QueueError)
        if isinstance(failure.value, QueueFull):
            return _FULL
        return Deferred.fromCoroutine(self._repeat(item, content, lease))

    async def _repeat(self, item: Item, content: bytes, lease: Lease | None) -> Reply:
        """The answer was lost, or there is no Redis now: the same id again, until it is certain or too late."""
        try:
            claim = await self._until_certain(lambda: self._edge.queue.enqueue(item, content, lease))
        except QueueFull:
            self._edge.give_up(item, lease)  # what an earlier try left, if its answer was lost
            return _FULL
        except QueueError:
            self._edge.give_up(item, lease)
            return _BUSY
        return self._queued(claim, 1)

    async def _until_certain(self, step: Callable[[], Deferred[Any]]) -> Any:
        clock = self._edge.clock
        deadline = clock.seconds() + DEADLINE_SECONDS
        while True:
            try:
                return await step()
            except QueueFull:
                raise
            except QueueError:
                if clock.seconds() >= deadline:
                    raise
            pause: Deferred[None] = Deferred()
            clock.callLater(REPEAT_SECONDS, pause.callback, None)
            await pause

    async def _finish_slowly(self, head: bytes) -> Reply:
        if self._head is not None:
            rest = b"".join(self._pieces)
            if rest:
                self._put(rest)
            if self._unwritten:
                self._all_written = Deferred()
                await self._all_written
            if self._failure is not None:
                return self._refuse(_FULL if isinstance(self._failure, QueueFull) else _BUSY)
            if self._eight_bit or not rest.isascii():
                # Whatever MAIL declared: a host without 8BITMIME must not get it as it is.
                self._envelope = evolve(self._envelope, body=BodyType.EIGHT_BIT)
        domains = _by_domain(self._envelope.recipients)
        queue = self._edge.queue
        if len(domains) == 1:
            ((domain, recipients),) = domains.items()
            envelope = evolve(self._envelope, recipients=recipients)
            return await self._repeat(self._item(self._id, domain, envelope), head, None)
        items = [
            self._item(
                queue_id.item_id(self._id, number), domain, evolve(self._envelope, recipients=recipients), self._home
            )
            for number, (domain, recipients) in enumerate(domains.items(), 1)
        ]
        try:
            await self._until_certain(lambda: queue.enqueue_spread(items, head))
        except QueueFull:
            return self._refuse(_FULL)
        except QueueError:
            self._edge.log.emit(
                events.PossibleDuplicate(
                    self._id, items[0].domain, "its enqueue had no answer, and the client was told 451"
                )
            )
            return _BUSY
        Deferred.fromCoroutine(self._fan_out(items)).addErrback(lambda failure: failure.trap(QueueError))
        return self._queued(None, len(items))

    async def _fan_out(self, items: Sequence[Item]) -> None:
        """The message is queued; its items follow. Whatever fails here, the owner of its home finishes."""
        await fan_out(self._edge.queue, items)


async def fan_out(queue: IQueue, items: Sequence[Item]) -> None:
    """Enqueue every item of a message for several domains, then say that they are."""
    # All answers are waited for, so that none is left without an ear when one fails.
    results: list[tuple[bool, Any]] = await DeferredList(
        [queue.enqueue(item, b"", None) for item in items],
        consumeErrors=True,
    )
    for success, failure in results:
        if not success:
            raise failure.value
    if items:
        await queue.spread_done(queue_id.message_id(items[0].id))


def _by_domain(recipients: Sequence[Address]) -> dict[str, tuple[Address, ...]]:
    """Recipients by domain, in the order in which they were given, each once."""
    domains: dict[str, dict[str, Address]] = {}
    for recipient in recipients:
        domains.setdefault(recipient.domain, {}).setdefault(recipient.text, recipient)
    return {domain: tuple(members.values()) for domain, members in domains.items()}
