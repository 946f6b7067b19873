"""The client's side of SMTP without sockets: bytes and transactions in, bytes and events out.

The caller owns the connection: it gives `ClientConversation.receive_data` what arrived, writes what `data_to_send`
returns, and acts on each event of `next_event`:

    Ready           the session stands; `begin` a transaction, or `close`
    TLSWanted       start TLS, then call `tls_started` or `tls_failed`
    ContentWanted   give the content to `send_content`, then call `finish`
    Finished        the transaction's outcomes, one for each recipient, in order
    Ended           close the connection; nothing else comes

A reply is believed only while a command waits for it. Bytes that arrive when nothing was asked, or that stand in the
buffer before the command that they seem to answer was written, end the connection: a reply that counts for the wrong
command is a message lost in silence. Memory is bounded whatever the server sends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from relaycluster.mail.envelope import BodyType
from relaycluster.mail.outcome import Deferred, Delivered, Failed, Outcome, Stage
from relaycluster.mail.reply import Reply
from relaycluster.mail.trace import header_end
from relaycluster.smtp import extensions, wishes
from relaycluster.smtp.client_events import (
    ContentWanted,
    Ended,
    Event,
    Finished,
    Ready,
    TLSPolicy,
    TLSWanted,
    Transaction,
)
from relaycluster.smtp.client_states import ACTIVITIES, STAGES, TRANSITIONS, State, Trigger
from relaycluster.smtp.dots import DotStuffer, stuff
from relaycluster.smtp.replies import MalformedReply, ReplyReader

ONE_WRITE = 64 * 1024
"""Content of at most so many octets is stuffed and written at once, together with its final dot."""


_TLS_FAILED = "The TLS handshake with the host failed"
_REPLY_OTHER_LENGTH = Reply.of(451, "4.3.0", "given up by this node: the content has another length than was said")
_NO_TLS = "TLS is required, and the host does not offer it"


_NOT_KNOWN = range(500, 505)  # RFC 5321 4.2.2: of the command, not of the message


class ClientConversation:
    """One SMTP session, from the greeting on.

    `helo_name` is our name for EHLO, `host` the server's for the outcomes, which may be another for each transaction. `chunking` False leaves the server's CHUNKING unused.
    Read-only for the caller: `state`, `extensions` (of the last EHLO), `encrypted`, `replies_seen`, which grows with each
    reply that was understood, so that the caller can tell progress from mere bytes, and `chunking`, False once the server has
    refused what it offers.
    """

    __slots__ = (
        "_accepted",
        "_chunk_left",
        "_commands",
        "_ehlo",
        "_established",
        "_events",
        "_helo_name",
        "_last_piece",
        "_mail_refused",
        "_needs_rset",
        "_out",
        "_outcomes",
        "_policy",
        "_recipient",
        "_replies",
        "_stuffer",
        "_transaction",
        "chunking",
        "encrypted",
        "extensions",
        "host",
        "replies_seen",
        "state",
    )

    def __init__(self, helo_name: str, host: str, tls: TLSPolicy = TLSPolicy.MAY, chunking: bool = True) -> None:
        self.state = State.GREETING
        self.chunking = chunking
        self.extensions = extensions.NONE
        self.encrypted = False
        self.replies_seen = 0
        self._helo_name = helo_name
        self.host = host
        self._policy = tls
        self._established = False
        self._needs_rset = False
        self._replies = ReplyReader()
        self._events: deque[Event] = deque()
        self._out: list[bytes] = []
        # Of the transaction under way:
        self._transaction: Transaction | None = None
        self._outcomes: list[Outcome | None] = []
        self._recipient = 0  # whose reply is awaited
        self._accepted = 0  # recipients
        self._mail_refused = False
        self._commands: list[bytes] = []  # not yet written, last one first; empty with PIPELINING
        self._stuffer: DotStuffer | None = None
        self._chunk_left: int | None = None  # octets of the one chunk; None where DATA is used
        self._last_piece = b""  # of the chunk: with it the message can arrive

    # What goes out

    def data_to_send(self) -> bytes:
        """The bytes to write now, each once; empty when there are none."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        self._out = []
        return data

    def next_event(self) -> Event | None:
        """What happened next, or None."""
        return self._events.popleft() if self._events else None

    # What comes in

    def receive_data(self, data: bytes) -> None:
        """Bytes from the server, cut anywhere. Never raises for what they are."""
        if self.state is State.CLOSED:
            return
        replies = self._replies
        replies.feed(data)
        try:
            while (reply := replies.next_reply()) is not None:
                self.replies_seen += 1
                if reply.code == 421 and self.state is not State.QUIT:
                    self._break_off(reply, answered=True)
                else:
                    _ON_REPLY[self.state](self, reply)
        except MalformedReply as malformed:
            self._break_off(Reply.of(451, "4.5.0", f"malformed reply while {ACTIVITIES[self.state]}: {malformed}"))

    def connection_lost(self, reason: str) -> None:
        """The connection is gone, for a reason that is fit for a log."""
        self._break_off(Reply.of(451, "4.4.2", f"connection lost while {ACTIVITIES[self.state]}: {reason}"))

    def timed_out(self) -> None:
        """The server took too long."""
        self._break_off(Reply.of(451, "4.4.2", f"timed out while {ACTIVITIES[self.state]}"))

    def give_up(self, reply: Reply) -> None:
        """Stop here, for our own reason: recipients without an outcome are deferred with `reply`."""
        self._break_off(reply)

    def tls_started(self) -> None:
        """The handshake is complete and, where the policy asks for it, the certificate is verified."""
        self._move(Trigger.HANDSHAKE)
        self.encrypted = True
        # RFC 3207 4.2: what was learned in clear is forgotten.
        self.extensions = extensions.NONE
        self._write(self._ehlo_command())

    def tls_failed(self, reason: str) -> None:
        """There is no TLS, for a reason that is fit for a log."""
        self._break_off(Reply.of(454, "4.7.5", f"{_TLS_FAILED} ({reason})"))

    # What the caller wants

    def needs_seven_bit(self, transaction: Transaction) -> bool:
        """Whether the content must be converted to seven bits before `begin`, because the host does not take eight
        (RFC 6152 section 3). Begun nevertheless, the transaction fails with 5.6.3, and not a byte of it is sent. False where
        that could not help: an internationalized message for a host without SMTPUTF8."""
        offers = self.extensions
        if offers.eight_bit_mime or not _is_eight_bit(transaction):
            return False
        envelope = transaction.envelope
        paths = [envelope.reverse_path.text, *[recipient.text for recipient in envelope.recipients]]
        return offers.smtputf8 or (all(map(str.isascii, paths)) and not _has_utf8_header(transaction))

    def begin(self, transaction: Transaction) -> None:
        """Start a transaction; only in State.READY. Its end is always a `Finished`, which may be there at once."""
        if self.state is not State.READY:
            raise RuntimeError(f"a transaction can not begin in the state {self.state}")
        self._transaction = transaction
        envelope = transaction.envelope
        number = len(envelope.recipients)
        self._outcomes = [None] * number
        self._recipient = self._accepted = 0
        self._mail_refused = False
        if not self._replies.is_empty:
            self._out_of_turn()
            return
        offers = self.extensions
        reverse_path = envelope.reverse_path.text
        if offers.dsn and (envelope.requests or envelope.envelope_id or envelope.ret is not None):
            asked, recipients = wishes.of_mail(envelope), wishes.rcpt_commands(envelope)
        else:
            asked, recipients = "", [f"RCPT TO:<{recipient.text}>\r\n" for recipient in envelope.recipients]
        addresses = "".join(recipients)
        is_eight_bit = _is_eight_bit(transaction)
        needs_utf8 = not (addresses.isascii() and reverse_path.isascii()) or (
            envelope.smtputf8 and _has_utf8_header(transaction)
        )
        obstacle = self._obstacle(transaction, is_eight_bit, needs_utf8)
        # RFC 6531 3.4: not for a message that is known to need none of it. One with 8-bit octets in its body may have them in
        # the header of a part as well, which nobody looks at.
        is_utf8 = needs_utf8 or (envelope.smtputf8 and is_eight_bit and offers.smtputf8)
        mail = (
            f"MAIL FROM:<{reverse_path}>"
            f"{f' SIZE={transaction.size}' if offers.size else ''}"
            f"{' BODY=8BITMIME' if is_eight_bit else ''}"
            f"{' SMTPUTF8' if is_utf8 else ''}{asked}\r\n"
        )
        commands = mail + addresses
        if obstacle is None and not commands.count("\n") == commands.count("\r") == number + 1:
            # The edge lets no such address in. If one came nevertheless it would be commands of somebody else.
            obstacle = Reply.of(553, "5.1.3", "an address holds a line break")
        if obstacle is not None or not number:
            self._finish(Failed(obstacle or Reply.of(554, "5.5.1", "no recipients"), Stage.MAIL, self.host))
            return
        needs_rset, self._needs_rset = self._needs_rset, False
        self._move(Trigger.BEGIN_AFTER_RSET if needs_rset else Trigger.BEGIN)
        self._chunk_left = (
            transaction.size if offers.chunking and self.chunking and _fits_one_chunk(transaction) else None
        )
        data = "DATA\r\n" if self._chunk_left is None else ""
        if offers.pipelining:
            reset = "RSET\r\n" if needs_rset else ""
            self._out.append(f"{reset}{commands}{data}".encode())
            return
        self._commands = [line.encode() for line in (data, *reversed(recipients), mail) if line]
        self._write(b"RSET\r\n" if needs_rset else self._commands.pop())

    def send_content(self, chunk: bytes) -> None:
        """More content after `ContentWanted`, in order, cut anywhere. Nothing is sent when the conversation has broken
        off meanwhile: a caller need not look before each chunk, but does well to look now and then."""
        if self.state is not State.CONTENT:
            return
        if self._chunk_left is not None:
            self._send_octets(chunk)
        elif self._stuffer is not None:
            self._out.append(self._stuffer.stuff(chunk))

    def finish(self) -> None:
        """The content is complete: write the final dot, if the transaction may."""
        if self.state is not State.CONTENT:
            return
        if self._chunk_left:
            self._break_off(_REPLY_OTHER_LENGTH)
        elif self._chunk_left is not None and self._may_finish():
            self._out.append(self._last_piece)
            self._last_piece = b""
            self._move(Trigger.DOT)
        elif self._stuffer is not None and self._may_finish():
            self._out.append(self._stuffer.finish())
            self._stuffer = None
            self._move(Trigger.DOT)

    def close(self) -> None:
        """End the session politely; only in State.READY or State.CLOSED. `Ended` comes with the server's answer."""
        if self.state is State.CLOSED:
            return
        self._move(Trigger.QUIT)
        self._write(b"QUIT\r\n")

    # Replies, by the state that they arrive in

    def _on_greeting(self, reply: Reply) -> None:
        if reply.code < 300:
            self._move(Trigger.ACCEPTED)
            self._write(self._ehlo_command())
        else:
            self._reject(reply)

    def _on_ehlo(self, reply: Reply) -> None:
        if reply.code < 300:
            self.extensions = extensions.parse(reply.lines)
            if self.encrypted or self._policy is TLSPolicy.NONE or not self.extensions.starttls:
                self._session_stands()
            else:
                self._move(Trigger.OFFERS_TLS)
                self._write(b"STARTTLS\r\n")
        elif reply.is_permanent:
            # RFC 5321 3.2: a server that does not know EHLO.
            self._move(Trigger.REFUSED)
            self._write(f"HELO {self._helo_name}\r\n".encode())
        else:
            self._reject(reply)

    def _on_helo(self, reply: Reply) -> None:
        if reply.code < 300:
            self.extensions = extensions.NONE
            self._session_stands()
        else:
            self._reject(reply)

    def _on_starttls(self, reply: Reply) -> None:
        if reply.code < 300:
            if not self._replies.is_empty:
                # Sent in clear by whoever sits on the line, to be read as if it came under TLS (CVE-2011-0411).
                self._break_off(Reply.of(454, "4.7.5", f"{_TLS_FAILED} (more came than the reply to STARTTLS)"))
                return
            self._move(Trigger.ACCEPTED)
            self._events.append(TLSWanted())
        elif reply.code < 400:
            self._unexpected(reply)
        elif self._policy.is_required:
            # Deferred whatever the code says: 5yz to STARTTLS tells nothing about the mail.
            self._reject(Reply.of(454, "4.7.4", f"{_NO_TLS} (it answered STARTTLS with {str(reply)[:200]})"))
        else:
            self._become_ready(Trigger.REFUSED)

    def _on_ready(self, reply: Reply) -> None:
        self._out_of_turn()

    def _on_closed(self, reply: Reply) -> None:
        pass  # the rest of a buffer behind the reply that ended the session

    def _on_rset(self, reply: Reply) -> None:
        if reply.code >= 300:
            self._unexpected(reply)
            return
        self._move(Trigger.ACCEPTED)
        self._write_next()

    def _on_mail(self, reply: Reply) -> None:
        code = reply.code
        if code < 300:
            self._needs_rset = True
            self._move(Trigger.ACCEPTED)
            self._write_next()
        elif code < 400:
            self._unexpected(reply)
        else:
            refusal = self._refusal(reply, Stage.MAIL)
            if self._commands:
                self._commands = []
                self._move(Trigger.REFUSED)
                self._finish(refusal)
                return
            # What was written ahead is answered all the same, and must be read (RFC 2920 3.1).
            self._mail_refused = True
            self._outcomes = [refusal] * len(self._outcomes)
            self._move(Trigger.REFUSED_AHEAD)

    def _on_rcpt(self, reply: Reply) -> None:
        code = reply.code
        if code < 300:
            self._accepted += 1
        elif code < 400:
            self._unexpected(reply)
            return
        elif not self._mail_refused:
            self._outcomes[self._recipient] = self._refusal(reply, Stage.RCPT)
        self._recipient += 1
        if self._recipient < len(self._outcomes):
            self._move(Trigger.NEXT_RECIPIENT)
        elif self._chunk_left is not None:
            self._start_chunk(self._chunk_left)
            return
        elif self._commands and not self._accepted:
            self._commands = []
            self._move(Trigger.NO_RECIPIENT)
            self._finish(None)
            return
        else:
            self._move(Trigger.LAST_RECIPIENT)
        self._write_next()

    def _on_data(self, reply: Reply) -> None:
        code = reply.code
        if code < 300:
            self._unexpected(reply)
        elif code >= 400:
            self._needs_rset = self._needs_rset or self._accepted > 0
            self._move(Trigger.REFUSED)
            self._finish(self._refusal(reply, Stage.DATA))
        elif not self._replies.is_empty:
            self._out_of_turn()
        elif self._accepted and not self._mail_refused:
            self._move(Trigger.GO_AHEAD)
            self._start_content()
        elif self._accepted:
            # MAIL refused and RCPT accepted: an empty content could reach somebody. So nothing at all is written.
            self._unexpected(reply)
        else:
            # RFC 2920 3.1: "the client SMTP should send a single dot". Whatever the answer, nobody got anything.
            self._move(Trigger.GO_AHEAD_FOR_NOBODY)
            self._out.append(b".\r\n")

    def _on_content(self, reply: Reply) -> None:
        # The server gives up before the content's end. Then the end must not come.
        if self._chunk_left is not None and reply.code in _NOT_KNOWN:
            self._no_chunking(reply)
        elif reply.code >= 400:
            self._settle(self._refusal(reply, Stage.CONTENT))
            self._end(None)
        else:
            self._out_of_turn()

    def _on_empty_dot(self, reply: Reply) -> None:
        self._needs_rset = False
        self._move(Trigger.ANSWERED)
        self._finish(None)

    def _on_final_dot(self, reply: Reply) -> None:
        code = reply.code
        if 300 <= code < 400:
            self._unexpected(reply)
            return
        if self._chunk_left is not None and code in _NOT_KNOWN:
            self._no_chunking(reply)
            return
        self._needs_rset = False
        self._move(Trigger.ANSWERED)
        self._finish(
            Delivered(reply, self.host, self.extensions.dsn) if code < 300 else self._refusal(reply, Stage.FINAL_DOT)
        )

    def _on_quit(self, reply: Reply) -> None:
        self._move(Trigger.ANSWERED)
        self._events.append(Ended(polite=True))

    # Steps

    def _move(self, trigger: Trigger) -> None:
        self.state = TRANSITIONS[self.state][trigger]

    def _write(self, command: bytes) -> None:
        """A command that is written when nothing else is outstanding: then nothing may wait to be read."""
        if self._replies.is_empty:
            self._out.append(command)
        else:
            self._out_of_turn()

    def _write_next(self) -> None:
        if self._commands:
            self._write(self._commands.pop())

    def _ehlo_command(self) -> bytes:
        return f"EHLO {self._helo_name}\r\n".encode()

    def _session_stands(self) -> None:
        if self._policy.is_required and not self.encrypted:
            self._reject(Reply.of(454, "4.7.4", _NO_TLS), Stage.TLS)
            return
        self._become_ready(Trigger.ACCEPTED)

    def _become_ready(self, trigger: Trigger) -> None:
        if not self._replies.is_empty:
            self._out_of_turn()
            return
        self._move(trigger)
        self._established = True
        self._events.append(Ready(self.extensions))

    def _obstacle(self, transaction: Transaction, is_eight_bit: bool, needs_utf8: bool) -> Reply | None:
        """Why the host can not take the transaction, as far as its extensions tell before a byte is sent. The codes are those of
        `policy/trouble.py`, which knows by them that another host may take it."""
        offers = self.extensions
        if offers.size_limit is not None and transaction.size > offers.size_limit:
            detail = f"({transaction.size} octets, and the host takes {offers.size_limit})"
            return Reply.of(552, "5.3.4", f"The message is larger than the host accepts {detail}")
        if needs_utf8 and not offers.smtputf8:
            text = "The host takes no internationalized mail (SMTPUTF8), and an address or the header of this message is so"
            return Reply.of(553, "5.6.7", text)
        if is_eight_bit and not offers.eight_bit_mime:
            text = "The host takes no 8-bit content, and this message cannot be converted"
            return Reply.of(554, "5.6.3", text)
        return None

    def _start_content(self) -> None:
        transaction = self._transaction
        assert transaction is not None
        content = transaction.content
        if not isinstance(content, bytes) or len(content) > ONE_WRITE:
            self._stuffer = DotStuffer()
            self._events.append(ContentWanted(transaction))
        elif self._may_finish():
            self._out.append(stuff(content))
            self._move(Trigger.DOT)

    def _start_chunk(self, octets: int) -> None:
        """All recipients are answered, and no DATA was written: the whole content goes as one chunk (RFC 3030)."""
        transaction = self._transaction
        assert transaction is not None
        if not self._accepted or self._mail_refused:
            # Nobody is to get anything, so nothing is written, whatever the server accepted after it refused MAIL.
            self._needs_rset = self._needs_rset or self._accepted > 0
            self._move(Trigger.NO_RECIPIENT)
            self._finish(None)
            return
        self._write(b"BDAT %d LAST\r\n" % octets)
        if self.state is State.RCPT:
            self._move(Trigger.CHUNK)
            self._events.append(ContentWanted(transaction))

    def _send_octets(self, piece: bytes) -> None:
        """More of the chunk. Its last octets are kept for `finish`: a server takes nothing that is not whole."""
        assert self._chunk_left is not None
        if not piece:
            return
        self._chunk_left -= len(piece)
        if self._chunk_left > 0:
            self._out.append(piece)
        elif self._chunk_left == 0:
            self._last_piece = piece
        else:
            # What is more would be read as commands.
            self._break_off(_REPLY_OTHER_LENGTH)

    def _no_chunking(self, reply: Reply) -> None:
        """The server offered CHUNKING, and does not know BDAT: something in front of it rewrites what it offers, or what we say. That
        says nothing of the message, and the octets of the chunk may be read as commands: no more of them, and DATA the next time."""
        self.chunking = False
        said = f"the host offers CHUNKING, and refuses BDAT: {str(reply)[:200]}"
        self._settle(Deferred(Reply.of(451, "4.5.0", said), STAGES[self.state], self.host))
        self._end(None)

    def _may_finish(self) -> bool:
        transaction = self._transaction
        assert transaction is not None
        if transaction.may_finish():
            return True
        self._break_off(Reply.of(451, "4.3.0", "held back before the final dot: this node may not send it now"))
        return False

    def _refusal(self, reply: Reply, stage: Stage) -> Deferred | Failed:
        return Deferred(reply, stage, self.host) if reply.code < 500 else Failed(reply, stage, self.host)

    def _settle(self, outcome: Outcome) -> None:
        self._outcomes = [outcome if decided is None else decided for decided in self._outcomes]

    def _finish(self, outcome: Outcome | None) -> None:
        """The transaction is over; `outcome` is for the recipients that have none yet (None: all have)."""
        if outcome is not None:
            self._settle(outcome)
        self._events.append(Finished(tuple([decided for decided in self._outcomes if decided is not None])))
        self._transaction = self._stuffer = self._chunk_left = None
        self._last_piece = b""
        self._outcomes = []

    def _reject(self, reply: Reply, stage: Stage | None = None) -> None:
        """The session can not be had."""
        if 300 <= reply.code < 400:
            self._unexpected(reply)
            return
        outcome = self._refusal(reply, STAGES[self.state] if stage is None else stage)
        tls_failed = self.state is State.STARTTLS
        self._move(Trigger.REJECTED)
        self._out.append(b"QUIT\r\n")
        self._events.append(Ended(outcome, tls_failed, polite=True))

    def _unexpected(self, reply: Reply) -> None:
        self._break_off(Reply.of(451, "4.5.0", f"unexpected reply while {ACTIVITIES[self.state]}: {str(reply)[:200]}"))

    def _out_of_turn(self) -> None:
        self._break_off(Reply.of(451, "4.5.0", f"a reply that nobody asked for while {ACTIVITIES[self.state]}"))

    def _break_off(self, reply: Reply, *, answered: bool = False) -> None:
        """The connection can not be used any more. `answered` when `reply` is the server's own answer to what was
        written last."""
        state = self.state
        if state is State.CLOSED:
            return
        may_have_arrived = state is State.FINAL_DOT and not answered
        outcome = Deferred(reply, STAGES[state], self.host, may_have_arrived)
        if self._transaction is not None:
            self._settle(outcome)
        self._end(None if self._established else outcome, polite=answered)

    def _end(self, outcome: Deferred | None, *, polite: bool = False) -> None:
        state = self.state
        self._move(Trigger.BREAK)
        if self._transaction is not None:
            self._finish(None)
        self._replies = ReplyReader()
        self._commands = []
        self._out = []
        # What a server says in so many words under TLS, a 421, shows that TLS works.
        in_tls = state in (State.STARTTLS, State.TLS) or (state is State.EHLO and self.encrypted and not polite)
        self._events.append(Ended(outcome, in_tls and not self._established, polite))


