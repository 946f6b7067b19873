"""What a well-formed configuration must not say: contradictions, open relays, files that are not there.

Each finding names the keys that take part, the first of which is where the operator is sent. What is allowed but
worth a word is a warning.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from attrs import frozen

from relaycluster.config.later import Loc
from relaycluster.config.model import Config, Listener
from relaycluster.config.values import format_duration
from relaycluster.policy.routing import HostPort
from relaycluster.policy.sources import Source

_NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LIMIT_NAME = re.compile(r"[A-Za-z0-9*][A-Za-z0-9*._-]{0,63}")
_SUBMISSIONS_PORT = 465
_IN_CLEAR_PORTS = (25, 587)


@frozen
class Finding:
    """One thing that is wrong: the keys that contradict each other, and "what is wrong; the fix"."""

    keys: tuple[Loc, ...]
    text: str


def findings(config: Config) -> Iterator[Finding]:
    """All that is wrong with a configuration of which every single value is well formed."""
    yield from _node(config)
    yield from _redis(config)
    yield from _sockets(config)
    yield from _listeners(config)
    yield from _tls(config)
    yield from _dkim(config)
    yield from _access(config)
    yield from _times(config)
    yield from _destinations(config)
    yield from _files(config)


def warnings(config: Config) -> list[str]:
    """What is allowed, and that the operator should know; each "key: text" on one line."""
    found: list[tuple[str, str]] = []
    if config.node.workers != 1:
        found.append(("node.workers", "this release runs one process"))
    if "." not in config.node.hostname:
        text = "is not fully qualified, and remote servers may refuse it; set it to a name that resolves to this host"
        found.append(("node.hostname", f"{config.node.hostname!r} {text}"))
    if config.redis.durability == "memory":
        found.append(("redis.durability", "messages that were answered 250 are lost when Redis stops; for tests only"))
    for number, listener in enumerate(config.listener):
        found.extend((f"listener[{number}].{key}", text) for key, text in _warnings_of(listener))
        found.extend(
            (f"listener[{number}].proxy_protocol_from", text) for text in _proxies_among_clients(config, listener)
        )
    if config.access.users_file and config.listener and not any(map(_offers_auth, config.listener)):
        text = 'nobody can use it: no listener of mode "submission" has TLS; set its tls to "starttls" or "implicit"'
        found.append(("access.users_file", text))
    if config.limits.recipients < 100:
        found.append(("limits.recipients", "is below the 100 that every server should take (RFC 5321 4.5.3.1.8)"))
    for loc, path in _secret_files(config):
        if path and _is_public(path):
            found.append((key_text(loc), f"everybody on this host can read {path}; chmod o-rwx"))
    return [f"{key}: {text}" for key, text in found]


def _warnings_of(listener: Listener) -> Iterator[tuple[str, str]]:
    is_local = ip_address(listener.address.host).is_loopback
    port = listener.address.port
    if listener.auth_without_tls and not is_local:
        yield "auth_without_tls", 'passwords cross the network in clear; leave it out and set tls to "starttls"'
    if listener.mode == "mx" and listener.require_tls and not is_local:
        yield (
            "require_tls",
            "mail from servers without TLS will not arrive (RFC 3207 4 forbids this on a public server)",
        )
    if port == _SUBMISSIONS_PORT and listener.tls != "implicit":
        yield "tls", 'clients of port 465 speak TLS from the first octet (RFC 8314 3.3); write "implicit"'
    if port in _IN_CLEAR_PORTS and listener.tls == "implicit":
        yield "tls", f'clients of port {port} begin in clear (RFC 8314 3.3); write "starttls", or use port 465'


def _proxies_among_clients(config: Config, listener: Listener) -> Iterator[str]:
    """The whole world comes from a balancer's address where no header tells it apart."""
    if listener.mode == "mx":
        return
    for proxy in listener.proxy_protocol_from:
        for network in config.access.networks or ():
            if proxy.version == network.version and proxy.overlaps(network):
                if proxy.num_addresses == 1:
                    yield f"{proxy} lies in {network} of access.networks; as a balancer it may not relay without AUTH"
                else:
                    yield f"{proxy} overlaps {network} of access.networks; name each balancer, so that none may relay"


