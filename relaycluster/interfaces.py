"""The promises between the floors.

Who implements what: `node/edge.py` is the `IIntake` that `net/inbound.py` talks to; `node/accounts.py` is the `IAccounts`;
`net/resolver.py` is the `IMXResolver`; `store/memory.py` and `store/redis/` are the `IQueue`, `IMembership`, `IThrottle`, `IAttempts`,
`IOperations`, `IOperator` and `ISuspensions`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from attrs import field, frozen
from zope.interface import Attribute, Interface

from relaycluster.policy.pause import Pause, Why

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from relaycluster.mail.address import Address
    from relaycluster.mail.envelope import Envelope, MessageClass
    from relaycluster.mail.history import Act, Record
    from relaycluster.mail.item import Claim, Item, Notice
    from relaycluster.mail.reply import Reply
    from relaycluster.mail.session import Session
    from relaycluster.policy.account import Account
    from relaycluster.policy.cluster import Member, Ownership, Snapshot
    from relaycluster.policy.routing import AddressAnswer, MXAnswer
    from relaycluster.policy.suspension import Suspension


class IContentSink(Interface):
    """Takes the content of one message, in order, and answers for it.

    Exactly one of `finish` and `abort` is called, once, after the last `write`.
    """

    def write(data: bytes) -> None:
        """More content: dot-unstuffed, CRLF line ends, without the terminating dot; cut anywhere."""

    def finish() -> Deferred[Reply]:
        """The final dot came. Fires with the reply to send: 250 only when the message is queued durably. Never fails:
        internal trouble is a 4xx reply."""

    def abort() -> None:
        """The message will not be completed (connection lost, too large, a syntax error in the content)."""


Answer: TypeAlias = "Deferred[Reply | None] | Reply | None"
"""A `Reply` refuses, None accepts; either may come later. A Deferred that fails is a fault of ours: 451."""


class IIntake(Interface):
    """What an inbound session asks of the node. Nothing behind a question is read until its answer is there."""

    def connect(session: Session) -> Answer:
        """A client connected, before the greeting: None to greet, or the 421 or 554 to send instead."""

    def authenticate(session: Session, login: Login) -> Deferred[str | Reply]:
        """AUTH: the user's name, as it goes into the session, or the refusal (RFC 4954 6). Never fails."""

    def mail(session: Session, reverse_path: Address, size: int | None) -> Answer:
        """MAIL FROM. `size` is the SIZE parameter in octets."""

    def recipient(session: Session, reverse_path: Address, forward_path: Address) -> Answer:
        """RCPT TO: may this session relay to it?"""

    def data(session: Session, envelope: Envelope, throttle: Callable[[bool], None]) -> IContentSink | Reply:
        """DATA or the first BDAT, after at least one accepted RCPT: where the content goes, or the reply that refuses it. The sink calls
        `throttle(True)` to ask for a pause in the flow of content and `throttle(False)` to end the pause."""


@frozen
class Login:
    """What AUTH brought: `mechanism` "PLAIN" or "LOGIN"; `authorization` the identity to act as, empty for the user's own
    (RFC 4616 2). The password never shows in a `repr`."""

    mechanism: str
    user: str
    password: bytes = field(repr=False)
    authorization: str = ""


class IAccounts(Interface):
    """The users who may authenticate."""

    def check(name: str, password: bytes) -> Deferred[bool]:
        """Whether this is the user's password. A name that nobody has takes as long as one that somebody has. Fails only when the
        check itself can not be made."""

    def account(name: str) -> Account | None:
        """What the user may do now; None when there is no such user any more."""


class IAttempts(Interface):
    """Failed logins, counted over the whole cluster by subject, as `policy/backoff.py` names them and weighs them. Deferreds may fail with a
    `QueueError`."""

    def wait(subjects: Sequence[str]) -> Deferred[float]:
        """For how many seconds attempts of these subjects, narrowest first, are refused unseen; 0 when they are not. A subject that
        succeeded lately hides those behind it."""

    def failed(subjects: Sequence[str]) -> Deferred[Sequence[float]]:
        """One more failure of each; for how many seconds each is shut now."""

    def succeeded(subjects: Sequence[str]) -> Deferred[None]:
        """The count of each begins anew, and each is known from now on."""


