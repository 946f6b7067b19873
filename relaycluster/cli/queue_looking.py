"""The verbs that look at the queue: what waits for whom, which items there are, and what one of them is and was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console

from relaycluster.cli.cluster import DONE, NOT_DONE, Answer, Cluster, verb
from relaycluster.cli.queue_choice import choice_options, wanted_of
from relaycluster.cli.words import moment, octets, pairs, said, span, table
from relaycluster.interfaces import ClusterState, DomainState, ItemState, Shown
from relaycluster.mail import queue_id
from relaycluster.mail.history import Act, Attempt, Record, Spread
from relaycluster.policy.pause import Why


@verb("queue")
@click.option("--top", default=50, type=click.IntRange(1, 100_000), help="How many domains; 50 without.")
async def queue(cluster: Cluster, top: int) -> Answer:
    """The largest queues: for each domain what waits and why.

    From counters that are kept on the way: a long queue costs no more than a short one.
    """
    partitions = range(cluster.queue.partitions)
    tally = await cluster.queue.tally(partitions)
    domains = await cluster.operator.domains(top)
    state = await cluster.operator.cluster()
    suspended = await cluster.suspensions.all()
    names = node_names(state)
    table_of = cluster.config.routes()
    await cluster.suspensions.see(state.snapshot.suspensions)
    now = cluster.queue.now_ms()
    found = []
    for each in domains:
        limit = table_of.lookup(each.domain).limit_key(each.domain)
        found.append({**domain_json(each, names), "kept_back": kept_back(cluster, each, limit, now)})
    report = {
        "waiting": tally.waiting,
        "leased": tally.leased,
        "held": tally.held,
        "bytes": tally.bytes,
        "domains": found,
        "suspended": [each.subject for each in suspended],
    }

    def show(console: Console) -> None:
        console.print(
            f"{tally.waiting:,} waiting ({octets(tally.bytes)}), {tally.leased:,} in hand, {tally.held:,} held"
            + (f"; {len(suspended)} suspended" if suspended else "")
        )
        if not domains:
            return
        console.print()
        rows = [
            (
                each.domain,
                f"{each.waiting:,}",
                f"{each.ready:,}",
                _age(each, now),
                _until(each.next_ms, now),
                names.get(each.owner, "nobody"),
                entry["kept_back"],
                each.last_reply,
            )
            for each, entry in zip(domains, found, strict=True)
        ]
        table(
            console, ("~domain", ">waiting", ">ready", ">oldest", ">next", "owner", "~kept back", "~last reply"), rows
        )

    return Answer(report, show)


@verb("list")
@choice_options
@click.option("--limit", default=100, type=click.IntRange(1, 10_000_000), help="At most so many; 100 without.")
async def list_items(cluster: Cluster, limit: int, **choice: Any) -> Answer:
    """Items that are in the queue, by domain, state, sender, recipient, class and age."""
    found = await cluster.operator.items(wanted_of(cluster, choice), limit)
    names = node_names(await cluster.operator.cluster())
    now = cluster.queue.now_ms()

    def show(console: Console) -> None:
        rows = [
            (
                each.item.id,
                each.state.value,
                span(now - each.item.arrived_ms),
                _until(each.at_ms, now) if each.state is ItemState.SCHEDULED else "",
                str(each.item.attempts),
                octets(each.item.size),
                _sender(each),
                _recipients(each),
                _unreadable(each) or each.item.last_reply,
            )
            for each in found
        ]
        columns = ("id", "state", ">age", ">next", ">tries", ">size", "~from", "~to", "~last reply")
        table(console, columns, rows)
        if len(found) == limit:
            console.print(f"… and perhaps more: these are the first {limit}")

    return Answer({"items": [item_json(each, names) for each in found]}, show)


@verb("show")
@click.argument("identifier", metavar="ID")
async def show_item(cluster: Cluster, identifier: str) -> Answer:
    """One item, or all items of a message: its envelope, where it is and since when."""
    found = await cluster.operator.show(identifier)
    names = node_names(await cluster.operator.cluster())
    now = cluster.queue.now_ms()

    def show(console: Console) -> None:
        if not found:
            console.print(unknown(identifier), soft_wrap=True)
        for number, each in enumerate(found):
            if number:
                console.print()
            item, envelope = each.item, each.item.envelope
            pairs(
                console,
                [
                    ("id", item.id),
                    ("state", f"{each.state.value}{_since(each, now, names)}"),
                    ("can not be read", each.unreadable),
                    ("from", _sender(each)),
                    *(("to", who.text) for who in envelope.recipients),
                    ("arrived", f"{moment(item.arrived_ms)} ({span(now - item.arrived_ms)} ago)"),
                    ("size", octets(item.size)),
                    ("class", item.message_class.name.lower()),
                    ("attempts", str(item.attempts)),
                    ("last reply", item.last_reply),
                    ("domain", f"{item.domain}, partition {each.partition}"),
                    ("perhaps sent before", "yes" if item.possible_duplicate else ""),
                    ("delay notice sent", "yes" if item.delay_notified else ""),
                    ("holders that died", str(item.holder_deaths) if item.holder_deaths else ""),
                ],
            )

    return Answer({"items": [item_json(each, names) for each in found]}, show, DONE if found else NOT_DONE)


@verb("trace")
@click.argument("identifier", metavar="ID")
async def trace(cluster: Cluster, identifier: str) -> Answer:
    """What was tried for an item or a message, and what operators did to it, also after it has left the queue.

    As far back as [redis] trace_memory reaches.
    """
    records = await cluster.operator.trace(identifier)
    found = await cluster.operator.show(identifier)

    def show(console: Console) -> None:
        if not records:
            console.print(
                unknown(identifier)
                if not found
                else "nothing was tried yet, or [redis] trace_memory does not reach so far back",
                soft_wrap=True,
            )
        several = len({name for name, _ in records}) > 1
        for name, record in records:
            where = f"{name}  " if several else ""
            console.print(f"{where}{moment(record.at_ms)}  {said(record_text(record))}", soft_wrap=True)
        for each in found:
            console.print(f"{each.item.id} is {each.state.value}", soft_wrap=True)

    entries = [{"item": name, **record_json(record)} for name, record in records]
    report = {"id": identifier, "records": entries, "states": {each.item.id: each.state.value for each in found}}
    return Answer(report, show, DONE if records or found else NOT_DONE)


# Words and JSON of single things.


def node_names(state: ClusterState) -> dict[int, str]:
    """The names of the living nodes by their incarnations."""
    return {member.incarnation: member.id for member in state.snapshot.members}


def unknown(identifier: str) -> str:
    """Why nothing is shown of an id."""
    if not queue_id.is_valid(identifier):
        return f"{said(identifier[:80])!r} is not a queue id: 26 characters, as in the 250, with -1, -2 … for one domain's item"
    return f"{identifier} is not in the queue: it was never queued, or it has been settled"


def kept_back(cluster: Cluster, state: DomainState, limit: str, now_ms: int) -> str:
    """What keeps a domain's mail back, besides its own schedule."""
    suspension = cluster.suspensions.suspended(state.domain, limit)
    if suspension is not None:
        until = f" for {span(suspension.until_ms - now_ms)}" if suspension.until_ms else ""
        return f"suspended{until}: {suspension.reason}" if suspension.reason else f"suspended{until}"
    if state.pause is not None:
        # The owner knows the domain's provider, which only DNS tells: its suspension is found here.
        subject = f" ({state.pause.detail})" if state.pause.why is Why.SUSPENDED else ""
        return f"{state.pause.why.value}{subject} for {span(state.paused_until_ms - now_ms)}"
    return ""


