"""Every failure on the way out has its meaning decided here: how far it reaches, and whether to try again.

Two questions, in this order. **Scope**: does the trouble speak of this recipient, of this message, of this host, or of the whole
destination? **Outcome**: if nothing else helps, is the recipient deferred or failed? Where a reply leaves doubt, the item is
deferred: a late notice can be explained, mail that was bounced for our own fault cannot be taken back.

docs/design/trouble.md shows the same as one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import assert_never

from attrs import frozen

from relaycluster.mail.outcome import Deferred, Delivered, Failed, Outcome, Stage
from relaycluster.mail.reply import Reply
from relaycluster.policy import bounce_class
from relaycluster.policy.bounce_class import BounceClass
from relaycluster.policy.pace import UNCHANGED, Pace, SlowDown, Suspend
from relaycluster.policy.reply_rules import NO_RULES, AsSaid, Defer, Fail, NextHost, ReplyRule, ReplyRules
from relaycluster.policy.text_pattern import TextPattern, prepare


class Scope(Enum):
    """How far a trouble reaches."""

    RECIPIENT = "recipient"  # the others of this transaction go on
    MESSAGE = "message"  # all recipients that are left in this transaction; the next message may fare better
    HOST = "host"  # this host, now: the same recipients try the next host
    DESTINATION = "destination"  # all hosts of the destination: no other host would say otherwise


class LocalTrouble(Enum):
    """What no remote server said: the network, DNS, or we ourselves found it."""

    NULL_MX = "null-mx"
    NO_SUCH_DOMAIN = "no-such-domain"
    NO_ADDRESS = "no-address"
    DNS_UNAVAILABLE = "dns-unavailable"
    LOOPS_TO_US = "loops-to-us"
    CONNECTION_REFUSED = "connection-refused"
    CONNECT_TIMEOUT = "connect-timeout"
    UNREACHABLE = "unreachable"
    CROWDED = "crowded"
    CONNECTION_LOST = "connection-lost"
    REPLY_TIMEOUT = "reply-timeout"
    PROTOCOL_ERROR = "protocol-error"
    TLS_FAILED = "tls-failed"
    TLS_NOT_OFFERED = "tls-not-offered"
    CERTIFICATE_INVALID = "certificate-invalid"
    EIGHT_BIT_NOT_OFFERED = "8bitmime-not-offered"
    SMTPUTF8_NOT_OFFERED = "smtputf8-not-offered"
    TOO_LARGE = "too-large"
    TOO_MANY_HOPS = "too-many-hops"
    EXPIRED = "expired"
    SUSPENDED = "suspended"
    INTERNAL = "internal"


LOCAL_REPLIES: Mapping[LocalTrouble, Reply] = MappingProxyType(
    {
        LocalTrouble.NULL_MX: Reply.of(556, "5.1.10", "The domain does not accept mail (null MX)"),
        LocalTrouble.NO_SUCH_DOMAIN: Reply.of(550, "5.1.2", "The domain does not exist"),
        LocalTrouble.NO_ADDRESS: Reply.of(550, "5.4.4", "No mail server of the domain has an address"),
        LocalTrouble.DNS_UNAVAILABLE: Reply.of(451, "4.4.3", "The domain name system gave no answer for the domain"),
        LocalTrouble.LOOPS_TO_US: Reply.of(554, "5.4.6", "The mail server of the domain is this system itself"),
        LocalTrouble.CONNECTION_REFUSED: Reply.of(451, "4.4.1", "The host refused the connection"),
        LocalTrouble.CONNECT_TIMEOUT: Reply.of(451, "4.4.1", "The host did not answer the connection attempt in time"),
        LocalTrouble.UNREACHABLE: Reply.of(451, "4.4.1", "There is no network route to the host"),
        LocalTrouble.CROWDED: Reply.of(451, "4.4.5", "All connections that may be open to the destination are in use"),
        LocalTrouble.CONNECTION_LOST: Reply.of(451, "4.4.2", "The connection to the host was lost"),
        LocalTrouble.REPLY_TIMEOUT: Reply.of(451, "4.4.2", "The host did not reply in time"),
        LocalTrouble.PROTOCOL_ERROR: Reply.of(451, "4.5.0", "The host sent a reply that makes no sense here"),
        LocalTrouble.TLS_FAILED: Reply.of(451, "4.7.5", "The TLS handshake with the host failed"),
        LocalTrouble.TLS_NOT_OFFERED: Reply.of(451, "4.7.4", "TLS is required, and the host does not offer it"),
        LocalTrouble.CERTIFICATE_INVALID: Reply.of(451, "4.7.5", "The host's certificate could not be verified"),
        LocalTrouble.EIGHT_BIT_NOT_OFFERED: Reply.of(
            554, "5.6.3", "The host takes no 8-bit content, and this message cannot be converted"
        ),
        LocalTrouble.SMTPUTF8_NOT_OFFERED: Reply.of(
            553,
            "5.6.7",
            "The host takes no internationalized mail (SMTPUTF8), and an address or the header of this message is so",
        ),
        LocalTrouble.TOO_LARGE: Reply.of(552, "5.3.4", "The message is larger than the host accepts"),
        LocalTrouble.TOO_MANY_HOPS: Reply.of(554, "5.4.6", "Too many hops: the message is in a loop"),
        LocalTrouble.EXPIRED: Reply.of(554, "5.4.7", "The message could not be delivered within its lifetime"),
        LocalTrouble.SUSPENDED: Reply.of(451, "4.3.0", "Delivery to the destination is suspended at this system"),
        LocalTrouble.INTERNAL: Reply.of(451, "4.3.0", "A local error; the message will be tried again"),
    }
)
"""Our own words for each local trouble, in the form of a reply so that they travel like one."""

_LOCAL_SCOPES: Mapping[LocalTrouble, Scope] = MappingProxyType(
    {
        **dict.fromkeys(LocalTrouble, Scope.HOST),
        LocalTrouble.NULL_MX: Scope.DESTINATION,
        LocalTrouble.NO_SUCH_DOMAIN: Scope.DESTINATION,
        LocalTrouble.NO_ADDRESS: Scope.DESTINATION,
        LocalTrouble.DNS_UNAVAILABLE: Scope.DESTINATION,
        LocalTrouble.LOOPS_TO_US: Scope.DESTINATION,
        LocalTrouble.SUSPENDED: Scope.DESTINATION,
        LocalTrouble.TOO_MANY_HOPS: Scope.MESSAGE,
        LocalTrouble.EXPIRED: Scope.MESSAGE,
        LocalTrouble.INTERNAL: Scope.MESSAGE,
    }
)

_OURS_ALONE = frozenset({LocalTrouble.DNS_UNAVAILABLE, LocalTrouble.UNREACHABLE})  # whose details are for the operator

_NO_ANSWER = frozenset({LocalTrouble.CONNECTION_LOST, LocalTrouble.REPLY_TIMEOUT, LocalTrouble.PROTOCOL_ERROR})

_STAGE_SCOPES: Mapping[Stage, Scope] = MappingProxyType(
    {
        Stage.ROUTING: Scope.DESTINATION,
        Stage.CONNECT: Scope.HOST,
        Stage.GREETING: Scope.HOST,
        Stage.EHLO: Scope.HOST,
        Stage.TLS: Scope.HOST,
        Stage.MAIL: Scope.MESSAGE,
        Stage.RCPT: Scope.RECIPIENT,
        Stage.DATA: Scope.MESSAGE,
        Stage.CONTENT: Scope.MESSAGE,
        Stage.FINAL_DOT: Scope.MESSAGE,
    }
)

_EXTENSIONS = frozenset({"5.3.4", "5.6.3", "5.6.7"})  # what we say of a host's SIZE, 8BITMIME and SMTPUTF8
_CREDENTIALS = frozenset({530, 534, 535, 538})  # RFC 4954 6, RFC 3207 4: our configuration, not the message
_NO_MAIL_HERE = TextPattern("does(n.t| not) accept (any )?(e-?mail|mail|messages)[.!]?$")
_BEFORE_THE_MESSAGE = frozenset({Stage.CONNECT, Stage.GREETING, Stage.EHLO, Stage.TLS})


@frozen
class Verdict:
    """What a trouble means. `outcome` holds for the recipients in `scope`; with `Scope.HOST` only when no other host is left
    (see `after_all_hosts`). `pace` is what it means for all further mail to the destination (to the whole provider, where its
    limits are shared); `rule` names the reply rule that decided, for logs."""

    scope: Scope
    outcome: Deferred | Failed
    pace: Pace = UNCHANGED
    rule: str = ""

    @property
    def try_next_host(self) -> bool:
        """Whether the same recipients should go to the destination's next host at once."""
        return self.scope is Scope.HOST


