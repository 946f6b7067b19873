"""Rules for the replies of remote servers: the operator's tables, and those that are shipped, which have the same form."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import resources

from pydantic import Field

from relaycluster.config.section import Section, option
from relaycluster.config.values import (
    ActionText,
    Domain,
    OptionalBounceClass,
    Pattern,
    PatternText,
    ReplyStage,
    Text,
)
from relaycluster.policy import reply_rules

SHIPPED = "providers.toml"


class ReplyRule(Section):
    """What a remote server's reply means where its codes do not say; one `[[reply_rule]]` table for each. The first that matches decides,
    in the order of the file, before the rules that are shipped."""

    match: PatternText = Field(
        description="A regular expression that occurs in the reply: code, enhanced code and all lines in one, as in the log:"
        " `421 4.7.0 Too many connections`. Case does not matter; what is beyond the first 2 KiB is not looked at, characters that are not"
        " ASCII are seen as `?`, a mail address as `@`, since whoever sends mail can choose it. RE2's syntax: it takes time in proportion to"
        " the reply whatever stands there, so there is no look-around and no"
        " back-reference: `.` `[a-z]` `\\d` `\\w` `\\s` `( )` `|` `^` `$` `?` `*` `+` `{2,5}`. In TOML it stands best in single quotes."
    )
    action: ActionText = option(
        "as_said",
        "`slow_down`: the mail is deferred, connections and rate to the provider are halved and come back step by step."
        " `suspend:15min`: the mail is deferred, and nothing is sent to the provider for so long. `defer`: tried again later, also after"
        " a 5yz. `fail`: the sender gets it back, also after a 4yz. `next_host`: the same recipients go to the next host at once."
        " `as_said`: what the codes say.",
    )
    stage: tuple[ReplyStage, ...] = option(
        (),
        "Only for replies to these: `greeting`, `ehlo`, `tls`, `mail`, `rcpt`, `data`, `final-dot`. Empty: all.",
    )
    domain: tuple[Pattern, ...] = option(
        (), "Only for mail to these recipient domains: `example.com`, `*.example.com` for all below it. Empty: all."
    )
    mx_suffix: tuple[Domain, ...] = option(
        (),
        "Only for replies of hosts whose names end so. Where `domain` is given, too, one of the two is enough. Empty: all.",
    )
    bounce_class: OptionalBounceClass = option(
        "", "The bounce class of what fails so, in place of the one that the codes say. Empty: that one.", alias="class"
    )
    name: Text = option(
        "", "The rule's name in logs and in `relaycluster explain`. Empty: its place in the file.", max_length=80
    )

    def rule(self, place: str) -> reply_rules.ReplyRule:
        """The rule as delivery sees it; `place` is its name when it has none."""
        return reply_rules.ReplyRule(
            name=self.name or place,
            pattern=self.match,
            action=self.action,
            stages=frozenset(self.stage),
            domains=self.domain,
            mx_suffixes=self.mx_suffix,
            bounce_class=self.bounce_class,
        )


class _Shipped(Section):
    reply_rule: tuple[ReplyRule, ...]


@cache
def shipped() -> tuple[reply_rules.ReplyRule, ...]:
    """The rules for the large providers that come with the program."""
    text = resources.files(reply_rules.__package__).joinpath(SHIPPED).read_text("utf-8")
    tables = _Shipped.model_validate(tomllib.loads(text)).reply_rule
    return tuple(table.rule(f"{SHIPPED}[{number}]") for number, table in enumerate(tables))


def rules_of(tables: Sequence[ReplyRule], with_shipped: bool) -> reply_rules.ReplyRules:
    """All rules in their order."""
    own = [table.rule(f"reply_rule[{number}]") for number, table in enumerate(tables)]
    return reply_rules.ReplyRules([*own, *(shipped() if with_shipped else ())])
