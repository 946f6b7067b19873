"""How the values of the configuration are written: durations, sizes, addresses, networks, domains.

Each kind has a parser that raises `ValueError` with one line, "what is wrong; the fix", and where a value is shown
again a formatter whose text the parser reads back as the same value.
"""

from __future__ import annotations

import re
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Any

import idna
from attrs import frozen
from pydantic import BeforeValidator, StrictBool, StrictFloat, StrictInt, StrictStr, WithJsonSchema

from relaycluster.mail.outcome import Stage
from relaycluster.policy.bounce_class import BounceClass
from relaycluster.policy.pace import SlowDown, Suspend
from relaycluster.policy.rate import Rate
from relaycluster.policy.reply_rules import Action, AsSaid, Defer, Fail, NextHost
from relaycluster.policy.routing import HostPort, parse_host_port
from relaycluster.policy.sources import Source, parse_source
from relaycluster.policy.text_pattern import TextPattern

Network = IPv4Network | IPv6Network

_DURATION_UNITS = {"d": 86400, "h": 3600, "min": 60, "s": 1, "ms": 0.001}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|h|d)")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|min|h|d))+")
_LONGEST_SECONDS = 3660 * 86400
_DURATION_FIX = 'write a number and ms, s, min, h or d, like "10s" or "5min"'

_SIZE_UNITS = {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}
_DECIMAL_SIZE_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 1000}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")
_LARGEST_BYTES = 1 << 60
_SIZE_FIX = 'write a number and B, KiB, MiB, GiB or TiB, like "25MiB"'

_LISTEN_FIX = 'write it like "0.0.0.0:25", "127.0.0.1:2525" or "[::]:25"'
_WIDEST_PREFIX = {4: 8, 6: 16}
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SELECTOR_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


@frozen
class Kind:
    """What the reference calls a type, and the unit that the program holds it in."""

    name: str
    unit: str = ""


def parse_duration(text: str) -> float:
    """Seconds."""
    compact = text.replace(" ", "")
    if len(compact) > 40 or _DURATION.fullmatch(compact) is None:
        raise ValueError(f"{text[:60]!r} is not a duration; {_DURATION_FIX}")
    seconds = sum(float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(compact))
    if seconds > _LONGEST_SECONDS:
        raise ValueError(f"{text[:60]!r} is more than ten years; {_DURATION_FIX}")
    return seconds


def format_duration(seconds: float) -> str:
    """The text of a duration, in the largest unit that needs no fraction."""
    for unit, size in _DURATION_UNITS.items():
        if size >= 1 and seconds % size == 0 and (seconds or size == 1):
            return f"{int(seconds // size)}{unit}"
    return f"{Decimal(repr(seconds)):f}s"


def parse_size(text: str) -> int:
    """Bytes."""
    match = _SIZE.fullmatch(text.strip()) if len(text) <= 40 else None
    size = None if match is None else (_SIZE_UNITS | _DECIMAL_SIZE_UNITS).get(match[2])
    if match is None or size is None:
        raise ValueError(f"{text[:60]!r} is not a size; {_SIZE_FIX}")
    amount = Decimal(match[1]) * size
    if amount != int(amount) or amount > _LARGEST_BYTES:
        raise ValueError(f"{text[:60]!r} is not a whole number of bytes below 1 EiB; {_SIZE_FIX}")
    return int(amount)


def format_size(size: int) -> str:
    """The text of a size in bytes, in the largest unit that needs no fraction."""
    unit = next((unit for unit, factor in _SIZE_UNITS.items() if size % factor == 0), "B") if size else "B"
    return f"{size // _SIZE_UNITS[unit]}{unit}"


def parse_data_rate(text: str) -> int:
    """Bytes per second."""
    size, slash, period = text.replace(" ", "").partition("/")
    if not slash or period != "s":
        raise ValueError(f'{text[:60]!r} is not a data rate; write a size per second, like "500B/s"')
    return parse_size(size)