def _offers_auth(listener: Listener) -> bool:
    return listener.mode == "submission" and (listener.tls != "none" or listener.auth_without_tls)


def _node(config: Config) -> Iterator[Finding]:
    node = config.node
    if _NODE_ID.fullmatch(node.id) is None:
        text = f"{node.id[:80]!r} is not a node's name; use at most 64 letters, digits, '.', '_' and '-'"
        yield Finding((("node", "id"),), text)
    if len(set(node.roles)) != len(node.roles):
        yield Finding((("node", "roles"),), "names a role twice; name each once")
    if "edge" in node.roles and not config.listener:
        text = 'an edge without a listener accepts nothing; add a [[listener]], or write roles = ["delivery"]'
        yield Finding((("listener",), ("node", "roles")), text)
    if os.path.exists(node.state_dir) and not os.path.isdir(node.state_dir):
        yield Finding((("node", "state_dir"),), f"{node.state_dir} is not a directory; name one")


def _redis(config: Config) -> Iterator[Finding]:
    redis = config.redis
    url, partitions = ("redis", "url"), ("redis", "partitions")
    if redis.partitions & (redis.partitions - 1):
        below = 1 << (redis.partitions.bit_length() - 1)
        yield Finding((partitions,), f"{redis.partitions} is not a power of two; write {below} or {2 * below}")
    if redis.url == "embedded":
        for key in ("username", "password", "password_file", "ca_file"):
            value = redis.password.get_secret_value() if key == "password" else getattr(redis, key)
            if value and not (key == "password" and redis.password_file):
                yield Finding((("redis", key), url), "the embedded Redis takes none; remove it")
        return
    trouble = _trouble_of_url(redis.url)
    if trouble is not None:
        yield Finding((url,), trouble)
        return
    parts = urlsplit(redis.url)
    if redis.maxmemory is not None:
        text = "is for the embedded Redis; set it in the configuration of the Redis that redis.url names"
        yield Finding((("redis", "maxmemory"), url), text)
    if redis.ca_file and parts.scheme != "rediss":
        yield Finding((("redis", "ca_file"), url), "redis.url does not use TLS; write rediss://, or remove it")
    if parts.password and redis.password.get_secret_value():
        yield Finding((("redis", "password"), url), "redis.url has a password, too; take it out of the URL")
    if parts.username and redis.username:
        yield Finding((("redis", "username"), url), "redis.url has a user, too; take it out of the URL")


def _trouble_of_url(url: str) -> str | None:
    """What is wrong with the URL of a Redis. It may hold a password, so the text never repeats it."""
    fix = 'write "embedded", "redis://host:6379", "rediss://host:6379" or "unix:///path/to/socket"'
    try:
        parts: SplitResult = urlsplit(url)
        port = parts.port
    except ValueError:
        return f"is not a URL; {fix}"
    if parts.scheme not in ("redis", "rediss", "unix"):
        return f"is not the URL of a Redis; {fix}"
    if parts.query or parts.fragment:
        return f"has a query or a fragment; {fix}"
    if parts.scheme == "unix":
        return None if parts.path.startswith("/") and not parts.hostname else f"needs an absolute path; {fix}"
    if not parts.hostname or port == 0:
        return f"names no host, or the port 0; {fix}"
    database = parts.path.strip("/")
    if database and not (database.isascii() and database.isdigit() and len(database) <= 5):
        return 'ends in something that is not the number of a database; write it like "redis://host:6379/0"'
    return None


def _sockets(config: Config) -> Iterator[Finding]:
    taken: list[tuple[HostPort, str, Loc]] = []
    places: list[tuple[HostPort, Loc]] = [
        (listener.address, ("listener", number, "address")) for number, listener in enumerate(config.listener)
    ]
    if config.http.listen is not None:
        places.append((config.http.listen, ("http", "listen")))
    for endpoint, loc in places:
        other = next(((name, place) for known, name, place in taken if _collide(known, endpoint)), None)
        if other is not None:
            yield Finding((loc, other[1]), f"{endpoint} is taken by {other[0]}; choose another port")
        taken.append((endpoint, key_text(loc), loc))
    for number, listener in enumerate(config.listener):
        if listener.mode == "mx" and not config.access.relay_domains:
            text = 'mode "mx" accepts mail for access.relay_domains only, and there are none; name them'
            yield Finding((("listener", number, "mode"), ("access", "relay_domains")), text)


