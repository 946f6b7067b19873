"""A delivery node's work: it learns what is due in its partitions and keeps one lane for each recipient domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakValueDictionary

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from relaycluster import events
from relaycluster.events import EventLog
from relaycluster.interfaces import IQueue, IThrottle
from relaycluster.mail.item import Claim
from relaycluster.metrics import Metrics
from relaycluster.net.pool import ConnectionPool
from relaycluster.node.crowd import Crowd
from relaycluster.node.hands import Hands
from relaycluster.node.lane import Lane
from relaycluster.node.limits import Pace
from relaycluster.node.means import Means
from relaycluster.node.membership import Heart
from relaycluster.node.partitions import Partitions
from relaycluster.node.reach import Reaches
from relaycluster.node.routes import Routes
from relaycluster.node.settle import Settlement
from relaycluster.policy.cluster import Ownership
from relaycluster.policy.rate import Rate
from relaycluster.policy.reply_rules import NO_RULES, ReplyRules
from relaycluster.policy.ring import partition_of
from relaycluster.policy.routing import DestinationSettings, RouteTable
from relaycluster.policy.suspension import Suspension

FORGOTTEN_SECONDS = 60.0
"""An idle lane is forgotten after so long: memory is for the domains of now."""


class Delivery:
    """All lanes of this process. With `most_in_hand` claims no lane without a connection claims, and nothing is leased directly; `sign_anew` as in `Means`."""

    def __init__(
        self,
        clock: IReactorTime,
        queue: IQueue,
        throttle: IThrottle,
        heart: Heart,
        partitions: Partitions,
        pool: ConnectionPool,
        crowd: Crowd,
        routes: Routes,
        table: RouteTable,
        settlement: Settlement,
        metrics: Metrics,
        log: EventLog,
        jitter: Callable[[], float],
        rules: Callable[[], ReplyRules] = lambda: NO_RULES,
        suspended: Callable[[str, str], Suspension | None] = lambda _domain, _limit: None,
        suspend: Callable[[str, float, str], None] = lambda _limit, _seconds, _reason: None,
        most_in_hand: int = 1000,
        sign_anew: Callable[[bytes], bytes] = lambda content: content,
    ) -> None:
        self._clock = clock
        self._queue = queue
        self._throttle = throttle
        self._heart = heart
        self._partitions = partitions
        self._table = table
        self._log = log
        self._metrics = metrics
        self._settlement = settlement
        hands = self._hands = Hands(clock, most_in_hand, lambda: pool.is_wanted)
        self._number = 0
        self._lanes: dict[str, Lane] = {}
        self._draining = False
        self._empty: Deferred[None] | None = None
        self._paces: WeakValueDictionary[tuple[str, Rate], Pace] = WeakValueDictionary()
        self._reaches = Reaches()
        routes.use(table)
        self._routes = routes
        settlement.on_settled = self._settled
        self._means = Means(
            clock=clock,
            queue=queue,
            pool=pool,
            routes=routes,
            settlement=settlement,
            metrics=metrics,
            log=log,
            valid=heart.valid,
            proves=heart.proves,
            owner_of=self.owner_of,
            number=self.claim_number,
            pace=self._pace,
            lost=partitions.lost,
            taken=self.taken,
            crowd=crowd,
            draining=lambda: self._draining,
            sign_anew=sign_anew,
            reaches=self._reaches,
            suspended=suspended,
            suspend=suspend,
            jitter=jitter,
            rules=rules,
            hands=hands,
        )

    # Means

    def owner_of(self, partition: int) -> Ownership | None:
        """Our ownership of a partition, while the lease is proven and we are not leaving."""
        if self._draining or not self._heart.valid():
            return None
        return self._partitions.owned.get(partition)

    def claim_number(self) -> int:
        """The first number of a batch of claims."""
        self._number += 64  # a batch counts on from its first number
        return self._number

    def _pace(self, domain: str, settings: DestinationSettings) -> Pace | None:
        if settings.rate is None:
            return None
        limit = settings.limit_key(domain)
        pace = self._paces.get((limit, settings.rate))
        if pace is None:
            group = self._reaches.of(limit, settings.connections)
            pace = self._paces[limit, settings.rate] = Pace(
                self._clock, self._throttle, limit, settings.rate, lambda now: group.window.rate_share(now)
            )
        return pace

    def lane(self, domain: str) -> Lane:
        """The lane of a domain."""
        lane = self._lanes.get(domain)
        if lane is None:
            partition = partition_of(domain, self._queue.partitions)
            lane = self._lanes[domain] = Lane(domain, partition, self._table.lookup(domain), self._means)
        return lane

    def use(self, table: RouteTable) -> None:
        """Other settings, from each lane's next step on."""
        self._table = table
        self._routes.use(table)
        for lane in self._lanes.values():
            lane.use(table.lookup(lane.domain))

    # What comes

    def lease_for(self, domain: str) -> tuple[Ownership, int] | None:
        """What an enqueue needs to put an item of the domain straight into our hands; None when it should wait its turn."""
        owner = self.owner_of(partition_of(domain, self._queue.partitions))
        if owner is None or self.in_hand >= self._hands.most or not self.lane(domain).has_room():
            return None
        return owner, self.claim_number()

    def offer(self, claim: Claim) -> None:
        """An item that was leased directly."""
        self.taken(claim)
        self.lane(claim.item.domain).offer(claim)

    def wake(self, domain: str) -> None:
        """The queue says, or the poll found, that the domain has something due."""
        if self.owner_of(partition_of(domain, self._queue.partitions)) is not None:
            self.lane(domain).wake()

    def try_now(self, domain: str) -> None:
        """An operator wants what waits for the domain to be tried now."""
        if self.owner_of(partition_of(domain, self._queue.partitions)) is not None:
            self.lane(domain).try_now()

    def life_is_over(self) -> None:
        """Our incarnation has ended: what waits in our hands is somebody else's by now; what is being sent will not be finished."""
        for lane in list(self._lanes.values()):
            lane.drop_waiting()

    def look_again(self) -> None:
        """The lease is proven again, Redis is back, or something was suspended: every lane looks."""
        for lane in list(self._lanes.values()):
            lane.look_again()

    def released(self, partitions: Sequence[int]) -> None:
        """These are other nodes' now: what their domains' lanes hold and have not begun goes back."""
        gone = frozenset(partitions)
        for lane in list(self._lanes.values()):
            if lane.partition in gone:
                lane.release()

    def taken(self, claim: Claim) -> None:
        """It is in our hands until the settlement says otherwise."""
        self._hands.held.add(claim.token)
        item = claim.item
        if item.holder_deaths:
            self._metrics.possible_duplicates.inc()
            self._log.emit(events.PossibleDuplicate(item.id, item.domain, "a holder ended with it in its hands"))

    def _settled(self, claim: Claim) -> None:
        self._hands.done(claim.token)
        if self._empty is not None and not self._hands.held:
            empty, self._empty = self._empty, None
            empty.callback(None)

    @property
    def in_hand(self) -> int:
        """Claims that the queue has not heard of again yet."""
        return len(self._hands.held)

    def forget_idle_lanes(self) -> None:
        """Lanes without work for a while go."""
        now = self._clock.seconds()
        self._reaches.keep(now)
        limit = now - FORGOTTEN_SECONDS
        for domain in [name for name, lane in self._lanes.items() if lane.used_seconds < limit and lane.is_idle]:
            del self._lanes[domain]

    # Leaving

    def drain(self) -> Deferred[None]:
        """Claim nothing more; what was not tried goes back; what is being sent goes on. Fires when nothing is in our hands."""
        self._draining = True
        for lane in list(self._lanes.values()):
            lane.pump()
        if not self._hands.held:
            return succeed(None)
        self._empty = Deferred()
        return self._empty
