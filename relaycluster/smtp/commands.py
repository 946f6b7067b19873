"""The verbs of SMTP, and the values that their arguments become (RFC 5321 4.1.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Final

from attrs import frozen

from relaycluster.mail.address import Address
from relaycluster.mail.envelope import BodyType
from relaycluster.smtp.grammar import (
    GrammarError,
    parse_client_name,
    parse_forward_path,
    parse_parameters,
    parse_reverse_path,
)
from relaycluster.smtp.server_settings import Dialect


class Verb(Enum):
    """What a command line asks for."""

    EHLO = "EHLO"
    HELO = "HELO"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
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
    Verb.MAIL,
    Verb.RCPT,
    Verb.DATA,
    Verb.RSET,
    Verb.NOOP,
    Verb.VRFY,
    Verb.HELP,
    Verb.QUIT,
)
"""What HELP lists."""

_NOT_IMPLEMENTED = (
    "AUTH",
    "STARTTLS",
    "BDAT",
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


@frozen
class MailCommand:
    """MAIL: the reverse-path, the declared size in octets if there is one, and what the content may hold."""

    reverse_path: Address
    size: int | None = None
    body: BodyType = _SEVEN_BIT


def split_command(line: bytes) -> tuple[Verb, bytes]:
    """The verb of a command line, in any case, and its argument, without white space around (RFC 5321 4.1.1, 2.4)."""
    word, _, argument = line.partition(b" ")
    verb = _VERBS.get(word.upper())
    if verb is None:  # "QUIT\t" is still QUIT: trailing white space is let pass
        verb = _VERBS.get(word.rstrip(b"\t").upper(), _UNKNOWN)
    return verb, argument.rstrip(b" \t")


def parse_hello(argument: bytes) -> str:
    """EHLO or HELO: the client's name. Raises `GrammarError`."""
    return parse_client_name(argument.lstrip(b" "))


def parse_mail(argument: bytes, dialect: Dialect, esmtp: bool) -> MailCommand:
    """MAIL's argument. Raises `GrammarError`: syntax, a parameter that is not offered, a size above the limit.

    `esmtp` tells whether the client said EHLO: parameters belong to extensions, and HELO offered none.
    """
    if argument[:5].upper() != b"FROM:":
        raise GrammarError(501, "5.5.4", "Syntax: MAIL FROM:<address>")
    reverse_path, rest = parse_reverse_path(argument[5:])
    if not rest:
        return MailCommand(reverse_path)
    parameters = parse_parameters(rest)
    _refuse_unknown(parameters, dialect.mail_parameters if esmtp else frozenset())
    size = None
    if "SIZE" in parameters:
        size = _parse_size(parameters["SIZE"])
        if size > dialect.settings.message_size_bytes:
            raise GrammarError(552, "5.3.4", f"Message size exceeds the limit of {dialect.settings.message_size_bytes}")
    body = _SEVEN_BIT
    if "BODY" in parameters:
        known = _BODY_VALUES.get((parameters["BODY"] or "").upper())
        if known is None:
            raise GrammarError(501, "5.5.4", "BODY must be 7BIT or 8BITMIME")
        body = known
    return MailCommand(reverse_path, size, body)


def parse_rcpt(argument: bytes, dialect: Dialect, esmtp: bool) -> Address:
    """RCPT's argument. Raises `GrammarError` as `parse_mail` does."""
    if argument[:3].upper() != b"TO:":
        raise GrammarError(501, "5.5.4", "Syntax: RCPT TO:<address>")
    forward_path, rest = parse_forward_path(argument[3:])
    if rest:
        _refuse_unknown(parse_parameters(rest), dialect.rcpt_parameters if esmtp else frozenset())
    return forward_path


def _parse_size(value: str | None) -> int:
    if value is None or _SIZE_VALUE.fullmatch(value) is None:
        raise GrammarError(501, "5.5.4", "SIZE must be a number of octets")
    return int(value)


def _refuse_unknown(parameters: Mapping[str, str | None], offered: frozenset[str]) -> None:
    for name in parameters:
        if name not in offered:
            raise GrammarError(555, "5.5.4", f"Parameter {name[:40]} is not offered")  # RFC 5321 4.1.1.11