def _fits_one_chunk(transaction: Transaction) -> bool:
    """Whether CHUNKING pays: a large content goes at half the CPU without dots to look for. A small one gains nothing."""
    content = transaction.content
    if transaction.size <= ONE_WRITE:
        return False
    return not isinstance(content, bytes) or (len(content) == transaction.size and content.endswith(b"\r\n"))


def _is_eight_bit(transaction: Transaction) -> bool:
    content = transaction.content
    return transaction.envelope.body is BodyType.EIGHT_BIT or (isinstance(content, bytes) and not content.isascii())


def _has_utf8_header(transaction: Transaction) -> bool:
    """Whether the header is internationalized (RFC 6532), so far as that was declared: 8-bit octets in the header of other mail
    are junk that travels as it always did. The declaration is believed where the content is not at hand."""
    if not transaction.envelope.smtputf8:
        return False
    content = transaction.content
    return not isinstance(content, bytes) or not (content.isascii() or content[: header_end(content)].isascii())


_ON_REPLY: dict[State, Callable[[ClientConversation, Reply], None]] = {
    State.GREETING: ClientConversation._on_greeting,
    State.EHLO: ClientConversation._on_ehlo,
    State.HELO: ClientConversation._on_helo,
    State.STARTTLS: ClientConversation._on_starttls,
    State.TLS: ClientConversation._on_ready,  # nothing in clear is believed once STARTTLS was accepted
    State.READY: ClientConversation._on_ready,
    State.RSET: ClientConversation._on_rset,
    State.MAIL: ClientConversation._on_mail,
    State.RCPT: ClientConversation._on_rcpt,
    State.DATA: ClientConversation._on_data,
    State.CONTENT: ClientConversation._on_content,
    State.EMPTY_DOT: ClientConversation._on_empty_dot,
    State.FINAL_DOT: ClientConversation._on_final_dot,
    State.QUIT: ClientConversation._on_quit,
    State.CLOSED: ClientConversation._on_closed,
}
