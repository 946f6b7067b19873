"""The ways of a claim that are not hot: content to fetch or to convert, recipients that are left, slots that are past, other hosts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from relaycluster.interfaces import ContentMissing, QueueError
from relaycluster.mail import outcome
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import BodyType
from relaycluster.mail.item import Claim
from relaycluster.mail.outcome import Outcome, Stage
from relaycluster.mail.trace import header_end
from relaycluster.net.outbound import OutboundConnection, Target
from relaycluster.node.attempts import attempted
from relaycluster.node.content import head_of, in_seven_bits, pieces
from relaycluster.node.crowd import CROWDED_SECONDS, LimitReached
from relaycluster.node.means import Means
from relaycluster.node.verdicts import FAULT, REPORTED, for_next_host, recipients_left, together, too_many
from relaycluster.policy import trouble
from relaycluster.policy.trouble import LocalTrouble
from relaycluster.smtp.client_events import Transaction

if TYPE_CHECKING:
    from relaycluster.node.lane import Lane

SLOT_PATIENCE_SECONDS = 30.0
"""So long the next host's connection waits for a slot: at a slow rate the mail would never come to it otherwise."""

_CROWDED = trouble.judge_local(Stage.CONNECT, LocalTrouble.CROWDED).outcome
_NO_SLOT = trouble.judge_local(Stage.ROUTING, LocalTrouble.CROWDED, detail="the rate is used up").outcome
_UNREAD = trouble.judge_local(Stage.CONTENT, LocalTrouble.INTERNAL).outcome


async def send_slowly(lane: Lane, connection: OutboundConnection, claim: Claim, good_until: float) -> None:
    """Send what the lane's plain way can not."""
    means = lane.means
    recipients = recipients_left(claim)
    if not recipients:
        means.settlement.delivered(claim, (), (REPORTED,))
        lane.done(connection)
        return
    try:
        if good_until < means.clock.seconds() and not await _new_slot(lane):
            lane.give_back(claim)
            lane.claiming.more = True
            lane.done(connection)
            return
        started = means.clock.seconds()
        outcomes = await carry(means, connection, claim, recipients)
    except ContentMissing as error:
        means.settlement.set_aside(claim, str(error))
        lane.done(connection)
        return
    except QueueError:
        lane.give_back(claim)
        lane.done(connection)
        return
    lane.sent(outcomes, connection, claim, recipients, started)


async def _new_slot(lane: Lane, patience_seconds: float = CROWDED_SECONDS) -> bool:
    """One more slot of the rate, at its own time. False when the next one is too far away to wait for it with an open connection."""
    pace, clock = lane.pace, lane.means.clock
    while pace is not None:
        slots, retry_seconds = await pace.take(1)
        wait = slots[0] - clock.seconds() if slots else retry_seconds
        if wait > patience_seconds:
            lane.wait(wait)
            return False
        if wait > 0:
            pause: Deferred[None] = Deferred()
            clock.callLater(wait, pause.callback, None)
            await pause
        if slots:
            return True
    return True


async def carry(
    means: Means, connection: OutboundConnection, claim: Claim, recipients: Sequence[Address]
) -> tuple[Outcome, ...]:
    """Send it to these recipients as this host takes it. Raises a `QueueError` when the content cannot be read."""
    item = claim.item
    valid = partial(means.proves, claim.token)
    envelope = item.envelope
    if len(recipients) != len(envelope.recipients):
        envelope = evolve(envelope, recipients=tuple(recipients))
    head = await head_of(means.queue, claim)
    if item.chunks and envelope.smtputf8 and head[: header_end(head)].isascii():
        envelope = evolve(envelope, smtputf8=False)  # of a long content the conversation only knows what is declared
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


def conclude(lane: Lane, claim: Claim, pairs: list[tuple[Address, Outcome]], target: Target, gone: bool) -> None:
    """This host has said all that it will say: the others are asked, or the outcomes hold."""
    rules = lane.means.rules()
    again = [who for who, each in pairs if for_next_host(each, gone, lane.domain, rules)]
    if again and lane.opening.others({target.host}):
        lane.elsewhere += 1
        Deferred.fromCoroutine(_elsewhere(lane, claim, pairs, again, target)).addErrback(lane.bug, claim)
    else:
        lane.means.settlement.settle(claim, pairs)


