"""The pool of idle connections: what is reused, what gives way, who waits, and that the counts add up."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.mail import outcome
from relaycluster.mail.outcome import Delivered, Stage
from relaycluster.mail.reply import Reply
from relaycluster.net.outbound import ConnectFailed, OutboundConnection, Target, connect
from relaycluster.net.pool import ConnectionPool, PoolCounts
from relaycluster.policy.trouble import was_said_by_host
from tests.net.loopback import SETTINGS, LoopbackCase, transaction
from tests.net.scripted_server import ScriptedServer

A = Target("a.example", "192.0.2.1")
B = Target("b.example", "192.0.2.2")
C = Target("c.example", "192.0.2.3")
REFUSED = ConnectFailed(outcome.Deferred(Reply.of(451, "4.4.1", "refused"), Stage.CONNECT, "a.example"))


class FakeConnection:
    """As much of an outbound connection as the pool sees."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.usable = True
        self.is_gone = False
        self.is_closing = False
        self.transactions_done = 0
        self.silent_since: float | None = None
        self.given_up: Any = None
        self.on_closed: Any = None

    def serve(self, target: Target) -> None:
        self.target = target

    def close(self) -> None:
        self.usable = False
        self.is_closing = True

    def abort(self) -> None:
        self.go()

    def give_up(self, reply: Reply) -> None:
        self.silent_since = None
        self.given_up = reply
        self.go()

    def go(self) -> None:
        """The connection is gone now."""
        self.usable = False
        self.is_gone = True
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed(self)


class Network:
    """Connection attempts that a test lets succeed or fail."""

    def __init__(self) -> None:
        self.attempts: list[tuple[Target, Deferred[Any]]] = []
        self.made: list[FakeConnection] = []
        self.refuses = False

    def connect(self, target: Target) -> Deferred[Any]:
        attempt: Deferred[Any] = Deferred(lambda attempt: attempt.errback(REFUSED))
        self.attempts.append((target, attempt))
        if self.refuses:
            attempt.errback(REFUSED)
        return attempt

    def succeed(self) -> FakeConnection:
        """The oldest attempt succeeds."""
        target, attempt = self.attempts.pop(0)
        self.made.append(FakeConnection(target))
        attempt.callback(self.made[-1])
        return self.made[-1]

    def fail(self) -> None:
        """The oldest attempt fails."""
        _, attempt = self.attempts.pop(0)
        attempt.errback(REFUSED)