def parse_listen(text: str) -> HostPort:
    """An IP address to bind and a port: `127.0.0.1:25`, `[::]:25`. The port 0 lets the system choose."""
    host, colon, port = text.strip().rpartition(":")
    number = int(port[:6]) if colon and port.isascii() and port.isdigit() else -1
    bare = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
    if not 0 <= number <= 65535:
        raise ValueError(f"{text[:80]!r} has no port from 0 to 65535; {_LISTEN_FIX}")
    if not is_ip_address(bare):
        raise ValueError(f"{text[:80]!r} does not begin with an IP address to bind; {_LISTEN_FIX}")
    if (":" in bare) != (bare != host):
        raise ValueError(f"{text[:80]!r}: brackets are for IPv6 addresses, which need them; {_LISTEN_FIX}")
    return HostPort(str(ip_address(bare)), number)


def parse_server(text: str) -> HostPort:
    """The IP address of a DNS server, with a port where it is not 53."""
    server = parse_host_port(text, 53)
    if not is_ip_address(server.host):
        raise ValueError(f"{text[:80]!r} is a name; write the server's IP address")
    return server


def parse_network(text: str) -> Network:
    """A network or a single address, without bits behind its prefix."""
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f'{text[:80]!r} is not a network; write it like "192.0.2.0/24" or "2001:db8::/32"') from None
    raise ValueError(f'{text[:80]!r} has bits behind its prefix; write "{meant}"')


def parse_client_network(text: str) -> Network:
    """A network that may relay without AUTH: one that holds a good part of the internet is refused."""
    network = parse_network(text)
    if _is_the_world(network):
        raise ValueError(f"{network} would make this an open relay; name only the networks of your own clients")
    return network


def parse_proxy_network(text: str) -> Network:
    """A network of balancers whose word on who the client is counts: nobody else may be in it."""
    network = parse_network(text)
    if _is_the_world(network):
        raise ValueError(f"{network} would let anybody pretend to be any client; name only your own load balancers")
    return network


def _is_the_world(network: Network) -> bool:
    return network.prefixlen < _WIDEST_PREFIX[network.version] and not (network.is_private and network.prefixlen)


def parse_domain(text: str) -> str:
    """A domain name: lower case, IDN as A-labels (RFC 5890), at most 253 octets (RFC 1035 2.3.4)."""
    name = text.lower()
    if not name.isascii():
        try:
            name = idna.encode(text, uts46=True).decode("ascii")
        except idna.IDNAError:
            name = ""
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise ValueError(f'{text[:80]!r} is not a domain name; write it like "relay.example.net"')
    return name


def parse_pattern(text: str) -> str:
    """A domain, `*.domain` for all below it, or `*` for every domain."""
    if text == "*":
        return text
    return f"*.{parse_domain(text[2:])}" if text.startswith("*.") else parse_domain(text)


def parse_certificate_name(text: str) -> str:
    """A host name, or `*.domain` for all names one label below it (RFC 6125 6.4.3)."""
    if text == "*":
        raise ValueError('"*" is not a name in a certificate; tls.certificate is for all other names')
    return parse_pattern(text)


