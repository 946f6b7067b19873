"""What was tried for the claims in our hands, packed for the queue, which keeps it with the outcome (mail/history.py)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import assert_never

from attrs import evolve

from relaycluster.interfaces import IQueue
from relaycluster.mail.address import Address
from relaycluster.mail.history import LONGEST_REPLY, NOWHERE, Attempt, Via, pack_attempt, pack_attempts
from relaycluster.mail.item import Claim
from relaycluster.mail.outcome import Deferred, Delivered, Failed, Outcome, Stage
from relaycluster.mail.reply import Reply
from relaycluster.net.target import Target

_FINAL_DOT = Stage.FINAL_DOT.value  # an enum's value costs a call

MOST_ATTEMPTS = 20
"""Of one claim so many attempts are kept: the first ones."""
MOST_CLAIMS = 5000
"""Of so many claims at once; a claim that went back untold does not stay for ever."""


@lru_cache(maxsize=4096)
def via_of(target: Target, tls: str) -> Via:
    """How a target was reached; `tls` is the version and the cipher, empty in clear."""
    return Via(
        target.host,
        f"[{target.address}]:{target.port}" if ":" in target.address else f"{target.address}:{target.port}",
        tls,
        target.source,
    )


class Tried:
    """Attempts of claims that have no outcome yet. Keeps nothing where the queue keeps no history."""

    def __init__(self, queue: IQueue) -> None:
        self._queue = queue
        self._of: dict[bytes, list[Attempt]] = {}

    def add(self, claim: Claim, via: Via, result: Outcome, seconds: float) -> None:
        """One attempt that was not the last, or not the plain way."""
        if not self._queue.traces:
            return
        if claim.token not in self._of and len(self._of) >= MOST_CLAIMS:
            del self._of[next(iter(self._of))]
        attempts = self._of.setdefault(claim.token, [])
        if len(attempts) < MOST_ATTEMPTS:
            attempts.append(self._attempt(result, via, seconds))

    def plain(self, claim: Claim, reply: Reply, via: Via, seconds: float) -> bytes:
        """Everybody has it: the history of a claim, with this last attempt. The hot path."""
        if not self._queue.traces:
            return b""
        before = self._of.pop(claim.token, None) if self._of else None
        attempt = Attempt(self._queue.now_ms(), via, _FINAL_DOT, "delivered", str(reply), seconds)
        last = pack_attempt(claim.item.id, attempt)
        return last if before is None else pack_attempts(claim.item.id, before) + last

    def settled(self, claim: Claim, pairs: Sequence[tuple[Address, Outcome]]) -> bytes:
        """The history of a claim that ends so; what the outcomes tell where no attempt was told."""
        if not self._queue.traces:
            return b""
        attempts = self._of.pop(claim.token, None)
        if not attempts:
            by_outcome: dict[Outcome, list[str]] = {}
            for who, result in pairs:
                by_outcome.setdefault(result, []).append(who.text)
            attempts = [
                self._attempt(
                    result,
                    Via(result.host) if result.host else NOWHERE,
                    0.0,
                    tuple(texts) if len(by_outcome) > 1 else (),
                )
                for result, texts in list(by_outcome.items())[:MOST_ATTEMPTS]
            ]
        return pack_attempts(claim.item.id, attempts)

    def not_tried(self, claim: Claim, pairs: Sequence[tuple[Address, Outcome]]) -> bytes:
        """The history of a claim that was looked at, and not tried for the reason that the outcomes give."""
        if not self._queue.traces or not pairs:
            return b""
        attempt = self._attempt(pairs[0][1], NOWHERE, 0.0)
        reply = f"not tried: {attempt.reply}"[:LONGEST_REPLY]
        return pack_attempt(claim.item.id, evolve(attempt, reply=reply))

    def _attempt(self, result: Outcome, via: Via, seconds: float, recipients: tuple[str, ...] = ()) -> Attempt:
        if isinstance(result, Delivered):
            stage, kind = Stage.FINAL_DOT, "delivered"
        elif isinstance(result, Deferred):
            stage, kind = result.stage, "deferred"
        elif isinstance(result, Failed):
            stage, kind = result.stage, "failed"
        else:
            assert_never(result)
        reply = str(result.reply)[:LONGEST_REPLY]
        return Attempt(self._queue.now_ms(), via, stage.value, kind, reply, seconds, recipients)