def domain_json(state: DomainState, names: Mapping[int, str]) -> dict[str, Any]:
    """A domain's queue."""
    return {
        "domain": state.domain,
        "partition": state.partition,
        "owner": names.get(state.owner, ""),
        "waiting": state.waiting,
        "ready": state.ready,
        "oldest": moment(state.oldest_ms),
        "oldest_is_exact": state.oldest_exact,
        "next": moment(state.next_ms),
        "paused_until": moment(state.paused_until_ms),
        "paused_for": state.pause.why.value if state.pause else "",
        "last_reply": state.last_reply,
        "last_reply_at": moment(state.last_reply_ms),
    }


def item_json(shown: Shown, names: Mapping[int, str]) -> dict[str, Any]:
    """An item."""
    item, envelope = shown.item, shown.item.envelope
    at = {ItemState.READY: "due", ItemState.SCHEDULED: "due", ItemState.LEASED: "was_due"}.get(shown.state, "since")
    return {
        "id": item.id,
        "domain": item.domain,
        "state": shown.state.value,
        at: moment(shown.at_ms),
        "holder": names.get(shown.incarnation, ""),
        "reverse_path": envelope.reverse_path.text,
        "recipients": [who.text for who in envelope.recipients],
        "arrived": moment(item.arrived_ms),
        "size": item.size,
        "class": item.message_class.name.lower(),
        "attempts": item.attempts,
        "last_reply": item.last_reply,
        "possible_duplicate": item.possible_duplicate,
        "delay_notified": item.delay_notified,
        "holder_deaths": item.holder_deaths,
        "unreadable": shown.unreadable,
        "partition": shown.partition,
    }


