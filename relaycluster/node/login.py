"""A login from AUTH to its answer: held back after failures, checked, counted; what is refused never tells whether name or password was wrong.

RFC 4954 6 has the replies, RFC 4616 2 the identities. Three things keep the secret: one text for every refusal; the same work for every name
(`node/accounts.py`); and refusals leave on the beat of a second, counted from the question, so that what is left of a difference drowns.

Without the store nobody is let in: 454.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final, Protocol

from attrs import frozen
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from relaycluster.interfaces import IAccounts, IAttempts, Login, QueueError
from relaycluster.mail.reply import Reply
from relaycluster.mail.session import Session
from relaycluster.node.accounts import TooManyChecks
from relaycluster.node.users_file import key_of
from relaycluster.policy.backoff import subjects
from relaycluster.policy.client import client_of

_log = Logger()

WRONG: Final = Reply.of(535, "5.7.8", "Authentication credentials invalid")
HELD_BACK: Final = Reply.of(454, "4.7.0", "Too many failed logins: try again later")
BUSY: Final = Reply.of(454, "4.7.0", "Too many logins at once: try again in a moment")
AWAY: Final = Reply.of(454, "4.7.0", "Logins cannot be checked at the moment: try again later")

REFUSAL_BEAT_SECONDS = 1.0
CHECKS_PER_CLIENT = 4
"""Logins of one client that are looked at together; the others wait for their turn, and are then seen with what those before them cost."""
NOTED_SECONDS = 3600.0
"""A pair that logged in is told to the store again only after so long."""
_MOST_NOTED = 10_000


class LoginResult(Enum):
    """How a login ended."""

    ACCEPTED = "accepted"
    CREDENTIALS = "credentials"  # wrong name or password
    IDENTITY = "identity"  # the right password, to act as somebody else
    BACKOFF = "backoff"  # refused unseen after failures
    BUSY = "busy"  # too many checks wait
    UNAVAILABLE = "unavailable"  # the store is away, or the check broke


class LoginObserver(Protocol):
    """Hears of every login."""

    def login(self, session: Session, login: Login, result: LoginResult, seconds: float) -> None:
        """One ended, after so long."""

    def shut(self, session: Session, subject: str, seconds: float) -> None:
        """A failure shut a subject of `policy/backoff.py` for so long."""


class Unobserved:
    """Tells nobody."""

    def login(self, session: Session, login: Login, result: LoginResult, seconds: float) -> None:
        pass

    def shut(self, session: Session, subject: str, seconds: float) -> None:
        pass


@frozen
class _Ended:
    result: LoginResult
    reply: str | Reply


@frozen
class _Check:
    """One login on its way."""

    session: Session
    login: Login
    began: float
    client: str  # whose turn it takes


Subjects = tuple[str, str, str]


class LoginCheck:
    """Answers AUTH (`IIntake.authenticate`)."""

    def __init__(
        self,
        accounts: IAccounts,
        attempts: IAttempts,
        clock: IReactorTime,
        observer: LoginObserver | None = None,
        beat_seconds: float = REFUSAL_BEAT_SECONDS,
    ) -> None:
        self._accounts = accounts
        self._attempts = attempts
        self._clock = clock
        self._observer = observer or Unobserved()
        self._beat_seconds = beat_seconds
        self._turns = Turns(CHECKS_PER_CLIENT, clock)
        self._noted: OrderedDict[str, float] = OrderedDict()  # pair → until when; oldest first

    def authenticate(self, session: Session, login: Login) -> Deferred[str | Reply]:
        """The user's name as the users file writes it, or the refusal. Never fails."""
        check = _Check(session, login, self._clock.seconds(), client_of(session.peer_address))
        turn = self._turns.take(check.client)
        return self._look(None, check) if turn is None else turn.addCallback(self._look, check)

    # A callback for each step and not a coroutine: every session of a submission listener comes through here.

    def _look(self, _: None, check: _Check) -> Deferred[str | Reply]:
        """It is this login's turn."""
        login = check.login
        concerned = subjects(key_of(login.user), check.session.peer_address)
        # Before the cache of successes too: else a right guess would shine through while wrong ones are refused unseen.
        try:
            ended: Deferred[Any] = self._attempts.wait(concerned)
        except Exception:
            ended = fail()
        ended.addCallback(self._may_try, check, concerned)
        return ended.addErrback(self._unchecked).addCallback(self._end, check)

    def _may_try(self, seconds: float, check: _Check, concerned: Subjects) -> _Ended | Deferred[_Ended]:
        if seconds > 0:
            return _Ended(LoginResult.BACKOFF, HELD_BACK)
        login = check.login
        return self._accounts.check(login.user, login.password).addCallback(self._checked, check, concerned)

    def _checked(self, right: bool, check: _Check, concerned: Subjects) -> _Ended | Deferred[_Ended]:
        login = check.login
        account = self._accounts.account(login.user) if right else None
        if account is not None and (not login.authorization or key_of(login.authorization) == key_of(account.name)):
            self._note(concerned[0])
            return _Ended(LoginResult.ACCEPTED, account.name)
        self._noted.pop(concerned[0], None)
        result = LoginResult.CREDENTIALS if account is None else LoginResult.IDENTITY
        return self._attempts.failed(concerned).addCallback(self._counted, check.session, concerned, result)

    def _counted(self, waits: Sequence[float], session: Session, concerned: Subjects, result: LoginResult) -> _Ended:
        for subject, seconds in zip(concerned, waits, strict=True):
            if seconds > 0:
                self._observer.shut(session, subject, seconds)
        return _Ended(result, WRONG)

    def _unchecked(self, failure: Failure) -> _Ended:
        if failure.check(QueueError):
            return _Ended(LoginResult.UNAVAILABLE, AWAY)
        if failure.check(TooManyChecks):
            return _Ended(LoginResult.BUSY, BUSY)
        _log.failure("a login could not be checked", failure)  # no password is in the traceback's text
        return _Ended(LoginResult.UNAVAILABLE, AWAY)

    def _end(self, ended: _Ended, check: _Check) -> str | Reply | Deferred[str | Reply]:
        self._turns.give_back(check.client)
        reply = ended.reply
        took = self._clock.seconds() - check.began
        self._observer.login(check.session, check.login, ended.result, took)
        if reply is WRONG or reply is HELD_BACK:
            beat = self._beat_seconds
            return deferLater(self._clock, beat - (self._clock.seconds() - check.began) % beat, lambda: reply)
        return reply

    def _note(self, pair: str) -> None:
        """The pair is known from now on. Nobody waits for that: it is a help for later, and costs a write."""
        noted, now = self._noted, self._clock.seconds()
        if now < noted.get(pair, now):
            return
        noted[pair] = now + NOTED_SECONDS
        noted.move_to_end(pair)
        if len(noted) > _MOST_NOTED:
            noted.popitem(last=False)
        self._attempts.succeeded([pair]).addErrback(lambda _: noted.pop(pair, None))


class Turns:
    """At most so many at once for each client, in the order in which they came."""

    def __init__(self, at_once: int, clock: IReactorTime) -> None:
        self._at_once = at_once
        self._clock = clock
        self._busy: dict[str, int] = {}
        self._waiting: dict[str, deque[Deferred[None]]] = {}

    def take(self, client: str) -> Deferred[None] | None:
        """None when it is the caller's turn, else what to wait for. Each turn is given back."""
        busy = self._busy.get(client, 0)
        if busy < self._at_once:
            self._busy[client] = busy + 1
            return None
        turn: Deferred[None] = Deferred()
        self._waiting.setdefault(client, deque()).append(turn)
        return turn

    def give_back(self, client: str) -> None:
        """The next one's turn."""
        waiting = self._waiting.get(client)
        if waiting:
            turn = waiting.popleft()
            if not waiting:
                del self._waiting[client]
            # Not from here: where the store fails at once, each would end within the one before it, as deep as there are clients.
            self._clock.callLater(0, turn.callback, None)
        elif self._busy[client] == 1:
            del self._busy[client]
        else:
            self._busy[client] -= 1
