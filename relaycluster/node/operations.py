"""What an owner does for the operator: it tells the log what was done, settles what was bounced, and lets resumed domains go.

An act is recorded with the change itself, by the same script; here it is told, after the fact and at least once, so that no act goes
without an event though the command and every node die (docs/design/queue.md, "The operator").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred

from relaycluster import events
from relaycluster.events import EventLog
from relaycluster.interfaces import IOperations, IQueue, NotOwner, QueueError
from relaycluster.mail.item import Claim
from relaycluster.mail.outcome import Delivered, Failed, Stage
from relaycluster.mail.reply import Reply
from relaycluster.node.settle import Settlement
from relaycluster.node.verdicts import recipients_left
from relaycluster.policy.cluster import Ownership
from relaycluster.policy.suspension import RESUME_SPREAD_MS, Suspensions

MOST_BOUNCES = 50
"""So many are settled at once; the next poll takes the rest."""
REPORTED = Reply.of(250, "2.0.0", "a former holder of the item reported that all recipients have it")


class Operations:
    """See the module. `owner_of` gives our ownership of a partition while it may be used; `number` counts claims; `taken` is told of each
    claim; `limit_of` is the name of a domain's limit; `jitter` gives numbers in [0, 1); the whole cluster's
    history may take `trace_memory_bytes`."""

    def __init__(
        self,
        queue: IQueue,
        operations: IOperations,
        settlement: Settlement,
        log: EventLog,
        owner_of: Callable[[int], Ownership | None],
        number: Callable[[], int],
        taken: Callable[[Claim], None],
        limit_of: Callable[[str], str],
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
        self._limit_of = limit_of
        self._jitter = jitter
        self._trace_memory_bytes = trace_memory_bytes

    async def look_at(self, partition: int) -> None:
        """`*operator` is due in a partition of ours."""
        acts = await self._operations.acts(partition)
        for act in acts:
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(act.at_ms / 1000))
            self._log.emit(events.OperatorActed(act.verb, act.subject, act.who, act.reason, at))
        if acts:
            await self._operations.told(partition, len(acts))
        await self._bounce(partition)

    async def _bounce(self, partition: int) -> None:
        """What an operator bounced fails like anything else: with a notice, an event, and its place in the history."""
        owner = self._owner_of(partition)
        if owner is None:
            return
        try:
            found = await self._operations.claim_bounces(owner, MOST_BOUNCES, self._number())
        except NotOwner:
            return  # the membership tells it soon
        for claim, reason in found:
            self._taken(claim)
            said = f"The operator of this system gave the message up{': ' if reason else ''}{reason}"
            failed = Failed(Reply.of(554, "5.0.0", said), Stage.ROUTING)
            left = recipients_left(claim)
            if left:
                self._settlement.settle(claim, [(who, failed) for who in left])
            else:
                self._settlement.delivered(claim, (), (Delivered(REPORTED),))

    async def trim(self, partitions: Sequence[int]) -> None:
        """Our partitions' share of the history's memory."""
        share = self._trace_memory_bytes * len(partitions) // self._queue.partitions
        await self._operations.trim_traces(partitions, share)

    # Suspensions

    def changed(self, before: Suspensions, now: Suspensions, partitions: Sequence[int]) -> Deferred[None]:
        """The table of suspensions is another one: the log hears of it, and domains in our partitions that were kept back by what has
        ended come back, one after the other."""
        now_ms = self._queue.now_ms()
        begun, ended = before.changes(now, now_ms)
        for each in begun:
            left = (each.until_ms - now_ms) / 1000 if each.until_ms else 0.0
            self._log.emit(events.DeliverySuspended(each.subject, left, each.who, each.reason))
        for each in ended:
            self._log.emit(events.DeliveryResumed(each.subject, each.who, each.reason))
        return Deferred.fromCoroutine(self._resume(ended, partitions)) if ended else Deferred.fromCoroutine(_nothing())

    async def _resume(self, ended: Suspensions, partitions: Sequence[int]) -> None:
        try:
            for partition, domain, _ in await self._operations.paused(partitions):
                owner = self._owner_of(partition)
                if owner is not None and ended.matches(domain, self._limit_of(domain)):
                    await self._queue.pause(owner, domain, int(self._jitter() * RESUME_SPREAD_MS))
        except QueueError:
            return  # each is looked at again by itself, when its pause is over


async def _nothing() -> None:
    return None
