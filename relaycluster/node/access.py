"""Who may send what: never an open relay. Decided from the session's facts alone, before DATA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

from attrs import frozen

from relaycluster.mail.address import Address
from relaycluster.mail.reply import Reply

Network = IPv4Network | IPv6Network

_NO_RELAY = Reply.of(554, "5.7.1", "Relay access denied: this client may not send to this domain through us")
_NO_MAILBOX = Reply.of(550, "5.1.1", "There are no mailboxes here: give the address with its domain")


@frozen
class Access:
    """`networks` that may relay, by listener; `relay_domains` that anyone may send to: names, and suffixes with a leading dot."""

    networks: Mapping[str, tuple[Network, ...]]
    relay_domains: frozenset[str]
    relay_suffixes: tuple[str, ...]

    @classmethod
    def of(cls, networks: Mapping[str, Sequence[Network]], relay_domains: Sequence[str]) -> Access:
        """From `example.com` and `*.example.com` as the operator writes them."""
        return cls(
            {listener: tuple(given) for listener, given in networks.items()},
            frozenset(domain for domain in relay_domains if not domain.startswith("*.")),
            tuple(domain[1:] for domain in relay_domains if domain.startswith("*.")),
        )

    def may_relay(self, listener: str, peer_address: str) -> bool:
        """Whether a client at this address may send to anywhere."""
        networks = self.networks.get(listener)
        if not networks or not peer_address:
            return False
        address = ip_address(peer_address.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in networks)

    def recipient(self, may_relay: bool, forward_path: Address) -> Reply | None:
        """None when the client may send there, else the refusal."""
        domain = forward_path.domain
        if not domain:
            return _NO_MAILBOX
        if may_relay or domain in self.relay_domains or (self.relay_suffixes and domain.endswith(self.relay_suffixes)):
            return None
        return _NO_RELAY