class FileTrouble(ValueError):
    """A file of the operator's can not be used: which, where in it (0: no line), and why, with the fix."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(f"{path}:{line}: {reason}" if line else f"{path}: {reason}")
        self.path, self.line, self.reason = path, line, reason


class IMXResolver(Interface):
    """DNS as delivery needs it. Both Deferreds never fail: trouble is a value of the union."""

    def mx(domain: str) -> Deferred[MXAnswer]:
        """The mail exchangers of a recipient domain (A-labels, lower case), with implicit MX (RFC 5321 5.1)."""

    def addresses(host: str) -> Deferred[AddressAnswer]:
        """The addresses of an MX host."""


class QueueError(Exception):
    """The queue could not do what was asked, and nothing was half-done."""


class QueueUnavailable(QueueError):
    """No answer: whether it happened is unknown. All transitions may be repeated."""


class QueueFull(QueueError):
    """The store refuses to grow (`maxmemory`). Nothing was written."""


class ContentMissing(QueueError):
    """An item's content is not in the store."""


class NotOwner(QueueError):
    """The partition belongs to somebody else by now: look at the membership, claim nothing."""


class Settled(Enum):
    """What a settling transition found."""

    DONE = "done"  # the transition happened, now or at an earlier try
    STALE = "stale"  # the token is not valid any more: nothing was changed
    NOTED = "noted"  # the token is valid, but a stale holder reported deliveries: look at them and settle again


MOST_DUE = 50
"""So many domains of a partition are looked at in one poll."""


class IQueue(Interface):
    """The shared queue: docs/design/queue.md is its specification.

    Every method returns a Deferred that may fail with a `QueueError`. Times are queue time in milliseconds.
    """

    partitions = Attribute("The number of partitions of this cluster.")
    traces = Attribute("Whether a history of attempts is kept: else nobody needs to pack them.")

    def now_ms() -> int:
        """Queue time, as estimated from the last answers."""

    def put_chunk(partition: int, message_id: str, number: int, data: bytes) -> Deferred[None]:
        """Write a piece of a large content ahead of its enqueue; it vanishes by itself when none follows."""

    def drop_chunks(partition: int, message_id: str, chunks: int) -> Deferred[None]:
        """The message will not be queued: its pieces go."""

    def enqueue(item: Item, content: bytes, lease: tuple[Ownership, int] | None) -> Deferred[Claim | None]:
        """The item exists, durably, when this fires. With `lease` (an ownership and a claim number), the item may go straight
        into the caller's hands: then the claim is the result. `content` is the head; empty when it lies at home.
        Repeating the call with the same id changes nothing."""

    def cancel(item: Item, lease: tuple[Ownership, int] | None) -> Deferred[bool]:
        """The caller gave up on an `enqueue` without an answer: forget the item. False when somebody holds it already."""

    def enqueue_spread(items: Sequence[Item], content: bytes) -> Deferred[None]:
        """A message for several domains exists, durably, when this fires; each item must then be enqueued."""

    def spread_done(message_id: str) -> Deferred[None]:
        """All items of the message were enqueued."""

    def spreads(partition: int) -> Deferred[Sequence[Sequence[Item]]]:
        """Messages at home here whose items may not all be enqueued."""

    def claim(
        owner: Ownership, domain: str, limit: int, number: int, normal_first: int = 0, bulk_first: int = 0
    ) -> Deferred[Sequence[Claim]]:
        """Up to `limit` due items of the domain: `bulk_first` of bulk and `normal_first` of normal, as far as there are, then most
        urgent first; of each class oldest first. Claim numbers count up from `number`. Fails with `NotOwner`."""

    def unclaim(owner: Ownership, number: int, limit: int) -> Deferred[None]:
        """A `claim` with this first number and limit had no answer: what it took waits again, as it did."""

    def set_aside(claim: Claim) -> Deferred[Settled]:
        """Hold an item that cannot be sent for the operator."""

    def content(item: Item, chunk: int) -> Deferred[bytes]:
        """A piece of the item's content: 0 is the head. Fails with `ContentMissing`."""

    def finish(claim: Claim, delivered: bool, notice: Notice | None, attempts: bytes = b"") -> Deferred[Settled]:
        """No recipient is left: the item is settled, and `notice` owed. `delivered` when all recipients got it: that is recorded
        even from a stale holder. Anything else is done for the claim that is valid, and for a repeat by the one that settled the item so; to
        others it is `STALE`, also when the item is gone; and it is `NOTED` as in `defer`. `attempts` (mail/history.py) join the item's history
        when it is settled by this."""

    def defer(
        claim: Claim, item: Item, delay_ms: int, notice: Notice | None, attempts: bytes = b""
    ) -> Deferred[Settled]:
        """Some recipients are left: `item` (the new value) is due again after `delay_ms`, and `notice` owed. `NOTED` when a
        stale holder reported deliveries that `claim.delivered` does not show: ask for `notes` and settle again. `attempts` as in
        `finish`."""

    def put_back(claim: Claim) -> Deferred[Settled]:
        """The holder did not try: the item is due as before."""

    def notes(claim: Claim) -> Deferred[tuple[str, ...]]:
        """The recipients that stale holders reported as delivered."""

    def note(claim: Claim, recipients: Sequence[str]) -> Deferred[None]:
        """A stale holder delivered to these recipients: whoever holds the item next shall know."""

    def leave_home(item: Item) -> Deferred[None]:
        """An item of a message for several domains was settled: its home need not keep the content for it."""

    def notices(partition: int) -> Deferred[Sequence[Notice]]:
        """Notices owed here."""

    def notice_done(partition: int, notice_id: str) -> Deferred[None]:
        """The notice was enqueued."""

    def acquire(partition: int, incarnation: int, snapshot: Snapshot) -> Deferred[Ownership | None]:
        """Become the owner, unless a living incarnation is: then None."""

    def release(owner: Ownership) -> Deferred[None]:
        """Stop being the owner. What is in flight stays with its holder."""

    def recover(owner: Ownership, snapshot: Snapshot) -> Deferred[Recovered]:
        """Put the items of dead holders back. Fails with `NotOwner`."""

    def claim_overdue(
        owner: Ownership,
        domain: str,
        message_class: MessageClass,
        start: int,
        limit: int,
        number: int,
        expired_before_ms: int,
        delayed_before_ms: int,
    ) -> Deferred[tuple[Sequence[Claim], int]]:
        """Nothing can be sent to the domain for now: up to `limit` of its due items that must not wait for that, as they arrived before
        `expired_before_ms`, or before `delayed_before_ms` and nobody has thought of a delay notice yet. In steps: the first `start` due
        items of the class are passed over, and the result says how many to pass over next; -1 at the end. Claim numbers count up
        from `number`; `unclaim` as for `claim`. Fails with `NotOwner`."""

    def pause(owner: Ownership, domain: str, delay_ms: int, why: Why = Why.SPREAD, detail: str = "") -> Deferred[None]:
        """The domain is not due before `delay_ms` have passed, whatever arrives for it, as long as something waits for it; 0: it is not
        paused. `why` and `detail` are for whoever asks (`policy/pause.py`)."""

    def due(partitions: Sequence[int], passed_over: Mapping[int, int]) -> Deferred[Sequence[tuple[int, str]]]:
        """The poll: (partition, domain or work) of what is due by now, the longest due first, at most `MOST_DUE` of each partition, after
        so many that are `passed_over`."""

    def sweep(owner: Ownership, older_than_ms: int) -> Deferred[int]:
        """The janitor: contents whose items are all gone leave; returns how many parts did."""

    def room() -> Deferred[tuple[int, int]]:
        """Memory in use and its limit, in octets; the limit is 0 where there is none."""

    def tally(partitions: Sequence[int]) -> Deferred[Tally]:
        """Numbers for the metrics."""


