"""The PROXY protocol's header, versions 1 and 2: who the client behind a balancer is, out of the first octets of a connection.

The specification is HAProxy's `doc/proxy-protocol.txt`; its sections are cited. The header comes before everything else, TLS
included. No input raises anything but `ProxyHeaderError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from attrs import frozen

V1_OCTETS: Final = 107
"""The longest header of version 1, with CRLF (2.1)."""
V2_OCTETS: Final = 536
"""The longest header of version 2 that is taken: what every receiver must be able to take (2.2)."""

_V1: Final = b"PROXY "
_V1_FAMILIES: Final[Mapping[bytes, type[IPv4Address] | type[IPv6Address]]] = {
    b"TCP4": IPv4Address,
    b"TCP6": IPv6Address,
}
_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED: Final = 16
_LOCAL: Final = 0x0
_PROXY: Final = 0x1
_UNSPECIFIED: Final = 0x00
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_UNIX_STREAM: Final = 0x31
_ADDRESS_OCTETS: Final = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36, _UNIX_STREAM: 216}
_TLV_FIXED: Final = 3


class ProxyHeaderError(ValueError):
    """These octets are not a PROXY header; the text says why."""


@frozen
class Route:
    """The connection to the balancer as its header tells it: the client's address and port, and those that it connected to."""

    peer_address: str
    peer_port: int
    local_address: str
    local_port: int


@frozen
class ProxyHeader:
    """A whole header: it takes the first `octets` of the connection. `route` is None when it names no client: the balancer speaks
    for itself (LOCAL: a health check) or cannot or will not say (UNKNOWN, UNSPEC, a UNIX socket)."""

    octets: int
    route: Route | None


def parse(data: bytes) -> ProxyHeader | None:
    """The header at the beginning of `data`; None while it may still become one. Raises `ProxyHeaderError` as soon as it can not."""
    if data.startswith(_V1):
        return _parse_v1(data)
    if data.startswith(_V2):
        return _parse_v2(data)
    if _V1.startswith(data) or _V2.startswith(data):
        return None
    raise ProxyHeaderError("the connection does not begin with a PROXY header")


def _parse_v1(data: bytes) -> ProxyHeader | None:
    """A line of text (2.1)."""
    end = data.find(b"\r\n", 0, V1_OCTETS)
    if end < 0:
        if len(data) >= V1_OCTETS:
            raise ProxyHeaderError(f"a header of version 1 is longer than {V1_OCTETS} octets")
        return None
    words = data[:end].split(b" ")
    if words[1] == b"UNKNOWN":  # whatever follows is to be ignored
        return ProxyHeader(end + 2, None)
    if words[1] not in _V1_FAMILIES:
        raise ProxyHeaderError("the protocol in a header of version 1 is neither TCP4, TCP6 nor UNKNOWN")
    if len(words) != 6:
        raise ProxyHeaderError("a header of version 1 needs two addresses and two ports, each after one space")
    if b"%" in data[:end]:  # an IPv6 zone means nothing on another machine
        raise ProxyHeaderError("an address in a header of version 1 has a zone")
    try:
        family = _V1_FAMILIES[words[1]]
        source, destination = family(words[2].decode("ascii")), family(words[3].decode("ascii"))
    except ValueError as error:
        raise ProxyHeaderError("an address in a header of version 1 is malformed") from error
    return ProxyHeader(end + 2, Route(_text(source), _port(words[4]), _text(destination), _port(words[5])))


def _port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or (word[0:1] == b"0" and word != b"0") or int(word) > 65535:
        raise ProxyHeaderError("a port in a header of version 1 is not a number from 0 to 65535")
    return int(word)


def _parse_v2(data: bytes) -> ProxyHeader | None:
    """Binary (2.2)."""
    if len(data) < _V2_FIXED:
        return None
    version, command = data[12] >> 4, data[12] & 0xF
    if version != 2:
        raise ProxyHeaderError(f"a binary header of version {version}")
    if command not in (_LOCAL, _PROXY):
        raise ProxyHeaderError(f"a header of version 2 with the unknown command {command}")
    end = _V2_FIXED + int.from_bytes(data[14:16], "big")
    if end > V2_OCTETS:
        raise ProxyHeaderError(f"a header of version 2 is longer than {V2_OCTETS} octets")
    if len(data) < end:
        return None
    if command == _LOCAL:  # family and addresses are to be ignored
        return ProxyHeader(end, None)
    family = data[13]
    length = _ADDRESS_OCTETS.get(family)
    if length is None:
        raise ProxyHeaderError(f"a header of version 2 for the protocol {family:#04x}, which is no stream")
    addresses = _V2_FIXED + length
    if addresses > end:
        raise ProxyHeaderError("a header of version 2 is too short for its addresses")
    if family == _TCP4:
        route = Route(
            _text(ip_address(data[16:20])),
            int.from_bytes(data[24:26], "big"),
            _text(ip_address(data[20:24])),
            int.from_bytes(data[26:28], "big"),
        )
    elif family == _TCP6:
        route = Route(
            _text(ip_address(data[16:32])),
            int.from_bytes(data[48:50], "big"),
            _text(ip_address(data[32:48])),
            int.from_bytes(data[50:52], "big"),
        )
    else:
        return ProxyHeader(end, None)
    _check_tlvs(data, addresses, end)
    return ProxyHeader(end, route)


def _check_tlvs(data: bytes, start: int, end: int) -> None:
    """What follows the addresses is type, length, value (2.2.x); none of it is used, but it must add up."""
    while start < end:
        if start + _TLV_FIXED > end:
            raise ProxyHeaderError("a header of version 2 ends within a TLV")
        start += _TLV_FIXED + int.from_bytes(data[start + 1 : start + 3], "big")
    if start != end:
        raise ProxyHeaderError("a TLV in a header of version 2 is longer than the header")


def _text(address: IPv4Address | IPv6Address) -> str:
    """As a socket would name it; an IPv4 client that came over an IPv6 socket by its IPv4 address."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
