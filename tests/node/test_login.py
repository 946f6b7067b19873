"""Logins: who gets in, who is held back, and that no refusal tells what was wrong."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.interfaces import Login, QueueUnavailable
from relaycluster.mail.session import Session
from relaycluster.node.accounts import TooManyChecks
from relaycluster.node.login import AWAY, BUSY, CHECKS_PER_CLIENT, HELD_BACK, WRONG, LoginCheck, LoginResult, Turns
from relaycluster.policy.account import Account
from relaycluster.policy.backoff import STEPS
from relaycluster.store.memory import MemoryAttempts, MemoryCluster
from tests.node.world import Unsteady

SESSION = Session("s1", "0.0.0.0:587", "submission", "192.0.2.1", 40000, "192.0.2.9", 587)
PAIR = STEPS["pair"]


class FakeAccounts:
    """Passwords in clear, answered at once, or when the test says so; `checked` is what was looked at."""

    def __init__(self) -> None:
        self.passwords = {"alice": b"a", "bob": b"b"}
        self.checked: list[tuple[str, bytes]] = []
        self.trouble: Exception | None = None
        self.held: list[Deferred[None]] | None = None

    def check(self, name: str, password: bytes) -> Deferred[bool]:
        self.checked.append((name, password))
        if self.trouble is not None:
            return fail(self.trouble)
        right = self.passwords.get(name.lower()) == password
        if self.held is None:
            return succeed(right)
        gate: Deferred[None] = Deferred()
        self.held.append(gate)
        return gate.addCallback(lambda _: right)

    def account(self, name: str) -> Account | None:
        return Account(name.lower()) if name.lower() in self.passwords else None


class Heard:
    """What the observer was told."""

    def __init__(self) -> None:
        self.results: list[LoginResult] = []
        self.shuts: list[tuple[str, float]] = []

    def login(self, session: Session, login: Login, result: LoginResult, seconds: float) -> None:
        self.results.append(result)

    def shut(self, session: Session, subject: str, seconds: float) -> None:
        self.shuts.append((subject, seconds))


class LoginTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.accounts = FakeAccounts()
        self.cluster = MemoryCluster(lambda: int(self.clock.seconds() * 1000))
        self.attempts = Unsteady(MemoryAttempts(self.cluster))
        self.heard = Heard()
        self.check = self.node()

    def node(self) -> LoginCheck:
        """One more node of the cluster."""
        accounts: Any = self.accounts
        attempts: Any = self.attempts
        return LoginCheck(accounts, attempts, self.clock, self.heard)

    def ask(
        self,
        user: str,
        password: bytes,
        address: str = "192.0.2.1",
        authorization: str = "",
        node: LoginCheck | None = None,
    ) -> Deferred[Any]:
        session = evolve(SESSION, peer_address=address)
        return (node or self.check).authenticate(session, Login("PLAIN", user, password, authorization))

    def login(self, *given: Any, **named: Any) -> Any:
        """The answer, after the beat of refusals."""
        answer = self.ask(*given, **named)
        self.clock.advance(0)
        self.clock.advance(1)
        return self.successResultOf(answer)

    def test_the_right_password(self) -> None:
        """At once, and the name is the one of the users file, whatever case the client writes."""
        self.assertEqual(self.successResultOf(self.ask("Alice", b"a")), "alice")
        self.assertEqual(self.heard.results, [LoginResult.ACCEPTED])

    def test_refusals_are_one(self) -> None:
        """A wrong password, a name that nobody has and the right password to act as somebody else get the same reply at the same time."""
        for given, result in (
            (("alice", b"x"), LoginResult.CREDENTIALS),
            (("nobody", b"x"), LoginResult.CREDENTIALS),
            (("alice", b"a", "192.0.2.1", "bob"), LoginResult.IDENTITY),
        ):
            answer = self.ask(*given)
            self.clock.advance(0.999)
            self.assertNoResult(answer)
            self.clock.advance(0.001)
            self.assertIs(self.successResultOf(answer), WRONG)
            self.assertEqual(self.heard.results[-1], result)
        self.assertEqual(len(self.cluster.attempts), 5)  # two pairs, two names, one address

    def test_refusals_keep_the_beat(self) -> None:
        """However long the check took, a refusal leaves a whole number of seconds after the question."""
        for took in (0.03, 0.3, 0.97, 1.4):
            self.accounts.held = []
            answers: list[Any] = []
            self.ask("alice", b"x").addCallback(answers.append)
            asked = self.clock.seconds()
            self.clock.advance(took)
            self.accounts.held[0].callback(None)
            while not answers:
                self.clock.advance(0.001)
            self.assertLess((self.clock.seconds() - asked) % 1.0, 0.002)
            self.assertIs(answers[0], WRONG)

    def test_as_oneself(self) -> None:
        """The identity to act as may be the user's own, in any case (RFC 4616 2)."""
        self.assertEqual(self.login("alice", b"a", authorization="ALICE"), "alice")

    def test_held_back(self) -> None:
        """After the free failures the pair is refused unseen, the right password too, on every node; when the wait is over
        the right one passes and clears the count."""
        for _ in range(PAIR.free + 1):
            self.assertIs(self.login("alice", b"x"), WRONG)
        self.assertEqual(self.heard.shuts, [("pair 192.0.2.1 alice", PAIR.first_ms / 1000)])
        seen = len(self.accounts.checked)
        for node in (self.check, self.node()):
            self.assertIs(self.login("alice", b"a", node=node), HELD_BACK)
        self.assertEqual(len(self.accounts.checked), seen)
        self.assertEqual(self.heard.results[-1], LoginResult.BACKOFF)
        self.assertEqual(self.login("alice", b"a", "192.0.2.2"), "alice")
        self.assertEqual(self.login("bob", b"b"), "bob")
        self.clock.advance(PAIR.first_ms / 1000)
        self.assertEqual(self.login("alice", b"a"), "alice")
        self.assertIs(self.login("alice", b"x"), WRONG)
        self.assertEqual(self.login("alice", b"a"), "alice")

    def test_names_that_nobody_has_are_held_back_alike(self) -> None:
        """The back-off does not tell who exists: the story of a missing user is that of one who is there."""
        stories = []
        for name, address in (("alice", "192.0.2.1"), ("nobody", "192.0.2.2")):
            stories.append([self.login(name, b"%d" % n, address) for n in range(PAIR.free + 4)])
        self.assertEqual(*stories)
        self.assertIn(HELD_BACK, stories[0])

    def test_case_is_no_new_name(self) -> None:
        """Guesses at ALICE, Alice and alice are guesses at one user."""
        for name in ("alice", "ALICE", "Alice", "aLICE", "alICE"):
            self.login(name, b"x")
        self.assertIs(self.login("ALIce", b"a"), HELD_BACK)

    def test_an_ipv6_network_is_one_client(self) -> None:
        """Each guess from another address of the same /64: held back as one."""
        for number in range(PAIR.free + 1):
            self.login("alice", b"x", f"2001:db8::{number:x}")
        self.assertIs(self.login("alice", b"a", "2001:db8::ffff:1"), HELD_BACK)
        self.assertEqual(self.login("alice", b"a", "2001:db8:0:1::1"), "alice")

    def test_strangers_do_not_lock_the_user_out(self) -> None:
        """Guesses from everywhere: a stranger waits, and the user gets in where the user got in before, again and again."""
        self.assertEqual(self.login("alice", b"a"), "alice")
        for number in range(STEPS["user"].free + 3):
            self.ask("alice", b"x", f"198.51.100.{number}")
        self.assertIs(self.login("alice", b"a", "203.0.113.5"), HELD_BACK)
        self.assertEqual(self.login("alice", b"a"), "alice")
        self.assertEqual(self.login("alice", b"a", node=self.node()), "alice")

    def test_an_own_account_does_not_clear_the_address(self) -> None:
        """Somebody with an account logs in between guesses at others: the guesses still add up."""
        for number in range(STEPS["address"].free + 1):
            self.login(f"user{number}", b"x")
            self.assertEqual(self.login("bob", b"b"), "bob")
        self.assertIs(self.login("another", b"x"), HELD_BACK)
        self.assertEqual(self.login("bob", b"b"), "bob")

    def test_a_success_is_noted_once_an_hour(self) -> None:
        """Logging in again and again costs one question each and one write an hour; after a failure the next success is noted again."""
        for _ in range(5):
            self.login("alice", b"a")
        self.assertEqual((self.attempts.count("wait"), self.attempts.count("succeeded")), (5, 1))
        self.login("alice", b"x")
        self.login("alice", b"a")
        self.assertEqual(self.attempts.count("succeeded"), 2)
        self.clock.advance(3600)
        self.login("alice", b"a")
        self.assertEqual(self.attempts.count("succeeded"), 3)

    def test_without_the_store(self) -> None:
        """Nobody gets in, right or wrong, and nobody's password is looked at."""
        self.cluster.down = True
        for password in (b"a", b"x"):
            self.assertIs(self.successResultOf(self.ask("alice", password)), AWAY)
        self.assertEqual(self.accounts.checked, [])
        self.assertEqual(self.heard.results, [LoginResult.UNAVAILABLE] * 2)
        self.cluster.down = False
        self.assertEqual(self.login("alice", b"a"), "alice")

    def test_a_failure_that_is_not_counted(self) -> None:
        """The store goes away between question and count: 454, the same for a wrong name and a wrong password."""
        self.patch(self.attempts._store, "failed", lambda _subjects: fail(QueueUnavailable("gone")))
        self.assertIs(self.login("alice", b"x"), AWAY)
        self.assertIs(self.login("nobody", b"x"), AWAY)

    def test_a_note_that_is_lost(self) -> None:
        """Who was let in stays in, and the next success is noted again."""
        self.attempts.losing.add("succeeded")
        self.assertEqual(self.login("alice", b"a"), "alice")
        self.attempts.losing.clear()
        self.login("alice", b"a")
        self.assertEqual(self.attempts.count("succeeded"), 2)

    def test_too_many_checks(self) -> None:
        """454 at once; it is nobody's failure."""
        self.accounts.trouble = TooManyChecks()
        self.assertIs(self.successResultOf(self.ask("alice", b"a")), BUSY)
        self.assertEqual(self.attempts.count("failed"), 0)
        self.assertEqual(self.heard.results, [LoginResult.BUSY])

    def test_a_check_that_breaks(self) -> None:
        """A fault of ours is 454 and told in the log, without the password; the client's turn is free again."""
        self.accounts.trouble = ZeroDivisionError("broken")
        for _ in range(CHECKS_PER_CLIENT + 1):
            self.assertIs(self.login("alice", b"hunter2"), AWAY)
        logged = self.flushLoggedErrors(ZeroDivisionError)
        self.assertEqual(len(logged), CHECKS_PER_CLIENT + 1)
        self.assertNotIn("hunter2", logged[0].getTraceback())

    def test_an_account_that_goes_during_the_check(self) -> None:
        """The password was right, but the user is there no more: refused as any other."""
        self.accounts.held = []
        answer = self.ask("alice", b"a")
        del self.accounts.passwords["alice"]
        self.accounts.held[0].callback(None)
        self.clock.advance(1)
        self.assertIs(self.successResultOf(answer), WRONG)

    def test_many_guesses_at_once(self) -> None:
        """A hundred sessions of one client guess at the same moment: a few are looked at together, the rest are refused unseen."""
        self.accounts.held = []
        answers = [self.ask("alice", b"%d" % number) for number in range(100)]
        while self.accounts.held:
            self.assertLessEqual(len(self.accounts.held), CHECKS_PER_CLIENT)
            held, self.accounts.held = self.accounts.held, []
            for gate in held:
                gate.callback(None)
            for _ in range(100):
                self.clock.advance(0)
        self.clock.advance(1)
        replies = [self.successResultOf(answer) for answer in answers]
        self.assertLessEqual(len(self.accounts.checked), PAIR.free + CHECKS_PER_CLIENT)
        self.assertEqual(replies.count(WRONG), len(self.accounts.checked))
        self.assertEqual(replies.count(HELD_BACK), 100 - len(self.accounts.checked))

    def test_one_client_does_not_take_anothers_turn(self) -> None:
        """While one client's checks are slow, another's is looked at."""
        self.accounts.held = []
        for number in range(20):
            self.ask(f"user{number}", b"x").addErrback(lambda _: None)
        self.assertEqual(len(self.accounts.held), CHECKS_PER_CLIENT)
        self.ask("bob", b"b", "192.0.2.2")
        self.assertEqual(len(self.accounts.held), CHECKS_PER_CLIENT + 1)

    def test_thousands_that_fail_at_once(self) -> None:
        """The store goes away while very many logins of one client wait: each gets its 454, and none inside of another."""
        self.attempts.holding.add("wait")
        answers = [self.ask("alice", b"a") for _ in range(3000)]
        self.attempts.holding.clear()
        self.cluster.down = True
        for waiting, _ in self.attempts.held:
            waiting.errback(QueueUnavailable("gone"))
        for _ in range(3000):
            self.clock.advance(0)
        self.assertEqual({self.successResultOf(answer) for answer in answers}, {AWAY})

    def test_turns_are_forgotten(self) -> None:
        """Nothing is left of a client whose logins have ended."""
        turns = Turns(2, self.clock)
        waits = [turns.take("x") for _ in range(5)]
        self.assertEqual([wait is None for wait in waits], [True, True, False, False, False])
        for _ in range(5):
            turns.give_back("x")
            self.clock.advance(0)
        self.assertEqual((turns._busy, turns._waiting), ({}, {}))
        self.assertTrue(all(wait is None or wait.called for wait in waits))
