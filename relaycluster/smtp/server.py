"""The server's half of an SMTP conversation without a socket: octets in, events and replies out (RFC 5321).

Everything that moves the state stands in one table, `server_states.TRANSITIONS`. The driver feeds `receive_data`, takes
events from `next_event` until it says NEED_DATA or PAUSED, and writes what `data_to_send` has collected. After a question
the conversation stands still (PAUSED) until `accept` or `reject`, so replies leave in the order of the commands however
long one of them takes (RFC 2920 section 3.2). No input raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from relaycluster.mail.address import NULL, Address
from relaycluster.mail.envelope import BodyType, Envelope
from relaycluster.mail.reply import Reply
from relaycluster.smtp.commands import COMMANDS, Verb, parse_hello, parse_mail, parse_rcpt, split_command
from relaycluster.smtp.framing import CommandFramer, ContentScanner, LineTrouble
from relaycluster.smtp.grammar import GrammarError
from relaycluster.smtp.server_events import (
    NEED_DATA,
    PAUSED,
    Aborted,
    CloseAfterSend,
    ConnectAsked,
    Content,
    ContentEnd,
    ContentRefused,
    DataAsked,
    Event,
    Hello,
    MailAsked,
    RecipientAsked,
    Wait,
)
from relaycluster.smtp.server_settings import BareNewline, Dialect
from relaycluster.smtp.server_states import TRANSITIONS, Move, Occasion, State

# On Python 3.11 each look at an Enum's member costs 0.1 µs or more, and a message has dozens: the hot path uses these names.
_RCPT: Final = Verb.RCPT
_MAIL: Final = Verb.MAIL
_DATA: Final = Verb.DATA
_FINAL_DOT: Final = Occasion.FINAL_DOT
_DRAIN: Final = Occasion.DRAIN
_START: Final = State.START
_READY: Final = State.READY
_CONTENT: Final = State.CONTENT
_CONNECTED: Final = State.CONNECTED
_CLOSED: Final = State.CLOSED
_REJECT: Final = BareNewline.REJECT
_SEVEN_BIT: Final = BodyType.SEVEN_BIT


def _encoded(code: int, enhanced: str, text: str) -> tuple[int, bytes]:
    return code, Reply.of(code, enhanced, text).encode()


# What a step is answered when it was accepted without a reply of the driver's; CONNECT, EHLO and HELO depend on the listener.
_USUAL: Final[Mapping[Verb | Occasion, tuple[int, bytes]]] = {
    Verb.MAIL: _encoded(250, "2.1.0", "Sender ok"),
    Verb.RCPT: _encoded(250, "2.1.5", "Recipient ok"),
    Verb.DATA: _encoded(354, "", "End data with <CR><LF>.<CR><LF>"),  # RFC 3463 has no 3.x.x
    Verb.RSET: _encoded(250, "2.0.0", "Reset"),
    Verb.NOOP: _encoded(250, "2.0.0", "Ok"),
    Verb.VRFY: _encoded(252, "2.5.0", "Cannot VRFY user, but will accept message and attempt delivery"),
    Verb.HELP: _encoded(214, "2.0.0", "Commands: " + " ".join(verb.value for verb in COMMANDS)),
    Occasion.FINAL_DOT: _encoded(250, "2.0.0", "Ok"),
}

_NO_ARGUMENT = Reply.of(501, "5.5.4", "No argument is permitted here")
_VRFY_SYNTAX = Reply.of(501, "5.5.4", "Syntax: VRFY user")
_TOO_MANY_RECIPIENTS = Reply.of(452, "4.5.3", "Too many recipients: send the others in another transaction")
_LINE_TOO_LONG = Reply.of(500, "5.5.2", "Line too long")
_LINE_BARE = Reply.of(500, "5.5.2", "A line ends in CRLF: bare CR or LF is not permitted")
_CONTENT_BARE = Reply.of(554, "5.6.0", "Bare CR or LF in the message content")
_CONTENT_TOO_LARGE = Reply.of(552, "5.3.4", "Message size exceeds the limit")


def _unheard(verb: str, code: int) -> None:
    """The default for `answered`."""


class ServerConversation:
    """One session.

    `answered(verb, code)` is called with every reply, for counting: the verb is one of a fixed set, "OTHER" for whatever
    is no command, "CONNECT" for the greeting, "DOT" for the reply to the content, "FAREWELL" for a 421 that nobody asked for.
    """

    __slots__ = (
        "_answered",
        "_asked",
        "_body",
        "_candidate",
        "_content_ended",
        "_dialect",
        "_draining",
        "_errors",
        "_esmtp",
        "_lines",
        "_outbox",
        "_parting",
        "_recipients",
        "_refusal",
        "_reverse_path",
        "_row",
        "_scanner",
        "_void",
        "state",
    )

    def __init__(self, dialect: Dialect, answered: Callable[[str, int], None] = _unheard) -> None:
        self._dialect = dialect
        self._answered = answered
        self._lines = CommandFramer(dialect.command_line_octets)
        self._scanner = ContentScanner()
        self._content_ended = False
        self._void = False  # the content is not handed on any more
        self._refusal: Reply | None = None  # the driver's, for the content
        self._outbox: list[bytes] = []
        self._parting: list[Event] = []  # what is left to tell at the end
        self._asked: Verb | Occasion | None = None
        self._candidate = NULL  # the path that is asked about
        self._errors = 0
        self._esmtp = False
        self._draining: Reply | None = None
        self._reverse_path = NULL
        self._body = _SEVEN_BIT
        self._recipients: dict[str, Address] = {}
        self.state = _CONNECTED
        """Read only."""
        self._row = TRANSITIONS[self.state]

    # --- what the driver calls

    @property
    def pending(self) -> int:
        """Octets that arrived and wait for the conversation to go on. A driver stops reading when it is PAUSED with many."""
        return self._lines.pending

    def receive_data(self, data: bytes) -> None:
        """Octets from the client."""
        if self.state is not _CLOSED:
            self._lines.feed(data)

    def data_to_send(self) -> bytes:
        """The replies that were not sent yet; they count as sent now."""
        outbox = self._outbox
        if not outbox:
            return b""
        data = outbox[0] if len(outbox) == 1 else b"".join(outbox)
        outbox.clear()
        return data

    def next_event(self) -> Event | Wait:
        """The next event; NEED_DATA when more octets are needed (or the session is over), PAUSED when a question is open."""
        while True:
            if self._asked is not None:
                return PAUSED
            if self._parting:
                return self._parting.pop(0)
            state = self.state
            if state is _CONTENT:
                event = self._read_content()
            elif state is _CLOSED:
                return NEED_DATA
            elif state is _CONNECTED:
                self._asked = Occasion.CONNECT
                return ConnectAsked()
            elif self._draining is not None and _DRAIN in self._row:
                self.close(self._draining)
                continue
            else:
                line = self._lines.next_line()
                if line is None:
                    return NEED_DATA
                event = self._read_command(line)
            if event is not None:
                return event

    def accept(self, reply: Reply | None = None) -> None:
        """Answer the open question positively, with `reply` or the usual one. Ignored when the session was closed
        meanwhile; without a question a programming error."""
        step = self._asked
        if step is None:
            self._question_is_missing()
            return
        self._asked = None
        if reply is not None:
            code, wire = reply.code, reply.encode()
        elif step is Occasion.CONNECT:
            code, wire = 220, self._dialect.greeting
        else:
            code, wire = _USUAL[step]
        if step is _RCPT:
            self._recipients[self._candidate.text] = self._candidate
        elif step is _MAIL:
            self._reverse_path = self._candidate
        elif step is _DATA:
            self._scanner = ContentScanner(self._dialect.settings.bare_newline is not _REJECT)
            self._content_ended = self._void = False
            self._refusal = None
        elif step is _FINAL_DOT:
            self._errors = 0
        self._say(step, code, wire)

    def reject(self, reply: Reply) -> None:
        """Answer the open question with a 4yz or 5yz reply; 421 closes. Ignored when the session was closed meanwhile."""
        step = self._asked
        if step is None:
            self._question_is_missing()
            return
        self._asked = None
        self._refuse(step, reply)

    def refuse_content(self, reply: Reply) -> None:
        """The driver cannot take the rest of this content: read it to the final dot and answer `reply` there. No `Aborted`
        follows. Only between an accepted `DataAsked` and `ContentEnd`."""
        self._void = True
        self._refusal = reply

    def drain(self, reply: Reply) -> None:
        """Close with `reply`, a 421, as soon as no transaction is open."""
        self._draining = reply

    def close(self, reply: Reply) -> None:
        """Close with `reply`, a 421, now; a message that is being received is `Aborted`. Open questions are void."""
        self._part(reply, Occasion.FAREWELL)

    # --- reading

    def _read_command(self, line: bytes | LineTrouble) -> Event | None:
        if isinstance(line, LineTrouble):
            self._refuse(Verb.UNKNOWN, _LINE_TOO_LONG if line is LineTrouble.TOO_LONG else _LINE_BARE)
            return None
        verb, argument = split_command(line)
        cell = self._row[verb]
        if isinstance(cell, Reply):
            self._refuse(verb, cell)
            return None
        try:
            return _COMMANDS[verb](self, verb, argument)
        except GrammarError as trouble:
            self._refuse(verb, trouble.reply)
            return None

    # Each command in its place: answer it, or return the question that it raises. They may raise `GrammarError`.

    def _hello(self, verb: Verb, argument: bytes) -> Event | None:
        name = parse_hello(argument)
        self._esmtp = verb is Verb.EHLO
        self._say(verb, 250, self._dialect.ehlo_reply if self._esmtp else self._dialect.helo_reply)
        return Hello(name, self._esmtp)

    def _mail(self, verb: Verb, argument: bytes) -> Event | None:
        mail = parse_mail(argument, self._dialect, self._esmtp)
        self._asked = verb
        self._candidate = mail.reverse_path
        self._body = mail.body
        return MailAsked(mail.reverse_path, mail.size, mail.body)

    def _rcpt(self, verb: Verb, argument: bytes) -> Event | None:
        forward_path = parse_rcpt(argument, self._dialect, self._esmtp)
        recipients = self._recipients
        if len(recipients) >= self._dialect.settings.recipients and forward_path.text not in recipients:
            self._refuse(verb, _TOO_MANY_RECIPIENTS)
            return None
        self._asked = verb
        self._candidate = forward_path
        return RecipientAsked(self._reverse_path, forward_path)

    def _data(self, verb: Verb, argument: bytes) -> Event | None:
        if argument:
            self._refuse(verb, _NO_ARGUMENT)
            return None
        self._asked = verb
        return DataAsked(Envelope(self._reverse_path, tuple(self._recipients.values()), self._body))

    def _rset(self, verb: Verb, argument: bytes) -> Event | None:
        if argument:
            self._refuse(verb, _NO_ARGUMENT)
        else:
            self._say(verb, *_USUAL[verb])
        return None

    def _vrfy(self, verb: Verb, argument: bytes) -> Event | None:
        if argument:
            self._say(verb, *_USUAL[verb])
        else:
            self._refuse(verb, _VRFY_SYNTAX)
        return None

    def _noop_or_help(self, verb: Verb, argument: bytes) -> Event | None:
        self._say(verb, *_USUAL[verb])
        return None

    def _quit(self, verb: Verb, argument: bytes) -> Event | None:
        if argument:
            self._refuse(verb, _NO_ARGUMENT)
        else:
            self._part(Reply.of(221, "2.0.0", f"{self._dialect.settings.hostname} closing connection"), verb)
        return None

    def _read_content(self) -> Event | Wait | None:
        if self._content_ended:
            return self._end_content()
        data = self._lines.take()
        if not data:
            return NEED_DATA
        scanner = self._scanner
        body = scanner.feed(data)
        if scanner.rest is not None:
            self._content_ended = True
            self._lines.feed(scanner.rest)
        if self._void:
            return None
        if self._content_trouble() is not None:
            self._void = True
            return Aborted()
        return Content(body) if body else None

    def _content_trouble(self) -> Reply | None:
        # Which of two troubles is answered may not depend on the cuts: bare newlines come first wherever they stand.
        if self._scanner.has_bare_newline and self._dialect.settings.bare_newline is _REJECT:
            return _CONTENT_BARE
        if self._scanner.size > self._dialect.settings.message_size_bytes:
            return _CONTENT_TOO_LARGE
        return None

    def _end_content(self) -> Event | None:
        if not self._void:
            self._void = True  # nothing can be aborted any more
            self._asked = _FINAL_DOT
            return ContentEnd(self._scanner.size)
        reply = self._refusal or self._content_trouble()
        assert reply is not None
        self._refuse(_FINAL_DOT, reply)
        return ContentRefused(reply)

    # --- answering

    def _question_is_missing(self) -> None:
        if self.state is not _CLOSED:
            raise RuntimeError("no question is open")

    def _say(self, step: Verb | Occasion, code: int, wire: bytes) -> None:
        """A positive reply: send it, count it, move."""
        self._outbox.append(wire)
        self._answered(step.label, code)
        cell = self._row[step]
        assert isinstance(cell, Move)
        self._enter(cell.accepted)

    def _refuse(self, step: Verb | Occasion, reply: Reply) -> None:
        """A negative reply: send it, count it, move."""
        if reply.code == 421:
            self._part(reply, step)
            return
        if reply.is_permanent:
            self._errors += 1
            # A message gets its own verdict: 421 in place of it would make the sender repeat what is refused for good.
            if self._errors > self._dialect.settings.errors and step is not _FINAL_DOT:
                self._part(Reply.of(421, "4.7.0", f"{self._dialect.settings.hostname} Too many errors"), step)
                return
        self._outbox.append(reply.encode())
        self._answered(step.label, reply.code)
        cell = self._row[step]
        if isinstance(cell, Move) and cell.refused is not None:
            self._enter(cell.refused)

    def _part(self, reply: Reply, step: Verb | Occasion) -> None:
        """The last reply, given in place of one to `step`."""
        if self.state is _CLOSED:
            return
        if self.state is _CONTENT and not self._void:
            self._parting.append(Aborted())
        self._parting.append(CloseAfterSend(reply))
        self._asked = None
        self._lines.take()
        self._outbox.append(reply.encode())
        self._answered(step.label, reply.code)
        move = self._row[Verb.QUIT if step is Verb.QUIT else Occasion.FAREWELL]
        assert isinstance(move, Move)
        self._enter(move.accepted)

    def _enter(self, state: State) -> None:
        if state is self.state:
            return
        self.state = state
        self._row = TRANSITIONS[state]
        if state is _READY or state is _START:
            self._reverse_path = NULL
            self._body = _SEVEN_BIT
            if self._recipients:
                self._recipients = {}


_COMMANDS: Final[Mapping[Verb, Callable[[ServerConversation, Verb, bytes], Event | None]]] = {
    Verb.EHLO: ServerConversation._hello,
    Verb.HELO: ServerConversation._hello,
    Verb.MAIL: ServerConversation._mail,
    Verb.RCPT: ServerConversation._rcpt,
    Verb.DATA: ServerConversation._data,
    Verb.RSET: ServerConversation._rset,
    Verb.NOOP: ServerConversation._noop_or_help,
    Verb.HELP: ServerConversation._noop_or_help,
    Verb.VRFY: ServerConversation._vrfy,
    Verb.QUIT: ServerConversation._quit,
}
