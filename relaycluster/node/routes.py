"""From a recipient domain to the targets of an attempt, in the order in which they are tried (RFC 5321 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, assert_never

from attrs import frozen

from relaycluster.interfaces import IMXResolver
from relaycluster.mail.outcome import Deferred as DeferredOutcome
from relaycluster.mail.outcome import Failed, Stage
from relaycluster.net.outbound import Target
from relaycluster.policy import routing, trouble
from relaycluster.policy.routing import (
    Addresses,
    DestinationSettings,
    DNSTrouble,
    Exchangers,
    NoAddress,
    NoSuchDomain,
    NullMX,
)
from relaycluster.policy.trouble import LocalTrouble
from relaycluster.smtp.client import TLSPolicy

Shuffle = Callable[[list[Any]], None]


@frozen
class Route:
    """Where to try, best first; good until `until_seconds` on the node's clock."""

    targets: tuple[Target, ...]
    until_seconds: float


@frozen
class NoRoute:
    """There is nowhere to try, and what that means for the recipients."""

    outcome: DeferredOutcome | Failed


def _trouble(kind: LocalTrouble, detail: str = "") -> NoRoute:
    return NoRoute(trouble.judge_local(Stage.ROUTING, kind, detail=detail).outcome)


class Routes:
    """Finds routes. `own_names` are host names of this cluster, `is_own` tells whether an address and port is a listener of ours;
    `shuffle` works in place, as `random.shuffle`."""

    def __init__(
        self,
        resolver: IMXResolver,
        shuffle: Shuffle,
        own_names: frozenset[str],
        is_own: Callable[[str, int], bool],
        seconds: Callable[[], float],
    ) -> None:
        self._is_own = is_own
        self._resolver = resolver
        self._shuffle = shuffle
        self._own_names = own_names
        self._seconds = seconds

    async def find(self, domain: str, settings: DestinationSettings) -> Route | NoRoute:
        """The targets for a domain."""
        limit = settings.limit_key(domain)
        if settings.hosts:
            hosts = [(entry.host, entry.port) for entry in settings.hosts]
            return await self._addresses(hosts, settings, limit, float("inf"))
        literal = routing.literal_address(domain)
        if literal is not None:
            return await self._addresses([(literal, settings.port)], settings, limit, float("inf"))
        answer = await self._resolver.mx(domain)
        if isinstance(answer, Exchangers):
            ordered = routing.order_hosts(answer.records, self._shuffle, self._own_names)
            if not ordered:
                return _trouble(LocalTrouble.LOOPS_TO_US)
            hosts = [(record.host, settings.port) for record in ordered]
            return await self._addresses(hosts, settings, limit, answer.ttl_seconds)
        if isinstance(answer, NullMX):
            return _trouble(LocalTrouble.NULL_MX)
        if isinstance(answer, NoSuchDomain):
            return _trouble(LocalTrouble.NO_ADDRESS if answer.exists else LocalTrouble.NO_SUCH_DOMAIN)
        if isinstance(answer, DNSTrouble):
            return _trouble(LocalTrouble.DNS_UNAVAILABLE, answer.reason)
        assert_never(answer)

    async def _addresses(
        self, hosts: Sequence[tuple[str, int]], settings: DestinationSettings, limit: str, ttl_seconds: float
    ) -> Route | NoRoute:
        """Hosts by name become targets by address; one that cannot be looked up is left out while others can."""
        targets: list[Target] = []
        reason = ""
        policy = TLSPolicy(settings.tls)
        # All are asked at once: ten silent name servers cost the time of one.
        asked = [None if routing.is_address(host) else self._resolver.addresses(host) for host, _ in hosts]
        for (host, port), lookup in zip(hosts, asked, strict=True):
            if lookup is None:
                found: Sequence[str] = (host,)
            else:
                answer = await lookup
                if isinstance(answer, Addresses):
                    found = routing.order_addresses(answer.addresses, self._shuffle)
                    ttl_seconds = min(ttl_seconds, answer.ttl_seconds)
                elif isinstance(answer, NoAddress):
                    continue
                else:
                    reason = answer.reason
                    continue
            if any(self._is_own(address, port) for address in found):
                # That is ourselves under another name: it and what is less preferred would bring the mail back (RFC 5321 5.1).
                if not targets:
                    return _trouble(LocalTrouble.LOOPS_TO_US)
                break
            targets += [Target(host, address, port, policy, limit=limit) for address in found]
        if targets:
            return Route(tuple(targets[: routing.MOST_ADDRESSES]), self._seconds() + ttl_seconds)
        return _trouble(LocalTrouble.DNS_UNAVAILABLE, reason) if reason else _trouble(LocalTrouble.NO_ADDRESS)
