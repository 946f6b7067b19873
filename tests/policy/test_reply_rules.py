"""Rules for the text of replies: which one decides, and what it makes of the verdict."""

from __future__ import annotations

from typing import Any

import pytest

from relaycluster.mail.outcome import Deferred, Failed, Stage
from relaycluster.mail.reply import Reply
from relaycluster.policy.bounce_class import BounceClass
from relaycluster.policy.pace import UNCHANGED, Pace, SlowDown, Suspend
from relaycluster.policy.reply_rules import (
    MOST_KNOWN,
    MOST_PLACES,
    Action,
    AsSaid,
    Defer,
    Fail,
    NextHost,
    ReplyRule,
    ReplyRules,
)
from relaycluster.policy.text_pattern import TextPattern
from relaycluster.policy.trouble import LOCAL_REPLIES, LocalTrouble, Scope, class_of, judge
from tests.support.replies import heard

BUSY = heard("450-4.7.1 Busy\n450 4.7.1 come back later")
NEVER = heard("550 5.7.1 We know you")


def rule(match: str = ".", action: Action = AsSaid(), name: str = "r", **scope: Any) -> ReplyRule:  # noqa: B008
    return ReplyRule(name, TextPattern(match), action, **scope)


@pytest.mark.parametrize(
    ("reply", "stage", "action", "scope", "kind", "pace"),
    [
        (BUSY, Stage.RCPT, AsSaid(), Scope.RECIPIENT, Deferred, UNCHANGED),
        (NEVER, Stage.RCPT, AsSaid(), Scope.RECIPIENT, Failed, UNCHANGED),
        (BUSY, Stage.RCPT, SlowDown(), Scope.DESTINATION, Deferred, SlowDown()),
        (NEVER, Stage.FINAL_DOT, SlowDown(), Scope.DESTINATION, Deferred, SlowDown()),
        (NEVER, Stage.GREETING, Suspend(900), Scope.DESTINATION, Deferred, Suspend(900)),
        (NEVER, Stage.MAIL, Suspend(900), Scope.DESTINATION, Deferred, Suspend(900)),
        (NEVER, Stage.RCPT, Defer(), Scope.RECIPIENT, Deferred, UNCHANGED),
        (NEVER, Stage.FINAL_DOT, Defer(), Scope.MESSAGE, Deferred, UNCHANGED),
        (BUSY, Stage.RCPT, Fail(), Scope.RECIPIENT, Failed, UNCHANGED),
        (BUSY, Stage.MAIL, Fail(), Scope.MESSAGE, Failed, UNCHANGED),
        (BUSY, Stage.GREETING, Fail(), Scope.DESTINATION, Failed, UNCHANGED),
        (heard("421 bye"), Stage.FINAL_DOT, Fail(), Scope.MESSAGE, Failed, UNCHANGED),
        (BUSY, Stage.RCPT, NextHost(), Scope.HOST, Deferred, UNCHANGED),
        (NEVER, Stage.MAIL, NextHost(), Scope.HOST, Failed, UNCHANGED),
    ],
)
def test_actions(reply: Reply, stage: Stage, action: Action, scope: Scope, kind: type, pace: Pace) -> None:
    """What each action makes of a verdict. Whoever slows down or pauses loses no mail, and asks no other host of the same provider."""
    verdict = judge(stage, reply, "mx.example", "a.example", ReplyRules([rule(action=action, name="mine")]))
    assert (verdict.scope, type(verdict.outcome), verdict.pace, verdict.rule) == (scope, kind, pace, "mine")
    assert (verdict.outcome.reply, verdict.outcome.stage, verdict.outcome.host) == (reply, stage, "mx.example")


def test_the_whole_reply_is_seen() -> None:
    """Code, enhanced code and all lines in one, as the log shows them."""
    rules = ReplyRules([rule("^450 4\\.7\\.1 Busy come back later$", Fail())])
    assert isinstance(judge(Stage.RCPT, BUSY, rules=rules).outcome, Failed)
    assert rules.find(Stage.RCPT, heard("450 4.7.1 Busy")) is None


def test_the_first_that_matches_decides() -> None:
    """In their order; one that says nothing new keeps later ones away."""
    rules = ReplyRules([rule("never", Fail()), rule("busy", name="as said"), rule("busy", SlowDown())])
    verdict = judge(Stage.RCPT, BUSY, rules=rules)
    assert (verdict.rule, verdict.pace) == ("as said", UNCHANGED)