def _collide(one: HostPort, other: HostPort) -> bool:
    if one.port != other.port or one.port == 0:
        return False
    a, b = ip_address(one.host), ip_address(other.host)
    return a == b or (a.version == b.version and (a.is_unspecified or b.is_unspecified))


def _listeners(config: Config) -> Iterator[Finding]:
    for number, listener in enumerate(config.listener):
        place = ("listener", number)
        tls = (*place, "tls")
        if listener.tls != "none" and not config.tls.certificate and not config.tls.key:
            text = f'"{listener.tls}" needs a certificate; name tls.certificate and tls.key'
            yield Finding((tls, ("tls", "certificate")), text)
        if listener.require_tls and listener.tls == "none":
            text = 'nobody could send: this listener has no TLS; set its tls to "starttls" or "implicit"'
            yield Finding(((*place, "require_tls"), tls), text)
        if listener.auth_without_tls and (listener.require_tls or listener.tls == "implicit"):
            because = "require_tls is set" if listener.require_tls else 'tls is "implicit"'
            text = f"never happens here, because {because}; remove it"
            yield Finding(((*place, "auth_without_tls"), (*place, "require_tls"), tls), text)
        if listener.auth_without_tls and listener.mode == "mx":
            text = 'listeners of mode "mx" have no AUTH; remove it'
            yield Finding(((*place, "auth_without_tls"), (*place, "mode")), text)


def _tls(config: Config) -> Iterator[Finding]:
    tls = config.tls
    if bool(tls.certificate) != bool(tls.key):
        missing = "key" if tls.certificate else "certificate"
        yield Finding((("tls", missing),), "is missing beside the other one; name both files")
    if tls.sni and not tls.certificate and not tls.key:
        text = "clients that name no host need a certificate, too; name tls.certificate and tls.key"
        yield Finding((("tls", "sni"), ("tls", "certificate")), text)
    seen: dict[str, int] = {}
    for number, sni in enumerate(tls.sni):
        for name in sni.names:
            first = seen.setdefault(name, number)
            if first != number:
                text = f"{name!r} stands in tls.sni[{first}], too; keep it in one of them"
                yield Finding((("tls", "sni", number, "names"), ("tls", "sni", first, "names")), text)


def _dkim(config: Config) -> Iterator[Finding]:
    records: dict[tuple[str, str], int] = {}
    fallback: int | None = None
    for number, key in enumerate(config.dkim):
        place = ("dkim", number)
        first = records.setdefault((key.domain, key.selector), number)
        if first != number:
            text = f"{key.selector}._domainkey.{key.domain} is dkim[{first}]'s, too; give each key its own selector"
            yield Finding(((*place, "selector"), ("dkim", first, "selector"), (*place, "domain")), text)
        if key.fallback:
            fallback = number if fallback is None else fallback
            if config.dkim[fallback].domain != key.domain:
                text = f"dkim[{fallback}] is the fallback for another domain; only one domain can be"
                yield Finding(((*place, "fallback"), ("dkim", fallback, "fallback"), (*place, "domain")), text)


def _access(config: Config) -> Iterator[Finding]:
    if "*" in config.access.relay_domains:
        text = 'accepting mail for "*" from anyone makes this an open relay; name your own domains'
        yield Finding((("access", "relay_domains"),), text)


def _times(config: Config) -> Iterator[Finding]:
    delivery = config.delivery
    retry, lifetime = ("delivery", "retry"), ("delivery", "lifetime")
    if min(delivery.retry) < 1:
        yield Finding((retry,), "a wait of less than a second hammers the remote server; write at least 1s")
    if delivery.lifetime < delivery.retry[0]:
        first = format_duration(delivery.retry[0])
        yield Finding((lifetime, retry), f"ends before the first retry after {first}; make it longer, like 5d")
    if delivery.delay_notice >= delivery.lifetime:
        text = "must be shorter than delivery.lifetime, or nobody gets it; shorten it, or write 0s for none"
        yield Finding((("delivery", "delay_notice"), lifetime), text)


