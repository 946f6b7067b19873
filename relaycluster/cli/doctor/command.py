"""The verb itself: what is asked for, the table, the exit status."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Sequence

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from relaycluster import config
from relaycluster.cli.doctor.findings import Finding, Verdict
from relaycluster.cli.doctor.listeners import examine
from relaycluster.cli.doctor.targets import Target, targets

STYLES = {
    Verdict.OK: "green",
    Verdict.WARNING: "yellow",
    Verdict.FAILED: "bold red",
    Verdict.SKIPPED: "dim",
}


@click.command()
@click.option("--config", "path", metavar="FILE", help="The node's file; without it, the defaults and the environment.")
@click.option("--host", metavar="HOST", help="Look at the listeners of this host from here, without any configuration.")
@click.option(
    "--port", "ports", type=click.IntRange(1, 65535), multiple=True, help="With --host; 25 without. May be repeated."
)
@click.option(
    "--tls",
    type=click.Choice(["auto", "none", "starttls", "implicit"]),
    default="auto",
    help="With --host: what it should do.",
)
@click.option(
    "--domain",
    "domains",
    multiple=True,
    metavar="DOMAIN",
    help="With --host: a domain it takes mail for. May be repeated.",
)
@click.option("--source", default="", metavar="ADDRESS", help="Connect from this address of this machine.")
@click.option(
    "--timeout", "timeout_seconds", type=click.FloatRange(0.1, 300), default=10.0, help="Seconds for each reply."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor(
    context: click.Context,
    path: str | None,
    host: str | None,
    ports: Sequence[int],
    tls: str,
    domains: Sequence[str],
    source: str,
    timeout_seconds: float,
    as_json: bool,
) -> None:
    """Look at a live node from outside and say what is not as it should be.

    Each listener of the configuration is asked: does it relay for strangers, in all the ways they try; are its TLS versions
    and its certificate sound; does it keep passwords out of the clear; whom does it believe about the client. Then Redis: does
    it keep what was answered 250; and the node: is it ready. No mail is sent.

    An address that may relay (access.networks) cannot show that strangers may not. Then doctor looks for an address of this
    machine that may not, and says "not tested" when there is none: run it from elsewhere with --host.

    Exit status 0: nothing failed (there may be warnings). 1: something failed. 2: it could not begin.
    """
    if host is not None:
        if path is not None:
            raise click.UsageError("--config and --host exclude each other: with --host no configuration is read.")
        found = list(_listeners(_named(host, ports, tls, domains), source, timeout_seconds))
    else:
        if ports or domains or tls != "auto":
            raise click.UsageError("--port, --tls and --domain need --host.")
        try:
            read = config.load(path, os.environ)
        except config.ConfigError as error:
            for line in error.lines:
                click.echo(line, err=True)
            context.exit(2)
        found = list(_node(read, source, timeout_seconds))
    ok = not any(finding.verdict is Verdict.FAILED for finding in found)
    if as_json:
        click.echo(
            json.dumps({"ok": ok, "findings": [_plain(finding) for finding in found]}, ensure_ascii=True, indent=2)
        )
    else:
        _print(found)
    context.exit(0 if ok else 1)


def _node(read: config.Config, source: str, timeout_seconds: float) -> Iterable[Finding]:
    if "edge" in read.node.roles:
        yield from _listeners(targets(read), source, timeout_seconds)
    from relaycluster.cli.doctor import node  # brings Twisted, which --host does not need

    yield from node.redis(read)
    yield node.readiness(read)


def _listeners(looked_at: Iterable[Target], source: str, timeout_seconds: float) -> Iterable[Finding]:
    for target in looked_at:
        yield from examine(target, source=source, timeout_seconds=timeout_seconds)


def _named(host: str, ports: Sequence[int], tls: str, domains: Sequence[str]) -> list[Target]:
    """Listeners that are known by their address only."""
    try:
        address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise click.UsageError(f"--host {host}: {error.strerror or error}") from None
    named = host if host != address else ""
    found = []
    for port in ports or (25,):
        kind = ("implicit" if port == 465 else "") if tls == "auto" else tls
        subject = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        found.append(Target(subject, str(address), port, hostname=named, tls=kind, domains=tuple(domains)))
    return found


def _plain(finding: Finding) -> dict[str, str]:
    return {
        "subject": finding.subject,
        "check": finding.check,
        "result": finding.verdict.value,
        "detail": finding.detail,
    }


def _print(found: Sequence[Finding]) -> None:
    console = Console(width=None if os.isatty(1) else 120)
    widths = max(len(finding.check) for finding in found), max(len(verdict.value) for verdict in Verdict)
    for subject in dict.fromkeys(finding.subject for finding in found):
        console.print(f"[bold]{escape(subject)}[/bold]")
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True, min_width=widths[1])
        table.add_column(min_width=min(widths[0], 34))
        table.add_column(overflow="fold")
        for finding in found:
            if finding.subject == subject:
                style = STYLES[finding.verdict]
                table.add_row(
                    f"[{style}]{finding.verdict.value}[/{style}]", escape(finding.check), escape(_shown(finding.detail))
                )
        console.print(table)
        console.print()
    counts = {verdict: sum(finding.verdict is verdict for finding in found) for verdict in Verdict}
    console.print(", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count))


def _shown(text: str) -> str:
    """What a server said may hold anything, also what moves a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
