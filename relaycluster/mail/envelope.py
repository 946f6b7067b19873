"""The envelope: who sends, to whom, and what the content may hold (RFC 5321 2.3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from attrs import field, frozen

from relaycluster.mail.address import Address


class BodyType(Enum):
    """The BODY parameter of MAIL (RFC 6152)."""

    SEVEN_BIT = "7BIT"
    EIGHT_BIT = "8BITMIME"


class MessageClass(Enum):
    """How urgent a message is; the value orders the queue's indexes."""

    URGENT = 0
    NORMAL = 1
    BULK = 2

    label: str
    """As people write it: `urgent`, `normal`, `bulk`."""


for _class in MessageClass:
    _class.label = _class.name.lower()

CLASSES: Final[Mapping[str, MessageClass]] = MappingProxyType({each.label: each for each in MessageClass})
"""By label."""


class Ret(Enum):
    """The RET parameter of MAIL: how much of the message comes back with a failure (RFC 3461 4.3)."""

    FULL = "FULL"
    HEADERS = "HDRS"


class Notify(Enum):
    """What the NOTIFY parameter of RCPT may ask to be told about (RFC 3461 4.1)."""

    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    DELAY = "DELAY"


@frozen
class NotifyRequest:
    """What RCPT asked for one recipient.

    `notify` is None when it was not said (then failures and delays are told), empty for NEVER. `original_recipient` is the ORCPT
    parameter as it was given, its address in xtext (RFC 3461 4.2); empty when there is none.
    """

    notify: frozenset[Notify] | None = None
    original_recipient: str = ""


NO_REQUESTS: Final[Mapping[str, NotifyRequest]] = MappingProxyType({})


@frozen
class Envelope:
    """What MAIL and RCPT said.

    `recipients` are those that still have no final outcome: it shrinks as an item's recipients are settled. `envelope_id` is the
    ENVID parameter as it was given, in xtext (RFC 3461 4.4). `requests` has, by the recipient's text, what RCPT asked for those that
    asked for something.
    """

    reverse_path: Address
    recipients: tuple[Address, ...]
    body: BodyType = BodyType.SEVEN_BIT
    smtputf8: bool = False
    ret: Ret | None = None
    envelope_id: str = ""
    requests: Mapping[str, NotifyRequest] = field(default=NO_REQUESTS, hash=False)
