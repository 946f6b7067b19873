"""The server's half of an SMTP conversation without a socket: octets in, events and replies out (RFC 5321).

Everything that moves the state stands in one table, `server_states.TRANSITIONS`. The driver feeds `receive_data`, takes
events from `next_event` until it says NEED_DATA or PAUSED, and writes what `data_to_send` has collected. After a question
the conversation stands still (PAUSED) until `accept` or `reject`, so replies leave in the order of the commands however
long one of them takes (RFC 2920 section 3.2); after `StartTLS` it does until `secured`. No input raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from relaycluster.mail.address import NULL, Address
from relaycluster.mail.envelope import NO_REQUESTS, Envelope, NotifyRequest
from relaycluster.mail.reply import Reply
from relaycluster.smtp.commands import (
    NO_MAIL,
    Verb,
    parse_bdat,
    parse_hello,
    parse_mail,
    parse_rcpt,
    resembles_bdat,
    split_command,
)
from relaycluster.smtp.framing import ChunkScanner, CommandFramer, ContentScanner, LineTrouble
from relaycluster.smtp.grammar import GrammarError
from relaycluster.smtp.server_auth import RESPONSE_OCTETS, AuthDialog, parse_auth
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
    StartTLS,
    Wait,
)
from relaycluster.smtp.server_replies import (
    CANCELLED,
    CONTENT_BARE,
    CONTENT_TOO_LARGE,
    LINE_BARE,
    LINE_TOO_LONG,
    NO_ARGUMENT,
    NO_RECIPIENTS,
    RESPONSE_BARE,
    RESPONSE_TOO_LONG,
    TOO_MANY_RECIPIENTS,
    TROUBLED_CHUNK,
    USUAL,
    VRFY_SYNTAX,
)
from relaycluster.smtp.server_settings import BareNewline, Dialect
from relaycluster.smtp.server_states import Move, Occasion, State

# On Python 3.11 each look at an Enum's member costs 0.1 µs or more, and a message has dozens: the hot path uses these names.
_RCPT: Final = Verb.RCPT
_MAIL: Final = Verb.MAIL
_DATA: Final = Verb.DATA
_BDAT: Final = Verb.BDAT
_AUTH: Final = Verb.AUTH
_FINAL_DOT: Final = Occasion.FINAL_DOT
_CHUNK_END: Final = Occasion.CHUNK
_RESPONSE: Final = Occasion.RESPONSE
_DRAIN: Final = Occasion.DRAIN
_START: Final = State.START
_READY: Final = State.READY
_CONNECTED: Final = State.CONNECTED
_SECURING: Final = State.SECURING
_CLOSED: Final = State.CLOSED
_REJECT: Final = BareNewline.REJECT


# In place of a scanner while there is no content.
_NO_CONTENT: Final = ContentScanner()
_NO_CHUNKS: Final = ChunkScanner()


def _unheard(verb: str, code: int) -> None:
    """The default for `answered`."""


class ServerConversation:
    """One session.

    `answered(verb, code)` is called with every reply, for counting: the verb is one of a fixed set, "OTHER" for whatever
    is no command, "CONNECT" for the greeting, "DOT" for the reply to the whole content, "FAREWELL" for a 421 that nobody asked
    for. `secure`: TLS stands already. `probe`: a balancer's health check, with which no mail can be sent.
    """

    __slots__ = (
        "_answered",
        "_asked",
        "_candidate",
        "_chunks",
        "_content_ended",
        "_dialect",
        "_dialog",
        "_draining",
        "_errors",
        "_esmtp",
        "_fruitless",
        "_last",
        "_lines",
        "_mail",
        "_open",
        "_outbox",
        "_parting",
        "_probe",
        "_read",
        "_recipients",
        "_refusal",
        "_refusal_told",
        "_remaining",
        "_request",
        "_requests",
        "_row",
        "_scanner",
        "_secure",
        "_terms",
        "_transferred",
        "errors_limit",
        "fruitless_limit",
        "refusals",
        "state",
    )

    def __init__(
        self,
        dialect: Dialect,
        answered: Callable[[str, int], None] = _unheard,
        *,
        secure: bool = False,
        probe: bool = False,
    ) -> None:
        self._dialect = dialect
        self._answered = answered
        self._secure = secure
        self._probe = probe
        self._terms = dialect.terms[secure, False]
        self._lines = CommandFramer(dialect.command_line_octets)
        self._outbox: list[bytes] = []
        self._parting: list[Event] = []  # what is to be told before anything else
        self._asked: Verb | Occasion | None = None
        self._errors = 0
        self._fruitless = 0  # commands since the last message that brought none nearer
        self.refusals = 0
        """How many commands were refused, whatever for. Read only."""
        self.errors_limit = dialect.settings.errors
        """How many permanent refusals in a row are answered; a driver may change it at any time."""
        self.fruitless_limit = dialect.settings.fruitless_commands
        """How many commands that bring no message nearer are answered between two messages; likewise."""
        self._draining: Reply | None = None
        self._esmtp = False
        self._dialog: AuthDialog | None = None
        # The transaction.
        self._mail = NO_MAIL
        self._candidate = NULL  # the recipient that is asked about, and what was asked for it
        self._request: NotifyRequest | None = None
        self._recipients: dict[str, Address] = {}
        self._requests: dict[str, NotifyRequest] = {}
        # Its content. While it is open the driver is being handed it, and has not heard of an end.
        self._open = False
        self._scanner = _NO_CONTENT
        self._content_ended = False
        self._refusal: Reply | None = None  # the verdict on it, as soon as it is certain
        self._refusal_told = False
        # Its chunks (RFC 3030).
        self._chunks = _NO_CHUNKS
        self._remaining = 0  # octets of the present chunk that have to come
        self._last = False  # whether it is the last
        self._transferred = 0  # octets in all chunks so far, with this one
        self.state = _CONNECTED
        """Read only."""
        self._row = self._terms.table[_CONNECTED]
        self._read = _READERS.get(_CONNECTED)  # what reads in this state; None where commands are read

    # --- what the driver calls

    @property
    def pending(self) -> int:
        """Octets that arrived and wait for the conversation to go on. A driver stops reading when it is PAUSED with many."""
        return self._lines.pending

    @property
    def swallowing(self) -> bool:
        """Whether octets of a chunk are read and thrown away that was out of sequence, whatever the state: for deadlines."""
        return self._read is _SWALLOW

    def receive_data(self, data: bytes) -> None:
        """Octets from the client."""
        state = self.state
        if state is not _CLOSED and state is not _SECURING:
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
        """The next event; NEED_DATA when more octets are needed (or the session is over), PAUSED when a question is open or TLS
        is awaited."""
        while True:
            if self._asked is not None:
                return PAUSED
            if self._parting:
                return self._parting.pop(0)
            read = self._read
            if read is not None:
                event = read(self)
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
        if step is _BDAT:  # the reply comes behind the chunk
            self._chunks = ChunkScanner(self._dialect.settings.bare_newline is not _REJECT)
            self._open = True
            self._move(step)
            return
        if reply is not None:
            code, wire = reply.code, reply.encode()
        elif self.state is _CONNECTED:
            code, wire = 220, self._dialect.greeting
        else:
            code, wire = USUAL[step]
        if step is _RCPT:
            text = self._candidate.text
            self._recipients[text] = self._candidate
            if self._request is not None:
                self._requests[text] = self._request
            elif self._requests:
                self._requests.pop(text, None)
        elif step is _DATA:
            self._scanner = ContentScanner(self._dialect.settings.bare_newline is not _REJECT)
            self._open = True
            self._content_ended = False
            self._refusal = None
        elif step is _FINAL_DOT:
            self._errors = self._fruitless = 0
        elif step is _RESPONSE:
            self._terms = self._dialect.terms[self._secure, True]
        self._say(step, code, wire)

    def reject(self, reply: Reply) -> None:
        """Answer the open question with a 4yz or 5yz reply; 421 closes. Ignored when the session was closed meanwhile."""
        step = self._asked
        if step is None:
            self._question_is_missing()
            return
        self._asked = None
        if step is _BDAT and reply.code != 421:
            self._refusal = reply  # the reply comes behind the chunk
            self._refusal_told = True
            self._move(step)
        else:
            self._refuse(step, reply)

    def refuse_content(self, reply: Reply) -> None:
        """The driver cannot take the rest of this content: read it to the final dot or the end of the chunk and answer `reply`
        there. No `Aborted` follows. Only between an accepted `DataAsked` and `ContentEnd`."""
        self._open = False
        self._refusal = reply

    def secured(self) -> None:
        """TLS stands, as `StartTLS` asked for. The session begins anew: what the client said before is forgotten (RFC 3207
        section 4.2). Ignored when the session was closed meanwhile; otherwise without `StartTLS` a programming error."""
        if self.state is _CLOSED:
            return
        if self.state is not _SECURING:
            raise RuntimeError("TLS was not asked for")
        self._secure = True
        self._terms = self._dialect.terms[True, False]
        self._move(Occasion.TLS)

    def drain(self, reply: Reply) -> None:
        """Close with `reply`, a 421, as soon as no transaction is open."""
        self._draining = reply

    def close(self, reply: Reply) -> None:
        """Close with `reply`, a 421, now; a message that is being received is `Aborted`. Open questions are void."""
        self._part(reply, Occasion.FAREWELL)

    # --- reading: one method for each kind of input; None to go on

    def _read_nothing(self) -> Event | Wait | None:
        return PAUSED if self.state is _SECURING else NEED_DATA

    def _read_connection(self) -> Event | Wait | None:
        self._asked = Occasion.PROBE if self._probe else Occasion.CONNECT
        return ConnectAsked()

    def _read_command(self, line: bytes | LineTrouble) -> Event | None:
        if isinstance(line, LineTrouble):
            self._read_troubled_line(line)
            return None
        verb, argument = split_command(line)
        if verb in _FRUITLESS:
            self._fruitless += 1
            if self._fruitless > self.fruitless_limit:
                name = self._dialect.settings.hostname
                self._part(Reply.of(421, "4.7.0", f"{name} Too many commands without a message"), verb)
                return None
        cell = self._row[verb]
        try:
            if isinstance(cell, Reply):
                self._refuse_sequence(verb, argument, cell)
                return None
            return _COMMANDS[verb](self, verb, argument)
        except GrammarError as trouble:
            self._refuse(verb, trouble.reply)
            return None

    def _read_troubled_line(self, trouble: LineTrouble) -> None:
        if resembles_bdat(self._lines.trouble_head):
            self._part(TROUBLED_CHUNK, Verb.UNKNOWN)  # its octets would be read as commands
        else:
            self._refuse(Verb.UNKNOWN, LINE_TOO_LONG if trouble is LineTrouble.TOO_LONG else LINE_BARE)

    def _refuse_sequence(self, verb: Verb, argument: bytes, reply: Reply) -> None:
        """The table refuses the command. Even so the octets of a chunk have to be read (RFC 3030 section 2)."""
        if verb is not _BDAT:
            if verb is _AUTH:
                self._lines.forget()
            self._refuse(verb, reply)
            return
        self._remaining, _ = parse_bdat(argument)
        self._refusal = reply
        self._read = _SWALLOW

    def _read_refused_chunk(self) -> Event | Wait | None:
        if self._remaining:
            return None if self._take_octets() else NEED_DATA
        reply = self._refusal
        assert reply is not None
        self._read = None
        self._refuse(_BDAT, reply)
        return None

    def _read_response(self) -> Event | Wait | None:
        if self._draining is not None:
            self.close(self._draining)
            return None
        line = self._lines.next_line()
        if line is None:
            return NEED_DATA
        self._lines.forget()
        if isinstance(line, LineTrouble):
            self._end_dialog()
            self._refuse(_RESPONSE, RESPONSE_TOO_LONG if line is LineTrouble.TOO_LONG else RESPONSE_BARE)
            return None
        if line == b"*":
            self._end_dialog()
            self._refuse(_RESPONSE, CANCELLED)
            return None
        return self._respond(line)

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
        if not self._open:
            return None
        if scanner.has_bare_newline or scanner.size > self._dialect.settings.message_size_bytes:
            return self._hand_on(body, scanner)
        return Content(body) if body else None

    def _read_chunk(self) -> Event | Wait | None:
        if self._remaining:
            data = self._take_octets()
            if not data:
                return NEED_DATA
            if self._refusal is not None:
                return None
            body = self._chunks.feed(data)
            return self._hand_on(body, self._chunks) if self._open else None
        if self._last and self._refusal is None and not self._content_ended:
            self._content_ended = True
            body = self._chunks.finish()
            if self._open and (event := self._hand_on(body, self._chunks)) is not None:
                return event
        return self._end_chunk()

    def _take_octets(self) -> bytes:
        """What has come of the present chunk."""
        data = self._lines.take_up_to(self._remaining)
        self._remaining -= len(data)
        return data

    # --- each command in its place: answer it, or return the question that it raises; they may raise `GrammarError`

    def _hello(self, verb: Verb, argument: bytes) -> Event | None:
        name = parse_hello(argument)
        self._esmtp = verb is Verb.EHLO
        self._say(verb, 250, self._terms.ehlo_reply if self._esmtp else self._dialect.helo_reply)
        hello = Hello(name, self._esmtp)
        if self._parting:  # first the message that this ends
            self._parting.append(hello)
            return None
        return hello

    def _starttls(self, verb: Verb, argument: bytes) -> Event | None:
        if argument:
            self._refuse(verb, NO_ARGUMENT)
            return None
        # What stands behind the command was not protected: whoever put it there must not speak within TLS (CVE-2011-0411).
        self._lines = CommandFramer(self._dialect.command_line_octets)
        self._say(verb, *USUAL[verb])
        return StartTLS()

    def _auth(self, verb: Verb, argument: bytes) -> Event | None:
        self._lines.forget()
        mechanism, initial = parse_auth(argument)
        self._dialog = AuthDialog(mechanism)
        self._lines.allow(RESPONSE_OCTETS)
        if initial is None:
            self._challenge(self._dialog)
            self._move(verb)
            return None
        self._move(verb)
        return self._respond(initial)

    def _mail_from(self, verb: Verb, argument: bytes) -> Event | None:
        self._mail = mail = parse_mail(argument, self._dialect, self._esmtp)
        self._asked = verb
        return MailAsked(mail.reverse_path, mail.size, mail.body)

    def _rcpt_to(self, verb: Verb, argument: bytes) -> Event | None:
        mail = self._mail
        forward_path, self._request = parse_rcpt(argument, self._dialect, self._esmtp, mail.smtputf8)
        recipients = self._recipients
        if len(recipients) >= self._dialect.settings.recipients and forward_path.text not in recipients:
            self._refuse(verb, TOO_MANY_RECIPIENTS)
            return None
        self._asked = verb
        self._candidate = forward_path
        return RecipientAsked(mail.reverse_path, forward_path)

    def _data(self, verb: Verb, argument: bytes) -> Event | None:
        if argument:
            self._refuse(verb, NO_ARGUMENT)
            return None
        self._asked = verb
        return DataAsked(self._envelope())

    def _bdat(self, verb: Verb, argument: bytes) -> Event | None:
        self._remaining, self._last = parse_bdat(argument)
        is_first = self.state is State.RECIPIENTS or self.state is State.MAIL
        if is_first:
            self._transferred = 0
            self._content_ended = self._refusal_told = False
            self._refusal = None
        self._transferred += self._remaining
        if not self._recipients:
            self._refusal = NO_RECIPIENTS
            self._refusal_told = True  # as a command out of sequence, not as a message
        elif self._refusal is None and self._transferred > self._dialect.settings.message_size_bytes:
            self._refusal = CONTENT_TOO_LARGE
        elif is_first:
            self._asked = verb
            return DataAsked(self._envelope())
        self._move(verb)
        if self._open and self._refusal is not None:
            self._open = False
            return Aborted()
        return None

    def _rset(self, verb: Verb, argument: bytes) -> Event | None:
        if argument:
            self._refuse(verb, NO_ARGUMENT)
        else:
            self._say(verb, *USUAL[verb])
        return None

    def _vrfy(self, verb: Verb, argument: bytes) -> Event | None:
        if argument:
            self._say(verb, *USUAL[verb])
        else:
            self._refuse(verb, VRFY_SYNTAX)
        return None

    def _noop(self, verb: Verb, argument: bytes) -> Event | None:
        self._say(verb, *USUAL[verb])
        return None

    def _help(self, verb: Verb, argument: bytes) -> Event | None:
        self._say(verb, 214, self._dialect.help_reply)
        return None

    def _quit(self, verb: Verb, argument: bytes) -> Event | None:
        if argument:
            self._refuse(verb, NO_ARGUMENT)
        else:
            self._part(Reply.of(221, "2.0.0", f"{self._dialect.settings.hostname} closing connection"), verb)
        return None

    # --- AUTH

    def _respond(self, response: bytes) -> Event | None:
        dialog = self._dialog
        assert dialog is not None
        try:
            credentials = dialog.respond(response)
        except GrammarError as trouble:
            self._end_dialog()
            self._refuse(_RESPONSE, trouble.reply)
            return None
        if credentials is None:
            self._challenge(dialog)
            return None
        self._end_dialog()
        self._asked = _RESPONSE
        return credentials

    def _challenge(self, dialog: AuthDialog) -> None:
        self._outbox.append(b"334 %b\r\n" % dialog.challenge)
        self._answered(_AUTH.label, 334)

    def _end_dialog(self) -> None:
        self._dialog = None
        self._lines.allow(self._dialect.command_line_octets)

    # --- content

    def _envelope(self) -> Envelope:
        mail = self._mail
        return Envelope(
            mail.reverse_path,
            tuple(self._recipients.values()),
            mail.body,
            mail.smtputf8,
            mail.ret,
            mail.envelope_id,
            dict(self._requests) if self._requests else NO_REQUESTS,
        )

    def _hand_on(self, body: bytes, scanner: ContentScanner | ChunkScanner) -> Event | None:
        if self._content_trouble(scanner) is not None:
            self._open = False
            return Aborted()
        return Content(body) if body else None

    def _content_trouble(self, scanner: ContentScanner | ChunkScanner) -> Reply | None:
        # Which of two troubles is answered may not depend on the cuts: bare newlines come first wherever they stand.
        if scanner.has_bare_newline and self._dialect.settings.bare_newline is _REJECT:
            return CONTENT_BARE
        if scanner.size > self._dialect.settings.message_size_bytes:
            return CONTENT_TOO_LARGE
        return None

    def _end_content(self) -> Event | None:
        if self._open:
            self._open = False  # nothing can be aborted any more
            self._asked = _FINAL_DOT
            return ContentEnd(self._scanner.size)
        reply = self._refusal or self._content_trouble(self._scanner)
        assert reply is not None
        self._refuse(_FINAL_DOT, reply)
        return ContentRefused(reply)

    def _end_chunk(self) -> Event | None:
        reply = self._refusal or self._content_trouble(self._chunks)
        if reply is None:
            if not self._last:
                self._say(_CHUNK_END, *USUAL[_CHUNK_END])
                return None
            self._open = False
            self._asked = _FINAL_DOT
            return ContentEnd(self._chunks.size)
        # From now on every chunk gets this verdict: a client that only looks at the last reply is not misled.
        self._refusal = reply
        is_new, self._refusal_told = not self._refusal_told, True
        self._refuse(_FINAL_DOT if self._last else _CHUNK_END, reply, is_verdict=is_new)
        return ContentRefused(reply) if is_new else None

    # --- answering

    def _question_is_missing(self) -> None:
        if self.state is not _CLOSED:
            raise RuntimeError("no question is open")

    def _say(self, step: Verb | Occasion, code: int, wire: bytes) -> None:
        """A positive reply: send it, count it, move."""
        self._outbox.append(wire)
        self._answered(step.label, code)
        state = self._row[step].accepted  # type: ignore[union-attr]  # `_move`, without its costs
        if state is not self.state:
            self._enter(state)

    def _refuse(self, step: Verb | Occasion, reply: Reply, is_verdict: bool = False) -> None:
        """A negative reply: send it, count it, move. `is_verdict`: it tells a message's fate."""
        self.refusals += 1
        if reply.code == 421:
            self._part(reply, step)
            return
        if reply.is_permanent:
            self._errors += 1
            # A message gets its own verdict: 421 in place of it would make the sender repeat what is refused for good.
            if self._errors > self.errors_limit and step is not _FINAL_DOT and not is_verdict:
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
        self._asked = None
        self._dialog = None
        self._lines.take()
        self._outbox.append(reply.encode())
        self._answered(step.label, reply.code)
        self._move(Verb.QUIT if step is Verb.QUIT else Occasion.FAREWELL)
        self._parting.append(CloseAfterSend(reply))

    def _move(self, step: Verb | Occasion) -> None:
        """What the table says of a step that was accepted."""
        cell = self._row[step]
        assert isinstance(cell, Move)
        state = cell.accepted
        if state is not self.state:
            self._enter(state)

    def _enter(self, state: State) -> None:
        self.state = state
        self._row = self._terms.table[state]
        self._read = _READERS.get(state)
        if state is _READY or state is _START or state is _CLOSED:
            if self._recipients:
                self._recipients = {}
                self._requests = {}
            if self._open:
                self._open = False
                self._parting.append(Aborted())