class PoolTests(SynchronousTestCase):
    """Against a network that does what the test says."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.network = Network()
        self.pool = ConnectionPool(self.clock, self.network.connect, most_connections=3, messages_per_connection=4)

    def acquired(self, target: Target) -> Any:
        """A connection that the network lets come about, or that was idle."""
        acquiring = self.pool.acquire(target)
        if not acquiring.called:
            self.network.succeed()
        return self.successResultOf(acquiring)

    def assert_counts(
        self, connecting: int = 0, busy: int = 0, idle: int = 0, closing: int = 0, waiting: int = 0
    ) -> None:
        self.assertEqual(self.pool.counts, PoolCounts(connecting, busy, idle, closing, waiting))

    def test_an_idle_connection_gives_its_limit_back(self) -> None:
        """The limit's place is needed elsewhere: the one that was idle longest ends, those of other limits stay."""
        targets = [evolve(A, limit="L"), evolve(B, limit="L"), C]
        for target in targets:
            self.pool.acquire(target)
        made = [self.network.succeed() for _ in targets]
        for connection in made:
            self.pool.release(connection)
            self.clock.advance(1)
        self.assertTrue(self.pool.retire_idle("L"))
        self.assertEqual([each.is_closing for each in made], [True, False, False])
        self.assertTrue(self.pool.retire_idle("L", every=True))
        self.assertFalse(self.pool.retire_idle("L"))
        self.assertEqual([each.is_closing for each in made], [True, True, False])
        self.assertIsNone(self.pool.take(targets[1]))

    def test_one_too_many_is_not_kept(self) -> None:
        """A connection for which the limit has no place any more ends when it is given back."""
        self.pool.is_surplus = lambda target: target == A
        for target in (A, B):
            self.pool.acquire(target)
        made = [self.network.succeed() for _ in range(2)]
        for connection in made:
            self.pool.release(connection)
        self.assertEqual([each.is_closing for each in made], [True, False])

    def test_what_hangs_gives_way(self) -> None:
        """Hosts that do not answer hold all places. Somebody waits: the one that was silent longest is given up as soon as it had its
        time, and its place is used; then the next. Nobody is given up while nobody waits."""
        answers: list[Any] = []
        for target in (A, B, C):
            self.pool.acquire(target).addErrback(answers.append)
            self.clock.advance(1)
        self.clock.advance(100)
        self.assertEqual(answers, [])
        waiting = [self.pool.acquire(evolve(A, host=f"good{n}.example")) for n in range(2)]
        self.assertEqual(len(answers), 2)
        self.assertEqual([each.value.outcome.reply.enhanced for each in answers], ["4.4.1", "4.4.1"])
        self.assertFalse(any(was_said_by_host(each.value.outcome) for each in answers))
        self.assertEqual(self.network.attempts[-1][0].host, "good1.example")
        self.assertEqual(self.pool.counts.waiting, 0)
        self.pool.acquire(B).addErrback(answers.append)
        self.assertEqual(len(answers), 3)  # C, too, had its time
        self.pool.acquire(B)
        self.assertEqual((len(answers), self.pool.counts.waiting), (3, 1))
        self.clock.advance(4.9)
        self.assertEqual(self.pool.counts.waiting, 1)
        self.assertEqual(answers[3:], [])
        waiting[0].addErrback(answers.append)
        self.clock.advance(0.2)
        self.assertEqual((len(answers), self.pool.counts.waiting), (4, 0))

    def test_a_host_that_takes_connections_and_no_mail_gives_way(self) -> None:
        """Three hosts were connected to, and owe the reply to MAIL. Somebody waits: whoever has been silent for longest is given up when it
        had its time. One that has the content, or has answered a transaction, is left alone."""
        connections = [self.acquired(target) for target in (A, B, C)]
        silent, sending, proven = connections
        silent.silent_since = self.clock.seconds()
        waiting = [self.pool.acquire(evolve(A, host=f"good{n}.example")) for n in range(3)]
        proven.transactions_done = 1
        proven.silent_since = 0.0
        self.clock.advance(4.9)
        self.assertIsNone(silent.given_up)
        self.clock.advance(0.2)
        self.assertEqual(silent.given_up.enhanced, "4.4.1")
        self.network.succeed()
        self.clock.advance(20)
        self.assertEqual([each.given_up for each in (sending, proven)], [None, None])
        sending.silent_since = self.clock.seconds()
        self.clock.advance(6.1)
        self.assertIsNotNone(sending.given_up)
        self.network.succeed()
        self.assertEqual([each.called for each in waiting], [True, True, False])
        self.assert_counts(busy=3, waiting=1)

    def test_counts(self) -> None:
        """A connection is in one state at a time."""
        acquiring = self.pool.acquire(A)
        self.assert_counts(connecting=1)
        self.network.succeed()
        self.assert_counts(busy=1)
        connection = self.successResultOf(acquiring)
        self.pool.release(connection)
        self.assert_counts(idle=1)
        self.clock.advance(10)
        self.assert_counts(closing=1)
        self.network.made[0].go()
        self.assert_counts()

    def test_the_last_used_is_reused_first(self) -> None:
        """So that those which are not needed grow old."""
        first, second = self.acquired(A), self.acquired(A)
        self.pool.release(first)
        self.pool.release(second)
        self.assertIs(self.pool.take(A), second)
        self.assertIs(self.acquired(A), first)
        self.assertIsNone(self.pool.take(A))

    def test_not_for_another_target(self) -> None:
        """Same host over another address, port, policy or source is another connection."""
        self.pool.release(self.acquired(A))
        self.assertIsNone(self.pool.take(B))
        self.assertIsNone(self.pool.take(Target(A.host, A.address, tls="none")))  # type: ignore[arg-type]
        self.assertIsNotNone(self.pool.take(Target(A.host, A.address)))

    def test_other_names_of_the_same_host_share(self) -> None:
        """A provider with a name for each customer: what stands serves them all, in the name of whom it serves, also whoever waits."""
        one, other = Target("one.example", "192.0.2.9"), Target("other.example", "192.0.2.9")
        connection = self.acquired(one)
        self.pool.release(connection)
        self.assertIs(self.pool.take(other), connection)
        self.assertEqual(connection.target, other)
        self.acquired(A)
        self.acquired(A)
        waiting = self.pool.acquire(one)
        self.pool.release(connection)
        self.assertIs(self.successResultOf(waiting), connection)
        self.assertEqual(connection.target, one)

    def test_a_verified_name_is_its_own(self) -> None:
        """A certificate that was held against one name says nothing of another."""
        one, other = (Target(name, "192.0.2.9", tls="verify") for name in ("one.example", "other.example"))  # type: ignore[arg-type]
        self.pool.release(self.acquired(one))
        self.assertIsNone(self.pool.take(other))

    def test_idle_time(self) -> None:
        """Each connection has its own ten seconds, from when it was given back, over one timer."""
        first, second = self.acquired(A), self.acquired(B)
        self.pool.release(first)
        self.clock.advance(4)
        self.pool.release(second)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(5.9)
        self.assertFalse(first.is_closing)
        self.clock.advance(0.1)
        self.assertTrue(first.is_closing)
        self.assertFalse(second.is_closing)
        self.clock.advance(3.9)
        self.assertFalse(second.is_closing)
        self.clock.advance(0.1)
        self.assertTrue(second.is_closing)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_use_begins_the_idle_time_anew(self) -> None:
        """A connection in steady use never grows old."""
        connection = self.acquired(A)
        for _ in range(5):
            self.pool.release(connection)
            self.clock.advance(6)
            self.assertIs(self.pool.take(A), connection)

    def test_messages_per_connection(self) -> None:
        """The pool's number, or the target's own."""
        connection = self.acquired(A)
        connection.transactions_done = 3
        self.pool.release(connection)
        connection = self.acquired(A)
        connection.transactions_done = 4
        self.pool.release(connection)
        self.assertTrue(connection.is_closing)
        connection = self.acquired(B)
        connection.transactions_done = 2
        self.pool.release(connection, 2)
        self.assertTrue(connection.is_closing)

    def test_unusable_connections_are_not_kept(self) -> None:
        """Not when they are given back, and not when they broke while idle."""
        connection = self.acquired(A)
        connection.usable = False
        self.pool.release(connection)
        self.assert_counts(closing=1)
        connection = self.acquired(B)
        self.pool.release(connection)
        connection.usable = False  # 421, and the socket is about to close
        self.assertIsNone(self.pool.take(B))
        self.assert_counts(closing=2)

    def test_idle_connection_that_the_server_closes(self) -> None:
        """It is forgotten at once."""
        connection = self.acquired(A)
        self.pool.release(connection)
        connection.go()
        self.assert_counts()
        self.assertIsNone(self.pool.take(A))

    def test_busy_connection_that_is_lost(self) -> None:
        """Its place is free at once; giving it back later does nothing."""
        connection = self.acquired(A)
        connection.go()
        self.assert_counts()
        self.pool.release(connection)
        self.assert_counts()

    def test_the_longest_idle_gives_way(self) -> None:
        """When all places are taken, for another target."""
        first, second, third = self.acquired(A), self.acquired(B), self.acquired(A)
        for connection in (second, first, third):
            self.pool.release(connection)
        self.acquired(C)
        self.assertTrue(second.is_closing)
        self.assert_counts(busy=1, idle=2, closing=1)

    def test_waiting_in_turn(self) -> None:
        """With all places busy, who asks waits: first come, first served, with what was given back when it fits."""
        first, second, third = self.acquired(A), self.acquired(A), self.acquired(A)
        one, two = self.pool.acquire(A), self.pool.acquire(B)
        self.assert_counts(busy=3, waiting=2)
        self.pool.release(first)
        self.assertIs(self.successResultOf(one), first)
        self.pool.release(second)
        self.assertTrue(second.is_closing)
        self.assert_counts(connecting=1, busy=2, closing=1)
        self.assertEqual(self.network.succeed().target, B)
        self.assertEqual(self.successResultOf(two).target, B)
        third.go()
        self.assert_counts(busy=2, closing=1)

    def test_a_lost_connection_and_a_failed_attempt_free_their_places(self) -> None:
        """Who waits gets the place."""
        first, _ = self.acquired(A), self.acquired(A)
        failing, one, two = self.pool.acquire(B), self.pool.acquire(C), self.pool.acquire(C)
        self.assert_counts(connecting=1, busy=2, waiting=2)
        self.network.fail()
        self.failureResultOf(failing, ConnectFailed)
        self.assert_counts(connecting=1, busy=2, waiting=1)
        first.go()
        self.assert_counts(connecting=2, busy=1)
        self.network.succeed()
        self.network.succeed()
        self.assertEqual([self.successResultOf(each).target for each in (one, two)], [C, C])

    def test_many_waiting_whose_attempts_fail_at_once(self) -> None:
        """Each is told, however many there are."""
        held = [self.acquired(A) for _ in range(3)]
        waiting = [self.pool.acquire(B) for _ in range(2000)]
        self.network.refuses = True
        self.pool.release(held[0])
        for each in waiting:
            self.failureResultOf(each, ConnectFailed)
        self.assert_counts(busy=2, closing=1)

    def test_cancelled_while_waiting_and_while_connecting(self) -> None:
        """The place in the queue, or in the count, is free again."""
        held = [self.acquired(A) for _ in range(3)]
        waiting = self.pool.acquire(B)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assert_counts(busy=3)
        waiting = self.pool.acquire(B)
        self.pool.release(held[0])
        self.assert_counts(connecting=1, busy=2, closing=1)
        waiting.cancel()
        self.failureResultOf(waiting, ConnectFailed)
        self.assert_counts(busy=2, closing=1)

    def test_close(self) -> None:
        """Idle ones end, who waits or asks is turned away, busy ones end when given back; fires when all are gone."""
        idle, busy, lost = self.acquired(A), self.acquired(A), self.acquired(B)
        waiting = self.pool.acquire(C)
        self.pool.release(idle)
        self.assert_counts(connecting=1, busy=2, closing=1)
        closed = self.pool.close()
        self.failureResultOf(self.pool.acquire(A), ConnectFailed)
        self.network.succeed()
        self.failureResultOf(waiting, ConnectFailed)
        self.pool.release(busy)
        self.assertTrue(busy.is_closing)
        lost.go()
        self.assertNoResult(closed)
        for connection in self.network.made:
            connection.go()
        self.successResultOf(closed)
        self.successResultOf(self.pool.close())
        self.assert_counts()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_close_turns_waiting_ones_away(self) -> None:
        """And a cancelled wait for the end leaves the other one alone."""
        for _ in range(3):
            self.acquired(A)
        waiting = self.pool.acquire(B)
        closed, again = self.pool.close(), self.pool.close()
        self.failureResultOf(waiting, ConnectFailed)
        closed.cancel()
        self.failureResultOf(closed, CancelledError)
        self.pool.abort()
        self.successResultOf(again)

    def test_abort(self) -> None:
        """All are dropped, in whatever state they are."""
        self.acquired(A)
        self.pool.release(self.acquired(B))
        connecting = self.pool.acquire(C)
        closed = self.pool.close()
        self.pool.abort()
        self.failureResultOf(connecting, ConnectFailed)
        self.successResultOf(closed)
        self.assert_counts()


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["acquire", "release", "lose", "succeed", "fail", "cancel", "tick"]), st.integers(0, 5)
        ),
        max_size=60,
    )
)
def test_the_pool_keeps_its_promise(steps: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order: never more than its connections, nobody waits while there is a place, and all
    that was asked for is answered in the end."""
    clock = Clock()
    network = Network()
    pool = ConnectionPool(clock, network.connect, most_connections=3, idle_seconds=5)
    asked: list[Deferred[Any]] = []
    held: list[FakeConnection] = []

    def take_up(result: Any) -> None:
        if isinstance(result, FakeConnection):
            held.append(result)

    for step, number in steps:
        if step == "acquire":
            acquiring = pool.acquire((A, B, C)[number % 3])
            acquiring.addCallbacks(take_up, lambda failure: failure.trap(ConnectFailed, CancelledError) and None)
            asked.append(acquiring)
        elif step == "release" and held:
            pool.release(held.pop(number % len(held)))  # type: ignore[arg-type]
        elif step == "lose" and network.made:
            network.made.pop(number % len(network.made)).go()
        elif step in ("succeed", "fail"):
            network.attempts = [attempt for attempt in network.attempts if not attempt[1].called]
            if network.attempts:
                network.succeed() if step == "succeed" else network.fail()
        elif step == "cancel" and asked:
            asked[number % len(asked)].cancel()
        elif step == "tick":
            clock.advance(number)
        counts = pool.counts
        assert counts.connecting + counts.busy + counts.idle <= 3
        assert not counts.waiting or counts.connecting + counts.busy == 3
        assert counts.busy == sum(not connection.is_gone for connection in held)
    closed = pool.close()
    pool.abort()
    assert closed.called
    assert all(each.called for each in asked)
    assert pool.counts == PoolCounts(0, 0, 0, 0, 0)
    assert clock.getDelayedCalls() == []


class LoopbackTests(LoopbackCase):
    """With real connections."""

    @inlineCallbacks
    def test_messages_share_connections(self) -> Any:
        """Ten messages, four a connection, are three connections, each ended with QUIT."""
        from twisted.internet import reactor

        server = ScriptedServer()
        target = self.listen(server)
        pool = ConnectionPool(reactor, lambda to: connect(reactor, to, SETTINGS), messages_per_connection=4)  # type: ignore[arg-type]
        for _ in range(10):
            connection: OutboundConnection = yield pool.acquire(target)
            (each,) = yield connection.send(transaction())
            self.assertIsInstance(each, Delivered)
            pool.release(connection)
        self.assertEqual(server.connections, 3)
        yield pool.close()
        self.assertEqual(pool.counts, PoolCounts(0, 0, 0, 0, 0))
        self.assertEqual(server.heard.count("QUIT"), 3)

    @inlineCallbacks
    def test_outcomes_name_the_host_that_was_meant(self) -> Any:
        """Over one connection mail goes to two names of a host, and each outcome has its own."""
        from twisted.internet import reactor

        server = ScriptedServer()
        target = self.listen(server)
        pool = ConnectionPool(reactor, lambda to: connect(reactor, to, SETTINGS))  # type: ignore[arg-type]
        for name in ("one.example", "other.example"):
            connection: OutboundConnection = yield pool.acquire(evolve(target, host=name))
            (each,) = yield connection.send(transaction())
            self.assertEqual(each.host, name)
            pool.release(connection)
        self.assertEqual(server.connections, 1)
        yield pool.close()
