"""Where mail for a domain goes: the answers that DNS can give, configured routes, and the order in which hosts are tried.

RFC 5321 5.1 (MX, implicit MX, order, address literals), RFC 7505 (null MX). Nothing here asks anybody: `net/resolver.py`
brings the answers, delivery walks the hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from ipaddress import ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING

from attrs import field, frozen

from relaycluster.policy.host_names import is_address, is_host_name, literal_address

if TYPE_CHECKING:
    from relaycluster.policy.rate import Rate
    from relaycluster.policy.sources import Source

MOST_HOSTS = 10
"""How many MX hosts one attempt tries. RFC 5321 5.1 asks for at least two."""

MOST_ADDRESSES = 20
"""How many addresses one attempt tries over all of its hosts, and how many one answer keeps for a host."""

MOST_OF_ONE_HOST = 5
"""How many addresses of one host an attempt tries while other hosts follow: the next host comes into reach."""

SMTP_PORT = 25


# What DNS says about a recipient domain.


@frozen(order=True)
class MX:
    """One mail exchanger. A lower `preference` is tried first. `host` is a name in lower case, or an address."""

    preference: int
    host: str


@frozen
class Exchangers:
    """The hosts that take mail for the domain: at least one, by rising preference.

    `implicit` when there is no MX record and the domain itself is the host (RFC 5321 5.1). `ttl_seconds` is how long
    the answer may be kept, counted from the lookup. `authenticated` when the DNS server said that DNSSEC proves the
    answer; worth only what the way to that server is worth.
    """

    records: tuple[MX, ...]
    ttl_seconds: int = 0
    implicit: bool = False
    authenticated: bool = False


@frozen
class NullMX:
    """The domain says that it takes no mail: a single MX record whose host is "." (RFC 7505)."""


@frozen
class NoSuchDomain:
    """No host can take mail for the domain, and no later lookup is expected to say otherwise.

    `exists` when the name is there, but with neither MX nor address records; otherwise there is no such name, or the
    text cannot be one.
    """

    exists: bool = False


@frozen
class DNSTrouble:
    """DNS gave no usable answer: nothing is known, try again later. `reason` is one line for logs and notices."""

    reason: str


MXAnswer = Exchangers | NullMX | NoSuchDomain | DNSTrouble


@frozen
class Addresses:
    """The addresses of one host in their canonical text: at least one, the two families in turn."""

    addresses: tuple[str, ...]
    ttl_seconds: int = 0
    authenticated: bool = False


@frozen
class NoAddress:
    """The host has no address that a connection could be made to, or does not exist."""


AddressAnswer = Addresses | NoAddress | DNSTrouble


# Routes.


@frozen
class HostPort:
    """Where to connect: `host` is a name, whose A and AAAA records are asked for (never its MX), or an address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_host_port(text: str, default_port: int = SMTP_PORT) -> HostPort:
    """A host as the configuration writes it: `10.1.1.1:25`, `[::1]:2525`, `mx.example.net`, `mx.example.net:587`.

    Raises ValueError with a sentence that says what to write instead.
    """
    given = text.strip()
    if given[:1] == "[":
        host, bracket, rest = given[1:].partition("]")
        if not bracket or not is_address(host):
            raise ValueError(f"{text!r}: between brackets stands an address, as in [::1]:25")
        host = str(ip_address(host))
    else:
        host, colon, port = given.partition(":")
        if ":" in port:
            raise ValueError(f"{text!r}: write an IPv6 address in brackets, as in [::1]:25")
        rest = colon + port
        host = host.lower().removesuffix(".")
        if not is_address(host) and not is_host_name(host):
            raise ValueError(f"{text!r}: {host!r} is neither an address nor a host name (IDN as A-labels, xn--…)")
    if not rest:
        return HostPort(host, default_port)
    port = rest[1:]
    if rest[0] != ":" or not (port.isascii() and port.isdigit()) or not 1 <= int(port[:6]) <= 65535:
        raise ValueError(f"{text!r}: after the host comes a colon and a port from 1 to 65535")
    return HostPort(host, int(port))


