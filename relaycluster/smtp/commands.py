"""The verbs of SMTP, and the values that their arguments become (RFC 5321 4.1.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from relaycluster.mail.address import NULL, Address
from relaycluster.mail.envelope import BodyType, NotifyRequest, Ret
from relaycluster.smtp.dsn_parameters import is_xtext, parse_envelope_id, parse_notify_request, parse_ret
from relaycluster.smtp.grammar import (
    GrammarError,
    parse_client_name,
    parse_forward_path,
    parse_parameters,
    parse_reverse_path,
)

if TYPE_CHECKING:
    from relaycluster.smtp.server_settings import Dialect


class Verb(Enum):
    """What a command line asks for."""

    EHLO = "EHLO"
    HELO = "HELO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    BDAT = "BDAT"
    RSET = "RSET"
    NOOP = "NOOP"
    VRFY = "VRFY"
    HELP = "HELP"
    QUIT = "QUIT"
    NOT_IMPLEMENTED = "NOT IMPLEMENTED"
    """A command that is known and not offered: 502 (4.2.4)."""
    UNKNOWN = "OTHER"
    """No command of SMTP: 500."""
    FOREIGN = "FOREIGN"
    """The first word of another protocol: a web page may be made to send a request to a relay that trusts its network, with
    commands in the request's body. Nobody gets that far."""

    __hash__ = object.__hash__  # looked up several times a message; Enum's own is a Python function

    def __init__(self, label: str) -> None:
        self.label = label  # the value, at a fraction of the cost


COMMANDS: Final = (
    Verb.EHLO,
    Verb.HELO,
    Verb.STARTTLS,
    Verb.AUTH,
    Verb.MAIL,
    Verb.RCPT,
    Verb.DATA,
    Verb.BDAT,
    Verb.RSET,
    Verb.NOOP,
    Verb.VRFY,
    Verb.HELP,
    Verb.QUIT,
)
"""What a client may say; HELP lists those that its listener offers."""

_NOT_IMPLEMENTED = (
    "BURL",
    "ETRN",
    "ATRN",
    "EXPN",
    "TURN",
    "SEND",
    "SOML",
    "SAML",
    "XCLIENT",
    "XFORWARD",
)
_FOREIGN = ("GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PRI")
_VERBS: Final[Mapping[bytes, Verb]] = {
    **{verb.value.encode(): verb for verb in COMMANDS},
    **{name.encode(): Verb.NOT_IMPLEMENTED for name in _NOT_IMPLEMENTED},
    **{name.encode(): Verb.FOREIGN for name in _FOREIGN},
}

_SEVEN_BIT: Final = BodyType.SEVEN_BIT  # see server.py on the cost of an Enum's member
_UNKNOWN: Final = Verb.UNKNOWN
_SIZE_VALUE = re.compile(r"[0-9]{1,20}")  # RFC 1870 section 4
_BODY_VALUES = {body.value: body for body in BodyType}
_SMTPUTF8 = re.compile(rb" SMTPUTF8(?: |$)", re.IGNORECASE)
_CHUNK = re.compile(rb" *([0-9]{1,20})(?: +(LAST))?", re.IGNORECASE)
_LIKE_BDAT = re.compile(rb"\s*BDAT(?:\s|$)", re.IGNORECASE)
_AUTH_OCTETS = 500  # RFC 4954 section 5
_NO_PARAMETERS: Final[frozenset[str]] = frozenset()


class MailCommand(NamedTuple):
    """MAIL: the reverse-path, the declared size in octets if there is one, and the rest as it goes into the envelope.

    Not frozen attrs, whose making costs 0.2 µs a field: each message makes one.
    """

    reverse_path: Address
    size: int | None = None
    body: BodyType = _SEVEN_BIT
    smtputf8: bool = False
    ret: Ret | None = None
    envelope_id: str = ""


NO_MAIL: Final = MailCommand(NULL)


def split_command(line: bytes) -> tuple[Verb, bytes]:
    """The verb of a command line, in any case, and its argument, without white space around (RFC 5321 4.1.1, 2.4)."""
    word, _, argument = line.partition(b" ")
    verb = _VERBS.get(word.upper())
    if verb is None:  # "QUIT\t" is still QUIT: trailing white space is let pass
        verb = _VERBS.get(word.rstrip(b"\t").upper(), _UNKNOWN)
        if verb is _UNKNOWN and resembles_bdat(line):
            return Verb.BDAT, line  # which `parse_bdat` does not understand
    return verb, argument.rstrip(b" \t")


def resembles_bdat(line: bytes) -> bool:
    """Whether somebody less strict might read this line, or this beginning of one, as BDAT: then octets that are not commands
    may stand behind it."""
    return _LIKE_BDAT.match(line) is not None