@frozen
class Recovered:
    """What `recover` found: ids of items that wait again, and of those that are held for the operator."""

    waiting: tuple[str, ...] = ()
    held: tuple[str, ...] = ()


@frozen
class Tally:
    """How much there is in some partitions. `ready` of the waiting are due by now; `bytes` counts what waits; `oldest_ms` is the
    arrival of the oldest item that is due, 0 when there is none; `domains` the largest backlogs."""

    waiting: int = 0
    ready: int = 0
    leased: int = 0
    held: int = 0
    bytes: int = 0
    oldest_ms: int = 0
    domains: tuple[tuple[str, int], ...] = ()


class IMembership(Interface):
    """Who is in the cluster."""

    def join(member: Member) -> Deferred[Member]:
        """Enter with a new incarnation; fails with `NameTaken` when another node lives under this id."""

    def beat(member: Member) -> Deferred[Snapshot | None]:
        """Renew the lease; None when it had run out: this incarnation is over."""

    def leave(member: Member) -> Deferred[None]:
        """Go at once."""


class NameTaken(QueueError):
    """Another living node uses this node id."""


class IThrottle(Interface):
    """Limits that hold over the whole cluster."""

    def take(limit: str, interval_ns: int, burst: int, wanted: int) -> Deferred[tuple[Sequence[int], int]]:
        """Up to `wanted` slots of a rate, as delays in microseconds from now at which each may be used; and for how many
        microseconds asking again is useless. See `policy/throttle.py`."""

    def spend(limit: str, interval_ns: int, burst: int, wanted: int) -> Deferred[int]:
        """`wanted` units of a rate, now and all of them: 0 when they were taken; else nothing was, and it is for how many
        microseconds asking again is useless. More than `burst` at once can never be had: then as if `burst` were wanted."""

    def hold(limit: str, incarnation: int, wanted: int, maximum: int, snapshot: Snapshot) -> Deferred[int]:
        """This node now holds `wanted` connections of the limit, or as many as the others leave of `maximum`, which is the result.
        Lowering always succeeds."""

    def share(limit: str, incarnation: int, maximum: int, snapshot: Snapshot) -> Deferred[int]:
        """How many connections of the limit this node should keep at most: `maximum`, unless other nodes got fewer than they wanted in
        the last three seconds; then an equal part of it, rounded down, which may be none."""


