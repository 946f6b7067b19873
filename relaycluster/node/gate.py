"""Why mail is not taken right now: one place for the edge's refusals and for `/readyz`."""

from __future__ import annotations

from collections.abc import Callable

from relaycluster.mail.reply import Reply

_NO_QUEUE = Reply.of(451, "4.3.0", "No mail can be queued now, try again later")
_FULL = Reply.of(452, "4.3.1", "The queue is full, try again later")


class Gate:
    """`redis_refusal` is empty while Redis is there and approved; `lease_valid` and `is_full` as their owners know it."""

    def __init__(
        self, redis_refusal: Callable[[], str], lease_valid: Callable[[], bool], is_full: Callable[[], bool]
    ) -> None:
        self._redis_refusal = redis_refusal
        self._lease_valid = lease_valid
        self._is_full = is_full
        self.draining = False
        self.started = False

    def refusal(self) -> Reply | None:
        """The reply that refuses a transaction now, None when mail is taken."""
        if self._redis_refusal():
            return _NO_QUEUE
        return _FULL if self._is_full() else None

    def reasons(self) -> list[str]:
        """Why a balancer should send clients elsewhere; nothing when it should not."""
        found = []
        if self.draining:
            found.append("draining: this node is stopping")
        if not self.started:
            found.append("starting: the listeners are not open yet")
        refusal = self._redis_refusal()
        if refusal:
            found.append(f"redis: {refusal}")
        elif not self._lease_valid():
            found.append("membership: this node's lease is not proven at the moment")
        if self._is_full():
            found.append("queue: Redis is above its memory watermark, new mail is answered 452")
        return found
