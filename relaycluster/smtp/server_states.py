"""The states of the server's conversation, and the one table of everything that moves it (RFC 5321 4.1.4, 4.3).

The diagram and the table in `docs/design/smtp-server.md` are drawn from `TRANSITIONS`, which `narrowed` fits to a listener.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Final

from attrs import frozen

from relaycluster.mail.reply import Reply
from relaycluster.smtp.commands import Verb

if TYPE_CHECKING:
    from relaycluster.smtp.server_settings import ServerSettings


class State(Enum):
    """Where the conversation stands."""

    CONNECTED = "connected"  # nobody said yet whether this client is welcome
    REFUSED = "refused"  # it was greeted with 554 and may only quit (RFC 5321 3.1)
    PROBE = "probe"  # a balancer's health check: greeted, and may say hello
    START = "start"  # greeted; no EHLO or HELO yet
    READY = "ready"  # between transactions
    SECURING = "securing"  # 220 to STARTTLS was said; until TLS stands
    AUTHENTICATING = "authenticating"  # AUTH was begun: lines are its responses
    MAIL = "mail"  # a reverse-path, no recipient yet
    RECIPIENTS = "recipients"  # at least one accepted recipient
    CONTENT = "content"  # 354 was said; up to the reply to the final dot
    CHUNK = "chunk"  # BDAT was read; up to the reply to its chunk
    CHUNKS = "chunks"  # between two chunks of a message
    FAILED = "failed"  # a chunk was refused: nothing more can come of this transaction (RFC 3030 2)
    CLOSED = "closed"  # the last reply was said

    __hash__ = object.__hash__


class Occasion(Enum):
    """What moves the state besides commands."""

    CONNECT = "CONNECT"  # the question whether to greet was answered
    PROBE = "PROBE"  # the same for a balancer's health check
    TLS = "TLS"  # TLS stands
    RESPONSE = "RESPONSE"  # the AUTH dialog came to its end
    CHUNK = "CHUNK"  # a chunk that is not the last one was answered
    FINAL_DOT = "DOT"  # the question about the whole message was answered, after the final dot or the last chunk
    DRAIN = "DRAIN"  # the server wants to stop: at once where the table has it, later elsewhere
    FAREWELL = "FAREWELL"  # a reply of 421

    __hash__ = object.__hash__

    def __init__(self, name: str) -> None:
        # As what its replies are counted: what ends a command's dialog counts as that command.
        self.label = {"PROBE": "CONNECT", "RESPONSE": "AUTH", "CHUNK": "BDAT"}.get(name, name)


@frozen
class Move:
    """An allowed step: the state after a positive reply, and after a negative one (None: unchanged)."""

    accepted: State
    refused: State | None = None


Row = Mapping[Verb | Occasion, Move | Reply]
Table = Mapping[State, Row]

_HELLO_FIRST = Reply.of(503, "5.5.1", "Send EHLO or HELO first")
_MAIL_FIRST = Reply.of(503, "5.5.1", "Send MAIL first")
_NESTED_MAIL = Reply.of(503, "5.5.1", "A transaction is open already: finish it or send RSET")
_NO_RECIPIENTS = Reply.of(554, "5.5.1", "No valid recipients")
_NOT_WELCOME = Reply.of(503, "5.5.1", "This session was refused: send QUIT")
_ONLY_A_PROBE = Reply.of(503, "5.5.1", "This connection is a health check: no mail is taken on it")
_IN_TRANSACTION = Reply.of(503, "5.5.1", "Not within a transaction: finish it or send RSET")
_CHUNKS_BEGUN = Reply.of(503, "5.5.1", "The content has begun with BDAT: send its last chunk or RSET")
_CHUNKS_FAILED = Reply.of(503, "5.5.1", "A chunk of this message was refused: send RSET")
_UNKNOWN = Reply.of(500, "5.5.1", "Command not recognized")
_NOT_IMPLEMENTED = Reply.of(502, "5.5.1", "Command not implemented")
_FOREIGN = Reply.of(421, "4.7.0", "This is an SMTP server: goodbye")
_TLS_FIRST = Reply.of(530, "5.7.0", "Must issue a STARTTLS command first")  # RFC 3207 section 4
_TLS_STANDS = Reply.of(503, "5.5.1", "TLS is in use already")
_ENCRYPT_FIRST = Reply.of(538, "5.7.11", "Encryption required for AUTH")  # RFC 4954 section 6
_AUTHENTICATED = Reply.of(503, "5.5.1", "Authenticated already")  # RFC 4954 section 4

_CLOSE: Final = Move(State.CLOSED)
_NO_COMMAND: Final[Row] = {
    Verb.UNKNOWN: _UNKNOWN,
    Verb.NOT_IMPLEMENTED: _NOT_IMPLEMENTED,
    Verb.FOREIGN: _FOREIGN,
}


def _anytime(state: State) -> dict[Verb | Occasion, Move | Reply]:
    """What every state that listens to commands has alike (RFC 5321 4.1.4)."""
    stay = Move(state)
    return {
        Verb.NOOP: stay,
        Verb.VRFY: stay,
        Verb.HELP: stay,
        Verb.QUIT: _CLOSE,
        Occasion.FAREWELL: _CLOSE,
        **_NO_COMMAND,
    }


def _in_transaction(state: State) -> dict[Verb | Occasion, Move | Reply]:
    """What every state within a transaction has alike."""
    return {
        **_anytime(state),
        Verb.EHLO: Move(State.READY),
        Verb.HELO: Move(State.READY),
        Verb.RSET: Move(State.READY),
        Verb.MAIL: _NESTED_MAIL,
        Verb.STARTTLS: _IN_TRANSACTION,
        Verb.AUTH: _IN_TRANSACTION,  # RFC 4954 section 4
    }


TRANSITIONS: Final[Table] = {
    State.CONNECTED: {
        Occasion.CONNECT: Move(accepted=State.START, refused=State.REFUSED),
        Occasion.PROBE: Move(accepted=State.PROBE, refused=State.REFUSED),
        Occasion.FAREWELL: _CLOSE,
    },
    State.REFUSED: {
        **dict.fromkeys(Verb, _NOT_WELCOME),
        Verb.QUIT: _CLOSE,
        Verb.FOREIGN: _FOREIGN,
        Occasion.DRAIN: _CLOSE,
        Occasion.FAREWELL: _CLOSE,
    },
    State.PROBE: {
        **dict.fromkeys(Verb, _ONLY_A_PROBE),
        **dict.fromkeys((Verb.EHLO, Verb.HELO, Verb.RSET, Verb.NOOP), Move(State.PROBE)),
        Verb.QUIT: _CLOSE,
        Verb.FOREIGN: _FOREIGN,
        Occasion.DRAIN: _CLOSE,
        Occasion.FAREWELL: _CLOSE,
    },
    State.START: {
        **_anytime(State.START),
        Verb.EHLO: Move(accepted=State.READY),
        Verb.HELO: Move(accepted=State.READY),
        Verb.RSET: Move(accepted=State.START),
        Verb.STARTTLS: _HELLO_FIRST,
        Verb.AUTH: _HELLO_FIRST,
        Verb.MAIL: _HELLO_FIRST,
        Verb.RCPT: _HELLO_FIRST,
        Verb.DATA: _HELLO_FIRST,
        Verb.BDAT: _HELLO_FIRST,
        Occasion.DRAIN: _CLOSE,
    },
    State.READY: {
        **_anytime(State.READY),
        Verb.EHLO: Move(accepted=State.READY),
        Verb.HELO: Move(accepted=State.READY),
        Verb.RSET: Move(accepted=State.READY),
        Verb.STARTTLS: Move(accepted=State.SECURING),
        Verb.AUTH: Move(accepted=State.AUTHENTICATING),
        Verb.MAIL: Move(accepted=State.MAIL),
        Verb.RCPT: _MAIL_FIRST,
        Verb.DATA: _MAIL_FIRST,
        Verb.BDAT: _MAIL_FIRST,
        Occasion.DRAIN: _CLOSE,
    },
    State.SECURING: {
        Occasion.TLS: Move(accepted=State.START),
        Occasion.FAREWELL: _CLOSE,
    },
    State.AUTHENTICATING: {
        Occasion.RESPONSE: Move(accepted=State.READY, refused=State.READY),
        Occasion.DRAIN: _CLOSE,
        Occasion.FAREWELL: _CLOSE,
    },
    State.MAIL: {
        **_in_transaction(State.MAIL),
        Verb.RCPT: Move(accepted=State.RECIPIENTS),
        Verb.DATA: _NO_RECIPIENTS,
        Verb.BDAT: Move(accepted=State.CHUNK),
    },
    State.RECIPIENTS: {
        **_in_transaction(State.RECIPIENTS),
        Verb.RCPT: Move(accepted=State.RECIPIENTS),
        Verb.DATA: Move(accepted=State.CONTENT),
        Verb.BDAT: Move(accepted=State.CHUNK),
    },
    State.CONTENT: {
        Occasion.FINAL_DOT: Move(accepted=State.READY, refused=State.READY),
        Occasion.FAREWELL: _CLOSE,
    },
    State.CHUNK: {
        Occasion.CHUNK: Move(accepted=State.CHUNKS, refused=State.FAILED),
        Occasion.FINAL_DOT: Move(accepted=State.READY, refused=State.READY),
        Occasion.FAREWELL: _CLOSE,
    },
    State.CHUNKS: {
        **_in_transaction(State.CHUNKS),
        Verb.RCPT: _CHUNKS_BEGUN,
        Verb.DATA: _CHUNKS_BEGUN,  # RFC 3030 section 2: never both in a transaction
        Verb.BDAT: Move(accepted=State.CHUNK),
    },
    State.FAILED: {
        **_in_transaction(State.FAILED),
        Verb.RCPT: _CHUNKS_FAILED,
        Verb.DATA: _CHUNKS_FAILED,
        Verb.BDAT: Move(accepted=State.CHUNK),
    },
    State.CLOSED: {},
}
"""Per state: a `Move` is allowed, a `Reply` refuses for the sequence, and what is absent cannot happen: in CONNECTED,
SECURING, AUTHENTICATING, CONTENT, CHUNK and CLOSED no command is read. Entering START or READY forgets the transaction. BDAT
leads to CHUNK even when its chunk is refused, since its octets have to be read."""

_LISTENING: Final = (State.START, State.READY, State.MAIL, State.RECIPIENTS, State.CHUNKS, State.FAILED)
_FOR_MAIL: Final = (Verb.AUTH, Verb.MAIL, Verb.RCPT, Verb.DATA, Verb.BDAT, Verb.VRFY)


def narrowed(settings: ServerSettings, secure: bool, authenticated: bool) -> Table:
    """The table as it holds for a listener with these settings while TLS stands or not, and the client is known or not: what
    is not offered then is refused in every state that listens to clients."""
    refused: dict[Verb | Occasion, Move | Reply] = {}
    if not settings.auth:
        refused[Verb.AUTH] = _NOT_IMPLEMENTED
    elif authenticated:
        refused[Verb.AUTH] = _AUTHENTICATED
    elif not secure and not settings.auth_without_tls:
        refused[Verb.AUTH] = _ENCRYPT_FIRST
    if secure:
        refused[Verb.STARTTLS] = _TLS_STANDS
    elif not settings.starttls:
        refused[Verb.STARTTLS] = _NOT_IMPLEMENTED
    if settings.require_tls and not secure:
        refused |= dict.fromkeys(_FOR_MAIL, _TLS_FIRST)
    return {state: {**row, **refused} if state in _LISTENING else row for state, row in TRANSITIONS.items()}
