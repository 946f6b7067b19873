"""What a user who proved who they are may do."""

from __future__ import annotations

from attrs import frozen

from relaycluster.mail.address import Address
from relaycluster.mail.envelope import MessageClass
from relaycluster.policy.rate import Rate


@frozen
class Account:
    """One user.

    `senders` are the mailboxes (`a@example.com`) and domains (`@example.com`, `@.example.com` for all below it) that may stand in MAIL
    FROM and `From:`; empty for any. `messages` and `recipients` are the user's rates over the whole cluster, None for no limit;
    `message_class` the class of the user's mail, None for the listener's.
    """

    name: str
    senders: tuple[str, ...] = ()
    messages: Rate | None = None
    recipients: Rate | None = None
    message_class: MessageClass | None = None

    def may_send_as(self, address: Address) -> bool:
        """Whether this address may be the sender. The null reverse-path may be anybody's (RFC 5321 4.5.5); local-parts are
        compared without regard to case, since that is how those who wrote the list meant it."""
        if not self.senders or address.is_null:
            return True
        text, domain = address.text.lower(), address.domain
        mailbox = f"{text.rpartition('@')[0]}@{domain}"
        return any(
            mailbox == allowed or allowed == f"@{domain}" or (allowed.startswith("@.") and domain.endswith(allowed[1:]))
            for allowed in self.senders
        )
