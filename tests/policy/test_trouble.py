"""The failure policy."""

from __future__ import annotations

import pytest

from relaycluster.mail.dsn import as_told
from relaycluster.mail.outcome import Deferred, Delivered, Failed, Stage
from relaycluster.mail.reply import Reply
from relaycluster.policy.bounce_class import BounceClass
from relaycluster.policy.reply_rules import ReplyRule, ReplyRules
from relaycluster.policy.text_pattern import TextPattern
from relaycluster.policy.trouble import (
    LOCAL_REPLIES,
    LocalTrouble,
    Scope,
    after_all_hosts,
    another_host_may,
    is_too_many_recipients,
    judge,
    judge_local,
    needs_smtputf8,
    status_of,
    was_said_by_host,
)
from relaycluster.smtp.client import ClientConversation
from relaycluster.smtp.client_events import Ended
from tests.support.replies import heard

STAGES_WITH_REPLIES = [stage for stage in Stage if stage not in (Stage.ROUTING, Stage.CONNECT)]


@pytest.mark.parametrize(
    ("stage", "text", "scope", "kind"),
    [
        (Stage.GREETING, "421 busy", Scope.HOST, Deferred),
        (Stage.GREETING, "450 later", Scope.HOST, Deferred),
        (Stage.GREETING, "554 no service for you", Scope.HOST, Deferred),
        (Stage.GREETING, "521 mx.example does not accept mail", Scope.HOST, Failed),
        (Stage.GREETING, "521 5.3.2 Host does not accept mail.", Scope.HOST, Failed),
        (
            Stage.GREETING,
            "521 5.7.1 Service unavailable; client [192.0.2.1] blocked using list.example",
            Scope.HOST,
            Deferred,
        ),
        (Stage.GREETING, "521 5.3.2 Service currently unavailable", Scope.HOST, Deferred),
        (Stage.GREETING, "521 5.5.1 Protocol error", Scope.HOST, Deferred),
        (Stage.GREETING, "521 mx.example does not accept mail from 192.0.2.1", Scope.HOST, Deferred),
        (Stage.GREETING, "521 too busy", Scope.HOST, Deferred),
        (Stage.TLS, "521 5.7.1 no", Scope.HOST, Deferred),
        (Stage.GREETING, "556 no mail here", Scope.HOST, Failed),
        (Stage.EHLO, "451 later", Scope.HOST, Deferred),
        (Stage.EHLO, "550 bad name", Scope.HOST, Deferred),
        (Stage.EHLO, "521 Host does not accept mail", Scope.HOST, Failed),
        (Stage.TLS, "454 4.7.0 later", Scope.HOST, Deferred),
        (Stage.TLS, "502 5.5.1 what", Scope.HOST, Deferred),
        (Stage.MAIL, "550 5.7.1 sender refused", Scope.MESSAGE, Failed),
        (Stage.MAIL, "451 4.7.1 greylisted", Scope.MESSAGE, Deferred),
        (Stage.MAIL, "452 4.3.1 disk full", Scope.HOST, Deferred),
        (Stage.MAIL, "452 full", Scope.HOST, Deferred),
        (Stage.MAIL, "552 5.3.4 too large", Scope.MESSAGE, Failed),
        (Stage.MAIL, "530 5.7.0 Must issue a STARTTLS command first", Scope.DESTINATION, Deferred),
        (Stage.MAIL, "535 5.7.8 credentials", Scope.DESTINATION, Deferred),
        (Stage.MAIL, "421 4.3.2 closing", Scope.HOST, Deferred),
        (Stage.RCPT, "550 5.1.1 unknown", Scope.RECIPIENT, Failed),
        (Stage.RCPT, "450 4.2.1 busy", Scope.RECIPIENT, Deferred),
        (Stage.RCPT, "452 4.5.3 too many", Scope.RECIPIENT, Deferred),
        (Stage.RCPT, "552 too many", Scope.RECIPIENT, Deferred),
        (Stage.RCPT, "552 5.2.2 mailbox full", Scope.RECIPIENT, Failed),
        (Stage.RCPT, "552 5.3.4 too large", Scope.RECIPIENT, Failed),
        (Stage.RCPT, "554 5.5.3 too many", Scope.RECIPIENT, Deferred),
        (Stage.RCPT, "421 closing", Scope.HOST, Deferred),
        (Stage.DATA, "451 4.7.1 greylisted", Scope.MESSAGE, Deferred),
        (Stage.DATA, "554 5.5.1 no valid recipients", Scope.MESSAGE, Failed),
        (Stage.DATA, "250 ok", Scope.HOST, Deferred),
        (Stage.MAIL, "354 go", Scope.HOST, Deferred),
        (Stage.FINAL_DOT, "550 5.7.1 spam", Scope.MESSAGE, Failed),
        (Stage.FINAL_DOT, "451 4.6.0 later", Scope.MESSAGE, Deferred),
        (Stage.FINAL_DOT, "452 4.3.1 disk full", Scope.HOST, Deferred),
        (Stage.FINAL_DOT, "421 closing", Scope.HOST, Deferred),
    ],
)
def test_replies(stage: Stage, text: str, scope: Scope, kind: type) -> None:
    """The table of docs/design/trouble.md."""
    verdict = judge(stage, heard(text), "mx.example")
    assert (verdict.scope, type(verdict.outcome)) == (scope, kind)
    assert (verdict.outcome.stage, verdict.outcome.host) == (stage, "mx.example")
    assert verdict.try_next_host == (scope is Scope.HOST)


