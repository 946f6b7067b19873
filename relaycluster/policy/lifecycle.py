"""The queue's lifecycle as a pure model: what each transition does to one partition.

It is the oracle: `store/memory.py` is this behind the `IQueue` interface, and the contract suite holds the scripts in
`store/redis/lua/` to the same behaviour, transition by transition. docs/design/queue.md is the prose of it.

Times are milliseconds of queue time, given with each call. Nothing here is asynchronous, and nothing can fail half-way.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, evolve, field, frozen

from relaycluster.mail.envelope import MessageClass
from relaycluster.mail.history import Act
from relaycluster.mail.item import Claim, Item, Notice
from relaycluster.policy.cluster import Ownership, Snapshot
from relaycluster.policy.pause import Pause, Why

# Entries of an index that are not domains: work of the partition itself. A domain has no asterisk.
SPREAD_WORK = "*spread"
NOTICE_WORK = "*notices"
OPERATOR_WORK = "*operator"


@frozen
class Token:
    """Proof of a claim: who holds it, in which tenure, the claim's number, and when the item was due."""

    incarnation: int
    fence: int
    number: int
    due_ms: int

    def encode(self) -> bytes:
        """The token as the store hands it out."""
        return b"%d:%d:%d:%d" % (self.incarnation, self.fence, self.number, self.due_ms)


