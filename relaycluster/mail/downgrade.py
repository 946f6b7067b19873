"""8-bit content for a next hop that takes only 7 bits: the same message in another transfer encoding, or None (RFC 6152 3).

Only body parts that hold 8-bit octets are encoded anew, and only the fields that name their encoding change. Everything else stays as
it is, octet by octet: nothing is parsed into objects and written out again. What cannot be converted without loss, or without
breaking a signature over it, is not converted: the caller bounces with 5.6.3.
"""

from __future__ import annotations

import re
from binascii import b2a_base64, b2a_qp
from email.parser import HeaderParser
from typing import Final

from attrs import frozen

from relaycluster.mail.trace import header_end

_DEEPEST: Final = 30  # multiparts within multiparts; each level costs one more pass over its octets
_HIGH: Final = bytes(range(128, 256))

_field = re.compile(rb"([!-9;-~]+)[ \t]*:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*").match
_headers = HeaderParser()

# RFC 1428: whoever sent 8-bit text without naming its character set meant one that we do not know.
_UNKNOWN_TEXT: Final = b"Content-Type: text/plain; charset=unknown-8bit\r\n"


# These alone among message/* may be encoded (RFC 6532 3.7, RFC 6533 6).
_GLOBAL: Final = frozenset(
    f"message/global{kind}" for kind in ("", "-headers", "-delivery-status", "-disposition-notification")
)


class _CannotConvertError(Exception):
    """No way to say the same in 7 bits."""


@frozen
class _Edit:
    """`content[start:end]` becomes `text`."""

    start: int
    end: int
    text: bytes


def is_eight_bit(content: bytes) -> bool:
    """Whether any octet has its high bit set: then the next hop must offer 8BITMIME or the content be converted."""
    return not content.isascii()


def downgrade(content: bytes) -> bytes | None:
    """The message with all octets below 128, or None when that cannot be had: 8-bit octets in a header field, in a signed
    multipart, in a part that claims to be encoded already, or in a structure that cannot be followed.

    `content` has CRLF line ends. Costs about 10 ms for each MiB that must be encoded: call it off the reactor's thread
    for large contents.
    """
    if content.isascii():
        return content
    edits: list[_Edit] = []
    try:
        _entity(content, 0, len(content), edits, (), message=True, default_type="text/plain")
    except _CannotConvertError:
        return None
    edits.sort(key=lambda edit: edit.start)
    pieces: list[bytes] = []
    at = 0
    for edit in edits:
        pieces.append(content[at : edit.start])
        pieces.append(edit.text)
        at = edit.end
    pieces.append(content[at:])
    converted = b"".join(pieces)
    return converted if converted.isascii() else None


def quoted_printable(data: bytes) -> bytes:
    """RFC 2045 6.7. CRLF stays a line end; a CR or LF alone is data; lines of at most 76 characters, none that ends in white space or is
    a lone dot."""
    return b"\r\n".join(
        b2a_qp(line, quotetabs=False, istext=False, header=False).replace(b"=\n", b"=\r\n")
        for line in data.split(b"\r\n")
    )


def base64_lines(data: bytes) -> bytes:
    """RFC 2045 6.8, in lines of 76 characters, each with its CRLF."""
    return b"".join(b2a_base64(data[at : at + 57], newline=False) + b"\r\n" for at in range(0, len(data), 57))


def _entity(
    content: bytes,
    start: int,
    end: int,
    edits: list[_Edit],
    around: tuple[bytes, ...],
    *,
    message: bool,
    default_type: str,
) -> None:
    """Convert one entity, `content[start:end]`: a message or a body part, with its header. It holds 8-bit octets. `around` are
    the boundaries of what it lies in, an empty one for a message."""
    if len(around) > _DEEPEST:
        raise _CannotConvertError
    entity = content[start:end]
    split = header_end(entity)
    header, body_start = entity[:split], min(start + split + 2, end)
    fields = _fields(header, start)
    type_field = fields.get(b"content-type")
    media, boundary = (default_type, "") if type_field is None else _media_type(content[slice(*type_field)])
    encoding_field = fields.get(b"content-transfer-encoding")
    encoding = _encoding(content, encoding_field)
    body = content[body_start:end]
    if encoding not in (b"", b"7bit", b"8bit", b"binary"):
        raise _CannotConvertError  # 8-bit octets in something that claims to be encoded: nobody knows what it means
    added = b""
    if message and b"mime-version" not in fields:
        added = b"MIME-Version: 1.0\r\n"
    if media.startswith("multipart/"):
        if media == "multipart/signed" or not boundary:
            raise _CannotConvertError
        inner_default = "message/rfc822" if media == "multipart/digest" else "text/plain"
        for part_start, part_end in _parts(body, boundary, body_start):
            if not content[part_start:part_end].isascii():
                inside = (*around, boundary.encode("ascii"))
                _entity(content, part_start, part_end, edits, inside, message=False, default_type=inner_default)
        new_encoding = b"7bit"
    elif media == "message/rfc822":
        _entity(content, body_start, end, edits, (*around, b""), message=True, default_type="text/plain")
        new_encoding = b"7bit"
    elif media.startswith("message/") and media not in _GLOBAL:
        raise _CannotConvertError  # RFC 2045 6.4: these may not be encoded, and we do not know their inside
    else:
        new_encoding, text = _encode(body, media, around)
        edits.append(_Edit(body_start, end, text))
        if type_field is None:
            added += _UNKNOWN_TEXT
    if encoding_field is not None:
        edits.append(_Edit(*encoding_field, b"Content-Transfer-Encoding: " + new_encoding + b"\r\n"))
    elif new_encoding != b"7bit":
        added += b"Content-Transfer-Encoding: " + new_encoding + b"\r\n"
    if added:
        at = start + split
        edits.append(_Edit(at, at, added))


