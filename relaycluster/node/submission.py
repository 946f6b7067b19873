"""What becomes of the header of a message that our own users and machines hand in (RFC 6409 8): completed, its author checked, signed.

Only on listeners of mode `submission`; a header that passes through a listener of mode `mx` gets our `Received:` and nothing else. No
content is looked at: MIME is the business of those who write and read it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol

from attrs import frozen

from relaycluster.mail.address import Address
from relaycluster.mail.envelope import MessageClass
from relaycluster.mail.header import HeaderField, domain_of, mailboxes, split_fields
from relaycluster.mail.reply import Reply
from relaycluster.policy.account import Account

RELAY_CLASS: Final = b"relay-class"

_AUTHOR = Reply.of(553, "5.7.1", "Sender address rejected: From: names an address that this user may not send as")
_CLASSES: Final = {each.name.lower().encode(): each for each in MessageClass}

# The local-part of an address that somebody may really have; whatever else stands in From: is nobody's.
_is_local_part = re.compile(
    r"""(?:[^\x00-\x20\x7f"(),:;<>@\[\\\]\ud800-\udfff]++|"(?:[^\x00-\x1f\x7f"\\\ud800-\udfff]|\\[ -~])*+")"""
).fullmatch


class Signing(Protocol):
    """One message that is being signed: `node/signing.py`'s."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of each signature to come, `selector._domainkey.domain`."""

    def update(self, body: bytes) -> None:
        """More of the body, cut anywhere."""

    def finish(self, epoch_seconds: float) -> bytes:
        """The signature fields, with CRLF at the end, to stand before everything else."""


class Signer(Protocol):
    """The keys that sign what leaves: `node/signing.py`'s."""

    @property
    def has_keys(self) -> bool:
        """Whether anything is signed at all."""

    def begin(self, fields: Sequence[HeaderField], author: str, /) -> Signing | None:
        """Sign a message with this header by an author of this domain; None when there is no key for it."""


@frozen
class Submitted:
    """A header as it will be sent, without signatures, and the class that its sender asked for."""

    fields: Sequence[HeaderField]
    message_class: MessageClass | None


def submitted(header: bytes, account: Account | None, hostname: str, queue_id: str, date: str) -> Submitted | Reply:
    """Complete and check a header that begins with our own `Received:`; `date` is as `trace.date_time` writes it.

    Date and Message-ID are added behind our trace field where they are missing (RFC 6409 8.2, 8.3). Of an authenticated sender every
    mailbox of every `From:` must be one that `account` may send as, and `Relay-Class` is taken out; of others it stays, as a
    stranger's word about nothing.
    """
    fields = split_fields(header)
    message_class = None
    if account is not None:
        if account.senders and not all(_is_own(field, account) for field in fields if field.name == b"from"):
            return _AUTHOR
        for field in fields:
            if field.name == RELAY_CLASS and message_class is None:
                message_class = _CLASSES.get(field.value.lower())
        fields = [field for field in fields if field.name != RELAY_CLASS]
    names = {field.name for field in fields}
    if b"message-id" not in names:
        fields.insert(1, HeaderField(b"message-id", f"Message-ID: <{queue_id}@{hostname}>\r\n".encode()))
    if b"date" not in names:
        fields.insert(1, HeaderField(b"date", f"Date: {date}\r\n".encode()))
    return Submitted(fields, message_class)


def _is_own(author: HeaderField, account: Account) -> bool:
    """Whether a `From:` field names only mailboxes of the user. One that names nobody who can be found is nobody's."""
    found = mailboxes(author.value)
    return bool(found) and all(_may_be(mailbox, account) for mailbox in found)


def _may_be(mailbox: str, account: Account) -> bool:
    domain = domain_of(mailbox)
    local_part = mailbox.rpartition("@")[0]
    return bool(domain) and _is_local_part(local_part) is not None and account.may_send_as(Address(mailbox, domain))
