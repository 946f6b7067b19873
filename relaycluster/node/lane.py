"""The lane of one recipient domain at its owner: what waits, what is being sent, and the plain way from one to the other.

A claim is in one of three places: `waiting` for a connection, being sent, or `elsewhere`: trying other hosts, or waiting for its slot. The
plain case (a connection is there, everybody is delivered) runs on callbacks, here; claims come by `claiming.py`, connections
by `opening.py`, and whatever is not plain is a coroutine in `sending.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, assert_never

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from relaycluster import events
from relaycluster.mail import outcome
from relaycluster.mail.address import Address
from relaycluster.mail.item import Claim
from relaycluster.mail.outcome import Outcome
from relaycluster.net.outbound import OutboundConnection, Target
from relaycluster.node.attempts import attempted
from relaycluster.node.claiming import NO_SLOT, Claiming
from relaycluster.node.history import via_of
from relaycluster.node.means import Means
from relaycluster.node.opening import Opening
from relaycluster.node.sending import conclude, send_rest, send_slowly
from relaycluster.node.verdicts import FAULT, recipients_left, spared, too_many, verdict_of
from relaycluster.policy import trouble
from relaycluster.policy.pace import UNCHANGED, Pace, SlowDown, Suspend, Unchanged
from relaycluster.policy.routing import DestinationSettings
from relaycluster.smtp.client_events import Transaction

MOST_WAITING_DIRECT = 4
"""So many messages may wait for a connection before new ones are queued instead of leased directly."""
HEARD_SECONDS = 2.0
"""In so long a suspension that we asked for has come to all nodes, us among them: until then it is kept without having been told."""
TURN = 5
"""Transactions in a row over one connection, while others wait for its place."""


class Lane:
    """See the module. `elsewhere` counts claims; `carrying` are the connections that carry mail of this lane."""

    __slots__ = (
        "_is_placed",
        "_is_placing",
        "_stale",
        "_timer",
        "carrying",
        "claiming",
        "domain",
        "elsewhere",
        "limit",
        "means",
        "opening",
        "pace",
        "partition",
        "settings",
        "used_seconds",
        "waiting",
    )

    def __init__(self, domain: str, partition: int, settings: DestinationSettings, means: Means) -> None:
        self.domain = domain
        self.partition = partition
        self.settings = settings
        self.limit = settings.limit_key(domain)
        self.elsewhere = 0
        self.used_seconds = means.clock.seconds()
        self.pace = means.pace(domain, settings)
        self.means = means
        self.waiting: deque[tuple[Claim, float]] = deque()  # with the time until which its slot is good
        self.carrying: set[OutboundConnection] = set()
        self.claiming = Claiming(self, means)
        self.opening = Opening(self, means)
        self._is_placed = means.routes.is_placed(domain)
        self._is_placing = False
        self._stale: set[bytes] = set()  # claims that met a connection which was closed already
        self._timer: IDelayedCall | None = None

    @property
    def in_hand(self) -> int:
        """Claims that have no outcome yet."""
        return len(self.waiting) + len(self.carrying) + self.elsewhere

    @property
    def is_idle(self) -> bool:
        """Whether the lane can be forgotten."""
        claiming = self.claiming
        return not (self.in_hand or self.opening.count or claiming.busy or claiming.more or self._timer)

    def has_room(self) -> bool:
        """Whether a message may be leased directly: nothing older waits, and there is, or can be, a connection."""
        claiming, means = self.claiming, self.means
        if not self._is_placed:
            self._place()
            return False
        now = means.clock.seconds()
        return (
            self.pace is None
            and not claiming.more
            and not claiming.busy
            and len(self.waiting) < MOST_WAITING_DIRECT
            and len(self.carrying) < self.settings.connections
            and (self.carrying or means.hands.have_room)
            and now >= claiming.not_before_seconds
            and not self.opening.closed_seconds(now)
            and means.suspended(self.domain, self.limit) is None
        )

    def use(self, settings: DestinationSettings) -> None:
        """Other settings, from the next step on."""
        self._is_placed = self.means.routes.is_placed(self.domain)
        self.adopt(settings)

    def adopt(self, settings: DestinationSettings) -> None:
        """These settings are the domain's now; where its hosts are is asked anew."""
        self.settings = settings
        self.limit = settings.limit_key(self.domain)
        self.pace = self.means.pace(self.domain, settings)
        self.opening.use()

    def offer(self, claim: Claim) -> None:
        """Here is an item in our hands: send it."""
        self.waiting.append((claim, NO_SLOT))
        self.pump()

    def wake(self) -> None:
        """The queue may hold something due."""
        self.claiming.more = True
        self.pump()

    def try_now(self) -> None:
        """An operator wants what waits to be tried now, whatever is known of the hosts."""
        now = self.means.clock.seconds()
        self.opening.try_now(now)
        self.claiming.not_before_seconds = now
        self.wake()

    def look_again(self) -> None:
        """Something outside has changed: the lease, the queue, or what is suspended."""
        if self.waiting and self.means.suspended(self.domain, self.limit) is not None:
            self.put_back(0)
        self.pump()

    @property
    def wants_turn(self) -> bool:
        """See `Waits`."""
        return bool(self.waiting)

    def take_turn(self) -> None:
        """A connection under our limit is free, or gone, and we are the first in line."""
        self.opening.after_seconds = 0.0
        self.opening.is_first = True
        self.pump()
        self.opening.is_first = bool(self.opening.count)

    def pump(self) -> None:
        """Do whatever can be done now."""
        means, waiting = self.means, self.waiting
        now = self.used_seconds = means.clock.seconds()
        opening = self.opening
        if waiting and (rest_seconds := opening.rest_seconds(now)) > 0:
            self.put_back(rest_seconds)
        while waiting:
            connection = opening.idle_connection(now)
            if connection is None:
                break
            claim, good_until = waiting.popleft()
            self._send(connection, claim, good_until)
        if means.draining():
            self._return_all()
            return
        if waiting:
            opening.look(now)
        claiming = self.claiming
        if claiming.more and not claiming.busy and now >= claiming.not_before_seconds:
            if self._is_placed:
                claiming.look(now)
            else:
                self._place()

    # Whose limits hold

    def _place(self) -> None:
        """Find out whose limits hold before the first claim: the provider's, if the domain's hosts are a known one's."""
        if not self._is_placing:
            self._is_placing = True
            Deferred.fromCoroutine(self._placed()).addErrback(self.bug, None)

    async def _placed(self) -> None:
        try:
            await self.opening.find_route()  # without a route there is no limit to keep: nothing will be connected
        finally:
            self._is_placed = True
            self._is_placing = False
        self.pump()

    # Waiting and giving back

    def wait(self, seconds: float) -> None:
        """Claim nothing for a while; then look again."""
        self.claiming.rest(seconds)
        self.wake_up_after(seconds)

    def wake_up_after(self, seconds: float) -> None:
        """Look again then, if not sooner."""
        timer, clock = self._timer, self.means.clock
        if timer is not None:
            if timer.getTime() <= clock.seconds() + seconds:
                return
            timer.cancel()
        self._timer = clock.callLater(seconds, self._waited)

    def _waited(self) -> None:
        self._timer = None
        self.pump()
        left = self.claiming.not_before_seconds - self.means.clock.seconds()
        if self.claiming.more and left > 0:
            self.wake_up_after(left)

    def put_back(self, seconds: float) -> None:
        """What waits goes back as it was, and is not claimed again before so long."""
        self._return_all()
        self.claiming.more = True
        if seconds > 0:
            self.wait(seconds)

    def _return_all(self) -> None:
        while self.waiting:
            claim, _ = self.waiting.popleft()
            self.give_back(claim)

    def give_back(self, claim: Claim) -> None:
        """It was not tried, and is due as before."""
        settlement = self.means.settlement
        self.means.queue.put_back(claim).addCallbacks(
            lambda _: settlement.on_settled(claim), settlement.later, errbackArgs=(lambda: self.give_back(claim),)
        )

    def drop_waiting(self) -> None:
        """The life in which it was claimed is over: what waits is not ours any more."""
        for claim, _ in self.waiting:
            self.means.settlement.on_settled(claim)
        self.waiting.clear()

    def release(self) -> None:
        """The partition is another node's from here on: what was not tried goes back, and connections that only this domain uses end, so
        that the new owner may have theirs."""
        self._return_all()
        self.claiming.more = False
        if self.limit == self.domain:
            self.means.pool.retire_idle(self.limit, every=True)

    def bug(self, failure: Any, claim: Claim | None) -> None:
        """Nothing may be lost to a fault of our own: it is told, and the claim is tried again."""
        self.means.log.emit(events.Error.of(failure, f"lane {self.domain}"))
        if claim is not None:
            self.means.settlement.settle(claim, [(who, FAULT) for who in recipients_left(claim)])

    def _bug_in_sending(self, failure: Any, claim: Claim, connection: OutboundConnection) -> None:
        self.bug(failure, claim)
        connection.abort()
        self.done(connection)

    # Sending

    def _send(self, connection: OutboundConnection, claim: Claim, good_until: float) -> None:
        self.carrying.add(connection)
        try:
            sending = self._begin(connection, claim, good_until)
        except Exception:  # it is in nobody's hands yet
            self._bug_in_sending(Failure(), claim, connection)
        else:
            sending.addErrback(self._bug_in_sending, claim, connection)

    def _begin(self, connection: OutboundConnection, claim: Claim, good_until: float) -> Deferred[None]:
        if (
            (self.pace is None or good_until >= self.used_seconds)
            and claim.content is not None
            and not claim.item.chunks
            and not claim.delivered
        ):
            item = claim.item
            means = self.means
            transaction = Transaction(item.envelope, claim.content, item.size, partial(means.proves, claim.token))
            if not connection.needs_seven_bit(transaction):
                sent = connection.send(transaction)
                return sent.addCallback(self.sent, connection, claim, item.envelope.recipients, means.clock.seconds())
        return Deferred.fromCoroutine(send_slowly(self, connection, claim, good_until))

    def sent(
        self,
        outcomes: tuple[Outcome, ...],
        connection: OutboundConnection,
        claim: Claim,
        recipients: Sequence[Address],
        started: float,
    ) -> None:
        """The transaction is over."""
        means = self.means
        if connection.went_stale and claim.token not in self._stale:
            # The server had given up the idle connection: nothing was taken. Once only: a host that always does so is in trouble.
            self._stale.add(claim.token)
            self.waiting.appendleft((claim, NO_SLOT))
            self.done(connection)
            return
        if self._stale:
            self._stale.discard(claim.token)
        elapsed = means.clock.seconds() - started
        means.metrics.delivery_seconds.observe(elapsed)
        reach = self.opening.reach
        if reach.learns and connection.usable:
            reach.answered()
        for each in outcomes:
            if type(each) is not outcome.Delivered:
                break
        else:
            via = via_of(connection.target, connection.tls_used)
            means.settlement.delivered(claim, recipients, outcomes, via, elapsed)
            self.done(connection)
            return
        attempted(means, self.domain, claim, connection.target, outcomes[-1], elapsed, connection)
        pairs = list(zip(recipients, self.heard(outcomes), strict=True))
        gone = not connection.usable
        if gone and trouble.broke_off(outcomes[-1]):
            # It broke off, or fell silent: as much a sign of too many connections as one that is refused.
            standing, now = max(1, len(self.carrying) - 1), means.clock.seconds()
            reach.become(reach.window.refused(standing, now, means.jitter()))
        rest = too_many(pairs) or spared(pairs)
        if rest and not gone:
            # RFC 5321 4.5.3.1.10: the host takes so many at once; the others follow at once, in transactions of their own. So do
            # recipients whose addresses are plain, when a host has no SMTPUTF8 for the others'.
            done = Deferred.fromCoroutine(send_rest(self, connection, claim, pairs, rest))
            done.addErrback(self.bug, claim)
            return
        target = connection.target  # as it is ours: whoever has the connection next may mean another host by it
        self.done(connection)
        conclude(self, claim, pairs, target, gone)

    def heard(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The outcomes as the failure policy and the reply rules see them; who asks for another pace is obeyed."""
        found: list[Outcome] = []
        rules = self.means.rules()
        for each in outcomes:
            verdict = verdict_of(each, self.domain, rules)
            found.append(each if verdict is None else verdict.outcome)
            if verdict is not None and verdict.pace is not UNCHANGED:
                self.obey(verdict.pace, each)
        return found

    def obey(self, pace: Pace, said: Outcome) -> None:
        """A host asked for another pace, in so many words."""
        match pace:
            case Unchanged():
                return
            case SlowDown():
                means, group = self.means, self.opening.group
                now = means.clock.seconds()
                in_use = max(len(self.carrying), means.crowd.open(self.limit))
                group.become(group.window.slowed(in_use, now, means.jitter()))
                means.pool.retire_idle(self.limit, every=True)  # after the rest there are fewer
                seconds = self.opening.closed_seconds(now)
            case Suspend():
                self.means.suspend(self.limit, pace.seconds, str(said.reply))
                seconds = min(pace.seconds, HEARD_SECONDS)
            case _:
                assert_never(pace)
        self.put_back(seconds)

    def done(self, connection: OutboundConnection) -> None:
        """The connection is free: the next claim, or the pool."""
        if connection not in self.carrying:
            return  # a fault after its end was dealt with
        self.carrying.discard(connection)
        self.next(connection)

    def next(self, connection: OutboundConnection) -> None:
        """Over a connection that is this lane's and free."""
        means, waiting = self.means, self.waiting
        target, done = connection.target, connection.transactions_done
        # While others wait for a place, they get it after a few messages: a long queue does not shut out a short one, and what a new
        # connection costs is shared among a few.
        now = self.used_seconds = means.clock.seconds()
        if (
            waiting
            and connection.usable
            and not self.opening.rest_seconds(now)
            and done < self.settings.messages_per_connection
            and (not done or done % TURN or not self._is_wanted(target))
        ):
            claim, good_until = waiting.popleft()
            self._send(connection, claim, good_until)
            if self.claiming.more or waiting:
                self.pump()
            return
        self.let_go(connection)
        if self.claiming.more or waiting:
            self.pump()

    def _is_wanted(self, target: Target) -> bool:
        """Whether a connection's place, or its part of the limit, is needed by somebody else."""
        means = self.means
        return means.crowd.waits(target.limit) or means.pool.is_wanted or means.pool.is_surplus(target)

    def let_go(self, connection: OutboundConnection) -> None:
        """The connection is the pool's again."""
        limit = connection.target.limit
        # One that only this domain can use ends when the partition is another node's: the new owner opens its own.
        ends = limit == self.domain and self.means.owner_of(self.partition) is None
        # While the provider wants rest, all end: afterwards there are fewer.
        ends = ends or self.opening.rest_seconds(self.means.clock.seconds()) > 0
        self.means.pool.release(connection, 0 if ends else self.settings.messages_per_connection)
        self.means.crowd.freed(limit)