def _destinations(config: Config) -> Iterator[Finding]:
    seen: dict[tuple[str, str], int] = {}
    for number, destination in enumerate(config.destination):
        place = ("destination", number)
        if not destination.match and not destination.mx_suffix:
            yield Finding((place,), 'applies to nothing; add match = ["example.com"]')
        if destination.mx_suffix and destination.hosts:
            text = "a route has no MX hosts to look at; put the suffixes into a table of their own"
            yield Finding(((*place, "mx_suffix"), (*place, "hosts")), text)
        if destination.mx_suffix and "*" in destination.match:
            text = 'match = ["*"] covers all domains anyway; put the suffixes into a table of their own'
            yield Finding(((*place, "mx_suffix"), (*place, "match")), text)
        if destination.name and _LIMIT_NAME.fullmatch(destination.name) is None:
            text = f"{destination.name[:80]!r} is not a name; use at most 64 letters, digits, '.', '_', '-' and '*'"
            yield Finding(((*place, "name"),), text)
        elif destination.name and not destination.limit_name:
            text = 'under match = ["*"] without hosts each domain is counted by itself; remove it'
            yield Finding(((*place, "name"), (*place, "match"), (*place, "hosts")), text)
        keys = [("match", pattern) for pattern in destination.match]
        keys += [("mx_suffix", suffix) for suffix in destination.mx_suffix]
        is_claimed = False
        for key, value in keys:
            first = seen.setdefault((key, value), number)
            if first != number:
                is_claimed = True
                text = f"{value!r} stands in destination[{first}], too; keep it in one of them"
                yield Finding(((*place, key), ("destination", first, key)), text)
        name = destination.limit_name
        first = seen.setdefault(("name", name), number) if name else number
        if first != number and not is_claimed:
            text = f"{name!r} is destination[{first}]'s name, too; give each its own"
            yield Finding(((*place, "name"), ("destination", first, "name"), place), text)
    places: list[tuple[Loc, tuple[Source, ...]]] = [
        (("delivery", "source_addresses"), config.delivery.source_addresses),
        *(
            (("destination", number, "source_addresses"), destination.source_addresses or ())
            for number, destination in enumerate(config.destination)
        ),
    ]
    for loc, sources in places:
        twice = {one.address for one in sources if sum(one.address == other.address for other in sources) > 1}
        if twice:
            yield Finding((loc,), f"names {min(twice)} twice; name each address once")


def _files(config: Config) -> Iterator[Finding]:
    read = [
        (("redis", "ca_file"), config.redis.ca_file),
        (("tls", "certificate"), config.tls.certificate),
        (("access", "aliases_file"), config.access.aliases_file),
        (("delivery", "ca_file"), config.delivery.ca_file),
        *((("tls", "sni", number, "certificate"), sni.certificate) for number, sni in enumerate(config.tls.sni)),
    ]
    for loc, path in (*read, *_secret_files(config)):
        trouble = path and loc != ("redis", "password_file") and file_trouble(path)
        if trouble:
            yield Finding((loc,), trouble)


def _secret_files(config: Config) -> Iterator[tuple[Loc, str]]:
    """The files that only the node itself should be able to read."""
    yield ("redis", "password_file"), config.redis.password_file
    yield ("tls", "key"), config.tls.key
    yield ("access", "users_file"), config.access.users_file
    yield ("http", "token_file"), config.http.token_file
    for number, sni in enumerate(config.tls.sni):
        yield ("tls", "sni", number, "key"), sni.key
    for number, key in enumerate(config.dkim):
        yield ("dkim", number, "key_file"), key.key_file


def key_text(loc: Loc) -> str:
    """`listener[0].address`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return "".join(character if character.isprintable() else "?" for character in text)[:200]


def file_trouble(path: str) -> str | None:
    """Why a file cannot be read, with the fix; None when it can."""
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        return f"{path} cannot be read ({os.strerror(error.errno or 0)}); create it, or name another file"
    return None


def _is_public(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & stat.S_IROTH)
    except OSError:
        return False
