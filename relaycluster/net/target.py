"""Where an outbound connection goes, from where and how, and how long each stage may take."""

from __future__ import annotations

from attrs import field, frozen, validators

from relaycluster.mail import outcome
from relaycluster.net import tls
from relaycluster.smtp.client_events import TLSPolicy, Transaction
from relaycluster.smtp.client_states import State

MOST_UNCHUNKED = 1024


@frozen(cache_hash=True)
class Target:
    """Where a connection goes, and how: targets of the same `place` share connections.

    `host` is the name that the certificate must bear and that outcomes show: an MX host, or an IP address. `address` is
    an IPv4 or IPv6 address. `source` is the local address to connect from, of the same family; empty lets the system
    choose. `helo_name` is the name that is said after EHLO from there, which should be what the address resolves back to
    (RFC 5321 4.1.4); empty stands for the node's. `limit` is the limit under which the connection counts: only mail under
    the same limit shares it.
    """

    host: str
    address: str
    port: int = 25
    tls: TLSPolicy = field(default=TLSPolicy.MAY, converter=TLSPolicy)
    source: str = ""
    limit: str = ""
    helo_name: str = ""
    place: tuple[object, ...] = field(init=False, eq=False, repr=False)

    @place.default
    def _place(self) -> tuple[object, ...]:
        # Large providers give each customer a name of its own for the same hosts. It only matters where the certificate
        # was held against it.
        verified = self.host if self.tls is TLSPolicy.VERIFY else ""
        return (verified, self.address, self.port, self.tls, self.source, self.limit, self.helo_name)

    def __str__(self) -> str:
        return f"{self.host}[{self.address}]:{self.port}"


@frozen
class Timeouts:
    """How many seconds each stage may take (RFC 5321 4.5.3.2), from the last thing that was said to a complete reply.

    `content_seconds` is for each block of a long content that the other side takes its time for. `quit_seconds` is the
    longest that a connection stays after its last word.

    A server that uses up the time of each stage holds a connection, and what it carries, no longer than the whole
    transaction may last up to its final dot: `transaction_seconds`, and on top `recipient_seconds` for each recipient and
    the time that the content takes at `slowest_octets_per_second`. The wait for the reply to the final dot is not cut short:
    it would make duplicates (RFC 5321 4.5.3.2.6).
    """

    connect_seconds: float = field(default=30, validator=validators.gt(0))
    greeting_seconds: float = field(default=300, validator=validators.gt(0))
    ehlo_seconds: float = field(default=300, validator=validators.gt(0))
    tls_seconds: float = field(default=60, validator=validators.gt(0))
    mail_seconds: float = field(default=300, validator=validators.gt(0))
    rcpt_seconds: float = field(default=300, validator=validators.gt(0))
    data_seconds: float = field(default=120, validator=validators.gt(0))
    content_seconds: float = field(default=180, validator=validators.gt(0))
    final_dot_seconds: float = field(default=600, validator=validators.gt(0))
    quit_seconds: float = field(default=5, validator=validators.gt(0))
    transaction_seconds: float = field(default=1800, validator=validators.gt(0))
    recipient_seconds: float = field(default=10, validator=validators.ge(0))
    slowest_octets_per_second: float = field(default=4096, validator=validators.gt(0))
    by_state: dict[State, float] = field(init=False, repr=False, eq=False)
    shortest_seconds: float = field(init=False, repr=False, eq=False)  # of a stage before QUIT

    @by_state.default
    def _by_state(self) -> dict[State, float]:
        return {
            State.GREETING: self.greeting_seconds,
            State.EHLO: self.ehlo_seconds,
            State.HELO: self.ehlo_seconds,
            State.STARTTLS: self.tls_seconds,
            State.TLS: self.tls_seconds,
            State.RSET: self.mail_seconds,
            State.MAIL: self.mail_seconds,
            State.RCPT: self.rcpt_seconds,
            State.DATA: self.data_seconds,
            State.CONTENT: self.content_seconds,
            State.EMPTY_DOT: self.data_seconds,
            State.FINAL_DOT: self.final_dot_seconds,
            State.QUIT: self.quit_seconds,
        }

    def longest_seconds(self, transaction: Transaction) -> float:
        """How long the transaction may take up to its final dot."""
        return (
            self.transaction_seconds
            + self.recipient_seconds * len(transaction.envelope.recipients)
            + transaction.size / self.slowest_octets_per_second
        )

    @shortest_seconds.default
    def _shortest_seconds(self) -> float:
        return min(seconds for state, seconds in self.by_state.items() if state is not State.QUIT)


@frozen
class OutboundSettings:
    """What all outbound connections of a process have in common. `helo_name` is our name for EHLO where a target has none
    of its own. With `tls` None, "may" means in clear, and what requires TLS is deferred. `unchunked` are hosts that turned out not
    to know BDAT (see `note_unchunked`)."""

    helo_name: str
    tls: tls.ClientTLS | None = None
    timeouts: Timeouts = field(factory=Timeouts)
    unchunked: dict[tuple[str, int], None] = field(factory=dict, init=False, eq=False, repr=False)

    def note_unchunked(self, address: str, port: int) -> None:
        """The host offers CHUNKING and refuses it: DATA from here on. The last so many are known."""
        self.unchunked[address, port] = None
        if len(self.unchunked) > MOST_UNCHUNKED:
            del self.unchunked[next(iter(self.unchunked))]


class ConnectFailed(Exception):
    """No session with the target. `outcome` is what that means for mail to it; `tls_failed` when it broke off between
    STARTTLS and the first reply under TLS. Nothing is left to try at the same target, in clear or otherwise."""

    def __init__(self, outcome: outcome.Deferred | outcome.Failed, *, tls_failed: bool = False) -> None:
        super().__init__(str(outcome.reply))
        self.outcome = outcome
        self.tls_failed = tls_failed
