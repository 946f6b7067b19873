"""The verbs about DKIM keys: make one and say what to publish; compare what is published with the keys that sign."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import click
from attrs import asdict, frozen
from dns.exception import DNSException, Timeout
from dns.nameserver import Do53Nameserver
from dns.rdtypes.txtbase import TXTBase
from dns.resolver import NXDOMAIN, Resolver

from relaycluster import config
from relaycluster.config.values import parse_domain, parse_selector, parse_server
from relaycluster.interfaces import FileTrouble
from relaycluster.mail.dkim_record import Finding, KeyType, findings, strings, zone_lines
from relaycluster.node.dkim_keys import new_key, read_key
from relaycluster.node.signing import DKIMKeyFile, covering
from relaycluster.policy.routing import HostPort

_DNS_SECONDS = 10.0
_GOOD_BITS = 2048


def _parsed(parse: Callable[[str], str]) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    def callback(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


@click.group()
def dkim() -> None:
    """Keys that sign what leaves, and their records in DNS."""


@dkim.command()
@click.option("--domain", required=True, callback=_parsed(parse_domain), help="The domain of the From: addresses.")
@click.option("--selector", required=True, callback=_parsed(parse_selector), help="A name for the key, as s2026.")
@click.option("--type", "kind", type=click.Choice(["rsa", "ed25519"]), default="rsa", show_default=True)
@click.option(
    "--bits", type=click.Choice(["2048", "3072", "4096"]), default="2048", show_default=True, help="RSA only."
)
@click.option("--out", "path", required=True, metavar="FILE", help="Where the private key goes; it must not exist yet.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def keygen(domain: str, selector: str, kind: KeyType, bits: str, path: str, as_json: bool) -> None:
    """Make a key and print the DNS record to publish for it.

    Publish the record, wait until `relaycluster dkim check` finds it, and only then let the key sign. Receivers that do not know
    Ed25519 ignore its signature: give the domain an RSA key too.
    """
    _write_new(path, new_key(kind, int(bits)))
    record = read_key(path).public.record
    name = f"{selector}._domainkey.{domain}"
    table = f'[[dkim]]\ndomain = "{domain}"\nselector = "{selector}"\nkey_file = {json.dumps(os.path.abspath(path))}\n'
    if as_json:
        click.echo(json.dumps({"file": path, "name": name, "strings": strings(record), "config": table}, indent=2))
        return
    click.echo(zone_lines(name, record))
    click.echo(f"\nThe private key is in {path}; only its owner may read it, who must be the node's user.", err=True)
    check = f"relaycluster dkim check --selector {selector} --key {path} {domain}"
    click.echo(
        f"Publish the record above. When this finds it:\n\n    {check}\n\nadd to the configuration:\n\n{table}",
        err=True,
    )


def _write_new(path: str, data: bytes) -> None:
    """A file that only its owner may read. A key that is in use is never written over: its record stays in caches for days."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise click.ClickException(f"{path} exists already; choose another name for the new key") from None
    except OSError as error:
        raise click.ClickException(f"{path} can not be written: {error.strerror}") from None
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        os.unlink(path)
        raise click.ClickException(f"{path} can not be written: {error.strerror}") from None


@frozen
class _Checked:
    """What is said of one key. `publish` is the record as zone lines where DNS has to be changed."""

    name: str
    key_file: str
    key: str
    ok: bool
    findings: tuple[str, ...]
    publish: str = ""


