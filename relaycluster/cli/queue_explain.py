"""`explain`: where mail for a domain goes, under which limits, and why what waits is waiting."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, assert_never

import click
from attrs import frozen
from rich.console import Console

from relaycluster.cli.cluster import Answer, Cluster, verb
from relaycluster.cli.cluster_status import owner_name
from relaycluster.cli.queue_choice import domain_name
from relaycluster.cli.queue_looking import item_json, node_names, record_text, unknown
from relaycluster.cli.words import moment, pairs, said, span
from relaycluster.interfaces import ClusterState, DomainState, ItemState, LimitState, Shown, Wanted
from relaycluster.mail import queue_id
from relaycluster.mail.history import Act, Attempt
from relaycluster.policy.pause import Pause, Why
from relaycluster.policy.routing import DestinationSettings, DNSTrouble, Exchangers, MXAnswer, NoSuchDomain, NullMX
from relaycluster.policy.suspension import Suspension

DNS_SECONDS = 10.0
MOST_COUNTED = 1000
"""Items of a domain that do not wait are counted up to so many: nothing keeps their number."""


@frozen
class Known:
    """All that `explain` found out about a domain."""

    domain: str
    settings: DestinationSettings
    hosts: str
    cluster: ClusterState
    state: DomainState
    limit: LimitState
    suspension: Suspension | None
    others: Mapping[ItemState, int]
    now_ms: int

    @property
    def limit_name(self) -> str:
        """Under which name rate and connections are counted."""
        return self.settings.limit_key(self.domain)

    @property
    def owner(self) -> str:
        """The living node that owns the domain; empty for none."""
        return owner_name(self.cluster, self.state.partition)

    @property
    def connections(self) -> int:
        """How many connections of the limit living nodes hold."""
        alive = {member.incarnation for member in self.cluster.snapshot.members}
        return sum(count for incarnation, count in self.limit.connections if incarnation in alive)


@verb("explain")
@click.argument("subject", metavar="DOMAIN|ID")
@click.option("--no-dns", is_flag=True, help="Do not ask for the domain's MX hosts.")
async def explain(cluster: Cluster, subject: str, no_dns: bool) -> Answer:
    """Why mail for a domain, or an item, has not been sent yet: owner, hosts, TLS, limits, and the next attempt.

    Limits and routes are those of the configuration file that the command is given.
    """
    if not queue_id.is_valid(subject):
        domain = domain_name(None, None, subject)  # type: ignore[arg-type]
        known = await _know(cluster, domain, no_dns)
        reasons = list(_why_domain(known))
        return Answer({**_json(known), "reasons": reasons}, lambda console: _show(console, known, reasons))
    found = await cluster.operator.show(subject)
    names = node_names(await cluster.operator.cluster())
    explained: list[tuple[Shown, Known, list[str]]] = []
    for shown in found:
        known = await _know(cluster, shown.item.domain, no_dns)
        records = await cluster.operator.trace(shown.item.id)
        last = [record for _, record in records if isinstance(record, Attempt | Act)]
        reasons = [*_why_item(shown, known, names.get(shown.incarnation, ""))]
        if last:
            reasons.append(f"last, at {moment(last[-1].at_ms)}: {record_text(last[-1])}")
        explained.append((shown, known, reasons))

    def show(console: Console) -> None:
        if not explained:
            console.print(unknown(subject), soft_wrap=True)
        for shown, known, reasons in explained:
            console.print(f"{shown.item.id}, {shown.state.value}", soft_wrap=True)
            _show(console, known, reasons)

    entries = [
        {
            **_json(known),
            "domain_last_reply": known.state.last_reply,
            **item_json(shown, names),  # last: what is said of the item is its own
            "reasons": reasons,
        }
        for shown, known, reasons in explained
    ]
    return Answer({"items": entries}, show, 0 if explained else 1)


async def _know(cluster: Cluster, domain: str, no_dns: bool) -> Known:
    table = cluster.config.routes()
    settings = table.lookup(domain)
    hosts = ", ".join(map(str, settings.hosts))
    if not no_dns and (not hosts or not table.is_placed(domain)):
        answer = (
            await _resolver(cluster)
            .mx(domain)
            .addTimeout(DNS_SECONDS, cluster.reactor, lambda _result, _seconds: DNSTrouble("no answer in time"))
        )
        settings = table.by_exchangers(domain, answer.records if isinstance(answer, Exchangers) else ())
        hosts = ", ".join(map(str, settings.hosts)) or _mx_text(answer)
    rate = settings.rate
    state = await cluster.operator.cluster()
    await cluster.suspensions.see(state.snapshot.suspensions)
    limit = settings.limit_key(domain)
    not_waiting = frozenset({ItemState.LEASED, ItemState.HELD, ItemState.BOUNCING})
    others = await cluster.operator.items(Wanted(domain=domain, states=not_waiting), MOST_COUNTED)
    return Known(
        domain,
        settings,
        hosts,
        state,
        await cluster.operator.domain(domain),
        await cluster.operator.limit(limit, rate.interval_ns if rate else 0, rate.burst if rate else 1),
        cluster.suspensions.suspended(domain, limit),
        Counter(shown.state for shown in others),
        cluster.queue.now_ms(),
    )


def _resolver(cluster: Cluster) -> Any:
    if cluster.resolver is not None:
        return cluster.resolver
    from relaycluster.net.dns_client import ClientSettings
    from relaycluster.net.resolver import Resolver, system_servers

    servers = cluster.config.dns.servers or system_servers()
    return Resolver(cluster.reactor, cluster.reactor, ClientSettings(servers), secrets.randbits)


def _mx_text(answer: MXAnswer) -> str:
    if isinstance(answer, Exchangers):
        if answer.implicit:
            return f"{answer.records[0].host} (no MX record: the domain itself)"
        return ", ".join(f"{record.host} ({record.preference})" for record in answer.records)
    if isinstance(answer, NullMX):
        return "none: the domain says that it takes no mail (null MX)"
    if isinstance(answer, NoSuchDomain):
        return "none: no MX and no address" if answer.exists else "none: there is no such domain"
    if isinstance(answer, DNSTrouble):
        return f"unknown: {answer.reason}"
    assert_never(answer)


# Why it waits.


def _why_domain(known: Known) -> Iterator[str]:
    state, now, others = known.state, known.now_ms, known.others
    yield from _obstacles(known)
    if state.ready:
        which = "its only item" if state.waiting == 1 else f"{state.ready:,} of {state.waiting:,} items"
        due = f"{which} {'is' if state.ready == 1 else 'are'} due"
        is_free = known.owner and not known.suspension and not state.pause
        yield f"{due}, and {known.owner} sends as fast as the limits and the hosts let it" if is_free else due
    elif state.waiting == 1:
        yield f"its only item waits for its next attempt, in {span(state.next_ms - now)}"
    elif state.waiting:
        yield f"all {state.waiting:,} items wait for their next attempts, the first in {span(state.next_ms - now)}"
    elif not others:
        yield "nothing waits for this domain"
    least = "at least " if sum(others.values()) >= MOST_COUNTED else ""
    if count := others.get(ItemState.LEASED):
        yield f"{least}{_items(count)} in a node's hands: being sent, or in line for a connection"
    if count := others.get(ItemState.HELD):
        yield f"{least}{_items(count)} held: `release` lets go"
    if count := others.get(ItemState.BOUNCING):
        yield f"{least}{_items(count)} given up by an operator, for the owner to settle"
    if state.last_reply:
        yield f"the last deferral, {span(now - state.last_reply_ms)} ago: {state.last_reply}"


def _items(count: int) -> str:
    return "1 item is" if count == 1 else f"{count:,} items are"


def _why_item(shown: Shown, known: Known, holder: str) -> Iterator[str]:
    now = known.now_ms
    if shown.state is ItemState.HELD:
        yield f"it has been held for {span(now - shown.at_ms)}: `release` lets it go"
    elif shown.state is ItemState.BOUNCING:
        yield "an operator gave it up; the owner settles it" + ("" if known.owner else ", once there is one")
    elif shown.state is ItemState.LEASED:
        yield from _obstacles(known)
        if holder:
            yield f"it is in the hands of {holder}: being sent, or in line for a connection"
        else:
            yield "it is in the hands of a node that is gone: its heir takes it back"
    else:
        yield from _obstacles(known)
        if shown.state is ItemState.SCHEDULED:
            yield f"attempt {shown.item.attempts + 1} is due in {span(shown.at_ms - now)}, at {moment(shown.at_ms)}"
        else:
            yield f"it has been due for {span(now - shown.at_ms)}"
            ahead = known.state.ready - 1
            if ahead > 0:
                yield f"{ahead:,} other {'item' if ahead == 1 else 'items'} of the domain {'is' if ahead == 1 else 'are'} due, too"
        if shown.item.last_reply:
            yield f"it was deferred last with: {shown.item.last_reply}"


def _obstacles(known: Known) -> Iterator[str]:
    """What keeps anything from being sent to the domain now."""
    if known.suspension is not None:
        each = known.suspension
        until = f"until {moment(each.until_ms)}" if each.until_ms else "until it is resumed"
        why = f": {each.reason}" if each.reason else ""
        yield f"{each.subject} is suspended {until}, by {each.who}{why}"
    if not known.owner:
        yield "no living node owns the domain's partition"
    if known.limit.free_in_us > 0:
        yield f"the rate {known.settings.rate} of {known.limit_name} is used up: the next slot is in {known.limit.free_in_us / 1e6:.1f} s"
    if known.connections >= known.settings.connections:
        yield f"all {known.settings.connections} connections of {known.limit_name} are in use"
    if known.state.pause is not None:
        yield from _pause(known, known.state.pause)


def _pause(known: Known, pause: Pause) -> Iterator[str]:
    """Why the owner looks at the domain later."""
    left, detail = span(pause.until_ms - known.now_ms), f": {pause.detail}" if pause.detail else ""
    match pause.why:
        case Why.PARKED:
            yield f"no host could be reached; the next try is in {left} (`flush` tries at once){detail}"
        case Why.RESTING:
            yield f"a host asked for less: nothing is sent for {left}"
        case Why.RATE:
            if not known.limit.free_in_us:
                yield f"the rate was used up: its owner looks again in {left}"
        case Why.SUSPENDED:
            if known.suspension is None:
                yield f"it was suspended by {pause.detail}: its owner looks again in {left}"
        case Why.SPREAD:
            yield f"it was resumed just now, and is sent to again in {left}"
        case _:
            assert_never(pause.why)


def _show(console: Console, known: Known, reasons: list[str]) -> None:
    settings, state = known.settings, known.state
    pairs(
        console,
        [
            ("domain", f"{known.domain}, partition {state.partition}"),
            ("owner", known.owner or "nobody"),
            ("hosts", known.hosts),
            ("TLS", settings.tls),
            ("limit", known.limit_name),
            ("rate", str(settings.rate) if settings.rate else "none"),
            ("connections", f"{known.connections} of {settings.connections}"),
            ("waiting", f"{state.waiting:,}, {state.ready:,} due"),
        ],
    )
    for reason in reasons:
        console.print(f"- {said(reason)}", soft_wrap=True)


def _json(known: Known) -> dict[str, Any]:
    settings, state = known.settings, known.state
    return {
        "domain": known.domain,
        "partition": state.partition,
        "owner": known.owner,
        "hosts": known.hosts,
        "tls": settings.tls,
        "limit": known.limit_name,
        "rate": str(settings.rate) if settings.rate else "",
        "next_slot_seconds": known.limit.free_in_us / 1e6,
        "connections": known.connections,
        "connections_most": settings.connections,
        "waiting": state.waiting,
        "ready": state.ready,
        "next": moment(state.next_ms),
        "paused_until": moment(state.paused_until_ms),
        "paused_for": state.pause.why.value if state.pause else "",
        **{each.value: known.others.get(each, 0) for each in (ItemState.LEASED, ItemState.HELD, ItemState.BOUNCING)},
        "suspended": known.suspension is not None,
        "last_reply": state.last_reply,
    }
