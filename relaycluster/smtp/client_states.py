"""The client's conversation as one table: which state follows which when what happens (RFC 5321 3, RFC 2920, RFC 3207).

Everything that changes `ClientConversation.state` stands here; `docs/design/smtp-client.md` draws it from here. A reply
state is named after the command whose reply is awaited. With PIPELINING the commands of an envelope are written ahead,
without it one by one; the states are the same.
"""

from __future__ import annotations

from enum import StrEnum

from relaycluster.mail.outcome import Stage


class State(StrEnum):
    """What the conversation waits for."""

    GREETING = "greeting"
    EHLO = "ehlo"
    HELO = "helo"
    STARTTLS = "starttls"
    TLS = "tls"  # the handshake, which the caller does
    READY = "ready"  # a transaction may begin; between transactions
    RSET = "rset"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    CONTENT = "content"  # the caller sends it
    EMPTY_DOT = "empty-dot"  # the end of a content for nobody
    FINAL_DOT = "final-dot"
    QUIT = "quit"
    CLOSED = "closed"


class Trigger(StrEnum):
    """What happened."""

    ACCEPTED = "accepted"  # 2yz
    REFUSED = "refused"  # 4yz or 5yz; the conversation knows a way on where there is one
    REJECTED = "rejected"  # a refusal, or a lack, that ends the session
    OFFERS_TLS = "offers TLS"  # 2yz, and STARTTLS is among the extensions and wanted
    REFUSED_AHEAD = "refused, more written ahead"
    NEXT_RECIPIENT = "answered, recipients left"
    LAST_RECIPIENT = "answered, last recipient"
    NO_RECIPIENT = "last recipient, all refused"  # without PIPELINING, or with CHUNKING
    CHUNK = "last recipient, BDAT written"  # RFC 3030: no DATA
    GO_AHEAD = "3yz"
    GO_AHEAD_FOR_NOBODY = "3yz, all recipients refused"
    ANSWERED = "answered"  # whatever the reply says, the transaction is over
    HANDSHAKE = "handshake complete"
    BEGIN = "transaction begins"
    BEGIN_AFTER_RSET = "transaction begins, the last one is open"
    DOT = "final dot written"
    QUIT = "QUIT written"
    BREAK = "421, malformed reply, reply out of turn, lost, timed out, given up"


_S = State
_T = Trigger

TRANSITIONS: dict[State, dict[Trigger, State]] = {
    _S.GREETING: {_T.ACCEPTED: _S.EHLO, _T.REJECTED: _S.CLOSED},
    _S.EHLO: {
        _T.ACCEPTED: _S.READY,
        _T.OFFERS_TLS: _S.STARTTLS,
        _T.REFUSED: _S.HELO,
        _T.REJECTED: _S.CLOSED,
    },
    _S.HELO: {_T.ACCEPTED: _S.READY, _T.REJECTED: _S.CLOSED},
    _S.STARTTLS: {_T.ACCEPTED: _S.TLS, _T.REFUSED: _S.READY, _T.REJECTED: _S.CLOSED},
    _S.TLS: {_T.HANDSHAKE: _S.EHLO},
    _S.READY: {_T.BEGIN: _S.MAIL, _T.BEGIN_AFTER_RSET: _S.RSET, _T.QUIT: _S.QUIT},
    _S.RSET: {_T.ACCEPTED: _S.MAIL},
    _S.MAIL: {_T.ACCEPTED: _S.RCPT, _T.REFUSED: _S.READY, _T.REFUSED_AHEAD: _S.RCPT},
    _S.RCPT: {_T.NEXT_RECIPIENT: _S.RCPT, _T.LAST_RECIPIENT: _S.DATA, _T.CHUNK: _S.CONTENT, _T.NO_RECIPIENT: _S.READY},
    _S.DATA: {_T.GO_AHEAD: _S.CONTENT, _T.GO_AHEAD_FOR_NOBODY: _S.EMPTY_DOT, _T.REFUSED: _S.READY},
    _S.CONTENT: {_T.DOT: _S.FINAL_DOT},
    _S.EMPTY_DOT: {_T.ANSWERED: _S.READY},
    _S.FINAL_DOT: {_T.ANSWERED: _S.READY},
    _S.QUIT: {_T.ANSWERED: _S.CLOSED},
    _S.CLOSED: {},
}
for _state, _following in TRANSITIONS.items():
    if _state is not State.CLOSED:
        _following[Trigger.BREAK] = State.CLOSED

STAGES: dict[State, Stage] = {
    State.GREETING: Stage.GREETING,
    State.EHLO: Stage.EHLO,
    State.HELO: Stage.EHLO,
    State.STARTTLS: Stage.TLS,
    State.TLS: Stage.TLS,
    State.READY: Stage.MAIL,
    State.RSET: Stage.MAIL,
    State.MAIL: Stage.MAIL,
    State.RCPT: Stage.RCPT,
    State.DATA: Stage.DATA,
    State.CONTENT: Stage.CONTENT,
    State.EMPTY_DOT: Stage.DATA,
    State.FINAL_DOT: Stage.FINAL_DOT,
    State.QUIT: Stage.MAIL,
    State.CLOSED: Stage.MAIL,
}
"""The stage of the outcome of a transaction, or of a session, that breaks off in the state."""

ACTIVITIES: dict[State, str] = {
    State.GREETING: "waiting for the greeting",
    State.EHLO: "waiting for the reply to EHLO",
    State.HELO: "waiting for the reply to HELO",
    State.STARTTLS: "waiting for the reply to STARTTLS",
    State.TLS: "in the TLS handshake",
    State.READY: "idle",
    State.RSET: "waiting for the reply to RSET",
    State.MAIL: "waiting for the reply to MAIL",
    State.RCPT: "waiting for the reply to RCPT",
    State.DATA: "waiting for the reply to DATA",
    State.CONTENT: "sending the content",
    State.EMPTY_DOT: "waiting for the reply to an empty message",
    State.FINAL_DOT: "waiting for the reply to the final dot",
    State.QUIT: "waiting for the reply to QUIT",
    State.CLOSED: "closed",
}
"""What the client was doing, as it reads in a reply: "connection lost while …"."""