def test_every_reply_has_a_meaning() -> None:
    """No code at any stage is without a verdict; a 4yz never fails, and nothing that the host said before it knew of the
    message fails it, except "no mail here"."""
    for stage in STAGES_WITH_REPLIES:
        for code in range(200, 600):
            outcome = judge(stage, heard(f"{code} words")).outcome
            if isinstance(outcome, Failed):
                assert code >= 500
                assert stage not in (Stage.GREETING, Stage.EHLO, Stage.TLS) or code == 556
                assert code not in (421, 530, 535)
            else:
                assert not outcome.may_have_arrived or (stage is Stage.FINAL_DOT and code < 400)


@pytest.mark.parametrize(
    ("trouble", "scope", "status"),
    [
        (LocalTrouble.NULL_MX, Scope.DESTINATION, "5.1.10"),
        (LocalTrouble.NO_SUCH_DOMAIN, Scope.DESTINATION, "5.1.2"),
        (LocalTrouble.NO_ADDRESS, Scope.DESTINATION, "5.4.4"),
        (LocalTrouble.SUSPENDED, Scope.DESTINATION, "4.3.0"),
        (LocalTrouble.DNS_UNAVAILABLE, Scope.DESTINATION, "4.4.3"),
        (LocalTrouble.LOOPS_TO_US, Scope.DESTINATION, "5.4.6"),
        (LocalTrouble.CONNECTION_REFUSED, Scope.HOST, "4.4.1"),
        (LocalTrouble.CONNECT_TIMEOUT, Scope.HOST, "4.4.1"),
        (LocalTrouble.TLS_FAILED, Scope.HOST, "4.7.5"),
        (LocalTrouble.EIGHT_BIT_NOT_OFFERED, Scope.HOST, "5.6.3"),
        (LocalTrouble.EXPIRED, Scope.MESSAGE, "5.4.7"),
        (LocalTrouble.INTERNAL, Scope.MESSAGE, "4.3.0"),
    ],
)
def test_local_troubles(trouble: LocalTrouble, scope: Scope, status: str) -> None:
    """What no server said: its scope and its status."""
    verdict = judge_local(Stage.ROUTING, trouble)
    assert (verdict.scope, status_of(verdict.outcome)) == (scope, status)


PRIVATE = (LocalTrouble.DNS_UNAVAILABLE, LocalTrouble.UNREACHABLE)


def test_every_local_trouble_has_its_words() -> None:
    """Each has a reply of its own whose code and enhanced code agree, and nobody takes it for a server's. What may
    name our machines is told in logs, and not in notices."""
    assert set(LOCAL_REPLIES) == set(LocalTrouble)
    assert len(set(LOCAL_REPLIES.values())) == len(LocalTrouble)
    for trouble, words in LOCAL_REPLIES.items():
        assert str(words.code)[0] == words.enhanced[0]
        assert not was_said_by_host(judge_local(Stage.CONNECT, trouble).outcome)
        detailed = judge_local(Stage.CONNECT, trouble, detail="errno 111").outcome
        in_notices = str(words) if trouble in PRIVATE else f"{words} (errno 111)"
        assert str(detailed.reply) == f"{words} (errno 111)"
        assert str(as_told(detailed.reply)) == in_notices
        assert not was_said_by_host(detailed)
    assert was_said_by_host(judge(Stage.RCPT, heard("550 5.1.1 no")).outcome)


@pytest.mark.parametrize(
    "text",
    [*map(str, LOCAL_REPLIES.values()), "554 5.4.7 given up by this node", "451 4.4.2 connection lost while idle"],
)
def test_a_server_cannot_speak_in_our_name(text: str) -> None:
    """Its words are its own, whatever they are: they are told as such, and rules see them."""
    rules = ReplyRules([ReplyRule("any", TextPattern("."), bounce_class=BounceClass.OTHER)])
    verdict = judge(Stage.RCPT, heard(text), "mx", rules=rules)
    assert was_said_by_host(verdict.outcome)
    assert verdict.rule == "any"
    assert isinstance(verdict.outcome, Deferred) or not another_host_may(verdict.outcome)


