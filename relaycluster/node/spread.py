"""A message goes to several domains, or its enqueue has no answer: what the queue is told, and how often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from attrs import evolve
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime

from relaycluster.interfaces import IQueue, QueueError, QueueFull
from relaycluster.mail import queue_id
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import Envelope
from relaycluster.mail.item import Item

REPEAT_SECONDS = 0.25
DEADLINE_SECONDS = 20.0
"""So long an enqueue is repeated; then the client hears 451. RFC 5321 4.5.3.2.6 gives it ten minutes of patience."""

T = TypeVar("T")


async def until_certain(clock: IReactorTime, step: Callable[[], Deferred[T]]) -> T:
    """The same again until it has an answer. Fails with `QueueFull` at once, with another `QueueError` after the deadline."""
    deadline = clock.seconds() + DEADLINE_SECONDS
    while True:
        try:
            return await step()
        except QueueFull:
            raise
        except QueueError:
            if clock.seconds() >= deadline:
                raise
        pause: Deferred[None] = Deferred()
        clock.callLater(REPEAT_SECONDS, pause.callback, None)
        await pause


async def fan_out(queue: IQueue, items: Sequence[Item]) -> None:
    """Enqueue every item of a message for several domains, then say that they are."""
    # All answers are waited for, so that none is left without an ear when one fails.
    results: list[tuple[bool, Any]] = await DeferredList(
        [queue.enqueue(item, b"", None) for item in items],
        consumeErrors=True,
    )
    for success, failure in results:
        if not success:
            raise failure.value
    if items:
        await queue.spread_done(queue_id.message_id(items[0].id))


def by_domain(envelope: Envelope) -> dict[str, Envelope]:
    """The envelope of each recipient domain: its recipients in the order in which they were given, each once, and what RCPT asked
    for them and for nobody else."""
    domains: dict[str, dict[str, Address]] = {}
    for recipient in envelope.recipients:
        domains.setdefault(recipient.domain, {}).setdefault(recipient.text, recipient)
    requests = envelope.requests
    return {
        domain: evolve(
            envelope,
            recipients=tuple(members.values()),
            requests={text: requests[text] for text in members if text in requests} if requests else requests,
        )
        for domain, members in domains.items()
    }
