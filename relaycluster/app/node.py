"""One node, from its configuration: everything that it consists of is made and connected here."""

from __future__ import annotations

import os
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
from relaycluster.app.back import Back
from relaycluster.app.deadline import within
from relaycluster.app.files import Files
from relaycluster.app.front import Front
from relaycluster.config import Config, ConfigError, load, warnings
from relaycluster.events import EventLog
from relaycluster.interfaces import FileTrouble, QueueError, QueueFull
from relaycluster.metrics import Metrics
from relaycluster.net.http import MachineSite
from relaycluster.net.lines import LineWriter
from relaycluster.node import named_files
from relaycluster.node.gate import Gate
from relaycluster.node.janitor import Lag, Room
from relaycluster.node.membership import Heart
from relaycluster.policy.cluster import Member, Snapshot
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
from relaycluster.store.redis.queue import QueueSettings, RedisQueue
from relaycluster.store.redis.throttle import RedisThrottle
from relaycluster.store.state_directory import StateDirectory

reactor: Any = _reactor
# Timers must not follow the wall clock: a jump of it would freeze or fire every one of them.
reactor.seconds = time.monotonic

START_SECONDS = 15.0
"""So long a node waits for Redis when it starts; then it says why not and ends."""
REVIVE_SECONDS = 0.5
LEAVING_SECONDS = 2.0
"""So long the last words to Redis may take."""


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
            self.log.emit(events.Error.of(failure, "start"))
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
        if self._back is not None:
            self._back.start()
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
        self._heart.on_trouble = self._trouble
        self._room = Room(reactor, self._queue, config.redis.memory_watermark, metrics, log)
        self._lag = Lag(reactor, metrics)
        self._files = Files(reactor, config, metrics, log)
        self._files.use(config)
        throttle = RedisThrottle(redis)
        self._attempts = RedisAttempts(redis)
        self._gate = Gate(lambda: redis.refusal, self._heart.valid, lambda: self._room.is_full)
        self._back: Back | None = None
        if "delivery" in config.node.roles:
            self._back = Back(reactor, config, self._files, redis, queue, throttle, self._heart, metrics, log)
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
                throttle,
                self._attempts,
                metrics,
                log,
                self._gate.refusal,
                self._back.delivery if self._back is not None else None,
            )

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
        if self._back is not None:
            self._back.see(snapshot)
            self._show_load(delivering, self._back.owned)

    def _show_load(self, delivering: Sequence[Member], owned: int) -> None:
        self._metrics.ring_partitions_owned.set(owned)
        total = sum(member.weight for member in delivering)
        fair = self._queue.partitions * self._config.node.weight / total if total else 0
        self._metrics.node_load_ratio.set(owned / fair if fair else 0)

    def _life_is_over(self) -> None:
        if self._back is not None:
            self._back.life_is_over()

    def _trouble(self, error: BaseException) -> None:
        if not isinstance(error, QueueError):
            self.log.emit(events.Error.of(error, "membership"))

    def _redis_ready(self) -> None:
        self.log.emit(events.RedisReady(self._redis_target, ""))
        if self._gate.started:
            self._heart.hurry()
            if self._back is not None:
                self._back.queue_is_back()

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
                self.log.emit(events.Error.of(error, "redis"))
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
            if message == b"released" and self._back is not None:
                self._back.others_released()
            else:
                self._heart.hurry()
        elif self._back is not None:
            self._back.delivery.wake(message.partition(b":")[2].decode("ascii", "replace"))

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
        if self._back is not None:
            self._back.use(config)
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
        if self._back is not None:
            finished.append(self._back.drain())
        await within(reactor, DeferredList(finished, consumeErrors=True), deadline)
        if self._front is not None:
            self._front.abandon()
        unfinished = await self._back.close() if self._back is not None else 0
        await within(reactor, Deferred.fromCoroutine(self._heart.leave()), LEAVING_SECONDS)
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
                    await within(reactor, connection.stop(), LEAVING_SECONDS)
            if self._redis_server is not None:
                self._redis_server.stop()
            self._write.flush()

        return Deferred.fromCoroutine(close())


def make_node(path: str | None, overrides: dict[str, object], start_failed: Callable[[str], None]) -> Node:
    """A node from its configuration file. Raises `ConfigError`."""

    def read() -> Config:
        return load(path, os.environ, overrides)

    return Node(read(), read, start_failed)
