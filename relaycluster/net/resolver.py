"""DNS as delivery needs it: MX hosts and addresses, from a cache where possible, trouble as a value and never as a
failure.

RFC 5321 5.1 (implicit MX, address literals), RFC 7505 (null MX), RFC 2308 and RFC 9520 (what is kept, and how long).
The hot path is `cached_mx` and `cached_addresses`: synchronous, one dictionary lookup each. `mx` and `addresses` answer
a hit with a Deferred that has fired already.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Generic, TypeVar, assert_never

from attrs import frozen
from twisted.internet.defer import Deferred, DeferredList, FirstError, succeed
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from relaycluster.interfaces import IMXResolver
from relaycluster.net.dns_cache import AnswerCache
from relaycluster.net.dns_client import ClientSettings, DNSClient, Lookup, LookupTrouble
from relaycluster.net.dns_exchange import IOReactor
from relaycluster.net.dns_wire import ROOT, TYPE_A, TYPE_AAAA, TYPE_MX, Found, NoData, NoName
from relaycluster.policy.host_names import is_address, is_host_name, literal_address
from relaycluster.policy.routing import (
    MX,
    AddressAnswer,
    Addresses,
    DNSTrouble,
    Exchangers,
    HostPort,
    MXAnswer,
    NoAddress,
    NoSuchDomain,
    NullMX,
    alternate,
    parse_host_port,
)

_log = Logger()

DNS_PORT = 53


@frozen
class CacheSettings:
    """How long answers are kept, in seconds: positive ones as their TTL says, between `least` and `most`; negative ones
    as their SOA says, between `least` and `most_negative`; `trouble` for what could not be looked up (RFC 9520 asks for
    1 s to 5 min); at most `half` for the addresses of one family while the other's lookup failed. `entries` is the
    number kept of each kind."""

    least_seconds: int = 10
    most_seconds: int = 86_400
    most_negative_seconds: int = 900
    trouble_seconds: int = 10
    half_seconds: int = 60
    entries: int = 10_000


def server_addresses(texts: tuple[str, ...]) -> tuple[HostPort, ...]:
    """The servers as `dns.servers` writes them: addresses, `127.0.0.1:5353`, `[::1]:53`, `192.0.2.53`. Raises
    ValueError for anything else."""
    servers = tuple(parse_host_port(text, DNS_PORT) for text in texts)
    for server in servers:
        if not is_address(server.host):
            raise ValueError(f"{server.host!r}: a DNS server is given by its address")
    return servers


def parse_resolv_conf(text: str) -> tuple[HostPort, ...]:
    """The `nameserver` lines of a resolv.conf(5), or the server on this host when there is none, as that page says. All
    else in the file is for other programs: mail domains are complete names, and time limits are ours."""
    servers = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and is_address(words[1]):
            servers.append(HostPort(words[1], DNS_PORT))
    return tuple(servers) or (HostPort("127.0.0.1", DNS_PORT),)


def system_servers(path: str = "/etc/resolv.conf") -> tuple[HostPort, ...]:
    """The system's servers, read now: for the start and a reload, since it touches a file. A file that cannot be read
    counts as empty."""
    try:
        return parse_resolv_conf(Path(path).read_text("utf-8", "replace"))
    except OSError:
        return parse_resolv_conf("")


T = TypeVar("T")


class _Answers(Generic[T]):
    """One kind of answer by name: kept ones at once, the others by one piece of work for all who ask meanwhile."""

    def __init__(
        self,
        cache: AnswerCache[T],
        work: Callable[[str], Coroutine[Deferred[Any], Any, tuple[T, float]]],
        trouble: Callable[[str], T],
        trouble_seconds: float,
    ) -> None:
        self.cache = cache
        self._work = work
        self._trouble = trouble
        self._trouble_seconds = trouble_seconds
        self._waiters: dict[str, list[Deferred[T]]] = {}
        self._running: dict[str, Deferred[None]] = {}
        self._is_stopped = False

    def get(self, name: str) -> Deferred[T]:
        kept = self.cache.get(name)
        if kept is not None:
            return succeed(kept)
        if self._is_stopped:
            return succeed(self._trouble("the resolver is stopped"))
        answer: Deferred[T] = Deferred()
        waiters = self._waiters.get(name)
        if waiters is not None:
            waiters.append(answer)
            return answer
        self._waiters[name] = [answer]
        running = Deferred.fromCoroutine(self._work(name)).addBoth(self._landed, name)
        if not running.called:
            self._running[name] = running
        return answer

    def stop(self) -> None:
        self._is_stopped = True
        for running in list(self._running.values()):
            running.cancel()

    def _landed(self, result: tuple[T, float] | Failure, name: str) -> None:
        self._running.pop(name, None)
        if not isinstance(result, Failure):
            answer, lifetime_seconds = result
        elif self._is_stopped:
            answer, lifetime_seconds = self._trouble("the resolver is stopped"), 0.0
        else:
            _log.failure("looking up {name} failed", failure=result, name=name)
            answer, lifetime_seconds = self._trouble("internal trouble"), self._trouble_seconds
        if lifetime_seconds > 0:
            self.cache.put(name, answer, lifetime_seconds)
        for waiter in self._waiters.pop(name):
            waiter.callback(answer)


@implementer(IMXResolver)
class Resolver:
    """The resolver of one process.

    `reactor` has the sockets and `clock` the time (the reactor is both, outside of tests); `random_bits` as
    `secrets.randbits`; `v6_first` says, for each lookup of a host with both kinds of addresses, whether the IPv6 ones
    lead. A lookup ends within the client's `deadline_seconds`; `mx` may need two, one after the other.
    """

    def __init__(
        self,
        reactor: IOReactor,
        clock: IReactorTime,
        client: ClientSettings,
        random_bits: Callable[[int], int],
        v6_first: Callable[[], bool] = lambda: True,
        cache: CacheSettings | None = None,
        family_wait_seconds: float = 1.0,
    ) -> None:
        self._clock = clock
        self._client = DNSClient(reactor, clock, client, random_bits)
        self._v6_first = v6_first
        self._keep = keep = cache if cache is not None else CacheSettings()
        self._family_wait_seconds = family_wait_seconds
        self._exchangers: _Answers[MXAnswer] = _Answers(
            AnswerCache(clock.seconds, keep.entries), self._find_exchangers, DNSTrouble, keep.trouble_seconds
        )
        self._addresses: _Answers[AddressAnswer] = _Answers(
            AnswerCache(clock.seconds, keep.entries), self._find_addresses, DNSTrouble, keep.trouble_seconds
        )

    def cached_mx(self, domain: str) -> MXAnswer | None:
        """What `mx` would answer at once; None when it would have to ask."""
        return self._exchangers.cache.get(domain)

    def cached_addresses(self, host: str) -> AddressAnswer | None:
        """What `addresses` would answer at once; None when it would have to ask."""
        return self._addresses.cache.get(host)

    def mx(self, domain: str) -> Deferred[MXAnswer]:
        """The mail exchangers of a recipient domain, or of an address literal. Never fails."""
        return self._exchangers.get(domain)

    def addresses(self, host: str) -> Deferred[AddressAnswer]:
        """The addresses of a host, CNAMEs followed; an address is its own. Never fails."""
        return self._addresses.get(host)

    def stop(self) -> None:
        """End all lookups: who waits, and who asks from now on for what is not kept, gets `DNSTrouble`."""
        self._exchangers.stop()
        self._addresses.stop()

    async def _find_exchangers(self, domain: str) -> tuple[MXAnswer, float]:
        keep = self._keep
        literal = literal_address(domain)
        if literal is not None:
            return Exchangers((MX(0, literal),), keep.most_seconds, implicit=True), keep.most_seconds
        name = domain.lower().removesuffix(".")
        if not is_host_name(name):
            return NoSuchDomain(), keep.most_negative_seconds
        found = await self._client.lookup(name, TYPE_MX)
        lifetime = self._lifetime_seconds(found)
        match found:
            case Found():
                if found.exchangers and found.exchangers[0].host == ROOT:
                    return NullMX(), lifetime
                if found.exchangers:
                    return Exchangers(found.exchangers, lifetime, authenticated=found.authenticated), lifetime
                trouble = DNSTrouble(f"MX of {name}: no record names a possible host")
                return trouble, min(lifetime, keep.most_negative_seconds)
            case NoData():
                return await self._implicit(name, lifetime)
            case NoName():
                return NoSuchDomain(), lifetime
            case LookupTrouble(reason):
                return DNSTrouble(f"MX of {name}: {reason}"), lifetime
            case _:
                assert_never(found)

    async def _implicit(self, name: str, lifetime: int) -> tuple[MXAnswer, float]:
        """RFC 5321 5.1: without MX records the domain itself is the host, if it has an address."""
        answer = await self.addresses(name)
        match answer:
            case Addresses(_, ttl_seconds, _):
                # "There is no MX record" is not known to be authenticated: its proof would be a denial of existence.
                lifetime = min(lifetime, ttl_seconds)
                return Exchangers((MX(0, name),), lifetime, implicit=True), lifetime
            case NoAddress():
                return NoSuchDomain(exists=True), lifetime
            case DNSTrouble():
                return answer, self._keep.trouble_seconds
            case _:
                assert_never(answer)

    async def _find_addresses(self, host: str) -> tuple[AddressAnswer, float]:
        keep = self._keep
        if is_address(host):
            return Addresses((host,), keep.most_seconds), keep.most_seconds
        name = host.lower().removesuffix(".")
        if not is_host_name(name):
            return NoAddress(), keep.most_negative_seconds
        v6, v4 = await self._both_families(name)
        lifetime = min(self._lifetime_seconds(v6), self._lifetime_seconds(v4))
        trouble = v6 if isinstance(v6, LookupTrouble) else v4 if isinstance(v4, LookupTrouble) else None
        found6, found4 = _addresses_of(v6), _addresses_of(v4)
        if found6 or found4:
            if trouble is not None:
                usable = v4 if v6 is trouble else v6
                lifetime = min(self._lifetime_seconds(usable), keep.half_seconds)
            leads_v6 = not found4 or (bool(found6) and self._v6_first())
            mixed = alternate(found6, found4) if leads_v6 else alternate(found4, found6)
            proven = all(found.authenticated for found in (v6, v4) if isinstance(found, Found) and found.addresses)
            return Addresses(mixed, lifetime, proven), lifetime
        if trouble is not None:  # also beside "no such name", which some servers say of AAAA alone (RFC 4074 4.2)
            return DNSTrouble(f"addresses of {name}: {trouble.reason}"), keep.trouble_seconds
        return NoAddress(), lifetime

    async def _both_families(self, name: str) -> tuple[Lookup, Lookup]:
        """AAAA and A at the same time. Once one has brought an address, the other gets little time: a server that
        mishandles AAAA must not delay the mail (RFC 8305 3)."""
        lookups = [self._client.lookup(name, TYPE_AAAA), self._client.lookup(name, TYPE_A)]
        try:
            first, index = await DeferredList(lookups, fireOnOneCallback=True, fireOnOneErrback=True)
            second = lookups[1 - index]
            if _addresses_of(first):
                second.addTimeout(self._family_wait_seconds, self._clock)
            try:
                rest = await second
            except TookTooLong:
                rest = LookupTrouble("slower than the other family")
        except BaseException as error:
            for lookup in lookups:
                lookup.addErrback(lambda _: None)  # seen here already
            if isinstance(error, FirstError):
                error.subFailure.raiseException()
            raise
        return (first, rest) if index == 0 else (rest, first)

    def _lifetime_seconds(self, found: Lookup) -> int:
        keep = self._keep
        match found:
            case Found():
                return max(keep.least_seconds, min(found.ttl_seconds, keep.most_seconds))
            case NoData() | NoName():
                return max(keep.least_seconds, min(found.ttl_seconds, keep.most_negative_seconds))
            case LookupTrouble():
                return keep.trouble_seconds
            case _:
                assert_never(found)


def _addresses_of(found: Lookup) -> tuple[str, ...]:
    return found.addresses if isinstance(found, Found) else ()
