"""What fuzzing once found stays found: every input of the corpus is replayed. And the judge itself is judged."""

from __future__ import annotations

from typing import Any

import pytest

from relaycluster.smtp import framing, server
from relaycluster.smtp.commands import Verb
from tests.fuzz import corpus, reference
from tests.fuzz.__main__ import dictionary, judge
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_replay(target: str) -> None:
    """No input of the corpus breaks what must hold."""
    inputs = corpus.inputs(target)
    assert len(inputs) >= len(SEEDS[target]) > 0
    for data in inputs:
        try:
            TARGETS[target](data)
        except Exception as error:
            raise AssertionError(f"{target}: {data!r}") from error


def test_the_targets_are_all_seeded() -> None:
    """A target without inputs would be fuzzed from nothing."""
    assert set(TARGETS) == set(SEEDS)


class Lax(framing.ContentScanner):
    """A scanner that also takes LF . LF for the end of a content, as many servers did (CVE-2023-51764)."""

    def feed(self, data: bytes) -> bytes:
        return super().feed(data.replace(b"\n.\n", b"\r\n.\r\n"))


class Forgetful(framing.ContentScanner):
    """A scanner that does not see an end which stands across a cut."""

    def feed(self, data: bytes) -> bytes:
        return super().feed(data.replace(b"\r\n.\r", b"\r\n..\r") if data.endswith(b"\r\n.\r") else data)


@pytest.mark.parametrize(
    ("target", "attribute", "fault"),
    [
        ("framing", "ContentScanner", Lax),
        ("conversation", "ContentScanner", Lax),
        ("conversation", "ContentScanner", Forgetful),
    ],
)
def test_a_scanner_that_is_wrong_is_found_out(
    monkeypatch: pytest.MonkeyPatch, target: str, attribute: str, fault: type
) -> None:
    """With the fault of another server in the place of ours, the seeds alone are enough to see it."""
    from tests.fuzz import targets

    monkeypatch.setattr(targets, attribute, fault)
    monkeypatch.setattr(server, attribute, fault)
    assert any(fails(target, data) for data in corpus.inputs(target))


def test_a_server_that_reads_on_behind_starttls_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in clear that are run under TLS (CVE-2011-0411)."""
    starttls = server._COMMANDS[Verb.STARTTLS]

    def careless(conversation: server.ServerConversation, verb: Verb, argument: bytes) -> Any:
        lines = conversation._lines
        event = starttls(conversation, verb, argument)
        conversation._lines = lines
        return event

    monkeypatch.setitem(server._COMMANDS, Verb.STARTTLS, careless)  # type: ignore[arg-type]
    assert any(fails("conversation", data) for data in SEEDS["conversation"])


def fails(target: str, data: bytes) -> bool:
    try:
        TARGETS[target](data)
    except AssertionError:
        return True
    return False


LIMITS = reference.Limits(line=100, response=200, message=50, normalize=False)
GOOD = b"EHLO c\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\n..x\r\n.\r\nQUIT\r\n"


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        (b"220 a\r\n250 b\r\n250 c\r\n250 d\r\n354 e\r\n250 2.0.0 QUEUED 1\r\n221 f\r\n", ""),
        (b"220 a\r\n250 b\r\n250 c\r\n250 d\r\n354 e\r\n250 2.0.0 ok\r\n221 f\r\n", "250 without a message"),
        (b"220 a\r\n250 b\r\n250 c\r\n250 d\r\n354 e\r\n554 5.6.0 no\r\n221 f\r\n", "a good message"),
        (b"220 a\r\n250 b\r\n250 c\r\n250 d\r\n503 e\r\n500 f\r\n500 g\r\n221 h\r\n250 i\r\n", "more was said"),
        (b"220 a\r\n250 b\r\n250 c\r\n250 d\r\n354 e\r\n", "no reply"),
        (b"220 a\r\n250 b\r\n250 c\n250 d\r\n", "not a reply line"),
    ],
)
def test_the_reference_reads_replies(said: bytes, wrong: str) -> None:
    """One reply for each line, in order, and a verdict that fits the content; everything else is a disagreement."""
    if wrong:
        with pytest.raises(reference.Disagreement, match=wrong):
            reference.read([GOOD], said, LIMITS)
    else:
        assert reference.read([GOOD], said, LIMITS).messages == [b".x\r\n"]


def test_what_libfuzzer_says_is_understood() -> None:
    """A crash and growth are failures; so is silence. The dictionary is ASCII."""
    quiet = "#2 INITED cov: 10 rss: 50Mb\n#9 DONE cov: 12 rss: 60Mb\nstat::number_of_executed_units: 9\n"
    assert judge("x", 0, quiet) == (True, "x: 9 runs, coverage 12, 50 → 60 MiB")
    assert not judge("x", 77, quiet)[0]
    assert not judge("x", 0, quiet.replace("60Mb", "600Mb"))[0]
    assert not judge("x", 0, "")[0]
    assert dictionary().isascii()
