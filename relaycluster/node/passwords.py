"""Password hashes: made as Argon2id, checked as Argon2id, bcrypt or SHA512-CRYPT, and refused when they are anything weaker.

`PasswordHash.read` tells what is wrong with a hash when the file is read, so that `verify` never stumbles at a login. Costs are bounded from above too:
a check may not take the node's memory or its minutes.
"""

from __future__ import annotations

import re
from binascii import Error as BadBase64
from binascii import a2b_base64, b2a_base64

import bcrypt
from attrs import field, frozen
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

# RFC 9106 and OWASP: 19 MiB and two passes are the least that is recommended; more memory would be taken from the node at each login.
ARGON2_MEMORY_KIB = 19_456
ARGON2_PASSES = 2
SALT_OCTETS = 16
_HASH_OCTETS = 32

LONGEST_PASSWORD_OCTETS = 1024
"""Longer ones are wrong unseen: the work of SHA512-CRYPT grows with the length."""
_BCRYPT_OCTETS = 72  # bcrypt looks no further, and programs that make hashes cut longer passwords there

_MOST_MEMORY_KIB = 262_144
_MOST_KIB_PASSES = 1_048_576
_MOST_LANES = 16
_MOST_BCRYPT_COST = 14
_MOST_SHA512_ROUNDS = 500_000

_ARGON2 = re.compile(r"\$argon2id\$v=19\$m=(\d{1,9}),t=(\d{1,9}),p=(\d{1,9})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)")
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_SHA512 = re.compile(r"\$6\$(?:rounds=([1-9]\d{0,8})\$)?[./A-Za-z0-9]{1,16}\$[./A-Za-z0-9]{86}")
_LABEL = re.compile(r"\{([A-Za-z0-9-]+)\}")
_BEGINNINGS = {
    "ARGON2ID": ("$argon2id$",),
    "BLF-CRYPT": ("$2a$", "$2b$", "$2y$"),
    "SHA512-CRYPT": ("$6$",),
    "CRYPT": ("$argon2id$", "$2a$", "$2b$", "$2y$", "$6$"),
}
_FIX = 'give the user a new password with "relaycluster user add --replace"'


@frozen
class PasswordHash:
    """One hash. `kind` is "argon2id", "bcrypt" or "sha512-crypt"; `text` never shows in a `repr`."""

    kind: str
    text: str = field(repr=False)

    @classmethod
    def read(cls, written: str) -> PasswordHash:
        """A hash as it stands in a file, with or without Dovecot's label (`{SHA512-CRYPT}$6$…`). Raises ValueError with what is wrong
        and the fix, never with the hash."""
        text, label = written, _LABEL.match(written)
        if label is not None:
            text = written[label.end() :]
            beginnings = _BEGINNINGS.get(label[1].upper())
            if beginnings is None:
                raise ValueError(f"hashes of the kind {{{label[1]}}} are not accepted; {_FIX}")
            if not text.startswith(beginnings):
                raise ValueError(f"what follows {{{label[1]}}} is no such hash; {_FIX}")
        if text.startswith("$argon2id$"):
            _check_argon2(text)
            return cls("argon2id", text)
        if text.startswith(("$2a$", "$2b$", "$2y$")):
            found = _BCRYPT.fullmatch(text)
            if found is None:
                raise ValueError(f"a bcrypt hash that is not whole; {_FIX}")
            _check_cost("a bcrypt cost", int(found[1]), 4, _MOST_BCRYPT_COST)
            return cls("bcrypt", text)
        if text.startswith("$6$"):
            found = _SHA512.fullmatch(text)
            if found is None:
                raise ValueError(f"a SHA512-CRYPT hash that is not whole; {_FIX}")
            _check_cost("SHA512-CRYPT rounds", int(found[1] or 5000), 1000, _MOST_SHA512_ROUNDS)
            return cls("sha512-crypt", text)
        raise ValueError(f"this is no Argon2id, bcrypt or SHA512-CRYPT hash; {_FIX}")

    @classmethod
    def make(cls, password: bytes, salt: bytes) -> PasswordHash:
        """A new Argon2id hash; `salt` is `SALT_OCTETS` random octets."""
        made = Argon2id(
            salt=salt, length=_HASH_OCTETS, iterations=ARGON2_PASSES, lanes=1, memory_cost=ARGON2_MEMORY_KIB
        )
        return cls("argon2id", made.derive_phc_encoded(password))

    def verify(self, password: bytes) -> bool:
        """Whether it is made of this password (which `trouble` found nothing in). Takes a few to a few hundred milliseconds: not for the
        reactor's thread. Argon2id and bcrypt let go of Python's lock meanwhile."""
        if self.kind == "argon2id":
            try:
                Argon2id.verify_phc_encoded(password, self.text)
            except InvalidKey:
                return False
            return True
        if self.kind == "bcrypt":
            return bcrypt.checkpw(password[:_BCRYPT_OCTETS], self.text.encode("ascii"))
        from passlib.hash import sha512_crypt  # only where there are such hashes: it takes long to import

        return bool(sha512_crypt.verify(password, self.text))


def trouble(password: bytes) -> str:
    """Why this can be nobody's password; empty when it can."""
    if not password:
        return "the password is empty"
    if b"\0" in password:
        return "the password holds a NUL, which AUTH PLAIN cannot carry (RFC 4616 2)"
    if len(password) > LONGEST_PASSWORD_OCTETS:
        return f"the password is longer than {LONGEST_PASSWORD_OCTETS} octets"
    return ""


def _check_argon2(text: str) -> None:
    found = _ARGON2.fullmatch(text)
    if found is None:
        raise ValueError(f"an Argon2id hash that is not whole, or not of version 19; {_FIX}")
    memory, passes, lanes = int(found[1]), int(found[2]), int(found[3])
    _check_cost("Argon2id lanes", lanes, 1, _MOST_LANES)
    _check_cost("Argon2id memory in KiB", memory, 8 * lanes, _MOST_MEMORY_KIB)
    _check_cost("Argon2id passes", passes, 1, _MOST_KIB_PASSES // memory)
    for part, least in ((found[4], 8), (found[5], 16)):
        padded = part + "=" * (-len(part) % 4)
        try:
            decoded = a2b_base64(padded, strict_mode=True)
        except BadBase64:
            decoded = b""
        if not least <= len(decoded) <= 64 or b2a_base64(decoded, newline=False).decode("ascii") != padded:
            raise ValueError(f"an Argon2id hash whose salt or hash is not whole; {_FIX}")


def _check_cost(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{what} of {value}, where {least} to {most} can be checked here; {_FIX}")