@define
class Partition:
    """One partition's whole state. The sets `waiting`, `leased`, `held`, `bouncing` and `done` are disjoint, and all but the last together
    are exactly the items that exist. What an operator does to it is in `operation.py`."""

    number: int
    owner: int = 0
    fence: int = 0
    items: dict[str, Item] = field(factory=dict)
    bodies: dict[str, bytes] = field(factory=dict)
    chunks: dict[tuple[str, int], bytes] = field(factory=dict)
    waiting: dict[str, int] = field(factory=dict)  # id → due
    leased: dict[str, Token] = field(factory=dict)
    held: dict[str, int] = field(factory=dict)  # id → since
    bouncing: dict[str, int] = field(factory=dict)  # id → since
    reasons: dict[str, str] = field(factory=dict)  # id → why the operator bounced it
    done: set[str] = field(factory=set)
    undelivered: dict[str, bytes] = field(factory=dict)  # those that not everybody got → the token that settled them
    notes: dict[str, tuple[str, ...]] = field(factory=dict)
    notices: dict[str, Notice] = field(factory=dict)
    spread: dict[str, tuple[Item, ...]] = field(factory=dict)
    parts: dict[str, set[str]] = field(factory=dict)  # message → ids of its items
    homes: dict[str, int] = field(factory=dict)
    paused: dict[str, Pause] = field(factory=dict)
    work: dict[str, int] = field(factory=dict)  # SPREAD_WORK, NOTICE_WORK, OPERATOR_WORK → due
    replies: dict[str, tuple[int, str]] = field(factory=dict)  # domain → when it last deferred something, and how
    acts: list[Act] = field(factory=list)  # what operators did and the log has not yet
    traces: dict[str, bytes] = field(factory=dict)  # an item's id → its packed history

    # Intake

    def enqueue(self, item: Item, content: bytes, lease: tuple[Ownership, int] | None, now_ms: int) -> bytes | None:
        """unknown → waiting, or → leased. The token when leased to the caller."""
        if item.id in self.done:
            return None
        if item.id in self.items:
            token = self.leased.get(item.id)
            if lease and token and (token.incarnation, token.fence) == (lease[0].incarnation, lease[0].fence):
                return token.encode() if token.number == lease[1] else None
            return None
        self.items[item.id] = item
        if item.home < 0:
            self.bodies[item.id] = content
        if lease and (self.owner, self.fence) == (lease[0].incarnation, lease[0].fence):
            token = Token(self.owner, self.fence, lease[1], now_ms)
            self.leased[item.id] = token
            return token.encode()
        self.waiting[item.id] = now_ms
        return None

    def cancel(self, item_id: str, lease: tuple[Ownership, int] | None) -> bool:
        """waiting, or leased to the caller → forgotten; False when somebody else holds it."""
        token = self.leased.get(item_id)
        if token is not None:
            mine = lease is not None and (token.incarnation, token.fence) == (lease[0].incarnation, lease[0].fence)
            if not mine:
                return False
        if item_id in self.items:
            self.forget(item_id)
        self.done.add(item_id)
        return True

    def enqueue_spread(self, message: str, items: Sequence[Item], content: bytes, now_ms: int, grace_ms: int) -> None:
        """unknown → spread at home."""
        if message in self.done or message in self.parts:
            return
        self.spread[message] = tuple(items)
        self.bodies[message] = content
        self.parts[message] = {item.id for item in items}
        self.homes[message] = now_ms
        self.work[SPREAD_WORK] = min(self.work.get(SPREAD_WORK, now_ms + grace_ms), now_ms + grace_ms)

    def spread_done(self, message: str) -> None:
        """The items live on their own."""
        self.spread.pop(message, None)
        if not self.spread:
            self.work.pop(SPREAD_WORK, None)

    # Holding

    def index(self) -> dict[str, int]:
        """When each domain, and the partition's own work, has something to do next."""
        result = dict(self.work)
        for item_id, due in self.waiting.items():
            domain = self.items[item_id].domain
            result[domain] = min(result.get(domain, due), due)
        for domain, pause in self.paused.items():
            if domain in result:
                result[domain] = max(result[domain], pause.until_ms)
        return result

    def owned_by(self, owner: Ownership) -> bool:
        """Whether the ownership is still good."""
        return (self.owner, self.fence) == (owner.incarnation, owner.fence)

    def claim(
        self, domain: str, limit: int, number: int, now_ms: int, normal_first: int = 0, bulk_first: int = 0
    ) -> list[Claim]:
        """waiting → leased: so many of normal and of bulk as they have a share in, then most urgent first, oldest first."""
        due = sorted(
            (self.items[item_id].message_class.value, due, item_id)
            for item_id, due in self.waiting.items()
            if due <= now_ms and self.items[item_id].domain == domain
        )
        shares = ((MessageClass.BULK, bulk_first), (MessageClass.NORMAL, normal_first))
        first = [entry for each, share in shares for entry in [e for e in due if e[0] == each.value][:share]]
        due = first + [entry for entry in due if entry not in first]
        claims: list[Claim] = []
        for _, due_ms, item_id in due[:limit]:
            self.unwait(item_id)
            claims.append(self.lease(item_id, number + len(claims), due_ms))
        return claims

    def claim_overdue(
        self,
        domain: str,
        message_class: MessageClass,
        start: int,
        limit: int,
        number: int,
        expired_before_ms: int,
        delayed_before_ms: int,
        now_ms: int,
    ) -> tuple[list[Claim], int]:
        """waiting → leased, of the due items those that must not wait for a destination that gets nothing now; and how many to pass over
        next, -1 at the end."""
        due = sorted(
            (due, item_id)
            for item_id, due in self.waiting.items()
            if due <= now_ms
            and self.items[item_id].domain == domain
            and self.items[item_id].message_class is message_class
        )
        claims: list[Claim] = []
        for looked, (due_ms, item_id) in enumerate(due[start:]):
            if len(claims) == limit:
                return claims, start + looked - len(claims)
            item = self.items[item_id]
            if item.arrived_ms < expired_before_ms or (not item.delay_notified and item.arrived_ms < delayed_before_ms):
                self.unwait(item_id)
                claims.append(self.lease(item_id, number + len(claims), due_ms))
        return claims, -1

    def lease(self, item_id: str, number: int, due_ms: int) -> Claim:
        """It is in the owner's hands."""
        token = self.leased[item_id] = Token(self.owner, self.fence, number, due_ms)
        body, notes = self.bodies.get(item_id), self.notes.get(item_id, ())
        return Claim(self.items[item_id], self.number, token.encode(), body, notes)

    def claim_bounces(self, limit: int, number: int) -> list[tuple[Claim, str]]:
        """bouncing → leased, for the owner, who settles them as failed."""
        found: list[tuple[Claim, str]] = []
        for due_ms, item_id in sorted((since, item_id) for item_id, since in self.bouncing.items())[:limit]:
            del self.bouncing[item_id]
            found.append((self.lease(item_id, number + len(found), due_ms), self.reasons[item_id]))
        self.operator_idle()
        return found

    def operator_idle(self) -> None:
        """No more work for the operator? Then the index need not say so."""
        if not self.acts and not self.bouncing:
            self.work.pop(OPERATOR_WORK, None)

    def unclaim(self, owner: Ownership, number: int, limit: int) -> None:
        """leased → waiting, as they were, for a claim without an answer."""
        for item_id, token in list(self.leased.items()):
            mine = (token.incarnation, token.fence) == (owner.incarnation, owner.fence)
            if mine and number <= token.number < number + limit:
                self.give_back(item_id, self.leased.pop(item_id).due_ms)

    def give_back(self, item_id: str, due_ms: int) -> None:
        """It was in a holder's hands without an outcome: back to where it was claimed from."""
        if item_id in self.reasons:
            self.bouncing[item_id] = due_ms
            self.work[OPERATOR_WORK] = min(self.work.get(OPERATOR_WORK, due_ms), due_ms)
        else:
            self.waiting[item_id] = due_ms

    def unwait(self, item_id: str) -> None:
        """It waits no more; with a domain's last item its last reply goes, and its pause."""
        domain = self.items[item_id].domain
        del self.waiting[item_id]
        if not self.waits_for(domain):
            self.replies.pop(domain, None)
            self.paused.pop(domain, None)

    def waits_for(self, domain: str) -> bool:
        """Whether anything does."""
        return any(self.items[item_id].domain == domain for item_id in self.waiting)

    def set_aside(self, claim: Claim, now_ms: int) -> str:
        """leased → held."""
        if not self.holds(claim):
            return "stale"
        del self.leased[claim.item.id]
        self.reasons.pop(claim.item.id, None)
        self.held[claim.item.id] = now_ms
        return "done"

    def holds(self, claim: Claim) -> bool:
        """Whether the claim's token is the item's."""
        token = self.leased.get(claim.item.id)
        return token is not None and token.encode() == claim.token

    def finish(self, claim: Claim, delivered: bool) -> str:
        """leased → settled. "done", "stale" or "noted"; delivered is a fact even from a stale holder, all else needs the token."""
        item_id = claim.item.id
        if not self.holds(claim):
            if item_id not in self.items:
                again = self.undelivered.get(item_id) == claim.token
                return "done" if again or (delivered and item_id in self.done) else "stale"
            if not delivered:
                return "stale"
            if item_id in self.leased:
                everyone = tuple(recipient.text for recipient in self.items[item_id].envelope.recipients)
                self.notes[item_id] = everyone
                return "stale"
        elif not delivered:
            if self.notes.get(item_id, claim.delivered) != claim.delivered:
                return "noted"
            self.undelivered[item_id] = claim.token
        self.forget(item_id)
        self.done.add(item_id)
        return "done"

    def forget(self, item_id: str) -> None:
        """It leaves for good, its content too, unless that lies at home."""
        if item_id in self.waiting:
            self.unwait(item_id)
        item = self.items.pop(item_id)
        for place in (self.leased, self.held, self.bouncing, self.reasons, self.notes, self.bodies):
            place.pop(item_id, None)
        if item.home < 0:
            for number in range(1, item.chunks + 1):
                self.chunks.pop((item_id, number), None)

    def defer(self, claim: Claim, item: Item, due_ms: int) -> str:
        """leased → waiting with the new value. "done", "stale" or "noted"."""
        if not self.holds(claim):
            return "stale"
        if self.notes.get(item.id, ()) != claim.delivered and item.id in self.notes:
            return "noted"
        del self.leased[item.id]
        self.notes.pop(item.id, None)
        self.reasons.pop(item.id, None)
        self.items[item.id] = item
        self.waiting[item.id] = due_ms
        return "done"

    def put_back(self, claim: Claim) -> str:
        """leased → waiting, due as it was."""
        if not self.holds(claim):
            return "stale"
        self.give_back(claim.item.id, self.leased.pop(claim.item.id).due_ms)
        return "done"

    def note(self, item_id: str, recipients: Sequence[str]) -> None:
        """A stale holder's deliveries."""
        if item_id in self.items:
            known = self.notes.get(item_id, ())
            self.notes[item_id] = known + tuple(text for text in recipients if text not in known)

    def owe(self, notice: Notice | None, now_ms: int, grace_ms: int) -> None:
        """A notice is owed from now on."""
        if notice is not None:
            self.notices[notice.item.id] = notice
            self.work[NOTICE_WORK] = min(self.work.get(NOTICE_WORK, now_ms + grace_ms), now_ms + grace_ms)

    def add_trace(self, item_id: str, records: bytes) -> None:
        """The item's history grows."""
        if records:
            self.traces[item_id] = self.traces.get(item_id, b"") + records

    def notice_done(self, notice_id: str) -> None:
        """It is enqueued."""
        self.notices.pop(notice_id, None)
        if not self.notices:
            self.work.pop(NOTICE_WORK, None)

    def leave_home(self, message: str, parts: Sequence[str], chunks: int) -> None:
        """Parts need the content no more; the last takes it along."""
        if message not in self.parts:
            return
        self.parts[message] -= set(parts)
        if not self.parts[message]:
            del self.parts[message]
            self.homes.pop(message, None)
            self.spread_done(message)
            self.bodies.pop(message, None)
            for number in range(1, chunks + 1):
                self.chunks.pop((message, number), None)
            self.done.add(message)

    # Owning

    def acquire(self, incarnation: int, snapshot: Snapshot) -> int:
        """The fence of the new tenure, or 0 when a living incarnation owns the partition."""
        if self.owner != incarnation:
            if self.owner and not snapshot.is_dead(self.owner):
                return 0
            self.owner = incarnation
            self.fence += 1
        return self.fence

    def release(self, owner: Ownership) -> None:
        """Nobody's, until the next `acquire`."""
        if self.owned_by(owner):
            self.owner = 0

    def recover(self, snapshot: Snapshot, deaths_that_hold: int, now_ms: int) -> tuple[list[str], list[str]]:
        """leased by the dead → waiting, marked; or held. Returns the ids of both."""
        waiting: list[str] = []
        held: list[str] = []
        for item_id, token in list(self.leased.items()):
            if not snapshot.is_dead(token.incarnation):
                continue
            del self.leased[item_id]
            item = self.items[item_id]
            item = evolve(item, possible_duplicate=True, holder_deaths=min(255, item.holder_deaths + 1))
            self.items[item_id] = item
            if item.holder_deaths >= deaths_that_hold:
                self.held[item_id] = now_ms
                self.reasons.pop(item_id, None)
                held.append(item_id)
            else:
                self.give_back(item_id, token.due_ms)
                waiting.append(item_id)
        return waiting, held

    def pause(self, domain: str, until_ms: int, now_ms: int, why: Why, detail: str) -> None:
        """The domain is not due before, while anything waits for it."""
        if until_ms > now_ms and self.waits_for(domain):
            self.paused[domain] = Pause(until_ms, why, detail)
        else:
            self.paused.pop(domain, None)

    def violations(self) -> list[str]:
        """What is wrong with this state: nothing, after every transition."""
        places = [set(self.waiting), set(self.leased), set(self.held), set(self.bouncing)]
        together = set().union(*places)
        found = []
        if sum(map(len, places)) != len(together):
            found.append("an item is in two places")
        if together != set(self.items):
            found.append("an item is nowhere")
        if self.done & set(self.items):
            found.append("a settled item still exists")
        if any(item.home < 0 and item_id not in self.bodies for item_id, item in self.items.items()):
            found.append("an item has no content")
        if not set(self.bouncing) <= set(self.reasons) <= set(self.bouncing) | set(self.leased):
            found.append("a reason to bounce without its item")
        if (OPERATOR_WORK in self.work) != bool(self.bouncing or self.acts):
            found.append("work for the operator that the index does not show, or shows in vain")
        if not set(self.replies) <= {self.items[item_id].domain for item_id in self.waiting}:
            found.append("a last reply of a domain for which nothing waits")
        if not set(self.paused) <= {self.items[item_id].domain for item_id in self.waiting}:
            found.append("a domain is paused for which nothing waits")
        return found
