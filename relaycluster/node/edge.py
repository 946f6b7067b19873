"""The edge: what inbound sessions ask is answered here, before any content is taken (docs/design/edge.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final
from weakref import WeakKeyDictionary

from attrs import field, frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from relaycluster import events
from relaycluster.events import EventLog
from relaycluster.interfaces import Answer, IAccounts, IContentSink, IIntake, IQueue, IThrottle, Login, QueueError
from relaycluster.mail import trace
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import Envelope, MessageClass
from relaycluster.mail.item import Item
from relaycluster.mail.reply import Reply
from relaycluster.mail.session import Session
from relaycluster.node.access import NO_MAILBOX, SUBMISSION, Access
from relaycluster.node.aliases import TOO_MANY, Aliases, Crowd
from relaycluster.node.allowance import Allowances
from relaycluster.node.delivery import Delivery
from relaycluster.node.login import LoginCheck
from relaycluster.node.message import PIECE, Lease, MessageSink
from relaycluster.node.signing import Signer
from relaycluster.policy.account import Account
from relaycluster.policy.rate import Rate

CANCEL_SECONDS = 1.0

_NO_ACCOUNT = Reply.of(530, "5.7.0", "Authentication required: this account is not there any more")
_NO_AUTH = Reply.of(503, "5.5.1", "AUTH is not offered here")
_SENDER = Reply.of(553, "5.7.1", "Sender address rejected: this user may not send as this address")

_NORMAL: Final = MessageClass.NORMAL  # an Enum's member costs a look-up each time

# Room for our own trace field and what is added: a header that is within the limit lies within the first piece.
_MOST_HEADER_OCTETS: Final = PIECE - 4096


@frozen
class EdgeSettings:
    """`hostname` for `Received:` and Message-ID; `classes` gives each listener's class of mail; `header_size` in octets and `header_fields`
    are the most that a header may have; `messages_per_client` is the rate of everybody who has no rate of their own, None for
    no limit."""

    hostname: str
    classes: Mapping[str, MessageClass] = field(factory=dict)
    header_size: int = 128 * 1024
    header_fields: int = 1000
    messages_per_client: Rate | None = None


@implementer(IIntake)
class Edge:
    """See `IIntake`. `time` is seconds since the epoch, `entropy` gives 65 random bits; `refusal` tells why no mail is taken now,
    if that is so; `delivery` is this process's own delivery role, None on an edge-only node.

    `login` and `accounts` are there where users may authenticate; `throttle` must be where anybody has a rate; without `signer` nothing
    is signed.
    """

    def __init__(
        self,
        clock: IReactorTime,
        queue: IQueue,
        access: Access,
        settings: EdgeSettings,
        time: Callable[[], float],
        entropy: Callable[[], int],
        log: EventLog,
        refusal: Callable[[], Reply | None],
        delivery: Delivery | None,
        *,
        login: LoginCheck | None = None,
        accounts: IAccounts | None = None,
        throttle: IThrottle | None = None,
        signer: Signer | None = None,
        aliases: Aliases | None = None,
    ) -> None:
        self.clock = clock
        self.queue = queue
        self.time = time
        self.entropy = entropy
        self.log = log
        self.refusal = refusal
        self.delivery = delivery
        self.signer = signer
        self.dates = trace.DateTimes()
        self._login = login
        self._accounts = accounts
        self._allowances = Allowances(throttle)
        self._aliases = aliases if aliases is not None else Aliases(settings.hostname)
        # What is behind the aliases of a transaction, while it is open. It goes with the session: nobody tells of an end.
        self._crowds: WeakKeyDictionary[Session, Crowd] = WeakKeyDictionary()
        self._cancelled: dict[str, tuple[Item, Lease | None]] = {}
        self.use(access, settings)

    def use(self, access: Access, settings: EdgeSettings | None = None) -> None:
        """Other rules, from the next question on."""
        self.access = access
        if settings is not None:
            self.settings = settings
            self.header_octets = min(settings.header_size, _MOST_HEADER_OCTETS)
        self._client = lru_cache(maxsize=4096)(access.client)

    def connect(self, session: Session) -> Reply | None:
        return None

    def authenticate(self, session: Session, login: Login) -> Deferred[str | Reply]:
        if self._login is None or session.mode != SUBMISSION:
            return succeed(_NO_AUTH)
        return self._login.authenticate(session, login)

    def mail(self, session: Session, reverse_path: Address, size: int | None) -> Answer:
        refusal = self.refusal()
        if refusal is not None:
            return refusal
        if self._aliases.entries:
            self._crowds.pop(session, None)
        account = self._submitter(session)
        if isinstance(account, Reply):
            return account
        if account is not None and not account.may_send_as(reverse_path):
            return _SENDER
        rate = self.settings.messages_per_client
        if rate is None and account is None:
            return None
        return self._allowances.message(account, session.peer_address, rate)

    def recipient(self, session: Session, reverse_path: Address, forward_path: Address) -> Answer:
        if not forward_path.domain:
            # `<postmaster>` is the one address without a domain that the grammar derives, and must be taken where somebody reads it
            # (RFC 5321 4.5.1). No other alias opens anything.
            if not self._aliases.knows(forward_path):
                return NO_MAILBOX
        elif session.mode != SUBMISSION:
            refusal = self.access.stranger(forward_path)
            if refusal is not None:
                return refusal
        account = self._submitter(session)
        if isinstance(account, Reply):
            return account
        if self._aliases.entries and self._aliases.knows(forward_path):
            crowd = self._crowds.get(session)
            if crowd is None:
                crowd = self._crowds[session] = Crowd()
            if not self._aliases.joins(forward_path, crowd):
                return TOO_MANY
        return self._allowances.recipient(account) if account is not None else None

    def data(self, session: Session, envelope: Envelope, throttle: Callable[[bool], None]) -> IContentSink | Reply:
        refusal = self.refusal()
        if refusal is not None:
            return refusal
        account = self._submitter(session)
        if isinstance(account, Reply):
            return account
        message_class = self.settings.classes.get(session.listener, _NORMAL)
        if account is not None and account.message_class is not None:
            message_class = account.message_class
        # Who may submit is one of ours, whoever else comes a stranger.
        expanded = self._aliases.expand(envelope, session.mode == SUBMISSION)
        if isinstance(expanded, Reply):
            return expanded
        return MessageSink(self, session, envelope, expanded, throttle, account, message_class)

    def _submitter(self, session: Session) -> Account | Reply | None:
        """Who hands in on a listener for submission, asked anew each time: what the session's user may do now, None for a client that
        needs no AUTH, else the refusal. None on other listeners, where everybody is a stranger."""
        if session.mode != SUBMISSION:
            return None
        if not session.user:
            return self._client(session.listener, session.peer_address, session.via)
        account = self._accounts.account(session.user) if self._accounts is not None else None
        return account if account is not None else _NO_ACCOUNT

    # Enqueues without an answer

    def give_up(self, item: Item, lease: Lease | None) -> None:
        """The client hears 451: whatever the queue knows of the item must go."""
        self._cancelled[item.id] = (item, lease)
        self.clock.callLater(CANCEL_SECONDS, self._cancel, item.id)

    def _cancel(self, identifier: str) -> None:
        item, lease = self._cancelled[identifier]

        def told(forgotten: bool) -> None:
            del self._cancelled[identifier]
            if not forgotten:
                self.log.emit(
                    events.PossibleDuplicate(
                        item.id, item.domain, "its enqueue had no answer, and the client was told 451"
                    )
                )

        def again(failure: Failure) -> None:
            failure.trap(QueueError)
            self.clock.callLater(CANCEL_SECONDS, self._cancel, identifier)

        self.queue.cancel(item, lease).addCallbacks(told, again)
