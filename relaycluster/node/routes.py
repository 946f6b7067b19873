"""From a recipient domain to the targets of an attempt, in the order in which they are tried (RFC 5321 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, assert_never

from attrs import frozen

from relaycluster.interfaces import IMXResolver
from relaycluster.mail.outcome import Deferred as DeferredOutcome
from relaycluster.mail.outcome import Failed, Stage
from relaycluster.net.outbound import Target
from relaycluster.policy import routing, trouble
from relaycluster.policy.host_names import is_address, literal_address
from relaycluster.policy.routing import (
    Addresses,
    DestinationSettings,
    DNSTrouble,
    Exchangers,
    NoAddress,
    NoSuchDomain,
    NullMX,
    RouteTable,
)
from relaycluster.policy.trouble import LocalTrouble
from relaycluster.smtp.client_events import TLSPolicy

Shuffle = Callable[[list[Any]], None]


@frozen
class Route:
    """Where to try, best first; good until `until_seconds` on the node's clock. `settings` are those that hold for the domain, seen
    its hosts; `kept` are all targets at which an idle connection may be found, whatever source it was made from."""

    targets: tuple[Target, ...]
    until_seconds: float
    settings: DestinationSettings | None = None
    kept: tuple[Target, ...] = ()


@frozen
class _Host:
    """One of the hosts of a domain; those of a lower `preference` are tried before."""

    name: str
    port: int
    preference: int = 0


@frozen
class NoRoute:
    """There is nowhere to try, and what that means for the recipients."""

    outcome: DeferredOutcome | Failed


def _trouble(kind: LocalTrouble, detail: str = "") -> NoRoute:
    return NoRoute(trouble.judge_local(Stage.ROUTING, kind, detail=detail).outcome)


def _route(hosts: Sequence[list[list[Target]]], until_seconds: float, settings: DestinationSettings) -> Route:
    """Hosts, best first, by address and source. While others follow, one with many addresses has no more than a few of them tried."""
    first: list[list[Target]] = []
    others: list[list[Target]] = []
    for addresses in hosts:
        most = routing.MOST_OF_ONE_HOST if addresses is not hosts[-1] else len(addresses)
        first += addresses[:most]
        others += addresses[most:]
    most = routing.MOST_ADDRESSES
    kept = [target for sources in (*first, *others) for target in sources]
    return Route(tuple(sources[0] for sources in first[:most]), until_seconds, settings, tuple(kept[:most]))


class Routes:
    """Finds routes. `is_own` tells whether an address and port is a listener of ours; `shuffle` works in place, as `random.shuffle`."""

    def __init__(
        self,
        resolver: IMXResolver,
        shuffle: Shuffle,
        is_own: Callable[[str, int], bool],
        seconds: Callable[[], float],
    ) -> None:
        self._is_own = is_own
        self._resolver = resolver
        self._shuffle = shuffle
        self._own_names: set[str] = set()
        self._seconds = seconds
        self._table: RouteTable | None = None

    def use(self, table: RouteTable) -> None:
        """Whose settings hold where the domain's hosts decide it, from the next question on."""
        self._table = table

    def know(self, names: Iterable[str]) -> None:
        """Host names of this cluster: an exchanger of such a name is ourselves. They stay known, since a node that is not there just
        now comes back under its name."""
        self._own_names.update(name.lower().removesuffix(".") for name in names)

    def is_placed(self, domain: str) -> bool:
        """Whether the domain's name alone says which settings hold."""
        return self._table is None or self._table.is_placed(domain)

    async def find(self, domain: str, settings: DestinationSettings) -> Route | NoRoute:
        """The targets for a domain, and its settings: those given, unless its hosts are a provider's."""
        table = self._table
        is_placed = table is None or table.is_placed(domain)
        if is_placed and settings.hosts:
            return await self._hosts(settings, domain, float("inf"))
        literal = literal_address(domain)
        if literal is not None:
            return await self._addresses([_Host(literal, settings.port)], settings, domain, float("inf"))
        answer = await self._resolver.mx(domain)
        if not is_placed and table is not None:
            # The settings that the lane has may be those of a provider where the domain no longer is.
            settings = table.by_exchangers(domain, answer.records if isinstance(answer, Exchangers) else ())
            if settings.hosts:
                return await self._hosts(
                    settings, domain, answer.ttl_seconds if isinstance(answer, Exchangers) else 60.0
                )
        if isinstance(answer, Exchangers):
            ordered = routing.order_hosts(answer.records, self._shuffle, self._own_names)
            if not ordered:
                return _trouble(LocalTrouble.LOOPS_TO_US)
            hosts = [_Host(record.host, settings.port, record.preference) for record in ordered]
            return await self._addresses(hosts, settings, domain, answer.ttl_seconds)
        if isinstance(answer, NullMX):
            return _trouble(LocalTrouble.NULL_MX)
        if isinstance(answer, NoSuchDomain):
            return _trouble(LocalTrouble.NO_ADDRESS if answer.exists else LocalTrouble.NO_SUCH_DOMAIN)
        if isinstance(answer, DNSTrouble):
            return _trouble(LocalTrouble.DNS_UNAVAILABLE, answer.reason)
        assert_never(answer)

    async def _hosts(self, settings: DestinationSettings, domain: str, ttl_seconds: float) -> Route | NoRoute:
        # Of configured hosts, each is preferred to all that follow.
        hosts = [_Host(each.host, each.port, number) for number, each in enumerate(settings.hosts)]
        return await self._addresses(hosts, settings, domain, ttl_seconds)

    async def _addresses(
        self, hosts: Sequence[_Host], settings: DestinationSettings, domain: str, ttl_seconds: float
    ) -> Route | NoRoute:
        """Hosts by name, best first, become targets by address; one that cannot be looked up is left out while others can."""
        known: list[
            tuple[int, list[list[Target]] | NoRoute]
        ] = []  # preference; by address the targets from its sources
        loops = False
        # All are asked at once: ten silent name servers cost the time of one.
        asked = [None if is_address(host.name) else self._resolver.addresses(host.name) for host in hosts]
        for host, lookup in zip(hosts, asked, strict=True):
            answer = Addresses((host.name,)) if lookup is None else await lookup
            if isinstance(answer, NoAddress):
                continue
            if isinstance(answer, DNSTrouble):
                known.append((host.preference, _trouble(LocalTrouble.DNS_UNAVAILABLE, answer.reason)))
                continue
            if any(self._is_own(address, host.port) for address in answer.addresses):
                # That is ourselves under another name: whoever is not preferred to us would bring the mail back (RFC 5321 5.1).
                known = [(preference, what) for preference, what in known if preference < host.preference]
                loops = True
                break
            if lookup is not None:
                ttl_seconds = min(ttl_seconds, answer.ttl_seconds)
            targets = self._targets(host, answer.addresses, settings, settings.limit_key(domain))
            no_source = "no source address of the hosts' family is configured"
            known.append((host.preference, targets or _trouble(LocalTrouble.UNREACHABLE, no_source)))
        found = [what for _, what in known if not isinstance(what, NoRoute)]
        if found:
            return _route(found, self._seconds() + ttl_seconds, settings)
        # A host that may be there tomorrow is no loop, and no failure.
        troubles = [what for _, what in known if isinstance(what, NoRoute)]
        return troubles[0] if troubles else _trouble(LocalTrouble.LOOPS_TO_US if loops else LocalTrouble.NO_ADDRESS)

    def _targets(
        self, host: _Host, addresses: tuple[str, ...], settings: DestinationSettings, limit: str
    ) -> list[list[Target]]:
        """Of each address that we have a source for, the targets from each source."""
        policy = TLSPolicy(settings.tls)
        return [
            [
                Target(host.name, address, host.port, policy, limit=limit, source=source, helo_name=name)
                for source, name in ours
            ]
            for address in routing.order_addresses(addresses, self._shuffle)
            if (ours := self._sources(address, settings)) is not None
        ]

    def _sources(self, address: str, settings: DestinationSettings) -> list[tuple[str, str]] | None:
        """The local addresses to connect from and their EHLO names, the one whose turn it is first; None when the family has none."""
        if not settings.sources:
            return [("", "")]
        of_family = [(each.address, each.hostname) for each in settings.sources if each.is_ipv6 is (":" in address)]
        if len(of_family) > 1:
            self._shuffle(of_family)
        return of_family or None
