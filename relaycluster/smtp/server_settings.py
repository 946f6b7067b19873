"""What one listener tells its clients: the limits of the conversation, and the one table of service extensions.

An extension is added here (keyword, parameters, octets), in `commands.py` if it brings a verb, and in the transition
table of `server_states.py`. EHLO, the refusal of unknown parameters, the longest command line and
the table in `docs/design/smtp-server.md` follow from this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Final

from attrs import field, frozen

from relaycluster.mail.reply import Reply
from relaycluster.smtp.commands import COMMANDS, Verb
from relaycluster.smtp.server_auth import MECHANISMS
from relaycluster.smtp.server_states import Table, narrowed

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
    between them, are answered before the session is closed with 421 4.7.0; `fruitless_commands` how many that bring no message
    nearer (NOOP, RSET, VRFY, HELP, EHLO, HELO, AUTH, STARTTLS, MAIL), as Postfix' `smtpd_junk_command_limit`.

    `starttls` offers TLS while the session is in the clear; `require_tls` refuses, in the clear, whatever belongs to mail.
    `auth` offers AUTH under TLS, and in the clear only with `auth_without_tls`.
    """

    hostname: str
    message_size_bytes: int = 25 * 1024 * 1024
    recipients: int = 1000
    errors: int = 20
    fruitless_commands: int = 100
    bare_newline: BareNewline = BareNewline.REJECT
    software: str = "relaycluster"
    starttls: bool = False
    require_tls: bool = False
    auth: bool = False
    auth_without_tls: bool = False


@frozen
class Stage:
    """What the reply to EHLO depends on: whether TLS stands, and whether AUTH said who the client is."""

    secure: bool
    authenticated: bool


STAGES: Final = tuple(Stage(secure, authenticated) for secure in (False, True) for authenticated in (False, True))


@frozen
class Extension:
    """One SMTP service extension (RFC 5321 2.2).

    `ehlo` makes its line of the reply to EHLO at a stage, None when this listener does not offer it then. `mail_parameters`
    and `rcpt_parameters` are the keywords that it adds where it is offered at any stage; `octets` is by how much it lengthens a
    command line. `kept_in` and `transcripts` (in tests/transcripts/) are for the documentation.
    """

    keyword: str
    reference: str
    ehlo: Callable[[ServerSettings, Stage], str | None]
    kept_in: str
    transcripts: tuple[str, ...]
    mail_parameters: tuple[str, ...] = ()
    rcpt_parameters: tuple[str, ...] = ()
    octets: int = 0


def _starttls(settings: ServerSettings, stage: Stage) -> str | None:
    # RFC 3207 section 4.2: not once TLS stands.
    return "STARTTLS" if settings.starttls and not stage.secure else None


def _auth(settings: ServerSettings, stage: Stage) -> str | None:
    # RFC 4954 section 4: PLAIN and LOGIN not in the clear; and AUTH works once.
    possible = stage.secure or (settings.auth_without_tls and not settings.require_tls)
    return f"AUTH {' '.join(MECHANISMS)}" if settings.auth and possible and not stage.authenticated else None


