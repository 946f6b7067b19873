"""How many notices one sender's domain gets: who forges an address shall not turn us on its owner (backscatter, RFC 3834 2).

A notice is owed to the reverse-path, which nobody has proved. One message too many to a stranger is a nuisance; thousands are an attack in
our name, and put our addresses on block lists. The count is the cluster's, by domain, as the forger can choose any local-part.
"""

from __future__ import annotations

from relaycluster.mail.address import Address
from relaycluster.mail.dsn import Action
from relaycluster.policy.rate import Rate


def limit_of(reverse_path: Address, kind: Action) -> str:
    """The name under which the cluster counts notices of this kind to this sender. Failures have a count of their own: when a large
    destination is down, its delay notices shall not use up what the failures of that hour need."""
    return f"{'notices' if kind is Action.FAILED else 'notices-of-no-failure'}/{reverse_path.domain}"


def why_dropped(rate: Rate) -> str:
    """One line for the event of a notice that is not sent."""
    plain = Rate(rate.count, rate.period_seconds)  # without its burst, which says little to a person
    return f"too many notices to the sender's domain ({plain} are allowed, delivery.notices_per_sender)"
