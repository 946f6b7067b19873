"""What kind of failure it was, in the class names that PowerMTA made common: the label of `bounces_total`.

First by what we found ourselves, then by the enhanced status code (RFC 3463, RFC 5248, the IANA registry), then by the reply's
code and stage; words of the reply's text decide only where the codes say no more than "policy".
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from relaycluster.mail.outcome import Deferred, Failed, Stage
from relaycluster.mail.reply import Reply


class BounceClass(Enum):
    """A closed set: the value is the label."""

    BAD_MAILBOX = "bad-mailbox"
    BAD_DOMAIN = "bad-domain"
    INACTIVE_MAILBOX = "inactive-mailbox"
    QUOTA_ISSUES = "quota-issues"
    SPAM_RELATED = "spam-related"
    POLICY_RELATED = "policy-related"
    CONTENT_RELATED = "content-related"
    MESSAGE_EXPIRED = "message-expired"
    NO_ANSWER_FROM_HOST = "no-answer-from-host"
    BAD_CONNECTION = "bad-connection"
    ROUTING_ERRORS = "routing-errors"
    PROTOCOL_ERRORS = "protocol-errors"
    RELAYING_ISSUES = "relaying-issues"
    VIRUS_RELATED = "virus-related"
    INVALID_SENDER = "invalid-sender"
    BAD_CONFIGURATION = "bad-configuration"
    AUTH_POLICY = "auth-policy"
    OTHER = "other"


# Subject and detail of the enhanced code, whatever its first digit.
_BY_DETAIL: Mapping[str, BounceClass] = MappingProxyType(
    {
        "1.0": BounceClass.BAD_MAILBOX,
        "1.1": BounceClass.BAD_MAILBOX,
        "1.2": BounceClass.BAD_DOMAIN,
        "1.3": BounceClass.BAD_MAILBOX,
        "1.4": BounceClass.BAD_MAILBOX,
        "1.5": BounceClass.OTHER,
        "1.6": BounceClass.INACTIVE_MAILBOX,
        "1.7": BounceClass.INVALID_SENDER,
        "1.8": BounceClass.INVALID_SENDER,
        "1.9": BounceClass.OTHER,
        "1.10": BounceClass.BAD_DOMAIN,
        "2.1": BounceClass.INACTIVE_MAILBOX,
        "2.2": BounceClass.QUOTA_ISSUES,
        "2.3": BounceClass.CONTENT_RELATED,
        "2.4": BounceClass.BAD_MAILBOX,
        "3.1": BounceClass.QUOTA_ISSUES,
        "3.4": BounceClass.CONTENT_RELATED,
        "3.5": BounceClass.BAD_CONFIGURATION,
        "4.1": BounceClass.NO_ANSWER_FROM_HOST,
        "4.2": BounceClass.BAD_CONNECTION,
        "4.3": BounceClass.ROUTING_ERRORS,
        "4.4": BounceClass.ROUTING_ERRORS,
        "4.6": BounceClass.ROUTING_ERRORS,
        "4.7": BounceClass.MESSAGE_EXPIRED,
        "5.3": BounceClass.POLICY_RELATED,
        "7.8": BounceClass.BAD_CONFIGURATION,
        "7.9": BounceClass.BAD_CONFIGURATION,
        "7.11": BounceClass.BAD_CONFIGURATION,
        "7.20": BounceClass.AUTH_POLICY,
        "7.21": BounceClass.AUTH_POLICY,
        "7.22": BounceClass.AUTH_POLICY,
        "7.23": BounceClass.AUTH_POLICY,
        "7.24": BounceClass.AUTH_POLICY,
        "7.25": BounceClass.BAD_CONFIGURATION,  # our address has no name that leads back to it
        "7.26": BounceClass.AUTH_POLICY,
        "7.27": BounceClass.INVALID_SENDER,  # the sender's domain has a null MX
        "7.28": BounceClass.SPAM_RELATED,
    }
)

# The subject alone, where the detail says nothing that we know.
_BY_SUBJECT: Mapping[str, BounceClass] = MappingProxyType(
    {
        "4": BounceClass.BAD_CONNECTION,
        "5": BounceClass.PROTOCOL_ERRORS,
        "6": BounceClass.CONTENT_RELATED,
        "7": BounceClass.POLICY_RELATED,
    }
)

_BY_CODE: Mapping[int, BounceClass] = MappingProxyType(
    {
        500: BounceClass.PROTOCOL_ERRORS,
        501: BounceClass.PROTOCOL_ERRORS,
        502: BounceClass.PROTOCOL_ERRORS,
        503: BounceClass.PROTOCOL_ERRORS,
        504: BounceClass.PROTOCOL_ERRORS,
        555: BounceClass.PROTOCOL_ERRORS,
        521: BounceClass.BAD_DOMAIN,
        556: BounceClass.BAD_DOMAIN,
        530: BounceClass.BAD_CONFIGURATION,
        534: BounceClass.BAD_CONFIGURATION,
        535: BounceClass.BAD_CONFIGURATION,
        538: BounceClass.BAD_CONFIGURATION,
        551: BounceClass.BAD_MAILBOX,
        553: BounceClass.BAD_MAILBOX,
        452: BounceClass.QUOTA_ISSUES,
        552: BounceClass.QUOTA_ISSUES,
    }
)

_BY_STAGE: Mapping[Stage, BounceClass] = MappingProxyType(
    {
        Stage.ROUTING: BounceClass.ROUTING_ERRORS,
        Stage.CONNECT: BounceClass.NO_ANSWER_FROM_HOST,
        Stage.GREETING: BounceClass.POLICY_RELATED,
        Stage.EHLO: BounceClass.POLICY_RELATED,
        Stage.TLS: BounceClass.BAD_CONNECTION,
        Stage.MAIL: BounceClass.INVALID_SENDER,
        Stage.RCPT: BounceClass.BAD_MAILBOX,
        Stage.DATA: BounceClass.POLICY_RELATED,
        Stage.CONTENT: BounceClass.BAD_CONNECTION,
        Stage.FINAL_DOT: BounceClass.CONTENT_RELATED,
    }
)

# Only for replies whose codes say no more than "policy" (x.7.0, x.7.1) or nothing at all. The first that occurs decides.
_BY_WORD: tuple[tuple[str, BounceClass], ...] = (
    ("virus", BounceClass.VIRUS_RELATED),
    ("malware", BounceClass.VIRUS_RELATED),
    ("spam", BounceClass.SPAM_RELATED),
    ("blacklist", BounceClass.SPAM_RELATED),
    ("blocklist", BounceClass.SPAM_RELATED),
    ("dmarc", BounceClass.AUTH_POLICY),
    ("dkim", BounceClass.AUTH_POLICY),
    ("spf", BounceClass.AUTH_POLICY),
    ("relay", BounceClass.RELAYING_ISSUES),
)


def classify(reply: Reply, stage: Stage) -> BounceClass:
    """The class of a reply that refused something at `stage`, the remote server's or our own."""
    _, _, detail = reply.enhanced.partition(".")
    if (known := _BY_DETAIL.get(detail)) is not None:
        return known
    if detail in ("", "0.0", "7.0", "7.1") and (spoken := _by_word(reply)) is not None:
        return spoken
    subject = detail.partition(".")[0]
    if (broad := _BY_SUBJECT.get(subject)) is not None:
        return broad
    if subject in ("1", "2"):
        return BounceClass.BAD_MAILBOX
    if (coded := _BY_CODE.get(reply.code)) is not None:
        return coded
    return _BY_STAGE.get(stage, BounceClass.OTHER) if subject in ("", "0") else BounceClass.OTHER


def class_of(outcome: Deferred | Failed) -> BounceClass:
    """The class of an outcome."""
    return classify(outcome.reply, outcome.stage)


def _by_word(reply: Reply) -> BounceClass | None:
    text = " ".join(reply.lines).lower()
    for word, bounce_class in _BY_WORD:
        if word in text:
            return bounce_class
    return None
