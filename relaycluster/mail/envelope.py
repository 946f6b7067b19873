"""The envelope: who sends, to whom, and what the content may hold (RFC 5321 2.3.1)."""

from __future__ import annotations

from enum import Enum

from attrs import frozen

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


@frozen
class Envelope:
    """What MAIL and RCPT said.

    `recipients` are those that still have no final outcome: it shrinks as an item's recipients are settled.
    """

    reverse_path: Address
    recipients: tuple[Address, ...]
    body: BodyType = BodyType.SEVEN_BIT
    smtputf8: bool = False
