"""From outcomes to the queue: what is recorded after an attempt, the notice that is owed, and the event.

An outcome that could not be written is kept and tried again until the queue takes it: what was delivered is not sent again
because Redis was away for a moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from attrs import evolve, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from relaycluster import events
from relaycluster.events import EventLog
from relaycluster.interfaces import ContentMissing, IQueue, QueueError, Settled
from relaycluster.mail import dsn, outcome, queue_id, xtext
from relaycluster.mail.address import Address
from relaycluster.mail.dsn import Action, RecipientReport, Report
from relaycluster.mail.envelope import Envelope, Notify, Ret
from relaycluster.mail.history import NOWHERE, Via
from relaycluster.mail.item import Claim, Item, Notice
from relaycluster.mail.outcome import Outcome, Stage
from relaycluster.metrics import Metrics
from relaycluster.node.history import Tried
from relaycluster.node.notice_allowance import NoticeAllowance
from relaycluster.policy import retry, trouble
from relaycluster.policy.cluster import Ownership
from relaycluster.policy.reply_rules import NO_RULES, ReplyRules
from relaycluster.policy.ring import partition_of
from relaycluster.policy.trouble import LocalTrouble

_KINDS = {Action.FAILED: Notify.FAILURE, Action.DELAYED: Notify.DELAY, Action.RELAYED: Notify.SUCCESS}

WRITE_AGAIN_SECONDS = 0.5
LONGEST_LAST_REPLY = 500


@frozen
class RetrySettings:
    """`schedule` of delays in seconds after the first, second, … attempt; `lifetime_seconds`; `delay_notice_seconds`, 0 for none."""

    schedule: tuple[float, ...]
    lifetime_seconds: float
    delay_notice_seconds: float


Pair = tuple[Address, Outcome]
Told = tuple[Action, Address, Outcome]
"""What a notice says of one recipient."""


class Settlement:
    """Records outcomes. `jitter` gives numbers in [0, 1); `sign` puts DKIM signatures in front of a notice; `rules` are those for
    replies; `allowance` says how many notices a sender may get, None for any number; `on_settled(claim)` is called when the queue has
    taken one."""

    def __init__(
        self,
        clock: IReactorTime,
        queue: IQueue,
        metrics: Metrics,
        log: EventLog,
        settings: RetrySettings,
        hostname: str,
        jitter: Callable[[], float],
        sign: Callable[[bytes], bytes] = lambda content: content,
        rules: Callable[[], ReplyRules] = lambda: NO_RULES,
        allowance: NoticeAllowance | None = None,
    ) -> None:
        self._clock = clock
        self._queue = queue
        self._metrics = metrics
        self._log = log
        self._settings = settings
        self._hostname = hostname
        self._jitter = jitter
        self._sign = sign
        self._rules = rules
        self._allowance = allowance
        self.tried = Tried(queue)
        self._unwritten: deque[Callable[[], object]] = deque()
        self._timer: IDelayedCall | None = None
        self.on_settled: Callable[[Claim], None] = lambda _claim: None

    def use(self, settings: RetrySettings) -> None:
        """Another schedule, from the next deferral on."""
        self._settings = settings

    @property
    def unwritten(self) -> int:
        """Outcomes that the queue has not taken yet."""
        return len(self._unwritten)

    # The plain way: everybody has it

    def delivered(
        self,
        claim: Claim,
        recipients: Sequence[Address],
        outcomes: Sequence[Outcome],
        via: Via = NOWHERE,
        seconds: float = 0.0,
    ) -> None:
        """All recipients were delivered: the hot path. `via` is how, `seconds` how long the transaction took."""
        item = claim.item
        if item.envelope.requests:
            pairs = list(zip(recipients, outcomes, strict=False))  # no recipients: a former holder reported them all
            if _successes(item.envelope, pairs):
                self.tried.add(claim, via, outcomes[0], seconds)
                self.settle(claim, pairs)
                return
        first = outcomes[0]
        self._finish(claim, self.tried.plain(claim, first.reply, via, seconds))
        waited = max(0.0, (self._queue.now_ms() - item.arrived_ms) / 1000)
        metrics = self._metrics
        for each in outcomes:
            metrics.delivery_attempt("delivered", each.reply.code)
        metrics.delivery_queue_seconds.observe(waited)
        self._log.emit(
            events.Delivered(
                item.id,
                item.domain,
                tuple([recipient.text for recipient in recipients]),
                first.host,
                str(first.reply),
                waited,
                item.attempts + 1,
            )
        )

    def _finish(self, claim: Claim, attempts: bytes) -> None:
        self._queue.finish(claim, True, None, attempts).addCallbacks(
            self._finished, self.later, callbackArgs=(claim,), errbackArgs=(lambda: self._finish(claim, attempts),)
        )

    def _finished(self, settled: Settled, claim: Claim) -> None:
        if claim.item.home >= 0 and settled is Settled.DONE:
            self.leave_home(claim.item)
        self.on_settled(claim)

    def leave_home(self, item: Item) -> None:
        """The content of a message for several domains is needed by one item less; the janitor finds what fails here."""
        self._queue.leave_home(item).addErrback(lambda failure: failure.trap(QueueError))

    def later(self, failure: Failure, again: Callable[[], object]) -> None:
        """Keep it, and try again soon: the queue is away, or full."""
        if not failure.check(QueueError):
            self._log.emit(events.Error.of(failure, "settle"))
        self._unwritten.append(again)
        if self._timer is None:
            self._timer = self._clock.callLater(WRITE_AGAIN_SECONDS, self.write_again)

    def write_again(self) -> None:
        """Try everything that could not be written."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        unwritten, self._unwritten = self._unwritten, deque()
        for again in unwritten:
            again()

    # Everything else

    def settle(self, claim: Claim, pairs: Sequence[Pair]) -> Deferred[None]:
        """Some recipients were not delivered. `pairs` has each recipient that was attempted, with its outcome. Fires when that was recorded,
        or is kept for later."""
        self._metrics_of(pairs)
        return self._attempt_to_settle(claim, pairs, self.tried.settled(claim, pairs))

    def overdue_before_ms(self) -> tuple[int, int]:
        """What arrived before the first time has expired; of what arrived before the second the sender shall have heard."""
        now_ms, settings = self._queue.now_ms(), self._settings
        delay_ms = int(settings.delay_notice_seconds * 1000)
        return now_ms - int(settings.lifetime_seconds * 1000), now_ms - delay_ms if delay_ms else 0

    def sort_out(self, claim: Claim, pairs: Sequence[Pair]) -> Deferred[None]:
        """Nothing can be sent to the destination for now, and the item is overdue: it fails, or its sender hears of the delay, and it is due as
        before. Nothing was tried: no attempt is counted. `pairs` has its recipients with why. Fires as `settle`."""
        return self._attempt_to_settle(claim, pairs, self.tried.not_tried(claim, pairs), tried=False)

    def _attempt_to_settle(
        self, claim: Claim, pairs: Sequence[Pair], history: bytes, repeated: bool = False, tried: bool = True
    ) -> Deferred[None]:
        def settled(left: tuple[Claim, Sequence[Pair]] | None) -> Deferred[None] | None:
            if left is not None:  # a repeat must be of this, too: what settled the item is known by its token alone
                return self._attempt_to_settle(*left, history, repeated, tried)
            self.on_settled(claim)
            return None

        def failed(failure: Failure) -> None:
            if failure.check(QueueError):
                self.later(failure, lambda: self._attempt_to_settle(claim, pairs, history, True, tried))
                return
            # A fault of our own would come again and again: the operator shall look at the item.
            self._log.emit(events.Error.of(failure, "settle"))
            self.set_aside(claim, "its outcome could not be recorded")

        done = Deferred.fromCoroutine(self._settle(claim, pairs, history, repeated, tried))
        return done.addCallbacks(settled, failed)

    def unclaim(self, owner: Ownership, number: int, count: int) -> None:
        """A claim of so many, from this number on, had no answer: if it happened, nobody has its items in hand, and they must not stay
        leased."""
        self._queue.unclaim(owner, number, count).addErrback(self.later, lambda: self.unclaim(owner, number, count))

    def set_aside(self, claim: Claim, why: str) -> None:
        """It can not be dealt with: the operator shall look at it."""
        self._log.emit(events.ItemHeld(claim.item.id, why))
        self._queue.set_aside(claim).addCallbacks(
            lambda _: self.on_settled(claim), self.later, errbackArgs=(lambda: self.set_aside(claim, why),)
        )

    def _metrics_of(self, pairs: Sequence[Pair]) -> None:
        for _, each in pairs:
            code = each.reply.code if trouble.was_said_by_host(each) else 0
            if isinstance(each, outcome.Delivered):
                self._metrics.delivery_attempt("delivered", each.reply.code)
            elif isinstance(each, outcome.Deferred):
                self._metrics.delivery_attempt("deferred", code)
            else:
                self._metrics.delivery_attempt("failed", code)

    async def _settle(
        self, claim: Claim, pairs: Sequence[Pair], history: bytes, repeated: bool, tried: bool
    ) -> tuple[Claim, Sequence[Pair]] | None:
        """None when it is settled, or not ours to settle; else what is left to settle, as others were reached by somebody else."""
        item = claim.item
        delivered = [pair for pair in pairs if isinstance(pair[1], outcome.Delivered)]
        deferred = [(who, each) for who, each in pairs if isinstance(each, outcome.Deferred)]
        failed = [(who, each) for who, each in pairs if isinstance(each, outcome.Failed)]
        now = self._queue.now_ms() / 1000
        arrived = item.arrived_ms / 1000
        attempts = item.attempts + tried
        expires_at = retry.expires(arrived, self._settings.lifetime_seconds)
        delay_seconds = 0.0
        expired: list[tuple[Address, outcome.Deferred]] = []
        if deferred:
            after = retry.after_deferral(self._settings.schedule, max(1, attempts), self._jitter(), now, expires_at)
            if isinstance(after, retry.Expired):
                expired, deferred = deferred, []
                failed += [(who, _expired(each)) for who, each in expired]
            elif tried:
                delay_seconds = after.delay_seconds
        may_have_arrived = any(each.may_have_arrived for _, each in deferred)
        told, delay_notified, dropped = _successes(item.envelope, delivered), item.delay_notified, ""
        if retry.owes_notice(item.envelope.reverse_path):
            if failures := _wished(item.envelope, Action.FAILED, failed):
                told = failures + told
            elif retry.delay_notice_due(arrived, now, self._settings.delay_notice_seconds, item.delay_notified) and (
                delays := _wished(item.envelope, Action.DELAYED, deferred)
            ):
                told = delays + told
                delay_notified = True
        refusal = await self._refusal(item, told[0][0], attempts) if told else ""
        if refusal:
            dropped, told, delay_notified = told[0][0].value, [], item.delay_notified
        notice = await self._notice(claim, told, attempts, now, expires_at) if told else None
        if deferred:
            left = evolve(
                item,
                envelope=evolve(item.envelope, recipients=tuple(who for who, _ in deferred)),
                attempts=attempts,
                last_reply=(item.last_reply if not tried else "") or str(deferred[0][1].reply)[:LONGEST_LAST_REPLY],
                possible_duplicate=item.possible_duplicate or may_have_arrived,
                holder_deaths=0 if tried else item.holder_deaths,
                delay_notified=delay_notified or not tried,  # whoever is not told now is not looked at again and again
            )
            settled = await self._queue.defer(claim, left, int(delay_seconds * 1000), notice, history)
        else:
            settled = await self._queue.finish(claim, not failed, notice, history)
        if settled is Settled.NOTED:
            # A stale holder reached some of them meanwhile: they have it, whatever happened to us.
            notes = await self._queue.notes(claim)
            return evolve(claim, delivered=notes), [pair for pair in pairs if pair[0].text not in notes]
        waited = now - arrived
        if settled is Settled.DONE:
            put_off = deferred if tried else []
            self._report(item, delivered, put_off, failed, expired, attempts, delay_seconds, waited, may_have_arrived)
        elif not repeated:  # it is another's, or held: only what was delivered is a fact
            self._report(item, delivered, (), (), (), attempts, delay_seconds, waited, may_have_arrived)
        if settled is Settled.STALE:
            if delivered:
                await self._queue.note(claim, [who.text for who, _ in delivered])
            if notice is not None and told[0][0] is Action.RELAYED:
                # They have it, whoever holds the item; nobody else knows that its sender is to be told.
                await self.send_notice(claim.partition, notice, item.id, Action.RELAYED.value)
            return None
        if not deferred and item.home >= 0:
            self.leave_home(item)
        if notice is not None:
            await self.send_notice(claim.partition, notice, item.id, told[0][0].value)
        if dropped:
            self._log.emit(events.NoticeDropped(item.id, dropped, refusal))
        elif failed and not (told and told[0][0] is Action.FAILED):
            owes = retry.owes_notice(item.envelope.reverse_path)
            why = "the sender asked for none (NOTIFY)" if owes else "the reverse-path is <>"
            self._log.emit(events.NoticeDropped(item.id, "failed", why))
        return None

    async def _refusal(self, item: Item, kind: Action, attempt: int) -> str:
        """Why the sender gets no notice now; empty when it does."""
        allowance = self._allowance
        return (
            await allowance.refusal(item.envelope.reverse_path, item.id, kind, attempt) if allowance is not None else ""
        )

    def _report(
        self,
        item: Item,
        delivered: Sequence[Pair],
        deferred: Sequence[tuple[Address, outcome.Deferred]],
        failed: Sequence[tuple[Address, outcome.Failed]],
        expired: Sequence[tuple[Address, outcome.Deferred]],
        attempts: int,
        delay_seconds: float,
        queue_seconds: float,
        may_have_arrived: bool,
    ) -> None:
        emit = self._log.emit
        if delivered:
            first: Outcome = delivered[0][1]
            self._metrics.delivery_queue_seconds.observe(max(0.0, queue_seconds))
            emit(
                events.Delivered(
                    item.id, item.domain, _texts(delivered), first.host, str(first.reply), queue_seconds, attempts
                )
            )
        if deferred:
            first = deferred[0][1]
            emit(
                events.Deferred(
                    item.id,
                    item.domain,
                    _texts(deferred),
                    first.host,
                    deferred[0][1].stage.value,
                    str(first.reply),
                    attempts,
                    delay_seconds,
                )
            )
            if may_have_arrived:
                self._metrics.possible_duplicates.inc()
                emit(events.PossibleDuplicate(item.id, item.domain, "the connection was lost after the final dot"))
        if expired:
            emit(events.Expired(item.id, item.domain, _texts(expired), queue_seconds, attempts))
        for who, each in failed:
            kind = trouble.class_of(each, item.domain, self._rules())
            self._metrics.bounces[kind].inc()
            emit(
                events.Failed(
                    item.id,
                    item.domain,
                    (who.text,),
                    each.host,
                    each.stage.value,
                    str(each.reply),
                    kind.value,
                    attempts,
                )
            )

    # Notices

    async def _notice(self, claim: Claim, told: Sequence[Told], attempt: int, now: float, expires_at: float) -> Notice:
        item, envelope = claim.item, claim.item.envelope
        try:
            original = claim.content if claim.content is not None else await self._queue.content(item, 0)
        except ContentMissing:
            original = b""  # an earlier try settled the item, and its answer was lost
        reverse_path = envelope.reverse_path
        entropy = dsn.notice_entropy(item.id, told[0][0], [who.text for _, who, _ in told], attempt)
        partition = partition_of(reverse_path.domain, self._queue.partitions)
        # Nothing of now in it: whoever settles this attempt again makes the notice under the same id.
        identifier = queue_id.make(item.arrived_ms, partition, entropy)
        reports = tuple(
            RecipientReport(
                recipient=who,
                action=action,
                status=trouble.status_of(each),
                reply=each.reply,
                host=each.host,
                original_recipient=_original_recipient(envelope, who),
                last_attempt=now,
                retry_until=expires_at if action is Action.DELAYED else None,
            )
            for action, who, each in told
        )
        report = Report(
            notice_id=identifier,
            queue_id=item.id,
            hostname=self._hostname,
            reverse_path=reverse_path,
            arrived=item.arrived_ms / 1000,
            made=now,
            recipients=reports,
            original=original,
            # RFC 3461 4.3: with failures only. A notice is queued in one piece, so of a message in pieces the header must do.
            full=envelope.ret is Ret.FULL and told[0][0] is Action.FAILED and not item.chunks,
            envelope_id=xtext.decoded(envelope.envelope_id),
            smtputf8=envelope.smtputf8,
        )
        content = self._signed(dsn.build(report), item)
        return Notice(
            Item(identifier, reverse_path.domain, dsn.envelope(report), len(content), int(now * 1000)), content
        )

    def _signed(self, notice: bytes, item: Item) -> bytes:
        """With our signatures; a sender rather gets an unsigned notice than none."""
        try:
            return self._sign(notice)
        except Exception as error:
            self._log.emit(events.Error.of(error, f"signing the notice about {item.id}"))
            return notice

    async def send_notice(self, partition: int, notice: Notice, item_id: str, kind: str) -> None:
        """Queue a notice that is owed, then forget that it was. When either fails, the owner of the partition finds it later; the
        notice's own id makes a repeat harmless."""
        try:
            await self._queue.enqueue(notice.item, notice.content, None)
            await self._queue.notice_done(partition, notice.item.id)
        except QueueError:
            return
        self._log.emit(events.NoticeQueued(notice.item.id, item_id, kind, notice.item.envelope.recipients[0].text))

    def stop(self) -> None:
        """No timer is left behind."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


def _wished(envelope: Envelope, action: Action, pairs: Sequence[tuple[Address, Any]]) -> list[Told]:
    """Of these recipients those whose sender is told (RFC 3461 4.1): who asked for nothing hears of failures and delays."""
    if not envelope.requests:
        return [] if action is Action.RELAYED else [(action, who, each) for who, each in pairs]
    kind = _KINDS[action]
    told: list[Told] = []
    for who, each in pairs:
        request = envelope.requests.get(who.text)
        wished = action is not Action.RELAYED if request is None or request.notify is None else kind in request.notify
        if wished:
            told.append((action, who, each))
    return told


def _original_recipient(envelope: Envelope, who: Address) -> str:
    request = envelope.requests.get(who.text)
    return xtext.original_recipient(request.original_recipient) if request is not None else ""


def _successes(envelope: Envelope, delivered: Sequence[Pair]) -> list[Told]:
    """Deliveries of which we must tell, since the next hop was not asked to (RFC 3461 5.2.2)."""
    if not envelope.requests or not retry.owes_notice(envelope.reverse_path):
        return []
    ours = [pair for pair in delivered if isinstance(pair[1], outcome.Delivered) and not pair[1].dsn]
    return _wished(envelope, Action.RELAYED, ours)


def _texts(pairs: Sequence[tuple[Address, Any]]) -> tuple[str, ...]:
    return tuple(who.text for who, _ in pairs)


def _expired(last: outcome.Deferred) -> outcome.Failed:
    """The last deferral as the failure that the end of the lifetime makes of it."""
    given_up = trouble.judge_local(Stage.ROUTING, LocalTrouble.EXPIRED).outcome.reply
    reply = evolve(given_up, lines=(f"{' '.join(given_up.lines)}; the last reply was: {dsn.as_told(last.reply)}",))
    return outcome.Failed(reply, last.stage, last.host)
