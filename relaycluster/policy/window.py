"""How many connections a destination takes from us now: learned from connections that could not be made, never from 4xx replies.

The idea is that of Postfix's scheduler (its SCHEDULER_README): the host's own limits are unknown, so begin with few connections, let
each answered transaction bring one more (a slow start), and take a connection that is refused while others stand for the answer
to "how many?". From then on one more is tried now and then, ever more seldom while that goes wrong. When none can be made
at all, the destination is dead: it is left alone, each time for longer, and probed with a single connection.

What a provider says in so many words ("slow down") halves the connections and the share of the rate; both come back step by step.

Times are seconds of one clock that does not jump; `jitter` is in [0, 1).
"""

from __future__ import annotations

from attrs import evolve, field, frozen, validators

FIRST = 2
"""Connections before the first answer: one that hangs does not stop the other."""
FIRST_STEP_SECONDS = 2.0
MOST_STEP_SECONDS = 300.0
"""After a refusal one more connection is tried after the step, which doubles with each refusal up to this."""
FIRST_PARK_SECONDS = 15.0
MOST_PARK_SECONDS = 300.0
"""How long a dead destination is left alone, doubling. A probe costs one connection, and whoever comes back should not wait longer."""
FIRST_REST_SECONDS = 5.0
MOST_REST_SECONDS = 300.0
"""How long nothing is sent at all after "slow down", doubling while the host repeats it."""
CALM_STEP_SECONDS = 30.0
"""After "slow down", one more connection each step."""
RECOVERY_SECONDS = 600.0
"""In which time a rate that was taken to nothing is whole again; from the half it takes half as long."""
SMALLEST_SHARE = 1 / 32


@frozen
class Window:
    """What is known of a destination. `maximum` is the configured number of connections.

    `size` connections were allowed at `since_seconds`, and one more each `step_seconds` from then on; while `starting`, instead, one
    more with each answer. `failures` probes in a row could not be made; before `parked_until_seconds` none is. Until
    `resting_until_seconds` nothing is sent; `share` of the rate was allowed at `slowed_at_seconds`; `requests` counts how often
    in a row slowness was asked for.
    """

    maximum: int = field(validator=validators.ge(1))
    size: float = FIRST
    since_seconds: float = 0.0
    step_seconds: float = FIRST_STEP_SECONDS
    starting: bool = True
    failures: int = 0
    parked_until_seconds: float = 0.0
    resting_until_seconds: float = 0.0
    share: float = 1.0
    slowed_at_seconds: float = 0.0
    requests: int = 0

    @property
    def learns(self) -> bool:
        """Whether an answered transaction would change anything: it need not be told otherwise."""
        return self.starting and self.size < self.maximum

    @property
    def is_troubled(self) -> bool:
        """Whether there is anything in `closed_seconds` to look at."""
        return self.failures > 0 or self.resting_until_seconds > 0

    def matters(self, now_seconds: float) -> bool:
        """Whether a fresh window would do to the host what this one has learned not to do. True for some hours at most after the last
        trouble."""
        return (
            self.closed_seconds(now_seconds) > 0
            or (self.failures > 0 and now_seconds < self.parked_until_seconds + MOST_PARK_SECONDS)
            or self.rate_share(now_seconds) < 1
            or (not self.starting and self._size(now_seconds) < self.maximum)
        )

    def allowed(self, now_seconds: float) -> int:
        """How many connections there may be: 0 while the destination is parked, 1 to probe it."""
        if self.failures:
            return 0 if now_seconds < self.parked_until_seconds else 1
        return min(self.maximum, int(self._size(now_seconds)))

    def closed_seconds(self, now_seconds: float) -> float:
        """How long nothing new shall be begun: it is parked, or rests. 0 when it may."""
        return max(0.0, self.parked_until_seconds - now_seconds, self.resting_until_seconds - now_seconds)

    def rate_share(self, now_seconds: float) -> float:
        """Which part of the configured rate may be used, in (0, 1]."""
        return min(1.0, self.share + max(0.0, now_seconds - self.slowed_at_seconds) / RECOVERY_SECONDS)

    def answered(self) -> Window:
        """A transaction had its replies, whatever they said."""
        return evolve(self, size=min(self.maximum, self.size + 1)) if self.learns else self

    def opened(self, now_seconds: float) -> Window:
        """A session with a host stands: it is not dead. What it was asked to do slowly, it is still asked to do slowly."""
        if not self.failures:
            return self
        alive = evolve(self, failures=0, parked_until_seconds=0.0)
        if self.rate_share(now_seconds) < 1:
            return evolve(alive, size=min(FIRST, self._size(now_seconds)), since_seconds=now_seconds)
        return evolve(
            alive, size=min(FIRST, self.maximum), starting=True,
            since_seconds=now_seconds, step_seconds=FIRST_STEP_SECONDS,
        )  # fmt: skip

    def refused(self, standing: int, now_seconds: float, jitter: float) -> Window:
        """No host of the destination could be connected to, while `standing` other connections to it stand. Many that are lost at
        once are no answer to "how many?": the step doubles only for one more that was tried after it."""
        if standing > 0:
            size = max(1.0, min(self._size(now_seconds), float(standing)))
            step = self.step_seconds
            if self.starting or self._size(now_seconds) >= self.maximum:
                step = FIRST_STEP_SECONDS
            elif now_seconds - self.since_seconds >= step:
                step = min(2 * step, MOST_STEP_SECONDS)
            since_seconds = max(now_seconds, self.since_seconds)  # which lies ahead while it rests
            return evolve(self, size=size, starting=False, since_seconds=since_seconds, step_seconds=step)
        if self.closed_seconds(now_seconds) > 0:
            return self  # an attempt that began before, or was answered by "slow down": it says nothing new
        park = _doubled(FIRST_PARK_SECONDS, self.failures, MOST_PARK_SECONDS) * (0.75 + jitter / 2)
        return evolve(self, failures=self.failures + 1, parked_until_seconds=now_seconds + park)

    def slowed(self, in_use: int, now_seconds: float, jitter: float) -> Window:
        """The host asks for less, while `in_use` connections carry mail. Many connections hear it at once: that is once."""
        if now_seconds < self.resting_until_seconds:
            return self
        share = self.rate_share(now_seconds)
        requests = self.requests + 1 if share < 1 else 1
        rest = _doubled(FIRST_REST_SECONDS, requests - 1, MOST_REST_SECONDS) * (0.75 + jitter / 2)
        return evolve(
            self,
            size=max(1.0, min(self._size(now_seconds), float(in_use)) / 2),
            starting=False,
            since_seconds=now_seconds + rest,
            step_seconds=max(CALM_STEP_SECONDS, self.step_seconds),
            share=max(SMALLEST_SHARE, share / 2),
            slowed_at_seconds=now_seconds + rest,
            resting_until_seconds=now_seconds + rest,
            requests=requests,
        )

    def probed_at_once(self, now_seconds: float) -> Window:
        """The operator wants to know: the next probe need not wait."""
        return evolve(self, parked_until_seconds=min(self.parked_until_seconds, now_seconds))

    def with_maximum(self, maximum: int) -> Window:
        """The operator changed the number; what was learned stays."""
        return evolve(self, maximum=maximum)

    def _size(self, now_seconds: float) -> float:
        if self.starting:
            return min(self.size, self.maximum)
        grown = max(0.0, now_seconds - self.since_seconds) / self.step_seconds
        return min(self.size + grown, self.maximum)


def _doubled(first: float, times: int, most: float) -> float:
    return min(first * (1 << min(times, 16)), most)
