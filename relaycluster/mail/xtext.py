"""The two ways in which the parameters of DSN hide characters: xtext (RFC 3461 4) and the `\\x{...}` of utf-8 addresses (RFC 6533 3)."""

from __future__ import annotations

import re
from typing import Final

_hidden_octets = re.compile(r"(?:\+[0-9A-F]{2})+").sub
_hidden_character = re.compile(r"\\x\{([0-9A-F]{2,6})\}").sub
_UTF8: Final = "utf-8"


def decoded(xtext: str) -> str:
    """What an xtext stands for, the ENVID parameter for one. What is no xtext stays as it is."""
    if "+" not in xtext:
        return xtext
    return _hidden_octets(
        lambda found: bytes.fromhex(found.group().replace("+", "")).decode("utf-8", "replace"),
        xtext,
    )


def encoded(text: str) -> str:
    """ASCII as xtext: printable characters as they are, except for `+`, `=` and the space."""
    return "".join(c if "!" <= c <= "~" and c not in "+=" else f"+{ord(c):02X}" for c in text)


def orcpt_of(address: str) -> str:
    """The ORCPT parameter for a recipient, fit for any host; RFC 6533 3 has a type of its own for what is not ASCII."""
    return f"rfc822;{encoded(address)}" if address.isascii() else f"{_UTF8};{in_ascii(address)}"


def original_recipient(orcpt: str) -> str:
    """What an ORCPT parameter stands for, `type;address`, the address as its people write it."""
    kind, semicolon, address = orcpt.partition(";")
    address = decoded(address)
    if kind.lower() == _UTF8:
        address = _hidden_character(lambda found: _character(int(found.group(1), 16)), address)
    return f"{kind}{semicolon}{address}"


def in_ascii(address: str) -> str:
    """An address of the type utf-8 in printable ASCII (RFC 6533 3, utf-8-addr-xtext): fit for ORCPT to any host, and for a 7-bit notice."""
    return "".join(
        character if "!" <= character <= "~" and character not in "+=\\" else f"\\x{{{ord(character):02X}}}"
        for character in address
    )


def orcpt_in_ascii(orcpt: str) -> str:
    """An ORCPT parameter as hosts without SMTPUTF8 may get it, too; the same parameter where it is ASCII already."""
    if orcpt.isascii():
        return orcpt
    kind, semicolon, address = original_recipient(orcpt).partition(";")
    return f"{kind}{semicolon}{in_ascii(address)}"


def _character(point: int) -> str:
    return chr(point) if point < 0xD800 or 0xDFFF < point < 0x110000 else "\ufffd"
