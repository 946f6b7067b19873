"""The verbs about the cluster: how it stands, who is in it, and who owns which domains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import click
from rich.console import Console

from relaycluster.cli.cluster import Answer, Cluster, verb
from relaycluster.cli.queue_choice import domain_name
from relaycluster.cli.words import octets, pairs, span, table
from relaycluster.interfaces import ClusterState
from relaycluster.policy.cluster import Member
from relaycluster.policy.ring import partition_of


def _is_delivering(member: Member, left_ms: int) -> bool:
    return "delivery" in member.roles and not member.draining and left_ms > 0


@verb("status")
async def status(cluster: Cluster) -> Answer:
    """The cluster in ten lines: nodes, queue, memory, and what needs somebody's attention."""
    state = await cluster.operator.cluster()
    tally = await cluster.queue.tally(range(cluster.queue.partitions))
    used, limit = await cluster.queue.room()
    suspended = await cluster.suspensions.all()
    members = list(zip(state.snapshot.members, state.lease_left_ms, strict=True))
    delivering = [member.id for member, left in members if _is_delivering(member, left)]
    edges = [member.id for member, left in members if "edge" in member.roles and left > 0 and not member.draining]
    alive = {member.incarnation for member, left in members if left > 0}
    orphaned = sum(owner not in alive for owner in state.owners)
    attention = _attention(cluster, delivering, orphaned, tally.held, used, limit, len(suspended))
    report = {
        "cluster": state.snapshot.cluster,
        "edges": edges,
        "delivery_nodes": delivering,
        "partitions": len(state.owners),
        "partitions_without_owner": orphaned,
        "waiting": tally.waiting,
        "ready_at_least": tally.ready,
        "leased": tally.leased,
        "held": tally.held,
        "bytes": tally.bytes,
        "due_for_seconds": max(0, state.now_ms - tally.oldest_ms) / 1000 if tally.oldest_ms else 0,
        "redis_used_bytes": used,
        "redis_limit_bytes": limit,
        "suspended": [each.subject for each in suspended],
        "attention": attention,
    }

    def show(console: Console) -> None:
        overdue = span(state.now_ms - tally.oldest_ms) if tally.oldest_ms else ""
        pairs(
            console,
            [
                ("cluster", state.snapshot.cluster),
                ("edges", ", ".join(edges) or "none"),
                ("delivery nodes", ", ".join(delivering) or "none"),
                ("partitions", f"{len(state.owners)}, {orphaned} without an owner"),
                ("waiting", f"{tally.waiting:,} ({octets(tally.bytes)})"),
                ("due for", overdue),
                ("in hand", f"{tally.leased:,}"),
                ("held", f"{tally.held:,}"),
                ("suspended", ", ".join(each.subject for each in suspended)),
                ("Redis", f"{octets(used)} of {octets(limit)}" if limit else f"{octets(used)}, no limit"),
            ],
        )
        for line in attention:
            console.print(f"! {line}", soft_wrap=True)

    return Answer(report, show)


def _attention(
    cluster: Cluster, delivering: Sequence[str], orphaned: int, held: int, used: int, limit: int, suspended: int
) -> list[str]:
    found = []
    if not delivering:
        found.append("no delivery node lives: mail is queued, and none is sent")
    elif orphaned:
        found.append(f"{orphaned} partitions have no living owner: a take-over is under way, or a node lacks room")
    if limit and used > cluster.config.redis.memory_watermark * limit:
        found.append("Redis is above memory_watermark: new mail is answered 452")
    if held:
        found.append(f"{held} items are held: `list --state held` shows them, `release`, `bounce` or `delete` ends it")
    if suspended:
        found.append(f"{suspended} suspensions hold: `suspend` shows them")
    return found


@verb("nodes")
async def nodes(cluster: Cluster) -> Answer:
    """Who is in the cluster, what each does, and how long its lease still runs."""
    state = await cluster.operator.cluster()
    owned = Counter(state.owners)

    def show(console: Console) -> None:
        rows = [
            (
                member.id,
                ",".join(member.roles),
                _life(member, left),
                f"{left / 1000:.1f} s",
                f"{owned[member.incarnation]}",
                f"{member.weight:g}",
                str(member.incarnation),
                member.hostname,
            )
            for member, left in zip(state.snapshot.members, state.lease_left_ms, strict=True)
        ]
        table(console, ("node", "roles", "state", ">lease", ">partitions", ">weight", ">life", "~host name"), rows)

    entries = [
        {
            "id": member.id,
            "incarnation": member.incarnation,
            "roles": list(member.roles),
            "state": _life(member, left),
            "lease_left_seconds": left / 1000,
            "partitions": owned[member.incarnation],
            "weight": member.weight,
            "hostname": member.hostname,
        }
        for member, left in zip(state.snapshot.members, state.lease_left_ms, strict=True)
    ]
    return Answer({"nodes": entries}, show)


def _life(member: Member, left_ms: int) -> str:
    if not left_ms:
        return "silent"
    return "draining" if member.draining else "alive"


@verb("ring")
@click.argument("domain", metavar="[DOMAIN]", required=False, callback=domain_name)
async def ring(cluster: Cluster, domain: str | None) -> Answer:
    """Which node owns how much of the recipient domains; with DOMAIN, who owns it."""
    state = await cluster.operator.cluster()
    if domain is None:
        return _shares(state)
    partition = partition_of(domain, len(state.owners))
    owner = owner_name(state, partition)

    def show(console: Console) -> None:
        console.print(f"{domain} is in partition {partition}, owned by {owner or 'nobody'}", soft_wrap=True)

    return Answer({"domain": domain, "partition": partition, "owner": owner}, show)


def owner_name(state: ClusterState, partition: int) -> str:
    """The node that owns a partition; empty when no living one does."""
    lives = zip(state.snapshot.members, state.lease_left_ms, strict=True)
    return next((member.id for member, left in lives if member.incarnation == state.owners[partition] and left), "")


def _shares(state: ClusterState) -> Answer:
    total = len(state.owners)
    counts = Counter(owner_name(state, number) for number in range(total))
    rows = sorted(counts.items(), key=lambda pair: (not pair[0], pair[0]))

    def show(console: Console) -> None:
        found = [(name or "nobody", str(count), f"{100 * count / total:.1f} %") for name, count in rows]
        table(console, ("node", ">partitions", ">share"), found)

    return Answer({"partitions": total, "owned": dict(rows)}, show)
