"""What can be asked for in DNS, and what can be connected to: names of hosts, addresses, address literals."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_LONGEST_NAME = 253  # RFC 1035 2.3.4: 255 octets on the wire
_DIGITS = frozenset("0123456789")


def is_host_name(text: str) -> bool:
    """Whether the text can be asked for in DNS as a domain or host: A-labels in lower case, without a final dot.

    An underscore passes, since hosts with one exist; a numeric last label does not (RFC 3696 2), so that no address is
    mistaken for a name.
    """
    return (
        len(text) <= _LONGEST_NAME
        and _NAME.fullmatch(text) is not None
        and not _DIGITS.issuperset(text[text.rfind(".") + 1 :])
    )


def is_address(text: str) -> bool:
    """Whether the text is an IPv4 or IPv6 address, without brackets."""
    return _address(text) is not None


def literal_address(domain: str) -> str | None:
    """The address in an address literal, `[192.0.2.1]` or `[IPv6:2001:db8::1]` in any case (RFC 5321 4.1.3); None when
    the text is not such a literal."""
    if domain[:1] != "[" or domain[-1:] != "]":
        return None
    inner = domain[1:-1]
    if inner[:5].lower() == "ipv6:":
        address = _address(inner[5:])
        return str(address) if isinstance(address, IPv6Address) and not address.scope_id else None
    address = _address(inner)
    return str(address) if isinstance(address, IPv4Address) else None


def is_usable_address(text: str) -> bool:
    """Whether a connection to the address can mean a host: not unspecified (which the kernel takes for this host), not
    multicast or broadcast, not an IPv4 address in IPv6 clothes. False also for what is no address."""
    address = _address(text)
    if address is None or address.is_unspecified or address.is_multicast or text == "255.255.255.255":
        return False
    return not (isinstance(address, IPv6Address) and address.ipv4_mapped is not None)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
