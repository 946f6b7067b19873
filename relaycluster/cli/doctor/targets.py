"""A listener as `doctor` sees it: where it is, what it should do, and as whom it can be tested from here."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

from attrs import frozen

from relaycluster.cli.doctor.client import proxy_header
from relaycluster.config import Config

Network = IPv4Network | IPv6Network

# Documentation's networks (RFC 5737, RFC 3849): clients that do not exist, for PROXY headers.
STRANGERS = ("198.51.100.77", "203.0.113.77", "192.0.2.77", "2001:db8::77")


@frozen
class Target:
    """One listener. `host` is where to connect; `allowed`, the networks that may relay, is None when nobody told us."""

    subject: str
    host: str
    port: int
    hostname: str = ""
    mode: str = ""
    tls: str = ""
    minimum: str = "1.2"
    require_tls: bool = False
    auth: bool = False
    auth_without_tls: bool = False
    trusted: tuple[Network, ...] = ()
    allowed: tuple[Network, ...] | None = None
    domains: tuple[str, ...] = ()
    everywhere: bool = False

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        return ip_address(self.host).is_loopback and not self.everywhere


@frozen
class Approach:
    """How to come to a listener: from `source` (empty: the system's choice) to `host`, in the name of `client`, which is the
    address that the server must believe in; `preface` makes it."""

    host: str
    source: str
    client: str
    preface: bytes = b""


def targets(config: Config) -> list[Target]:
    """The configuration's listeners."""
    found = []
    for listener in config.listener:
        address = listener.address
        where = ip_address(address.host)
        loopback = "::1" if where.version == 6 else "127.0.0.1"
        found.append(
            Target(
                subject=str(address),
                host=loopback if where.is_unspecified else address.host,
                port=address.port,
                hostname=config.node.hostname,
                mode=listener.mode,
                tls=listener.tls,
                minimum=config.tls.minimum,
                require_tls=listener.require_tls,
                auth=bool(config.access.users_file) and listener.mode == "submission",
                auth_without_tls=listener.auth_without_tls,
                trusted=tuple(listener.proxy_protocol_from),
                allowed=tuple(config.access.networks_for(listener)),
                domains=tuple(config.access.relay_domains),
                everywhere=where.is_unspecified,
            )
        )
    return found


def within(address: str, networks: Sequence[Network]) -> bool:
    """Whether an address is in one of the networks."""
    found = ip_address(address)
    return any(found.version == network.version and found in network for network in networks)


def approaches(target: Target, source: str = "") -> list[Approach]:
    """The ways to come to a listener from this machine, the usual one first; with `source` that one alone."""
    pairs = [(target.host, source)]
    if not source:
        own = _own_address(target.host)
        pairs = [(target.host, own)]
        if ip_address(target.host).is_loopback:
            if ip_address(target.host).version == 4:
                pairs.append((target.host, "127.77.77.77"))
            if target.everywhere and (outward := _outward_address(ip_address(target.host).version)):
                pairs.append((outward, outward))
    found = []
    for host, address in pairs:
        if not target.trusted:
            found.append(Approach(host, address, address))
        elif within(address, target.trusted):
            found += [
                Approach(host, address, stranger, proxy_header(stranger, host, target.port)) for stranger in STRANGERS
            ]
        else:
            found.append(Approach(host, address, ""))
    return found


def as_stranger(target: Target, found: Sequence[Approach]) -> Approach | None:
    """The first approach as a client that may not relay; None when there is none, or none is let in."""
    usable = [approach for approach in found if approach.client]
    if target.allowed is None:
        return usable[0] if usable else None
    return next((approach for approach in usable if not within(approach.client, target.allowed)), None)


def _own_address(host: str) -> str:
    """The address from which the system would connect there; empty when there is no way. Nothing is sent."""
    family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError as error:
            if error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EHOSTUNREACH):
                return ""
            raise
        address: str = probe.getsockname()[0]
        return address


def _outward_address(version: int) -> str:
    """This machine's address towards the world, if it has a way there."""
    return _own_address("2001:db8::1" if version == 6 else "192.0.2.1")
