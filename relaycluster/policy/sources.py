"""The local addresses that mail leaves from, each with the name that it says in EHLO."""

from __future__ import annotations

from ipaddress import ip_address

from attrs import frozen

from relaycluster.policy.host_names import is_host_name, is_usable_address

_FIX = 'write an IP address of this host, and its name for EHLO where it has its own: "192.0.2.1 mail1.example.net"'


@frozen
class Source:
    """`address` is an IPv4 or IPv6 address in its canonical text; `hostname` the name for EHLO, empty for the node's own.

    Remote servers compare the name with the address (RFC 5321 4.1.4): it should resolve to it, and back.
    """

    address: str
    hostname: str = ""

    @property
    def is_ipv6(self) -> bool:
        """Whether only hosts with an IPv6 address can be reached from it."""
        return ":" in self.address

    def __str__(self) -> str:
        return f"{self.address} {self.hostname}".rstrip()


def parse_source(text: str) -> Source:
    """`ADDRESS` or `ADDRESS NAME`; raises ValueError with what is wrong and the fix."""
    address, _, hostname = text.strip().partition(" ")
    hostname = hostname.strip().lower().removesuffix(".")
    if "%" in address or not is_usable_address(address):
        raise ValueError(f"{text[:80]!r} does not begin with an address to connect from; {_FIX}")
    if hostname and not is_host_name(hostname):
        raise ValueError(f"{text[:80]!r}: {hostname[:80]!r} is not a host name; {_FIX}")
    return Source(str(ip_address(address)), hostname)
