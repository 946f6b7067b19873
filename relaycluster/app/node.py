"""One node, from its configuration: everything that it consists of is made and connected here."""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from twisted.application.service import Service
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamClientEndpoint
from twisted.python.failure import Failure

from relaycluster import __version__, events
from relaycluster.app import settings as settings_of
from relaycluster.app.files import Files
from relaycluster.app.front import Front
from relaycluster.config import Config, ConfigError, load, warnings
from relaycluster.events import EventLog
from relaycluster.interfaces import FileTrouble, QueueError, QueueFull
from relaycluster.metrics import Metrics
from relaycluster.net import outbound
from relaycluster.net.dns_client import ClientSettings
from relaycluster.net.http import MachineSite
from relaycluster.net.lines import LineWriter
from relaycluster.net.outbound import OutboundConnection, OutboundSettings, Target
from relaycluster.net.pool import ConnectionPool
from relaycluster.net.resolver import Resolver, system_servers
from relaycluster.net.tls import ClientTLS
from relaycluster.node import named_files
from relaycluster.node.crowd import Crowd, LimitReached
from relaycluster.node.delivery import Delivery
from relaycluster.node.gate import Gate
from relaycluster.node.janitor import Janitor, Lag, Room
from relaycluster.node.limits import ConnectionLimits
from relaycluster.node.membership import Heart
from relaycluster.node.notice_allowance import NoticeAllowance
from relaycluster.node.operations import Operations
from relaycluster.node.partitions import Partitions
from relaycluster.node.routes import Routes
from relaycluster.node.settle import Settlement
from relaycluster.policy.cluster import Member, Snapshot
from relaycluster.policy.suspension import Suspensions, subject_of
from relaycluster.store.redis import checks, embedded, keys
from relaycluster.store.redis.attempts import RedisAttempts
from relaycluster.store.redis.connection import (
    Credentials,
    LeanProtocol,
    RedisConnection,
    RedisRefused,
    SubscribedProtocol,
)
from relaycluster.store.redis.membership import LeaseSettings, RedisMembership, found
from relaycluster.store.redis.operations import RedisOperations
from relaycluster.store.redis.queue import QueueSettings, RedisQueue
from relaycluster.store.redis.suspensions import RedisSuspensions
from relaycluster.store.redis.throttle import RedisThrottle
from relaycluster.store.state_directory import StateDirectory

reactor: Any = _reactor
# Timers must not follow the wall clock: a jump of it would freeze or fire every one of them.
reactor.seconds = time.monotonic

START_SECONDS = 15.0
"""So long a node waits for Redis when it starts; then it says why not and ends."""
REVIVE_SECONDS = 0.5
LONGEST_REASON = 200
"""Of a reply that asks to be left alone, so much stands in the suspension."""


