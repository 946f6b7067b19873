"""What is known about the replies of certain providers, and their codes do not say: rules for the text of a reply.

The first rule that matches decides; the operator's own stand before those that are shipped (`providers.toml`). What a rule may do is a
closed union. The text is a stranger's: it is cut, and matched in linear time (`text_pattern.py`). Addresses in it are chosen by whoever
sends mail through us; servers repeat them, so rules do not see them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from attrs import field, frozen

from relaycluster.mail.outcome import Stage
from relaycluster.mail.reply import Reply
from relaycluster.policy.bounce_class import BounceClass
from relaycluster.policy.pace import SlowDown, Suspend
from relaycluster.policy.text_pattern import TextPattern, prepare

MOST_PLACES = 1000
"""Of so many domains with their hosts it is known which rules are for them."""
MOST_KNOWN = 1024
"""So many texts are known with their rule: the outcomes of a transaction are looked at several times, and many replies differ by no more
than an address."""


@frozen
class AsSaid:
    """What the codes say; the rule only names the bounce class, or keeps later rules away."""


@frozen
class Fail:
    """Failed, also where the code says "later"."""


@frozen
class Defer:
    """Deferred, also where the code says "never"."""


@frozen
class NextHost:
    """The same recipients go to the next host at once; what the codes say holds when there is none."""


Action = AsSaid | SlowDown | Suspend | Fail | Defer | NextHost


@frozen
class ReplyRule:
    """One `[[reply_rule]]`.

    It holds for replies in which `pattern` occurs (code, enhanced code and lines in one: `421 4.7.0 Too many connections`, with `@` in
    place of each mail address), at one of `stages`, and for mail to one of `domains` (`example.com`, `*.example.com` for all below,
    `*`) or said by a host whose name ends in one of `mx_suffixes`. What is empty is no condition. `name` is for logs; `bounce_class` None leaves the class to the codes.
    """

    name: str
    pattern: TextPattern
    action: Action = field(factory=AsSaid)
    stages: frozenset[Stage] = frozenset()
    domains: tuple[str, ...] = ()
    mx_suffixes: tuple[str, ...] = ()
    bounce_class: BounceClass | None = None
    _names: frozenset[str] = field(init=False, eq=False, repr=False)
    _below: tuple[str, ...] = field(init=False, eq=False, repr=False)
    _hosts: tuple[str, ...] = field(init=False, eq=False, repr=False)

    @_names.default
    def _exact_domains(self) -> frozenset[str]:
        return frozenset(domain for domain in self.domains if not domain.startswith("*"))

    @_below.default
    def _domain_suffixes(self) -> tuple[str, ...]:
        return tuple(domain[1:] for domain in self.domains if domain.startswith("*"))  # "*" becomes "", which ends all

    @_hosts.default
    def _host_suffixes(self) -> tuple[str, ...]:
        return tuple(f".{suffix}" for suffix in self.mx_suffixes)

    def covers(self, domain: str, host: str) -> bool:
        """Whether mail to `domain` that `host` refused is within the rule's domains and hosts."""
        if not self.domains and not self.mx_suffixes:
            return True
        return domain in self._names or domain.endswith(self._below) or f".{host}".endswith(self._hosts)


_with_spaces = re.compile(r'<?"[^"]*"@\S*|<[^<>@]*@[^<>]*>').sub  # linear: no part can stop in two places


def without_addresses(text: str) -> str:
    """A text with `@` in place of each mail address."""
    if "@" not in text:
        return text
    return " ".join(["@" if "@" in word else word for word in _with_spaces("@", text).split(" ")])


class ReplyRules:
    """All rules, in their order. Which of them are for a domain and its host is kept for some of those that were asked last, as is
    which one it was for a text."""

    __slots__ = ("_for", "_known", "_rules")

    def __init__(self, rules: Iterable[ReplyRule] = ()) -> None:
        self._rules = tuple(rules)
        self._for: dict[tuple[str, str], tuple[ReplyRule, ...]] = {}
        self._known: dict[tuple[Stage, str, str, bytes], ReplyRule | None] = {}

    def __eq__(self, other: object) -> bool:
        return self._rules == other._rules if isinstance(other, ReplyRules) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._rules)

    def __iter__(self) -> Iterator[ReplyRule]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def find(self, stage: Stage, reply: Reply, domain: str = "", host: str = "") -> ReplyRule | None:
        """The first rule for what `host` said at `stage` about mail to `domain`; None when there is none."""
        rules = self._for.get((domain, host))
        if rules is None:
            if len(self._for) >= MOST_PLACES:
                self._for.clear()
            rules = self._for[domain, host] = tuple([rule for rule in self._rules if rule.covers(domain, host)])
        if not rules:
            return None
        said = prepare(without_addresses(str(reply)))
        known, key = self._known, (stage, domain, host, said)
        if key in known:
            return known[key]
        if len(known) >= MOST_KNOWN:
            del known[next(iter(known))]
        for rule in rules:
            if (not rule.stages or stage in rule.stages) and rule.pattern.occurs_in(said):
                break
        else:
            known[key] = None
            return None
        known[key] = rule
        return rule


NO_RULES = ReplyRules()