class IOperations(Interface):
    """What the owner of a partition does for the operator. Deferreds may fail with a `QueueError`."""

    def acts(partition: int) -> Deferred[Sequence[tuple[Act, bytes]]]:
        """What operators did here and nobody has told the log yet, oldest first; at most 100. Each with its record, for `told`."""

    def told(owner: Ownership, acts: Sequence[tuple[Act, bytes]]) -> Deferred[bool]:
        """The log has these, as `acts` gave them, at least one. False, and nothing happens, when they were told before, or somebody else is
        the owner."""

    def claim_bounces(owner: Ownership, limit: int, number: int) -> Deferred[Sequence[tuple[Claim, str]]]:
        """Up to `limit` items that an operator bounced, each with the operator's reason: they are in the caller's hands now, to be settled
        as failed. Claim numbers count up from `number`. Fails with `NotOwner`."""

    def paused(partitions: Sequence[int]) -> Deferred[Sequence[tuple[int, str, Pause]]]:
        """(partition, domain, until when and why) of all domains that are paused."""

    def trim_traces(partitions: Sequence[int], most_bytes: int) -> Deferred[int]:
        """The history of these partitions shall take no more memory than that: the oldest leaves. How many octets did."""


class Operated(Enum):
    """What an operator's transition found."""

    DONE = "done"  # it happened, or it was so already
    UNKNOWN = "unknown"  # there is no such item: never queued, or settled
    LEASED = "leased"  # a holder has it in hand: hold it first, or wait for the end of the attempt
    HELD = "held"  # it is held: release it first
    BOUNCING = "bouncing"  # it was bounced and waits for its owner to tell the sender
    CHANGED = "changed"  # it was attempted meanwhile: look again
    UNREADABLE = "unreadable"  # it can not be changed by a release that can not read it


class ItemState(Enum):
    """Where an item is."""

    READY = "ready"  # waits, and is due
    SCHEDULED = "scheduled"  # waits for its time
    LEASED = "leased"
    HELD = "held"
    BOUNCING = "bouncing"


@frozen
class Shown:
    """An item as the operator sees it. `at_ms` is when it is due (waiting), was due (leased), was held or bounced; `incarnation` of the
    holder, 0 when nobody has it in hand; `packed` its value as it was read, for `requeue`. `unreadable` says why this release can not
    read it: then `item` has no envelope, only what any release can read."""

    item: Item
    partition: int
    state: ItemState
    at_ms: int
    incarnation: int = 0
    packed: bytes = field(default=b"", repr=False)
    unreadable: str = ""


@frozen
class Wanted:
    """Which items to list: all that is given must hold. Texts are compared without regard to case; `sender` and `recipient` may be any
    part of the address. `before_ms` is a time of arrival."""

    domain: str = ""
    sender: str = ""
    recipient: str = ""
    states: frozenset[ItemState] = frozenset(ItemState)
    message_class: MessageClass | None = None
    before_ms: int = 0

    def fits(self, shown: Shown) -> bool:
        """Whether this is one of them."""
        item = shown.item
        envelope = item.envelope
        if shown.unreadable and (self.sender or self.recipient):
            return False
        return (
            shown.state in self.states
            and (not self.domain or item.domain == self.domain)
            and (self.message_class is None or item.message_class is self.message_class)
            and (not self.before_ms or item.arrived_ms < self.before_ms)
            and self.sender.lower() in (envelope.reverse_path.text or "<>").lower()
            and (not self.recipient or any(self.recipient.lower() in who.text.lower() for who in envelope.recipients))
        )


