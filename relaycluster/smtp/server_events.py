"""What the server's conversation tells its driver: a closed union.

Events whose name ends in `Asked`, and `ContentEnd`, are questions: nothing follows before they are answered.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from attrs import frozen

from relaycluster.mail.address import Address
from relaycluster.mail.envelope import BodyType, Envelope
from relaycluster.mail.reply import Reply


@frozen
class ConnectAsked:
    """A question, first of all: may this client be greeted? `reject` with 421 closes, with 554 lets it only quit."""


@frozen
class Hello:
    """The client introduced itself and was answered; any transaction is forgotten. `esmtp`: with EHLO."""

    name: str
    esmtp: bool


@frozen
class MailAsked:
    """A question: may a transaction begin? `size` is the declared size in octets, never above the limit."""

    reverse_path: Address
    size: int | None
    body: BodyType


@frozen
class RecipientAsked:
    """A question: may the message go to this recipient? Its domain is empty for `<postmaster>` alone."""

    reverse_path: Address
    forward_path: Address


@frozen
class DataAsked:
    """A question: may the content come? Accepted, it is followed by `Content`s and then one of `ContentEnd`, `Aborted`."""

    envelope: Envelope


@frozen
class Content:
    """A piece of content: never empty, dot-unstuffed, cut anywhere."""

    data: bytes


@frozen
class ContentEnd:
    """A question: the message is complete, `size` octets of it were handed on; which reply does it get?"""

    size: int


@frozen
class Aborted:
    """The message that was being received is void: too large, a bare newline in it, or the session ends. In the first two
    cases its octets are still read up to the final dot, and `ContentRefused` follows there."""


@frozen
class ContentRefused:
    """The final dot of a void message came and was answered with `reply`."""

    reply: Reply


@frozen
class CloseAfterSend:
    """Write what is to send, then close. `reply` is the last one: 221 after QUIT, else 421. Nothing follows."""

    reply: Reply


Event = (
    ConnectAsked
    | Hello
    | MailAsked
    | RecipientAsked
    | DataAsked
    | Content
    | ContentEnd
    | Aborted
    | ContentRefused
    | CloseAfterSend
)


class Wait(Enum):
    """Why there is no event now."""

    NEED_DATA = "need data"
    PAUSED = "paused"


NEED_DATA: Final = Wait.NEED_DATA
PAUSED: Final = Wait.PAUSED

_GREETED = (
    220,
    b"",
)  # code and octets of the reply when a driver accepts without giving one; those of a listener are its own
