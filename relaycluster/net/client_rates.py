"""Who counts as one client, and how often each may connect: in the memory of this process, and in bounded memory.

One table is what a flood can fill, so it forgets: first whoever has connected longest ago, whose count is the nearest to running out.
"""

from __future__ import annotations

from socket import AF_INET6, inet_pton
from typing import Final

from relaycluster.policy import throttle
from relaycluster.policy.rate import Rate

MOST_CLIENTS: Final = 65536


def client_of(address: str) -> str:
    """What addresses of one client have in common: an IPv4 address is one client; of an IPv6 address the first 64 bits are, since
    whoever has one address of such a network has them all (RFC 6177)."""
    if ":" not in address:
        return address
    return inet_pton(AF_INET6, address.partition("%")[0])[:8].hex(":", 2) + "::/64"


class ClientRates:
    """How often each client connected lately. `most_clients` is how many are remembered."""

    def __init__(self, most_clients: int = MOST_CLIENTS) -> None:
        self._most_clients = most_clients
        self._arrivals: dict[
            str, int
        ] = {}  # theoretical arrival times (policy/throttle.py), least lately changed first

    def __len__(self) -> int:
        """How many clients are remembered."""
        return len(self._arrivals)

    def spend(self, client: str, rate: Rate, now_seconds: float) -> bool:
        """Whether the client may connect once more now. A rate without a burst lets a whole period's count through at once: clients
        come in bunches, and are to be stopped only when they do not cease."""
        burst = rate.burst if rate.burst > 1 else rate.count
        arrivals = self._arrivals
        grant = throttle.take(arrivals.get(client, 0), int(now_seconds * 1e6), rate.interval_ns, burst, 1, horizon_us=0)
        if not grant.slots_us:
            return False
        arrivals.pop(client, None)
        arrivals[client] = grant.tat_ns
        if len(arrivals) > self._most_clients:
            del arrivals[next(iter(arrivals))]
        return True
