"""Failed logins of the whole cluster, kept in Redis: `IAttempts` (policy/backoff.py has the arithmetic)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from relaycluster.interfaces import IAttempts
from relaycluster.policy import backoff
from relaycluster.store.redis import keys
from relaycluster.store.redis.connection import Argument, RedisConnection
from relaycluster.store.redis.scripts import script


@implementer(IAttempts)
class RedisAttempts:
    """See `IAttempts`. All subjects lie under one tag, so that a login costs one call, and its failure another."""

    def __init__(self, connection: RedisConnection) -> None:
        self._redis = connection
        self._offset_ms = 0

    def set_clock(self, offset_ms: int) -> None:
        """A beat told: queue time is so far ahead of Redis TIME. Without it, a clock that is set back shuts nobody for longer, but
        failures are forgotten later."""
        self._offset_ms = offset_ms

    def wait(self, subjects: Sequence[str]) -> Deferred[float]:
        parts: list[Argument] = []
        for subject in subjects:
            parts += (keys.subject_digest(subject), backoff.steps_of(subject).most_ms)
        answer: Deferred[int] = self._run("attempt_wait", parts)
        return answer.addCallback(_seconds)

    def failed(self, subjects: Sequence[str]) -> Deferred[Sequence[float]]:
        parts: list[Argument] = []
        for subject in subjects:
            steps = backoff.steps_of(subject)
            parts += (keys.subject_digest(subject), steps.free, steps.first_ms, steps.most_ms, steps.forgive_ms)
            parts.append(steps.most_failures)
        answer: Deferred[list[int]] = self._run("attempt_failed", parts)
        return answer.addCallback(lambda waits: [_seconds(wait) for wait in waits])

    def succeeded(self, subjects: Sequence[str]) -> Deferred[None]:
        answer: Deferred[None] = self._run("attempt_proved", [keys.subject_digest(subject) for subject in subjects])
        return answer

    def _run(self, name: str, parts: Sequence[Argument]) -> Deferred[Any]:
        return self._redis.run(script(name), keys.ATTEMPTS, self._offset_ms, backoff.PROVED_MS, *parts)


def _seconds(milliseconds: int) -> float:
    return milliseconds / 1000
