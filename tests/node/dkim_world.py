"""Keys and messages for DKIM's tests, and stock dkimpy as the verifier that is always there."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import dkim
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from relaycluster.node.dkim_keys import new_key, read_key
from relaycluster.node.signing import DKIMKeyFile, Signer

NOW = 1_700_000_000.5


class Keys:
    """Key files in a directory, and the DNS records for them: name → the text to publish."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._entries: dict[str, DKIMKeyFile] = {}
        self.records: dict[str, str] = {}

    def add(self, name: str, kind: str = "rsa", fallback: bool = False) -> DKIMKeyFile:
        """A new key for `selector._domainkey.domain`."""
        selector, _, domain = name.partition("._domainkey.")
        file = self._directory / f"{name}.pem"
        file.write_bytes(new_key("ed25519" if kind == "ed25519" else "rsa"))
        entry = DKIMKeyFile(domain, selector, str(file), fallback)
        self._entries[name] = entry
        self.records[name] = read_key(entry.key_file).public.record
        return entry

    @property
    def entries(self) -> list[DKIMKeyFile]:
        """All keys so far."""
        return list(self._entries.values())

    def signer(self) -> Signer:
        """With all keys so far."""
        signer = Signer()
        signer.load(self._entries.values())
        return signer


class _VerifyKey:
    """PyNaCl's class for an Ed25519 key, as far as dkimpy calls it: PyNaCl itself is not needed for anything else here."""

    def __init__(self, encoded: bytes, encoder: object) -> None:
        self._key = Ed25519PublicKey.from_public_bytes(b64decode(encoded))

    def verify(self, data: bytes, signature: bytes) -> bytes:
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            raise ValueError("bad signature") from None
        return data


_NACL = SimpleNamespace(
    signing=SimpleNamespace(VerifyKey=_VerifyKey),
    encoding=SimpleNamespace(Base64Encoder=None),
    exceptions=SimpleNamespace(ValueError=ValueError, BadSignatureError=ValueError),
)


def verified(message: bytes, records: Mapping[str, str]) -> list[bool]:
    """For each DKIM-Signature of the message, from the top: whether dkimpy finds it right."""

    def answer(name: bytes, timeout: float = 5) -> bytes | None:
        text = records.get(name.decode().rstrip("."))
        return None if text is None else text.encode()

    count = message.partition(b"\r\n\r\n")[0].lower().count(b"dkim-signature:")
    with mock.patch.object(dkim, "nacl", _NACL, create=True):
        return [_verify(dkim.DKIM(message), index, answer) for index in range(count)]


def _verify(signed: dkim.DKIM, index: int, answer: object) -> bool:
    try:
        return bool(signed.verify(idx=index, dnsfunc=answer))
    except (dkim.DKIMException, ValueError):
        return False


LETTER = (
    b"Received: from client.example ([192.0.2.1])\r\n\tby relay.example.net with ESMTP id X;\r\n\tMon, 02 Nov 2026 10:00:00 +0000\r\n"
    b"From: Ann <ann@example.net>\r\nTo: Bob <bob@example.org>\r\nSubject: Figures of\r\n\tthe quarter\r\n"
    b"Date: Mon, 02 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@example.net>\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    b"Dear Bob,\r\n\r\n.a line with a dot\r\n..and two  \r\n\tGr\xc3\xbc\xc3\x9fe\r\n\r\n"
)

_FROM = b"From: ann@example.net\r\n"

# Each has its name: what is odd about it. All are complete messages, the last one as near to nothing as a message gets.
ODD = {
    "ordinary": LETTER,
    "folded": b"From:\r\n ann@example.net\r\nSubject: a\r\n \t b\r\n\t\r\n c\r\nTo: <bob@example.org>,\r\n\t<x@example.org>\r\n\r\nx\r\n",
    "white space": b"From:ann@example.net  \r\nSubject:   a \t  b\t\r\nTo :\tbob@example.org\r\n\r\n trailing  \r\n\t\r\n",
    "duplicates": _FROM + b"Subject: one\r\nSubject: two\r\nTo: a@example.org\r\nTo: b@example.org\r\n\r\nx\r\n",
    "two authors": _FROM + b"Subject: x\r\nFrom: other@example.net\r\n\r\nx\r\n",
    "empty fields": _FROM + b"Subject:\r\nTo: \r\nCc:\r\n \r\n\r\nx\r\n",
    "utf-8": "From: Ännchen <ann@example.net>\r\nSubject: Grüße aus Köln, 日本\r\n\r\nÜ\r\n".encode(),
    "8-bit": _FROM + b"Subject: caf\xe9\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\xe9\xff\x80\r\n",
    "list": _FROM + b"List-Id: <l.example.net>\r\nList-Unsubscribe: <https://example.net/u>\r\n"
    b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nFeedback-ID: 1:2:3:x\r\nReferences: <1@x>\r\n <2@x>\r\n\r\nx\r\n",
    "no body": _FROM + b"Subject: x\r\n\r\n",
    "only empty lines": _FROM + b"\r\n\r\n\r\n\r\n",
    "no final CRLF": _FROM + b"\r\none\r\ntwo",
    "many empty lines": _FROM + b"\r\n" + b"\r\n" * 3000 + b"x" + b"\r\n" * 3000,
    "dots": _FROM + b"\r\n.\r\n..\r\n.x\r\n...\r\n",
    "long lines": _FROM + b"Subject: " + b"y" * 900 + b"\r\n\r\n" + b"z" * 998 + b"\r\n",
    "no end of header": b"From: ann@example.net\r\nSubject: x\r\n",
}