def parse_selector(text: str) -> str:
    """A DKIM selector (RFC 6376 3.1): what stands before `._domainkey` in DNS."""
    name = text.lower()
    if len(name) > 100 or not all(_SELECTOR_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError(f'{text[:80]!r} is not a selector; use letters, digits and hyphens, like "s2026"')
    return name


_ACTIONS: dict[str, Action] = {
    "as_said": AsSaid(),
    "slow_down": SlowDown(),
    "defer": Defer(),
    "fail": Fail(),
    "next_host": NextHost(),
}
_LONGEST_SUSPENSION_SECONDS = 7 * 86400
_ACTION_FIX = 'write "slow_down", "suspend:15min", "defer", "fail", "next_host" or "as_said"'


def parse_action(text: str) -> Action:
    """What a reply rule does."""
    if text in _ACTIONS:
        return _ACTIONS[text]
    name, colon, time = text.partition(":")
    if name != "suspend" or not colon:
        raise ValueError(f"{text[:60]!r} is not an action; {_ACTION_FIX}")
    seconds = parse_duration(time)
    if not 1 <= seconds <= _LONGEST_SUSPENSION_SECONDS:
        raise ValueError(f'{text[:60]!r}: a suspension lasts from 1s to 7d; write it like "suspend:15min"')
    return Suspend(seconds)


_STAGES = {
    stage.value: stage
    for stage in (Stage.GREETING, Stage.EHLO, Stage.TLS, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.FINAL_DOT)
}


def parse_stage(text: str) -> Stage:
    """What a reply was the answer to."""
    if text not in _STAGES:
        raise ValueError(f"{text[:60]!r} is not a stage; use {', '.join(_STAGES)}")
    return _STAGES[text]


def parse_bounce_class(text: str) -> BounceClass:
    """A class by its name."""
    try:
        return BounceClass(text)
    except ValueError:
        names = ", ".join(each.value for each in BounceClass)
        raise ValueError(f"{text[:60]!r} is not a bounce class; use one of: {names}") from None


def is_ip_address(text: str) -> bool:
    """Whether the text is an IPv4 or IPv6 address, without brackets or scope."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _from_text(kind: str, fix: str, parse: Any) -> BeforeValidator:
    """Reads a value that TOML holds as a string; says so where it holds something else."""

    def read(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"must be {kind} in quotes, is {describe(value)}; {fix}")
        return parse(value)

    return BeforeValidator(read)


def describe(value: object) -> str:
    """What a TOML value is, for an error."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "a table"}
    name = names.get(type(value), "a date or time")
    return f"{name} ({value!r})" if isinstance(value, bool | int | float) else name


def _read_workers(value: object) -> int:
    """The number of processes; 0 stands for "auto"."""
    if value == "auto":
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1024:
        raise ValueError(
            f'must be a number from 1 to 1024 or "auto", is {describe(value)}; write "auto" or leave it out'
        )
    return value


def _or_none(parse: Any) -> Any:
    return lambda text: parse(text) if text else None


def _text_schema(example: str, **more: Any) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "examples": [example], **more})


_TEXT_FIX = "put it in quotes"

