"""A lane, or several, with everything around them: connections that do what the test says, and a queue in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, fail, succeed

from relaycluster.mail import outcome
from relaycluster.mail.envelope import BodyType
from relaycluster.mail.item import Claim, Item
from relaycluster.mail.outcome import Delivered, Failed, Outcome, Stage
from relaycluster.mail.reply import Reply
from relaycluster.net.outbound import ConnectFailed, OutboundConnection, Target
from relaycluster.net.pool import ConnectionPool
from relaycluster.node.crowd import Crowd, LimitReached
from relaycluster.node.hands import Hands
from relaycluster.node.lane import Lane
from relaycluster.node.limits import Pace
from relaycluster.node.means import Means
from relaycluster.node.reach import Reaches
from relaycluster.node.routes import NoRoute, Route
from relaycluster.node.settle import Settlement
from relaycluster.policy.cluster import Ownership
from relaycluster.policy.reply_rules import NO_RULES
from relaycluster.policy.ring import partition_of
from relaycluster.policy.routing import DestinationSettings
from relaycluster.policy.suspension import Suspension, Suspensions
from relaycluster.policy.trouble import LOCAL_REPLIES, LocalTrouble, judge_local
from relaycluster.smtp.client_events import Transaction
from tests.node.test_settle import RETRY
from tests.node.world import PARTITIONS, World, counting, result
from tests.support.replies import heard

LATER = outcome.Deferred(heard("451 4.7.1 come again"), Stage.RCPT, "mx.example")
SHUTTING_DOWN = outcome.Deferred(heard("421 4.3.2 going down"), Stage.MAIL, "mx.example")
NEVER = Failed(heard("550 5.1.1 no such user"), Stage.RCPT, "mx.example")
REFUSED = outcome.Deferred(LOCAL_REPLIES[LocalTrouble.CONNECTION_REFUSED], Stage.CONNECT, "mx.example")
NO_UTF8 = judge_local(Stage.MAIL, LocalTrouble.SMTPUTF8_NOT_OFFERED, "mx.example").outcome
MAIN, BACKUP = (Target(f"{name}.example", address) for name, address in (("mx1", "192.0.2.1"), ("mx2", "192.0.2.2")))


@define(eq=False)
class FakeConnection(OutboundConnection):
    """As much of an outbound connection as a lane and a pool see."""

    target: Target
    sent: list[tuple[Transaction, Deferred[Any], float]] = field(factory=list)
    usable: bool = True
    is_gone: bool = False
    went_stale: bool = False
    transactions_done: int = 0
    tls: Any = None
    tls_used: str = ""
    on_closed: Any = None
    clock: Any = None
    is_seven_bit: bool = False

    def serve(self, target: Target) -> None:
        self.target = target

    def needs_seven_bit(self, transaction: Transaction) -> bool:
        return self.is_seven_bit and transaction.envelope.body is BodyType.EIGHT_BIT

    def send(self, transaction: Transaction) -> Deferred[Any]:
        assert self.usable, "sent over a connection that is not usable"
        self.usable = False
        answer: Deferred[Any] = Deferred()
        self.sent.append((transaction, answer, self.clock.seconds()))
        return answer

    def answer(self, each: Outcome | None = None, stays: bool = True) -> None:
        """The transaction under way ends; the connection stays, or is gone."""
        transaction, answer, _ = self.sent[-1]
        assert not answer.called
        self.usable = stays
        self.transactions_done += 1
        outcomes = (each or Delivered(heard("250 2.0.0 ok"), self.target.host),)
        answer.callback(outcomes * len(transaction.envelope.recipients))
        if not stays:
            self.go()

    @property
    def silent_since(self) -> float | None:
        return self.sent[-1][2] if self.busy and not self.transactions_done else None

    def give_up(self, reply: Reply) -> None:
        if self.busy:
            self.answer(outcome.Deferred(reply, Stage.MAIL, self.target.host), stays=False)
        else:
            self.go()

    def stale(self) -> None:
        """The server had let go of it."""
        self.went_stale, self.usable = True, False
        self.sent[-1][1].callback((LATER,))
        self.go()

    @property
    def busy(self) -> bool:
        return bool(self.sent) and not self.sent[-1][1].called

    def close(self) -> None:
        self.go()

    def go(self) -> None:
        self.usable, self.is_gone = False, True
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed(self)


class Node:
    """A lane, or several, with everything around them."""

    def __init__(self, domains: Sequence[str] = ("example.com",), **changes: Any) -> None:
        self.world = World()
        self.settings = DestinationSettings(**changes)
        self.targets: tuple[Target, ...] = (evolve(MAIN, limit="L"), evolve(BACKUP, limit="L"))
        self.made: list[FakeConnection] = []
        self.attempts: list[tuple[Target, Deferred[Any]]] = []
        self.at_once: Callable[[Target], Any] | None = None  # what an attempt gives at once; None: the test answers
        self.no_route: NoRoute | None = None
        self.is_valid = True
        self.is_draining = False
        self.taken: list[Claim] = []
        self.lost: list[Ownership] = []
        self.settled: list[Claim] = []
        self.suspensions = Suspensions()
        self.rules = NO_RULES
        self.placed = True
        self.owned = True
        world = self.world
        self.pool = ConnectionPool(world.clock, self.connect)
        self.crowd = Crowd(lambda limit: len(self.attempts) + len([each for each in self.made if not each.is_gone]))
        self.pool.on_gone = lambda connection: self.crowd.freed(connection.target.limit)
        self.settlement = Settlement(
            world.clock, world.queue, world.metrics, world.log, RETRY, "us.example", lambda: 0.5
        )
        self.hands = Hands(world.clock, 1000, lambda: self.pool.is_wanted)
        self.settlement.on_settled = self.on_settled
        self.means = Means(
            clock=world.clock,
            queue=world.queue,
            pool=self.pool,
            routes=self,  # type: ignore[arg-type]
            settlement=self.settlement,
            metrics=world.metrics,
            log=world.log,
            valid=lambda: self.is_valid,
            proves=lambda _token: self.is_valid,
            owner_of=self.owner_of,
            number=counting(),
            pace=self.pace,
            lost=self.lost.append,
            taken=self.take,
            crowd=self.crowd,
            draining=lambda: self.is_draining,
            sign_anew=lambda content: content,
            reaches=Reaches(),
            suspended=lambda domain, limit: self.suspensions.lookup(domain, limit, world.queue.now_ms()),
            suspend=self.suspend,
            jitter=lambda: 0.5,
            rules=lambda: self.rules,
            hands=self.hands,
        )
        for domain in domains:
            world.own(domain)
        self.lanes = [Lane(domain, partition_of(domain, PARTITIONS), self.settings, self.means) for domain in domains]
        self.lane = self.lanes[0]

    def take(self, claim: Claim) -> None:
        self.taken.append(claim)
        self.hands.held.add(claim.token)

    def on_settled(self, claim: Claim) -> None:
        self.settled.append(claim)
        self.hands.done(claim.token)

    def is_placed(self, domain: str) -> bool:
        return self.placed

    def suspend(self, limit: str, seconds: float, reason: str) -> None:
        until_ms = self.world.queue.now_ms() + int(seconds * 1000)
        self.suspensions = Suspensions.build([*self.suspensions, Suspension(limit, until_ms, reason=reason)])

    async def find(self, domain: str, settings: DestinationSettings) -> Route | NoRoute:
        return self.no_route or Route(self.targets, float("inf"))

    def owner_of(self, partition: int) -> Ownership | None:
        return None if not self.owned else Ownership(partition, 1, self.world.cluster.partitions[partition].fence)

    def pace(self, domain: str, settings: DestinationSettings) -> Pace | None:
        if settings.rate is None:
            return None
        return Pace(self.world.clock, self.world.throttle, settings.limit_key(domain), settings.rate)

    def connect(self, target: Target) -> Deferred[Any]:
        if self.at_once is not None:
            given = self.at_once(target)
            return fail(given) if isinstance(given, Exception) else succeed(given)
        attempt: Deferred[Any] = Deferred()
        self.attempts.append((target, attempt))
        return attempt

    def connection(self, target: Target) -> FakeConnection:
        self.made.append(FakeConnection(target, clock=self.world.clock))
        return self.made[-1]

    def up_to(self, most: int) -> Callable[[Target], Any]:
        """Attempts succeed at once, while fewer connections than so many stand."""

        def attempt(target: Target) -> Any:
            standing = sum(not each.is_gone for each in self.made)
            return self.connection(target) if standing < most else LimitReached("L")

        return attempt

    def opened(self) -> FakeConnection:
        """The oldest attempt succeeds."""
        target, attempt = self.attempts.pop(0)
        connection = self.connection(target)
        attempt.callback(connection)
        return connection

    def refused(self, error: Exception | None = None) -> None:
        """The oldest attempt fails."""
        self.attempts.pop(0)[1].errback(error or ConnectFailed(REFUSED))

    def queue(self, count: int, domain: str = "example.com") -> list[Item]:
        """Items that wait."""
        items = [self.world.item(domain) for _ in range(count)]
        for item in items:
            result(self.world.queue.enqueue(item, b"Subject: x\r\n\r\n", None))
        return items

    @property
    def busy(self) -> list[FakeConnection]:
        return [each for each in self.made if each.busy]

    def done(self) -> set[str]:
        return {name for place in self.world.cluster.partitions for name in place.done}

    def work_off(self) -> None:
        """Whatever is asked is answered well, until nothing is asked."""
        while self.attempts or self.busy:
            if self.attempts:
                self.opened()
            for connection in self.busy:
                connection.answer()

    def stuck(self) -> list[str]:
        """Lanes in which something waits that is neither being sent, nor opened for, nor has a timer."""
        return [
            lane.domain
            for lane in self.lanes
            if lane.waiting and not (lane.carrying or lane.opening.count or lane._timer)
        ]
