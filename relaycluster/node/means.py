"""What all lanes of a process work with."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from relaycluster.events import EventLog
from relaycluster.interfaces import IQueue
from relaycluster.mail.item import Claim
from relaycluster.metrics import Metrics
from relaycluster.net.pool import ConnectionPool
from relaycluster.node.crowd import Crowd
from relaycluster.node.hands import Hands
from relaycluster.node.limits import Pace
from relaycluster.node.reach import Reaches
from relaycluster.node.routes import Routes
from relaycluster.node.settle import Settlement
from relaycluster.policy.cluster import Ownership
from relaycluster.policy.reply_rules import ReplyRules
from relaycluster.policy.routing import DestinationSettings
from relaycluster.policy.suspension import Suspension


@frozen
class Means:
    """What every lane works with. `valid` tells whether the node's lease is proven; `proves`
    whether what was claimed with a token may still be finished; `owner_of` gives the ownership of a
    partition while it may be used; `number` counts claims; `pace` gives the pace of a limited destination; `lost` is told of an
    ownership that the queue does not know any more; `taken` is told of each claim; `draining` whether to claim nothing more;
    `suspended` what keeps back mail for a domain with a limit; `suspend` keeps back a limit's mail for some seconds, for a reason, in
    the whole cluster; `rules` are those for replies; `jitter` gives numbers in [0, 1); `sign_anew` puts fitting
    signatures of ours on a converted message."""

    clock: IReactorTime
    queue: IQueue
    pool: ConnectionPool
    routes: Routes
    settlement: Settlement
    metrics: Metrics
    log: EventLog
    valid: Callable[[], bool]
    proves: Callable[[bytes], bool]
    owner_of: Callable[[int], Ownership | None]
    number: Callable[[], int]
    pace: Callable[[str, DestinationSettings], Pace | None]
    lost: Callable[[Ownership], None]
    taken: Callable[[Claim], None]
    crowd: Crowd
    draining: Callable[[], bool]
    reaches: Reaches
    suspended: Callable[[str, str], Suspension | None]
    suspend: Callable[[str, float, str], None]
    jitter: Callable[[], float]
    rules: Callable[[], ReplyRules]
    sign_anew: Callable[[bytes], bytes]
    hands: Hands
