"""The verbs about users: who may authenticate, and what they may do. They edit the users file; nodes notice it within seconds."""

from __future__ import annotations

import json
import os
import secrets
import sys
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import click
from attrs import evolve

from relaycluster.interfaces import FileTrouble
from relaycluster.node import passwords, users_file
from relaycluster.node.passwords import PasswordHash
from relaycluster.node.users_file import User, key_of, render_rate
from relaycluster.policy.account import Account
from relaycluster.policy.rate import Rate

T = TypeVar("T")
_FAULT = 2


def _fault(text: str) -> NoReturn:
    click.echo(text, err=True)
    raise click.exceptions.Exit(_FAULT)


def _parsed(parse: Callable[[str], T]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A click callback that turns a ValueError into a usage error; of an option that may be repeated, each value."""

    def callback(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        try:
            if isinstance(value, tuple):
                return tuple(parse(each) for each in value)
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def _named(name: str) -> str:
    reason = users_file.name_trouble(name)
    if reason:
        raise ValueError(reason)
    return name


def _where(users_file_option: str | None, config_path: str | None) -> str:
    """The users file: the one that is named, else the one of the configuration."""
    if users_file_option:
        return users_file_option
    from relaycluster import config

    try:
        path = config.load(config_path, os.environ).access.users_file
    except config.ConfigError as error:
        path = _not_there_yet(config_path)
        if not path:
            _fault("\n".join(error.lines))
    if not path:
        _fault(
            f"{config_path or 'defaults'}: access.users_file is not set; set it, or name the file: --users-file FILE"
        )
    return path


def _not_there_yet(config_path: str | None) -> str:
    """The users file that a configuration names which is wrong for want of it: somebody has to make it first. Else empty."""
    named = os.environ.get("RELAYCLUSTER_ACCESS__USERS_FILE", "")
    if not named and config_path:
        try:
            with open(config_path, "rb") as file:
                access = tomllib.load(file).get("access", {})
        except (OSError, ValueError):
            return ""
        told = access.get("users_file") if isinstance(access, dict) else None
        named = os.path.join(os.path.dirname(config_path), told) if isinstance(told, str) and told else ""
    return named if named and not os.path.exists(named) else ""


def _file_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--config", "config_path", metavar="FILE", help="Take access.users_file of this configuration."),
        click.option("--users-file", "users_path", metavar="FILE", help="The users file itself."),
    ):
        command = option(command)
    return command


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("user")
def user() -> None:
    """The users who may authenticate: add, list, remove.

    They stand in a file (access.users_file) that a running node reads again within seconds of a change. When several hosts
    run nodes, copy it to each.
    """


@user.command("add")
@_file_options
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input: one line.")
@click.option("--replace", is_flag=True, help="Change a user who is there: what is not given stays.")
@click.option("--keep-password", is_flag=True, help="With --replace: change only the other options.")
@click.option(
    "--sender",
    "senders",
    multiple=True,
    metavar="ADDRESS",
    callback=_parsed(users_file.parse_sender),
    help="An address that may stand in MAIL FROM and From: alice@example.com, @example.com for the whole domain,"
    " @.example.com for all domains below it. Repeat it for several; without it, any address.",
)
@click.option("--any-sender", is_flag=True, help="With --replace: any address again.")
@click.option(
    "--messages", metavar="RATE", callback=_parsed(Rate.parse_allowance), help="Messages over the whole cluster: 100/h."
)
@click.option(
    "--recipients",
    metavar="RATE",
    callback=_parsed(Rate.parse_allowance),
    help="Recipients over the whole cluster: 1000/h.",
)
@click.option(
    "--class",
    "message_class",
    metavar="CLASS",
    callback=_parsed(users_file.parse_class),
    help="urgent, normal or bulk, whatever the listener says.",
)
@_as_json
@click.argument("name", metavar="NAME", callback=_parsed(_named))
def add(
    users_path: str | None,
    config_path: str | None,
    password_stdin: bool,
    replace: bool,
    keep_password: bool,
    any_sender: bool,
    name: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Add a user, and make the file if it is not there. The password is asked for, or read with --password-stdin.

    Exit status 0: done. 2: nothing was changed; one line says why.
    """
    path = _where(users_path, config_path)
    if keep_password and not replace:
        raise click.UsageError("--keep-password goes with --replace")
    if any_sender and given["senders"]:
        raise click.UsageError("--any-sender and --sender contradict each other")
    changes = {option: value for option, value in given.items() if value}
    if any_sender:
        changes["senders"] = ()
    _read_or_new(path, name, replace)
    made = None if keep_password else _hash(_password(password_stdin))

    def change(users: Mapping[str, User]) -> Mapping[str, User]:
        old = users.get(key_of(name))
        _check_presence(path, name, old, replace)
        if old is not None:
            return {key_of(name): User(evolve(old.account, **changes), made or old.password, old.shut)}
        assert made is not None
        return {key_of(name): User(Account(name, **changes), made)}

    is_new = not os.path.exists(path)
    _edit(path, change)
    done = "changed" if replace else "added"
    if is_new:
        click.echo(f"{path} is new, and only its owner can read it: chown it to the node's user", err=True)
    _say({"ok": True, "file": path, "user": name, "done": done}, f"{done} {name} in {path}", as_json)


@user.command("list")
@_file_options
@_as_json
def list_users(users_path: str | None, config_path: str | None, as_json: bool) -> None:
    """Show the users and what they may do. Hashes are not shown."""
    path = _where(users_path, config_path)
    try:
        users = users_file.read(path)
        open_to_all = os.stat(path).st_mode & 0o004
    except FileTrouble as error:
        _fault(str(error))
    if open_to_all:
        click.echo(f"{path}: warning: everybody on this host can read the hashes; chmod o-r {path}", err=True)
    rows = [_row(each) for each in users.values()]
    if as_json:
        click.echo(json.dumps({"ok": True, "file": path, "users": rows}, ensure_ascii=True, indent=2))
        return
    if not rows:
        click.echo(f"no users in {path}")
        return
    titles = ("name", "password", "senders", "messages", "recipients", "class")
    table = [titles, *(tuple(" ".join(row[t]) if t == "senders" else row[t] or "-" for t in titles) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(titles))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@user.command("remove")
@_file_options
@_as_json
@click.argument("name", metavar="NAME")
def remove(users_path: str | None, config_path: str | None, name: str, as_json: bool) -> None:
    """Remove a user. Open sessions may hand in nothing more from when the nodes have noticed it.

    Exit status 0: done. 2: there is no such user, or the file cannot be used.
    """
    path = _where(users_path, config_path)

    def change(users: Mapping[str, User]) -> Mapping[str, None]:
        if key_of(name) not in users:
            _fault(f"{path}: there is no user {name}")
        return {key_of(name): None}

    _edit(path, change)
    _say({"ok": True, "file": path, "user": name, "done": "removed"}, f"removed {name} from {path}", as_json)


def _row(one: User) -> dict[str, Any]:
    account = one.account
    return {
        "name": account.name,
        "password": f"{one.password.kind}, shut" if one.shut else one.password.kind,
        "senders": list(account.senders) or ["any"],
        "messages": render_rate(account.messages) if account.messages else "",
        "recipients": render_rate(account.recipients) if account.recipients else "",
        "class": account.message_class.label if account.message_class else "",
    }


def _read_or_new(path: str, name: str, replace: bool) -> None:
    """Say what is wrong before a password is asked for; it is looked at again under the lock."""
    users: Mapping[str, User] = {}
    if os.path.exists(path):
        try:
            users = users_file.read(path)
        except FileTrouble as error:
            _fault(str(error))
    _check_presence(path, name, users.get(key_of(name)), replace)


def _check_presence(path: str, name: str, old: User | None, replace: bool) -> None:
    if old is not None and not replace:
        _fault(f"{path}: {old.account.name} is there already; --replace changes the password or the options")
    if old is None and replace:
        _fault(f"{path}: there is no user {name} to replace; leave out --replace")


def _password(from_stdin: bool) -> bytes:
    if not from_stdin:
        if not sys.stdin.isatty():
            _fault("there is no terminal to ask for the password; give it with --password-stdin")
        text: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
        return text.encode("utf-8", "surrogateescape")
    # Octets, not text: what the client sends is compared octet by octet, whatever this terminal's locale is.
    lines = sys.stdin.buffer.read(4 * passwords.LONGEST_PASSWORD_OCTETS).split(b"\n")
    if len(lines) > 2 or (len(lines) == 2 and lines[1]):
        _fault("standard input has several lines; give the password alone, on one line")
    return lines[0].removesuffix(b"\r")


def _hash(password: bytes) -> PasswordHash:
    reason = passwords.trouble(password)
    if reason:
        _fault(reason)
    try:
        password.decode("utf-8")
    except UnicodeDecodeError:
        _fault("the password is not UTF-8, which AUTH carries (RFC 4616 2)")
    return PasswordHash.make(password, secrets.token_bytes(passwords.SALT_OCTETS))


def _edit(path: str, change: users_file.Change) -> None:
    try:
        users_file.edit(path, change)
    except FileTrouble as error:
        _fault(str(error))


def _say(report: Mapping[str, object], text: str, as_json: bool) -> None:
    click.echo(json.dumps(report, ensure_ascii=True) if as_json else text)