@pytest.mark.parametrize(
    ("kind", "elsewhere"),
    [
        (LocalTrouble.SMTPUTF8_NOT_OFFERED, True),
        (LocalTrouble.EIGHT_BIT_NOT_OFFERED, True),
        (LocalTrouble.TOO_LARGE, True),
        (LocalTrouble.NO_SUCH_DOMAIN, False),
    ],
)
def test_what_a_host_does_not_offer(kind: LocalTrouble, elsewhere: bool) -> None:
    """Found in its extensions, it speaks of this host alone; said by a server, or found about the destination, it does not."""
    failed = judge_local(Stage.MAIL, kind, detail="so much").outcome
    assert isinstance(failed, Failed)
    assert another_host_may(failed) is elsewhere
    assert needs_smtputf8(failed) is (kind is LocalTrouble.SMTPUTF8_NOT_OFFERED)
    for text in ("553 5.6.7 no", "554 5.6.3 no", "552 5.3.4 no"):
        said = judge(Stage.MAIL, heard(text)).outcome
        assert isinstance(said, Failed)
        assert not another_host_may(said)
        assert not needs_smtputf8(said)


@pytest.mark.parametrize("said", [b"", b"what?\r\n", b"354 go\r\n", b"220 hi\r\n250 ok\r\n"])
def test_what_the_client_says_itself(said: bytes) -> None:
    """The words for a conversation that broke off are known as ours, and not told as the server's."""
    for end in (lambda client: client.connection_lost("reset"), lambda client: client.timed_out()):
        client = ClientConversation("us.example", "mx.example")
        client.receive_data(said)
        end(client)
        event = client.next_event()
        assert isinstance(event, Ended)
        assert event.outcome is not None
        assert not was_said_by_host(event.outcome), event.outcome


def test_silence_after_the_final_dot() -> None:
    """The dot was written and nothing came back: the message may be there, so no other host gets it now. Before the dot, the
    same loss sends it to the next host."""
    for trouble in (LocalTrouble.CONNECTION_LOST, LocalTrouble.REPLY_TIMEOUT, LocalTrouble.PROTOCOL_ERROR):
        verdict = judge_local(Stage.FINAL_DOT, trouble, "mx")
        assert isinstance(verdict.outcome, Deferred)
        assert verdict.outcome.may_have_arrived
        assert not verdict.try_next_host
        before = judge_local(Stage.CONTENT, trouble, "mx")
        assert isinstance(before.outcome, Deferred)
        assert not before.outcome.may_have_arrived
        assert before.try_next_host


def test_after_all_hosts() -> None:
    """One host that may take it later outweighs all that refused; what a server said outweighs what the network did; where
    all refused, the most preferred host's words count."""
    refused = judge_local(Stage.CONNECT, LocalTrouble.CONNECTION_REFUSED, "a").outcome
    busy = judge(Stage.GREETING, heard("421 busy"), "b").outcome
    never = judge(Stage.GREETING, heard("556 never"), "c").outcome
    never_too = judge(Stage.GREETING, heard("556 never"), "d").outcome
    perhaps = judge_local(Stage.FINAL_DOT, LocalTrouble.CONNECTION_LOST, "e").outcome
    assert after_all_hosts([never, refused]) is refused
    assert after_all_hosts([refused, never, busy]) is busy
    assert after_all_hosts([refused, busy, perhaps]) is perhaps
    assert after_all_hosts([never_too, never]) is never_too
    with pytest.raises(ValueError, match="no host"):
        after_all_hosts([])


def test_status_agrees_with_what_we_do() -> None:
    """A 554 in a greeting that we defer is shown as 4.x.x; a missing code becomes x.0.0."""
    assert status_of(judge(Stage.GREETING, heard("554 5.7.1 no")).outcome) == "4.7.1"
    assert status_of(judge(Stage.RCPT, heard("550 no")).outcome) == "5.0.0"
    assert status_of(judge(Stage.RCPT, Reply(550, "2.1.5", ("odd",))).outcome) == "5.1.5"
    assert status_of(Delivered(heard("250 2.1.5 fine"))) == "2.1.5"


def test_too_many_recipients() -> None:
    """RFC 5321 4.5.3.1.10, and the enhanced code where there is one."""
    for text in ("452 too many", "452 4.5.3 too many", "552 too many", "552 5.5.3 too many", "451 4.5.3 later"):
        assert is_too_many_recipients(heard(text)), text
    for text in ("452 4.2.2 full", "452 4.3.1 disk", "552 5.2.2 full", "552 5.3.4 large", "550 5.1.1 no"):
        assert not is_too_many_recipients(heard(text)), text
