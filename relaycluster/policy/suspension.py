"""Suspensions: which domains get no mail for now, because an operator or a rule said so; the whole cluster has the same table.

A subject is a domain (`example.com`), all subdomains of one (`*.example.com`, not the domain itself), `*`, which is everything, or a limit
(`limit:NAME`), which is all domains of the `[[destination]]` or provider of this name.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from types import MappingProxyType

from attrs import field, frozen

LIMIT = "limit:"
"""Stands before the name of a limit: many have that of a domain, which can be suspended by itself."""
LOOK_AGAIN_MS = 15 * 60_000
"""A suspended domain leaves the candidates for so long at once; then its owner looks whether it still is."""
RESUME_SPREAD_MS = 10_000
"""Domains that are resumed together come back over so long: their hosts do not see all of them at once."""


RECENTLY_MS = 60_000
"""What was ended so recently is told by a node that did not know of it, too: it came and went between two of its looks."""


def subject_of(limit: str, shared: Container[str]) -> str:
    """What a suspension of this limit is about; a limit that is not among the `shared` ones is that of one domain."""
    return LIMIT + limit if limit in shared else limit


@frozen
class Suspension:
    """One of them. `until_ms` is queue time, 0 for "until it is resumed"; `since_ms` when it was said; `who` said it, and why."""

    subject: str
    until_ms: int
    since_ms: int = 0
    who: str = ""
    reason: str = ""

    def holds(self, now_ms: int) -> bool:
        """Whether it is not over."""
        return not self.until_ms or now_ms < self.until_ms

    def was_ended_since(self, ms: int) -> bool:
        """Whether somebody ended it, not before that time: it did not just run out."""
        return self.until_ms == self.since_ms > ms

    def pause_ms(self, now_ms: int, jitter: float) -> int:
        """For how long the domain leaves the candidates now; `jitter` in [0, 1) spreads those that a suspension ends for."""
        left = LOOK_AGAIN_MS if not self.until_ms else min(self.until_ms - now_ms, LOOK_AGAIN_MS)
        return max(1, left) + int(jitter * RESUME_SPREAD_MS)


@frozen
class Suspensions:
    """The table. A look-up costs one dictionary access, and one a label while anything is suspended by suffix."""

    _of: Mapping[str, Suspension] = field(factory=lambda: MappingProxyType({}))

    @classmethod
    def build(cls, found: Iterable[Suspension]) -> Suspensions:
        """The table of these."""
        return cls(MappingProxyType({each.subject: each for each in found}))

    def lookup(self, domain: str, limit: str, now_ms: int) -> Suspension | None:
        """What keeps mail for the domain, whose limit has this name, from being sent: the narrowest that holds."""
        table = self._of
        if not table:
            return None
        names = [domain, LIMIT + limit]
        dot = domain.find(".")
        while dot >= 0:
            names.append("*" + domain[dot:])
            dot = domain.find(".", dot + 1)
        names.append("*")
        for name in names:
            found = table.get(name)
            if found is not None and found.holds(now_ms):
                return found
        return None

    def __iter__(self) -> Iterator[Suspension]:
        return iter(self._of.values())

    def changes(self, newer: Suspensions, now_ms: int) -> tuple[Suspensions, Suspensions]:
        """What a newer table says otherwise: those that hold since, and those that were ended before their time, which stand there with
        who ended them; also one of which the older table did not know, if that was just now."""
        changed = [each for name, each in newer._of.items() if self._of.get(name) != each]
        begun = [each for each in changed if each.holds(now_ms)]
        ended = [
            each
            for each in changed
            if not each.holds(now_ms) and (each.subject in self._of or each.was_ended_since(now_ms - RECENTLY_MS))
        ]
        return Suspensions.build(begun), Suspensions.build(ended)

    def keeps(self, subject: str, until_ms: int, now_ms: int) -> bool:
        """Whether a domain that was paused for this subject until then stays so: what keeps it back holds, and does not end sooner."""
        if until_ms - now_ms <= RESUME_SPREAD_MS:
            return True  # it comes back by itself
        found = self._of.get(subject)
        return (
            found is not None
            and found.holds(now_ms)
            and (not found.until_ms or until_ms <= found.until_ms + RESUME_SPREAD_MS)
        )

    def __len__(self) -> int:
        return len(self._of)
