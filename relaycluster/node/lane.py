"""The lane of one recipient domain at its owner: claims what is due, opens connections as far as the limits allow, sends.

A claim is in one of three places: `waiting` for a connection, being sent, or on its way to another host. The plain case
(a connection is there, everybody is delivered) runs on callbacks; whatever goes wrong is a coroutine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from relaycluster import events
from relaycluster.interfaces import ContentMissing, NotOwner, QueueError
from relaycluster.mail import outcome
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import BodyType
from relaycluster.mail.item import Claim
from relaycluster.mail.outcome import Outcome, Stage
from relaycluster.mail.reply import Reply
from relaycluster.mail.trace import header_end
from relaycluster.net.outbound import ConnectFailed, OutboundConnection, Target
from relaycluster.node.content import head_of, in_seven_bits, pieces
from relaycluster.node.crowd import LimitReached
from relaycluster.node.limits import SLOT_GRACE_SECONDS
from relaycluster.node.means import Means
from relaycluster.node.routes import NoRoute, Route
from relaycluster.node.verdicts import for_next_host, judged, recipients_left, spared, together, too_many
from relaycluster.policy import trouble
from relaycluster.policy.cluster import Ownership
from relaycluster.policy.routing import DestinationSettings
from relaycluster.policy.trouble import LocalTrouble
from relaycluster.smtp.client import TLSPolicy, Transaction

_REPORTED = Reply.of(250, "2.0.0", "a former holder of the item reported that all recipients have it")

MOST_CLAIMED = 40
"""Claims of one lane at once: few items are in hands that may die."""
NO_OPENING_SECONDS = 0.2
"""After a connection could not be opened while others stand, no other is tried for so long."""
PARKED_SECONDS = 15.0
"""How long a destination that cannot be reached is left alone; its items have their own schedule besides."""
CROWDED_SECONDS = 1.0
"""How long to wait when the cluster's other connections leave no room for ours."""
MOST_WAITING_DIRECT = 4
"""So many messages may wait for a connection before new ones are queued instead of leased directly."""


