"""Regular expressions whose time is linear in the text: what a remote server writes may never cost more than reading it.

Python's `re` backtracks: a harmless pattern like `.*too.*many` can take time that grows with the cube of a text that somebody
chose well, and the text is a stranger's. Here a pattern becomes an automaton (Glushkov's: each character of the pattern is a
position, and a set of positions a state), whose states are made as texts need them, and kept up to a limit. The only question is
whether the pattern occurs, so nothing more is needed; groups capture nothing, and there is neither look-around nor back-reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from attrs import field, frozen

MOST_OCTETS = 2048
"""So much of a text is looked at."""
MOST_POSITIONS = 128
"""How long a pattern may be, with its repetitions written out."""
MOST_STATES = 64
"""How many states of a pattern are kept."""
MOST_DEPTH = 20
"""How deep groups may be nested."""

_START, _END = 0x02, 0x03  # what `^` and `$` match: they frame the text, and no character within it is one of them
_DIGITS = sum(1 << octet for octet in b"0123456789")
_WORD = _DIGITS | sum(1 << octet for octet in b"abcdefghijklmnopqrstuvwxyz_")
_SPACE = 1 << 0x20
_ANY = sum(1 << octet for octet in range(0x20, 0x7F))
_SETS = {"d": _DIGITS, "w": _WORD, "s": _SPACE, "D": _ANY & ~_DIGITS, "W": _ANY & ~_WORD, "S": _ANY & ~_SPACE}
_SPECIAL = frozenset("\\^$.|?*+()[]{}")
_PLAIN = bytes(octet if 0x20 <= octet < 0x7F else 0x20 for octet in range(256))


def prepare(text: str) -> bytes:
    """A text as patterns see it: its first octets, in lower case, a space for each control character, `?` for each character
    that is not ASCII."""
    return b"\x02%b\x03" % text[:MOST_OCTETS].encode("ascii", "replace").lower().translate(_PLAIN)


# What a pattern says.


@frozen
class _One:
    """One character of a set, as a mask of octets."""

    octets: int


@frozen
class _Sequence:
    parts: tuple[_Node, ...]


@frozen
class _Either:
    options: tuple[_Node, ...]


@frozen
class _Repeat:
    part: _Node
    least: int
    most: int | None


_Node = _One | _Sequence | _Either | _Repeat


@frozen
class TextPattern:
    """A regular expression: characters, `.`, `[…]`, `\\d \\w \\s` and their opposites, `( )`, `|`, `^`, `$`, and the repetitions
    `? * + {m} {m,} {m,n}`. Case does not matter. Equal when the text is.

    Making one raises ValueError: "what is wrong; the fix".
    """

    text: str
    _required: bytes = field(init=False, eq=False, repr=False)
    _automaton: _Automaton = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        node = _Parser(self.text).parse()
        object.__setattr__(self, "_required", _longest_literal(node))
        object.__setattr__(self, "_automaton", _Automaton(node))

    def occurs_in(self, prepared: bytes) -> bool:
        """Whether the pattern occurs in a text that `prepare` made ready."""
        return self._required in prepared and self._automaton.accepts(prepared)


class _Parser:
    """Reads a pattern, by recursive descent."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def parse(self) -> _Node:
        if not self._text.isascii() or not self._text.isprintable():
            raise ValueError('holds a character that is not printable ASCII; write "." for it')
        node = self._either()
        if self._at < len(self._text):
            raise self._fault("')' closes nothing", "write \\) for the character")
        return node

    def _fault(self, what: str, fix: str) -> ValueError:
        return ValueError(f"{self._text[:80]!r} is not a pattern: {what} (at character {self._at + 1}); {fix}")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        self._at += 1
        return self._text[self._at - 1 : self._at]

    def _either(self) -> _Node:
        options = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            options.append(self._sequence())
        return options[0] if len(options) == 1 else _Either(tuple(options))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated())
        return parts[0] if len(parts) == 1 else _Sequence(tuple(parts))

    def _repeated(self) -> _Node:
        node = self._atom()
        if self._peek() not in ("?", "*", "+", "{"):
            return node
        if node in (_One(1 << _START), _One(1 << _END)):
            raise self._fault("an anchor can not be repeated", "leave the repetition out")
        match self._next():
            case "?":
                node = _Repeat(node, 0, 1)
            case "*":
                node = _Repeat(node, 0, None)
            case "+":
                node = _Repeat(node, 1, None)
            case _:
                node = _Repeat(node, *self._bounds())
        if self._peek() in ("?", "*", "+", "{"):
            raise self._fault("a repetition is repeated, or lazy or possessive", "leave the second sign out")
        return node

    def _bounds(self) -> tuple[int, int | None]:
        inner, brace, _ = self._text[self._at :].partition("}")
        least, comma, most = inner.partition(",")
        numbers = (least, most) if comma and most else (least,)
        if not brace or not all(number.isdigit() and len(number) <= 3 for number in numbers):
            raise self._fault("'{' begins a repetition like {2}, {2,} or {2,5}", "write \\{ for the character")
        low, high = int(least), int(most or least) if most or not comma else None
        if high is not None and not low <= high:
            raise self._fault("a repetition of more than its most", "write the smaller number first")
        self._at += len(inner) + 1
        return low, high

    def _atom(self) -> _Node:
        match character := self._next():
            case "(":
                return self._group()
            case "[":
                return _One(self._set())
            case ".":
                return _One(_ANY)
            case "^":
                return _One(1 << _START)
            case "$":
                return _One(1 << _END)
            case "\\":
                return _One(self._escaped())
            case "?" | "*" | "+" | "{":
                raise self._fault(f"{character!r} repeats nothing", f"write \\{character} for the character")
            case _:
                return _One(1 << ord(character.lower()))

    def _group(self) -> _Node:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise self._fault("groups within groups", f"use at most {MOST_DEPTH}")
        if self._peek() == "?":
            if self._text[self._at : self._at + 2] != "?:":
                raise self._fault("look-around, named groups and flags are not known", "write ( ) or (?: )")
            self._at += 2
        node = self._either()
        if self._next() != ")":
            raise self._fault("a group is not closed", "add )")
        self._depth -= 1
        return node

    def _escaped(self) -> int:
        character = self._next()
        if character in _SETS:
            return _SETS[character]
        if not character or character.isalnum():
            raise self._fault(f"\\{character} is not known", "there are \\d \\w \\s \\D \\W \\S, and \\ before a sign")
        return 1 << ord(character)

    def _set(self) -> int:
        negated = self._peek() == "^"
        self._at += negated
        octets = 0
        first = True
        while first or self._peek() != "]":
            first = False
            low = self._in_set()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("", "]"):
                self._at += 1
                high = self._in_set()
                if low.bit_count() != 1 or high.bit_count() != 1 or low > high:
                    raise self._fault("a range from a character to one that is before it", "write it like [a-z]")
                low = (high << 1) - low
            octets |= low
        self._at += 1
        octets = _lowered(octets)
        return _ANY & ~octets if negated else octets

    def _in_set(self) -> int:
        character = self._next()
        if not character:
            raise self._fault("a set is not closed", "add ], or write \\[ for the character")
        if character == "[" and self._peek() in (":", "=", "."):
            raise self._fault("there are no named sets", "write it like [a-z0-9]")
        return self._escaped() if character == "\\" else 1 << ord(character)


