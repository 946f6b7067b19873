"""Regular expressions whose time is linear in the text: what a remote server writes may never cost more than reading it.

Python's `re` backtracks: a harmless pattern like `.*too.*many` can take time that grows with the cube of a text that somebody
chose well, and the text is a stranger's. RE2 does not, and keeps what it needs for a pattern within `MOST_MEMORY`.
"""

from __future__ import annotations

from typing import Any

import re2
from attrs import field, frozen

MOST_OCTETS = 2048
"""So much of a text is looked at."""
MOST_LENGTH = 1000
"""How long a pattern may be."""
MOST_MEMORY = 256 * 1024
"""Octets for a pattern and the states that texts lead it to."""

_PLAIN = bytes(octet if 0x20 <= octet < 0x7F else 0x20 for octet in range(256))


def prepare(text: str) -> bytes:
    """A text as patterns see it: its first octets, a space for each control character, `?` for each character that is not ASCII."""
    return text[:MOST_OCTETS].encode("ascii", "replace").translate(_PLAIN)


def _options() -> Any:
    options = re2.Options()
    options.case_sensitive = False
    options.never_capture = True
    options.log_errors = False
    options.max_mem = MOST_MEMORY
    options.encoding = re2.Options.Encoding.LATIN1
    return options


_OPTIONS = _options()


@frozen
class TextPattern:
    """A regular expression in RE2's syntax: as Python's, without look-around and back-references. Case does not matter. Equal
    when the text is.

    Making one raises ValueError: "what is wrong; the fix".
    """

    text: str
    _compiled: Any = field(init=False, eq=False, repr=False)

    @_compiled.default
    def _compile(self) -> Any:
        shown = repr(self.text[:80])
        if not self.text.isascii() or not self.text.isprintable():
            raise ValueError(f'{shown} holds a character that is not printable ASCII; write "." for it')
        if len(self.text) > MOST_LENGTH:
            raise ValueError(f'{shown} has more than {MOST_LENGTH} characters; shorten it, or write ".*" for a gap')
        try:
            compiled = re2.compile(self.text.encode("ascii"), options=_OPTIONS)
        except re2.error as error:
            # RE2 says it as octets: b'missing ): (a'.
            said = error.args[0].decode("ascii", "replace") if isinstance(error.args[0], bytes) else str(error)
            raise ValueError(
                f"{shown} is not a pattern: {said[:200]}; write \\ before a sign that stands for itself"
            ) from None
        if compiled.search(b"") is not None:
            raise ValueError(f"{shown} matches every text; write what must occur in it")
        return compiled

    def occurs_in(self, prepared: bytes) -> bool:
        """Whether the pattern occurs in a text that `prepare` made ready."""
        return self._compiled.search(prepared) is not None
