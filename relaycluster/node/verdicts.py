"""What the outcomes of one transaction mean for its recipients: who is done, who goes where next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard

from relaycluster.mail import outcome
from relaycluster.mail.address import Address
from relaycluster.mail.item import Claim
from relaycluster.mail.outcome import Outcome, Stage
from relaycluster.mail.reply import Reply
from relaycluster.policy import trouble
from relaycluster.policy.pace import UNCHANGED
from relaycluster.policy.reply_rules import ReplyRules
from relaycluster.policy.trouble import LocalTrouble

FAULT = outcome.Deferred(trouble.LOCAL_REPLIES[LocalTrouble.INTERNAL], Stage.ROUTING, may_have_arrived=True)
"""A fault of our own: tried again, marked, as nobody knows how far it came."""
REPORTED = outcome.Delivered(Reply.of(250, "2.0.0", "a former holder of the item reported that all recipients have it"))
"""Of an item with nobody left."""


def recipients_left(claim: Claim) -> tuple[Address, ...]:
    """The recipients that nobody has delivered to."""
    recipients = claim.item.envelope.recipients
    if not claim.delivered:
        return recipients
    return tuple(who for who in recipients if who.text not in claim.delivered)


def verdict_of(each: Outcome, domain: str, rules: ReplyRules) -> trouble.Verdict | None:
    """What a host's own words mean; None where it said nothing, took the message, or may have it."""
    if isinstance(each, outcome.Delivered) or not trouble.was_said_by_host(each):
        return None
    if isinstance(each, outcome.Deferred) and each.may_have_arrived:
        return None
    return trouble.judge(each.stage, each.reply, each.host, domain, rules)


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


def for_next_host(
    each: Outcome, gone: bool, domain: str, rules: ReplyRules
) -> TypeGuard[outcome.Deferred | outcome.Failed]:
    """Whether another host may take it now: the trouble was this host's, and it certainly has not got the message."""
    if isinstance(each, outcome.Delivered) or (isinstance(each, outcome.Deferred) and each.may_have_arrived):
        return False
    if not trouble.was_said_by_host(each):
        return trouble.another_host_may(each) if isinstance(each, outcome.Failed) else gone and trouble.broke_off(each)
    verdict = trouble.judge(each.stage, each.reply, each.host, domain, rules)
    if isinstance(each, outcome.Failed):
        return verdict.try_next_host
    # Who asks for another pace speaks for all hosts of the destination, also when it closes the connection with it.
    return verdict.try_next_host or (gone and verdict.pace is UNCHANGED)


def together(
    results: Mapping[Address, Outcome], again: Sequence[Address], more: outcome.Deferred | outcome.Failed
) -> dict[Address, Outcome]:
    """For recipients that another host was to take, and `more` became of that: failed only when both say so."""
    return {
        who: trouble.after_all_hosts([each, more])
        for who in again
        if not isinstance(each := results[who], outcome.Delivered)
    }
