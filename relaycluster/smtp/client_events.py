"""What the client's conversation is given, and what it tells: transactions in, events out.

Frozen, and without the conversation: whoever only carries them needs nothing of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from enum import StrEnum

from attrs import frozen

from relaycluster.mail.envelope import Envelope
from relaycluster.mail.outcome import Deferred, Failed, Outcome
from relaycluster.smtp.extensions import Extensions


class TLSPolicy(StrEnum):
    """Whether the session is encrypted (RFC 3207, RFC 7435)."""

    NONE = "none"  # never
    MAY = "may"  # where the server offers it, with whatever certificate
    ENCRYPT = "encrypt"  # or no delivery, with whatever certificate
    VERIFY = "verify"  # or no delivery, with a certificate that is trusted and names the host

    @property
    def is_required(self) -> bool:
        """Whether mail waits rather than going in clear."""
        return self is TLSPolicy.ENCRYPT or self is TLSPolicy.VERIFY


def _always() -> bool:
    return True


@frozen(eq=False)
class Transaction:
    """One message to one host for the recipients of `envelope`.

    `content` ends its lines with CRLF and is not dot-stuffed; chunks of an iterable are cut anywhere. `size` counts its
    octets. `may_finish` is asked right before the final dot is written: after False, nothing that could make the message
    arrive is written, and its outcome is Deferred at Stage.CONTENT.
    """

    envelope: Envelope
    content: bytes | AsyncIterable[bytes]
    size: int
    may_finish: Callable[[], bool] = _always


@frozen
class Ready:
    """The session stands. `Finished` says the same for each further transaction, unless `Ended` follows it."""

    extensions: Extensions


@frozen
class TLSWanted:
    """The server agreed to STARTTLS: the handshake begins with the next byte, in both directions."""


@frozen
class ContentWanted:
    """The server waits for the content, which is too large, or not at hand, to be written at once."""

    transaction: Transaction


@frozen
class Finished:
    """What became of each recipient, in the envelope's order."""

    outcomes: tuple[Outcome, ...]


@frozen
class Ended:
    """The conversation is over. `outcome` tells why it never became ready; None once it was. `tls_failed` when it broke
    off on the way from STARTTLS to the first reply under TLS. `polite` when there may be bytes to send before the
    connection is closed; otherwise it is to be cut off at once."""

    outcome: Deferred | Failed | None = None
    tls_failed: bool = False
    polite: bool = False


Event = Ready | TLSWanted | ContentWanted | Finished | Ended