async def send_rest(
    lane: Lane,
    connection: OutboundConnection,
    claim: Claim,
    pairs: Sequence[tuple[Address, Outcome]],
    rest: Sequence[Address],
) -> None:
    """Recipients that were not refused for themselves follow over the same connection, in transactions of their own."""
    means = lane.means
    results = dict(pairs)
    try:
        while rest and connection.usable:
            if not await _new_slot(lane):
                results.update(together(results, rest, _NO_SLOT))
                break
            started = means.clock.seconds()
            outcomes = await carry(means, connection, claim, rest)
            elapsed = means.clock.seconds() - started
            attempted(means, lane.domain, claim, connection.target, outcomes[-1], elapsed, connection)
            some = list(zip(rest, lane.heard(outcomes), strict=True))
            results.update(some)
            rest = too_many(some)
    except Exception:
        results.update(together(results, rest, _cut_short(lane, Failure())))
    gone, target = not connection.usable, connection.target  # before somebody else has it
    lane.done(connection)
    conclude(lane, claim, list(results.items()), target, gone)


async def _elsewhere(
    lane: Lane, claim: Claim, pairs: list[tuple[Address, Outcome]], again: list[Address], first: Target
) -> None:
    """Recipients that a host could not take try the next hosts at once (RFC 5321 5.1)."""
    means = lane.means
    rules = means.rules()
    results = dict(pairs)
    tried = {first.host}
    try:
        while again and (targets := lane.opening.others(tried)):
            found = await _connection_to(lane, targets)
            if not isinstance(found, OutboundConnection):
                results.update(together(results, again, found))
                break
            tried |= {target.host for target in targets[: targets.index(found.target) + 1]}
            try:
                if not await _new_slot(lane, SLOT_PATIENCE_SECONDS):
                    results.update(together(results, again, _NO_SLOT))
                    break
                started = means.clock.seconds()
                outcomes = await carry(means, found, claim, again)
                attempted(means, lane.domain, claim, found.target, outcomes[-1], means.clock.seconds() - started, found)
                gone = not found.usable
            finally:
                lane.let_go(found)
            some = list(zip(again, lane.heard(outcomes), strict=True))
            again = []
            for who, each in some:
                if for_next_host(each, gone, lane.domain, rules):
                    # What this host is not able to do takes nothing back that another has said.
                    results.update(together(results, [who], each))
                    again.append(who)
                else:
                    results[who] = each
    except Exception:
        results.update(together(results, again, _cut_short(lane, Failure())))
    finally:
        lane.elsewhere -= 1
    means.settlement.settle(claim, list(results.items()))
    lane.pump()


def _cut_short(lane: Lane, failure: Failure) -> outcome.Deferred | outcome.Failed:
    """What it means for recipients who were on their way: the content could not be read, or there is a fault of our own. What is known
    of the others counts."""
    if failure.check(QueueError):
        return _UNREAD
    lane.bug(failure, None)
    return FAULT


async def _connection_to(
    lane: Lane, targets: Sequence[Target]
) -> OutboundConnection | outcome.Deferred | outcome.Failed:
    """A connection to the next host. When its place under the limit must come from the former host's, that is free a moment after
    its last word: we stand in line for it, once."""
    connect, means = lane.opening.connect, lane.means
    try:
        return await connect(targets)
    except LimitReached as error:
        limit = str(error)
    turn = _Turn(means, limit)
    means.pool.retire_idle(limit)
    if not await turn.came:
        return _CROWDED
    try:
        found = await connect(targets)
    except LimitReached:
        return _CROWDED
    if not isinstance(found, OutboundConnection):
        means.crowd.freed(limit)
    return found


class _Turn:
    """First in line for a connection of a limit, but not for long. `came` fires with whether it is our turn."""

    def __init__(self, means: Means, limit: str) -> None:
        self.came: Deferred[bool] = Deferred()
        if means.crowd.wait(limit, self, first=True):
            self._timer = means.clock.callLater(CROWDED_SECONDS, self.came.callback, False)
        else:
            self.came.callback(False)

    @property
    def wants_turn(self) -> bool:
        """See `Waits`."""
        return not self.came.called

    def take_turn(self) -> None:
        """See `Waits`."""
        self._timer.cancel()
        self.came.callback(True)
