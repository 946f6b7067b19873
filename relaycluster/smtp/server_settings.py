"""What one listener tells its clients: the limits of the conversation, and the one table of service extensions.

An extension is added here (keyword, parameters, octets), in `commands.py` if it brings a verb, and in the transition
table of `server.py` if that verb moves the state. EHLO, the refusal of unknown parameters, the longest command line and
the table in `docs/design/smtp-server.md` follow from this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final

from attrs import field, frozen

from relaycluster.mail.reply import Reply

COMMAND_LINE_OCTETS: Final = 512  # RFC 5321 4.5.3.1.4, with CRLF


class BareNewline(Enum):
    """What to do with content that holds a bare CR or LF; it never ends the message."""

    REJECT = "reject"  # refuse the message with 554 5.6.0 after its final dot
    NORMALIZE = "normalize"  # make each of them CRLF


@frozen
class ServerSettings:
    """The conversation's settings. Sizes in octets.

    `software` stands in the greeting behind `ESMTP`. `recipients` is the most that one transaction takes: the next is
    answered 452 4.5.3 (RFC 5321 4.5.3.1.10). `errors` is how many permanent refusals in a row, without a message
    between them, are answered before the session is closed with 421 4.7.0.
    """

    hostname: str
    message_size_bytes: int = 25 * 1024 * 1024
    recipients: int = 1000
    errors: int = 20
    bare_newline: BareNewline = BareNewline.REJECT
    software: str = "relaycluster"


@frozen
class Extension:
    """One SMTP service extension (RFC 5321 2.2).

    `ehlo` makes its line of the reply to EHLO, None when this listener does not offer it. `mail_parameters` and
    `rcpt_parameters` are the keywords that it adds; `octets` is by how much it lengthens a command line.
    `kept_in` and `transcripts` (in tests/transcripts/) are for the documentation.
    """

    keyword: str
    reference: str
    ehlo: Callable[[ServerSettings], str | None]
    kept_in: str
    transcripts: tuple[str, ...]
    mail_parameters: tuple[str, ...] = ()
    rcpt_parameters: tuple[str, ...] = ()
    octets: int = 0


EXTENSIONS: Final[Sequence[Extension]] = (
    Extension(
        keyword="PIPELINING",
        reference="RFC 2920",
        ehlo=lambda _: "PIPELINING",
        kept_in="`smtp/server.py`: replies are collected, in order, until the driver writes",
        transcripts=("pipelining.txt", "pipelining-after-refused-data.txt"),
    ),
    Extension(
        keyword="SIZE",
        reference="RFC 1870",
        ehlo=lambda settings: f"SIZE {settings.message_size_bytes}",
        kept_in="`smtp/commands.py`: the parameter; `smtp/server.py`: while the content streams",
        transcripts=("size.txt",),
        mail_parameters=("SIZE",),
        octets=26,
    ),
    Extension(
        keyword="8BITMIME",
        reference="RFC 6152",
        ehlo=lambda _: "8BITMIME",
        kept_in="`smtp/commands.py`: BODY goes into the envelope; content is passed on as it is",
        transcripts=("8bitmime.txt",),
        mail_parameters=("BODY",),
        octets=17,
    ),
    Extension(
        keyword="ENHANCEDSTATUSCODES",
        reference="RFC 2034",
        ehlo=lambda _: "ENHANCEDSTATUSCODES",
        kept_in="every `Reply`, except the greeting and the replies to EHLO and HELO",
        transcripts=("enhanced-status-codes.txt",),
    ),
)


@frozen
class Dialect:
    """What follows from the settings, computed once for all sessions of a listener."""

    settings: ServerSettings
    ehlo_lines: tuple[str, ...] = field(init=False)
    mail_parameters: frozenset[str] = field(init=False)
    rcpt_parameters: frozenset[str] = field(init=False)
    command_line_octets: int = field(init=False)
    greeting: bytes = field(init=False)
    ehlo_reply: bytes = field(init=False)
    helo_reply: bytes = field(init=False)

    @ehlo_lines.default
    def _(self) -> tuple[str, ...]:
        lines = (extension.ehlo(self.settings) for extension in EXTENSIONS)
        return (self.settings.hostname, *(line for line in lines if line is not None))

    @mail_parameters.default
    def _(self) -> frozenset[str]:
        return frozenset(name for extension in self._offered() for name in extension.mail_parameters)

    @rcpt_parameters.default
    def _(self) -> frozenset[str]:
        return frozenset(name for extension in self._offered() for name in extension.rcpt_parameters)

    @command_line_octets.default
    def _(self) -> int:
        return COMMAND_LINE_OCTETS + sum(extension.octets for extension in self._offered())

    # The greeting and the replies to EHLO and HELO have no enhanced status codes (RFC 2034 section 4).

    @greeting.default
    def _(self) -> bytes:
        return Reply.of(220, "", f"{self.settings.hostname} ESMTP {self.settings.software}").encode()

    @ehlo_reply.default
    def _(self) -> bytes:
        return Reply(250, "", self.ehlo_lines).encode()

    @helo_reply.default
    def _(self) -> bytes:
        return Reply.of(250, "", self.settings.hostname).encode()

    def _offered(self) -> Sequence[Extension]:
        return [extension for extension in EXTENSIONS if extension.ehlo(self.settings) is not None]
