"""The encodings in the parameters of DSN."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail.xtext import decoded, in_ascii, orcpt_in_ascii, original_recipient

words = st.text(st.characters(codec="utf-8"), max_size=60)


@pytest.mark.parametrize(
    ("xtext", "plain"),
    [
        ("QQ314159", "QQ314159"),
        ("a+2Bb+3Dc", "a+b=c"),
        ("m+C3+BCller", "m\u00fcller"),
        ("+FF+0D+0A", "\ufffd\r\n"),  # whoever shows it cleans it
        ("+", "+"),
        ("+2b+2", "+2b+2"),  # hex digits are in upper case (RFC 3461 4)
    ],
)
def test_xtext(xtext: str, plain: str) -> None:
    """RFC 3461 4: +HH stands for an octet, everything else for itself."""
    assert decoded(xtext) == plain


@pytest.mark.parametrize(
    ("orcpt", "shown"),
    [
        ("rfc822;bob+2Btag@example.org", "rfc822;bob+tag@example.org"),
        ("utf-8;m\\x{FC}l\\x{2B}ler@example.com", "utf-8;m\u00fcl+ler@example.com"),
        ("UTF-8;m\u00fcller@example.com", "UTF-8;m\u00fcller@example.com"),
        ("rfc822;m\\x{FC}ller@example.com", "rfc822;m\\x{FC}ller@example.com"),
        ("utf-8;\\x{D800}\\x{FFFFFF}@example.com", "utf-8;\ufffd\ufffd@example.com"),
        ("none", "none"),
    ],
)
def test_original_recipient(orcpt: str, shown: str) -> None:
    """The address as people write it, by the type that stands before it."""
    assert original_recipient(orcpt) == shown


@given(words)
def test_utf8_addresses_in_ascii(address: str) -> None:
    """RFC 6533 3: only printable ASCII without blank, plus, equals sign and backslash other than its own; it decodes to the same."""
    text = in_ascii(address)
    assert re.fullmatch(r"(?:[!-*,-<>-\[\]-~]|\\x\{[0-9A-F]{2,6}\})*", text)
    assert original_recipient(f"utf-8;{text}") == f"utf-8;{address}"


@given(words)
def test_orcpt_in_ascii(address: str) -> None:
    """What is ASCII stays octet by octet; what is not means the same."""
    orcpt = f"utf-8;{address}"
    text = orcpt_in_ascii(orcpt)
    assert text.isascii()
    assert text == orcpt if orcpt.isascii() else original_recipient(text) == original_recipient(orcpt)
