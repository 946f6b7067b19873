"""What a DKIM signature covers and how its field looks, beside dkimpy's own view of the same octets."""

from __future__ import annotations

from base64 import b64decode
from hashlib import sha256

import pytest
from dkim.canonicalization import Simple
from dkim.util import parse_tag_value
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail.dkim import (
    OVERSIGNED,
    SIGNED,
    BodyHash,
    SignedHeader,
    SigningKey,
    signature_field,
    signed_header,
)
from relaycluster.mail.header import HeaderField, split_fields

# Newlines, whole and halved, in every neighbourhood.
bodies = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b" ", b".", b"\r\n\r\n"]), max_size=20).map(b"".join)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@given(bodies, st.lists(st.integers(0, 60), max_size=8))
def test_body_hash_of_any_pieces(body: bytes, places: list[int]) -> None:
    """The hash is that of the whole body in dkimpy's simple canonical form, wherever the pieces were cut."""
    hashed = BodyHash()
    for piece in cut(body, places):
        hashed.update(piece)
    # dkimpy leaves the CRLF of a body that is only empty lines, which is what RFC 6376 3.4.3 asks for.
    assert hashed.digest() == sha256(Simple.canonicalize_body(body)).digest()


def test_body_hash_of_rfc_6376() -> None:
    """The hash of an empty body as RFC 6376 3.4.3 gives it."""
    assert BodyHash().digest() == b64decode("frcCV1k9oG9oKj3dpUqdJg1PxRT2RSN/XKdLCPjaYaY=")


def test_many_empty_lines_before_text() -> None:
    """Newlines beyond what is let go at once are all hashed, when text comes behind them."""
    body = b"\r\n" * 20_000 + b"x\r\n"
    hashed = BodyHash()
    hashed.update(body[:30_001])
    hashed.update(body[30_001:])
    assert hashed.digest() == sha256(body).digest()


def header(text: str) -> list[HeaderField]:
    return split_fields(text.replace("\n", "\r\n").encode())


def covered(text: str) -> SignedHeader:
    found = signed_header(header(text))
    assert found is not None
    return found


def test_each_oversigned_name_once_more_than_there() -> None:
    """Nobody can add another field of these names: h= lists each once more than it is there (RFC 6376 5.4, 8.15)."""
    found = covered("From: a@b\nSubject: one\nsubject: two\nList-Id: <x>\nReferences: <1>\n")
    counts = {name: found.names.count(name) for name in found.names}
    expected = dict.fromkeys(OVERSIGNED, 1) | {b"from": 2, b"subject": 3, b"list-id": 1, b"references": 1}
    assert counts == expected


def test_lowest_first() -> None:
    """Of fields with one name the lowest is signed first, since others add theirs above (5.4.2)."""
    found = covered("Subject: upper\nFrom: a@b\nSubject:  lower \n")
    assert found.canonical == b"from:a@b\r\nsubject:lower\r\nsubject:upper\r\n"


def test_never_signed() -> None:
    """What changes on the way is not covered (5.4.1)."""
    found = covered("Return-Path: <a@b>\nReceived: x\nDKIM-Signature: v=1\nBcc: c@d\nX-Spam: no\nFrom: a@b\nno field\n")
    assert found.canonical == b"from:a@b\r\n"
    assert not {b"return-path", b"received", b"dkim-signature", b"bcc", b"x-spam", b""} & set(found.names)
    assert not {b"return-path", b"received", b"dkim-signature", b"bcc"} & set(OVERSIGNED + SIGNED)


def test_nothing_without_from() -> None:
    """Without a From: there is nothing that may be signed (5.4)."""
    assert signed_header(header("Subject: x\nResent-From: a@b\n")) is None
    assert signed_header([]) is None


def test_relaxed() -> None:
    """The example of RFC 6376 3.4.5, and a field that is folded to nothing."""
    found = covered("FROM : X \nSubject: Y\t\n\tZ  \nTo:\n \n")
    assert found.canonical == b"from:X\r\nsubject:Y Z\r\nto:\r\n"


def key(sign: bytes = b"\0" * 256, domain: str = "example.net", selector: str = "s1") -> SigningKey:
    return SigningKey(domain, selector, "rsa-sha256", lambda _: sign)


@pytest.mark.parametrize("extra", ["", "Subject: x\n" * 300])
def test_the_field(extra: str) -> None:
    """Exactly these tags; t= in whole seconds, never l= or x=; no line beyond 78 octets."""
    found = covered("From: a@b\n" + extra)
    text = signature_field(key(), found, b"\1" * 32, 1_700_000_000.9)
    assert text.endswith(b"\r\n")
    lines = text.split(b"\r\n")
    assert max(map(len, lines)) <= 78
    assert all(line.startswith((b"\t", b" ")) for line in lines[1:-1])
    name, _, value = text.partition(b":")
    tags = parse_tag_value(value)
    assert name == b"DKIM-Signature"
    assert list(tags) == [b"v", b"a", b"c", b"d", b"s", b"t", b"h", b"bh", b"b"]
    assert (tags[b"v"], tags[b"a"], tags[b"c"]) == (b"1", b"rsa-sha256", b"relaxed/simple")
    assert (tags[b"d"], tags[b"s"], tags[b"t"]) == (b"example.net", b"s1", b"1700000000")
    assert tuple(b"".join(tags[b"h"].split()).split(b":")) == found.names
    assert b64decode(tags[b"bh"]) == b"\1" * 32
    assert b64decode(b"".join(tags[b"b"].split())) == b"\0" * 256


def test_what_is_signed() -> None:
    """The octets given to the key: the canonical fields, then the field itself with an empty b= and no CRLF (3.7)."""
    asked: list[bytes] = []

    def sign(data: bytes) -> bytes:
        asked.append(data)
        return b"x"

    found = SignedHeader((b"from", b"from"), b"from:a@b\r\n")
    signature_field(SigningKey("example.net", "s1", "rsa-sha256", sign), found, b"\1" * 32, 5)
    assert asked == [
        b"from:a@b\r\ndkim-signature:v=1; a=rsa-sha256; c=relaxed/simple; d=example.net; s=s1; t=5; h=from:from; "
        b"bh=AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=; b="
    ]
