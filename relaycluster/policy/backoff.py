"""For how long logins are refused unseen after failures: exponential, forgotten with time, and never a stranger's way to lock
somebody out.

A failure counts for three subjects: the *pair* of user and address, the *user*, and the *address*. Each has its own steps. The pair
shuts first, so one stranger's guesses shut the stranger and not the user. A pair at which the user proved who they are within the last
30 days hides the other two: its owner gets in whatever strangers do. docs/operate/users.md tells it to operators.

The arithmetic is whole milliseconds and two numbers of state, so that a Lua script can do exactly the same; failures drain like
the bucket of `policy/throttle.py`: one each `forgive_ms`.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from relaycluster.policy.client import client_of

PROVED_MS = 30 * 86_400_000
"""So long a user who logged in from an address is known there."""
_GRACE_MS = 1000
"""Records are kept for so much longer than they say anything, since clocks are never quite the same."""


@frozen
class Steps:
    """How one kind of subject is held back. `free` failures cost nothing; the next one shuts for `first_ms`, each further one for
    twice as long, up to `most_ms`. One failure is forgotten each `forgive_ms`: that, in the long run, is the time between two guesses."""

    free: int
    first_ms: int
    most_ms: int
    forgive_ms: int

    @property
    def most_failures(self) -> int:
        """More are not counted: from here on the wait does not grow, and a longer memory would only punish."""
        doublings = 0
        while self.first_ms << doublings < self.most_ms:
            doublings += 1
        return self.free + doublings + 1

    def shut_ms(self, failures: int) -> int:
        """For how long so many failures shut."""
        over = min(failures, self.most_failures) - self.free - 1
        return min(self.first_ms << over, self.most_ms) if over >= 0 else 0


STEPS = {
    # Somebody who mistypes has four tries and then waits 10 s; a guesser gets about 100 guesses in the first day.
    "pair": Steps(free=4, first_ms=10_000, most_ms=900_000, forgive_ms=900_000),
    # Many people may sit behind one address, and a device with an old password among them, which its pair keeps at a guess each
    # quarter of an hour: that never shuts the address, which forgets three times as fast.
    "address": Steps(free=20, first_ms=10_000, most_ms=3_600_000, forgive_ms=300_000),
    # Only many addresses together get so far. Then somebody at an address where the user never was gets one look a minute.
    "user": Steps(free=50, first_ms=1_000, most_ms=60_000, forgive_ms=60_000),
}


@frozen
class Record:
    """What is known of one subject, in milliseconds of the store's clock: when all failures will be forgotten, until when it is shut, and
    when it proved itself last. 0 where there is nothing."""

    drained_ms: int = 0
    shut_ms: int = 0
    proved_ms: int = 0

    def failures(self, now_ms: int, steps: Steps) -> int:
        """How many failures are not forgotten yet."""
        return -(-max(0, self._debt_ms(now_ms, steps)) // steps.forgive_ms)

    def failed(self, now_ms: int, steps: Steps) -> Record:
        """One more failure."""
        debt = min(self._debt_ms(now_ms, steps) + steps.forgive_ms, steps.most_failures * steps.forgive_ms)
        failures = -(-debt // steps.forgive_ms)
        shut = max(now_ms + steps.shut_ms(failures), now_ms + self.wait_ms(now_ms, steps))
        return Record(now_ms + debt, shut, self.proved_ms)

    def wait_ms(self, now_ms: int, steps: Steps) -> int:
        """For how long it is still shut. More than any step says comes from a clock that has gone back since: that is nothing."""
        wait = self.shut_ms - now_ms
        return wait if 0 < wait <= steps.most_ms else 0

    def is_proved(self, now_ms: int) -> bool:
        """Whether it proved itself lately."""
        return self.proved_ms > now_ms - PROVED_MS

    def keep_ms(self, now_ms: int) -> int:
        """For how long the record says anything."""
        until = max(self.drained_ms, self.shut_ms, self.proved_ms + PROVED_MS if self.proved_ms else 0)
        return max(0, until - now_ms) + _GRACE_MS

    def _debt_ms(self, now_ms: int, steps: Steps) -> int:
        return max(0, min(self.drained_ms - now_ms, steps.most_failures * steps.forgive_ms))


def proved(now_ms: int) -> Record:
    """After a success: nothing counts against it, and it is known."""
    return Record(0, 0, now_ms)


def wait_ms(found: Iterable[tuple[str, Record]], now_ms: int) -> int:
    """For how long an attempt of these subjects is refused unseen: narrowest subject first; one that proved itself lately hides those
    behind it."""
    longest = 0
    for subject, record in found:
        longest = max(longest, record.wait_ms(now_ms, steps_of(subject)))
        if record.is_proved(now_ms):
            break
    return longest


def steps_of(subject: str) -> Steps:
    """The steps of a subject as `subjects` makes them."""
    return STEPS[subject.partition(" ")[0]]


def subjects(user: str, peer_address: str) -> tuple[str, str, str]:
    """Whom a login is counted for, narrowest first: the pair, the user, the address. `user` as it is looked up, whether or not
    there is such a user: nothing may depend on that."""
    client = client_of(peer_address)
    return f"pair {client} {user}", f"user {user}", f"address {client}"
