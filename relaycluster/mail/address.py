"""A mailbox as SMTP carries it: the text that was given, and the domain that routes it (RFC 5321 4.1.2)."""

from __future__ import annotations

from attrs import frozen


@frozen
class Address:
    """A forward-path or a reverse-path without its angle brackets and source route.

    `text` is the mailbox exactly as it was given, since only the final host may interpret the local-part
    (RFC 5321 2.3.11); the null reverse-path is the empty text. `domain` is the routing key: lower case, IDN as
    A-labels, an address literal with its brackets; empty for the null reverse-path.
    """

    text: str
    domain: str

    @property
    def is_null(self) -> bool:
        """Whether this is the null reverse-path `<>` (RFC 5321 4.5.5)."""
        return not self.text

    def __str__(self) -> str:
        return self.text


NULL = Address("", "")
