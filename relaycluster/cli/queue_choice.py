"""Which items a verb is about: options that `list` and the acts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from relaycluster.cli.cluster import Cluster
from relaycluster.config.values import parse_domain, parse_duration
from relaycluster.interfaces import ItemState, Wanted
from relaycluster.mail.envelope import MessageClass
from relaycluster.smtp.grammar import is_address_literal

LONGEST_REASON = 300

F = TypeVar("F", bound=Callable[..., Any])


def _parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    def callback(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
        if value is None:
            return None
        try:
            return parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def _recipient_domain(text: str) -> str:
    """As the queue knows it: a domain, or an address literal (RFC 5321 4.1.3)."""
    if text.isascii() and is_address_literal(text.encode("ascii")):
        return text.lower()
    return parse_domain(text)


def _some_time(text: str) -> float:
    seconds = parse_duration(text)
    if not seconds:
        raise ValueError(f"{text!r} is no time")
    return seconds


def _some_text(text: str) -> str:
    # In a script, an empty variable: it would choose everything.
    if not text.strip():
        raise ValueError("an empty text would choose all items")
    return text


def _one_line(text: str) -> str:
    """Whatever a shell passes on, as a text that can be stored and shown."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(each if each.isprintable() else " " for each in text).strip()[:LONGEST_REASON]


duration = _parsed(parse_duration)
some_time = _parsed(_some_time)
domain_name = _parsed(_recipient_domain)
some_text = _parsed(_some_text)
one_line = _parsed(_one_line)


def choice_options(function: F) -> F:
    """The options that choose items; `wanted_of` reads them."""
    for option in (
        click.option("--domain", metavar="DOMAIN", callback=domain_name, help="Only for this recipient domain."),
        click.option(
            "--state",
            "states",
            multiple=True,
            type=click.Choice([state.value for state in ItemState]),
            help="Only in this state. May be repeated.",
        ),
        click.option(
            "--sender",
            metavar="TEXT",
            callback=some_text,
            help="Only where the reverse-path holds this; <> is the null one.",
        ),
        click.option("--recipient", metavar="TEXT", callback=some_text, help="Only where a recipient holds this."),
        click.option(
            "--class",
            "message_class",
            type=click.Choice([each.name.lower() for each in MessageClass]),
            help="Only of this class.",
        ),
        click.option(
            "--older-than", metavar="DURATION", callback=duration, help="Only what arrived so long ago: 4h, 2d."
        ),
    ):
        function = option(function)
    return function


def is_chosen(choice: Mapping[str, Any]) -> bool:
    """Whether any of the options was given."""
    return any(value not in (None, ()) for value in choice.values())


def wanted_of(cluster: Cluster, choice: Mapping[str, Any]) -> Wanted:
    """The options as a filter."""
    kind = choice["message_class"]
    older = choice["older_than"]
    return Wanted(
        domain=choice["domain"] or "",
        sender=choice["sender"] or "",
        recipient=choice["recipient"] or "",
        states=frozenset(ItemState(each) for each in choice["states"]) or frozenset(ItemState),
        message_class=MessageClass[kind.upper()] if kind else None,
        before_ms=cluster.queue.now_ms() - int(older * 1000) if older is not None else 0,
    )
