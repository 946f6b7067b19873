"""The back of a node: the partitions that it owns, and all that brings their mail to its destinations."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred

from relaycluster import events
from relaycluster.app import settings as settings_of
from relaycluster.app.deadline import within
from relaycluster.app.files import Files
from relaycluster.config import Config
from relaycluster.events import EventLog
from relaycluster.interfaces import IThrottle, QueueError
from relaycluster.metrics import Metrics
from relaycluster.net import outbound
from relaycluster.net.dns_client import ClientSettings
from relaycluster.net.local_addresses import is_local
from relaycluster.net.outbound import OutboundConnection, OutboundSettings, Target
from relaycluster.net.pool import ConnectionPool
from relaycluster.net.resolver import Resolver, system_servers
from relaycluster.net.tls import ClientTLS
from relaycluster.node.crowd import Crowd, LimitReached
from relaycluster.node.delivery import Delivery
from relaycluster.node.janitor import Janitor
from relaycluster.node.limits import ConnectionLimits
from relaycluster.node.membership import Heart
from relaycluster.node.notice_allowance import NoticeAllowance
from relaycluster.node.operations import Operations
from relaycluster.node.partitions import Partitions
from relaycluster.node.routes import Routes
from relaycluster.node.settle import Settlement
from relaycluster.policy.cluster import Snapshot
from relaycluster.policy.suspension import Suspensions, subject_of
from relaycluster.store.redis.connection import RedisConnection
from relaycluster.store.redis.operations import RedisOperations
from relaycluster.store.redis.queue import RedisQueue
from relaycluster.store.redis.suspensions import RedisSuspensions

LONGEST_REASON = 200
"""Of a reply that asks to be left alone, so much stands in the suspension."""
CLOSING_SECONDS = 2.0
"""What is left when the deadline of a drain has passed gets so long for each step."""


class Back:
    """One for a node with the role delivery. `delivery` takes what the edge leases directly; `settlement` records outcomes."""

    def __init__(
        self,
        reactor: Any,
        config: Config,
        files: Files,
        redis: RedisConnection,
        queue: RedisQueue,
        throttle: IThrottle,
        heart: Heart,
        metrics: Metrics,
        log: EventLog,
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._heart = heart
        self._metrics = metrics
        self._log = log
        self._table = config.routes()
        self._rules = config.rules()
        self._outbound = OutboundSettings(config.node.hostname, ClientTLS(config.delivery.ca_file or None))
        self._limits = ConnectionLimits(reactor, throttle, self._view)
        self._crowd = Crowd(self._limits.open_of)
        self._crowd.shares = self._limits.shares
        self._pool = self._make_pool()
        servers = config.dns.servers or system_servers()
        self._resolver = Resolver(
            reactor, reactor, ClientSettings(servers), secrets.randbits, lambda: bool(secrets.randbits(1))
        )
        self._routes = Routes(
            self._resolver,
            random.SystemRandom().shuffle,
            settings_of.own_listeners(config, is_local),
            reactor.seconds,
        )
        self._allowance = NoticeAllowance(throttle, config.delivery.notices_per_sender)
        self.settlement = Settlement(
            reactor,
            queue,
            metrics,
            log,
            settings_of.retry(config),
            config.node.hostname,
            random.random,
            lambda notice: files.signer.sign(notice, time.time()),
            lambda: self._rules,
            self._allowance,
        )
        self._partitions = Partitions(reactor, queue, config.node.id)
        self._partitions.on_acquired = self._acquired
        self._partitions.on_released = self._released
        self._partitions.on_lost = self._lost
        self._partitions.on_recovered = self._recovered
        self._partitions.on_trouble = self._trouble
        self._suspensions = RedisSuspensions(redis, queue)
        self._suspensions.on_change = self._suspensions_changed
        self.delivery = Delivery(
            reactor,
            queue,
            throttle,
            heart,
            self._partitions,
            self._pool,
            self._crowd,
            self._routes,
            self._table,
            self.settlement,
            metrics,
            log,
            random.random,
            lambda: self._rules,
            self._suspensions.suspended,
            self._suspend,
            max(1000, 4 * config.delivery.connections),  # a lane with a connection has up to four
            sign_anew=lambda content: files.signer.sign_anew(content, time.time()),
        )
        self._operations = Operations(
            queue,
            RedisOperations(redis, queue),
            self.settlement,
            log,
            self.delivery.owner_of,
            self.delivery.claim_number,
            self.delivery.taken,
            lambda: self._suspensions.table,
            self.delivery.try_now,
            random.random,
            config.redis.trace_memory,
        )
        self._janitor = Janitor(
            reactor,
            queue,
            self._partitions,
            self.delivery,
            self.settlement,
            self._pool,
            metrics,
            log,
            self._operations,
        )

    @property
    def owned(self) -> int:
        """How many partitions are this node's."""
        return len(self._partitions.owned)

    def start(self) -> None:
        """Begin the rounds."""
        self._janitor.start()

    def use(self, config: Config) -> None:
        """Other settings, from each next step on."""
        self._config = config
        self._table = config.routes()
        self._rules = config.rules()
        self._allowance.use(config.delivery.notices_per_sender)
        self.delivery.use(self._table)
        self.settlement.use(settings_of.retry(config))

    # Connections

    def _make_pool(self) -> ConnectionPool:
        delivery = self._config.delivery
        pool = ConnectionPool(
            self._reactor,
            lambda target: Deferred.fromCoroutine(self._connect(target)),
            most_connections=delivery.connections,
            idle_seconds=delivery.idle,
            messages_per_connection=delivery.messages_per_connection,
        )
        pool.on_gone = self._gone
        pool.is_surplus = lambda target: self._limits.is_surplus(target.limit)
        self._limits.on_surplus = pool.retire_idle
        return pool

    async def _connect(self, target: Target) -> OutboundConnection:
        settings = self._table.of_limit(target.limit)
        if not await self._limits.reserve(target.limit, settings.connections, bool(settings.name)):
            raise LimitReached(target.limit)
        try:
            return await outbound.connect(self._reactor, target, self._outbound)
        except BaseException:
            self._limits.free(target.limit)
            raise

    def _gone(self, connection: OutboundConnection) -> None:
        self._limits.free(connection.target.limit)
        self._crowd.freed(connection.target.limit)

    def _view(self) -> tuple[Snapshot, int] | None:
        """The cluster and our incarnation in it, while the lease is proven: before a new life has seen the cluster there is none."""
        heart = self._heart
        return (heart.snapshot, heart.member.incarnation) if heart.snapshot is not None and heart.valid() else None

    # Suspensions

    def _suspend(self, limit: str, seconds: float, reason: str) -> None:
        """A host asked for it: in the whole cluster."""
        who = f"reply rule at {self._config.node.id}"
        subject = subject_of(limit, self._table.limit_names())
        said = self._suspensions.suspend(subject, seconds, who, reason[:LONGEST_REASON], at_least=True)
        said.addErrback(lambda failure: failure.trap(QueueError))

    def _suspensions_changed(self, before: Suspensions, now: Suspensions) -> None:
        self._operations.changed(before, now, list(self._partitions.owned))
        self.delivery.look_again()

    # What happens

    def see(self, snapshot: Snapshot) -> None:
        """The cluster as it is now, with us in it."""
        incarnation = self._heart.member.incarnation
        self._limits.see(incarnation)
        self._routes.know(member.hostname for member in snapshot.members)
        self._suspensions.see(snapshot.suspensions).addErrback(lambda failure: failure.trap(QueueError))
        self._partitions.see(snapshot, incarnation)

    def others_released(self) -> None:
        """Another node has given partitions up: some may be ours."""
        self._partitions.reconcile()

    def queue_is_back(self) -> None:
        """Redis answers again."""
        self.settlement.write_again()
        self._reactor.callLater(0, self.delivery.look_again)

    def life_is_over(self) -> None:
        """Our lease had run out. What was delivered is written first; then everything is somebody else's, until we join anew."""
        self.settlement.write_again()
        self._partitions.forget()
        self.delivery.life_is_over()

    def _acquired(self, partitions: Sequence[int]) -> None:
        self._metrics.ring_partitions_owned.set(self.owned)
        self._log.emit(events.PartitionsAcquired(len(partitions), self.owned))
        self._operations.let_go(partitions)
        Deferred.fromCoroutine(self._janitor.look_at(partitions)).addErrback(lambda failure: failure.trap(QueueError))

    def _released(self, partitions: Sequence[int]) -> None:
        self._metrics.ring_partitions_owned.set(self.owned)
        self._log.emit(events.PartitionsReleased(len(partitions), self.owned))
        self.delivery.released(partitions)

    def _lost(self, partitions: Sequence[int]) -> None:
        self._metrics.ownership_lost.inc(len(partitions))
        self._log.emit(events.OwnershipLost(len(partitions), "the lease ran out, or another node took over"))

    def _recovered(self, waiting: Sequence[str], held: Sequence[str]) -> None:
        self._log.emit(events.ItemsRecovered(-1, len(waiting), len(held)))
        for identifier in held:
            self._log.emit(events.ItemHeld(identifier, "its holders died again and again"))

    def _trouble(self, error: BaseException) -> None:
        if not isinstance(error, QueueError):
            self._log.emit(events.Error.of(error, "partitions"))

    # Leaving

    def drain(self) -> Deferred[None]:
        """Claim nothing more. Fires when nothing is in our hands."""
        return self.delivery.drain()

    async def close(self) -> int:
        """The drain is over, or its deadline has passed: end the connections and give the partitions up. How many claims were not finished."""
        self._janitor.stop()
        unfinished = self.delivery.in_hand
        closed = self._pool.close()
        if unfinished:
            self._pool.abort()
        await within(self._reactor, closed, CLOSING_SECONDS)
        await within(self._reactor, self._partitions.all_released(), CLOSING_SECONDS)
        self._partitions.stop()
        self._limits.stop()
        self.settlement.stop()
        self._resolver.stop()
        return unfinished
