"""What a server offers, as its reply to EHLO says (RFC 5321 4.1.1.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import field, frozen


@frozen
class Extensions:
    """The keywords of an EHLO reply in upper case, each with its parameters as text; none after HELO.

    The attributes tell of those that the client knows. `size_limit` is in octets, None where the server states no limit
    (RFC 1870: SIZE without a number, or 0).
    """

    keywords: Mapping[str, str] = field(factory=dict)
    pipelining: bool = False  # RFC 2920
    size: bool = False  # RFC 1870
    size_limit: int | None = None
    eight_bit_mime: bool = False  # RFC 6152
    starttls: bool = False  # RFC 3207
    smtputf8: bool = False  # RFC 6531
    chunking: bool = False  # RFC 3030
    dsn: bool = False  # RFC 3461
    enhanced_status_codes: bool = False  # RFC 2034


NONE = Extensions()


def parse(lines: Iterable[str]) -> Extensions:
    """The extensions that the lines of a reply to EHLO name; the first line is the server's greeting. A keyword that is
    said twice counts as said last. Whatever is not understood is kept among the keywords and does nothing."""
    keywords: dict[str, str] = {}
    for line in list(lines)[1:]:
        keyword, _, parameters = line.strip().partition(" ")
        if keyword:
            keywords[keyword.upper()] = parameters.strip()
    limit = keywords.get("SIZE", "")
    # RFC 1870 section 4: at most 20 digits.
    number = int(limit) if limit.isascii() and limit.isdigit() and len(limit) <= 20 else 0
    return Extensions(
        keywords,
        pipelining="PIPELINING" in keywords,
        size="SIZE" in keywords,
        size_limit=number or None,
        eight_bit_mime="8BITMIME" in keywords,
        starttls="STARTTLS" in keywords,
        smtputf8="SMTPUTF8" in keywords,
        chunking="CHUNKING" in keywords,
        dsn="DSN" in keywords,
        enhanced_status_codes="ENHANCEDSTATUSCODES" in keywords,
    )
