"""The verbs that change the queue: each is one write that binds the whole cluster, and leaves an event with who and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from twisted.internet.defer import Deferred, FirstError, gatherResults

from relaycluster.cli.cluster import DONE, NOT_DONE, Answer, Cluster, QueueVerb, verb
from relaycluster.cli.queue_choice import choice_options, domain_name, is_chosen, one_line, some_time, wanted_of
from relaycluster.cli.queue_looking import unknown
from relaycluster.cli.words import moment, said, span, table
from relaycluster.config.values import parse_pattern
from relaycluster.interfaces import Operated, Shown
from relaycluster.policy.pause import Why
from relaycluster.policy.suspension import LIMIT, Suspension

MOST_PASSES = 10
SHOWN = 20

MEANINGS = {
    Operated.UNKNOWN: "not in the queue any more",
    Operated.LEASED: "in hand, being sent: hold it first, or wait for the end of the attempt",
    Operated.HELD: "held: release it first",
    Operated.BOUNCING: "bounced before, and about to be settled",
    Operated.CHANGED: "attempted meanwhile: try again",
    Operated.UNREADABLE: "queued by another release, which alone can change it",
}

Act = Callable[[Cluster, Shown, str], Awaitable[Operated]]

_reason = click.option(
    "--reason", default="", metavar="TEXT", callback=one_line, help="Why; for the event and the history."
)
_yes = click.option("--yes", is_flag=True, help="Do not ask.")


def _item_verb(name: str, help_text: str, done: str, act: Act, asks: bool = False) -> QueueVerb:
    """A verb that acts on items, named by their ids or chosen by options. `done` is the word for what happened."""

    async def body(
        cluster: Cluster, identifiers: Sequence[str], reason: str, yes: bool = False, **choice: Any
    ) -> Answer:
        results = await _act_on_all(cluster, identifiers, reason, yes or not asks, choice, act, name)
        return _report(results, done)

    body.__doc__ = help_text
    for option in (_reason, choice_options, click.argument("identifiers", metavar="[ID]...", nargs=-1)):
        body = option(body)
    if asks:
        body = _yes(body)
    return verb(name)(body)


async def _act_on_all(
    cluster: Cluster, identifiers: Sequence[str], reason: str, yes: bool, choice: dict[str, Any], act: Act, name: str
) -> dict[str, Operated]:
    if bool(identifiers) == is_chosen(choice):
        raise click.UsageError("name items by their ids, or choose them by options (--domain, --sender, …); not both")

    async def act_on(items: Sequence[Shown]) -> Iterable[tuple[str, Operated]]:
        answers = [Deferred.fromCoroutine(_one(cluster, each, reason, act)) for each in items]
        try:
            found = await gatherResults(answers, consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()
        return zip([each.item.id for each in items], found, strict=True)

    results: dict[str, Operated] = {}
    if identifiers:
        for identifier in identifiers:
            shown = await cluster.operator.show(identifier)
            results.update(await act_on(shown) if shown else [(identifier, Operated.UNKNOWN)])
        return results
    wanted = wanted_of(cluster, choice)
    if not yes:
        count = 0
        async for page in cluster.operator.pages(wanted):
            count += len(page)
        if count:
            click.confirm(f"{name} {count:,} items?", abort=True, err=True)
    # Nodes work meanwhile: what was in motion is found when all is looked through again, and so is what has come since.
    for _ in range(MOST_PASSES):
        results = {identifier: result for identifier, result in results.items() if result is Operated.DONE}
        before = len(results)
        async for page in cluster.operator.pages(wanted, results):
            found = await act_on(page)
            # What has left the queue is not among the chosen any more.
            results.update((identifier, result) for identifier, result in found if result is not Operated.UNKNOWN)
        if Counter(results.values())[Operated.DONE] == before:
            break
    return results


async def _one(cluster: Cluster, shown: Shown, reason: str, act: Act) -> Operated:
    return await act(cluster, shown, reason)


def _report(results: Mapping[str, Operated], done: str) -> Answer:
    counts = Counter(results.values())
    missed = [(identifier, result) for identifier, result in results.items() if result is not Operated.DONE]

    def show(console: Console) -> None:
        for identifier, result in missed[:SHOWN]:
            why = unknown(identifier) if result is Operated.UNKNOWN else f"{identifier}: {MEANINGS[result]}"
            console.print(why, soft_wrap=True)
        if len(missed) > SHOWN:
            console.print(f"… and {len(missed) - SHOWN:,} more that were not {done}")
        console.print(f"{counts[Operated.DONE]:,} {done}")

    entries = [{"id": identifier, "result": result.value} for identifier, result in results.items()]
    return Answer({"done": counts[Operated.DONE], "results": entries}, show, NOT_DONE if missed else DONE)


hold = _item_verb(
    "hold",
    """Keep items from being sent until they are released.

    Also out of the hands of a node that is sending: what that one still delivers counts, and the item is marked as
    perhaps sent before.
    """,
    "held",
    lambda cluster, shown, reason: cluster.operator.hold(shown.item.id, cluster.who, reason),
)
release = _item_verb(
    "release",
    """Let held items go: they are due at once.""",
    "released",
    lambda cluster, shown, reason: cluster.operator.release(shown.item.id, cluster.who, reason),
)
bounce = _item_verb(
    "bounce",
    """Give items up: they fail, and their senders get a notice with the reason.

    The node that owns the domain settles them, within a second or two.
    """,
    "bounced",
    lambda cluster, shown, reason: cluster.operator.bounce(shown.item.id, cluster.who, reason),
    asks=True,
)
delete = _item_verb(
    "delete",
    """Throw items away: nobody is told but the log.""",
    "deleted",
    lambda cluster, shown, reason: cluster.operator.delete(shown.item.id, cluster.who, reason),
    asks=True,
)


@verb("requeue")
@click.argument("identifiers", metavar="[ID]...", nargs=-1)
@choice_options
@click.option(
    "--reset", is_flag=True, help="As if it had never been tried: the schedule begins anew, the lifetime runs on."
)
@_reason
async def requeue(cluster: Cluster, identifiers: Sequence[str], reset: bool, reason: str, **choice: Any) -> Answer:
    """Try items now, not when their schedule says."""

    async def act(cluster: Cluster, shown: Shown, reason: str) -> Operated:
        return await cluster.operator.requeue(shown, reset, cluster.who, reason)

    return _report(await _act_on_all(cluster, identifiers, reason, True, choice, act, "requeue"), "requeued")


@verb("flush")
@click.argument("domains", metavar="DOMAIN...", nargs=-1, required=True)
@_reason
async def flush(cluster: Cluster, domains: Sequence[str], reason: str) -> Answer:
    """Make all that waits for domains due now, also out of a pause. Limits hold as ever."""
    moved = {}
    await cluster.suspensions.see((await cluster.operator.cluster()).snapshot.suspensions)
    table_of = cluster.config.routes()
    suspended = []
    for name in domains:
        domain = _domain(name)
        pause = (await cluster.operator.domain(domain)).pause
        moved[domain] = await cluster.operator.flush(domain, cluster.who, reason)
        limit = table_of.lookup(domain).limit_key(domain)
        found = cluster.suspensions.suspended(domain, limit)
        if found is not None:
            suspended.append((domain, found.subject))
        elif pause is not None and pause.why is Why.SUSPENDED:  # by its provider's name, which only DNS tells
            suspended.append((domain, pause.detail))

    def show(console: Console) -> None:
        for domain, count in moved.items():
            console.print(
                f"{domain}: {count:,} {'item is' if count == 1 else 'items are'} due now instead of later",
                soft_wrap=True,
            )
        for domain, subject in suspended:
            console.print(
                f"{domain} is suspended (by {said(subject)}): nothing is sent until it is resumed", soft_wrap=True
            )

    return Answer({"flushed": moved, "suspended": [domain for domain, _ in suspended]}, show)


def _domain(text: str) -> str:
    domain = domain_name(None, None, text)  # type: ignore[arg-type]
    assert isinstance(domain, str)
    return domain


def _subject(text: str, is_limit: bool) -> str:
    if is_limit or text.startswith(LIMIT):  # as they are listed
        return LIMIT + text.removeprefix(LIMIT)
    if not text.startswith("*"):
        return _domain(text)
    try:
        return parse_pattern(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _known(subject: str, cluster: Cluster) -> str:
    """The same; an error for a limit that the configuration does not know: it would keep nothing back."""
    names = cluster.config.routes().limit_names()
    if subject.startswith(LIMIT) and subject.removeprefix(LIMIT) not in names:
        raise click.BadParameter(
            f"no [[destination]] of the configuration has the limit {said(subject.removeprefix(LIMIT))!r}; there are: "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    return subject


_limit = click.option("--limit", "is_limit", is_flag=True, help="It is the name of a limit: a [[destination]]'s.")


@verb("suspend")
@click.argument("subject", metavar="[DOMAIN]", required=False, callback=one_line)
@_limit
@click.option(
    "--for", "seconds", metavar="DURATION", callback=some_time, help="15min, 4h; without, until it is resumed."
)
@_reason
async def suspend(cluster: Cluster, subject: str | None, is_limit: bool, seconds: float | None, reason: str) -> Answer:
    """Send nothing to a domain for now: DOMAIN, *.DOMAIN for its subdomains, * for all. Without DOMAIN: what is suspended.

    Mail is taken and queued as ever; what is being sent is finished.
    """
    if subject is None:
        return _suspensions(await cluster.suspensions.all(), cluster.queue.now_ms())
    name = _known(_subject(subject, is_limit), cluster)
    is_also_limit = name in cluster.config.routes().limit_names()
    made = await cluster.suspensions.suspend(name, seconds or 0.0, cluster.who, reason)
    until = f"until {moment(made.until_ms)}" if made.until_ms else "until it is resumed"

    def show(console: Console) -> None:
        console.print(f"{said(made.subject)} is suspended {until}", soft_wrap=True)
        if is_also_limit:
            console.print(f"that is the domain; all domains of the [[destination]] are --limit {name}", soft_wrap=True)

    return Answer(_suspension_json(made), show)


@verb("resume")
@click.argument("subject", metavar="DOMAIN", callback=one_line)
@_limit
@_reason
async def resume(cluster: Cluster, subject: str, is_limit: bool, reason: str) -> Answer:
    """End a suspension. Domains that were kept back come back within some seconds, not all at once."""
    name = _subject(subject, is_limit)
    done = await cluster.suspensions.resume(name, cluster.who, reason)
    others = [each.subject for each in await cluster.suspensions.all()] if not done else []

    def show(console: Console) -> None:
        if done:
            console.print(f"{said(name)} is resumed", soft_wrap=True)
        else:
            console.print(
                f"{said(name)} is not suspended; what is: {said(', '.join(others)) or 'nothing'}", soft_wrap=True
            )

    return Answer({"subject": name, "resumed": done, "suspended": others}, show, DONE if done else NOT_DONE)


def _suspensions(found: Sequence[Suspension], now_ms: int) -> Answer:
    def show(console: Console) -> None:
        if not found:
            console.print("nothing is suspended")
            return
        rows = [
            (
                each.subject,
                span(each.until_ms - now_ms) if each.until_ms else "until resumed",
                f"{span(now_ms - each.since_ms)} ago",
                each.who,
                each.reason,
            )
            for each in found
        ]
        table(console, ("subject", "still", "since", "who", "~why"), rows)

    return Answer({"suspensions": [_suspension_json(each) for each in found]}, show)


def _suspension_json(each: Suspension) -> dict[str, Any]:
    return {
        "subject": each.subject,
        "since": moment(each.since_ms),
        "until": moment(each.until_ms),
        "who": each.who,
        "reason": each.reason,
    }