def record_text(record: Record) -> str:
    """A record of the history in one line."""
    if isinstance(record, Attempt):
        via = record.via
        where = " ".join(part for part in (via.host, f"[{via.address}]" if via.address else "") if part) or "no host"
        source = f" from {via.source}" if via.source else ""
        tls = f" {via.tls}" if via.tls else ""
        about = f" for {', '.join(record.recipients)}" if record.recipients else ""
        return (
            f"{record.result} at {record.stage}: {where}{source}{tls}{about} ({record.seconds:.1f} s): {record.reply}"
        )
    if isinstance(record, Act):
        return f"{record.verb} by {record.who}{': ' if record.reason else ''}{record.reason}"
    parts = ", ".join(f"-{number} {domain}" for number, _, domain in record.parts)
    return f"queued for {len(record.parts)} domains: {parts}"


def record_json(record: Record) -> dict[str, Any]:
    """A record of the history."""
    at = {"time": moment(record.at_ms)}
    if isinstance(record, Attempt):
        via = record.via
        return {
            **at,
            "kind": "attempt",
            "result": record.result,
            "stage": record.stage,
            "host": via.host,
            "address": via.address,
            "source": via.source,
            "tls": via.tls,
            "recipients": list(record.recipients),
            "seconds": record.seconds,
            "reply": record.reply,
        }
    if isinstance(record, Act):
        return {**at, "kind": "act", "verb": record.verb, "who": record.who, "reason": record.reason}
    assert isinstance(record, Spread)
    return {**at, "kind": "spread", "items": {str(number): domain for number, _, domain in record.parts}}


def _sender(shown: Shown) -> str:
    return "" if shown.unreadable else shown.item.envelope.reverse_path.text or "<>"


def _unreadable(shown: Shown) -> str:
    return f"can not be read: {shown.unreadable}" if shown.unreadable else ""


def _recipients(shown: Shown) -> str:
    recipients: Sequence[Any] = shown.item.envelope.recipients
    more = f" +{len(recipients) - 1}" if len(recipients) > 1 else ""
    return f"{recipients[0].text}{more}" if recipients else ""


def _since(shown: Shown, now_ms: int, names: Mapping[int, str]) -> str:
    if shown.state is ItemState.LEASED:
        return f", in the hands of {names.get(shown.incarnation, 'a node that is gone')}"
    if shown.state is ItemState.SCHEDULED:
        return f", due in {span(shown.at_ms - now_ms)}"
    return f", since {span(now_ms - shown.at_ms)}"


def _age(state: DomainState, now_ms: int) -> str:
    if not state.oldest_ms:
        return ""
    return f"{'' if state.oldest_exact else '≥ '}{span(now_ms - state.oldest_ms)}"


def _until(milliseconds: int, now_ms: int) -> str:
    if not milliseconds:
        return ""
    return "now" if milliseconds <= now_ms else span(milliseconds - now_ms)