def judge(stage: Stage, reply: Reply, host: str = "", domain: str = "", rules: ReplyRules = NO_RULES) -> Verdict:
    """What a remote server's reply means, which refused what was asked at `stage` for mail to `domain`: by its codes, unless one
    of the `rules` knows more.

    A positive reply where none fits (354 to MAIL, 250 to DATA) is a protocol error, like one that is no reply at all.
    """
    verdict = _by_codes(stage, reply, host)
    rule = _rule_for(verdict.outcome, domain, rules) if verdict.outcome.reply is reply else None
    return verdict if rule is None else _by_rule(verdict, rule)


def _rule_for(outcome: Deferred | Failed, domain: str, rules: ReplyRules) -> ReplyRule | None:
    """The rule for a reply that came over the wire; our own words are none of theirs."""
    if not rules or not was_said_by_host(outcome):
        return None
    return rules.find(outcome.stage, outcome.reply, domain, outcome.host)


def _by_rule(said: Verdict, rule: ReplyRule) -> Verdict:
    """A verdict as a rule of the operator's, or of the shipped ones, changes it."""
    outcome = said.outcome
    deferred = Deferred(outcome.reply, outcome.stage, outcome.host)
    match rule.action:
        case AsSaid():
            return Verdict(said.scope, outcome, rule=rule.name)
        case SlowDown() | Suspend() as pace:
            # It is about us, and every other host of the provider would say the same; no mail is lost to it.
            return Verdict(Scope.DESTINATION, deferred, pace, rule.name)
        case Fail():
            scope = _STAGE_SCOPES[outcome.stage]
            failed = Failed(outcome.reply, outcome.stage, outcome.host)
            return Verdict(Scope.DESTINATION if scope is Scope.HOST else scope, failed, rule=rule.name)
        case Defer():
            return Verdict(said.scope, deferred, rule=rule.name)
        case NextHost():
            return Verdict(Scope.HOST, outcome, rule=rule.name)
        case _:
            assert_never(rule.action)