@frozen
class DestinationSettings:
    """How mail for some domains is sent: one `[[destination]]`, or the defaults of `[delivery]`.

    `name` is under which the cluster counts rate and connections: all domains that a destination matches share its
    limits. It is empty in the defaults, where each domain is limited by itself. `hosts` are tried in the given order
    instead of the domain's MX hosts; empty for MX, whose hosts are asked on `port`. `rate` is None without a limit. `connections` and
    `messages_per_connection` are counts; `tls` is "none", "may", "encrypt" or "verify". `mx_suffix` are what
    names of hosts end in: all domains whose best MX hosts are among these share the destination's limits. `sources` are the local addresses to connect from; empty lets the system choose.
    """

    name: str = ""
    hosts: tuple[HostPort, ...] = ()
    port: int = SMTP_PORT
    rate: Rate | None = None
    connections: int = 20
    messages_per_connection: int = 100
    tls: str = "may"
    mx_suffix: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()

    def limit_key(self, domain: str) -> str:
        """Under which key `domain`'s rate and connections are counted."""
        return self.name or domain


@frozen
class RouteTable:
    """Which destination's settings hold for a domain. The most specific pattern wins, in this order: the domain itself,
    the longest `*.suffix` (subdomains only, not the suffix itself), the longest `mx_suffix` of its best MX hosts, `*`, the
    defaults.

    A lookup costs one dictionary access, and one per label where there are `*.suffix` patterns, however many
    destinations there are. Domains for which MX hosts decide must be asked for in DNS before their limits are known.
    """

    _default: DestinationSettings
    _exact: Mapping[str, DestinationSettings] = field(factory=lambda: MappingProxyType({}))
    _suffixes: Mapping[str, DestinationSettings] = field(factory=lambda: MappingProxyType({}))
    _providers: Mapping[str, DestinationSettings] = field(factory=lambda: MappingProxyType({}))
    _names: Mapping[str, DestinationSettings] = field(factory=lambda: MappingProxyType({}))

    @classmethod
    def build(
        cls,
        defaults: DestinationSettings,
        destinations: Iterable[tuple[Iterable[str], DestinationSettings]] = (),
    ) -> RouteTable:
        """The table for `destinations`, each its `match` patterns and its settings.

        Raises ValueError for a pattern that can match nothing, and for one that two destinations claim.
        """
        exact: dict[str, DestinationSettings] = {}
        suffixes: dict[str, DestinationSettings] = {}
        providers: dict[str, DestinationSettings] = {}
        names: dict[str, DestinationSettings] = {}
        fallback: DestinationSettings | None = None
        for patterns, settings in destinations:
            if settings.name and names.setdefault(settings.name, settings) is not settings:
                raise ValueError(f"two destinations are named {settings.name!r}")
            for given in settings.mx_suffix:
                key = given.strip().lower().removeprefix("*").strip(".")
                if not is_host_name(key):
                    raise ValueError(f"mx_suffix = {given!r}: write what the names of MX hosts end in, as outlook.com")
                if providers.setdefault(key, settings) is not settings:
                    raise ValueError(f"two destinations have mx_suffix {given!r}")
            for given in patterns:
                pattern = given.strip().lower()
                if pattern == "*":
                    if fallback is not None and fallback is not settings:
                        raise ValueError(f"two destinations match {given!r}")
                    fallback = settings
                    continue
                place, key = (suffixes, pattern[2:]) if pattern.startswith("*.") else (exact, pattern)
                key = key.removesuffix(".")
                if not is_host_name(key) and (place is suffixes or literal_address(key) is None):
                    raise ValueError(
                        f"match = {given!r}: write a domain (IDN as A-labels, xn--…), *.domain for its subdomains, or *"
                    )
                if place.setdefault(key, settings) is not settings:
                    raise ValueError(f"two destinations match {given!r}")
        return cls(
            fallback or defaults,
            MappingProxyType(exact),
            MappingProxyType(suffixes),
            MappingProxyType(providers),
            MappingProxyType(names),
        )

    def lookup(self, domain: str) -> DestinationSettings:
        """The settings for a recipient domain (`Address.domain`: lower case, A-labels), as far as its name alone decides."""
        return self._by_name(domain) or self._default

    def is_placed(self, domain: str) -> bool:
        """Whether `lookup` has the last word: no MX host of the domain could change it."""
        return not self._providers or domain[:1] == "[" or self._by_name(domain) is not None

    def by_exchangers(self, domain: str, records: Iterable[MX]) -> DestinationSettings:
        """The settings for a domain with these MX hosts. The provider is known by the most preferred of them; where several are, the
        longest suffix decides."""
        settings = self._by_name(domain)
        if settings is not None:
            return settings
        found, longest = self._default, 0
        best = None
        for record in sorted(records):
            best = record.preference if best is None else best
            if record.preference != best:
                break
            length, provider = _longest(self._providers, record.host)
            if provider is not None and length > longest:
                found, longest = provider, length
        return found

    def limit_names(self) -> Collection[str]:
        """Of the limits that several domains can share; any other limit is that of one domain, by its name."""
        return self._names.keys()

    def of_limit(self, limit: str) -> DestinationSettings:
        """The settings that a limit belongs to: a destination's name, or a domain that is limited by itself."""
        return self._names.get(limit) or self.lookup(limit)

    def _by_name(self, domain: str) -> DestinationSettings | None:
        settings = self._exact.get(domain)
        if settings is not None or not self._suffixes:
            return settings
        dot = domain.find(".")
        return _longest(self._suffixes, domain[dot + 1 :])[1] if dot >= 0 else None


