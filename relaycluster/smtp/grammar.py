"""The grammar of RFC 5321 4.1.2: from the octets of an argument to an `Address`, or to the reply that refuses it.

Strict: what the grammar does not derive is refused, never repaired. What goes beyond the grammar stands here in words:

- A source route (`<@a,@b:user@c>`) is parsed and ignored (3.3, appendix C).
- `<postmaster>` without a domain is a forward-path (4.1.1.3); its `domain` is empty and the caller decides.
- A label has at most 63 octets: a longer one cannot be in the DNS (RFC 1035 2.3.4).
- An IPv4 literal has no leading zeros, whose meaning differs between programs; an IPv6 literal has no zone.
- Octets beyond ASCII are refused with 553 5.6.7 as long as MAIL did not say SMTPUTF8 (RFC 6531 3.5).
- With SMTPUTF8 they may stand in local-parts and domains (RFC 6531 3.3), as UTF-8 without control characters and line
  separators, which a log or a header field could not carry. Limits stay limits of octets. A domain's labels go through UTS 46
  to A-labels, which are what routes; the text stays as it was given.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import idna

from relaycluster.mail.address import NULL, Address
from relaycluster.mail.reply import Reply

LOCAL_PART_OCTETS: Final = 64  # RFC 5321 4.5.3.1.1
DOMAIN_OCTETS: Final = 255  # 4.5.3.1.2
PATH_OCTETS: Final = 256  # 4.5.3.1.3, with its angle brackets

_ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++"
_DOT_STRING = _ATOM + rb"(?:\." + _ATOM + rb")*+"
_QUOTED_STRING = rb'"(?:[ !#-\[\]-~]|\\[ -~])*+"'
_LABEL = rb"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN = _LABEL + rb"(?:\." + _LABEL + rb")*+"
_LITERAL = rb"\[[!-Z^-~]+\]"

# The path that almost every message has: a dot-string at a domain, in angle brackets.
_PLAIN_PATH = re.compile(rb"<((" + _DOT_STRING + rb")@(" + _DOMAIN + rb"))>")
_SOURCE_ROUTE = rb"(?:@" + _DOMAIN + rb"(?:,@" + _DOMAIN + rb")*+:)?"
_MAILBOX = rb"((" + _DOT_STRING + rb"|" + _QUOTED_STRING + rb")@(" + _DOMAIN + rb"|" + _LITERAL + rb"))"
_ANY_PATH = re.compile(rb"<" + _SOURCE_ROUTE + _MAILBOX + rb">")
_BARE_MAILBOX = re.compile(_MAILBOX)

# RFC 6531 3.3: the same with UTF8-non-ascii among the octets; whether they are UTF-8, and a domain, is seen behind it.
_UTF8_ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\xff-]++"
_UTF8_STRING = rb'"(?:[ !#-\[\]-~\x80-\xff]|\\[ -~])*+"'
_UTF8_LABEL = rb"(?!-)[A-Za-z0-9\x80-\xff-]++(?<!-)"
_UTF8_DOMAIN = _UTF8_LABEL + rb"(?:\." + _UTF8_LABEL + rb")*+"
_UTF8_MAILBOX = (
    rb"(("
    + _UTF8_ATOM
    + rb"(?:\."
    + _UTF8_ATOM
    + rb")*+|"
    + _UTF8_STRING
    + rb")@("
    + _UTF8_DOMAIN
    + rb"|"
    + _LITERAL
    + rb"))"
)
_UTF8_PATH = re.compile(rb"<(?:@" + _UTF8_DOMAIN + rb"(?:,@" + _UTF8_DOMAIN + rb")*+:)?" + _UTF8_MAILBOX + rb">")
_UNFIT = re.compile("[\x80-\x9f\u2028\u2029]")
_POSTMASTER = re.compile(rb"<(postmaster)>", re.IGNORECASE)
_DOMAIN_ALONE = re.compile(_DOMAIN)
_PARAMETER = re.compile(rb"([A-Za-z0-9][A-Za-z0-9-]*+)(?:=([!-<>-~]++))?+")
_UTF8_PARAMETER = re.compile(rb"([A-Za-z0-9][A-Za-z0-9-]*+)(?:=([!-<>-~\x80-\xff]++))?+")  # RFC 6531 3.3
_GENERAL_LITERAL = re.compile(rb"[A-Za-z0-9-]*[A-Za-z0-9]:[!-Z^-~]+")
# What real clients say in EHLO includes underscores and a final dot. RFC 5321 4.1.4 forbids to refuse mail because the
# name does not verify, so every token that is harmless in a trace field is good enough.
_CLIENT_NAME = re.compile(rb"[A-Za-z0-9._:\[\]-]{1,255}")


class GrammarError(ValueError):
    """The client's text is not what the grammar asks for. `reply` is what to answer."""

    def __init__(self, code: int, enhanced: str, text: str) -> None:
        super().__init__(text)
        self.reply = Reply.of(code, enhanced, text)


