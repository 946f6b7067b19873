"""The DNS record of a DKIM key: what to publish for it, and what is wrong with what was published (RFC 6376 3.6.1, RFC 8463 4)."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from typing import Final, Literal

from attrs import frozen

KeyType = Literal["rsa", "ed25519"]

STRING_OCTETS: Final = 255  # RFC 1035 3.3: what one character-string of a TXT record holds

_tag = re.compile(r"([A-Za-z][A-Za-z0-9_]*)[ \t\r\n]*=(.*)", re.DOTALL).fullmatch
_no_base64 = re.compile(r"[^A-Za-z0-9+/=]").search


@frozen
class PublicKey:
    """The public half of a key. `data` is what `p=` encodes: the SubjectPublicKeyInfo of RSA (DER), the 32 octets of Ed25519."""

    type: KeyType
    data: bytes

    @property
    def record(self) -> str:
        """The text of the TXT record to publish."""
        return f"v=DKIM1; k={self.type}; p={b64encode(self.data).decode('ascii')}"


@frozen
class Finding:
    """Something about a published record. With `fatal`, what the key signs does not verify."""

    text: str
    fatal: bool = True


def strings(record: str) -> list[str]:
    """The record as the character-strings that a TXT record is made of; they are joined without anything between them (3.6.2.2)."""
    return [record[at : at + STRING_OCTETS] for at in range(0, len(record), STRING_OCTETS)]


def zone_lines(name: str, record: str) -> str:
    """The record as lines of a zone file (RFC 1035 5.1)."""
    lines = [f'"{text}"' for text in strings(record)]
    if len(lines) == 1:
        return f"{name}. IN TXT {lines[0]}"
    return f"{name}. IN TXT (\n" + "".join(f"    {line}\n" for line in lines) + ")"


def findings(texts: Sequence[str], key: PublicKey) -> list[Finding]:
    """What is wrong with the TXT records at a key's name, each given as its joined strings; nothing when the key's signatures verify."""
    if not texts:
        return [Finding("no TXT record")]
    if len(texts) > 1:
        # 3.6.2.2: which of them a verifier takes is undefined.
        each = ", ".join(_shortened(text) for text in texts)
        return [Finding(f"{len(texts)} TXT records where only one may be: {each}")]
    return _record_findings(texts[0], key)


def _record_findings(text: str, key: PublicKey) -> list[Finding]:
    found: list[Finding] = []
    tags: dict[str, str] = {}
    parts = text.split(";")
    if not parts[-1].strip():
        parts.pop()
    for part in parts:
        match = _tag(part.strip(" \t\r\n"))
        if match is None:
            found.append(
                Finding(f"{_shortened(part.strip())} is no tag; one is written name=value, with ; between two")
            )
            continue
        name, value = match.group(1), match.group(2).strip(" \t\r\n")
        if name in tags:
            found.append(Finding(f"{name}= stands there twice"))
        elif name == "v" and (value != "DKIM1" or tags):
            found.append(Finding(f"v={_shortened(value)} must be v=DKIM1, and stand first"))
        tags.setdefault(name, value)
    if found:
        return found  # verifiers throw such a record away as a whole (3.2)
    kind = tags.get("k", "rsa")
    if kind != key.type:
        found.append(Finding(f"k={_shortened(kind)}, but the key file holds a key of type {key.type}"))
    elif "p" not in tags:
        found.append(Finding("p= is missing"))
    else:
        found += _key_findings(re.sub(r"[ \t\r\n]", "", tags["p"]), b64encode(key.data).decode("ascii"))
    if "h" in tags and "sha256" not in _listed(tags["h"]):
        found.append(Finding(f"h={_shortened(tags['h'])} does not allow sha256"))
    if "s" in tags and not {"*", "email"} & set(_listed(tags["s"])):
        found.append(Finding(f"s={_shortened(tags['s'])} does not allow email"))
    if "y" in _listed(tags.get("t", "")):
        found.append(
            Finding("t=y: verifiers take the domain as only testing, and what it signs as unsigned", fatal=False)
        )
    return found


def _key_findings(there: str, wanted: str) -> list[Finding]:
    if there == wanted:
        return []
    if not there:
        return [Finding("p= is empty: the key was revoked")]
    if bad := _no_base64(there):
        return [Finding(f"p= has {bad.group()!r} at character {bad.start() + 1}, which is no base64")]
    if there.rstrip("=") == wanted.rstrip("="):
        return [Finding("p= is the right key with the wrong number of = at its end, which some verifiers refuse")]
    if wanted.startswith(there):
        return [Finding(f"p= breaks off after {len(there)} of {len(wanted)} characters")]
    same = next(
        (at for at in range(min(len(there), len(wanted))) if there[at] != wanted[at]), min(len(there), len(wanted))
    )
    if len(there) == len(wanted) and same < len(wanted) - 20 and there[same + 1 :] == wanted[same + 1 :]:
        return [
            Finding(
                f"p= is another key: only character {same + 1} differs, {there[same]!r} instead of {wanted[same]!r}"
            )
        ]
    # The first 44 characters of a 2048-bit key are the same for all.
    return [
        Finding(
            f"p= is another key: it differs from character {same + 1} on; DNS has {len(there)} characters that end in "
            f"{there[-16:]!r}, the key file {len(wanted)} that end in {wanted[-16:]!r}"
        )
    ]


def _listed(value: str) -> list[str]:
    return [one.strip() for one in value.split(":")]


def _shortened(text: str) -> str:
    return ascii(text if len(text) <= 40 else f"{text[:30]}...{text[-7:]}")
