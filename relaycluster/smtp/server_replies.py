"""What the server says of its own accord, but for the refusals that stand in the transition table (RFC 5321 4.2, RFC 3463)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from relaycluster.mail.reply import Reply
from relaycluster.smtp.commands import Verb
from relaycluster.smtp.server_states import Occasion


def _encoded(code: int, enhanced: str, text: str) -> tuple[int, bytes]:
    return code, Reply.of(code, enhanced, text).encode()


USUAL: Final[Mapping[Verb | Occasion, tuple[int, bytes]]] = {
    Verb.MAIL: _encoded(250, "2.1.0", "Sender ok"),
    Verb.RCPT: _encoded(250, "2.1.5", "Recipient ok"),
    Verb.DATA: _encoded(354, "", "End data with <CR><LF>.<CR><LF>"),  # RFC 3463 has no 3.x.x
    Verb.RSET: _encoded(250, "2.0.0", "Reset"),
    Verb.NOOP: _encoded(250, "2.0.0", "Ok"),
    Verb.VRFY: _encoded(252, "2.5.0", "Cannot VRFY user, but will accept message and attempt delivery"),
    Verb.STARTTLS: _encoded(220, "2.0.0", "Ready to start TLS"),
    Occasion.RESPONSE: _encoded(235, "2.7.0", "Authentication succeeded"),
    Occasion.CHUNK: _encoded(250, "2.0.0", "Chunk received"),
    Occasion.FINAL_DOT: _encoded(250, "2.0.0", "Ok"),
}
"""Code and octets of what a step is answered when it was accepted without a reply of the driver's; that to some depends on the
listener (`server_settings.Dialect`)."""

NO_ARGUMENT: Final = Reply.of(501, "5.5.4", "No argument is permitted here")
VRFY_SYNTAX: Final = Reply.of(501, "5.5.4", "Syntax: VRFY user")
TOO_MANY_RECIPIENTS: Final = Reply.of(452, "4.5.3", "Too many recipients: send the others in another transaction")
LINE_TOO_LONG: Final = Reply.of(500, "5.5.2", "Line too long")
LINE_BARE: Final = Reply.of(500, "5.5.2", "A line ends in CRLF: bare CR or LF is not permitted")
CONTENT_BARE: Final = Reply.of(554, "5.6.0", "Bare CR or LF in the message content")
CONTENT_TOO_LARGE: Final = Reply.of(552, "5.3.4", "Message size exceeds the limit")
NO_RECIPIENTS: Final = Reply.of(554, "5.5.1", "No valid recipients")
RESPONSE_TOO_LONG: Final = Reply.of(500, "5.5.6", "Authentication exchange line is too long")  # RFC 4954 section 4
RESPONSE_BARE: Final = Reply.of(501, "5.5.2", "A line ends in CRLF: bare CR or LF is not permitted")
CANCELLED: Final = Reply.of(501, "5.7.0", "Authentication cancelled")
TROUBLED_CHUNK: Final = Reply.of(421, "4.7.0", "Bad BDAT line; the end of its chunk can not be known: goodbye")
