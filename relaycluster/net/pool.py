"""Outbound connections that are kept for the next message to the same place, and how many there are in all.

No policy about domains lives here: who may send to what, how fast and over how many connections, the delivery node
decides before it asks. The pool keeps one promise: connecting, busy and idle connections together are never more than
`most_connections`. An idle one gives way when another target needs its place; when there is none, who asks waits his turn,
and hosts that do not answer are given up early, whether they take no connection or take one and then nothing, so that
they do not use up all places.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from operator import itemgetter

from attrs import frozen
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from relaycluster.mail import outcome
from relaycluster.mail.outcome import Stage
from relaycluster.mail.reply import Reply
from relaycluster.net.outbound import ConnectFailed, OutboundConnection, Target

SHARE_OF_CONNECTING = 0.25
"""While others wait for a place, hosts that have not answered yet may hold no more than this part of all places…"""
PATIENCE_SECONDS = 5.0
"""…and each gets at least so long."""
ANSWER_SECONDS = 1.0
"""A host that answers at all does so within this. A connection on which a reply in the first transaction takes longer counts as one that
is still being made."""

_REPLY_HANGS = Reply.of(451, "4.4.1", "The host did not answer in time, while others waited for the connection's place")
_REPLY_STOPPING = Reply.of(451, "4.3.2", "this node is stopping")


@frozen
class PoolCounts:
    """How many connections are in which state: being made, carrying mail, kept, ending. `waiting` are those who ask for a
    connection while there is no place for one."""

    connecting: int
    busy: int
    idle: int
    closing: int
    waiting: int


class ConnectionPool:
    """Connections by their target's place, the one used last is reused first: so the others grow old and go.

    `connect` makes a connection, as `net.outbound.connect` does. An idle connection is closed after `idle_seconds`, one
    that is given back after `messages_per_connection` transactions is not kept, nor is one for which `is_surplus` says that
    its limit has no place for it any more.
    """

    def __init__(
        self,
        clock: IReactorTime,
        connect: Callable[[Target], Deferred[OutboundConnection]],
        *,
        most_connections: int = 500,
        idle_seconds: float = 10.0,
        messages_per_connection: int = 100,
    ) -> None:
        self._clock = clock
        self._connect = connect
        self._most = most_connections
        self._idle_seconds = idle_seconds
        self._messages = messages_per_connection
        self._attempts: OrderedDict[Deferred[OutboundConnection], float] = OrderedDict()  # the longest under way first
        self._given_up: set[Deferred[OutboundConnection]] = set()
        self._connecting = 0
        self._busy: set[OutboundConnection] = set()
        self._idle: dict[tuple[object, ...], list[OutboundConnection]] = {}  # by place
        self._idle_since: OrderedDict[OutboundConnection, float] = OrderedDict()  # the longest idle first
        self._fresh: set[OutboundConnection] = set()  # those that may not have answered a transaction yet
        self._closing: set[OutboundConnection] = set()
        self._waiting: OrderedDict[Deferred[OutboundConnection | None], Target] = OrderedDict()
        self._is_serving = False
        self._timer: IDelayedCall | None = None
        self._pressing: IDelayedCall | None = None
        self._all_gone: Deferred[None] | None = None
        self.on_gone: Callable[[OutboundConnection], None] = lambda _connection: None
        self.is_surplus: Callable[[Target], bool] = lambda _target: False

    @property
    def counts(self) -> PoolCounts:
        """The connections as they stand."""
        return PoolCounts(
            self._connecting, len(self._busy), len(self._idle_since), len(self._closing), len(self._waiting)
        )

    def take(self, target: Target) -> OutboundConnection | None:
        """An idle connection to the target's place, or None. It is the caller's until `release`."""
        idle = self._idle.get(target.place)
        while idle:
            connection = idle.pop()
            del self._idle_since[connection]
            if not idle:
                del self._idle[target.place]
            if connection.usable:
                connection.serve(target)
                self._busy.add(connection)
                return connection
            self._retire(connection)
        return None

    def acquire(self, target: Target) -> Deferred[OutboundConnection]:
        """An idle connection to the target, or a new one, as soon as there is a place for it. It is the caller's until
        `release`. Fails with `ConnectFailed`, or as `connect` does, which may have reasons of its own. May be cancelled; it fails with
        `ConnectFailed` or `defer.CancelledError` then."""
        if self._all_gone is not None:
            return fail(ConnectFailed(outcome.Deferred(_REPLY_STOPPING, Stage.CONNECT, target.host)))
        connection = self.take(target)
        if connection is not None:
            return succeed(connection)
        if self._make_room():
            return self._open(target)

        def leave(turn: Deferred[OutboundConnection | None]) -> None:
            del self._waiting[turn]

        def my_turn(handed_over: OutboundConnection | None) -> Deferred[OutboundConnection]:
            return self._open(target) if handed_over is None else succeed(handed_over)

        turn: Deferred[OutboundConnection | None] = Deferred(leave)
        opened = turn.addCallback(my_turn)  # before anybody can have a turn: a place that is free is taken at once
        self._waiting[turn] = target
        if self._pressing is None:
            self._end_what_hangs()
        return opened

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for a place."""
        return bool(self._waiting)

    def retire_idle(self, limit: str, every: bool = False) -> bool:
        """End the connection under this limit that has been idle longest (or every one), since its place under the limit is needed.
        Whether there was one."""
        found = [connection for connection in self._idle_since if connection.target.limit == limit]
        for connection in found if every else found[:1]:
            self._forget_idle(connection)
            self._retire(connection)
        if found:
            self._serve_waiting()
        return bool(found)

    def release(self, connection: OutboundConnection, messages_per_connection: int | None = None) -> None:
        """Give a connection back, in whatever state it is. `messages_per_connection` takes the pool's place for
        targets with their own number."""
        if connection not in self._busy:
            return  # it was lost in the caller's hands
        self._busy.remove(connection)
        most = self._messages if messages_per_connection is None else messages_per_connection
        if (
            not connection.usable
            or connection.transactions_done >= most
            or self._all_gone is not None
            or self.is_surplus(connection.target)
        ):
            self._retire(connection)
        elif self._waiting:
            turn, target = next(iter(self._waiting.items()))
            if target.place == connection.target.place:
                del self._waiting[turn]
                connection.serve(target)
                self._busy.add(connection)
                turn.callback(connection)
                return
            self._retire(connection)
        else:
            self._keep(connection)
            return
        self._serve_waiting()

    def close(self) -> Deferred[None]:
        """Take no more. Idle connections end now, busy ones when they are given back; who waits is turned away. Fires
        when no connection is left. To have it sooner, call `abort` as well."""
        if self._all_gone is None:
            self._all_gone = Deferred()
        waiting, self._waiting = self._waiting, OrderedDict()
        for turn, target in waiting.items():
            turn.errback(ConnectFailed(outcome.Deferred(_REPLY_STOPPING, Stage.CONNECT, target.host)))
        while self._idle_since:
            self._retire(self._forget_oldest_idle())
        self._stop_timer()
        # Each caller gets its own: one that is cancelled must not take it from the others.
        all_gone: Deferred[None] = Deferred()
        self._all_gone.addCallback(lambda _: all_gone.callback(None) if not all_gone.called else None)
        self._look_whether_all_gone()
        return all_gone

    def abort(self) -> None:
        """Drop all connections now; what they carry is deferred."""
        for attempt in list(self._attempts):
            attempt.cancel()
        for connection in [*self._busy, *self._idle_since, *self._closing]:
            connection.abort()

    # Inside

    def _make_room(self) -> bool:
        """Whether one more connection may be made; an idle one ends for it if it must."""
        if self._connecting + len(self._busy) + len(self._idle_since) < self._most:
            return True
        if self._idle_since:
            self._retire(self._forget_oldest_idle())
            return True
        return False

    def _end_what_hangs(self) -> None:
        """Somebody waits for a place. While hosts that do not answer hold more than their share of the places, the one that has been
        silent longest is given up early; one that was asked just now gets its time."""
        self._stop_pressing()
        now = self._clock.seconds()
        while self._waiting:
            silent = self._silent()
            slow = sum(now - since >= ANSWER_SECONDS for _, since in silent)
            if self._connecting + slow <= self._most * SHARE_OF_CONNECTING:
                self._pressing = self._clock.callLater(ANSWER_SECONDS, self._end_what_hangs)
                return
            found: list[tuple[OutboundConnection | Deferred[OutboundConnection], float]]
            found = [*silent, *islice(self._attempts.items(), 1)]
            if not found:
                return  # all were given up
            hangs, since = min(found, key=itemgetter(1))
            left = since + PATIENCE_SECONDS - now
            if left > 0:
                self._pressing = self._clock.callLater(left, self._end_what_hangs)
                return
            if isinstance(hangs, Deferred):
                del self._attempts[hangs]
                self._given_up.add(hangs)
                hangs.cancel()
            else:
                hangs.give_up(_REPLY_HANGS)

    def _silent(self) -> list[tuple[OutboundConnection, float]]:
        """Busy connections to hosts that owe a reply in their first transaction, and since when."""
        self._fresh = {connection for connection in self._fresh if not connection.transactions_done}
        return [
            (connection, since)
            for connection in self._fresh & self._busy
            if (since := connection.silent_since) is not None
        ]

    def _stop_pressing(self) -> None:
        if self._pressing is not None and self._pressing.active():
            self._pressing.cancel()
        self._pressing = None

    def _open(self, target: Target) -> Deferred[OutboundConnection]:
        self._connecting += 1
        attempt = self._connect(target)
        if not attempt.called:
            self._attempts[attempt] = self._clock.seconds()
            if self._waiting and self._pressing is None:
                self._end_what_hangs()

        def opened(connection: OutboundConnection) -> OutboundConnection:
            self._attempts.pop(attempt, None)
            self._connecting -= 1
            connection.on_closed = self._gone
            if self._all_gone is not None:
                self._retire(connection)
                raise ConnectFailed(outcome.Deferred(_REPLY_STOPPING, Stage.CONNECT, target.host))
            self._busy.add(connection)
            self._fresh.add(connection)
            return connection

        def not_opened(failure: Failure) -> Failure:
            self._attempts.pop(attempt, None)
            self._connecting -= 1
            if attempt in self._given_up:
                self._given_up.discard(attempt)
                failure = Failure(ConnectFailed(outcome.Deferred(_REPLY_HANGS, Stage.CONNECT, target.host)))
            self._serve_waiting()
            self._look_whether_all_gone()
            return failure

        return attempt.addCallbacks(opened, not_opened)

    def _keep(self, connection: OutboundConnection) -> None:
        self._idle.setdefault(connection.target.place, []).append(connection)
        self._idle_since[connection] = self._clock.seconds()
        if self._timer is None:
            self._timer = self._clock.callLater(self._idle_seconds, self._look_at_idle)

    def _look_at_idle(self) -> None:
        """One timer for all: it fires when the longest idle connection would be too old, if it is still idle."""
        self._timer = None
        now = self._clock.seconds()
        while self._idle_since:
            left = next(iter(self._idle_since.values())) + self._idle_seconds - now
            if left > 0:
                self._timer = self._clock.callLater(left, self._look_at_idle)
                return
            self._retire(self._forget_oldest_idle())

    def _forget_oldest_idle(self) -> OutboundConnection:
        connection = next(iter(self._idle_since))
        self._forget_idle(connection)
        return connection

    def _forget_idle(self, connection: OutboundConnection) -> None:
        del self._idle_since[connection]
        idle = self._idle[connection.target.place]
        idle.remove(connection)
        if not idle:
            del self._idle[connection.target.place]

    def _retire(self, connection: OutboundConnection) -> None:
        """End a connection that is in none of the sets any more."""
        if not connection.is_gone:
            self._closing.add(connection)
            connection.close()

    def _gone(self, connection: OutboundConnection) -> None:
        """A connection is gone, whoever closed it, wherever it was."""
        self._closing.discard(connection)
        self._busy.discard(connection)
        self._fresh.discard(connection)
        if connection in self._idle_since:
            self._forget_idle(connection)
        self.on_gone(connection)
        self._serve_waiting()
        self._look_whether_all_gone()

    def _serve_waiting(self) -> None:
        if self._is_serving:
            return  # a turn that failed at once made room: the loop below sees it
        self._is_serving = True
        try:
            while self._waiting and self._make_room():
                turn, _ = self._waiting.popitem(last=False)
                turn.callback(None)
        finally:
            self._is_serving = False

    def _look_whether_all_gone(self) -> None:
        left = self._connecting + len(self._busy) + len(self._idle_since) + len(self._closing)
        if self._all_gone is not None and not self._all_gone.called and left == 0:
            self._all_gone.callback(None)

    def _stop_timer(self) -> None:
        self._stop_pressing()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
