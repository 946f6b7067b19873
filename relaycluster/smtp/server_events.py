"""What the server's conversation tells its driver: a closed union.

Events whose name ends in `Asked`, and `ContentEnd`, are questions: nothing follows before they are answered. `StartTLS` is an
order: nothing follows before `ServerConversation.secured`.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from attrs import field, frozen

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
class StartTLS:
    """The client was told to begin TLS (RFC 3207). Write what is to send, in the clear; then start TLS; then call `secured`.

    Whatever the client said before counts no more (section 4.2): neither its name nor who it is. What arrived behind the command
    in the clear is thrown away."""


@frozen
class AuthAsked:
    """A question: is this the user's password (RFC 4954)? Accepted, the session is the user's until it ends or TLS starts.

    `mechanism` is "PLAIN" or "LOGIN"; `authorization` the identity to act as, empty for the user's own (RFC 4616 2). Nothing
    here keeps the password: it is in this event alone."""

    mechanism: str
    user: str
    password: bytes = field(repr=False)
    authorization: str = ""


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
    """A question, at DATA or at the first BDAT: may the content come? Accepted, it is followed by `Content`s and then one of
    `ContentEnd`, `Aborted`."""

    envelope: Envelope


@frozen
class Content:
    """A piece of content: never empty, dot-unstuffed, cut anywhere. All pieces together are nothing, or end in CRLF."""

    data: bytes


@frozen
class ContentEnd:
    """A question: the message is complete, `size` octets of it were handed on; which reply does it get?"""

    size: int


@frozen
class Aborted:
    """The message that was being received is void: too large, a bare newline in it, taken back between two BDATs, or the session
    ends. In the first two cases its octets are still read up to the final dot or the end of the chunk, and `ContentRefused`
    follows there."""


@frozen
class ContentRefused:
    """The final dot of a void message came, or the end of the first chunk that could not be accepted, and was answered with
    `reply`. Once a message."""

    reply: Reply


@frozen
class CloseAfterSend:
    """Write what is to send, then close. `reply` is the last one: 221 after QUIT, else 421. Nothing follows."""

    reply: Reply


Event = (
    ConnectAsked
    | Hello
    | StartTLS
    | AuthAsked
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
