"""The classes of bounces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail.outcome import Stage
from relaycluster.mail.reply import Reply
from relaycluster.policy.bounce_class import BounceClass, class_of, classify
from relaycluster.policy.trouble import LocalTrouble, judge_local


@pytest.mark.parametrize(
    ("code", "enhanced", "text", "stage", "expected"),
    [
        (550, "5.1.1", "user unknown", Stage.RCPT, "bad-mailbox"),
        (550, "", "no such user", Stage.RCPT, "bad-mailbox"),
        (550, "5.2.1", "disabled", Stage.RCPT, "inactive-mailbox"),
        (552, "5.2.2", "full", Stage.RCPT, "quota-issues"),
        (552, "", "full", Stage.RCPT, "quota-issues"),
        (552, "5.3.4", "too large", Stage.FINAL_DOT, "content-related"),
        (554, "5.7.1", "This looks like SPAM to us", Stage.FINAL_DOT, "spam-related"),
        (554, "5.7.1", "virus found", Stage.FINAL_DOT, "virus-related"),
        (550, "5.7.1", "Relaying denied", Stage.RCPT, "relaying-issues"),
        (550, "5.7.1", "go away", Stage.RCPT, "policy-related"),
        (550, "5.7.26", "unauthenticated", Stage.FINAL_DOT, "auth-policy"),
        (550, "5.7.1", "failed DMARC", Stage.FINAL_DOT, "auth-policy"),
        (553, "5.1.8", "no such sender domain", Stage.MAIL, "invalid-sender"),
        (550, "", "rejected", Stage.MAIL, "invalid-sender"),
        (554, "", "not for you", Stage.GREETING, "policy-related"),
        (503, "5.5.1", "bad sequence", Stage.RCPT, "protocol-errors"),
        (500, "", "what", Stage.MAIL, "protocol-errors"),
        (535, "5.7.8", "wrong password", Stage.MAIL, "bad-configuration"),
        (550, "5.6.0", "bad content", Stage.FINAL_DOT, "content-related"),
        (550, "5.9.9", "new", Stage.FINAL_DOT, "other"),
        (550, "5.1.1", "your spam is not wanted by this unknown user", Stage.RCPT, "bad-mailbox"),
    ],
)
def test_replies(code: int, enhanced: str, text: str, stage: Stage, expected: str) -> None:
    """Typical replies and their classes; a code that says what it was outweighs words."""
    assert classify(Reply.of(code, enhanced, text), stage) is BounceClass(expected)


@pytest.mark.parametrize(
    ("trouble", "stage", "expected"),
    [
        (LocalTrouble.EXPIRED, Stage.ROUTING, BounceClass.MESSAGE_EXPIRED),
        (LocalTrouble.NULL_MX, Stage.ROUTING, BounceClass.BAD_DOMAIN),
        (LocalTrouble.NO_SUCH_DOMAIN, Stage.ROUTING, BounceClass.BAD_DOMAIN),
        (LocalTrouble.NO_ADDRESS, Stage.ROUTING, BounceClass.ROUTING_ERRORS),
        (LocalTrouble.LOOPS_TO_US, Stage.ROUTING, BounceClass.ROUTING_ERRORS),
        (LocalTrouble.CONNECTION_REFUSED, Stage.CONNECT, BounceClass.NO_ANSWER_FROM_HOST),
        (LocalTrouble.CONNECTION_LOST, Stage.CONTENT, BounceClass.BAD_CONNECTION),
        (LocalTrouble.EIGHT_BIT_NOT_OFFERED, Stage.EHLO, BounceClass.CONTENT_RELATED),
        (LocalTrouble.TOO_LARGE, Stage.MAIL, BounceClass.CONTENT_RELATED),
    ],
)
def test_local_troubles(trouble: LocalTrouble, stage: Stage, expected: BounceClass) -> None:
    """Our own replies have the class that they mean."""
    assert class_of(judge_local(stage, trouble).outcome) is expected


@given(
    st.integers(400, 599),
    st.from_regex(r"([245]\.\d{1,3}\.\d{1,3})?", fullmatch=True),
    st.text(),
    st.sampled_from(Stage),
)
def test_everything_has_a_class(code: int, enhanced: str, text: str, stage: Stage) -> None:
    """Whatever a server says, the label is one of the closed set."""
    assert isinstance(classify(Reply.of(code, enhanced, text), stage), BounceClass)
