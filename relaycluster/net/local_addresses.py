"""Whether an address is this machine's, asked of the system each time: addresses come and go."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

_NOBODYS: Final = {socket.AF_INET: "240.0.0.1", socket.AF_INET6: "100::1"}
"""Of each family an address that no machine has (RFC 1112 4, RFC 6666)."""


def can_bind(address: str) -> bool:
    """Whether the system lets a socket have this IPv4 or IPv6 address. Some 10 µs."""
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def is_local(address: str, can_bind: Callable[[str], bool] = can_bind) -> bool:
    """Whether this IPv4 or IPv6 address is one of this machine's interfaces. False, too, where that can not be found out."""
    # Python cannot list them, but only a local address can be bound; except under net.ipv4.ip_nonlocal_bind, where all can.
    return can_bind(address) and not can_bind(_NOBODYS[_family(address)])


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
