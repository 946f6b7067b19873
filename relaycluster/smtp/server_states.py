"""The states of the server's conversation, and the one table of everything that moves it (RFC 5321 4.1.4, 4.3).

The diagram and the table in `docs/design/smtp-server.md` are drawn from `TRANSITIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from attrs import frozen

from relaycluster.mail.reply import Reply
from relaycluster.smtp.commands import Verb


class State(Enum):
    """Where the conversation stands."""

    CONNECTED = "connected"  # nobody said yet whether this client is welcome
    REFUSED = "refused"  # it was greeted with 554 and may only quit (RFC 5321 3.1)
    START = "start"  # greeted; no EHLO or HELO yet
    READY = "ready"  # between transactions
    MAIL = "mail"  # a reverse-path, no recipient yet
    RECIPIENTS = "recipients"  # at least one accepted recipient
    CONTENT = "content"  # 354 was said; up to the reply to the final dot
    CLOSED = "closed"  # the last reply was said

    __hash__ = object.__hash__


class Occasion(Enum):
    """What moves the state besides commands."""

    CONNECT = "CONNECT"  # the question whether to greet was answered
    FINAL_DOT = "DOT"  # the question about the whole message was answered
    DRAIN = "DRAIN"  # the server wants to stop: at once where the table has it, later elsewhere
    FAREWELL = "FAREWELL"  # a reply of 421

    __hash__ = object.__hash__

    def __init__(self, label: str) -> None:
        self.label = label


@frozen
class Move:
    """An allowed step: the state after a positive reply, and after a negative one (None: unchanged)."""

    accepted: State
    refused: State | None = None


_HELLO_FIRST = Reply.of(503, "5.5.1", "Send EHLO or HELO first")
_MAIL_FIRST = Reply.of(503, "5.5.1", "Send MAIL first")
_NESTED_MAIL = Reply.of(503, "5.5.1", "A transaction is open already: finish it or send RSET")
_NO_RECIPIENTS = Reply.of(554, "5.5.1", "No valid recipients")
_NOT_WELCOME = Reply.of(503, "5.5.1", "This session was refused: send QUIT")
_UNKNOWN = Reply.of(500, "5.5.1", "Command not recognized")
_NOT_IMPLEMENTED = Reply.of(502, "5.5.1", "Command not implemented")
_FOREIGN = Reply.of(421, "4.7.0", "This is an SMTP server: goodbye")

_CLOSE: Final = Move(State.CLOSED)
_NO_COMMAND: Final[Mapping[Verb | Occasion, Move | Reply]] = {
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


TRANSITIONS: Final[Mapping[State, Mapping[Verb | Occasion, Move | Reply]]] = {
    State.CONNECTED: {
        Occasion.CONNECT: Move(accepted=State.START, refused=State.REFUSED),
        Occasion.FAREWELL: _CLOSE,
    },
    State.REFUSED: {
        **dict.fromkeys(Verb, _NOT_WELCOME),
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
        Verb.MAIL: _HELLO_FIRST,
        Verb.RCPT: _HELLO_FIRST,
        Verb.DATA: _HELLO_FIRST,
        Occasion.DRAIN: _CLOSE,
    },
    State.READY: {
        **_anytime(State.READY),
        Verb.EHLO: Move(accepted=State.READY),
        Verb.HELO: Move(accepted=State.READY),
        Verb.RSET: Move(accepted=State.READY),
        Verb.MAIL: Move(accepted=State.MAIL),
        Verb.RCPT: _MAIL_FIRST,
        Verb.DATA: _MAIL_FIRST,
        Occasion.DRAIN: _CLOSE,
    },
    State.MAIL: {
        **_anytime(State.MAIL),
        Verb.EHLO: Move(accepted=State.READY),
        Verb.HELO: Move(accepted=State.READY),
        Verb.RSET: Move(accepted=State.READY),
        Verb.MAIL: _NESTED_MAIL,
        Verb.RCPT: Move(accepted=State.RECIPIENTS),
        Verb.DATA: _NO_RECIPIENTS,
    },
    State.RECIPIENTS: {
        **_anytime(State.RECIPIENTS),
        Verb.EHLO: Move(accepted=State.READY),
        Verb.HELO: Move(accepted=State.READY),
        Verb.RSET: Move(accepted=State.READY),
        Verb.MAIL: _NESTED_MAIL,
        Verb.RCPT: Move(accepted=State.RECIPIENTS),
        Verb.DATA: Move(accepted=State.CONTENT),
    },
    State.CONTENT: {
        Occasion.FINAL_DOT: Move(accepted=State.READY, refused=State.READY),
        Occasion.FAREWELL: _CLOSE,
    },
    State.CLOSED: {},
}
"""Per state: a `Move` is allowed, a `Reply` refuses for the sequence, and what is absent cannot happen: in CONNECTED,
CONTENT and CLOSED no command is read. Entering START or READY forgets the transaction."""
