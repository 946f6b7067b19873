"""Private keys for DKIM: read from files of the operator's, or made new. What is refused is refused by name of file and reason."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from attrs import field, frozen
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from relaycluster.interfaces import FileTrouble
from relaycluster.mail.dkim_record import KeyType, PublicKey

LEAST_BITS: Final = 1024  # RFC 8301 3.2; receivers ignore the signature of a shorter key
_MOST_OCTETS: Final = 64 * 1024

_PADDING: Final = PKCS1v15()
_HASH: Final = SHA256()


@frozen
class PrivateKey:
    """A key that can sign. `algorithm` and `sign` as in `SigningKey`; `bits` is the size of an RSA modulus, 256 for Ed25519."""

    public: PublicKey
    bits: int
    algorithm: str
    sign: Callable[[bytes], bytes] = field(repr=False)


def read_key(path: str) -> PrivateKey:
    """The key in a file: PEM without a passphrase (PKCS #8, or the older PKCS #1), or the base64 seed of an Ed25519 key alone on a
    line, as dkimpy's `dknewkey` writes it. Raises `FileTrouble`."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_OCTETS + 1)
    except OSError as error:
        raise FileTrouble(path, 0, f"can not be read: {error.strerror}") from None
    if len(data) > _MOST_OCTETS:
        raise FileTrouble(path, 0, "is too large for a key")
    return _usable(path, _parsed(path, data))


def new_key(kind: KeyType, bits: int = 2048) -> bytes:
    """A new private key as a PEM file (PKCS #8). `bits` is for RSA."""
    key = Ed25519PrivateKey.generate() if kind == "ed25519" else generate_private_key(65537, bits)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _parsed(path: str, data: bytes) -> object:
    begin = data.find(b"-----BEGIN ")
    if begin < 0:
        text = data.strip()
        if len(text) == 44:
            try:
                return Ed25519PrivateKey.from_private_bytes(b64decode(text, validate=True))
            except ValueError:
                pass
        raise FileTrouble(path, 0, "holds no private key: there is no line -----BEGIN PRIVATE KEY-----")
    kind = data[begin + 11 : data.find(b"-----", begin + 11)].decode("ascii", "replace")
    if not kind.endswith("PRIVATE KEY"):
        line = data.count(b"\n", 0, begin) + 1
        raise FileTrouble(path, line, f"holds a {kind[:40].lower()}; the private key is needed")
    try:
        # Its own check of an RSA key looks for primes: 0.2 s for one of 2048 bits, 1.2 s of 4096, with the reactor standing still.
        # These keys are the operator's own, and one signature shows whether the numbers belong together (`_usable`).
        return load_pem_private_key(data, None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        fix = "write it without one: openssl pkey -in OLD -out NEW"
        raise FileTrouble(path, 0, f"has a passphrase, which a node can not ask for; {fix}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise FileTrouble(path, _damaged_line(data), "the private key is damaged, or of an unknown kind") from None


def _damaged_line(data: bytes) -> int:
    """The first line of a PEM file that is no PEM; 0 when all are."""
    for number, line in enumerate(data.splitlines(), 1):
        text = line.strip()
        # Between the two marks may stand fields of an old format, as `DEK-Info: …` (RFC 1421 4.6).
        if text and not text.startswith(b"-----") and b":" not in text:
            try:
                b64decode(text, validate=True)
            except ValueError:
                return number
    return 0


def _usable(path: str, key: object) -> PrivateKey:
    if isinstance(key, RSAPrivateKey):
        if key.key_size < LEAST_BITS:
            fix = "make one of 2048: relaycluster dkim keygen"
            raise FileTrouble(path, 0, f"an RSA key of {key.key_size} bits signs for nobody; {fix}")
        rsa = key

        def sign_rsa(data: bytes) -> bytes:
            return rsa.sign(data, _PADDING, _HASH)

        try:
            key.public_key().verify(sign_rsa(b"x"), b"x", _PADDING, _HASH)
        except (InvalidSignature, ValueError, InternalError):
            raise FileTrouble(path, 0, "the private key is damaged: its signatures do not verify") from None
        public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return PrivateKey(PublicKey("rsa", public), key.key_size, "rsa-sha256", sign_rsa)
    if isinstance(key, Ed25519PrivateKey):
        edwards = key

        def sign_ed25519(data: bytes) -> bytes:
            return edwards.sign(sha256(data).digest())  # RFC 8463 3

        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return PrivateKey(PublicKey("ed25519", public), 256, "ed25519-sha256", sign_ed25519)
    kind = type(key).__name__.removesuffix("PrivateKey")
    raise FileTrouble(path, 0, f"holds a key of the kind {kind}; DKIM knows RSA and Ed25519")
