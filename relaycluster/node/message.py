"""One message on its way in: from the first octet of its content to the reply that takes responsibility for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from relaycluster import events
from relaycluster.interfaces import IContentSink, QueueError, QueueFull
from relaycluster.mail import queue_id, trace
from relaycluster.mail.envelope import BodyType, Envelope, MessageClass
from relaycluster.mail.header import author_domain
from relaycluster.mail.item import Claim, Item
from relaycluster.mail.reply import Reply
from relaycluster.mail.session import Session
from relaycluster.node.access import SUBMISSION
from relaycluster.node.signing import Signing
from relaycluster.node.spread import by_domain, fan_out, until_certain
from relaycluster.node.submission import submitted
from relaycluster.policy.account import Account
from relaycluster.policy.cluster import Ownership
from relaycluster.policy.ring import partition_of

if TYPE_CHECKING:
    from relaycluster.node.edge import Edge

PIECE = 256 * 1024
"""Content beyond this is written to the queue in pieces while it arrives. A header lies within the first."""
MOST_UNWRITTEN = 2
"""So many pieces may be on their way before the client is asked to wait."""
MOST_LOOSE = 64
"""So many pieces of content lie about before they are joined: each costs some forty octets more than it holds."""

Lease = tuple[Ownership, int]

_BUSY = Reply.of(451, "4.3.0", "The message could not be queued now, try again later")
_FULL = Reply.of(452, "4.3.1", "The queue is full, try again later")
_UNSIGNED = Reply.of(451, "4.3.0", "The message could not be signed now, try again later")
_LOOP = Reply.of(554, "5.4.6", "Too many hops: this message is in a loop")
_HEADER_TOO_LARGE = Reply.of(552, "5.3.4", "The message's header is too large")
_TOO_MANY_FIELDS = Reply.of(554, "5.6.0", "The message's header has too many fields")

_WHITE: Final = frozenset({b" ", b"\t"})
_SHORTEST_FIELD: Final = 3  # a colon and CRLF
_continuations = re.compile(rb"\n[ \t]").findall


@implementer(IContentSink)
class MessageSink:
    """Takes one message's content; the head stays in memory, the rest goes to the queue as it comes.

    `envelope` is with aliases expanded; `asked` is what the client said, for our trace field. `account` is the authenticated
    sender's on a submission listener, None for everybody else.
    """

    __slots__ = (
        "_account",
        "_all_written",
        "_class",
        "_edge",
        "_eight_bit",
        "_envelope",
        "_failure",
        "_front",
        "_head",
        "_home",
        "_id",
        "_loose",
        "_pieces",
        "_refusal",
        "_session",
        "_signed",
        "_signing",
        "_size",
        "_tail",
        "_throttle",
        "_unwritten",
        "_written",
    )

    def __init__(
        self,
        edge: Edge,
        session: Session,
        asked: Envelope,
        envelope: Envelope,
        throttle: Callable[[bool], None],
        account: Account | None,
        message_class: MessageClass,
    ) -> None:
        self._edge = edge
        self._session = session
        self._envelope = envelope
        self._throttle = throttle
        self._account = account
        self._class = message_class
        now = edge.time()
        self._home = partition_of(envelope.recipients[0].domain, edge.queue.partitions)
        self._id = queue_id.make(int(now * 1000), self._home, edge.entropy())
        self._pieces = [trace.received(session, asked, edge.settings.hostname, self._id, edge.dates(now))]
        self._size = self._front = len(self._pieces[0])
        self._tail = self._size  # octets in `_pieces`
        self._loose = 1  # of the last ones, not joined yet
        self._eight_bit = False
        self._head: bytes | None = None
        self._refusal: Reply | None = None
        self._signing: Signing | None = None
        self._signed: tuple[str, ...] = ()
        self._written = 0
        self._unwritten = 0
        self._failure: QueueError | None = None
        self._all_written: Deferred[None] | None = None

    def write(self, data: bytes) -> None:
        if self._signing is not None:
            self._signing.update(data)
        self._pieces.append(data)
        self._size += len(data)
        self._tail += len(data)
        self._loose += 1
        if self._tail > PIECE:
            self._spill()
            self._loose = 0
        elif self._loose > MOST_LOOSE:
            # Only those that are new, so that no octet is copied twice: a client chooses how small its chunks are.
            self._pieces[-self._loose :] = [b"".join(self._pieces[-self._loose :])]
            self._loose = 0

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

    # The header

    def _open(self, content: bytes) -> bytes | Reply:
        """The content with its header as it will be sent, without signatures; or the reply that refuses the message. Done once: at
        the end of a small content, at the first spill of a large one."""
        end = trace.header_end(content)
        front = self._front
        lower = content[:end].lower()
        edge = self._edge
        if lower[front : front + 1] in _WHITE:
            # It would go on with our trace field, and nobody would see where ours ends: there is no header, all of it is body.
            content = content[:front] + b"\r\n" + content[front:]
            lower, end = lower[:front], front
            self._size += 2
        if end - front > edge.header_octets:
            return _HEADER_TOO_LARGE
        fields = edge.settings.header_fields
        if end > _SHORTEST_FIELD * fields and lower.count(b"\n") - len(_continuations(lower)) > fields:
            return _TOO_MANY_FIELDS
        if lower.count(b"\nreceived") >= trace.HOP_LIMIT and trace.is_looping(lower):
            return _LOOP
        if self._session.mode == SUBMISSION and (
            b"\ndate:" not in lower
            or b"\nmessage-id:" not in lower
            or self._account is not None
            or (edge.signer is not None and edge.signer.has_keys)
        ):
            return self._submit(content, end)
        return content

    def _submit(self, content: bytes, end: int) -> bytes | Reply:
        edge = self._edge
        answer = submitted(
            content[:end],
            self._account,
            edge.settings.hostname,
            self._id,
            edge.dates(queue_id.time_ms(self._id) / 1000),
        )
        if isinstance(answer, Reply):
            return answer
        if answer.message_class is not None:
            self._class = answer.message_class
        header = b"".join([field.raw for field in answer.fields])
        self._size += len(header) - end
        if edge.signer is not None and edge.signer.has_keys:
            self._signing = edge.signer.begin(answer.fields, author_domain(answer.fields))
            if self._signing is not None:
                self._signing.update(content[end + 2 :])
        return content if len(header) == end else header + content[end:]

    def _sign(self, signing: Signing, head: bytes) -> bytes | Reply:
        """The head with its signatures in front: they are over exactly what is sent."""
        try:
            signatures = signing.finish(self._edge.time())
        except Exception as error:
            self._edge.log.emit(events.Error.of(error, "DKIM signature"))
            return _UNSIGNED
        self._size += len(signatures)
        self._signed = signing.names
        return signatures + head

    # Large contents

    def _spill(self) -> None:
        """Write whole pieces out."""
        if self._refusal is not None:
            self._pieces = []
            self._tail = 0
            return
        content = b"".join(self._pieces)
        if not content.isascii():
            self._eight_bit = True
        at = 0
        if self._head is None:
            opened = self._open(content)
            if isinstance(opened, Reply):
                self._refusal = opened  # it is told after the final dot; what comes until then is forgotten
                self._head = b""
                self._pieces = []
                self._tail = 0
                return
            content = opened
            self._head, at = content[:PIECE], PIECE
        while len(content) - at >= PIECE:
            self._put(content[at : at + PIECE])
            at += PIECE
        rest = content[at:]
        self._pieces = [rest]
        self._tail = len(rest)

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

    # The end

    def finish(self) -> Deferred[Reply]:
        head: bytes | Reply | None = self._head
        if head is None:
            head = self._open(b"".join(self._pieces))
        elif self._refusal is not None:
            head = self._refusal
        if self._signing is not None and isinstance(head, bytes):
            head = self._sign(self._signing, head)
        if isinstance(head, Reply):
            return succeed(self._refuse(head))
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
            self._class,
            chunks=self._written,
            home=home,
        )

    def _queued(self, claim: Claim | None, items: int) -> Reply:
        """It exists, durably. From here on it is our responsibility (RFC 5321 4.2.5)."""
        if claim is not None and self._edge.delivery is not None:
            self._edge.delivery.offer(claim)
        session = self._session
        tls = session.tls
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
                str(tls) if tls is not None else "",
                session.via,
                self._class.label,
                self._signed,
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
            claim = await until_certain(self._edge.clock, lambda: self._edge.queue.enqueue(item, content, lease))
        except QueueFull:
            self._edge.give_up(item, lease)  # what an earlier try left, if its answer was lost
            return _FULL
        except QueueError:
            self._edge.give_up(item, lease)
            return _BUSY
        return self._queued(claim, 1)

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
        domains = by_domain(self._envelope)
        queue = self._edge.queue
        if len(domains) == 1:
            ((domain, envelope),) = domains.items()
            return await self._repeat(self._item(self._id, domain, envelope), head, None)
        items = [
            self._item(queue_id.item_id(self._id, number), domain, envelope, self._home)
            for number, (domain, envelope) in enumerate(domains.items(), 1)
        ]
        try:
            await until_certain(self._edge.clock, lambda: queue.enqueue_spread(items, head))
        except QueueFull:
            return self._refuse(_FULL)
        except QueueError:
            self._edge.log.emit(
                events.PossibleDuplicate(
                    self._id, items[0].domain, "its enqueue had no answer, and the client was told 451"
                )
            )
            return _BUSY
        # It is queued, and its items follow. Whatever fails here, the owner of its home finishes.
        Deferred.fromCoroutine(fan_out(queue, items)).addErrback(lambda failure: failure.trap(QueueError))
        return self._queued(None, len(items))
