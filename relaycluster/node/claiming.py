"""How a lane comes to its claims: as many as its connections can carry soon, at the times of their slots, fair between classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from relaycluster.interfaces import NotOwner, QueueError
from relaycluster.mail.envelope import MessageClass
from relaycluster.mail.item import Claim
from relaycluster.mail.outcome import Outcome, Stage
from relaycluster.node.crowd import CROWDED_SECONDS
from relaycluster.node.limits import SLOT_GRACE_SECONDS
from relaycluster.node.means import Means
from relaycluster.node.verdicts import recipients_left
from relaycluster.policy import trouble
from relaycluster.policy.cluster import Ownership
from relaycluster.policy.pause import Why
from relaycluster.policy.priority import shares
from relaycluster.policy.trouble import LocalTrouble

if TYPE_CHECKING:
    from relaycluster.node.lane import Lane

MOST_CLAIMED = 40
"""Claims of one lane at once: few items are in hands that may die."""
NO_SLOT = float("-inf")
"""A claim without a slot goes over the next connection, after it got a slot where there is a rate by then."""
DEAD_AFTER = 3
"""After so many probes in a row that failed, what is overdue for a dead destination does not wait for it any more."""
SORTED_OUT = 50
"""So many of them are in hand at once."""
SUSPENDED = trouble.judge_local(Stage.ROUTING, LocalTrouble.SUSPENDED).outcome


class Claiming:
    """The claiming side of one lane. `more` when the queue may hold due items; `busy` while an answer is awaited; nothing is claimed
    before `not_before_seconds`."""

    __slots__ = ("_lane", "_means", "_number", "_sorted_until_seconds", "_turn", "busy", "more", "not_before_seconds")

    def __init__(self, lane: Lane, means: Means) -> None:
        self.more = False
        self.busy = False
        self.not_before_seconds = 0.0
        self._turn = 0
        self._number = 0
        self._sorted_until_seconds = 0.0
        self._lane = lane
        self._means = means

    def look(self, now: float) -> None:
        """Claim what there is room for. Asked when there may be more, nothing is awaited, and the time has come."""
        lane, means = self._lane, self._means
        carrying = len(lane.carrying)
        # A paced lane claims for all slots that it can get ahead of their time: one that is asked for late is lost.
        most = 2 * (carrying + 1) if lane.pace is None else MOST_CLAIMED
        waiting = len(lane.waiting)
        wanted = min(MOST_CLAIMED, 2 * lane.settings.connections, most) - carrying - waiting - lane.elsewhere
        if wanted <= 0 or (carrying and waiting > (carrying + 1) // 2):
            return  # whatever is in hand looks here again when it is done; some at a time cost the queue less than one by one
        if not means.valid():
            return  # when the lease is proven again, all lanes look
        owner = means.owner_of(lane.partition)
        if owner is None:
            self.more = False  # not ours now; whoever owns it polls
            return
        suspension = means.suspended(lane.domain, lane.limit)
        if suspension is not None:
            self.more = False  # the poll finds it again when the pause is over, or was lifted
            pause_ms = suspension.pause_ms(means.queue.now_ms(), means.jitter())
            self.pause(owner, pause_ms, Why.SUSPENDED, suspension.subject)
            self._begin(self._sort_out(owner, SUSPENDED))
            return
        opening = lane.opening
        reach = opening.reach
        closed_seconds = opening.closed_seconds(now) if reach.troubled or opening.group.troubled else 0.0
        if closed_seconds > 0:
            lane.wait(closed_seconds)
            is_parked = now < reach.window.parked_until_seconds
            if closed_seconds >= CROWDED_SECONDS:
                said = str(reach.outcome.reply) if is_parked and reach.outcome is not None else ""
                self.pause(owner, int(closed_seconds * 1000), Why.PARKED if is_parked else Why.RESTING, said)
            is_dead = reach.window.failures >= DEAD_AFTER and now >= self._sorted_until_seconds
            if is_dead and reach.outcome is not None:
                self._sorted_until_seconds = now + closed_seconds
                self._begin(self._sort_out(owner, reach.outcome))
            return
        if reach.troubled and opening.is_probed_by_another():
            lane.wait(CROWDED_SECONDS)
            return
        if not carrying:
            if not means.hands.may_begin(lane):
                return
            full_seconds = means.crowd.full_seconds(lane.limit, now)
            if full_seconds > 0:
                lane.wait(full_seconds)  # a slot of the rate that cannot be used would be lost to all
                return
        self._begin(self._claim(owner, wanted))

    def rest(self, seconds: float) -> None:
        """Claim nothing for so long."""
        self.not_before_seconds = max(self.not_before_seconds, self._means.clock.seconds() + seconds)

    def pause(self, owner: Ownership, delay_ms: int, why: Why, detail: str = "") -> None:
        """The domain leaves the candidates for so long: it is not found again and again by the poll."""
        paused = self._means.queue.pause(owner, self._lane.domain, delay_ms, why, detail)
        paused.addErrback(lambda failure: failure.trap(QueueError))

    def _begin(self, run: object) -> None:
        self.busy = True
        self._number = 0
        Deferred.fromCoroutine(run).addErrback(self._lane.bug, None)  # type: ignore[arg-type]

    async def _claim(self, owner: Ownership, wanted: int) -> None:
        lane, means = self._lane, self._means
        slots: list[float] = []
        retry_seconds = 0.0
        try:
            if lane.pace is not None:
                slots, retry_seconds = await lane.pace.take(wanted)
                if not slots:
                    means.metrics.throttled["rate"].inc()
                    lane.wait(retry_seconds)
                    if retry_seconds >= CROWDED_SECONDS:
                        self.pause(owner, int(retry_seconds * 1000), Why.RATE)
                    return
                if means.owner_of(lane.partition) != owner:
                    return  # lost while we stood in line; the slots are forfeited
                wanted = len(slots)
            claims = await self._ask(owner, wanted)
            self._got(claims, wanted)
            if not slots:
                for claim in claims:
                    lane.waiting.append((claim, NO_SLOT))
            else:
                self._await_slots(claims, slots)
                if self.more:
                    lane.wait(retry_seconds)
        except NotOwner:
            means.lost(owner)
        except QueueError:
            self._not_answered(owner, wanted)
        finally:
            self.busy = False
            lane.pump()

    async def _sort_out(self, owner: Ownership, why: Outcome) -> None:
        """Nothing can be sent to the destination for now: what is overdue fails, or its sender hears of the delay; all else waits untouched."""
        lane, means = self._lane, self._means
        settlement = means.settlement
        try:
            for each in MessageClass:
                start = 0
                while start >= 0 and means.owner_of(lane.partition) == owner:
                    number = self._number = means.number()
                    claims, start = await means.queue.claim_overdue(
                        owner, lane.domain, each, start, SORTED_OUT, number, *settlement.overdue_before_ms()
                    )
                    for claim in claims:
                        means.taken(claim)
                    await DeferredList(
                        [settlement.sort_out(claim, [(who, why) for who in recipients_left(claim)]) for claim in claims]
                    )
        except NotOwner:
            means.lost(owner)
        except QueueError:
            self._not_answered(owner, SORTED_OUT)
        finally:
            self.busy = False
            lane.pump()

    def _ask(self, owner: Ownership, wanted: int) -> Deferred[Sequence[Claim]]:
        self.more = False  # whatever arrives from here on wakes us again
        means = self._means
        number = self._number = means.number()
        means.hands.asked += wanted
        claims = means.queue.claim(owner, self._lane.domain, wanted, number, *shares(self._turn, wanted))
        return claims.addBoth(self._answered, wanted)

    def _answered(self, answer: Any, wanted: int) -> Any:
        self._means.hands.answered(wanted, 0 if isinstance(answer, Failure) else len(answer))
        return answer

    def _not_answered(self, owner: Ownership, wanted: int) -> None:
        """The queue is away."""
        self.more = True
        if self._number:
            self._means.settlement.unclaim(owner, self._number, wanted)
        self._lane.wait(CROWDED_SECONDS)

    def _got(self, claims: Sequence[Claim], wanted: int) -> None:
        self._turn += len(claims)
        if len(claims) == wanted:
            self.more = True
        taken = self._means.taken
        for claim in claims:
            taken(claim)

    def _await_slots(self, claims: Sequence[Claim], slots: Sequence[float]) -> None:
        """Each claim waits for its own."""
        lane, clock = self._lane, self._means.clock
        now = clock.seconds()
        for claim, slot in zip(claims, slots, strict=False):
            if slot <= now:
                lane.waiting.append((claim, slot + SLOT_GRACE_SECONDS))
            else:
                lane.elsewhere += 1
                clock.callLater(slot - now, self._on_time, claim, slot)

    def _on_time(self, claim: Claim, slot: float) -> None:
        lane = self._lane
        lane.elsewhere -= 1
        lane.waiting.append((claim, slot + SLOT_GRACE_SECONDS))
        lane.pump()
