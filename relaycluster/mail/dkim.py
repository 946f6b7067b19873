"""A DKIM signature without its key: which fields it covers, the octets that are signed, the field that comes of it (RFC 6376).

Header relaxed, body simple (3.4): a relay on the way may fold a header anew, none may touch a body; and a simple body can be hashed
as it streams by. Never `l=` (8.2), never `x=`, always `t=`. The key's part, and whose key it is: `node/signing.py`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Final

from attrs import field, frozen
from dkim.canonicalization import Relaxed

from relaycluster.mail.header import HeaderField

# Signed as they are, and once more than they are there: who adds another one breaks the signature (RFC 6376 8.15). Many readers show
# the first of two Subjects, while a signature covers the last; a Content-Type that is added turns text into something else; RFC 8058 4
# wants both List-Unsubscribe fields covered.
OVERSIGNED: Final = (
    *(b"from", b"subject", b"to", b"date", b"message-id", b"cc", b"reply-to"),
    *(b"mime-version", b"content-type", b"content-transfer-encoding", b"list-unsubscribe", b"list-unsubscribe-post"),
)

# Signed where they are there (RFC 6376 5.4.1); a list or a resender may add its own. Never a trace field (Received, Return-Path, what
# verifiers write), which changes on the way, nor Bcc, which is dropped.
SIGNED: Final = (
    *(b"sender", b"in-reply-to", b"references", b"auto-submitted", b"feedback-id"),
    *(b"content-id", b"content-description", b"content-disposition"),
    *(b"list-id", b"list-help", b"list-subscribe", b"list-post", b"list-owner", b"list-archive"),
    *(b"resent-date", b"resent-from", b"resent-sender", b"resent-to", b"resent-cc", b"resent-message-id"),
)

_OVERSIGNED: Final = frozenset(OVERSIGNED)
_WANTED: Final = frozenset(OVERSIGNED + SIGNED)

_LINE_OCTETS: Final = 76  # RFC 5322 2.1.1 wants at most 78
_NEWLINES: Final = b"\r\n" * 4096


@frozen
class SigningKey:
    """One private key and where its public half is published (3.6.2.1): `selector._domainkey.domain`, both in A-labels.

    `algorithm` is the value of `a=`; `sign` makes the signature of the octets that it is given: for "rsa-sha256" RSASSA-PKCS1-v1_5
    over their SHA-256 (3.3), for "ed25519-sha256" PureEdDSA over their SHA-256 (RFC 8463 3).
    """

    domain: str
    selector: str
    algorithm: str
    sign: Callable[[bytes], bytes] = field(repr=False)

    @property
    def name(self) -> str:
        """Where DNS has the public key."""
        return f"{self.selector}._domainkey.{self.domain}"


@frozen
class SignedHeader:
    """What a signature covers of a header: the names as `h=` lists them, and the fields in canonical form."""

    names: tuple[bytes, ...]
    canonical: bytes


def signed_header(fields: Iterable[HeaderField]) -> SignedHeader | None:
    """What to sign of these fields; None without a `From:`, which must be signed (RFC 6376 5.4)."""
    found: dict[bytes, list[bytes]] = {}
    for one in fields:
        if one.name in _WANTED:
            found.setdefault(one.name, []).append(one.raw.partition(b":")[2])
    if b"from" not in found:
        return None
    names: list[bytes] = []
    pairs: list[tuple[bytes, bytes]] = []
    for name in OVERSIGNED + SIGNED:
        values = found.get(name, ())
        # 5.4.2: of fields with the same name the lowest first. A name without a field left stands for nothing at all.
        pairs += [(name, value) for value in reversed(values)]
        names += [name] * (len(values) + (name in _OVERSIGNED))
    canonical = b"".join([b"%b:%b" % pair for pair in Relaxed.canonicalize_headers(pairs)])
    return SignedHeader(tuple(names), canonical)


def signature_field(key: SigningKey, header: SignedHeader, body_digest: bytes, epoch_seconds: float) -> bytes:
    """The DKIM-Signature field, CRLF at its end. `body_digest` is the SHA-256 of the canonical body, `epoch_seconds` when it is
    signed (`t=`)."""
    value = b" v=1; a=%b; c=relaxed/simple; d=%b;\r\n\ts=%b; t=%d;\r\n\th=%b;\r\n\tbh=%b;\r\n\tb=" % (
        key.algorithm.encode("ascii"),
        key.domain.encode("ascii"),
        key.selector.encode("ascii"),
        epoch_seconds,
        _folded_names(header.names),
        b64encode(body_digest),
    )
    # 3.7: the field signs itself with an empty b=, behind all others and without its CRLF.
    ((name, own),) = Relaxed.canonicalize_headers([(b"dkim-signature", value)])
    signature = b64encode(key.sign(header.canonical + name + b":" + own[:-2]))
    lines = [signature[at : at + 72] for at in range(0, len(signature), 72)]
    return b"DKIM-Signature:" + value + b"\r\n\t ".join(lines) + b"\r\n"


def _folded_names(names: Iterable[bytes]) -> bytes:
    """The value of `h=`, folded behind colons (3.5)."""
    lines: list[bytes] = []
    line = b""
    for name in names:
        if len(line) + len(name) > _LINE_OCTETS - 6:
            lines.append(line)
            line = b""
        line += name + b":"
    lines.append(line[:-1])
    return b"\r\n\t ".join(lines)


class BodyHash:
    """The SHA-256 of a body in "simple" canonical form (3.4.3), of pieces as they come, cut anywhere.

    Empty lines at the end do not count, and the last line ends in CRLF, also that of no body at all. So newlines are held back until
    something comes behind them. Nothing is copied, and hashlib lets other threads run meanwhile.
    """

    __slots__ = ("_hash", "_held", "_lone")

    def __init__(self) -> None:
        self._hash = sha256()
        self._held = 0  # pairs of CRLF that were not hashed yet
        self._lone = False  # a CR after them, whose LF may come

    def update(self, piece: bytes) -> None:
        """More of the body."""
        if not piece:
            return
        if self._lone:
            self._lone = False
            if piece.startswith(b"\n"):
                self._held += 1
                piece = piece[1:]
            else:
                self._let_go()
                self._hash.update(b"\r")
        end = len(piece)
        if piece.endswith(b"\r"):
            self._lone = True
            end -= 1
        text = end
        while piece.endswith(b"\r\n", 0, text):
            text -= 2
        if text:
            self._let_go()
            self._hash.update(memoryview(piece)[:text])
        self._held += (end - text) // 2

    def digest(self) -> bytes:
        """The hash of what came; nothing may come after."""
        if self._lone:
            self._let_go()
            self._hash.update(b"\r")
            self._lone = False
        self._hash.update(b"\r\n")
        return self._hash.digest()

    def _let_go(self) -> None:
        held, self._held = self._held, 0
        while held:
            pairs = min(held, len(_NEWLINES) // 2)
            self._hash.update(memoryview(_NEWLINES)[: 2 * pairs])
            held -= pairs