def _lowered(octets: int) -> int:
    """A set with the small letters of its capitals: texts have no capitals."""
    capitals = (octets >> 0x41) & ((1 << 26) - 1)
    return octets | capitals << 0x61


def _longest_literal(node: _Node) -> bytes:
    """The longest run of single characters that every match has: a quick look for it spares most texts the automaton."""
    longest = run = b""
    for part in node.parts if isinstance(node, _Sequence) else (node,):
        single = isinstance(part, _One) and part.octets.bit_count() == 1
        run = run + bytes([part.octets.bit_length() - 1]) if single and isinstance(part, _One) else b""
        longest = max(longest, run, key=len)
    return longest


# How it is matched.


class _State(dict[int, "_State"]):
    """A state and the next one for each octet, made when it is first needed."""

    __slots__ = ("accepting", "automaton", "positions")

    def __init__(self, automaton: _Automaton, positions: int, accepting: bool) -> None:
        super().__init__()
        self.automaton = automaton
        self.positions = positions  # those that may be matched next
        self.accepting = accepting

    def __missing__(self, octet: int) -> _State:
        state = self[octet] = self.automaton.after(self.positions, octet)
        return state


class _Automaton:
    """The positions of a pattern, which follow which, and the states that texts have led to."""

    def __init__(self, node: _Node) -> None:
        self._octets: list[int] = []
        self._follow: list[int] = []
        nullable, self._first, self._last = self._build(node)
        if nullable:
            raise ValueError("matches every text; write what must occur in it")
        self._by_octet = [
            sum(1 << at for at, octets in enumerate(self._octets) if octets >> octet & 1) for octet in range(128)
        ]
        self._states: dict[int, _State] = {}
        self._start = _State(self, self._first, False)

    def accepts(self, prepared: bytes) -> bool:
        """Whether the pattern occurs anywhere in it."""
        state = self._start
        for octet in prepared:
            state = state[octet]
            if state.accepting:
                return True
        return False

    def after(self, positions: int, octet: int) -> _State:
        """The state that an octet leads to, from one in which `positions` may be matched."""
        matched = positions & self._by_octet[octet]
        state = self._states.get(matched)
        if state is None:
            if len(self._states) >= MOST_STATES:
                self._states.clear()  # with all that lead to them: the text makes those again that it needs
                self._start.clear()
            following = self._first
            for position in _members(matched):
                following |= self._follow[position]
            state = self._states[matched] = _State(self, following, bool(matched & self._last))
        return state

    def _build(self, node: _Node) -> tuple[bool, int, int]:
        """Adds a node's positions: whether it matches nothing at all, and its first and last positions."""
        match node:
            case _One(octets):
                if len(self._octets) >= MOST_POSITIONS:
                    text = f"has more than {MOST_POSITIONS} characters, its repetitions written out"
                    raise ValueError(f'{text}; shorten it, or write ".*" for a gap')
                self._octets.append(octets)
                self._follow.append(0)
                position = 1 << (len(self._octets) - 1)
                return False, position, position
            case _Sequence(parts):
                return self._chain(parts)
            case _Either(options):
                built = [self._build(option) for option in options]
                first = last = 0
                for _, begins, ends in built:
                    first, last = first | begins, last | ends
                return any(nullable for nullable, _, _ in built), first, last
            case _Repeat(part, least, None):
                *once, (nullable, first, last) = [self._build(part) for _ in range(max(least, 1))]
                self._join(last, first)
                return self._chained([*once, (nullable or not least, first, last)])
            case _Repeat(part, least, most):
                assert most is not None
                built = [self._build(part) for _ in range(most)]
                return self._chained(
                    [(nullable or at >= least, first, last) for at, (nullable, first, last) in enumerate(built)]
                )
            case _:
                assert_never(node)

    def _chain(self, parts: Sequence[_Node]) -> tuple[bool, int, int]:
        return self._chained([self._build(part) for part in parts])

    def _chained(self, parts: Sequence[tuple[bool, int, int]]) -> tuple[bool, int, int]:
        """One after another."""
        nullable, first, last = True, 0, 0
        for empty, begins, ends in parts:
            self._join(last, begins)
            first |= begins if nullable else 0
            last = ends | (last if empty else 0)
            nullable = nullable and empty
        return nullable, first, last

    def _join(self, before: int, after: int) -> None:
        for position in _members(before):
            self._follow[position] |= after


def _members(positions: int) -> list[int]:
    found: list[int] = []
    while positions:
        lowest = positions & -positions
        found.append(lowest.bit_length() - 1)
        positions ^= lowest
    return found