class Lane:
    """See the module. `in_hand` counts the claims that this lane has not handed to the settlement yet."""

    __slots__ = (
        "_carrying",
        "_claiming",
        "_means",
        "_open_after",
        "_opening",
        "_parked_until",
        "_route",
        "_stale",
        "_timer",
        "_waiting",
        "domain",
        "elsewhere",
        "more",
        "pace",
        "partition",
        "settings",
        "used_seconds",
    )

    def __init__(self, domain: str, partition: int, settings: DestinationSettings, means: Means) -> None:
        self.domain = domain
        self.partition = partition
        self.settings = settings
        self.more = False  # the queue may hold due items
        self.elsewhere = 0  # claims that try other hosts
        self.used_seconds = means.clock.seconds()
        self.pace = means.pace(domain, settings)
        self._means = means
        self._waiting: deque[tuple[Claim, float]] = deque()  # with the time until which its slot is good
        self._stale: set[bytes] = set()  # claims that met a connection which was closed already
        self._carrying: set[OutboundConnection] = set()
        self._opening = 0
        self._claiming = False
        self._parked_until = 0.0
        self._open_after = 0.0
        self._route: Route | None = None
        self._timer: IDelayedCall | None = None

    @property
    def _sending(self) -> int:
        """How many connections carry mail of this lane."""
        return len(self._carrying)

    @property
    def in_hand(self) -> int:
        """Claims that have no outcome yet."""
        return len(self._waiting) + self._sending + self.elsewhere

    @property
    def is_idle(self) -> bool:
        """Whether the lane can be forgotten."""
        return not (self.in_hand or self._opening or self._claiming or self.more or self._timer)

    def has_room(self) -> bool:
        """Whether a message may be leased directly: nothing older waits, and there is, or can be, a connection."""
        return (
            self.pace is None
            and not self.more
            and not self._claiming
            and len(self._waiting) < MOST_WAITING_DIRECT
            and self._sending < self.settings.connections
            and self._means.clock.seconds() >= self._parked_until
        )

    def use(self, settings: DestinationSettings) -> None:
        """Other settings, from the next step on."""
        self.settings = settings
        self.pace = self._means.pace(self.domain, settings)
        self._route = None

    def offer(self, claim: Claim) -> None:
        """Here is an item in our hands: send it."""
        self._waiting.append((claim, float("inf")))
        self.pump()

    def wake(self) -> None:
        """The queue may hold something due."""
        self.more = True
        self.pump()

    def pump(self) -> None:
        """Do whatever can be done now."""
        means = self._means
        self.used_seconds = means.clock.seconds()
        while self._waiting:
            connection = self._idle_connection()
            if connection is None:
                break
            claim, good_until = self._waiting.popleft()
            self._send(connection, claim, good_until)
        if means.draining():
            self._put_back()
            return
        room = self._sending + self._opening < self.settings.connections
        # Each connection that carries mail may bring one more along: a slow start.
        if len(self._waiting) > self._opening <= self._sending and room and self.used_seconds >= self._open_after:
            self._opening += 1
            Deferred.fromCoroutine(self._open()).addErrback(self._bug, None)
        if self._waiting and not self._opening and not self._sending:
            # Nothing will call us: look again when a connection may be opened.
            self._wake_up_after(max(NO_OPENING_SECONDS / 4, self._open_after - self.used_seconds))
        if self.more and not self._claiming and self.used_seconds >= self._parked_until and means.valid():
            # A paced lane claims for all slots that it can get ahead of their time: one that is asked for late is lost.
            most = 2 * (self._sending + 1) if self.pace is None else MOST_CLAIMED
            wanted = min(MOST_CLAIMED, self.settings.connections, most) - self.in_hand
            owner = means.owner_of(self.partition)
            if owner is None:
                self.more = False  # not ours now; whoever owns it polls
            elif wanted > 0:
                self._claiming = True
                Deferred.fromCoroutine(self._claim(owner, wanted)).addErrback(self._bug, None)

    def _bug(self, failure: Any, claim: Claim | None) -> None:
        """Nothing may be lost to a fault of our own: it is told, and the claim is tried again, marked, as nobody knows how far it
        came."""
        self._means.log.emit(
            events.Error(
                type(failure.value).__name__, f"lane {self.domain}", str(failure.value), failure.getTraceback()
            )
        )
        if claim is not None:
            reply = trouble.LOCAL_REPLIES[LocalTrouble.INTERNAL]
            internal = outcome.Deferred(reply, Stage.ROUTING, may_have_arrived=True)
            self._means.settlement.settle(claim, [(who, internal) for who in recipients_left(claim)])

    def _bug_in_sending(self, failure: Any, claim: Claim, connection: OutboundConnection) -> None:
        self._bug(failure, claim)
        connection.abort()
        self._done(connection)

    # Claiming

    async def _claim(self, owner: Ownership, wanted: int) -> None:
        means = self._means
        slots: list[float] = []
        retry_seconds = 0.0
        number = 0
        try:
            if self.pace is not None:
                slots, retry_seconds = await self.pace.take(wanted)
                if not slots:
                    means.metrics.throttled["rate"].inc()
                    self._wait(retry_seconds)
                    if retry_seconds >= CROWDED_SECONDS:
                        await means.queue.pause(owner, self.domain, int(retry_seconds * 1000))
                    return
                wanted = len(slots)
            self.more = False  # whatever arrives from here on wakes us again
            number = means.number()
            claims = await means.queue.claim(owner, self.domain, wanted, number)
            if len(claims) == wanted:
                self.more = True
            now = means.clock.seconds()
            for at, claim in enumerate(claims):
                means.taken(claim)
                if not slots or slots[at] <= now:
                    self._waiting.append((claim, slots[at] + SLOT_GRACE_SECONDS if slots else float("inf")))
                else:
                    self.elsewhere += 1
                    means.clock.callLater(slots[at] - now, self._on_time, claim, slots[at])
            if slots and self.more:
                self._wait(retry_seconds)
        except NotOwner:
            means.lost(owner)
        except QueueError:
            self.more = True
            if number:
                self._unclaim(owner, number, wanted)
            self._wait(CROWDED_SECONDS)
        finally:
            self._claiming = False
            self.pump()

    def _unclaim(self, owner: Ownership, number: int, wanted: int) -> None:
        """The claim had no answer: if it happened, nobody has its items in hand, and they must not stay leased."""
        settlement = self._means.settlement
        self._means.queue.unclaim(owner, number, wanted).addErrback(
            settlement.later, lambda: self._unclaim(owner, number, wanted)
        )

    def drop_waiting(self) -> None:
        """The life in which it was claimed is over: what waits is not ours any more."""
        for claim, _ in self._waiting:
            self._means.settlement.on_settled(claim)
        self._waiting.clear()

    def _on_time(self, claim: Claim, slot: float) -> None:
        self.elsewhere -= 1
        self._waiting.append((claim, slot + SLOT_GRACE_SECONDS))
        self.pump()

    def _wait(self, seconds: float) -> None:
        """Claim nothing for a while; then look again."""
        self._parked_until = max(self._parked_until, self._means.clock.seconds() + seconds)
        self._wake_up_after(seconds)

    def _wake_up_after(self, seconds: float) -> None:
        timer, clock = self._timer, self._means.clock
        if timer is not None:
            if timer.getTime() <= clock.seconds() + seconds:
                return
            timer.cancel()
        self._timer = clock.callLater(seconds, self._waited)

    def _waited(self) -> None:
        self._timer = None
        self.pump()
        left = self._parked_until - self._means.clock.seconds()
        if self.more and left > 0:
            self._wake_up_after(left)

    def _put_back(self) -> None:
        """What was not tried goes back as it was."""
        while self._waiting:
            claim, _ = self._waiting.popleft()
            self._return(claim)

    def _return(self, claim: Claim) -> None:
        settlement = self._means.settlement
        self._means.queue.put_back(claim).addCallbacks(
            lambda _: settlement.on_settled(claim), settlement.later, errbackArgs=(lambda: self._return(claim),)
        )

    # Connections

    def _idle_connection(self) -> OutboundConnection | None:
        route = self._route
        if route is None or route.until_seconds < self.used_seconds:
            return None
        for target in route.targets:
            connection = self._means.pool.take(target)
            if connection is not None:
                return connection
        return None

    async def _find_route(self) -> Route | NoRoute:
        """Asked for each connection, not only once a TTL: hosts of equal preference share the load (RFC 5321 5.1). What DNS
        said is cached below."""
        found = await self._means.routes.find(self.domain, self.settings)
        if isinstance(found, Route):
            self._route = found
        return found

    async def _connect(self, targets: Sequence[Target]) -> OutboundConnection | outcome.Deferred | outcome.Failed:
        """A connection to the first target that takes one, else what all of them together mean."""
        outcomes: list[outcome.Deferred | outcome.Failed] = []
        for target in targets:
            try:
                return await self._means.pool.acquire(target)
            except ConnectFailed as error:
                if error.tls_failed and target.tls is TLSPolicy.MAY:
                    try:
                        return await self._means.pool.acquire(evolve(target, tls=TLSPolicy.NONE))
                    except ConnectFailed as in_clear:
                        error = in_clear
                result = error.outcome
                self._attempted(None, target, result, 0.0)
                verdict = trouble.judge(result.stage, result.reply, result.host)
                outcomes.append(verdict.outcome if isinstance(result, outcome.Failed) else result)
                if isinstance(outcomes[-1], outcome.Failed) and not verdict.try_next_host:
                    break
        return trouble.after_all_hosts(outcomes)

    async def _open(self) -> None:
        """One more connection for what waits."""
        connection: OutboundConnection | None = None
        try:
            route = await self._find_route()
            if isinstance(route, NoRoute):
                self._unreachable(route.outcome)
                return
            found = await self._connect(route.targets)
            if isinstance(found, OutboundConnection):
                connection = found
            else:
                self._unreachable(found)
        except LimitReached as error:
            self._crowded(str(error))
        except Exception:
            self._open_after = (
                self._means.clock.seconds() + CROWDED_SECONDS
            )  # a fault of our own: told, and no faster for it
            raise
        finally:
            self._opening -= 1
            if connection is not None:
                self._next(connection)
            else:
                self.pump()

    def _crowded(self, limit: str) -> None:
        """No room in the cluster's limit: the next connection of ours that is free shall be for us. When this process has none,
        others shall have the items."""
        means = self._means
        means.metrics.throttled["connections"].inc()
        self._open_after = means.clock.seconds() + NO_OPENING_SECONDS
        if self._sending:
            return
        if means.crowd.wait(limit, self):
            self._wake_up_after(CROWDED_SECONDS)
        else:
            self._put_back()
            self.more = True
            self._wait(CROWDED_SECONDS)

    def _unreachable(self, result: outcome.Deferred | outcome.Failed) -> None:
        """No host of the destination could be reached: that holds for all that waits, unless a connection stands."""
        if self._sending:
            self._open_after = self._means.clock.seconds() + NO_OPENING_SECONDS
            return
        self._route = None
        for claim, _ in self._waiting:
            self._means.settlement.settle(claim, [(who, result) for who in recipients_left(claim)])
        self._waiting.clear()
        if isinstance(result, outcome.Deferred) and result.stage is not Stage.ROUTING:
            self._wait(PARKED_SECONDS)

    # Sending

    def _send(self, connection: OutboundConnection, claim: Claim, good_until: float) -> None:
        means = self._means
        if good_until < self.used_seconds or claim.content is None or claim.item.chunks or claim.delivered:
            self._carrying.add(connection)
            Deferred.fromCoroutine(self._send_slowly(connection, claim, good_until)).addErrback(
                self._bug_in_sending, claim, connection
            )
            return
        item = claim.item
        transaction = Transaction(item.envelope, claim.content, item.size, partial(means.proves, claim.token))
        if connection.needs_seven_bit(transaction):
            self._carrying.add(connection)
            Deferred.fromCoroutine(self._send_slowly(connection, claim, good_until)).addErrback(
                self._bug_in_sending, claim, connection
            )
            return
        self._carrying.add(connection)
        sent = connection.send(transaction)
        sent.addCallback(self._sent, connection, claim, item.envelope.recipients, means.clock.seconds())
        sent.addErrback(self._bug_in_sending, claim, connection)

    async def _send_slowly(self, connection: OutboundConnection, claim: Claim, good_until: float) -> None:
        """The ways that are not hot: a slot that is past, content to fetch, recipients that are done, seven bits."""
        means = self._means
        recipients = recipients_left(claim)
        if not recipients:
            means.settlement.delivered(claim, (), (outcome.Delivered(_REPORTED),))
            self._done(connection)
            return
        try:
            if good_until < means.clock.seconds() and not await self._new_slot():
                self._return(claim)
                self.more = True
                self._done(connection)
                return
            started = means.clock.seconds()
            outcomes = await self._carry(connection, claim, recipients)
        except ContentMissing as error:
            means.settlement.set_aside(claim, str(error))
            self._done(connection)
            return
        except QueueError:
            self._return(claim)
            self._done(connection)
            return
        self._sent(outcomes, connection, claim, recipients, started)

    async def _new_slot(self) -> bool:
        """The connection was late: another slot, at its own time. False when the next one is too far away to wait with an open
        connection."""
        pace = self.pace
        while pace is not None:
            slots, retry_seconds = await pace.take(1)
            wait = slots[0] - self._means.clock.seconds() if slots else retry_seconds
            if wait > CROWDED_SECONDS:
                self._wait(wait)
                return False
            if wait > 0:
                pause: Deferred[None] = Deferred()
                self._means.clock.callLater(wait, pause.callback, None)
                await pause
            if slots:
                return True
        return True

    async def _carry(
        self, connection: OutboundConnection, claim: Claim, recipients: Sequence[Address]
    ) -> tuple[Outcome, ...]:
        """Send it to these recipients as this host takes it. Raises a `QueueError` when the content cannot be read."""
        means, item = self._means, claim.item
        valid = partial(means.proves, claim.token)
        envelope = item.envelope
        if len(recipients) != len(envelope.recipients):
            envelope = evolve(envelope, recipients=tuple(recipients))
        head = await head_of(means.queue, claim)
        if item.chunks and envelope.smtputf8 and head[: header_end(head)].isascii():
            envelope = evolve(
                envelope, smtputf8=False
            )  # of a long content the conversation only knows what is declared
        content: Any = pieces(means.queue, item, head) if item.chunks else head
        transaction = Transaction(envelope, content, item.size, valid)
        if connection.needs_seven_bit(transaction):
            converted = await in_seven_bits(means.queue, item, head)
            if converted is None:
                host = connection.target.host
                failed = trouble.judge_local(Stage.MAIL, LocalTrouble.EIGHT_BIT_NOT_OFFERED, host).outcome
                return (failed,) * len(recipients)
            # Its body is what is sent now; what was declared of the other no longer counts.
            envelope = evolve(envelope, body=BodyType.SEVEN_BIT)
            converted = means.sign_anew(converted)
            transaction = Transaction(envelope, converted, len(converted), valid)
        return await connection.send(transaction)

    def _sent(
        self,
        outcomes: tuple[Outcome, ...],
        connection: OutboundConnection,
        claim: Claim,
        recipients: Sequence[Address],
        started: float,
    ) -> None:
        means = self._means
        if connection.went_stale and claim.token not in self._stale:
            # The server had given up the idle connection: nothing was taken. Once only: a host that always does so is in trouble.
            self._stale.add(claim.token)
            self._waiting.appendleft((claim, float("inf")))
            self._done(connection)
            return
        if self._stale:
            self._stale.discard(claim.token)
        elapsed = means.clock.seconds() - started
        means.metrics.delivery_seconds.observe(elapsed)
        for each in outcomes:
            if type(each) is not outcome.Delivered:
                break
        else:
            means.settlement.delivered(claim, recipients, outcomes)
            self._done(connection)
            return
        self._attempted(claim, connection.target, outcomes[-1], elapsed, connection)
        pairs = [(who, judged(each)) for who, each in zip(recipients, outcomes, strict=True)]
        gone = not connection.usable
        rest = too_many(pairs) or spared(pairs)
        if rest and not gone:
            # RFC 5321 4.5.3.1.10: the host takes so many at once; the others follow at once, in transactions of their own. So do
            # recipients whose addresses are plain, when a host has no SMTPUTF8 for the others'.
            done = Deferred.fromCoroutine(self._send_rest(connection, claim, pairs, rest))
            done.addErrback(self._bug, claim)
            return
        self._done(connection)
        self._conclude(claim, pairs, connection.target, gone)

    def _conclude(self, claim: Claim, pairs: list[tuple[Address, Outcome]], target: Target, gone: bool) -> None:
        """This host has said all that it will say: the others are asked, or the outcomes hold."""
        again = [who for who, each in pairs if for_next_host(each, gone)]
        if again and self._others({target.host}):
            self.elsewhere += 1
            Deferred.fromCoroutine(self._elsewhere(claim, pairs, again, target)).addErrback(self._bug, claim)
        else:
            self._means.settlement.settle(claim, pairs)

    async def _send_rest(
        self,
        connection: OutboundConnection,
        claim: Claim,
        pairs: Sequence[tuple[Address, Outcome]],
        rest: Sequence[Address],
    ) -> None:
        means = self._means
        results = dict(pairs)
        try:
            while rest and connection.usable:
                started = means.clock.seconds()
                outcomes = await self._carry(connection, claim, rest)
                self._attempted(claim, connection.target, outcomes[-1], means.clock.seconds() - started, connection)
                some = [(who, judged(each)) for who, each in zip(rest, outcomes, strict=True)]
                results.update(some)
                rest = too_many(some)
        except QueueError:
            pass  # the content could not be read: the rest is tried later
        gone = not connection.usable
        self._done(connection)
        self._conclude(claim, list(results.items()), connection.target, gone)

    def _done(self, connection: OutboundConnection) -> None:
        """The connection is free: the next claim, or the pool."""
        if connection not in self._carrying:
            return  # a fault after its end was dealt with
        self._carrying.discard(connection)
        self._next(connection)

    def _next(self, connection: OutboundConnection) -> None:
        means = self._means
        limit = connection.target.limit
        most = self.settings.messages_per_connection
        # Lanes that share a crowded limit take turns, message by message: a long queue does not shut out a short one.
        if self._waiting and connection.usable and connection.transactions_done < most and not means.crowd.waits(limit):
            self.used_seconds = means.clock.seconds()
            claim, good_until = self._waiting.popleft()
            self._send(connection, claim, good_until)
            if self.more or self._waiting:
                self.pump()
            return
        means.pool.release(connection, most)
        means.crowd.freed(limit)
        if self.more or self._waiting:
            self.pump()

    # Other hosts

    def _others(self, tried: set[str]) -> list[Target]:
        route = self._route
        return [target for target in route.targets if target.host not in tried] if route is not None else []

    async def _elsewhere(
        self, claim: Claim, pairs: list[tuple[Address, Outcome]], again: list[Address], first: Target
    ) -> None:
        """Recipients that a host could not take try the next hosts at once (RFC 5321 5.1)."""
        means = self._means
        results = dict(pairs)
        tried = {first.host}
        try:
            while again and (targets := self._others(tried)):
                found: OutboundConnection | outcome.Deferred | outcome.Failed
                try:
                    found = await self._connect(targets)
                except LimitReached:
                    found = trouble.judge_local(Stage.CONNECT, LocalTrouble.CROWDED).outcome
                if not isinstance(found, OutboundConnection):
                    results.update(together(results, again, found))
                    break
                tried |= (
                    {target.host for target in targets[: targets.index(found.target) + 1]}
                    if (found.target in targets)
                    else {found.target.host}
                )
                started = means.clock.seconds()
                outcomes = await self._carry(found, claim, again)
                self._attempted(claim, found.target, outcomes[-1], means.clock.seconds() - started, found)
                gone = not found.usable
                means.pool.release(found, self.settings.messages_per_connection)
                some = [(who, judged(each)) for who, each in zip(again, outcomes, strict=True)]
                results.update(some)
                again = [who for who, each in some if for_next_host(each, gone)]
        except QueueError:
            # The content could not be read: what is known so far counts.
            unread = trouble.judge_local(Stage.CONTENT, LocalTrouble.INTERNAL).outcome
            results.update(together(results, again, unread))
        finally:
            self.elsewhere -= 1
        means.settlement.settle(claim, list(results.items()))
        self.pump()

    def _attempted(
        self,
        claim: Claim | None,
        target: Target,
        result: Outcome,
        seconds: float,
        connection: OutboundConnection | None = None,
    ) -> None:
        stage = Stage.FINAL_DOT if isinstance(result, outcome.Delivered) else result.stage
        tls = connection.tls if connection is not None else None
        self._means.log.emit(
            events.Attempt(
                claim.item.id if claim is not None else "",
                self.domain,
                target.host,
                f"{target.address}:{target.port}",
                stage.value,
                str(tls) if tls is not None else "",
                seconds,
                str(result.reply),
            )
        )
