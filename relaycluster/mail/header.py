"""The header of a message as octets: its fields, apart and unchanged, and whom an address field names (RFC 5322 2.2, 3.4).

Tolerant, since mail is as it is, and linear in time, since it comes from strangers. Nothing is decoded and nothing is repaired: what
is no mailbox comes out as the text that stands there, so that whoever compares it with what is allowed finds it wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import idna
from attrs import frozen

_next_field = re.compile(rb"\r\n(?![ \t])").split
# The name ends at the colon; white space before that is obsolete, and read by everybody (RFC 5322 4.5).
_field_name = re.compile(rb"([!-9;-~]++)[ \t]*+:").match


@frozen
class HeaderField:
    """One field of a header. `name` is in lower case, empty for what is no field (no colon, or a continuation of nothing); `raw` is all
    of it as it came: name, colon, folded value, the last CRLF. `b"".join(field.raw for field in fields)` is the header again."""

    name: bytes
    raw: bytes

    @property
    def value(self) -> bytes:
        """What stands behind the colon, unfolded (RFC 5322 2.2.3) and without white space around it."""
        return self.raw.partition(b":")[2].replace(b"\r\n", b"").strip(b" \t") if self.name else b""


def split_fields(header: bytes) -> list[HeaderField]:
    """The fields of a header block (`content[:trace.header_end(content)]`), in order. A last line without CRLF gets one."""
    if not header:
        return []
    return [
        HeaderField(found.group(1).lower() if (found := _field_name(text)) else b"", text + b"\r\n")
        for text in _next_field(header.removesuffix(b"\r\n"))
    ]


# The tokens of an address list. Each alternative takes at least one character and never gives one back. What is left open at the end
# (a quoted string, a literal, a comment) goes to the end.
_token = re.compile(
    r"""(?P<space>[ \t\r\n]++)
    | (?P<comment>\()
    | (?P<word>"(?:[^"\\]|\\.)*+(?:"|\\?\Z) | \[(?:[^\]\\]|\\.)*+(?:\]|\\?\Z) | [^ \t\r\n()<>,;:@"\[]++ | \) )
    | (?P<special>[<>,;:@])""",
    re.VERBOSE | re.DOTALL,
).match
_in_comment = re.compile(r"[^()\\]*+(?:\\.[^()\\]*+)*+", re.DOTALL).match


class _Element:
    """One entry of an address list while it is read: words outside of angle brackets, and what stands in each pair of them."""

    __slots__ = ("angles", "inside", "outside", "spaced")

    def __init__(self) -> None:
        self.outside: list[str] = []
        self.angles: list[list[str]] = []
        self.inside = False
        self.spaced = False  # white space or a comment came since the last token

    def add(self, text: str) -> None:
        words = self.angles[-1] if self.inside else self.outside
        # `a . b @ c` is a mailbox of old (RFC 5322 4.4), `a b` is none, and stays two words.
        if self.spaced and words and text != "@" and text[0] != "." and words[-1] != "@" and words[-1][-1] != ".":
            words.append(" ")
        words.append(text)
        self.spaced = False

    def mailboxes(self) -> list[str]:
        found = ["".join(words) for words in self.angles]
        # Without brackets the words are the mailbox. Beside brackets they are a name, which must not hold an "@" of its own: not
        # every reader takes the same half of `boss@example.com <me@example.net>`, so both are named.
        if self.outside and (not found or "@" in self.outside):
            found.append("".join(self.outside))
        return found


def mailboxes(value: bytes) -> list[str]:
    """The addr-specs of a mailbox-list or address-list (RFC 5322 3.4), in order, without comments and display names.

    `value` is a field's value, folded or not; octets beyond ASCII are read as UTF-8, what is no UTF-8 stays as surrogates. Entries
    of groups count, a group's name does not. `<>` is an empty text.
    """
    text = value.decode("utf-8", "surrogateescape")
    found: list[str] = []
    element = _Element()
    at, end = 0, len(text)
    while at < end:
        match = _token(text, at)
        assert match is not None  # each character begins a token
        at = match.end()
        kind, token = match.lastgroup, match.group()
        if kind == "word":
            element.add(token)
        elif kind == "space":
            element.spaced = True
        elif kind == "comment":
            at = _comment_end(text, at)
            element.spaced = True
        elif token == "@":
            element.add(token)
        elif token == "<":
            element.angles.append([])
            element.inside, element.spaced = True, False
        elif token == ">":
            element.inside = False
        elif token == ":":
            if not element.inside:  # a group's name came before (3.4); one with an "@" is none
                found += element.mailboxes() if "@" in element.outside else []
                element = _Element()
            elif _is_route(element.angles[-1]):  # a source route (4.4)
                element.angles[-1].clear()
            else:
                element.add(token)
        elif element.inside and _is_route(element.angles[-1]):
            pass  # the commas of a source route
        else:  # "," or ";"
            found += element.mailboxes()
            element = _Element()
    return found + element.mailboxes()


def _is_route(words: list[str]) -> bool:
    return not words or words[0] == "@"


def _comment_end(text: str, at: int) -> int:
    """Where a comment ends that began before `at`; they nest."""
    depth = 1
    while at < len(text):
        match = _in_comment(text, at)
        assert match is not None  # it may be empty
        at = match.end()
        if text[at : at + 1] == "(":
            depth += 1
        elif text[at : at + 1] == ")":
            depth -= 1
            if not depth:
                return at + 1
        at += 1
    return len(text)


def author_domain(fields: Iterable[HeaderField]) -> str:
    """The domain of the first mailbox in the first `From:` field: lower case, IDN as A-labels; empty when there is none."""
    for field in fields:
        if field.name == b"from":
            found = mailboxes(field.value)
            return domain_of(found[0]) if found else ""
    return ""


_A_LABELS: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,253}[a-z0-9_])?").fullmatch


def domain_of(mailbox: str) -> str:
    """The domain of an addr-spec: lower case, IDN as A-labels, without a final dot; empty when there is none, or an address literal."""
    domain = mailbox.rpartition("@")[2].lower() if "@" in mailbox else ""
    if len(domain) > 255:
        return ""
    if not domain.isascii():
        try:
            domain = idna.encode(domain, uts46=True).decode("ascii")
        except idna.IDNAError:
            return ""
    domain = domain.removesuffix(".")
    return domain if _A_LABELS(domain) and ".." not in domain else ""
