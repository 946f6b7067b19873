"""What becomes of the header of a message that our own users and machines hand in (RFC 6409 8): completed, its author checked, signed.

Only on listeners of mode `submission`; a header that passes through a listener of mode `mx` gets our `Received:` and nothing else. No
content is looked at: MIME is the business of those who write and read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import frozen

from relaycluster.mail.address import Address
from relaycluster.mail.envelope import CLASSES, MessageClass
from relaycluster.mail.header import HeaderField, certain_mailboxes, domain_of, split_fields
from relaycluster.mail.reply import Reply
from relaycluster.policy.account import Account

RELAY_CLASS: Final = b"relay-class"

AUTHOR_OCTETS: Final = 32 * 1024
"""So long may the fields be that name the author of a user's message, if the user may not send as anybody."""
MOST_AUTHORS: Final = 1000
"""So many mailboxes may stand in them."""
MOST_IDN: Final = 50
"""In so many different domains that are not ASCII: A-labels cost a hundred times what the rest does."""

_AUTHOR = Reply.of(553, "5.7.1", "Sender address rejected: From: names an address that this user may not send as")
_UNCERTAIN = Reply.of(
    553, "5.7.1", "Sender address rejected: From: can be read in more than one way, write it like Name <user@domain>"
)
_TOO_MANY_AUTHORS = Reply.of(554, "5.6.0", "The message has too many authors")
_NO_FIELD = Reply.of(554, "5.6.0", "The message's header has a line that is no header field")
_INSTEAD_OF_FROM: Final = frozenset({b"sender", b"resent-from"})


@frozen
class Submitted:
    """A header as it will be sent, without signatures, and the class that its sender asked for."""

    fields: Sequence[HeaderField]
    message_class: MessageClass | None


def submitted(header: bytes, account: Account | None, hostname: str, queue_id: str, date: str) -> Submitted | Reply:
    """Complete and check a header that begins with our own `Received:`; `date` is as `trace.date_time` writes it.

    Date and Message-ID are added behind our trace field where they are missing (RFC 6409 8.2, 8.3). Of an authenticated sender every
    mailbox of every `From:` must be one that `account` may send as (without any, of every `Sender:` and `Resent-From:`), and no other
    reader may find an author in it that we do not find; `Relay-Class` is taken out; of others it stays, as a stranger's word
    about nothing.
    """
    fields = split_fields(header)
    message_class = None
    if account is not None:
        refusal = _refused_author(fields, account) if account.senders else None
        if refusal is not None:
            return refusal
        for field in fields:
            if field.name == RELAY_CLASS and message_class is None:
                message_class = CLASSES.get(field.value.decode("ascii", "replace").lower())
        fields = [field for field in fields if field.name != RELAY_CLASS]
    names = {field.name for field in fields}
    if b"message-id" not in names:
        fields.insert(1, HeaderField(b"message-id", f"Message-ID: <{queue_id}@{hostname}>\r\n".encode()))
    if b"date" not in names:
        fields.insert(1, HeaderField(b"date", f"Date: {date}\r\n".encode()))
    return Submitted(fields, message_class)


def _refused_author(fields: Sequence[HeaderField], account: Account) -> Reply | None:
    """Why this is not the user's own message. What names nobody who can be found is nobody's."""
    if not all(field.name for field in fields):
        return _NO_FIELD
    naming = [field for field in fields if field.name == b"from"]
    naming = naming or [field for field in fields if field.name in _INSTEAD_OF_FROM]  # which readers show then
    if sum(len(field.raw) for field in naming) > AUTHOR_OCTETS:
        return _TOO_MANY_AUTHORS
    authors: list[str] = []
    for field in naming:
        found = certain_mailboxes(field.value, MOST_AUTHORS - len(authors))
        if found is None:
            return _UNCERTAIN
        if not found:
            return _AUTHOR
        authors += found
        if len(authors) > MOST_AUTHORS:
            return _TOO_MANY_AUTHORS
    if len({mailbox.rpartition("@")[2] for mailbox in authors if not mailbox.isascii()}) > MOST_IDN:
        return _TOO_MANY_AUTHORS
    return None if all(_may_be(mailbox, account) for mailbox in authors) else _AUTHOR


def _may_be(mailbox: str, account: Account) -> bool:
    domain = domain_of(mailbox)
    return bool(domain) and account.may_send_as(Address(mailbox, domain))