EXTENSIONS: Final[Sequence[Extension]] = (
    Extension(
        keyword="PIPELINING",
        reference="RFC 2920",
        ehlo=lambda *_: "PIPELINING",
        kept_in="`smtp/server.py`: replies are collected, in order, until the driver writes",
        transcripts=("pipelining.txt", "pipelining-after-refused-data.txt"),
    ),
    Extension(
        keyword="SIZE",
        reference="RFC 1870",
        ehlo=lambda settings, _: f"SIZE {settings.message_size_bytes}",
        kept_in="`smtp/commands.py`: the parameter; `smtp/server.py`: while the content streams",
        transcripts=("size.txt", "bdat-size.txt"),
        mail_parameters=("SIZE",),
        octets=26,
    ),
    Extension(
        keyword="8BITMIME",
        reference="RFC 6152",
        ehlo=lambda *_: "8BITMIME",
        kept_in="`smtp/commands.py`: BODY goes into the envelope; content is passed on as it is",
        transcripts=("8bitmime.txt",),
        mail_parameters=("BODY",),
        octets=17,
    ),
    Extension(
        keyword="ENHANCEDSTATUSCODES",
        reference="RFC 2034",
        ehlo=lambda *_: "ENHANCEDSTATUSCODES",
        kept_in="every `Reply`, except the greeting and the replies to EHLO and HELO",
        transcripts=("enhanced-status-codes.txt",),
    ),
    Extension(
        keyword="CHUNKING",
        reference="RFC 3030",
        ehlo=lambda *_: "CHUNKING",
        kept_in="`smtp/framing.py`: the octets of a chunk; `smtp/server.py`: what becomes of them. BINARYMIME is not offered",
        transcripts=("bdat.txt", "bdat-refused.txt", "bdat-bare-newline.txt", "bdat-syntax.txt"),
    ),
    Extension(
        keyword="SMTPUTF8",
        reference="RFC 6531",
        ehlo=lambda *_: "SMTPUTF8",
        kept_in="`smtp/grammar.py`: addresses; `smtp/commands.py`: the parameter",
        transcripts=("smtputf8.txt",),
        mail_parameters=("SMTPUTF8",),
        octets=10,
    ),
    Extension(
        keyword="DSN",
        reference="RFC 3461",
        ehlo=lambda *_: "DSN",
        kept_in="`smtp/dsn_parameters.py`; the envelope carries them",
        transcripts=("dsn.txt",),
        mail_parameters=("RET", "ENVID"),
        rcpt_parameters=("NOTIFY", "ORCPT"),
        octets=536,
    ),
    Extension(
        keyword="STARTTLS",
        reference="RFC 3207",
        ehlo=_starttls,
        kept_in="`smtp/server.py`: what is forgotten and thrown away; `net/inbound.py`: TLS itself",
        transcripts=("starttls.txt", "starttls-injection.txt", "require-tls.txt"),
    ),
    Extension(
        keyword="AUTH",
        reference="RFC 4954",
        ehlo=_auth,
        kept_in="`smtp/server_auth.py`: the dialog; the node knows the users",
        transcripts=("auth-plain.txt", "auth-login.txt", "auth-refused.txt", "auth-in-the-clear.txt"),
        mail_parameters=("AUTH",),
        octets=507,
    ),
)


@frozen
class Terms:
    """What holds at one stage: the reply to EHLO, and the transition table."""

    ehlo_reply: bytes
    table: Table = field(repr=False)


@frozen
class Dialect:
    """What follows from the settings, computed once for all sessions of a listener."""

    settings: ServerSettings
    mail_parameters: frozenset[str] = field(init=False)
    rcpt_parameters: frozenset[str] = field(init=False)
    command_line_octets: int = field(init=False)
    greeting: bytes = field(init=False)
    helo_reply: bytes = field(init=False)
    help_reply: bytes = field(init=False)
    terms: Mapping[tuple[bool, bool], Terms] = field(init=False)
    """By whether TLS stands, and whether the client is known."""

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

    @helo_reply.default
    def _(self) -> bytes:
        return Reply.of(250, "", self.settings.hostname).encode()

    @help_reply.default
    def _(self) -> bytes:
        never = {"STARTTLS": Verb.STARTTLS, "AUTH": Verb.AUTH}
        for extension in self._offered():
            never.pop(extension.keyword, None)
        verbs = [verb.value for verb in COMMANDS if verb not in never.values()]
        return Reply.of(214, "2.0.0", f"Commands: {' '.join(verbs)}").encode()

    @terms.default
    def _(self) -> Mapping[tuple[bool, bool], Terms]:
        return {
            (stage.secure, stage.authenticated): Terms(
                Reply(250, "", self.ehlo_lines(stage)).encode(),
                narrowed(self.settings, stage.secure, stage.authenticated),
            )
            for stage in STAGES
        }

    def ehlo_lines(self, stage: Stage) -> tuple[str, ...]:
        """The lines of the reply to EHLO."""
        lines = (extension.ehlo(self.settings, stage) for extension in EXTENSIONS)
        return (self.settings.hostname, *(line for line in lines if line is not None))

    def _offered(self) -> Sequence[Extension]:
        """The extensions of this listener, whatever the stage."""
        settings = self.settings
        return [one for one in EXTENSIONS if any(one.ehlo(settings, stage) is not None for stage in STAGES)]