def _longest(suffixes: Mapping[str, DestinationSettings], name: str) -> tuple[int, DestinationSettings | None]:
    """The longest of the suffixes, whole labels, that the name ends in or is: its length and settings."""
    while name:
        settings = suffixes.get(name)
        if settings is not None:
            return len(name), settings
        name = name.partition(".")[2]
    return 0, None


# The order of hosts.


def order_hosts(
    records: Sequence[MX],
    shuffle: Callable[[list[MX]], None],
    own_names: Container[str] = (),
    limit: int = MOST_HOSTS,
) -> tuple[MX, ...]:
    """The exchangers in the order of one attempt (RFC 5321 5.1): by preference, shuffled within equal preference, each
    host once, at most `limit`.

    `own_names` are the names of this relay (of the whole cluster). A record that names one of them goes, with all of
    equal or higher preference number, since their hosts would send the mail back to us. An empty result means that we
    are ourselves the best exchanger and were not told what to do with the domain: the mail loops (5.4.6). `shuffle`
    works in place, as `random.shuffle` does.
    """
    if len(records) == 1:
        return () if records[0].host in own_names else tuple(records)
    own = min((record.preference for record in records if record.host in own_names), default=None)
    groups: dict[int, list[MX]] = {}
    seen: set[str] = set()
    for record in sorted(records):
        if own is not None and record.preference >= own:
            break
        if record.host not in seen:
            seen.add(record.host)
            groups.setdefault(record.preference, []).append(record)
    ordered: list[MX] = []
    for group in groups.values():
        if len(group) > 1:
            shuffle(group)
        ordered += group
        if len(ordered) >= limit:
            break
    return tuple(ordered[:limit])


def alternate(first: Sequence[str], second: Sequence[str], limit: int = MOST_ADDRESSES) -> tuple[str, ...]:
    """Two families of addresses in turn, `first` leading, at most `limit`: a family that does not work costs one failed
    connection before the other is tried."""
    mixed: list[str] = []
    shared = min(len(first), len(second))
    for pair in zip(first, second, strict=False):
        mixed += pair
    mixed += first[shared:]
    mixed += second[shared:]
    return tuple(mixed[:limit])


def order_addresses(addresses: tuple[str, ...], shuffle: Callable[[list[str]], None]) -> tuple[str, ...]:
    """A host's addresses in the order of one attempt: shuffled within each family, so that a host with several is used
    evenly while its answer is cached; the families stay in turn, and the one that led still leads."""
    if len(addresses) == 1:
        return addresses
    leads_v6 = ":" in addresses[0]
    leading = [address for address in addresses if (":" in address) is leads_v6]
    other = [address for address in addresses if (":" in address) is not leads_v6]
    shuffle(leading)
    shuffle(other)
    return alternate(leading, other, len(addresses))
