"""Who is at the two ends of an inbound connection: as the socket says, or as a trusted balancer's PROXY header does."""

from __future__ import annotations

from typing import Any

from attrs import frozen
from twisted.internet.interfaces import IAddress
from zope.interface import implementer


@implementer(IAddress)
@frozen
class Origin:
    """The client's address and port, and those that it connected to; the addresses are empty for a UNIX socket.

    `via` is the address of the balancer that told it, empty without one. `is_probe`: the balancer itself asks, for its health
    check, or does not tell for whom: then the client's address is the balancer's, and nothing is to be had for it.
    """

    peer_address: str
    peer_port: int
    local_address: str
    local_port: int
    via: str = ""
    is_probe: bool = False


def origin_of(transport: Any) -> Origin:
    """What the transport says."""
    peer, host = transport.getPeer(), transport.getHost()
    return Origin(
        _address(getattr(peer, "host", "")),
        getattr(peer, "port", 0),
        _address(getattr(host, "host", "")),
        getattr(host, "port", 0),
    )


def _address(host: str) -> str:
    """A socket that takes both kinds shows IPv4 addresses as ::ffff:192.0.2.1 (RFC 4291 2.5.5.2): one client has one address."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host
