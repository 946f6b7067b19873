"""The queue under everything at once: generated histories of edges, owners, holders and their deaths, played in lockstep on the
memory store (the model) and a real Redis.

After each step both stores are sound and have answered alike. After the last one everybody is dead, one new node takes over,
and the ledger is balanced: whatever was answered and not taken back comes out exactly once, and nothing of it is left behind.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from attrs import define, evolve, field
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread, deferToThread
from twisted.trial.unittest import TestCase

from relaycluster.interfaces import NotOwner, Operated, QueueError, QueueFull, QueueUnavailable, Settled
from relaycluster.mail import queue_id
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import Envelope, MessageClass
from relaycluster.mail.item import Claim, Item, Notice
from relaycluster.policy.cluster import Member, Ownership, Snapshot
from relaycluster.policy.ring import partition_of
from relaycluster.store.memory import MemoryMembership
from relaycluster.store.redis.membership import LeaseSettings, RedisMembership, found
from tests.contract.backends import MemoryBackend, RedisBackend

PARTITIONS = 3
DEATHS_THAT_HOLD = 2
EXAMPLES = int(os.environ.get("QUEUE_HISTORIES", "40"))  # more of them: QUEUE_HISTORIES=1000
STEPS = 30
NEVER_MS = 10**9  # lives end here by decision, not by the clock: both stores must see the same
GRACE_MS = 500_000  # all times are long: a disk that stalls for seconds must not make anything due in one store only
TICK_MS = 5  # what happens later is due later, in both stores, however fast the machine is

_NAMES = [f"d{n}.example" for n in range(60)]
# Two domains that share a partition, and one elsewhere.
_FIRST = _NAMES[0]
_SAME = next(name for name in _NAMES[1:] if partition_of(name, PARTITIONS) == partition_of(_FIRST, PARTITIONS))
_OTHER = next(name for name in _NAMES[1:] if partition_of(name, PARTITIONS) != partition_of(_FIRST, PARTITIONS))
DOMAINS = (_FIRST, _SAME, _OTHER)

OPERATIONS = (
    *("enqueue", "enqueue", "lease", "lease", "large", "spread", "fan", "fan", "repeat", "cancel", "lose_edge"),
    *("claim", "claim", "claim", "claim", "deliver", "deliver", "fail", "defer", "put_back", "note", "again"),
    *("claim_overdue", "claim_overdue", "late", "late", "late"),
    *("leave_home", "queue_notice", "notice_done", "look_after", "sweep", "pause"),
    *("join", "beat", "beat", "die", "kill", "acquire", "acquire", "release", "recover", "recover"),
    *("hold", "unhold", "requeue", "bounce", "delete", "flush", "take_bounces", "take_bounces", "tell"),
    *("fill", "empty", "empty", "advance", "advance"),
)
WITHOUT_RESULT = frozenset(
    {"put_chunk", "enqueue_spread", "spread_done", "leave_home", "notice_done", "release", "pause", "note"}
)
STEP = st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 11), st.integers(0, 11))


@define
class Life:
    """One incarnation and the process around it, which may go on after the cluster counts it as dead."""

    member: Member
    view: Snapshot
    owned: dict[int, Ownership] = field(factory=dict)
    claims: list[tuple[Claim, Claim]] = field(factory=list)  # as the model gave it, as Redis did
    leaving: list[Item] = field(factory=list)  # settled parts whose home does not know yet
    notices: list[tuple[int, Notice, bool]] = field(factory=list)  # with partition, and whether it was queued

    @property
    def incarnation(self) -> int:
        return self.member.incarnation


def _seen(value: Any) -> Any:
    """An answer without what may differ: the time inside of a token."""
    if isinstance(value, Claim):
        holder = value.token.rsplit(b":", 1)[0]
        # A large or distant content need not come along; what comes is compared.
        return (value.item, value.partition, holder, value.content, frozenset(value.delivered))
    if isinstance(value, list | tuple) and not isinstance(value, Settled):
        return tuple(_seen(each) for each in value)
    return value


class World:
    """Both stores, and what a just observer knows."""

    def __init__(self, model: MemoryBackend, redis: RedisBackend) -> None:
        self.sides: tuple[Any, Any] = (model, redis)
        self.members: tuple[Any, Any] = (
            MemoryMembership(model.cluster, NEVER_MS),
            RedisMembership(redis.redis, LeaseSettings(NEVER_MS), PARTITIONS),
        )
        self.full = False
        self.number = 0
        self.offset_ms = 0
        self.lives: list[Life] = []  # processes that run
        self.alive: set[int] = set()  # incarnations that the cluster counts
        self.spreads: list[list[Item]] = []  # what edges still have to fan out, an empty list: only spread_done
        self.intake: list[tuple[Item, bytes, Any]] = []  # every plain enqueue, to be repeated or cancelled
        self.finished: list[tuple[tuple[Claim, Claim], bool]] = []  # with whether everybody got it
        self.reached: dict[str, set[str]] = {}  # id → whom former holders reached, as they were told that it is known
        self.promised: set[str] = set()  # ids that must come out
        self.cancelled: set[str] = set()
        self.settled: dict[str, int] = {}
        self.holder: dict[str, int] = {}  # id → incarnation with a valid token

    async def both(self, ask: Callable[[Any], Awaitable[Any]]) -> tuple[Any, Any]:
        """The same question to both; they must answer alike. A refusal is given back as the exception of both."""
        answers: list[Any] = []
        for side in self.sides:
            try:
                answers.append(await ask(side))
            except QueueError as error:
                answers.append(error)
        first, second = answers
        if isinstance(first, QueueError) or isinstance(second, QueueError):
            assert type(first) is type(second), f"the model answered {first!r}, Redis {second!r}"
        else:
            assert _seen(first) == _seen(second), f"the model answered {first!r}, Redis {second!r}"
        return first, second

    async def queue(self, name: str, *arguments: Any) -> tuple[Any, Any]:
        async def ask(side: Any) -> Any:
            answer = await getattr(side.queue, name)(*arguments)
            return None if name in WITHOUT_RESULT else answer

        return await self.both(ask)

    async def with_claim(self, name: str, claim: tuple[Claim, Claim], *arguments: Any) -> Any:
        """A question that holds each side's own token."""

        async def ask(side: Any) -> Any:
            own = claim[0] if side is self.sides[0] else claim[1]
            answer = await getattr(side.queue, name)(own, *arguments)
            return None if name in WITHOUT_RESULT else answer

        return (await self.both(ask))[0]

    async def pass_time(self, milliseconds: int) -> None:
        """Queue time only: lives do not end by it."""
        self.offset_ms += milliseconds
        await self.sides[0].advance(milliseconds)
        self.sides[1].queue.set_clock(self.offset_ms, self.offset_ms)

    # Making things

    def new_item(self, domain: str, **changes: Any) -> Item:
        self.number += 1
        addresses = tuple(Address(f"r{n}@{domain}", domain) for n in range(2))
        values: dict[str, Any] = {
            "id": queue_id.make(1_700_000_000_000 + self.number, partition_of(domain, PARTITIONS), self.number),
            "domain": domain,
            "envelope": Envelope(Address("s@example.net", "example.net"), addresses),
            "size": 100 + self.number,
            "arrived_ms": 1_700_000_000_000 + self.number,
            "message_class": list(MessageClass)[self.number % 3],
            "delay_notified": self.number % 5 == 0,
        }
        return Item(**{**values, **changes})

    # Bookkeeping that is also an invariant

    def takes(self, life: Life, claims: tuple[Any, Any]) -> None:
        """A claim went to a life: nobody else may hold the item, and it may be neither settled nor taken back."""
        for pair in zip(*claims, strict=True):
            name = pair[0].item.id
            assert name not in self.holder, f"{name} is held twice: by {self.holder[name]} and {life.incarnation}"
            assert name not in self.cancelled, f"{name} was taken back and is sent"
            assert name not in self.settled, f"{name} was settled and is sent again"
            assert name in self.promised, f"{name} was never answered and is sent"
            self.holder[name] = life.incarnation
            life.claims.append(pair)

    def settles(self, life: Life, claim: tuple[Claim, Claim], delivered: bool = True) -> None:
        item = claim[0].item
        self.finished.append((claim, delivered))
        if item.id in self.settled or item.id in self.cancelled:
            return  # said before: "done" is the answer to a repeat as well
        self.settled[item.id] = life.incarnation
        self.holder.pop(item.id, None)
        if item.home >= 0:
            life.leaving.append(item)

    # Steps

    async def step(self, operation: str, a: int, b: int) -> None:
        await getattr(self, f"do_{operation}")(a, b)
        await self.pass_time(TICK_MS)

    def a_life(self, a: int) -> Life | None:
        return self.lives[a % len(self.lives)] if self.lives else None

    async def do_join(self, a: int, b: int) -> None:
        if len(self.alive) >= 4:
            return
        self.number += 1
        member = Member(0, f"node-{self.number}", f"key-{self.number}", ("delivery",))
        joined = [await each.join(member) for each in self.members]
        assert joined[0] == joined[1]
        self.alive.add(joined[0].incarnation)
        self.lives.append(Life(joined[0], await self.beat(joined[0])))

    async def beat(self, member: Member) -> Snapshot:
        views = [await each.beat(member) for each in self.members]
        assert (views[0] is None) == (views[1] is None)
        if views[0] is not None:
            assert (views[0].next_incarnation, views[0].members) == (views[1].next_incarnation, views[1].members)
        return views[0]

    async def do_beat(self, a: int, b: int) -> None:
        life = self.a_life(a)
        if life is not None:
            view = await self.beat(life.member)
            assert (view is not None) == (life.incarnation in self.alive), "death is final, and life is not lost"
            life.view = view or life.view

    async def do_die(self, a: int, b: int) -> None:
        """The cluster counts it as dead; its process does not know, and goes on."""
        life = self.a_life(a)
        if life is not None and life.incarnation in self.alive:
            for each in self.members:
                await each.leave(life.member)
            self.alive.discard(life.incarnation)

    async def do_kill(self, a: int, b: int) -> None:
        """The process ends: whatever it had still to do, nobody does for it."""
        life = self.a_life(a)
        if life is not None:
            await self.do_die(a, b)
            self.lives.remove(life)

    async def do_acquire(self, a: int, b: int) -> None:
        life, partition = self.a_life(a), b % PARTITIONS
        if life is not None:
            owner, _ = await self.queue("acquire", partition, life.incarnation, life.view)
            if owner is not None:
                life.owned[partition] = owner

    async def do_release(self, a: int, b: int) -> None:
        life = self.a_life(a)
        if life is not None and life.owned:
            owner = list(life.owned.values())[b % len(life.owned)]
            await self.queue("release", owner)
            if b < 6:  # else it believes on, as one whose answer was lost
                del life.owned[owner.partition]

    async def do_recover(self, a: int, b: int) -> None:
        life = self.a_life(a)
        if life is not None and life.owned:
            owner = list(life.owned.values())[b % len(life.owned)]
            answers = await self.recovered(owner, life.view)
            if isinstance(answers, NotOwner):
                life.owned.pop(owner.partition, None)

    async def recovered(self, owner: Ownership, view: Snapshot) -> Any:
        async def ask(side: Any) -> Any:
            found = await side.queue.recover(owner, view)
            return sorted(found.waiting), sorted(found.held)

        answer, _ = await self.both(ask)
        if not isinstance(answer, QueueError):
            for name in [*answer[0], *answer[1]]:
                assert self.holder[name] not in self.alive, f"{name} was taken from a living holder"
                del self.holder[name]
        return answer

    async def do_enqueue(self, a: int, b: int) -> None:
        item = self.new_item(DOMAINS[a % 3])
        await self.take_in(item, b"c" * (10 if b % 2 else 2000), None)

    async def take_in(self, item: Item, content: bytes, lease: tuple[Ownership, int] | None) -> tuple[Any, Any]:
        answers = await self.queue("enqueue", item, content, lease)
        assert isinstance(answers[0], QueueFull) == self.full
        self.intake.append((item, content, lease))
        if not self.full:
            self.promised.add(item.id)
        return answers

    async def do_lease(self, a: int, b: int) -> None:
        """The edge of an owner: the item goes straight into its hands, if it is still the owner."""
        life, domain = self.a_life(a), DOMAINS[b % 3]
        owner = life.owned.get(partition_of(domain, PARTITIONS)) if life is not None else None
        if life is not None and owner is not None:
            self.number += 64
            claims = await self.take_in(self.new_item(domain), b"direct", (owner, self.number))
            if isinstance(claims[0], Claim):
                self.takes(life, ([claims[0]], [claims[1]]))

    async def do_large(self, a: int, b: int) -> None:
        """Chunks first; without all of them there is no message."""
        item = self.new_item(DOMAINS[a % 3], chunks=2)
        written = b % 3
        for number in range(1, written + 1):
            await self.queue("put_chunk", partition_of(item.domain, PARTITIONS), item.id, number, b"chunk" * 100)
        if written == 2 or self.full:
            await self.take_in(item, b"head", None)
        else:
            answer, _ = await self.queue("enqueue", item, b"head", None)
            assert isinstance(answer, QueueUnavailable)

    async def do_spread(self, a: int, b: int) -> None:
        domains = [DOMAINS[(a + n) % 3] for n in range(2 + b % 2)]
        first = self.new_item(domains[0])
        home = partition_of(domains[0], PARTITIONS)
        items = [
            evolve(self.new_item(domain), id=queue_id.item_id(first.id, n), home=home)
            for n, domain in enumerate(domains, 1)
        ]
        answer, _ = await self.queue("enqueue_spread", items, b"for all" * 50)
        assert isinstance(answer, QueueFull) == self.full
        if not self.full:
            self.promised.update(item.id for item in items)
            self.spreads.append(items)

    async def do_fan(self, a: int, b: int) -> None:
        """One more step of an edge that fans out."""
        if self.spreads:
            items = self.spreads[a % len(self.spreads)]
            name = queue_id.message_id(items[0].id)
            # Any item, also once more: an answer was lost.
            await self.enqueue_part(items[b % len(items)])
            if b >= 9 and not self.full:
                for item in items:
                    await self.enqueue_part(item)
                await self.queue("spread_done", name)
                self.spreads.remove(items)

    async def enqueue_part(self, item: Item, content: bytes = b"") -> None:
        if not (self.full and item.id in self.settled):  # Redis knows it as settled before it asks for room
            await self.queue("enqueue", item, content, None)
            await self.pass_time(TICK_MS)

    async def do_lose_edge(self, a: int, b: int) -> None:
        """The edge dies between two items; the owner of home shall go on."""
        if self.spreads:
            self.spreads.pop(a % len(self.spreads))

    async def do_repeat(self, a: int, b: int) -> None:
        """An enqueue whose answer was lost comes again, however much later."""
        if self.intake and not self.full:
            item, content, lease = self.intake[a % len(self.intake)]
            if item.chunks and item.id not in self.promised:
                return
            known = item.id in self.promised or item.id in self.cancelled
            claims = await self.queue("enqueue", item, content, lease)
            if isinstance(claims[0], QueueError):
                return
            if not known:
                self.promised.add(item.id)
                if isinstance(claims[0], Claim):
                    self.holder[item.id] = lease[0].incarnation if lease else 0
                    for life in self.lives:
                        if lease and life.incarnation == lease[0].incarnation:
                            life.claims.append((claims[0], claims[1]))
            elif isinstance(claims[0], Claim):
                assert lease is not None
                assert self.holder.get(item.id) == lease[0].incarnation, "a repeat took what another holds"

    async def do_cancel(self, a: int, b: int) -> None:
        if self.intake:
            item, _, lease = self.intake[a % len(self.intake)]
            answer, _ = await self.queue("cancel", item, lease)
            if answer:
                self.holder.pop(item.id, None)
                if item.id not in self.settled:
                    self.cancelled.add(item.id)
            else:
                assert item.id in self.holder, "it could not be taken back, and nobody holds it"

    async def do_claim(self, a: int, b: int) -> None:
        life, domain = self.a_life(a), DOMAINS[b % 3]
        owner = life.owned.get(partition_of(domain, PARTITIONS)) if life is not None else None
        if life is not None and owner is not None:
            self.number += 64
            claims = await self.queue("claim", owner, domain, 1 + b // 3, self.number)
            if isinstance(claims[0], NotOwner):
                life.owned.pop(owner.partition)
            else:
                self.takes(life, claims)

    async def do_claim_overdue(self, a: int, b: int) -> None:
        """Nothing can be sent: what arrived before some of the others, or all, is overdue."""
        life, domain = self.a_life(a), DOMAINS[b % 3]
        owner = life.owned.get(partition_of(domain, PARTITIONS)) if life is not None else None
        if life is None or owner is None:
            return
        start = 0
        while start >= 0:
            self.number += 64
            expired, delayed = 1_700_000_000_000 + self.number // 3, 1_700_000_000_000 + self.number // 2
            each = list(MessageClass)[a % 3]
            claims = await self.queue(
                "claim_overdue", owner, domain, each, start, 1 + b // 3, self.number, expired, delayed
            )
            if isinstance(claims[0], NotOwner):
                life.owned.pop(owner.partition)
                return
            self.takes(life, (claims[0][0], claims[1][0]))
            start = claims[0][1]

    def a_claim(self, a: int, b: int) -> tuple[Life, tuple[Claim, Claim]] | None:
        life = self.a_life(a)
        if life is None or not life.claims:
            return None
        return life, life.claims.pop(b % len(life.claims))

    async def do_deliver(self, a: int, b: int) -> None:
        found = self.a_claim(a, b)
        if found is not None:
            await self.deliver(*found)

    async def deliver(self, life: Life, claim: tuple[Claim, Claim]) -> None:
        if await self.with_claim("finish", claim, True, None) is Settled.DONE:
            self.settles(life, claim)
        else:
            self.reached[claim[0].item.id] = {who.text for who in claim[0].item.envelope.recipients}

    async def do_late(self, a: int, b: int) -> None:
        """An operator takes something out of a holder's hands; it is deleted, or another has it then; and the holder still has an outcome. When
        it reached all, the other fails it, or tries to."""
        await self.do_lease(a, b)
        found = self.a_claim(a, b)
        if found is None:
            return
        life, claim = found
        name, partition = claim[0].item.id, claim[0].partition
        if self.is_valid(claim):
            if await self.operate("hold", name) is not Operated.DONE:  # a bounce stays one
                life.claims.append(claim)
                return
            self.holder.pop(name)
            verb = ("delete", "bounce", "bounce", "release")[b % 4]
            await self.operate(verb, name)
            if verb == "delete":
                self.cancelled.add(name)
            for other in [each for each in self.lives if partition in each.owned and verb == "bounce"]:
                await self.take_bounces(other, other.owned[partition])
        if a % 3 == 0:
            await self.fail(life, claim, b)
            return
        await self.deliver(life, claim)
        for other in self.lives:
            for each in [each for each in other.claims if each[0].item.id == name and self.is_valid(each)]:
                other.claims.remove(each)
                await self.fail(other, each, b)

    async def do_fail(self, a: int, b: int) -> None:
        """All recipients failed: a notice is owed from the same instant on; nobody fails of whom it is known that somebody reached him, and
        nobody for a holder that is not valid any more."""
        found = self.a_claim(a, b)
        if found is not None:
            await self.fail(*found, b)

    async def fail(self, life: Life, claim: tuple[Claim, Claim], b: int) -> None:
        if set(claim[0].delivered) >= {who.text for who in claim[0].item.envelope.recipients}:
            life.claims.append(claim)
            return
        item = self.new_item(DOMAINS[b % 3])
        notice = Notice(item, b"a notice")
        valid = self.holder.get(claim[0].item.id) == life.incarnation and self.is_valid(claim)
        settled = await self.with_claim("finish", claim, False, notice)
        assert (settled is Settled.STALE) == (not valid), f"{settled} of a claim that is {valid=}"
        if settled is Settled.DONE:
            assert self.reached.get(claim[0].item.id, set()) <= set(claim[0].delivered), "it failed for whom it reached"
            self.settles(life, claim, False)
            self.promised.add(item.id)
            life.notices.append((claim[0].partition, notice, False))
        elif settled is Settled.NOTED:
            life.claims.append(await self.noted(claim))

    def is_valid(self, claim: tuple[Claim, Claim]) -> bool:
        return bool(self.sides[0].cluster.partitions[claim[0].partition].holds(claim[0]))

    async def do_defer(self, a: int, b: int) -> None:
        found = self.a_claim(a, b)
        if found is not None:
            await self.defer(*found, b)

    async def defer(self, life: Life, claim: tuple[Claim, Claim], b: int) -> None:
        item, known = claim[0].item, set(claim[0].delivered)
        left = tuple(who for who in item.envelope.recipients if who.text not in known)
        if not left:  # as a lane does: there is nothing left to try
            if await self.with_claim("finish", claim, True, None) is Settled.DONE:
                self.settles(life, claim)
            return
        later = evolve(
            item,
            envelope=evolve(item.envelope, recipients=left),
            attempts=item.attempts + 1,
            last_reply=f"451 at {item.attempts}",
        )
        settled = await self.with_claim("defer", claim, later, 1_000_000 * (b % 3), None)
        if settled is Settled.DONE:
            del self.holder[item.id]
            self.reached.pop(item.id, None)
        elif settled is Settled.NOTED:
            await self.defer(life, await self.noted(claim), b)

    async def noted(self, claim: tuple[Claim, Claim]) -> tuple[Claim, Claim]:
        """The claim by a holder that has asked for the notes."""
        answers: list[tuple[str, ...]] = [
            await side.queue.notes(each) for side, each in zip(self.sides, claim, strict=True)
        ]
        assert set(answers[0]) == set(answers[1])
        assert set(answers[0]) > set(claim[0].delivered), "noted, but nothing is new"
        return evolve(claim[0], delivered=answers[0]), evolve(claim[1], delivered=answers[1])

    async def do_put_back(self, a: int, b: int) -> None:
        found = self.a_claim(a, b)
        if found is not None and await self.with_claim("put_back", found[1]) is Settled.DONE:
            del self.holder[found[1][0].item.id]

    async def do_note(self, a: int, b: int) -> None:
        """A holder that is not valid any more reports one recipient."""
        found = self.a_claim(a, b)
        if found is not None:
            life, claim = found
            if self.is_valid(claim):
                life.claims.append(claim)
            else:
                name, reached = claim[0].item.id, f"r{b % 2}@{claim[0].item.domain}"
                await self.with_claim("note", claim, [reached])
                self.reached.setdefault(name, set()).add(reached)

    async def do_again(self, a: int, b: int) -> None:
        """The answer to a settlement was lost: the same again."""
        if self.finished:
            claim, delivered = self.finished[a % len(self.finished)]
            if claim[0].item.id not in self.holder:
                settled = await self.with_claim("finish", claim, delivered, None)
                assert settled is Settled.DONE

    async def do_leave_home(self, a: int, b: int) -> None:
        life = self.a_life(a)
        if life is not None and life.leaving:
            await self.queue("leave_home", life.leaving.pop(b % len(life.leaving)))

    async def do_queue_notice(self, a: int, b: int) -> None:
        life = self.a_life(a)
        if life is not None and life.notices and not self.full:
            partition, notice, _ = life.notices[b % len(life.notices)]
            await self.queue("enqueue", notice.item, notice.content, None)
            life.notices[b % len(life.notices)] = (partition, notice, True)

    async def do_notice_done(self, a: int, b: int) -> None:
        life = self.a_life(a)
        if life is not None:
            for entry in [entry for entry in life.notices if entry[2]]:
                await self.queue("notice_done", entry[0], entry[1].item.id)
                life.notices.remove(entry)

    async def do_look_after(self, a: int, b: int) -> None:
        """The janitor of an owner: what a dead process left in its partitions."""
        life = self.a_life(a)
        if life is not None and life.owned and not self.full:
            await self.look_after(list(life.owned)[b % len(life.owned)])

    async def look_after(self, partition: int) -> None:
        async def due(side: Any) -> Any:
            return sorted(domain for _, domain in await side.queue.due([partition], {}))

        work, _ = await self.both(due)
        if "*spread" in work:

            async def ask(side: Any) -> Any:
                return sorted((list(each) for each in await side.queue.spreads(partition)), key=lambda each: each[0].id)

            spreads, _ = await self.both(ask)
            for items in spreads:
                for item in items:
                    await self.enqueue_part(item)
                await self.queue("spread_done", queue_id.message_id(items[0].id))
        if "*notices" in work:

            async def owed(side: Any) -> Any:
                return sorted(await side.queue.notices(partition), key=lambda each: each.item.id)

            notices, _ = await self.both(owed)
            for notice in notices:
                await self.enqueue_part(notice.item, notice.content)
                await self.queue("notice_done", partition, notice.item.id)

    async def do_sweep(self, a: int, b: int) -> None:
        life = self.a_life(a)
        if life is not None and life.owned:
            owner = list(life.owned.values())[b % len(life.owned)]
            await self.queue("sweep", owner, 1_100_000)

    async def do_pause(self, a: int, b: int) -> None:
        life, domain = self.a_life(a), DOMAINS[b % 3]
        owner = life.owned.get(partition_of(domain, PARTITIONS)) if life is not None else None
        if owner is not None:
            await self.queue("pause", owner, domain, 2_000_000)

    # An operator, who names items by their ids, in whatever state they are

    def a_name(self, a: int, b: int) -> str:
        names = sorted(self.promised)
        return names[-1 - (12 * a + b) % min(len(names), 24)] if names else ""

    async def operate(self, verb: str, name: str) -> Operated:
        return (await self.both(lambda side: getattr(side.operator, verb)(name, "w", "r")))[0]

    async def do_hold(self, a: int, b: int) -> None:
        """Out of a holder's hands, too: the holder goes on, and what it delivers is a fact."""
        name = self.a_name(a, b)
        if name and await self.operate("hold", name) is Operated.DONE:
            self.holder.pop(name, None)

    async def do_unhold(self, a: int, b: int) -> None:
        if name := self.a_name(a, b):
            await self.operate("release", name)

    async def do_requeue(self, a: int, b: int) -> None:
        name = self.a_name(a, b)

        async def requeue(side: Any) -> Any:
            shown = await side.operator.show(name)
            if not shown:
                return None
            return shown[0].item, shown[0].state, await side.operator.requeue(shown[0], b % 2 == 0, "w", "r")

        if name:
            await self.both(requeue)

    async def do_bounce(self, a: int, b: int) -> None:
        if name := self.a_name(a, b):
            await self.operate("bounce", name)

    async def do_delete(self, a: int, b: int) -> None:
        """As if it had been taken back: it must never be sent from here on."""
        name = self.a_name(a, b)
        if name and await self.operate("delete", name) is Operated.DONE:
            assert name not in self.holder, f"{name} was deleted out of its holder's hands"
            self.cancelled.add(name)

    async def do_flush(self, a: int, b: int) -> None:
        await self.both(lambda side: side.operator.flush(DOMAINS[b % 3], "w", "r"))

    async def do_take_bounces(self, a: int, b: int) -> None:
        life = self.a_life(a)
        if life is not None and life.owned:
            await self.take_bounces(life, list(life.owned.values())[b % len(life.owned)])

    async def take_bounces(self, life: Life, owner: Ownership) -> None:
        self.number += 64
        claims = await self.both(lambda side: side.operations.claim_bounces(owner, 20, self.number))
        if isinstance(claims[0], NotOwner):
            life.owned.pop(owner.partition)
        else:
            self.takes(life, ([claim for claim, _ in claims[0]], [claim for claim, _ in claims[1]]))

    async def do_tell(self, a: int, b: int) -> None:
        partition = b % PARTITIONS

        life = self.a_life(a)
        owner = life.owned.get(partition) if life is not None else None

        async def acts(side: Any) -> Any:
            found = await side.operations.acts(partition)
            told = bool(found and owner is not None) and await side.operations.told(owner, found[: 1 + a])
            return [(act.verb, act.subject, act.domain) for act, _ in found], told

        await self.both(acts)

    async def do_fill(self, a: int, b: int) -> None:
        for side in self.sides:
            await side.fill()
        self.full = True

    async def do_empty(self, a: int, b: int) -> None:
        for side in self.sides:
            await side.empty()
        self.full = False

    async def do_advance(self, a: int, b: int) -> None:
        await self.pass_time(700_000 * (1 + a % 3))

    # Invariants

    async def check(self) -> None:
        for side, label in zip(self.sides, ("model", "Redis"), strict=True):
            wrong = await side.violations()
            assert wrong == [], f"{label}: {wrong}"

        async def numbers(side: Any) -> Any:
            tally = await side.queue.tally(range(PARTITIONS))
            counts = await side.counts()
            return (tally.waiting, tally.leased, tally.held, tally.bytes, counts["items"])

        await self.both(numbers)

        async def queues(side: Any) -> Any:
            return [(each.domain, each.waiting, each.owner, each.last_reply) for each in await side.operator.domains(9)]

        await self.both(queues)
        leased = {name for place in self.sides[0].cluster.partitions for name in place.leased}
        assert leased == set(self.holder), f"leased {leased}, held by {self.holder}"

    async def balance(self) -> None:
        """All die, somebody comes, time passes: everything that was promised comes out."""
        await self.do_empty(0, 0)
        while self.lives:
            await self.do_kill(0, 0)
        await self.do_join(0, 0)
        (life,) = self.lives
        for partition in range(PARTITIONS):
            await self.do_acquire(0, partition)
        assert len(life.owned) == PARTITIONS, "a partition of the dead could not be taken over"
        for owner in life.owned.values():
            await self.recovered(owner, life.view)
        await self.pass_time(100_000_000)
        for _ in range(2):
            for partition in range(PARTITIONS):
                await self.look_after(partition)
            await self.pass_time(100_000_000)
            for owner in list(life.owned.values()):
                await self.take_bounces(life, owner)
            for domain in DOMAINS:
                await self.check()
                await self.do_claim_all(life, domain)
            while life.claims:
                await self.do_deliver(0, 0)
            while life.leaving:
                await self.do_leave_home(0, 0)
            await self.check()
        for owner in life.owned.values():
            await self.queue("sweep", owner, 1_100_000)
        held = {name for place in self.sides[0].cluster.partitions for name in place.held}
        assert self.promised - self.cancelled == set(self.settled) | held, "the ledger is not balanced"
        assert not set(self.settled) & held
        homes = {queue_id.message_id(name) for name in held if "-" in name}
        for side in self.sides:
            counts = await side.counts()
            assert (counts["items"], counts["waiting"], counts["leased"]) == (len(held), 0, 0)
        bodies = len({name for name in held if "-" not in name} | homes)
        kept = sum(len(place.bodies) for place in self.sides[0].cluster.partitions)
        assert kept == bodies, f"{kept} contents are left, {bodies} are needed"
        redis_bodies = {
            key.rpartition(b":body:")[2].split(b":")[0] for key in await self.sides[1].redis.request("KEYS", "*:body:*")
        }
        unqueued = {item.id.encode() for item, _, _ in self.intake if item.id not in self.promised}
        needed = {name.encode() for name in held if "-" not in name} | {name.encode() for name in homes}
        permanent = [
            name
            for name in redis_bodies - unqueued
            if [
                key
                for key in await self.sides[1].redis.request("KEYS", b"*:body:" + name + b"*")
                if await self.sides[1].redis.request("TTL", key) < 0
            ]
        ]
        assert set(permanent) == needed, f"Redis keeps the contents {permanent}, {needed} are needed"

    async def do_claim_all(self, life: Life, domain: str) -> None:
        owner = life.owned[partition_of(domain, PARTITIONS)]
        self.number += 1000
        self.takes(life, await self.queue("claim", owner, domain, 500, self.number))


class QueueHistoryContract:
    """See the module."""

    major: ClassVar[int]
    timeout = 240

    def test_histories(self) -> Any:
        """Whatever happens in whatever order, and wherever it is cut off: both stores agree, are sound, and lose nothing."""
        redis = RedisBackend(self.major, PARTITIONS, DEATHS_THAT_HOLD)

        async def play(steps: list[tuple[str, int, int]]) -> None:
            model = MemoryBackend(PARTITIONS, DEATHS_THAT_HOLD)
            await redis.redis.request("CONFIG", "SET", "maxmemory", 0)
            await redis.redis.request("FLUSHALL")
            await found(redis.redis, PARTITIONS, "test")
            redis.queue.set_clock(0, 0)
            model.queue._grace_ms, redis.queue._grace = GRACE_MS, b"%d" % GRACE_MS
            world = World(model, redis)
            for operation in ("join", "join", "acquire", "acquire", "acquire"):
                await world.step(operation, world.number, world.number)
                world.number += 1
            for step in steps:
                await world.step(*step)
                await world.check()
            await world.balance()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            # Shrinking a history takes minutes: QUEUE_SHRINK=1 when there is one to look at.
            phases=(Phase.generate, Phase.shrink) if os.environ.get("QUEUE_SHRINK") else (Phase.generate,),
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(st.lists(STEP, min_size=STEPS // 2, max_size=STEPS))
        def histories(steps: list[tuple[str, int, int]]) -> None:
            blockingCallFromThread(reactor, lambda: Deferred.fromCoroutine(play(steps)))

        async def run() -> None:
            await redis.start()
            try:
                await deferToThread(histories)
            finally:
                await redis.redis.request("CONFIG", "SET", "maxmemory", 0)
                await redis.stop()

        return Deferred.fromCoroutine(run())


class QueueHistoryRedis6Test(QueueHistoryContract, TestCase):
    major = 6


class QueueHistoryRedis7Test(QueueHistoryContract, TestCase):
    major = 7
