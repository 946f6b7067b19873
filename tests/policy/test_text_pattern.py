"""Patterns: they mean what `re` means by them, and no text makes them slow or large."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaycluster.policy import text_pattern
from relaycluster.policy.text_pattern import MOST_OCTETS, MOST_STATES, TextPattern, prepare


def occurs(pattern: str, text: str) -> bool:
    return TextPattern(pattern).occurs_in(prepare(text))


_atoms = st.sampled_from(["a", "b", "A", " ", ".", "\\d", "\\w", "\\s", "\\.", "\\S", "[ab]", "[^a]", "[0-3]", "[]b]", "[a\\]-]", "7", "-"])  # fmt: skip
_counts = st.sampled_from(["", "", "", "?", "*", "+", "{2}", "{1,}", "{0,2}", "{2,3}"])


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map("|".join).map("({})".format),
        st.tuples(inner, _counts).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    )


patterns = st.recursive(st.tuples(_atoms, _counts).map("".join), _grown, max_leaves=8)
anchored = st.tuples(st.sampled_from(["", "^"]), patterns, st.sampled_from(["", "$"])).map("".join)


@settings(max_examples=600)
@given(anchored, st.text("abAB7 3.-]", max_size=12))
def test_means_what_re_means(pattern: str, text: str) -> None:
    """Python's own engine is the oracle, for patterns of the common language and texts that nearly match."""
    oracle = re.compile(pattern, re.IGNORECASE)
    if oracle.search("") is not None:
        with pytest.raises(ValueError, match="matches every text"):
            TextPattern(pattern.strip("^$"))
        return
    assert occurs(pattern, text) == (oracle.search(text) is not None)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("^421 4\\.7\\.28 ", "421 4.7.28 Gmail has detected", True),
        ("^421 4\\.7\\.28 ", "550 said 421 4.7.28 before", False),
        ("\\[TSS?0[1-4]\\]", "421 4.7.0 [tss04] messages", True),
        ("(rate|connection) limit$", "exceeded the Connection Limit", True),
        ("(^| )later", "later", True),
        ("(^| )later", "translater", False),
        ("^x|y$", "xa", True),
        ("^x|y$", "ay", True),
        ("^x|y$", "axya", False),
        ("too.*many.*sessions", "too, really too many open sessions", True),
        ("gr[uü]n", "grün", None),
        ("gr.n", "GRÜN", True),
        ("a b", "a\tb", True),
        ("a\\sb", "a\x02b", True),
        ("^b", "a\x02b", False),
        ("[^ ]$", "end\n", False),
    ],
)
def test_examples(pattern: str, text: str, expected: bool | None) -> None:
    """What operators write; control characters are spaces, so that none of them can stand for an anchor."""
    if expected is None:
        with pytest.raises(ValueError, match="not printable ASCII"):
            TextPattern(pattern)
        return
    assert occurs(pattern, text) is expected


@pytest.mark.parametrize(
    "pattern",
    ["", "a*", "(a|)", "(", "(a", "a)", "[", "[a", "[z-a]", "[\\d-a]", "[[:alpha:]]", "a**", "a+?", "a{2}{3}", "*a", "|*", "a{", "a{x}", "a{3,2}", "a{1000}", "^*", "\\", "\\1", "\\b", "\\x41", "(?=a)", "(?P<n>a)", "(?i)a", "a{200}b{200}", "((a{20}){20}){20}", "(" * 30 + "a" + ")" * 30, "é", "a\nb"],
)  # fmt: skip
def test_refused(pattern: str) -> None:
    """What is not in the language, matches everything or is too long is refused in one line with the fix."""
    with pytest.raises(ValueError, match="; ") as caught:
        TextPattern(pattern)
    assert "\n" not in str(caught.value)


def test_equal_by_text() -> None:
    """Two readings of the same configuration are equal."""
    assert TextPattern("a+") == TextPattern("a+")
    assert TextPattern("a+") != TextPattern("a")


def test_steps_are_linear_and_states_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that would have exponentially many states, on a text made to visit them: at most one step for each octet, and no
    more states than are kept. The same text through `re` and a nested repetition would not end."""
    steps = 0
    after = text_pattern._Automaton.after

    def counted(self: text_pattern._Automaton, positions: int, octet: int) -> text_pattern._State:
        nonlocal steps
        steps += 1
        return after(self, positions, octet)

    monkeypatch.setattr(text_pattern._Automaton, "after", counted)
    pattern = TextPattern("a.{60}c")
    text = "".join("ab"[number * number % 7 % 2] for number in range(5 * MOST_OCTETS))
    assert not pattern.occurs_in(prepare(text + "c" * 9))
    pattern = TextPattern("a[ab]{60}c")  # without a literal that ends it early
    assert not pattern._automaton.accepts(prepare(text))
    assert 0 < steps <= MOST_OCTETS + 2
    assert len(pattern._automaton._states) <= MOST_STATES
    assert not occurs("(a|aa)+(a|aa)+!", "a" * 3 * MOST_OCTETS + "!")
