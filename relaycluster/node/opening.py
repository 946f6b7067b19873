"""How a lane comes to its connections: which host, how many at once, and what it means when none can be made."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from relaycluster.mail import outcome
from relaycluster.mail.outcome import Stage
from relaycluster.net.outbound import ConnectFailed, OutboundConnection, Target
from relaycluster.node.attempts import attempted
from relaycluster.node.crowd import CROWDED_SECONDS, LimitReached
from relaycluster.node.means import Means
from relaycluster.node.reach import Reach
from relaycluster.node.routes import NoRoute, Route
from relaycluster.node.verdicts import recipients_left, verdict_of
from relaycluster.policy import trouble
from relaycluster.policy.pace import UNCHANGED

if TYPE_CHECKING:
    from relaycluster.node.lane import Lane

NO_OPENING_SECONDS = 0.2
"""After a connection could not be opened while others stand, no other is tried for so long."""
SILENT_SECONDS = 20.0
"""A host before whose session stands so long passes may hang: a second connection tries the other addresses first."""
IN_ALL_SECONDS = 600.0
"""After so long at hosts that take none, one attempt tries no further host. The one that is being tried has its time."""


class Opening:
    """The opening side of one lane. `count` connections are being made; none is begun before `after_seconds`. `reach` is what is
    known of its hosts; `group` of all that counts under its limit, which may be the same; `route` where they are.
    `is_first` while it is our turn among those who wait for the limit."""

    __slots__ = (
        "_asked",
        "_lane",
        "_means",
        "_shares_hosts",
        "after_seconds",
        "count",
        "group",
        "is_first",
        "reach",
        "route",
    )

    def __init__(self, lane: Lane, means: Means) -> None:
        self.count = 0
        self.after_seconds = 0.0
        self.is_first = False
        self._asked: dict[Target, float] = {}  # those that owe an answer, and since when
        self._lane = lane
        self._means = means
        self.use()

    reach: Reach
    group: Reach
    route: Route | None

    def use(self) -> None:
        """The lane's settings are new."""
        lane, settings = self._lane, self._lane.settings
        self.route = None
        self._shares_hosts = bool(settings.hosts) and lane.limit != lane.domain
        self.group = self._means.reaches.of(lane.limit, settings.connections)
        # Domains that only share a limit have hosts of their own: one's dead host says nothing of another's.
        self.reach = self.group if self._shares_hosts else self._means.reaches.of(lane.domain, settings.connections)

    def closed_seconds(self, now: float) -> float:
        """How long nothing shall be begun: no host can be reached, or the provider asked for a rest."""
        reach, group = self.reach, self.group
        if not reach.troubled and not group.troubled:
            return 0.0
        return max(reach.window.closed_seconds(now), group.window.closed_seconds(now))

    def rest_seconds(self, now: float) -> float:
        """How long the provider wants nothing at all, also over connections that stand."""
        group = self.group
        return max(0.0, group.window.resting_until_seconds - now) if group.troubled else 0.0

    def try_now(self, now: float) -> None:
        """An operator wants to know whether the hosts can be reached now. A rest that a provider asked for stays."""
        self.reach.become(self.reach.window.probed_at_once(now))

    def has_room(self, now: float) -> bool:
        """Whether one more connection of this lane is allowed, as far as this process knows."""
        in_use = len(self._lane.carrying) + self.count
        if self._shares_hosts:
            return self._means.crowd.open(self._lane.limit) < self.reach.window.allowed(now)
        if in_use >= self.reach.window.allowed(now):
            return False
        group = self.group
        return (
            group is self.reach
            or group.window.starting
            or self._means.crowd.open(self._lane.limit) < (group.window.allowed(now))
        )

    def is_probed_by_another(self) -> bool:
        """Whether another lane is at the dead hosts already."""
        return bool(
            self._shares_hosts
            and self.reach.window.failures
            and not self.count
            and self._means.crowd.open(self._lane.limit)
        )

    def look(self, now: float) -> None:
        """Open a connection for what waits, if that is right; else make sure that somebody looks again."""
        lane, count = self._lane, self.count
        sending = len(lane.carrying)
        # Each connection that carries mail may bring one more along: a slow start. The first one may hang, and the second may not.
        wanted = min(len(lane.waiting), max(1, sending))
        if count == 1 and not sending and any(self._hangs(target, now) for target in self._asked):
            wanted = 2
        if count < wanted and sending + count < lane.settings.connections and now >= self.after_seconds:
            if self.has_room(now):
                self.count += 1
                Deferred.fromCoroutine(self._open()).addErrback(lane.bug, None)
            elif not sending and not self.count:
                closed_seconds = self.closed_seconds(now)
                if closed_seconds > 0:
                    lane.put_back(closed_seconds)
                else:
                    self._crowded(lane.limit)
        if lane.waiting and not sending and self.count <= 1:
            # Nothing will call us: look again when a connection may be opened, or when the one that is being opened may hang.
            silent_seconds = now - min(self._asked.values(), default=now)
            after_seconds = (
                self.after_seconds - now if not self.count else SILENT_SECONDS - silent_seconds % SILENT_SECONDS
            )
            lane.wake_up_after(max(NO_OPENING_SECONDS / 4, after_seconds))

    def _hangs(self, target: Target, now: float) -> bool:
        """Whether one of our attempts has been there for long, and not because it waits for a place."""
        since = self._asked.get(target)
        return since is not None and now - since >= SILENT_SECONDS and not self._means.pool.is_wanted

    def idle_connection(self, now: float) -> OutboundConnection | None:
        """One that stands already."""
        route = self._known_route(now)
        if route is None:
            return None
        for target in route.kept or route.targets:
            connection = self._means.pool.take(target)
            if connection is not None:
                return connection
        return None

    def _known_route(self, now: float) -> Route | None:
        """Where the hosts are, as long as that holds."""
        route = self.route
        return route if route is not None and route.until_seconds >= now else None

    def others(self, tried: set[str]) -> list[Target]:
        """The targets on the hosts that were not tried."""
        route = self.route
        return [target for target in route.targets if target.host not in tried] if route is not None else []

    async def find_route(self) -> Route | NoRoute:
        """Asked for each connection, not only once a TTL: hosts of equal preference share the load (RFC 5321 5.1). What DNS
        said is cached below. The settings of the route hold for the lane from here on."""
        lane = self._lane
        while True:
            asked = lane.settings
            found = await self._means.routes.find(lane.domain, asked)
            if lane.settings is asked:
                break  # else they became others meanwhile, by a reload: what was found by the former ones must not undo it
        if isinstance(found, Route):
            if found.settings is not None and found.settings != lane.settings:
                lane.adopt(found.settings)
            self.route = found
        return found

    async def connect(self, targets: Sequence[Target]) -> OutboundConnection | outcome.Deferred | outcome.Failed:
        """A connection to the first target that takes one, else what all of them together mean."""
        lane, means = self._lane, self._means
        outcomes: list[outcome.Deferred | outcome.Failed] = []
        start = now = means.clock.seconds()
        left = deque(sorted(targets, key=lambda target: self._hangs(target, now)))
        while left and (not outcomes or now - start < IN_ALL_SECONDS):
            target, began = left.popleft(), now
            self._asked.setdefault(target, began)
            try:
                connection = await means.pool.acquire(target)
            except ConnectFailed as error:
                now, result = means.clock.seconds(), error.outcome
                attempted(means, lane.domain, None, target, result, now - began)
                if now - began >= SILENT_SECONDS and result.stage is not Stage.CONNECT:
                    # It took the connection and then hung: its other addresses come after the other hosts.
                    host = target.host
                    left = deque(sorted(left, key=lambda each: each.host == host))
                verdict = verdict_of(result, lane.domain, means.rules())
                if verdict is None:
                    outcomes.append(result)
                    continue
                if verdict.pace is not UNCHANGED:
                    lane.obey(verdict.pace, result)
                    return verdict.outcome  # it speaks for all hosts
                outcomes.append(verdict.outcome)
                if isinstance(verdict.outcome, outcome.Failed) and not verdict.try_next_host:
                    break
            else:
                if self.reach.window.failures:
                    self.reach.become(self.reach.window.opened(means.clock.seconds()))
                return connection
            finally:
                self._asked.pop(target, None)
        return trouble.after_all_hosts(outcomes)

    async def _open(self) -> None:
        """One more connection for what waits."""
        lane = self._lane
        connection: OutboundConnection | None = None
        try:
            limit = lane.limit
            route = await self.find_route()
            if isinstance(route, NoRoute):
                self._unreachable(route.outcome)
            elif lane.limit != limit:
                lane.put_back(0)  # its provider is another now: whatever waits is claimed anew, under its limits
            else:
                found = await self.connect(route.targets)
                if isinstance(found, OutboundConnection):
                    connection = found
                else:
                    self._unreachable(found)
        except LimitReached as error:
            self._crowded(str(error))
        except Exception:
            # A fault of our own: told, and no faster for it.
            self.after_seconds = self._means.clock.seconds() + CROWDED_SECONDS
            raise
        finally:
            self.count -= 1
            self.is_first = False
            if connection is not None:
                lane.next(connection)
            else:
                lane.pump()

    def _crowded(self, limit: str) -> None:
        """No room under the limit: the next connection of ours that is free shall be for us, and one that is kept idle for another domain
        ends. When this process has none, others shall have the items."""
        lane, means = self._lane, self._means
        means.metrics.throttled["connections"].inc()
        self.after_seconds = means.clock.seconds() + NO_OPENING_SECONDS
        if lane.carrying:
            return
        if means.crowd.wait(limit, lane, self.is_first):
            lane.wake_up_after(CROWDED_SECONDS)
            if self._shares_hosts and self._known_route(means.clock.seconds()) is None:
                # What is idle goes to our hosts, too, as we shall know in a moment.
                Deferred.fromCoroutine(self._find_out()).addErrback(lane.bug, None)
            else:
                means.pool.retire_idle(limit)
        else:
            means.crowd.full(limit, means.clock.seconds() + CROWDED_SECONDS)
            lane.put_back(CROWDED_SECONDS)

    async def _find_out(self) -> None:
        await self.find_route()
        self._lane.pump()

    def _unreachable(self, result: outcome.Deferred | outcome.Failed) -> None:
        """No host of the destination could be reached: that holds for all that waits, unless a connection stands."""
        lane, means = self._lane, self._means
        now = means.clock.seconds()
        standing = len(lane.carrying)
        if self._shares_hosts:
            standing = max(standing, means.crowd.open(lane.limit))
        verdict = verdict_of(result, lane.domain, means.rules())
        if isinstance(result, outcome.Deferred) and (verdict is None or verdict.pace is UNCHANGED):
            # Who asks for another pace can be reached, and was obeyed.
            self.reach.become(self.reach.window.refused(standing, now, means.jitter()))
        if standing:
            self.after_seconds = now + NO_OPENING_SECONDS
            return
        self.reach.outcome = result
        self.route = None
        for claim, _ in lane.waiting:
            means.settlement.settle(claim, [(who, result) for who in recipients_left(claim)])
        lane.waiting.clear()
        means.crowd.freed(lane.limit)  # whoever stands in line for the same hosts has nothing to wait for
