"""The account of a scenario, as in Jepsen: every id that was answered 250, minus delivered, bounced and queued, is none.

And each duplicate carries its mark: an event `possible_duplicate` for its queue id in some node's log.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable

from attrs import frozen

from tests.support.load import Load, Refused
from tests.support.processes import PATIENCE, Impatient, Process, wait_until
from tests.support.sink import Received, Sink

MOST_SHOWN = 10


@frozen
class Account:
    """What became of a load. Pairs are (load id, recipient)."""

    accepted: frozenset[tuple[str, str]]
    delivered: Counter[tuple[str, str]]
    bounced: frozenset[tuple[str, str]]
    refused_but_delivered: frozenset[tuple[str, str]]
    damaged: frozenset[str]
    foreign: frozenset[tuple[str, str]]
    queue_ids: dict[str, str]  # load id → queue id

    @property
    def missing(self) -> frozenset[tuple[str, str]]:
        """Answered 250, and neither delivered nor bounced: still queued, or lost."""
        return frozenset(pair for pair in self.accepted if pair not in self.delivered and pair not in self.bounced)

    @property
    def duplicates(self) -> dict[tuple[str, str], int]:
        """Delivered more than once, and how often."""
        return {pair: times for pair, times in self.delivered.items() if times > 1}

    def unmarked(self, marked: Iterable[str]) -> dict[tuple[str, str], int]:
        """Duplicates whose queue id is not among `marked` (message ids of `possible_duplicate` events)."""
        known = set(marked)
        return {pair: times for pair, times in self.duplicates.items() if self.queue_ids.get(pair[0]) not in known}

    def explain(self, pairs: Iterable[tuple[str, str]]) -> list[str]:
        """The first few pairs with their queue ids, for the report."""
        return [
            f"{load_id} {recipient} {self.queue_ids.get(load_id, '?')}"
            for load_id, recipient in list(pairs)[:MOST_SHOWN]
        ]


def account(loads: Iterable[Load], received: Iterable[Received]) -> Account:
    """Set what was answered against what arrived."""
    accepted: set[tuple[str, str]] = set()
    refused: set[tuple[str, str]] = set()
    submitted: set[tuple[str, str]] = set()
    senders: dict[str, list[tuple[str, str]]] = {}
    queue_ids: dict[str, str] = {}
    for load in loads:
        for sent in list(load.sent):
            pairs = [(sent.load_id, recipient) for recipient in sent.recipients]
            submitted.update(pairs)
            senders[sent.sender] = pairs
            if isinstance(sent.answer, Refused):
                refused.update(pairs)
            elif hasattr(sent.answer, "queue_id"):
                accepted.update(pairs)
                queue_ids[sent.load_id] = sent.answer.queue_id
    delivered: Counter[tuple[str, str]] = Counter()
    bounced: set[tuple[str, str]] = set()
    damaged: set[str] = set()
    for message in received:
        if message.reverse_path == "" and set(message.recipients) <= senders.keys():
            # A notice to the sender that is the message's own. Which of its recipients failed stands in the notice;
            # loads that bounce have one recipient a message, or let all fail alike.
            for sender in message.recipients:
                bounced.update(senders[sender])
            continue
        if not message.intact:
            damaged.add(message.load_id or f"number {message.number}")
        delivered.update((message.load_id, recipient) for recipient in message.recipients)
        queue_ids.setdefault(message.load_id, message.queue_id)
    return Account(
        accepted=frozenset(accepted),
        delivered=delivered,
        bounced=frozenset(bounced),
        refused_but_delivered=frozenset(refused & delivered.keys()),
        damaged=frozenset(damaged),
        foreign=frozenset(delivered.keys() - submitted),
        queue_ids=queue_ids,
    )


def settle(
    loads: Iterable[Load], sink: Sink, *, timeout_seconds: float = 60.0, watched: Iterable[Process] = ()
) -> Account:
    """The account, when every accepted message was delivered or bounced.

    Raises AssertionError, naming some of the missing, when nothing has arrived for `timeout_seconds`: progress, not
    speed, is what is waited for.
    """
    loads = list(loads)
    watched = list(watched)
    while True:
        messages = sink.messages()
        found = account(loads, messages)
        if not found.missing:
            return found
        try:
            _wait_for_more(sink, len(messages), len(found.missing), timeout_seconds, watched)
        except AssertionError as error:
            raise AssertionError(
                f"{len(found.missing)} of {len(found.accepted)} accepted are neither delivered nor bounced, e.g. "
                f"{found.explain(sorted(found.missing))}; {error}"
            ) from None


def waits(load: Load, sink: Sink) -> list[float]:
    """Seconds from the answer to each message to its arrival, the shortest first."""
    answered = {load_id: sent.answered for load_id, sent in load.accepted().items()}
    return sorted(m.at - answered[m.load_id] for m in sink.messages() if m.load_id in answered)


def _wait_for_more(sink: Sink, start: int, wanted: int, timeout_seconds: float, watched: list[Process]) -> None:
    """Until `wanted` messages came beyond the `start` that were there, or some did and then none for a moment. Raises when none
    came at all."""
    last = start
    wait_until(lambda: len(sink.messages()) > start, "a further message", timeout_seconds, watched=watched)
    while last < (now := len(sink.messages())) < start + wanted:
        last = now
        with contextlib.suppress(Impatient):
            wait_until(lambda: len(sink.messages()) >= start + wanted, "all of them", 0.5 / PATIENCE, watched=watched)
