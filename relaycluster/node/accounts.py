"""The users who may authenticate: passwords are checked in threads, few at once, and no answer tells whether there is such a user.

A fresh check costs tens of milliseconds of a core by design. So checks run in a pool that is passed in, a bounded number of them waits, and a login
that succeeded is remembered for some minutes under a keyed hash that only this process can make.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping

from attrs import frozen
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from relaycluster.interfaces import IAccounts
from relaycluster.node import users_file
from relaycluster.node.passwords import PasswordHash, trouble
from relaycluster.node.users_file import User, key_of
from relaycluster.policy.account import Account

_NOBODY = PasswordHash.read(
    "$argon2id$v=19$m=19456,t=2,p=1$cmVsYXljbHVzdGVyLi4uLg$RaO83QarQzKN6y2eOe7ZgcCQftd4qjtV8i48Orw/eKA"
)
"""What the passwords of unknown names are held against while there are no users."""


class TooManyChecks(Exception):
    """So many logins wait for their check that one more would only wait in vain."""


@frozen
class CheckSettings:
    """`waiting` is how many checks may be under way or wait: about so many times the cost of one, divided by the threads, is the longest that an
    AUTH takes. A success is remembered for `remembered_seconds`, and `remembered` of them."""

    waiting: int = 64
    remembered_seconds: float = 300.0
    remembered: int = 10_000


class Decoys:
    """For a name that nobody has, a hash of somebody: so that it takes as long as one that somebody has, always the same time for the
    same name, on every node, also where hashes of several kinds and costs stand in the file."""

    def __init__(self, users: Mapping[str, User]) -> None:
        self._ring = sorted(((_point(key), user.password) for key, user in users.items()), key=lambda each: each[0])
        self._points = [point for point, _ in self._ring]

    def of(self, key: str) -> PasswordHash:
        """The hash to work on in place of the missing one."""
        if not self._ring:
            return _NOBODY
        return self._ring[bisect_left(self._points, _point(key)) % len(self._ring)][1]


def _point(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _is_open(user: User | None) -> bool:
    return user is not None and not user.shut


@implementer(IAccounts)
class Accounts:
    """See `IAccounts`. `threads` is a started pool whose size bounds the cores and the memory (19 MiB each) that checks may take; `secret`
    32 random octets of this process."""

    def __init__(
        self,
        reactor: IReactorFromThreads,
        clock: IReactorTime,
        threads: ThreadPool,
        secret: bytes,
        settings: CheckSettings | None = None,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._threads = threads
        self._secret = secret
        self._settings = settings or CheckSettings()
        self._users: Mapping[str, User] = {}
        self._decoys = Decoys({})
        self._remembered: OrderedDict[bytes, float] = OrderedDict()  # → until when; oldest first
        self._pending: dict[bytes, list[Deferred[bool]]] = {}

    def load(self, path: str) -> None:
        """Read the users from a file. Raises `FileTrouble`: then those of before stay. A remembered success holds for one name with one
        hash: it ends with either of them, and the others' stay."""
        users = users_file.read(path)
        self._users, self._decoys = users, Decoys(users)

    def clear(self) -> None:
        """No users any more: the configuration names no file."""
        self._users, self._decoys = {}, Decoys({})

    def __len__(self) -> int:
        return len(self._users)

    @property
    def waiting(self) -> int:
        """Checks that are under way or wait for a thread."""
        return len(self._pending)

    def account(self, name: str) -> Account | None:
        user = self._users.get(key_of(name))
        return user.account if user is not None and _is_open(user) else None

    def check(self, name: str, password: bytes) -> Deferred[bool]:
        """See `IAccounts`; fails with `TooManyChecks`. What was right a moment ago is answered at once."""
        key = key_of(name)
        user = self._users.get(key)
        known = _is_open(user)
        held = self._decoys.of(key) if user is None else user.password
        if trouble(password):
            return succeed(False)
        mark = hashlib.blake2b(
            b"%d\0%s\0%s\0%s" % (known, key.encode("utf-8", "surrogatepass"), held.text.encode("ascii"), password),
            key=self._secret,
            digest_size=32,
        ).digest()
        if self._remembers(mark):
            return succeed(True)
        answer: Deferred[bool] = Deferred()
        # A client that opens many sessions at once asks the same many times: one answer serves all.
        others = self._pending.get(mark)
        if others is not None:
            others.append(answer)
            return answer
        if len(self._pending) >= self._settings.waiting:
            return fail(TooManyChecks())
        self._pending[mark] = [answer]
        work: Deferred[bool] = deferToThreadPool(self._reactor, self._threads, held.verify, password)
        work.addCallbacks(self._checked, self._failed, callbackArgs=(mark, key, held), errbackArgs=(mark,))
        return answer

    def _checked(self, fits: bool, mark: bytes, key: str, held: PasswordHash) -> None:
        user = self._users.get(key)  # as it is by now: a password that was exchanged meanwhile is not the password
        right = fits and _is_open(user) and user is not None and user.password == held
        if right:
            self._remember(mark)
        for answer in self._pending.pop(mark):
            answer.callback(right)

    def _failed(self, failure: Failure, mark: bytes) -> None:
        for answer in self._pending.pop(mark):
            answer.errback(failure)

    def _remembers(self, mark: bytes) -> bool:
        until = self._remembered.get(mark)
        return until is not None and self._clock.seconds() < until

    def _remember(self, mark: bytes) -> None:
        remembered, now = self._remembered, self._clock.seconds()
        remembered[mark] = now + self._settings.remembered_seconds
        remembered.move_to_end(mark)
        while remembered:
            oldest = next(iter(remembered))
            if len(remembered) <= self._settings.remembered and now < remembered[oldest]:
                break
            del remembered[oldest]
