"""The dialog of AUTH, for the mechanisms PLAIN and LOGIN (RFC 4954; RFC 4616): from base64 lines to what a driver can check.

The password is in the `AuthAsked` that comes out, and nowhere else.
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from typing import Final

from relaycluster.smtp.grammar import GrammarError
from relaycluster.smtp.server_events import AuthAsked

MECHANISMS: Final = ("PLAIN", "LOGIN")
RESPONSE_OCTETS: Final = 12288  # RFC 4954 section 4: the longest line of the dialog, with CRLF

_NAME_OCTETS = 255  # RFC 4616 section 2
_ARGUMENT = re.compile(rb"([A-Za-z0-9_-]{1,20})(?: ([!-~]+))?")  # RFC 4422 3.1; RFC 4954 section 8
_LOGIN_USER = b2a_base64(b"Username:", newline=False)
_LOGIN_PASSWORD = b2a_base64(b"Password:", newline=False)


def parse_auth(argument: bytes) -> tuple[str, bytes | None]:
    """AUTH's argument: the mechanism, and the initial response in base64, None when there is none. Raises `GrammarError`."""
    match = _ARGUMENT.fullmatch(argument)
    if match is None:
        raise GrammarError(501, "5.5.4", "Syntax: AUTH mechanism [initial-response]")
    mechanism = match[1].decode("ascii").upper()
    if mechanism not in MECHANISMS:
        raise GrammarError(504, "5.5.4", "Unrecognized authentication mechanism")
    return mechanism, b"" if match[2] == b"=" else match[2]  # RFC 4954 section 4: an equals sign is the empty response


class AuthDialog:
    """One exchange: `challenge` is to be sent, `respond` takes the answer to it, until that is an `AuthAsked`."""

    __slots__ = ("_mechanism", "_user", "challenge")

    def __init__(self, mechanism: str) -> None:
        """`mechanism` is one of `MECHANISMS`."""
        self._mechanism = mechanism
        self._user: str | None = None
        self.challenge = _LOGIN_USER if mechanism == "LOGIN" else b""
        """What goes behind 334, in base64."""

    def respond(self, line: bytes) -> AuthAsked | None:
        """The client's answer: the credentials, or None when there is a further `challenge`.

        Raises `GrammarError`, 501 5.5.2, for bad base64 and for what the mechanism does not allow: the dialog is over."""
        response = _decoded(line)
        if self._mechanism == "PLAIN":
            parts = response.split(b"\0")
            if len(parts) != 3:
                raise _malformed()
            authorization, user, password = parts
            return AuthAsked("PLAIN", _name(user), _password(password), _name(authorization) if authorization else "")
        if self._user is None:
            self._user = _name(response)
            self.challenge = _LOGIN_PASSWORD
            return None
        return AuthAsked("LOGIN", self._user, _password(response))


def _decoded(line: bytes) -> bytes:
    try:
        octets = a2b_base64(line)
    except Base64Error:
        octets = b""
    # Compared, since the decoder's strict mode still takes `AAAA=` (RFC 4648 3.3: whatever is not base64 is to be refused).
    if b2a_base64(octets, newline=False) != line:
        raise GrammarError(501, "5.5.2", "Bad base64 in the response")
    return octets


def _name(octets: bytes) -> str:
    """A name that is fit for a log and a key."""
    try:
        name = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed() from None
    if not name or len(octets) > _NAME_OCTETS or not name.isprintable():
        raise _malformed()
    return name


def _password(octets: bytes) -> bytes:
    if not octets or b"\0" in octets:
        raise _malformed()
    return octets


def _malformed() -> GrammarError:
    return GrammarError(501, "5.5.2", "Malformed credentials")
