"""Who counts as one client, wherever clients are counted: connections, rates, failed logins."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Network, ip_address


@lru_cache(maxsize=4096)
def client_of(peer_address: str) -> str:
    """Who is one client: an IPv4 address, or an IPv6 network of 64 bits, since a host has all of one (RFC 4291 2.5.4, RFC 7421). What is
    not an address, as the name of a socket, stays as it is."""
    try:
        address = ip_address(peer_address.partition("%")[0])
    except ValueError:
        return peer_address
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address) >> 64 << 64, 64)))
