"""What the outcomes of one transaction mean for its recipients: who is done, who goes where next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from relaycluster.mail import outcome
from relaycluster.mail.address import Address
from relaycluster.mail.item import Claim
from relaycluster.mail.outcome import Outcome, Stage
from relaycluster.policy import trouble


def recipients_left(claim: Claim) -> tuple[Address, ...]:
    """The recipients that nobody has delivered to."""
    recipients = claim.item.envelope.recipients
    if not claim.delivered:
        return recipients
    return tuple(who for who in recipients if who.text not in claim.delivered)


def judged(each: Outcome) -> Outcome:
    """The outcome as the failure policy sees it: a 5yz that is to be read as transient, for one."""
    if isinstance(each, outcome.Failed) and trouble.was_said_by_host(each):
        return trouble.judge(each.stage, each.reply, each.host).outcome
    return each


def too_many(pairs: Sequence[tuple[Address, Outcome]]) -> list[Address]:
    """Recipients that were only too many for one transaction; nobody when it took none at all."""
    if not any(isinstance(each, outcome.Delivered) for _, each in pairs):
        return []
    return [
        who
        for who, each in pairs
        if isinstance(each, outcome.Deferred)
        and each.stage is Stage.RCPT
        and trouble.is_too_many_recipients(each.reply)
    ]


def spared(pairs: Sequence[tuple[Address, Outcome]]) -> list[Address]:
    """Recipients with plain addresses who failed only because others of the same transaction need SMTPUTF8."""
    failed = [who for who, each in pairs if isinstance(each, outcome.Failed) and trouble.needs_smtputf8(each)]
    plain = [who for who in failed if who.text.isascii()]
    return plain if len(plain) < len(failed) else []


def for_next_host(each: Outcome, gone: bool) -> bool:
    """Whether another host may take it now: the trouble was this host's, and it certainly has not got the message."""
    if isinstance(each, outcome.Failed):
        return trouble.another_host_may(each)
    if not isinstance(each, outcome.Deferred) or each.may_have_arrived:
        return False
    return gone or trouble.judge(each.stage, each.reply, each.host).try_next_host


def together(
    results: Mapping[Address, Outcome], again: Sequence[Address], more: outcome.Deferred | outcome.Failed
) -> dict[Address, Outcome]:
    """For recipients that another host was to take, and `more` became of that: failed only when both say so."""
    return {
        who: trouble.after_all_hosts([each, more])
        for who in again
        if not isinstance(each := results[who], outcome.Delivered)
    }