@frozen
class DomainState:
    """A domain's queue in numbers. `waiting` items, `ready` of which are due; `next_ms` is when the domain is due next (0: nothing waits),
    `pause` until when it is kept back, and why (None: it is not); `oldest_ms` the earliest arrival that was seen, exact while
    `oldest_exact`; `last_reply` of the last deferral, at `last_reply_ms`; `owner` is the incarnation that owns its partition, 0 for nobody."""

    domain: str
    partition: int
    waiting: int = 0
    ready: int = 0
    next_ms: int = 0
    pause: Pause | None = None
    oldest_ms: int = 0
    oldest_exact: bool = True
    last_reply: str = ""
    last_reply_ms: int = 0
    owner: int = 0

    @property
    def paused_until_ms(self) -> int:
        """Until when it is kept back; 0: it is not."""
        return self.pause.until_ms if self.pause is not None else 0


@frozen
class LimitState:
    """What a limit has given out: after `free_in_us` the next slot of its rate (0: at once), and how many connections each incarnation
    holds."""

    free_in_us: int
    connections: tuple[tuple[int, int], ...] = ()


class IOperator(Interface):
    """What an operator sees and does. Each act binds the whole cluster by one atomic write, survives restarts, and leaves an event with
    `who` and `reason`, which the owner of the partition tells the log. Deferreds may fail with a `QueueError`."""

    def domains(limit: int) -> Deferred[Sequence[DomainState]]:
        """The largest queues, from counters: no item is looked at but the ends of these domains' queues."""

    def domain(domain: str) -> Deferred[DomainState]:
        """One of them."""

    def items(wanted: Wanted, limit: int) -> Deferred[Sequence[Shown]]:
        """Items that exist, read page by page, so that nothing else waits for it."""

    def pages(wanted: Wanted, besides: Container[str] = ()) -> AsyncIterator[Sequence[Shown]]:
        """All of them, each once, but those whose ids are among `besides`. What is moved from one state to another meanwhile can be
        missed."""

    def show(identifier: str) -> Deferred[Sequence[Shown]]:
        """The item of this id, or all items of this message; empty when none exists."""

    def trace(identifier: str) -> Deferred[Sequence[tuple[str, Record]]]:
        """The history of an item, or of a message with all of its items, oldest first, as far as it is kept."""

    def hold(item_id: str, who: str, reason: str) -> Deferred[Operated]:
        """Nobody sends it until it is released. Out of a holder's hands, too: what that one delivers meanwhile counts, and the item is
        marked as a possible duplicate."""

    def release(item_id: str, who: str, reason: str) -> Deferred[Operated]:
        """Held no more: due now."""

    def requeue(shown: Shown, reset: bool, who: str, reason: str) -> Deferred[Operated]:
        """Due now; with `reset` as if it had never been tried (its lifetime runs on)."""

    def bounce(item_id: str, who: str, reason: str) -> Deferred[Operated]:
        """It fails for all its recipients, and its sender gets a notice: the owner of its partition settles it so."""

    def delete(item_id: str, who: str, reason: str) -> Deferred[Operated]:
        """It is gone, and nobody is told but the log."""

    def flush(domain: str, who: str, reason: str) -> Deferred[int]:
        """All that waits for the domain is due now, also out of a pause; how many items were not."""

    def limit(name: str, interval_ns: int, burst: int) -> Deferred[LimitState]:
        """What a limit has given out; nothing is taken. `interval_ns` 0 for one without a rate."""

    def cluster() -> Deferred[ClusterState]:
        """The cluster as it stands, seen from outside."""


@frozen
class ClusterState:
    """The members with what their leases have left in milliseconds (0: it ran out, and nobody has said so yet); who owns each partition
    (an incarnation, 0 for nobody); queue time."""

    snapshot: Snapshot
    lease_left_ms: tuple[int, ...]
    owners: tuple[int, ...]
    now_ms: int


class ISuspensions(Interface):
    """Which domains get no mail for now. Every node has a copy of the whole table, so that asking costs nothing."""

    def suspended(domain: str, limit: str) -> Suspension | None:
        """What keeps mail for this domain, whose limit has this name, from being sent; None when nothing does."""

    def all() -> Deferred[Sequence[Suspension]]:
        """All that hold, read anew."""

    def suspend(subject: str, seconds: float, who: str, reason: str, at_least: bool = False) -> Deferred[Suspension]:
        """From now on, for the whole cluster; `seconds` 0 until it is resumed. The latest word holds; with `at_least` (a rule's, not an
        operator's) one that lasts longer stays. What holds now."""

    def resume(subject: str, who: str, reason: str) -> Deferred[bool]:
        """The suspension of exactly this subject ends; False when there is none."""

    def see(version: int) -> Deferred[None]:
        """A beat told this version of the table: the copy is read anew when it is older. `on_change` hears what changed."""
