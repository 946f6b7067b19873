"""Who may send what: never an open relay. Decided from the session's facts and the envelope alone, before DATA.

On a listener of mode `submission` a client may relay when it has authenticated, or when its address is in an allowed network; everybody
else hears 530 at MAIL (RFC 6409 4.3, RFC 4954 6). On a listener of mode `mx` anybody may send to the relay domains, and nobody to
anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from types import MappingProxyType
from typing import Final

from attrs import field, frozen

from relaycluster.mail.address import Address
from relaycluster.mail.reply import Reply

Network = IPv4Network | IPv6Network

SUBMISSION: Final = "submission"

_NO_PROXIES: Final[Mapping[str, Sequence[Network]]] = MappingProxyType({})

_AUTHENTICATE = Reply.of(530, "5.7.0", "Authentication required")
_NO_RELAY = Reply.of(554, "5.7.1", "Relay access denied: this client may not send to this domain through us")
_ROUTED = Reply.of(550, "5.7.1", "Relay access denied: the part before the @ must not hold a route")
NO_MAILBOX = Reply.of(550, "5.1.1", "There are no mailboxes here: give the address with its domain")


@frozen
class Access:
    """`networks` that may relay, by listener; `relay_domains` that anyone may send to: names, and suffixes with a leading dot;
    `balancers`: addresses of hosts that bring other clients to a listener."""

    networks: Mapping[str, tuple[Network, ...]]
    relay_domains: frozenset[str]
    relay_suffixes: tuple[str, ...]
    balancers: Mapping[str, frozenset[IPv4Address | IPv6Address]] = field(factory=dict)

    @classmethod
    def of(
        cls,
        networks: Mapping[str, Sequence[Network]],
        relay_domains: Sequence[str],
        proxies: Mapping[str, Sequence[Network]] = _NO_PROXIES,
    ) -> Access:
        """From `example.com` and `*.example.com` as the operator writes them. `proxies` are each listener's `proxy_protocol_from`, of which
        only single hosts count: a network may hold balancers and clients."""
        return cls(
            {listener: tuple(given) for listener, given in networks.items()},
            frozenset(domain for domain in relay_domains if not domain.startswith("*.")),
            tuple(domain[1:] for domain in relay_domains if domain.startswith("*.")),
            {
                listener: frozenset(_plain(each.network_address) for each in given if each.num_addresses == 1)
                for listener, given in proxies.items()
            },
        )

    def may_relay(self, listener: str, peer_address: str, via: str = "") -> bool:
        """Whether a client at this address may send to anywhere without AUTH.

        Behind a balancer the address is the PROXY header's and `via` the balancer's. No balancer is ever a client, neither this one nor
        another of the same listener: whoever the header does not tell apart from it may be anybody.
        """
        networks = self.networks.get(listener)
        if not networks or not peer_address:
            return False
        address = _address(peer_address)
        if via and address == _address(via):
            return False
        if address in self.balancers.get(listener, ()):
            return False
        return any(address in network for network in networks)

    def client(self, listener: str, peer_address: str, via: str = "") -> Reply | None:
        """On a listener for submission: None when a client that has not authenticated may send, else the refusal."""
        return None if self.may_relay(listener, peer_address, via) else _AUTHENTICATE

    def stranger(self, forward_path: Address) -> Reply | None:
        """On a listener of mode `mx`: None when anybody may send there, else the refusal."""
        domain = forward_path.domain
        if domain not in self.relay_domains and not (self.relay_suffixes and domain.endswith(self.relay_suffixes)):
            return _NO_RELAY if domain else NO_MAILBOX
        text = forward_path.text
        local_part = text[: text.rfind("@")]
        if "%" in local_part or "!" in local_part or "@" in local_part:
            # `user%elsewhere`, `elsewhere!user`, `"user@elsewhere"`: we would only pass it on, but the next hop, which trusts us, might
            # take it for a route and relay for a stranger.
            return _ROUTED
        return None


def _address(text: str) -> IPv4Address | IPv6Address:
    return _plain(ip_address(text.partition("%")[0]))


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return getattr(address, "ipv4_mapped", None) or address
