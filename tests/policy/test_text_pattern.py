"""Patterns: they mean what `re` means by them, whatever stands in a text is plain, and no text makes them slow."""

from __future__ import annotations

import re
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaycluster.policy.text_pattern import MOST_LENGTH, MOST_OCTETS, TextPattern, prepare


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


@settings(max_examples=300)
@given(anchored, st.text("abAB7 3.-]", max_size=12))
def test_means_what_re_means(pattern: str, text: str) -> None:
    """Who knows Python's expressions knows these, for the common language and texts that nearly match."""
    oracle = re.compile(pattern, re.IGNORECASE)
    if oracle.search("") is not None:
        with pytest.raises(ValueError, match="matches every text"):
            TextPattern(pattern)
        return
    assert occurs(pattern, text) == (oracle.search(text) is not None)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("^421 4\\.7\\.28 ", "421 4.7.28 Gmail has detected", True),
        ("^421 4\\.7\\.28 ", "550 said 421 4.7.28 before", False),
        ("\\[TSS?0[1-4]\\]", "421 4.7.0 [tss04] messages", True),
        ("(rate|connection) limit$", "exceeded the Connection Limit", True),
        ("(^| )later", "translater", False),
        ("too.*many.*sessions", "too, really too many open sessions", True),
        ("gr.n", "GRÜN", True),
        ("a b", "a\tb", True),
        ("^a.*b$", "a\r\nb", True),
        ("^b", "a\nb", False),
        ("[^ ]$", "end\n", False),
    ],
)
def test_examples(pattern: str, text: str, expected: bool) -> None:
    """What operators write; control characters are spaces, so that no line of a reply can begin another."""
    assert occurs(pattern, text) is expected


@pytest.mark.parametrize(
    "pattern",
    ["", "a*", "(a|)", "(", "a)", "[", "[z-a]", "a**", "a{2}{3}", "*a", "a{3,2}", "\\", "\\1", "(?=a)", "((a{20}){20}){20}", "a{1000}" * 100, "é", "a\nb", "a" * (MOST_LENGTH + 1)],
)  # fmt: skip
def test_refused(pattern: str) -> None:
    """What is no pattern, matches everything or is too large is refused in one line with the fix."""
    with pytest.raises(ValueError, match="; ") as caught:
        TextPattern(pattern)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_equal_by_text() -> None:
    """Two readings of the same configuration are equal."""
    assert TextPattern("a+") == TextPattern("a+")
    assert TextPattern("a+") != TextPattern("a")


def test_the_end_is_not_looked_at() -> None:
    """A reply is cut before it is matched."""
    assert occurs("b", "a" * (MOST_OCTETS - 1) + "b")
    assert not occurs("b", "a" * MOST_OCTETS + "b")


@pytest.mark.parametrize("pattern", [".*a.*a.*a!", "(a|aa)+(a|aa)+!", "(a+)+!"])
def test_no_text_is_slow(pattern: str) -> None:
    """A text that a backtracking engine would take ages for costs about what a plain one does: the same run is the measure."""
    found = TextPattern(pattern)

    def seconds(text: str) -> float:
        prepared = prepare(text)
        began = perf_counter()
        for _ in range(20):
            assert not found.occurs_in(prepared)
        return perf_counter() - began

    ratios = [seconds("a" * MOST_OCTETS) / seconds("b" * MOST_OCTETS) for _ in range(5)]
    assert min(ratios) < 20