_READERS: Final[Mapping[State, Callable[[ServerConversation], Event | Wait | None]]] = {
    State.CONNECTED: ServerConversation._read_connection,
    State.SECURING: ServerConversation._read_nothing,
    State.AUTHENTICATING: ServerConversation._read_response,
    State.CONTENT: ServerConversation._read_content,
    State.CHUNK: ServerConversation._read_chunk,
    State.CLOSED: ServerConversation._read_nothing,
}
_FRUITLESS: Final = frozenset(
    {Verb.NOOP, Verb.RSET, Verb.VRFY, Verb.HELP, Verb.EHLO, Verb.HELO, Verb.AUTH, Verb.STARTTLS, Verb.MAIL}
)
"""What costs us and brings no mail when it is said again and again; a message begins the count anew."""
_SWALLOW: Final = ServerConversation._read_refused_chunk
_COMMANDS: Final[Mapping[Verb, Callable[[ServerConversation, Verb, bytes], Event | None]]] = {
    Verb.EHLO: ServerConversation._hello,
    Verb.HELO: ServerConversation._hello,
    Verb.STARTTLS: ServerConversation._starttls,
    Verb.AUTH: ServerConversation._auth,
    Verb.MAIL: ServerConversation._mail_from,
    Verb.RCPT: ServerConversation._rcpt_to,
    Verb.DATA: ServerConversation._data,
    Verb.BDAT: ServerConversation._bdat,
    Verb.RSET: ServerConversation._rset,
    Verb.NOOP: ServerConversation._noop,
    Verb.HELP: ServerConversation._help,
    Verb.VRFY: ServerConversation._vrfy,
    Verb.QUIT: ServerConversation._quit,
}
