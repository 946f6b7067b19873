"""The gate before a listener that stands behind balancers: learns from a PROXY header who the client is, before TLS and before the
greeting.

A header from somebody whom the operator did not name could claim any address: such a connection is closed unread. So is one whose
header is malformed, or late.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

from twisted.internet.interfaces import IAddress, IDelayedCall, IHalfCloseableProtocol, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from relaycluster.metrics import ProxyResult
from relaycluster.net.inbound import InboundFactory
from relaycluster.net.inbound_protocol import InboundProtocol
from relaycluster.net.peer import Origin, origin_of
from relaycluster.net.proxy_header import ProxyHeader, ProxyHeaderError, parse

Network = IPv4Network | IPv6Network


class ProxyGate(Factory):
    """Stands outside of TLS and SMTP: its connections become `inner`'s once their header was read.

    `trusted` are the networks of the balancers; it may be replaced. A header must be complete within `deadline_seconds`.
    """

    noisy = False

    def __init__(
        self, inner: InboundFactory, trusted: Sequence[Network], clock: IReactorTime, deadline_seconds: float = 5.0
    ) -> None:
        self.inner = inner
        self.trusted = trusted
        self.clock = clock
        self.deadline_seconds = deadline_seconds

    def buildProtocol(self, addr: IAddress | None) -> GatedConnection:
        """One connection from a balancer."""
        return GatedConnection(self)

    def trusts(self, address: str) -> bool:
        """Whether a header from this address is believed."""
        try:
            there = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        return any(there in network for network in self.trusted)


@implementer(IHalfCloseableProtocol)
class GatedConnection(Protocol):
    """A connection: collects its header, then hands everything on to the session."""

    transport: Any

    def __init__(self, gate: ProxyGate) -> None:
        self._gate = gate
        self._session: InboundProtocol | None = None
        self._buffer = b""
        self._timer: IDelayedCall | None = None
        self._balancer = Origin("", 0, "", 0)

    def connectionMade(self) -> None:
        """See `IProtocol`."""
        gate = self._gate
        self._balancer = origin_of(self.transport)
        if not gate.trusts(self._balancer.peer_address):
            self._turn_away("untrusted", "PROXY headers are not taken from this address")
            return
        self._timer = gate.clock.callLater(gate.deadline_seconds, self._too_late)

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol`."""
        if self._session is not None:
            self._session.dataReceived(data)
        elif self._timer is not None:
            self._buffer += data
            try:
                header = parse(self._buffer)
            except ProxyHeaderError as error:
                self._turn_away("malformed", f"Malformed PROXY header: {error}")
                return
            if header is not None:
                self._begin(header)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`. Before the header nobody is told: that is how balancers look whether a port is open."""
        self._stop_timer()
        if self._session is not None:
            self._session.connectionLost(reason)

    def readConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`."""
        if self._session is not None:
            self._session.readConnectionLost()
        else:
            self._stop_timer()
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`: nobody here closes one half."""

    def _begin(self, header: ProxyHeader) -> None:
        self._stop_timer()
        balancer, route, inner = self._balancer, header.route, self._gate.inner
        if route is None:
            origin = Origin(
                balancer.peer_address,
                balancer.peer_port,
                balancer.local_address,
                balancer.local_port,
                is_probe=True,
            )
            inner.observer.proxied("health")
        else:
            origin = Origin(
                route.peer_address,
                route.peer_port,
                route.local_address,
                route.local_port,
                via=balancer.peer_address,
            )
            inner.observer.proxied("client")
        rest, self._buffer = self._buffer[header.octets :], b""
        self._session = session = inner.buildProtocol(origin)
        session.makeConnection(self.transport)  # type: ignore[no-untyped-call]
        if rest:
            session.dataReceived(rest)

    def _too_late(self) -> None:
        self._timer = None
        self._turn_away("timeout", "No PROXY header came in time")

    def _turn_away(self, result: ProxyResult, why: str) -> None:
        self._stop_timer()
        self._buffer = b""
        self.transport.abortConnection()
        self._gate.inner.turned_away(self._balancer, result, why)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