def parse_reverse_path(argument: bytes, utf8: bool = False) -> tuple[Address, bytes]:
    """The reverse-path at the start of MAIL's argument (behind `FROM:`), and what follows it. `utf8`: SMTPUTF8 was said.

    Raises `GrammarError`: 501 5.1.7 for bad syntax, 553 5.6.7 for octets beyond ASCII.
    """
    if argument.startswith(b"<>"):
        return NULL, argument[2:]
    return _parse_path(argument, "5.1.7", utf8)


def parse_forward_path(argument: bytes, utf8: bool = False) -> tuple[Address, bytes]:
    """The forward-path at the start of RCPT's argument (behind `TO:`), and what follows it. `utf8`: MAIL said SMTPUTF8.

    `<postmaster>` gives an address whose `domain` is empty. Raises `GrammarError`: 501 5.1.3 for bad syntax, 553 5.6.7
    for octets beyond ASCII.
    """
    try:
        return _parse_path(argument, "5.1.3", utf8)
    except GrammarError:
        postmaster = _POSTMASTER.match(argument)
        if postmaster is None:
            raise
        return Address(postmaster.group(1).decode("ascii"), ""), argument[postmaster.end() :]


def _parse_path(argument: bytes, enhanced: str, utf8: bool) -> tuple[Address, bytes]:
    match = _PLAIN_PATH.match(argument)
    if match is None:
        match = _ANY_PATH.match(argument)
        if match is None and utf8:
            match = _UTF8_PATH.match(argument)
        if match is None:
            raise _path_trouble(argument, enhanced, utf8)
    end = match.end()
    if end > PATH_OCTETS:
        raise GrammarError(501, enhanced, "Path too long")
    return _address(match, enhanced), argument[end:]


def _address(match: re.Match[bytes], enhanced: str) -> Address:
    text, local_part, domain = match.groups()
    if len(local_part) > LOCAL_PART_OCTETS:
        raise GrammarError(501, enhanced, "Local-part too long")
    if len(domain) > DOMAIN_OCTETS:
        raise GrammarError(501, enhanced, "Domain too long")
    if domain[0] == 0x5B and not is_address_literal(domain):
        raise GrammarError(501, enhanced, "Bad address literal")
    if not text.isascii():
        return _utf8_address(text, domain, enhanced)
    return Address(text.decode("ascii"), domain.decode("ascii").lower())


def _utf8_address(text: bytes, domain: bytes, enhanced: str) -> Address:
    try:
        mailbox = text.decode("utf-8")
        routed = _a_labels(domain.decode("utf-8"))
    except UnicodeError:  # idna's errors are of this kind
        raise GrammarError(501, enhanced, "Bad UTF-8 or bad international domain name in the address") from None
    if _UNFIT.search(mailbox) is not None:
        raise GrammarError(501, enhanced, "Control character in the address")
    return Address(mailbox, routed)


def _a_labels(domain: str) -> str:
    """The domain as the DNS knows it (RFC 5890 2.3.2.1, UTS 46). Raises `UnicodeError`."""
    if domain.isascii():
        return domain.lower()
    routed = idna.encode(domain, uts46=True).lower()
    if not is_domain(routed):
        raise UnicodeError("no domain")
    return routed.decode("ascii")