def _by_codes(stage: Stage, reply: Reply, host: str) -> Verdict:
    code = reply.code
    if not 400 <= code < 600:
        return judge_local(stage, LocalTrouble.PROTOCOL_ERROR, host)
    deferred = Deferred(reply, stage, host)
    if code == 421:
        # RFC 5321 3.8: the server closes the channel, at whatever command. After the final dot it says that it did not take it.
        return Verdict(Scope.HOST, deferred)
    if code in _CREDENTIALS:
        return Verdict(Scope.DESTINATION, deferred)
    scope = _STAGE_SCOPES[stage]
    if reply.is_transient:
        if stage in (Stage.MAIL, Stage.DATA, Stage.FINAL_DOT) and _host_is_unwell(reply):
            scope = Scope.HOST
        return Verdict(scope, deferred)
    if stage in _BEFORE_THE_MESSAGE and not _takes_no_mail(reply):
        # The host knows nothing of the message yet. RFC 5321 3.1 means "no SMTP service here" by 554; servers mean "not from
        # your address, today" just as often, and a refused EHLO or STARTTLS is a matter of our name or configuration.
        return Verdict(scope, deferred)
    if stage is Stage.RCPT and is_too_many_recipients(reply):
        return Verdict(scope, deferred)
    return Verdict(scope, Failed(reply, stage, host))


def judge_local(stage: Stage, trouble: LocalTrouble, host: str = "", detail: str = "") -> Verdict:
    """What a trouble means that no remote server put into words. `detail` follows our words in parentheses; where it may name machines
    of ours it is a line of its own, which logs show and notices leave out."""
    reply = LOCAL_REPLIES[trouble]
    if detail and trouble in _OURS_ALONE:
        reply = Reply(reply.code, reply.enhanced, (*reply.lines, f"({detail})"))
    elif detail:
        reply = Reply.of(reply.code, reply.enhanced, f"{reply.lines[0]} ({detail})")
    if stage is Stage.FINAL_DOT and trouble in _NO_ANSWER:
        # RFC 5321 4.5.3.2.6: the host may have the message. Another host at once would very likely make two of it.
        return Verdict(Scope.MESSAGE, Deferred(reply, stage, host, may_have_arrived=True))
    if reply.is_permanent:
        return Verdict(_LOCAL_SCOPES[trouble], Failed(reply, stage, host))
    return Verdict(_LOCAL_SCOPES[trouble], Deferred(reply, stage, host))


