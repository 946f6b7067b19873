"""The header of a message as octets: its fields, apart and unchanged, and whom an address field names (RFC 5322 2.2, 3.4).

Tolerant, since mail is as it is, and linear in time, since it comes from strangers. Nothing is decoded and nothing is repaired: what
is no mailbox comes out as the text that stands there, so that whoever compares it with what is allowed finds it wrong.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
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
_in_comment = re.compile(r"\\.|[()]", re.DOTALL).finditer


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
    return list(_mailboxes(value.decode("utf-8", "surrogateescape"), sys.maxsize))


def _mailboxes(text: str, most_tokens: int) -> Iterator[str]:
    """One after the other; the rest of them stay out when so many tokens were not enough."""
    element = _Element()
    at, end, left = 0, len(text), most_tokens
    while at < end:
        left -= 1
        if left < 0:
            return
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
                if "@" in element.outside:
                    yield from element.mailboxes()
                element = _Element()
            elif _is_route(element.angles[-1]):  # a source route (4.4)
                element.angles[-1].clear()
            else:
                element.add(token)
        elif element.inside and _is_route(element.angles[-1]):
            pass  # the commas of a source route
        else:  # "," or ";"
            yield from element.mailboxes()
            element = _Element()
    yield from element.mailboxes()


def _is_route(words: list[str]) -> bool:
    return not words or words[0] == "@"


def _comment_end(text: str, at: int) -> int:
    """Where a comment ends that began before `at`; they nest. One that stays open ends behind the text's end."""
    depth = 1
    for match in _in_comment(text, at):
        found = match.group()
        if found == "(":
            depth += 1
        elif found == ")":
            depth -= 1
            if not depth:
                return match.end()
    return len(text) + 1


# An addr-spec that is certain is one token: without white space and comments, and without what a reader who knows less of quoting could
# take for structure.
_ATOM: Final = r"""[^ \t"(),:;<>@\[\\\]\ud800-\udfff]++"""
_ADDRESS: Final = rf"""(?:{_ATOM}|"[^"(),:;<>@\[\\\]\ud800-\udfff]++")@{_ATOM}"""
_certain_token = re.compile(
    rf"""(?P<space>(?:[ \t]++ | \((?:[^()\\]|\\.)*+\))++)
    | (?P<comment>\()
    | <[ \t]*+(?P<angle>{_ADDRESS})[ \t]*+>
    | (?P<words>(?:(?:[^ \t"(),:;<>@\[\\\]]++ | "(?:[^"\\]|\\.)*+")(?!@)[ \t]*+)++)
    | (?P<bare>{_ADDRESS})
    | (?P<special>[,:;])""",
    re.VERBOSE,
).match
# Besides folding, which is taken out: what some reader takes for the end of a line, or of the text.
_control = re.compile("[\0-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]").search


def certain_mailboxes(value: bytes, most: int = sys.maxsize) -> list[str] | None:
    """The addr-specs that an unfolded address field names, for who must know that no reader finds others; None when that is not
    certain.

    Strict where `mailboxes` is tolerant: RFC 5322 3.4 without what is obsolete (4.4) and without address literals. Display names and
    comments may hold anything that is closed; an unquoted address before another one's angle brackets counts, too. When more than `most`
    are found, the rest is not looked at.
    """
    text = value.decode("utf-8", "surrogateescape")
    if _control(text):
        return None
    found: list[str] = []
    in_group = group_ended = False
    words, bare, angle = False, 0, False  # of the entry that is being read
    at, end = 0, len(text)
    while at < end:
        match = _certain_token(text, at)
        if match is None:
            return None
        at, kind, token = match.end(), match.lastgroup, match.group()
        if kind == "comment":
            at = _comment_end(text, at)
            if at > end:
                return None
        elif kind == "special":
            if token == ":":
                if in_group or group_ended or angle or bare or not words:
                    return None
                in_group, words = True, False
                continue
            if not (angle or (not words and bare <= 1)) or (token == ";" and not in_group):
                return None
            if token == ";":
                in_group, group_ended = False, True
            else:
                group_ended = False
            words, bare, angle = False, 0, False
        elif kind != "space":
            if angle or group_ended:
                return None
            if kind == "words":
                words = True
                continue
            address = match.group("angle") or token
            if "=?" in address:  # some readers decode it (RFC 2047 5 forbids that) and find another one
                return None
            found.append(address)
            if len(found) > most:
                return found
            angle = kind == "angle"
            bare += not angle
    return found if not in_group and (angle or (not words and bare <= 1)) else None


_MOST_TOKENS: Final = 1000


def author_domain(fields: Iterable[HeaderField]) -> str:
    """The domain of the first mailbox in the first `From:` field: lower case, IDN as A-labels; empty when there is none, or only behind
    so much that no person wrote it."""
    for field in fields:
        if field.name == b"from":
            return domain_of(next(_mailboxes(field.value.decode("utf-8", "surrogateescape"), _MOST_TOKENS), ""))
    return ""


_A_LABELS: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,253}[a-z0-9_])?").fullmatch


def domain_of(mailbox: str) -> str:
    """The domain of an addr-spec: lower case, IDN as A-labels, without a final dot; empty when there is none, or an address literal."""
    domain = mailbox.rpartition("@")[2].lower() if "@" in mailbox else ""
    if len(domain) > 255:
        return ""
    if not domain.isascii():
        domain = _a_labels(domain)
    domain = domain.removesuffix(".")
    return domain if _A_LABELS(domain) and ".." not in domain else ""


@lru_cache(maxsize=1024)
def _a_labels(domain: str) -> str:
    try:
        return idna.encode(domain, uts46=True).decode("ascii")
    except idna.IDNAError:
        return ""