def parse_hello(argument: bytes) -> str:
    """EHLO or HELO: the client's name. Raises `GrammarError`."""
    return parse_client_name(argument.lstrip(b" "))


def parse_mail(argument: bytes, dialect: Dialect, esmtp: bool) -> MailCommand:
    """MAIL's argument. Raises `GrammarError`: syntax, a parameter that is not offered, a size above the limit.

    `esmtp` tells whether the client said EHLO: parameters belong to extensions, and HELO offered none.
    """
    if argument[:5].upper() != b"FROM:":
        raise GrammarError(501, "5.5.4", "Syntax: MAIL FROM:<address>")
    # SMTPUTF8 stands behind the path that it allows, so it is looked for first; whether it is there the parameters tell.
    utf8 = not argument.isascii() and esmtp and _SMTPUTF8.search(argument) is not None
    reverse_path, rest = parse_reverse_path(argument[5:], utf8)
    if not rest and not utf8:
        return MailCommand(reverse_path)
    parameters = parse_parameters(rest, utf8)
    offered = dialect.mail_parameters if esmtp else _NO_PARAMETERS
    size, body, smtputf8, ret, envelope_id = None, _SEVEN_BIT, False, None, ""
    for name, value in parameters.items():
        if name not in offered:
            raise _unknown(name)
        if name == "SIZE":
            size = _parse_size(value, dialect.settings.message_size_bytes)
        elif name == "BODY":
            body = _parse_body(value)
        elif name == "SMTPUTF8":
            smtputf8 = _parse_smtputf8(value)
        elif name == "RET":
            ret = parse_ret(value)
        elif name == "ENVID":
            envelope_id = parse_envelope_id(value)
        elif name == "AUTH":
            _parse_auth_parameter(value)
    if utf8 and not smtputf8:
        raise GrammarError(553, "5.6.7", "Non-ASCII addresses are not permitted without SMTPUTF8")
    return MailCommand(reverse_path, size, body, smtputf8, ret, envelope_id)


def parse_rcpt(
    argument: bytes, dialect: Dialect, esmtp: bool, utf8: bool = False
) -> tuple[Address, NotifyRequest | None]:
    """RCPT's argument: the recipient, and what is asked for it (RFC 3461), None where nothing is. `utf8`: MAIL said SMTPUTF8.
    Raises `GrammarError` as `parse_mail` does."""
    if argument[:3].upper() != b"TO:":
        raise GrammarError(501, "5.5.4", "Syntax: RCPT TO:<address>")
    forward_path, rest = parse_forward_path(argument[3:], utf8)
    if not rest:
        return forward_path, None
    parameters = parse_parameters(rest, utf8)
    offered = dialect.rcpt_parameters if esmtp else _NO_PARAMETERS
    for name in parameters:
        if name not in offered:
            raise _unknown(name)
    return forward_path, parse_notify_request(parameters)


def parse_bdat(argument: bytes) -> tuple[int, bool]:
    """BDAT's argument (RFC 3030 section 2): the octets of the chunk, and whether it is the last.

    Raises `GrammarError` 421: nobody can tell which of the octets behind such a line are content and which are commands, so
    none of them may be read."""
    match = _CHUNK.fullmatch(argument)
    if match is None:
        raise GrammarError(421, "4.7.0", "Syntax: BDAT octets [LAST]; the end of this chunk can not be known: goodbye")
    return int(match[1]), match[2] is not None


def _parse_size(value: str | None, limit: int) -> int:
    if value is None or _SIZE_VALUE.fullmatch(value) is None:
        raise GrammarError(501, "5.5.4", "SIZE must be a number of octets")
    size = int(value)
    if size > limit:
        raise GrammarError(552, "5.3.4", f"Message size exceeds the limit of {limit}")
    return size


def _parse_body(value: str | None) -> BodyType:
    body = _BODY_VALUES.get((value or "").upper())
    if body is None:  # BINARYMIME too (RFC 3030 section 3), which is not offered
        raise GrammarError(501, "5.5.4", "BODY must be 7BIT or 8BITMIME")
    return body


def _parse_smtputf8(value: str | None) -> bool:
    if value is not None:  # RFC 6531 3.4
        raise GrammarError(501, "5.5.4", "SMTPUTF8 takes no value")
    return True


def _parse_auth_parameter(value: str | None) -> None:
    """Who submitted the message first (RFC 4954 section 5): parsed and believed of nobody."""
    if value is None or len(value) > _AUTH_OCTETS or not is_xtext(value):
        raise GrammarError(501, "5.5.4", "AUTH must be xtext")


def _unknown(name: str) -> GrammarError:
    return GrammarError(555, "5.5.4", f"Parameter {name[:40]} is not offered")  # RFC 5321 4.1.1.11
