"""How often each client may connect: in the memory of this process, and in bounded memory.

One table is what a flood can fill, so it forgets: first whoever has connected longest ago, whose count is the nearest to running out.
"""

from __future__ import annotations

from typing import Final

from relaycluster.policy import throttle
from relaycluster.policy.rate import Rate

MOST_CLIENTS: Final = 65536


class ClientRates:
    """How often each client connected lately. `most_clients` is how many are remembered."""

    def __init__(self, most_clients: int = MOST_CLIENTS) -> None:
        self._most_clients = most_clients
        # Theoretical arrival times (policy/throttle.py), least lately changed first.
        self._arrivals: dict[str, int] = {}

    def __len__(self) -> int:
        """How many clients are remembered."""
        return len(self._arrivals)

    def spend(self, client: str, rate: Rate, now_seconds: float) -> bool:
        """Whether the client may connect once more now: up to `rate.burst` times at once."""
        arrivals = self._arrivals
        tat_ns, wait_us = throttle.spend(
            arrivals.get(client, 0), int(now_seconds * 1e6), rate.interval_ns, rate.burst, 1
        )
        if wait_us:
            return False
        arrivals.pop(client, None)
        arrivals[client] = tat_ns
        if len(arrivals) > self._most_clients:
            del arrivals[next(iter(arrivals))]
        return True