def _path_trouble(argument: bytes, enhanced: str, utf8: bool) -> GrammarError:
    """Say as exactly as possible what is wrong with a path that no rule derives."""
    if not utf8 and not argument.isascii():
        return GrammarError(553, "5.6.7", "Non-ASCII addresses are not permitted here")
    if argument[:1] in (b" ", b"\t"):
        return GrammarError(501, "5.5.4", "No space is permitted after the colon (RFC 5321 3.3)")
    if argument[:1] != b"<":
        return GrammarError(501, enhanced, "Address must be in angle brackets")
    if b">" not in argument:
        return GrammarError(501, enhanced, "Closing angle bracket is missing")
    return GrammarError(501, enhanced, "Bad address syntax")


def parse_mailbox(text: str) -> Address:
    """A mailbox that somebody wrote down (configuration, aliases): `user@example.org`, without angle brackets.

    Raises `GrammarError`, a `ValueError` whose message is meant for a person.
    """
    if not text.isascii():
        raise GrammarError(553, "5.6.7", "Non-ASCII addresses are not permitted here")
    match = _BARE_MAILBOX.fullmatch(text.encode("ascii"))
    if match is None:
        raise GrammarError(501, "5.1.3", "Bad address syntax")
    if match.end() > PATH_OCTETS - 2:
        raise GrammarError(501, "5.1.3", "Address too long")
    return _address(match, "5.1.3")


def is_domain(text: bytes) -> bool:
    """Whether this is a `Domain`: letters, digits and hyphens in labels between dots."""
    return len(text) <= DOMAIN_OCTETS and _DOMAIN_ALONE.fullmatch(text) is not None


def is_address_literal(text: bytes) -> bool:
    """Whether this is an address literal with its brackets (RFC 5321 4.1.3): IPv4, IPv6, or the general form."""
    if text[:1] != b"[" or text[-1:] != b"]" or not text.isascii():
        return False
    inner = text[1:-1]
    if inner[:5].upper() == b"IPV6:":
        return b"%" not in inner and _is_address(IPv6Address, inner[5:])
    if b":" in inner:  # an IPv6 address that lacks its tag would pass for the general form
        return _GENERAL_LITERAL.fullmatch(inner) is not None and not _is_address(IPv6Address, inner)
    return _is_address(IPv4Address, inner)


def _is_address(kind: type[IPv4Address | IPv6Address], text: bytes) -> bool:
    try:
        kind(text.decode("ascii"))
    except ValueError:
        return False
    return True


def parse_client_name(argument: bytes) -> str:
    """The argument of EHLO or HELO. Raises `GrammarError` 501 5.5.4."""
    if _CLIENT_NAME.fullmatch(argument) is None:
        raise GrammarError(501, "5.5.4", "A domain name or an address literal is required")
    return argument.decode("ascii")


def parse_parameters(rest: bytes, utf8: bool = False) -> dict[str, str | None]:
    """The ESMTP parameters behind a path (RFC 5321 4.1.2): keyword in upper case to value, None where there is no `=`. With
    `utf8` a value may have UTF-8 in it.

    Raises `GrammarError` 501 5.5.4 for bad syntax and for a keyword that comes twice. More than one space between
    parameters is let pass: it can mean only one thing.
    """
    if not rest:
        return {}
    if rest[0] != 0x20:
        raise GrammarError(501, "5.5.4", "A space is required between the address and its parameters")
    parameters: dict[str, str | None] = {}
    for text in rest.split(b" "):
        if not text:
            continue
        match = _PARAMETER.fullmatch(text) or (_UTF8_PARAMETER.fullmatch(text) if utf8 else None)
        if match is None:
            raise GrammarError(501, "5.5.4", "Bad parameter syntax")
        keyword, value = match.groups()
        name = keyword.decode("ascii").upper()
        if name in parameters:
            raise GrammarError(501, "5.5.4", f"Parameter {name[:40]} given twice")
        try:
            parameters[name] = None if value is None else value.decode("utf-8")
        except UnicodeDecodeError:
            raise GrammarError(501, "5.5.4", "Bad UTF-8 in a parameter") from None
    return parameters