def _encode(body: bytes, media: str, around: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    """The encoding's name and the encoded body: text stays readable while that is the shorter form."""
    if media.startswith("text/") or media in _GLOBAL:
        high = len(body) - len(body.translate(None, _HIGH))
        if high * 4 <= len(body):
            text = quoted_printable(body)
            # A soft line break may have put what looks like a delimiter at the start of a line. Base64 has no hyphen.
            lines = b"\r\n" + text
            if not any(boundary and b"\r\n--" + boundary in lines for boundary in around):
                return b"quoted-printable", text
    return b"base64", base64_lines(body)


def _fields(header: bytes, start: int) -> dict[bytes, tuple[int, int]]:
    """Where in the content the MIME fields of a header block lie, by lower-case name, for a block that begins at `start`."""
    if not header.isascii():
        raise _CannotConvertError
    found: dict[bytes, tuple[int, int]] = {}
    at = 0
    while at < len(header):
        match = _field(header, at)
        if match is None:
            raise _CannotConvertError  # not a header: whatever this is, we cannot say where its parts begin
        name = match.group(1).lower()
        if name in (b"content-type", b"content-transfer-encoding"):
            if name in found:
                raise _CannotConvertError  # two answers to one question
            found[name] = (start + at, start + match.end())
        elif name == b"mime-version":
            found[name] = (start + at, start + match.end())
        at = match.end()
    return found


def _media_type(field: bytes) -> tuple[str, str]:
    """The media type, in lower case, and the boundary parameter of a Content-Type field."""
    kind = _headers.parsestr(field.decode("ascii"))
    try:
        return kind.get_content_type(), kind.get_boundary("")
    except (LookupError, TypeError, ValueError):
        # The standard library fails on parameters that are continued in two ways at once (RFC 2231 3).
        raise _CannotConvertError from None


def _encoding(content: bytes, place: tuple[int, int] | None) -> bytes:
    """The Content-Transfer-Encoding in lower case, without comments; empty when there is none."""
    if place is None:
        return b""
    value = content[place[0] : place[1]].partition(b":")[2].partition(b"(")[0]
    return value.strip().strip(b'"').lower()


def _parts(body: bytes, boundary: str, offset: int) -> list[tuple[int, int]]:
    """The body parts of a multipart (RFC 2046 5.1.1), as places in the content; `offset` is the body's.

    The preamble and the epilogue cannot be encoded: 8-bit octets there are a reason to give up.
    """
    try:
        line = re.escape(boundary.encode("ascii"))
    except UnicodeEncodeError:
        raise _CannotConvertError from None
    delimiters = re.compile(rb"(?:\A|\r\n)--" + line + rb"(--)?[ \t]*(?=\r\n|\Z)").finditer(body)
    parts: list[tuple[int, int]] = []
    opened = -1
    last = 0
    for match in delimiters:
        if opened < 0:
            if not body[: match.start()].isascii():
                raise _CannotConvertError
        elif opened < match.start():
            parts.append((offset + opened, offset + match.start()))
        last = match.end()
        opened = last + 2
        if match.group(1):
            if not body[last:].isascii():
                raise _CannotConvertError
            return parts
    if opened < 0:
        raise _CannotConvertError  # the boundary never comes: no multipart
    if opened < len(body):
        parts.append((offset + opened, offset + len(body)))  # not closed: the last part runs to the end
    return parts