class Node(Service):
    """One relaycluster process. `start_failed(line)` is called when it cannot begin."""

    def __init__(self, config: Config, reload: Callable[[], Config], start_failed: Callable[[str], None]) -> None:
        self._config = config
        self._reload = reload
        self._start_failed = start_failed
        self._write = LineWriter(reactor, 1)
        self.log = EventLog(self._write, time.time, config.log.format)
        self._ports: list[tuple[str, IListeningPort]] = []
        self._redis_server: embedded.EmbeddedRedis | None = None
        self._stopping = False
        self._members: dict[int, Member] = {}
        self._listening_for = 0

    # Starting

    def startService(self) -> None:
        """Begin; what fails is told by `start_failed`."""
        super().startService()  # type: ignore[no-untyped-call]
        Deferred.fromCoroutine(self._start()).addErrback(self._not_started)

    def _not_started(self, failure: Failure) -> None:
        if failure.check(CannotListenError):
            error: Any = failure.value
            line = f"cannot listen on {error.interface}:{error.port}: {error.socketError.strerror}"
        elif failure.check(QueueError, ConfigError, FileTrouble, OSError):
            line = str(failure.value)
        else:
            line = f"{type(failure.value).__name__}: {failure.value}"
            self.log.emit(
                events.Error(type(failure.value).__name__, "start", str(failure.value), failure.getTraceback())
            )
        if self._redis_server is not None and self._redis_server.process is not None:
            self._redis_server.stop()
        self._write.flush()
        self._start_failed(line)

    async def _start(self) -> None:
        config = self._config
        self._state = StateDirectory(Path(config.node.state_dir))
        self.log.emit(events.NodeStarted(config.node.id, __version__, tuple(config.node.roles), os.getpid()))
        for text in warnings(config):
            self.log.emit(events.Warning(text, "config"))
        self._wire_redis()
        self._wire()
        self._redis.start()
        await self._first_connection()
        self._hints.start()
        await self._heart.join()
        self._room.start()
        self._lag.start()
        if self._janitor is not None:
            self._janitor.start()
        self._files.start()
        self._listen()
        self._gate.started = True
        signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(self.reload))

    async def _first_connection(self) -> None:
        """Wait for an approved Redis, but not for ever."""
        connected = self._redis.when_ready()
        refused: Deferred[None] = Deferred()

        def refuse(reason: str) -> None:
            if not refused.called and "loading" not in reason:
                refused.errback(RedisRefused(reason))

        self._redis.on_refused = refuse

        def refuse_late(reason: str) -> None:
            if not refused.called:
                refused.errback(RedisRefused(reason))

        too_late = reactor.callLater(
            START_SECONDS,
            lambda: refuse_late(f"no Redis answers at {self._redis_target} ({self._redis.refusal})"),
        )
        results = DeferredList([connected, refused], fireOnOneCallback=True, fireOnOneErrback=True, consumeErrors=True)
        try:
            await results
        except Exception as error:
            first = getattr(error, "subFailure", None)
            raise (first.value if first is not None else error) from None
        finally:
            if too_late.active():
                too_late.cancel()
            self._redis.on_refused = self._redis_refused

    def _wire_redis(self) -> None:
        config = self._config
        target = config.redis.target
        endpoint: IStreamClientEndpoint
        if target.kind == "embedded":
            self._redis_target = "embedded"
            endpoint = UNIXClientEndpoint(reactor, self._start_embedded().socket_path)
        elif target.kind == "unix":
            self._redis_target = f"unix://{target.path}"
            endpoint = UNIXClientEndpoint(reactor, target.path)
        else:
            self._redis_target = f"{'rediss' if target.tls else 'redis'}://{target.host}:{target.port}"
            endpoint = HostnameEndpoint(reactor, target.host, target.port, timeout=5)
            if target.tls:
                endpoint = wrapClientTLS(settings_of.tls_for(target.host, target.ca_file), endpoint)
        credentials = Credentials(target.username, target.password)

        async def approve(protocol: LeanProtocol) -> None:
            if target.database:
                await protocol.request("SELECT", target.database)
            await checks.approve(protocol, config.redis.durability)
            await found(protocol, config.redis.partitions, secrets.token_hex(8))

        async def subscribe(protocol: LeanProtocol) -> None:
            await protocol.request("SUBSCRIBE", keys.MEMBERSHIP_CHANNEL)

        self._redis = RedisConnection(reactor, endpoint, credentials, approve)
        self._hints = RedisConnection(reactor, endpoint, credentials, subscribe, SubscribedProtocol)

    def _wire(self) -> None:
        config, redis, log = self._config, self._redis, self.log
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        addresses = [str(listener.address) for listener in config.listener]
        metrics = self._metrics = Metrics(registry, version=__version__, listeners=addresses)
        lease = LeaseSettings(int(config.redis.lease * 1000))
        self._membership = RedisMembership(redis, lease, config.redis.partitions)
        member = Member(
            0, config.node.id, self._state.key, tuple(config.node.roles), config.node.weight, config.node.hostname
        )
        self._queue = queue = RedisQueue(
            redis,
            QueueSettings(
                config.redis.partitions,
                int(config.redis.done_retention * 1000),
                traces=config.redis.trace_memory > 0,
            ),
            lambda: time.time_ns() // 1_000_000,
        )
        queue.on_unreadable = lambda identifier, why: log.emit(events.ItemHeld(identifier, f"it cannot be read: {why}"))
        self._heart = Heart(reactor, self._membership, member, lease.beat_seconds, lease.trusted_seconds)
        self._heart.on_snapshot = self._snapshot
        self._heart.on_over = self._life_is_over
        self._heart.on_trouble = self._trouble("membership")
        self._room = Room(reactor, self._queue, config.redis.memory_watermark, metrics, log)
        self._lag = Lag(reactor, metrics)
        self._files = Files(reactor, config, metrics, log)
        self._files.use(config)
        self._throttle = RedisThrottle(redis)
        self._attempts = RedisAttempts(redis)
        self._gate = Gate(lambda: redis.refusal, self._heart.valid, lambda: self._room.is_full)
        self._partitions: Partitions | None = None
        self._delivery: Delivery | None = None
        self._janitor: Janitor | None = None
        if "delivery" in config.node.roles:
            self._wire_delivery()
        self._front: Front | None = None
        self._site = MachineSite(reactor, registry, self._gate.reasons)
        redis.factory.observe = metrics.redis_observed
        redis.factory.failed = lambda error: metrics.redis_errors[
            "full" if isinstance(error, QueueFull) else "other"
        ].inc()
        redis.on_ready = self._redis_ready
        redis.on_lost = self._redis_lost
        redis.on_refused = self._redis_refused
        self._hints.factory.on_message = self._hint
        self._hints.on_ready = self._listen_for_wakes
        if "edge" in config.node.roles:
            self._front = Front(
                reactor,
                config,
                self._files,
                queue,
                self._throttle,
                self._attempts,
                metrics,
                log,
                self._gate.refusal,
                self._delivery,
            )

    def _wire_delivery(self) -> None:
        config, log, metrics = self._config, self.log, self._metrics
        throttle = self._throttle
        self._limits = ConnectionLimits(reactor, throttle, self._view)
        outbound_settings = OutboundSettings(config.node.hostname, ClientTLS(config.delivery.ca_file or None))
        self._table = config.routes()
        self._rules = config.rules()
        self._suspensions = RedisSuspensions(self._redis, self._queue)

        async def connect(target: Target) -> OutboundConnection:
            settings = self._table.of_limit(target.limit)
            if not await self._limits.reserve(target.limit, settings.connections, bool(settings.name)):
                raise LimitReached(target.limit)
            try:
                return await outbound.connect(reactor, target, outbound_settings)
            except BaseException:
                self._limits.free(target.limit)
                raise

        pool = self._pool = ConnectionPool(
            reactor,
            lambda target: Deferred.fromCoroutine(connect(target)),
            most_connections=config.delivery.connections,
            idle_seconds=config.delivery.idle,
            messages_per_connection=config.delivery.messages_per_connection,
        )
        crowd = Crowd(self._limits.open_of)
        crowd.shares = self._limits.shares
        self._limits.on_surplus = pool.retire_idle

        def gone(connection: OutboundConnection) -> None:
            self._limits.free(connection.target.limit)
            crowd.freed(connection.target.limit)

        pool.on_gone = gone
        pool.is_surplus = lambda target: self._limits.is_surplus(target.limit)
        servers = config.dns.servers or system_servers()
        resolver = self._resolver = Resolver(
            reactor, reactor, ClientSettings(servers), secrets.randbits, lambda: bool(secrets.randbits(1))
        )
        routes = Routes(
            resolver,
            random.SystemRandom().shuffle,
            frozenset({config.node.hostname}),
            settings_of.own_listeners(config),
            reactor.seconds,
        )
        self._allowance = NoticeAllowance(throttle, config.delivery.notices_per_sender)
        self._settlement = Settlement(
            reactor,
            self._queue,
            metrics,
            log,
            settings_of.retry(config),
            config.node.hostname,
            random.random,
            lambda notice: self._files.signer.sign(notice, time.time()),
            lambda: self._rules,
            self._allowance,
        )
        partitions = self._partitions = Partitions(reactor, self._queue, config.node.id)
        partitions.on_acquired = self._acquired
        partitions.on_released = self._released
        partitions.on_lost = self._lost
        partitions.on_recovered = self._recovered
        partitions.on_trouble = self._trouble("partitions")
        self._delivery = Delivery(
            reactor,
            self._queue,
            throttle,
            self._heart,
            partitions,
            pool,
            crowd,
            routes,
            self._table,
            self._settlement,
            metrics,
            log,
            random.random,
            lambda: self._rules,
            self._suspensions.suspended,
            self._suspend,
            max(1000, 4 * config.delivery.connections),  # a lane with a connection has up to four
            sign_anew=lambda content: self._files.signer.sign_anew(content, time.time()),
        )
        self._operations = Operations(
            self._queue,
            RedisOperations(self._redis, self._queue),
            self._settlement,
            log,
            self._delivery.owner_of,
            self._delivery.claim_number,
            self._delivery.taken,
            lambda: self._suspensions.table,
            self._delivery.try_now,
            random.random,
            config.redis.trace_memory,
        )
        self._suspensions.on_change = self._suspensions_changed
        self._janitor = Janitor(
            reactor, self._queue, partitions, self._delivery, self._settlement, pool, metrics, log, self._operations
        )

    def _suspend(self, limit: str, seconds: float, reason: str) -> None:
        """A host asked for it: in the whole cluster."""
        who = f"reply rule at {self._config.node.id}"
        subject = subject_of(limit, self._table.limit_names())
        said = self._suspensions.suspend(subject, seconds, who, reason[:LONGEST_REASON], at_least=True)
        said.addErrback(lambda failure: failure.trap(QueueError))

    def _suspensions_changed(self, before: Suspensions, now: Suspensions) -> None:
        assert self._partitions is not None
        assert self._delivery is not None
        self._operations.changed(before, now, list(self._partitions.owned))
        self._delivery.look_again()

    def _view(self) -> tuple[Snapshot, int] | None:
        """The cluster and our incarnation in it, while the lease is proven: before a new life has seen the cluster there is none."""
        heart = self._heart
        return (heart.snapshot, heart.member.incarnation) if heart.snapshot is not None and heart.valid() else None

    def _listen(self) -> None:
        config = self._config
        if config.http.listen is not None:
            address = config.http.listen
            port = reactor.listenTCP(address.port, self._site, interface=address.host)
            self._ports.append(("http", port))
            self._listener_ready(str(address), port, "http")
        if self._front is not None:
            self._front.listen(self._listener_open)

    def _listener_open(self, configured: str, port: IListeningPort, mode: str) -> None:
        self._ports.append(("smtp", port))
        self._listener_ready(configured, port, mode)

    def _listener_ready(self, configured: str, port: IListeningPort, mode: str) -> None:
        host: Any = port.getHost()
        self.log.emit(events.ListenerReady(configured, f"{host.host}:{host.port}", mode))

    # What happens

    def _snapshot(self, snapshot: Snapshot) -> None:
        self._attempts.set_clock(snapshot.offset_ms)
        self._queue.set_clock(
            snapshot.offset_ms, self._membership.redis_time_ms + snapshot.offset_ms - time.time_ns() // 1_000_000
        )
        now = {member.incarnation: member for member in snapshot.members}
        for incarnation in sorted(now.keys() - self._members.keys()):
            self.log.emit(events.MemberJoined(now[incarnation].id, incarnation, len(now)))
        for incarnation in sorted(self._members.keys() - now.keys()):
            self.log.emit(events.MemberLeft(self._members[incarnation].id, incarnation, len(now)))
        self._members = now
        if self._hints.ready and self._listening_for != self._heart.member.incarnation:
            self._listen_for_wakes()
        delivering = [member for member in snapshot.members if "delivery" in member.roles and not member.draining]
        self._metrics.ring_nodes.set(len(delivering))
        if self._partitions is not None:
            self._limits.see(self._heart.member.incarnation)
            self._suspensions.see(snapshot.suspensions).addErrback(lambda failure: failure.trap(QueueError))
            self._partitions.see(snapshot, self._heart.member.incarnation)
            self._show_load(delivering)

    def _show_load(self, delivering: Sequence[Member]) -> None:
        owned = len(self._partitions.owned) if self._partitions is not None else 0
        self._metrics.ring_partitions_owned.set(owned)
        total = sum(member.weight for member in delivering)
        fair = self._queue.partitions * self._config.node.weight / total if total else 0
        self._metrics.node_load_ratio.set(owned / fair if fair else 0)

    def _acquired(self, partitions: Sequence[int]) -> None:
        assert self._partitions is not None
        assert self._janitor is not None
        owned = len(self._partitions.owned)
        self._metrics.ring_partitions_owned.set(owned)
        self.log.emit(events.PartitionsAcquired(len(partitions), owned))
        self._operations.let_go(partitions)
        Deferred.fromCoroutine(self._janitor.look_at(partitions)).addErrback(lambda failure: failure.trap(QueueError))

    def _released(self, partitions: Sequence[int]) -> None:
        assert self._partitions is not None
        owned = len(self._partitions.owned)
        self._metrics.ring_partitions_owned.set(owned)
        self.log.emit(events.PartitionsReleased(len(partitions), owned))
        if self._delivery is not None:
            self._delivery.released(partitions)

    def _lost(self, partitions: Sequence[int]) -> None:
        self._metrics.ownership_lost.inc(len(partitions))
        self.log.emit(events.OwnershipLost(len(partitions), "the lease ran out, or another node took over"))

    def _recovered(self, waiting: Sequence[str], held: Sequence[str]) -> None:
        self.log.emit(events.ItemsRecovered(-1, len(waiting), len(held)))
        for identifier in held:
            self.log.emit(events.ItemHeld(identifier, "its holders died again and again"))

    def _life_is_over(self) -> Deferred[None] | None:
        """Our lease had run out. What was delivered is written first; then everything is somebody else's, until we join anew."""
        if self._partitions is None:
            return None
        self._settlement.write_again()
        self._partitions.forget()
        if self._delivery is not None:
            self._delivery.life_is_over()
        return None

    def _trouble(self, place: str) -> Callable[[BaseException], None]:
        def told(error: BaseException) -> None:
            if not isinstance(error, QueueError):
                self.log.emit(events.Error(type(error).__name__, place, str(error), Failure(error).getTraceback()))

        return told

    def _redis_ready(self) -> None:
        self.log.emit(events.RedisReady(self._redis_target, ""))
        if self._gate.started:
            self._heart.hurry()
            if self._delivery is not None:
                self._settlement.write_again()
                reactor.callLater(0, self._delivery.look_again)

    def _redis_lost(self) -> None:
        self._metrics.redis_errors["connection"].inc()
        self.log.emit(events.RedisLost(self._redis_target, self._redis.refusal))
        if self._redis_server is not None:
            reactor.callLater(REVIVE_SECONDS, self._revive)

    def _revive(self) -> None:
        """Our own Redis died under us: its append-only file has everything, so start it again."""
        if self._stopping or self._redis.ready or self._redis_server is None:
            return
        if not self._redis_server.alive():
            self.log.emit(events.Warning("the embedded Redis has ended; it is started again", "redis"))
            try:
                self._start_embedded()
            except (QueueError, OSError) as error:
                self.log.emit(events.Error(type(error).__name__, "redis", str(error)))
        reactor.callLater(REVIVE_SECONDS, self._revive)

    def _start_embedded(self) -> embedded.EmbeddedRedis:
        redis = self._config.redis
        self._redis_server = embedded.start(self._state.path, redis.durability == "fsync", redis.maxmemory or 0)
        return self._redis_server

    def _redis_refused(self, reason: str) -> None:
        self._metrics.redis_errors["refused"].inc()
        self.log.emit(events.RedisRefused(self._redis_target, reason))

    def _listen_for_wakes(self) -> None:
        """Hints for our incarnation; the poll finds what they miss."""
        self._listening_for = self._heart.member.incarnation
        channel = keys.WAKE_CHANNEL + b"%d" % self._listening_for
        self._hints.request("SUBSCRIBE", channel).addErrback(lambda failure: failure.trap(QueueError))

    def _hint(self, channel: bytes, message: bytes) -> None:
        if channel == keys.MEMBERSHIP_CHANNEL:
            if message == b"released" and self._partitions is not None:
                self._partitions.reconcile()
            else:
                self._heart.hurry()
        elif self._delivery is not None:
            self._delivery.wake(message.partition(b":")[2].decode("ascii", "replace"))

    # Reloading and leaving

    def reload(self) -> None:
        """SIGHUP: read the configuration again, whole or not at all."""
        try:
            config = self._reload()
            troubles = settings_of.restart_needed(self._config, config) or named_files.troubles(
                config, time.time, also_expired=True
            )
            if troubles:
                raise ConfigError(troubles)
            self._files.use(config)
        except (ConfigError, FileTrouble, OSError) as error:
            lines = error.lines if isinstance(error, ConfigError) else [str(error)]
            self._metrics.config_reloads["refused"].inc()
            self.log.emit(events.ConfigRefused("", tuple(lines)))
            self._files.look_now()
            return
        self._config = config
        if self._front is not None:
            self._front.use(config)
        if self._delivery is not None:
            self._table = config.routes()
            self._rules = config.rules()
            self._allowance.use(config.delivery.notices_per_sender)
            self._delivery.use(self._table)
            self._settlement.use(settings_of.retry(config))
        self._metrics.config_reloads["applied"].inc()
        self.log.emit(events.ConfigLoaded(""))

    def stopService(self) -> Deferred[None]:
        """Drain: finish what is under way within the deadline, hand over, leave."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._stopping or not getattr(self, "_gate", None) or not self._gate.started:
            return self._abandon()
        self._stopping = True
        return Deferred.fromCoroutine(self._drain())

    async def _drain(self) -> None:
        began = reactor.seconds()
        deadline = self._config.node.drain_deadline
        self.log.emit(events.NodeStopping("stop", deadline))
        self._gate.draining = True
        await self._close_ports("smtp")
        self._heart.set_draining()
        self._room.stop()
        finished: list[Deferred[Any]] = [self._front.drain()] if self._front is not None else []
        if self._delivery is not None:
            finished.append(self._delivery.drain())
        await _within(DeferredList(finished, consumeErrors=True), deadline)
        if self._front is not None:
            self._front.abandon()
        unfinished = 0
        if self._delivery is not None and self._janitor is not None and self._partitions is not None:
            self._janitor.stop()
            unfinished = self._delivery.in_hand
            closed = self._pool.close()
            if unfinished:
                self._pool.abort()
            await _within(closed, 2.0)
            await _within(self._partitions.all_released(), 2.0)
            self._partitions.stop()
            self._limits.stop()
            self._settlement.stop()
            self._resolver.stop()
        await _within(Deferred.fromCoroutine(self._heart.leave()), 2.0)
        self._lag.stop()
        await self._close_ports("http")
        self.log.emit(events.NodeStopped(reactor.seconds() - began, unfinished))
        await self._abandon()

    async def _close_ports(self, kind: str) -> None:
        """Listen no more; `/readyz` stays to the end, so that balancers see why."""
        for each, port in self._ports:
            if each == kind:
                stopped = port.stopListening()
                if stopped is not None:
                    await stopped

    def _abandon(self) -> Deferred[None]:
        """The rest, at once."""

        async def close() -> None:
            files: Files | None = getattr(self, "_files", None)
            if files is not None:
                files.stop()
            for name in ("_hints", "_redis"):
                connection: RedisConnection | None = getattr(self, name, None)
                if connection is not None:
                    await _within(connection.stop(), 2.0)
            if self._redis_server is not None:
                self._redis_server.stop()
            self._write.flush()

        return Deferred.fromCoroutine(close())


async def _within(done: Deferred[Any], seconds: float) -> None:
    """Wait for it, at most so long; how it ended does not matter."""
    waiting: Deferred[None] = Deferred()

    def over(_: object) -> None:
        if not waiting.called:
            waiting.callback(None)

    timer = reactor.callLater(seconds, over, None)
    done.addBoth(over)
    await waiting
    if timer.active():
        timer.cancel()


def make_node(path: str | None, overrides: dict[str, object], start_failed: Callable[[str], None]) -> Node:
    """A node from its configuration file. Raises `ConfigError`."""

    def read() -> Config:
        return load(path, os.environ, overrides)

    return Node(read(), read, start_failed)