def after_all_hosts(outcomes: Sequence[Deferred | Failed]) -> Deferred | Failed:
    """The one outcome for a recipient whom every host refused; `outcomes` are theirs, most preferred host first.

    Failed only when all said so. Among deferrals the most telling is kept: one that may have arrived, then what a server
    said, then what the network did; the more preferred host first.
    """
    deferrals = [outcome for outcome in outcomes if isinstance(outcome, Deferred)]
    if not outcomes:
        raise ValueError("no host was tried: that is a matter of routing")
    if not deferrals:
        return outcomes[0]
    return min(deferrals, key=lambda outcome: (not outcome.may_have_arrived, not was_said_by_host(outcome)))


def is_too_many_recipients(reply: Reply) -> bool:
    """Whether the reply to RCPT asks for fewer recipients in a transaction: the refused ones may follow in another at once, if
    some were accepted in this one.

    RFC 5321 4.5.3.1.10: 552 is to be read as 452. But 552 5.2.2 is a full mailbox and 552 5.3.4 too large a message.
    """
    if reply.code == 452:
        return reply.enhanced in ("", "4.5.3")
    if reply.code == 552:
        return reply.enhanced in ("", "5.5.3", "4.5.3", "5.0.0")
    return reply.enhanced in ("4.5.3", "5.5.3") and not reply.is_positive


def _takes_no_mail(reply: Reply) -> bool:
    """Whether a reply to nothing yet says that the host never takes mail from anybody (RFC 7504).

    521 alone does not: with it Postfix's postscreen, and others, hang up on a client that is on some list today.
    """
    return reply.code == 556 or (reply.code == 521 and _NO_MAIL_HERE.occurs_in(prepare(" ".join(reply.lines))))


def _host_is_unwell(reply: Reply) -> bool:
    """Whether a 4yz reply speaks of the host (full disk, overload, shutting down) and not of the message."""
    if reply.enhanced:
        return reply.enhanced.startswith("4.3.")  # RFC 3463 3.4: mail system status
    return reply.code == 452


def another_host_may(failed: Failed) -> bool:
    """Whether the failure is only what we found this host not to offer: others of the destination may offer it."""
    return failed.reply.enhanced in _EXTENSIONS and not failed.reply.heard


def needs_smtputf8(failed: Failed) -> bool:
    """Whether we found that the host lacks the SMTPUTF8 that the transaction needs."""
    return failed.reply.enhanced == "5.6.7" and not failed.reply.heard


def was_said_by_host(outcome: Outcome) -> bool:
    """Whether the reply came over the wire; otherwise the words are ours (RFC 3464 2.3.6 keeps them apart)."""
    return outcome.reply.heard


def broke_off(outcome: Outcome) -> bool:
    """Whether there is no reply because the host, or the network to it, broke off; not so where this node did (4.3.x in our words:
    the lease that is no longer proven, content that can not be read, a node that stops)."""
    return not outcome.reply.heard and not outcome.reply.enhanced.startswith("4.3.")


def class_of(outcome: Deferred | Failed, domain: str = "", rules: ReplyRules = NO_RULES) -> BounceClass:
    """The bounce class of an outcome of mail to `domain`: the one that a reply rule names, else what the codes say."""
    rule = _rule_for(outcome, domain, rules)
    return rule.bounce_class if rule is not None and rule.bounce_class is not None else bounce_class.class_of(outcome)


def status_of(outcome: Outcome) -> str:
    """The enhanced status code for logs and notices (RFC 3463), whose first digit agrees with what we do about it.

    A server that sends no code, or one that contradicts its reply, gets the general x.0.0.
    """
    match outcome:
        case Delivered():
            digit = "2"
        case Deferred():
            digit = "4"
        case Failed():
            digit = "5"
        case _:
            assert_never(outcome)
    first, dot, rest = outcome.reply.enhanced.partition(".")
    return f"{digit}.{rest}" if dot and first in ("2", "4", "5") else f"{digit}.0.0"
