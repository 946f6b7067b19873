"""The promises between the floors.

Who implements what: `node/edge.py` is the `IIntake` that `net/inbound.py` talks to; `net/resolver.py` is the
`IMXResolver`; `store/memory.py` and `store/redis/` are the `IQueue`, `IMembership` and `IThrottle`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from relaycluster.mail.address import Address
    from relaycluster.mail.envelope import Envelope
    from relaycluster.mail.reply import Reply
    from relaycluster.mail.session import Session
    from relaycluster.policy.routing import AddressAnswer, MXAnswer

# mypy: disable-error-code="empty-body,no-self-argument,no-untyped-def"


class IContentSink(Interface):
    """Takes the content of one message, in order, and answers for it.

    Exactly one of `finish` and `abort` is called, once, after the last `write`.
    """

    def write(data: bytes) -> None:
        """More content: dot-unstuffed, CRLF line ends, without the terminating dot; cut anywhere."""

    def finish() -> Deferred[Reply]:
        """The final dot came. Fires with the reply to send: 250 only when the message is queued durably. Never fails:
        internal trouble is a 4xx reply."""

    def abort() -> None:
        """The message will not be completed (connection lost, too large, a syntax error in the content)."""


class IIntake(Interface):
    """What an inbound session asks of the node. Answers at once; a `Reply` refuses, None accepts."""

    def connect(session: Session) -> Reply | None:
        """A client connected, before the greeting: None to greet, or the 421 or 554 to send instead."""

    def mail(session: Session, reverse_path: Address, size: int | None) -> Reply | None:
        """MAIL FROM. `size` is the SIZE parameter in octets."""

    def recipient(session: Session, reverse_path: Address, forward_path: Address) -> Reply | None:
        """RCPT TO: may this session relay to it?"""

    def data(session: Session, envelope: Envelope, throttle: Callable[[bool], None]) -> IContentSink | Reply:
        """DATA, after at least one accepted RCPT: where the content goes, or the reply that refuses it. The sink calls
        `throttle(True)` to ask for a pause in the flow of content and `throttle(False)` to end the pause."""


class IMXResolver(Interface):
    """DNS as delivery needs it. Both Deferreds never fail: trouble is a value of the union."""

    def mx(domain: str) -> Deferred[MXAnswer]:
        """The mail exchangers of a recipient domain (A-labels, lower case), with implicit MX (RFC 5321 5.1)."""

    def addresses(host: str) -> Deferred[AddressAnswer]:
        """The addresses of an MX host."""


class ILease(Interface):
    """Whether this node may act as an owner right now."""

    valid = Attribute("A callable without arguments that returns True while the node's lease is proven by its own clock.")
