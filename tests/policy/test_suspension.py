"""The table of suspensions: whom it holds back, until when, and what changed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relaycluster.policy.suspension import (
    LOOK_AGAIN_MS,
    RECENTLY_MS,
    RESUME_SPREAD_MS,
    Suspension,
    Suspensions,
    subject_of,
)


def subject(table: Suspensions, domain: str, limit: str = "", now_ms: int = 5) -> str:
    found = table.lookup(domain, limit or domain, now_ms)
    return found.subject if found is not None else ""


def test_whom_it_holds_back() -> None:
    """The domain itself, then its limit, then the longest suffix, then all; a suffix is of subdomains only."""
    table = Suspensions.build(
        Suspension(each, 0) for each in ("example.com", "*.example.com", "*.com", "limit:Provider")
    )
    assert subject(table, "example.com") == "example.com"
    assert subject(table, "a.b.example.com") == "*.example.com"
    assert subject(table, "example.org.com") == "*.com"
    assert subject(table, "example.org") == ""
    assert subject(table, "example.org", "Provider") == "limit:Provider"
    assert subject(table, "badexample.com") == "*.com"
    assert subject(Suspensions.build([Suspension("*", 0)]), "example.org") == "*"
    assert subject(Suspensions(), "example.org") == ""


def test_a_limit_is_not_the_domain_of_its_name() -> None:
    """A limit without a name of its own has that of its first domain: to suspend that one stops no other, and everything is no limit."""
    for said, stops in (("gmail.com", "gmail.com"), ("limit:gmail.com", "gmail.com googlemail.com"), ("limit:*", "")):
        table = Suspensions.build([Suspension(said, 0)])
        kept = [each for each in ("gmail.com", "googlemail.com") if subject(table, each, "gmail.com")]
        assert " ".join(kept) == stops


def test_what_a_rule_suspends() -> None:
    """All domains that share the limit; where none does, the domain, which an operator resumes by its name."""
    for limit, subject_, domains in (("gmail.com", "limit:gmail.com", 2), ("example.com", "example.com", 1)):
        assert subject_of(limit, {"gmail.com"}) == subject_
        table = Suspensions.build([Suspension(subject_of(limit, {"gmail.com"}), 0)])
        asked = (("gmail.com", "gmail.com"), ("googlemail.com", "gmail.com"), ("example.com", "example.com"))
        assert sum(bool(subject(table, *each)) for each in asked) == domains


def test_what_is_over_hides_nothing() -> None:
    """One that ended does not stand before a wider one that holds."""
    table = Suspensions.build([Suspension("example.com", 5), Suspension("*", 100)])
    assert [subject(table, "example.com", now_ms=now) for now in (4, 5, 99, 100)] == ["example.com", "*", "*", ""]


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.floats(0, 1, exclude_max=True))
def test_pauses(until_ms: int, now_ms: int, jitter: float) -> None:
    """Never before it ends, never much longer than it lasts, and looked at again after a quarter of an hour at the latest."""
    each = Suspension("example.com", until_ms)
    if not each.holds(now_ms):
        return
    pause = each.pause_ms(now_ms, jitter)
    assert 0 < pause <= LOOK_AGAIN_MS + RESUME_SPREAD_MS
    if until_ms and until_ms - now_ms <= LOOK_AGAIN_MS:
        assert until_ms <= now_ms + pause <= until_ms + RESUME_SPREAD_MS


def test_changes() -> None:
    """What began, or says something else, and what was ended before its time; what ended long ago is no news to a node that starts."""
    old = Suspensions.build(
        [Suspension("a.example", 0, 1), Suspension("b.example", 0, 1), Suspension("c.example", 50, 1)]
    )
    new = Suspensions.build(
        [
            Suspension("a.example", 0, 1),
            Suspension("b.example", 9, 9, "bob"),
            Suspension("c.example", 80, 2),
            Suspension("d.example", 0, 3),
            Suspension("e.example", 3, 1),
        ]
    )
    begun, ended = old.changes(new, 10)
    assert [each.subject for each in begun] == ["c.example", "d.example"]
    assert [(each.subject, each.who) for each in ended] == [("b.example", "bob")]
    begun, ended = Suspensions().changes(new, 10)
    assert [each.subject for each in begun] == ["a.example", "c.example", "d.example"]
    # It came and went between two looks; what was ended long ago, or ran out, is no news.
    assert [each.subject for each in ended] == ["b.example"]
    assert len(Suspensions().changes(new, 9 + RECENTLY_MS)[1]) == 0


def test_who_stays_paused() -> None:
    """A domain that was paused for a subject which holds, and not for longer than that does; what comes back soon by itself is let be."""
    now, later = 1_000_000, 1_900_000
    table = Suspensions.build(
        [Suspension("a.example", 0, 1), Suspension("b.example", now + 60_000, 1), Suspension("c.example", 9, 9)]
    )
    assert table.keeps("a.example", later, now)
    assert not table.keeps("b.example", later, now)
    assert table.keeps("b.example", now + 65_000, now)
    assert not table.keeps("c.example", later, now)
    assert not table.keeps("d.example", later, now)
    assert table.keeps("d.example", now + 5000, now)
