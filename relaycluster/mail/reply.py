"""A reply: three digits, an enhanced status code, and lines of text (RFC 5321 4.2, RFC 2034, RFC 3463)."""

from __future__ import annotations

from attrs import field, frozen


@frozen
class Reply:
    """One SMTP reply, ours or a remote server's.

    `code` is the three-digit number, `enhanced` the enhanced status code (`"5.1.1"`; empty where there is none, as in
    the greeting and the reply to EHLO), `lines` the text lines without code, enhanced code and line end. `heard` tells that a
    remote server said it: only who reads replies from the wire sets it, so that nobody can speak in our name, nor we in theirs.
    It is no part of what was said: replies of the same words are equal.
    """

    code: int
    enhanced: str
    lines: tuple[str, ...]
    heard: bool = field(default=False, eq=False)

    @classmethod
    def of(cls, code: int, enhanced: str, text: str) -> Reply:
        """A reply of one line."""
        return cls(code, enhanced, (text,))

    @property
    def is_positive(self) -> bool:
        """Whether the command was accepted (2yz) or may go on (3yz)."""
        return 200 <= self.code < 400

    @property
    def is_transient(self) -> bool:
        """Whether the sender may try the same again later (4yz)."""
        return 400 <= self.code < 500

    @property
    def is_permanent(self) -> bool:
        """Whether the sender must not try the same again (5yz)."""
        return 500 <= self.code < 600

    def encode(self) -> bytes:
        """The reply as it goes on the wire; every line repeats the code and the enhanced code (RFC 2034 section 3)."""
        prefix = f"{self.enhanced} " if self.enhanced else ""
        last = len(self.lines) - 1
        return "".join(
            f"{self.code}{' ' if number == last else '-'}{prefix}{line}\r\n" for number, line in enumerate(self.lines)
        ).encode("utf-8")

    def __str__(self) -> str:
        """The reply in one line, for logs, notices and the operator."""
        return " ".join(part for part in (str(self.code), self.enhanced, " ".join(self.lines)) if part)
