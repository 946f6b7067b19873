"""The front of a node: its listeners, the sessions on them, and the edge that answers for them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory

from relaycluster.app import settings as settings_of
from relaycluster.app.files import Files
from relaycluster.config import Config, Listener
from relaycluster.events import EventLog
from relaycluster.interfaces import IAttempts, IQueue, IThrottle
from relaycluster.mail.reply import Reply
from relaycluster.metrics import Metrics
from relaycluster.net.inbound import InboundFactory
from relaycluster.net.inbound_sessions import InboundSessions
from relaycluster.net.proxy import ProxyGate
from relaycluster.node.delivery import Delivery
from relaycluster.node.edge import Edge
from relaycluster.node.login import LoginCheck
from relaycluster.node.observer import Observer
from relaycluster.smtp.server_settings import Dialect

BACKLOG = 1024


class Front:
    """One for a node with the role edge. `told(configured, port, mode)` hears of each socket that is open."""

    def __init__(
        self,
        reactor: Any,
        config: Config,
        files: Files,
        queue: IQueue,
        throttle: IThrottle,
        attempts: IAttempts,
        metrics: Metrics,
        log: EventLog,
        refusal: Callable[[], Reply | None],
        delivery: Delivery | None,
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._files = files
        self._observer = Observer(metrics, log, reactor.seconds)
        self.sessions = InboundSessions(settings_of.session_limits(config))
        self.sessions.on_stress = self._stressed
        self._edge = Edge(
            reactor,
            queue,
            settings_of.access(config),
            settings_of.edge_settings(config),
            time.time,
            lambda: secrets.randbits(65),
            log,
            refusal,
            delivery,
            login=LoginCheck(files.accounts, attempts, reactor, self._observer),
            accounts=files.accounts,
            throttle=throttle,
            signer=files.signer,
            aliases=files.aliases,
        )
        self._factories: dict[str, InboundFactory] = {}
        self._gates: dict[str, ProxyGate] = {}

    def listen(self, told: Callable[[str, IListeningPort, str], None]) -> None:
        """Open every listener's socket."""
        for listener in self._config.listener:
            factory = self._factory(listener)
            address = listener.address
            port = self._reactor.listenTCP(address.port, factory, backlog=BACKLOG, interface=address.host)
            told(str(address), port, listener.mode)

    def _factory(self, listener: Listener) -> Factory:
        """What makes the listener's sessions: behind balancers, the gate that learns from them who the client is."""
        name = str(listener.address)
        factory = self._factories[name] = InboundFactory(
            intake=self._edge,
            settings=settings_of.server_settings(self._config, listener),
            sessions=self.sessions,
            clock=self._reactor,
            listener=name,
            mode=listener.mode,
            observer=self._observer,
            tls=self._files.tls if listener.tls != "none" else None,
            implicit_tls=listener.tls == "implicit",
        )
        if not listener.proxy_protocol_from:
            return factory
        gate = self._gates[name] = ProxyGate(factory, listener.proxy_protocol_from, self._reactor)
        return gate

    def use(self, config: Config) -> None:
        """Other settings, for new sessions; other rules, from the next question on."""
        self._config = config
        self._edge.use(settings_of.access(config), settings_of.edge_settings(config))
        self.sessions.limits = settings_of.session_limits(config)
        for listener in config.listener:
            factory = self._factories[str(listener.address)]
            factory.tls = self._files.tls if listener.tls != "none" else None
            factory.dialect = Dialect(settings_of.server_settings(config, listener))
            if listener.proxy_protocol_from:
                self._gates[str(listener.address)].trusted = listener.proxy_protocol_from

    def drain(self) -> Deferred[None]:
        """No new sessions; fires when those that are open have ended."""
        return self.sessions.drain()

    def abandon(self) -> None:
        """The deadline has passed: end what is open."""
        self.sessions.abandon()

    def _stressed(self, begins: bool) -> None:
        self._observer.stressed(begins, self.sessions.connections, self.sessions.limits.connections)