Flag = StrictBool
Whole = StrictInt
Real = StrictFloat
Text = StrictStr
Workers = Annotated[
    int,
    BeforeValidator(_read_workers),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}),
    Kind('number or "auto"'),
]
Seconds = Annotated[
    float,
    _from_text("a duration", _DURATION_FIX, parse_duration),
    _text_schema("10s", pattern=r"^(\d+(\.\d+)?(ms|s|min|h|d))+$"),
    Kind("duration", "seconds"),
]
Bytes = Annotated[
    int,
    _from_text("a size", _SIZE_FIX, parse_size),
    _text_schema("25MiB", pattern=r"^\d+(\.\d+)?(B|[KMGT]iB|kB|[MGT]B)$"),
    Kind("size", "bytes"),
]
OptionalBytes = Annotated[
    int | None,
    _from_text("a size", _SIZE_FIX, _or_none(parse_size)),
    _text_schema("1GiB", pattern=r"^(\d+(\.\d+)?(B|[KMGT]iB|kB|[MGT]B))?$"),
    Kind("size or empty", "bytes"),
]
BytesPerSecond = Annotated[
    int,
    _from_text("a data rate", 'write it like "500B/s"', parse_data_rate),
    _text_schema("500B/s"),
    Kind("data rate", "bytes per second"),
]
OptionalRate = Annotated[
    Rate | None,
    _from_text("a rate", 'write it like "100/s"', _or_none(Rate.parse)),
    _text_schema("100/s,burst=200"),
    Kind("rate or empty", "SMTP transactions"),
]
OptionalMessageRate = Annotated[
    Rate | None,
    _from_text("a rate", 'write it like "1000/h"', _or_none(Rate.parse_allowance)),
    _text_schema("1000/h"),
    Kind("rate or empty", "messages"),
]
OptionalConnectionRate = Annotated[
    Rate | None,
    _from_text("a rate", 'write it like "60/min"', _or_none(Rate.parse_allowance)),
    _text_schema("60/min"),
    Kind("rate or empty", "connections"),
]
Listen = Annotated[
    HostPort,
    _from_text("an address with a port", _LISTEN_FIX, parse_listen),
    _text_schema("0.0.0.0:25"),
    Kind("address:port"),
]
OptionalListen = Annotated[
    HostPort | None,
    _from_text("an address with a port", _LISTEN_FIX, _or_none(parse_listen)),
    _text_schema("127.0.0.1:9025"),
    Kind("address:port or empty"),
]
DNSServer = Annotated[
    HostPort,
    _from_text("an address", 'write it like "192.0.2.53"', parse_server),
    _text_schema("192.0.2.53:53"),
    Kind("address[:port]"),
]
RouteHost = Annotated[
    HostPort,
    _from_text("a host", 'write it like "192.0.2.1:25"', parse_host_port),
    _text_schema("192.0.2.1:25"),
    Kind("host[:port]"),
]
ClientNetwork = Annotated[
    Network,
    _from_text("a network", 'write it like "192.0.2.0/24"', parse_client_network),
    _text_schema("192.0.2.0/24"),
    Kind("network"),
]
ProxyNetwork = Annotated[
    Network,
    _from_text("a network", 'write it like "192.0.2.0/24"', parse_proxy_network),
    _text_schema("10.0.0.0/24"),
    Kind("network"),
]
SourceAddress = Annotated[
    Source,
    _from_text("an address", 'write it like "192.0.2.1"', parse_source),
    _text_schema("192.0.2.1 mail1.example.net"),
    Kind("address, or address and name"),
]
PatternText = Annotated[
    TextPattern,
    _from_text("a regular expression", _TEXT_FIX, TextPattern),
    _text_schema("^421 .*too many connections", minLength=1),
    Kind("regular expression"),
]
ActionText = Annotated[
    Action,
    _from_text("an action", _ACTION_FIX, parse_action),
    _text_schema(
        "suspend:15min",
        pattern=r"^(as_said|slow_down|defer|fail|next_host|suspend:(\d+(\.\d+)?(ms|s|min|h|d))+)$",
    ),
    Kind("action"),
]
ReplyStage = Annotated[
    Stage,
    _from_text("a stage", _TEXT_FIX, parse_stage),
    _text_schema("rcpt", enum=list(_STAGES)),
    Kind("stage"),
]
OptionalBounceClass = Annotated[
    BounceClass | None,
    _from_text("a bounce class", _TEXT_FIX, _or_none(parse_bounce_class)),
    _text_schema("spam-related", enum=["", *(each.value for each in BounceClass)]),
    Kind("bounce class or empty"),
]
Domain = Annotated[Text, _from_text("a domain name", _TEXT_FIX, parse_domain), Kind("domain")]
OptionalDomain = Annotated[
    Text, _from_text("a domain name", _TEXT_FIX, lambda text: text and parse_domain(text)), Kind("domain or empty")
]
Pattern = Annotated[Text, _from_text("a domain", _TEXT_FIX, parse_pattern), Kind("domain or pattern")]
CertificateName = Annotated[
    Text, _from_text("a host name", _TEXT_FIX, parse_certificate_name), Kind("host name or pattern")
]
Selector = Annotated[Text, _from_text("a selector", _TEXT_FIX, parse_selector), Kind("selector")]
FilePath = Annotated[Text, Kind("path")]