@dkim.command()
@click.option("--config", "path", metavar="FILE", help="The node's configuration; without it, the environment alone.")
@click.option("--key", "key_file", metavar="FILE", help="Check this key instead of the configured ones.")
@click.option("--selector", callback=_parsed(parse_selector), help="With --key: its selector.")
@click.option(
    "--server", metavar="IP[:PORT]", help="Ask this resolver; without it, the configured ones, or the system's."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("domain", required=False, callback=_parsed(parse_domain))
@click.pass_context
def check(
    context: click.Context,
    path: str | None,
    key_file: str | None,
    selector: str | None,
    server: str | None,
    as_json: bool,
    domain: str | None,
) -> None:
    """Compare the records in DNS with the keys, and say exactly what differs.

    All keys of the configuration, or with DOMAIN those that sign for authors of that domain. Exit status 0: what they sign
    verifies (there may be warnings). 1: something is wrong with a record or a key file. 2: the question is wrong.
    """
    try:
        read = config.load(path, os.environ)
        servers = [parse_server(server)] if server else list(read.dns.servers)
    except config.ConfigError as error:
        raise click.UsageError("\n".join(error.lines)) from None
    except ValueError as error:
        raise click.UsageError(f"--server: {error}") from None
    if (key_file is None) != (selector is None):
        raise click.UsageError("--key and --selector go together")
    note = ""
    if key_file is not None and selector is not None:
        if domain is None:
            raise click.UsageError("--key needs DOMAIN: the domain that it signs for")
        entries = [DKIMKeyFile(domain, selector, key_file)]
    else:
        entries = [DKIMKeyFile(one.domain, one.selector, str(one.key_file), one.fallback) for one in read.dkim]
        if not entries:
            note = "no key is configured ([[dkim]])"
        elif domain is not None:
            entries, note = _signing_for(domain, entries)
    resolver = _resolver(servers)
    checked = [_check(entry, resolver) for entry in entries]
    ok = bool(checked) and all(one.ok for one in checked)
    if as_json:
        report = {"ok": ok, "note": note, "keys": [asdict(one) for one in checked]}
        click.echo(json.dumps(report, ensure_ascii=True, indent=2))
    else:
        _print(checked, note)
    context.exit(0 if ok else 1)


def _signing_for(domain: str, entries: Sequence[DKIMKeyFile]) -> tuple[list[DKIMKeyFile], str]:
    """The keys that sign for authors of this domain, as `Signer.keys_for` chooses, and what that means for DMARC (RFC 7489 3.1.1)."""
    found = covering(domain, {entry.domain for entry in entries})
    own = [entry for entry in entries if entry.domain == found]
    if own:
        note = f"signed as {found}, the domain above: aligned for DMARC unless its record says adkim=s"
        return own, "" if found == domain else f"mail of {domain} is {note}"
    fallback = [entry for entry in entries if entry.fallback]
    if fallback:
        return fallback, f"mail of {domain} is signed by the fallback as {fallback[0].domain}: not aligned for DMARC"
    return [], f"no key signs mail of {domain}"


def _resolver(servers: Iterable[HostPort]) -> Resolver:
    named = [Do53Nameserver(server.host, server.port) for server in servers]
    resolver = Resolver(configure=not named)
    if named:
        resolver.nameservers = named
    resolver.lifetime = _DNS_SECONDS
    return resolver


def _check(entry: DKIMKeyFile, resolver: Resolver) -> _Checked:
    name = f"{entry.selector}._domainkey.{entry.domain}"
    try:
        key = read_key(entry.key_file)
    except FileTrouble as trouble:
        return _Checked(name, entry.key_file, "", False, (str(trouble),))
    kind = f"{key.public.type} {key.bits}" if key.public.type == "rsa" else key.public.type
    try:
        found = findings(_texts(name, resolver), key.public)
    except NXDOMAIN:
        found = [Finding("the name does not exist in DNS")]
    except DNSException as error:
        # Nothing is known of the record, so nothing is said of what to publish.
        why = f"within {_DNS_SECONDS:g} s" if isinstance(error, Timeout) else f"that can be used: {error}"
        return _Checked(name, entry.key_file, kind, False, (f"DNS gave no answer {why}",))
    if key.public.type == "rsa" and key.bits < _GOOD_BITS:
        found.append(Finding(f"{key.bits} bits are few: receivers want {_GOOD_BITS} (RFC 8301 3.2)", fatal=False))
    ok = not any(finding.fatal for finding in found)
    publish = "" if ok else zone_lines(name, key.public.record)
    return _Checked(name, entry.key_file, kind, ok, tuple(finding.text for finding in found), publish)


def _texts(name: str, resolver: Resolver) -> list[str]:
    """Each TXT record at a name, its strings joined (RFC 6376 3.6.2.2)."""
    answer = resolver.resolve(name + ".", "TXT", raise_on_no_answer=False)
    records = cast("Iterable[TXTBase]", answer.rrset or ())
    return [b"".join(record.strings).decode("utf-8", "backslashreplace") for record in records]


def _print(checked: Iterable[_Checked], note: str) -> None:
    for one in checked:
        word = "wrong" if not one.ok else "warning" if one.findings else "ok"
        click.echo(f"{word:8}{one.name} ({one.key or 'no key'}, {one.key_file})")
        for text in one.findings:
            click.echo(f"        {text}")
        if one.publish:
            click.echo("        publish:\n\n" + one.publish + "\n")
    if note:
        click.echo(note)
