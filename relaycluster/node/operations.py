"""What an owner does for the operator: it tells the log what was done, settles what was bounced, and lets resumed domains go.

An act is recorded with the change itself, by the same script; here it is told, after the fact and at least once, so that no act goes
without an event though the command and every node die (docs/design/queue.md, "The operator").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.python.failure import Failure

from relaycluster import events
from relaycluster.events import EventLog
from relaycluster.interfaces import IOperations, IQueue, NotOwner, QueueError
from relaycluster.mail.item import Claim
from relaycluster.mail.outcome import Failed, Stage
from relaycluster.mail.reply import Reply
from relaycluster.node.settle import Settlement
from relaycluster.node.verdicts import REPORTED, recipients_left
from relaycluster.policy.cluster import Ownership
from relaycluster.policy.pause import Why
from relaycluster.policy.suspension import RESUME_SPREAD_MS, Suspensions

MOST_BOUNCES = 50
"""So many of a partition are in hand at once."""
RESUMED_AT_ONCE = 200


class Operations:
    """See the module. `owner_of` gives our ownership of a partition while it may be used; `number` counts claims; `taken` is told of each
    claim; `table` is the one of suspensions; `try_now` is told of domains to which an operator wants mail to be tried now; `jitter` gives
    numbers in [0, 1); the whole cluster's history may take `trace_memory_bytes`."""

    def __init__(
        self,
        queue: IQueue,
        operations: IOperations,
        settlement: Settlement,
        log: EventLog,
        owner_of: Callable[[int], Ownership | None],
        number: Callable[[], int],
        taken: Callable[[Claim], None],
        table: Callable[[], Suspensions],
        try_now: Callable[[str], None],
        jitter: Callable[[], float],
        trace_memory_bytes: int = 0,
    ) -> None:
        self._queue = queue
        self._operations = operations
        self._settlement = settlement
        self._log = log
        self._owner_of = owner_of
        self._number = number
        self._taken = taken
        self._table = table
        self._try_now = try_now
        self._jitter = jitter
        self._trace_memory_bytes = trace_memory_bytes
        self._looking: set[int] = set()

    def look_at(self, partition: int) -> Deferred[None]:
        """`*operator` is due in a partition of ours. Fires when nothing is left to do there. One look at a time: two would tell the same
        acts."""
        if partition in self._looking:
            return succeed(None)
        self._looking.add(partition)
        looked = Deferred.fromCoroutine(self._look_at(partition))
        return looked.addErrback(self._failed).addCallback(lambda _: self._looking.discard(partition))

    def _failed(self, failure: Failure) -> None:
        if not failure.check(QueueError):  # the next poll finds it again
            self._log.emit(events.Error.of(failure, "operations"))

    async def _look_at(self, partition: int) -> None:
        while (owner := self._owner_of(partition)) is not None:
            acts = await self._operations.acts(partition)
            for act, _ in acts:
                at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(act.at_ms / 1000))
                self._log.emit(events.OperatorActed(act.verb, act.subject, act.who, act.reason, at))
            for domain in dict.fromkeys(act.domain for act, _ in acts if act.domain):
                # In this order: from here on nothing pauses it anew for what this process knows of its hosts.
                self._try_now(domain)
                await self._queue.pause(owner, domain, 0)
            if not acts or not await self._operations.told(owner, acts):
                break
        await self._bounce(partition)

    async def _bounce(self, partition: int) -> None:
        """What an operator bounced fails like anything else: with a notice, an event, and its place in the history. One batch is settled
        before the next is claimed."""
        full = True
        while full and (owner := self._owner_of(partition)) is not None:
            number = self._number()
            try:
                found = await self._operations.claim_bounces(owner, MOST_BOUNCES, number)
            except NotOwner:
                return  # the membership tells it soon
            except QueueError:
                self._settlement.unclaim(owner, number, MOST_BOUNCES)
                return
            full = len(found) == MOST_BOUNCES
            for claim, _ in found:
                self._taken(claim)
            await DeferredList([self._settle(claim, reason) for claim, reason in found])

    def _settle(self, claim: Claim, reason: str) -> Deferred[None]:
        said = f"The operator of this system gave the message up{': ' if reason else ''}{reason}"
        failed = Failed(Reply.of(554, "5.0.0", said), Stage.ROUTING)
        left = recipients_left(claim)
        if left:
            return self._settlement.settle(claim, [(who, failed) for who in left])
        self._settlement.delivered(claim, (), (REPORTED,))
        return succeed(None)

    async def trim(self, partitions: Sequence[int]) -> None:
        """Our partitions' share of the history's memory."""
        share = self._trace_memory_bytes * len(partitions) // self._queue.partitions
        await self._operations.trim_traces(partitions, share)

    # Suspensions

    def changed(self, before: Suspensions, now: Suspensions, partitions: Sequence[int]) -> None:
        """The table of suspensions is another one: the log hears of it, and what has ended keeps nothing back any more."""
        now_ms = self._queue.now_ms()
        begun, ended = before.changes(now, now_ms)
        for each in begun:
            left = (each.until_ms - now_ms) / 1000 if each.until_ms else 0.0
            self._log.emit(events.DeliverySuspended(each.subject, left, each.who, each.reason))
        for each in ended:
            self._log.emit(events.DeliveryResumed(each.subject, each.who, each.reason))
        self.let_go(partitions)

    def let_go(self, partitions: Sequence[int]) -> Deferred[None]:
        """Domains in these partitions of ours that are paused for a suspension which has ended, or ends sooner by now, come back, one after
        the other. To be called when the table has changed, and for partitions that were acquired: their former owner may have
        paused them, and not lived to see the end of it."""

        def again(failure: Failure) -> None:
            failure.trap(QueueError)
            self._settlement.later(failure, lambda: self.let_go(partitions))

        return Deferred.fromCoroutine(self._let_go(partitions)).addErrback(again).addErrback(self._failed)

    async def _let_go(self, partitions: Sequence[int]) -> None:
        table, now_ms = self._table(), self._queue.now_ms()
        # One that is suspended all the same, by another subject, is looked at and paused again.
        found = [
            (partition, domain)
            for partition, domain, pause in await self._operations.paused(partitions)
            if pause.why is Why.SUSPENDED and not table.keeps(pause.detail, pause.until_ms, now_ms)
        ]
        for at in range(0, len(found), RESUMED_AT_ONCE):
            asked = []
            for partition, domain in found[at : at + RESUMED_AT_ONCE]:
                owner = self._owner_of(partition)
                if owner is not None:
                    delay_ms = int(self._jitter() * RESUME_SPREAD_MS)
                    asked.append(self._queue.pause(owner, domain, delay_ms, Why.SPREAD))
            for success, failure in await DeferredList(asked, consumeErrors=True):
                if not success:
                    raise failure.value  # type: ignore[attr-defined]
