"""Accounts: who is let in, how much work an answer is, and what a changed file changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import SynchronousTestCase, TestCase

from relaycluster.interfaces import FileTrouble
from relaycluster.node.accounts import Accounts, CheckSettings, Decoys, TooManyChecks
from relaycluster.node.passwords import PasswordHash
from relaycluster.node.users_file import User
from relaycluster.policy.account import Account


def cheap(password: str, passes: int = 1) -> str:
    """A hash of the least cost that is accepted."""
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    made = Argon2id(salt=b"somesalt", length=16, iterations=passes, lanes=1, memory_cost=8)
    return made.derive_phc_encoded(password.encode())


class HeldThreads:
    """A pool and the reactor's side of it: work is done when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.worked: list[str] = []

    def callInThreadWithCallback(self, done: Callable[[bool, Any], None], work: Any, *given: Any) -> None:
        def run() -> None:
            self.worked.append(work.__self__.text)
            try:
                result = work(*given)
            except Exception:
                done(False, Failure())
            else:
                done(True, result)

        self.waiting.append(run)

    def callFromThread(self, call: Callable[..., None], *given: Any) -> None:
        call(*given)

    def work(self) -> int:
        """Do all that waits; how much it was."""
        waiting, self.waiting = self.waiting, []
        for run in waiting:
            run()
        return len(waiting)


class AccountsTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.threads = HeldThreads()
        self.settings = CheckSettings(waiting=3, remembered_seconds=300.0, remembered=2)
        self.accounts = self.make()
        self.path = Path(self.mktemp())
        self.path.write_text(f"alice:{cheap('a')}:class=bulk\nbob:{cheap('b', 2)}\ncarol:!{cheap('c')}\n")
        self.accounts.load(str(self.path))

    def make(self) -> Accounts:
        threads: Any = self.threads
        return Accounts(threads, self.clock, threads, b"k" * 32, self.settings)

    def check(self, name: str, password: bytes) -> tuple[bool, int]:
        """The answer, and how many hashes it took."""
        answer = self.accounts.check(name, password)
        work = self.threads.work()
        return self.successResultOf(answer), work

    def test_right_and_wrong(self) -> None:
        """The user's password, in whatever case the name is written, and no other; one hash each, also for who is not there, who is shut out, and
        for a guess at the password of the hash that stands in for a missing one."""
        self.assertEqual(self.check("Alice", b"a"), (True, 1))
        self.assertEqual(self.check("bob", b"a"), (False, 1))
        self.assertEqual(self.check("carol", b"c"), (False, 1))
        for name in ("", "nobody", "al", "x" * 9000, "\udcff"):
            for password in (b"a", b"b", b"c"):
                self.assertEqual(self.check(name, password), (False, 1))

    def test_what_is_no_password(self) -> None:
        """Empty, with a NUL, endless: wrong without work, whether or not there is such a user."""
        for name in ("alice", "nobody"):
            for password in (b"", b"a\0", b"a" * 1025):
                self.assertEqual(self.check(name, password), (False, 0))

    def test_account(self) -> None:
        """What a user may do; nothing for who is not there or is shut out."""
        account = self.accounts.account("ALICE")
        assert account is not None
        self.assertEqual(account.name, "alice")
        self.assertIsNone(self.accounts.account("carol"))
        self.assertIsNone(self.accounts.account("nobody"))

    def test_a_success_is_remembered_for_a_while(self) -> None:
        """The same password is not worked on again until the time has passed; a wrong one always is."""
        self.assertEqual(self.check("alice", b"a"), (True, 1))
        self.clock.advance(299)
        self.assertEqual(self.check("alice", b"a"), (True, 0))
        self.assertEqual(self.check("alice", b"x"), (False, 1))
        self.assertEqual(self.check("alice", b"x"), (False, 1))
        self.clock.advance(2)
        self.assertEqual(self.check("alice", b"a"), (True, 1))

    def test_what_is_remembered_is_bounded(self) -> None:
        """The oldest goes when there is no room, and holds no password."""
        self.path.write_text("".join(f"user{n}:{cheap('hunter2')}\n" for n in range(3)))
        self.accounts.load(str(self.path))
        for number in range(3):
            self.check(f"user{number}", b"hunter2")
        self.assertEqual([self.check(f"user{n}", b"hunter2")[1] for n in (2, 1)], [0, 0])
        self.assertEqual(self.check("user0", b"hunter2"), (True, 1))
        self.assertNotIn("hunter2", repr(vars(self.accounts)))

    def test_another_process_remembers_otherwise(self) -> None:
        """What is remembered is under the process's own secret."""
        self.check("alice", b"a")
        marks = set(self.accounts._remembered)
        threads: Any = self.threads
        other = Accounts(threads, self.clock, threads, b"K" * 32, self.settings)
        other.load(str(self.path))
        answer = other.check("alice", b"a")
        self.threads.work()
        self.assertTrue(self.successResultOf(answer))
        self.assertFalse(marks & set(other._remembered))

    def test_a_changed_file(self) -> None:
        """A new password holds at once and the old one no more, though it was remembered; who is removed or shut is out; others need not be
        checked again."""
        for name, password in (("alice", b"a"), ("bob", b"b")):
            self.assertEqual(self.check(name, password), (True, 1))
        self.path.write_text(f"alice:{cheap('new')}\nbob:{cheap('b', 2)}\n")
        self.accounts.load(str(self.path))
        self.assertEqual(self.check("alice", b"a"), (False, 1))
        self.assertEqual(self.check("bob", b"b"), (True, 0))
        self.path.write_text(f"alice:{cheap('new')}\nbob:!{cheap('b', 2)}\n")
        self.accounts.load(str(self.path))
        self.assertEqual(self.check("bob", b"b"), (False, 1))
        self.assertEqual(self.check("alice", b"new"), (True, 1))
        self.accounts.clear()
        self.assertEqual(self.check("alice", b"new"), (False, 1))
        self.assertIsNone(self.accounts.account("alice"))

    def test_a_file_that_changes_during_the_check(self) -> None:
        """The password was exchanged while it was worked on: it does not pass any more."""
        answer = self.accounts.check("alice", b"a")
        self.path.write_text(f"alice:{cheap('new')}\n")
        self.accounts.load(str(self.path))
        self.threads.work()
        self.assertFalse(self.successResultOf(answer))

    def test_a_wrong_file_changes_nothing(self) -> None:
        """The users of before stay, and the trouble names the line."""
        self.path.write_text(f"alice:{cheap('new')}\nnonsense\n")
        with self.assertRaises(FileTrouble) as caught:
            self.accounts.load(str(self.path))
        self.assertEqual(caught.exception.line, 2)
        self.assertEqual(self.check("alice", b"a"), (True, 1))

    def test_the_same_question_at_once_is_worked_on_once(self) -> None:
        """Fifty sessions of one client with one password cost one hash, right or wrong."""
        for password, right in ((b"a", True), (b"x", False)):
            answers = [self.accounts.check("alice", password) for _ in range(50)]
            self.assertEqual(self.threads.work(), 1)
            self.assertEqual({self.successResultOf(answer) for answer in answers}, {right})
        self.assertEqual(self.accounts.waiting, 0)

    def test_too_many_at_once(self) -> None:
        """The queue is bounded: one more is refused at once, without work; what was remembered still passes; then there is room again."""
        self.check("alice", b"a")
        held = [self.accounts.check("bob", b"%d" % n) for n in range(3)]
        self.failureResultOf(self.accounts.check("bob", b"b"), TooManyChecks)
        self.failureResultOf(self.accounts.check("nobody", b"b"), TooManyChecks)
        self.assertTrue(self.successResultOf(self.accounts.check("alice", b"a")))
        self.assertEqual(self.threads.work(), 3)
        self.assertEqual([self.successResultOf(each) for each in held], [False] * 3)
        self.assertEqual(self.check("bob", b"b"), (True, 1))

    def test_a_check_that_breaks(self) -> None:
        """It fails for all who wait for it, and blocks nobody after it."""
        self.patch(PasswordHash, "verify", lambda _self, _password: 1 // 0)
        answers = [self.accounts.check("alice", b"a") for _ in range(2)]
        self.threads.work()
        for answer in answers:
            self.failureResultOf(answer, ZeroDivisionError)
        self.assertEqual(self.accounts.waiting, 0)

    def test_decoys(self) -> None:
        """A missing name always costs the same hash, on every node; all kinds of hashes stand in for some; one more user changes
        few of them."""
        hashes = [cheap("x", passes) for passes in (1, 2, 3)]
        users = {f"user{n}": User(Account(f"user{n}"), PasswordHash.read(hashes[n % 3])) for n in range(30)}
        here, there = Decoys(users), Decoys(dict(reversed(users.items())))
        names = [f"nobody{n}" for n in range(300)]
        costs = [here.of(name).text for name in names]
        self.assertEqual(costs, [there.of(name).text for name in names])
        self.assertEqual(set(costs), set(hashes))
        more = Decoys({**users, "another": User(Account("another"), PasswordHash.read(hashes[0]))})
        self.assertTrue(sum(more.of(name).text != cost for name, cost in zip(names, costs, strict=True)) < 60)

    def test_the_first_user_is_not_told_by_time(self) -> None:
        """Without any users a check costs what a hash of ours costs."""
        self.accounts.clear()
        answer = self.accounts.check("nobody", b"x")
        self.threads.work()
        self.assertFalse(self.successResultOf(answer))
        made = PasswordHash.make(b"x", b"s" * 16).text
        self.assertEqual(self.threads.worked[-1].split("$")[:4], made.split("$")[:4])


class RealThreadsTest(TestCase):
    async def test_in_threads(self) -> None:
        """Checks run beside the reactor's thread, and their answers come back to it."""
        pool = ThreadPool(0, 2)
        pool.start()
        self.addCleanup(pool.stop)
        here, seen = threading.get_ident(), []
        real = PasswordHash.verify

        def verify(stored: PasswordHash, password: bytes) -> bool:
            seen.append(threading.get_ident())
            return real(stored, password)

        self.patch(PasswordHash, "verify", verify)
        accounts = Accounts(reactor, reactor, pool, b"k" * 32)  # type: ignore[arg-type]
        path = Path(self.mktemp())
        path.write_text(f"alice:{PasswordHash.make(b'a', b's' * 16).text}\n")
        accounts.load(str(path))
        asked = [("alice", b"a"), ("alice", b"x"), ("nobody", b"a")]
        answers: list[Deferred[bool]] = [accounts.check(name, password) for name, password in asked]
        self.assertEqual([await answer for answer in answers], [True, False, False])
        self.assertEqual(threading.get_ident(), here)
        self.assertEqual(len(seen), 3)
        self.assertNotIn(here, seen)