@pytest.mark.parametrize(
    ("scope", "domain", "host", "expected"),
    [
        ({}, "a.example", "mx.example", True),
        ({"domains": ("a.example",)}, "a.example", "mx.b.example", True),
        ({"domains": ("a.example",)}, "x.a.example", "mx.b.example", False),
        ({"domains": ("*.a.example",)}, "x.a.example", "mx.b.example", True),
        ({"domains": ("*.a.example",)}, "a.example", "mx.b.example", False),
        ({"domains": ("*",)}, "a.example", "", True),
        ({"mx_suffixes": ("b.example",)}, "a.example", "mx.b.example", True),
        ({"mx_suffixes": ("b.example",)}, "a.example", "b.example", True),
        ({"mx_suffixes": ("b.example",)}, "b.example", "mx.bb.example", False),
        ({"mx_suffixes": ("b.example",)}, "a.example", "mxb.example", False),
        ({"domains": ("a.example",), "mx_suffixes": ("b.example",)}, "c.example", "mx.b.example", True),
        ({"domains": ("a.example",), "mx_suffixes": ("b.example",)}, "a.example", "mx.c.example", True),
        ({"domains": ("a.example",), "mx_suffixes": ("b.example",)}, "c.example", "mx.c.example", False),
        ({"stages": frozenset({Stage.RCPT})}, "a.example", "mx.example", True),
        ({"stages": frozenset({Stage.MAIL})}, "a.example", "mx.example", False),
    ],
)
def test_scope(scope: dict[str, Any], domain: str, host: str, expected: bool) -> None:
    """Domains are exact or below, hosts are whole labels; one of the two is enough; an empty condition is none."""
    rules = ReplyRules([rule(**scope)])
    assert (rules.find(Stage.RCPT, BUSY, domain, host) is not None) == expected
    assert (rules.find(Stage.RCPT, BUSY, domain, host) is not None) == expected  # as remembered


def test_our_own_words_are_no_reply() -> None:
    """A rule speaks of what servers say: what the network did, and nonsense in place of a reply, it does not touch."""
    rules = ReplyRules([rule(action=Fail(), bounce_class=BounceClass.OTHER)])
    for trouble, words in LOCAL_REPLIES.items():
        verdict = judge(Stage.CONNECT, words, "mx", rules=rules)
        assert (verdict.rule, verdict.outcome.reply) == ("", words), trouble
    assert judge(Stage.MAIL, heard("250 fine"), "mx", rules=rules).rule == ""
    lost = Deferred(LOCAL_REPLIES[LocalTrouble.CONNECTION_LOST], Stage.FINAL_DOT, "mx", may_have_arrived=True)
    assert class_of(lost, "", rules) is BounceClass.BAD_CONNECTION


def test_classes() -> None:
    """The class that the rule names, and without one that of the codes."""
    rules = ReplyRules([rule("know you", bounce_class=BounceClass.SPAM_RELATED), rule("busy")])
    assert class_of(Failed(NEVER, Stage.RCPT, "mx"), "a.example", rules) is BounceClass.SPAM_RELATED
    assert class_of(Failed(NEVER, Stage.RCPT, "mx"), "a.example") is BounceClass.POLICY_RELATED
    assert class_of(Failed(BUSY, Stage.RCPT, "mx"), "a.example", rules) is BounceClass.POLICY_RELATED


def test_hosts_do_not_pile_up() -> None:
    """However many hosts answer, what is remembered of them is bounded."""
    rules = ReplyRules([rule(mx_suffixes=("b.example",))])
    for number in range(2 * MOST_PLACES + 1):
        assert rules.find(Stage.RCPT, BUSY, "a.example", f"mx{number}.b.example") is not None
    assert len(rules._for) <= MOST_PLACES
    assert len(rules._known) <= MOST_KNOWN


def test_a_text_is_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction's replies are looked at when they come, for the next host, and for their class; and a thousand recipients that get
    the same words get one judgement. Another stage, domain or host is another question."""
    judged = 0
    occurs_in = TextPattern.occurs_in

    def counted(self: TextPattern, prepared: bytes) -> bool:
        nonlocal judged
        judged += 1
        return occurs_in(self, prepared)

    monkeypatch.setattr(TextPattern, "occurs_in", counted)
    rules = ReplyRules([rule("unknown", bounce_class=BounceClass.BAD_MAILBOX)])
    for number in range(500):
        said = heard(f"550 5.1.1 <user{number}@a.example>: unknown")
        assert judge(Stage.RCPT, said, "mx", "a.example", rules).rule == "r"
        assert class_of(Failed(said, Stage.RCPT, "mx"), "a.example", rules) is BounceClass.BAD_MAILBOX
    assert judged == 1
    for stage, domain, host in (
        (Stage.MAIL, "a.example", "mx"),
        (Stage.RCPT, "b.example", "mx"),
        (Stage.RCPT, "a.example", "my"),
    ):
        assert rules.find(stage, said, domain, host) is not None
    assert judged == 4


def test_equality() -> None:
    """Reading the same configuration again changes nothing."""
    assert ReplyRules([rule("a", Suspend(60))]) == ReplyRules([rule("a", Suspend(60))])
    assert ReplyRules([rule("a", Suspend(60))]) != ReplyRules([rule("a", Suspend(61))])
