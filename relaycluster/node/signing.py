"""Signs what leaves with the DKIM keys of the author's domain: keys are read once, chosen by `From:`, one signature for each.

Which keys, in this order: those of the author domain itself; those of the nearest domain above it that has any; those of the
fallback. The first two align for DMARC (the second only as "relaxed", RFC 7489 3.1.1), the third does not. docs/design/dkim.md.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence

from attrs import frozen
from twisted.logger import Logger

from relaycluster.interfaces import FileTrouble
from relaycluster.mail.dkim import BodyHash, SignedHeader, SigningKey, signature_field, signed_header
from relaycluster.mail.header import HeaderField, author_domain, split_fields
from relaycluster.mail.trace import header_end
from relaycluster.metrics import SigningResult
from relaycluster.node.dkim_keys import read_key


@frozen
class DKIMKeyFile:
    """One `[[dkim]]` of the configuration. `domain` and `selector` in A-labels, lower case; with `fallback` the key signs also for
    authors that no key is for."""

    domain: str
    selector: str
    key_file: str
    fallback: bool = False


@frozen
class _Keys:
    """All keys of one reading of the files, RSA before Ed25519: some verifiers look at the first signature only, and more of them know
    RSA."""

    by_domain: dict[str, tuple[SigningKey, ...]]
    fallback: tuple[SigningKey, ...]


class Signing:
    """The signatures of one message: its body comes in pieces, cut anywhere."""

    __slots__ = ("_body", "_counted", "_header", "_keys")

    def __init__(
        self, keys: tuple[SigningKey, ...], header: SignedHeader, counted: Callable[[SigningResult], None]
    ) -> None:
        self._keys = keys
        self._header = header
        self._body = BodyHash()
        self._counted = counted

    @property
    def names(self) -> tuple[str, ...]:
        """Of each signature to come, `selector._domainkey.domain`."""
        return tuple(key.name for key in self._keys)

    def update(self, body: bytes) -> None:
        """More of what follows the header's empty line."""
        self._body.update(body)

    def finish(self, epoch_seconds: float) -> bytes:
        """The DKIM-Signature fields, CRLF at the end, to stand before all others. Call it once; what it raises is a fault of ours."""
        try:
            digest = self._body.digest()
            fields = [signature_field(key, self._header, digest, epoch_seconds) for key in self._keys]
        except Exception:
            self._counted("failed")
            raise
        self._counted("signed")
        return b"".join(fields)


class Signer:
    """Holds the keys and begins signatures. `counted` hears of each message what became of it, once; of nothing while there are no
    keys at all."""

    _log = Logger()

    def __init__(self, counted: Callable[[SigningResult], None] = lambda _: None) -> None:
        self._counted = counted
        self._keys = _Keys({}, ())

    def load(self, entries: Iterable[DKIMKeyFile]) -> None:
        """Read these files and sign with their keys from now on; with none of them, sign nothing. Raises `FileTrouble`, and then
        the keys from before stay. Signatures that have begun end with the keys that they began with."""
        found: dict[tuple[str, str], SigningKey] = {}
        fallback: list[SigningKey] = []
        for entry in entries:
            private = read_key(entry.key_file)
            key = SigningKey(entry.domain, entry.selector, private.algorithm, private.sign)
            if found.setdefault((entry.domain, entry.selector), key) is not key:
                raise FileTrouble(entry.key_file, 0, f"is the second key for {key.name}; give it a selector of its own")
            if entry.fallback:
                fallback.append(key)
        by_domain: dict[str, tuple[SigningKey, ...]] = {}
        for key in found.values():
            by_domain[key.domain] = (*by_domain.get(key.domain, ()), key)
        self._keys = _Keys({domain: _rsa_first(keys) for domain, keys in by_domain.items()}, _rsa_first(fallback))

    @property
    def has_keys(self) -> bool:
        """Whether anything is signed at all: otherwise nobody need look at a header for it."""
        return bool(self._keys.by_domain)

    def keys_for(self, domain: str) -> tuple[SigningKey, ...]:
        """The keys that sign for an author of this domain (A-labels, lower case; empty when there is none)."""
        keys = self._keys
        return keys.by_domain.get(covering(domain, keys.by_domain), keys.fallback)

    def begin(self, fields: Sequence[HeaderField], author: str) -> Signing | None:
        """Sign a message with these fields by an author of this domain (`author_domain(fields)`): give it the body and take the
        signatures. None when nobody signs it: there is no key, no `From:`, or a line that is no field (`From\\0:`), in which another
        reader may see an author that we do not vouch for.

        The fields must be those that are sent, except that trace fields may still be added.
        """
        keys = self.keys_for(author)
        header = signed_header(fields) if keys and all(field.name for field in fields) else None
        if header is None:
            if self.has_keys:
                self._counted("no_key")
            return None
        return Signing(keys, header, self._counted)

    def sign(self, content: bytes, epoch_seconds: float) -> bytes:
        """A whole message of our own with its signatures in front. Never fails: a notice that can not be signed is better than none."""
        try:
            end = header_end(content)
            fields = split_fields(content[:end])
            signing = self.begin(fields, author_domain(fields))
            if signing is None:
                return content
            signing.update(content[end + 2 :])
            return signing.finish(epoch_seconds) + content
        except Exception:
            self._log.failure("a notice could not be signed")
            return content

    def sign_anew(self, content: bytes, epoch_seconds: float) -> bytes:
        """A message whose content had to be converted on its way: signatures of ours in front no longer fit and are replaced. What
        others signed stays, as does a message that was not signed here."""
        fields = split_fields(content[: header_end(content)])
        at = 0
        for field in fields:
            if field.name != b"dkim-signature" or not self._is_ours(field.value):
                break
            at += len(field.raw)
        return self.sign(content[at:], epoch_seconds) if at else content

    def _is_ours(self, signature: bytes) -> bool:
        """Whether one of our keys is named (RFC 6376 3.5: `d=` and `s=`)."""
        tags = dict(tag.strip().partition(b"=")[::2] for tag in b"".join(signature.split()).split(b";"))
        domain, selector = (tags.get(name, b"").decode("ascii", "replace").lower() for name in (b"d", b"s"))
        return any(key.name == f"{selector}._domainkey.{domain}" for key in self._keys.by_domain.get(domain, ()))


def covering(domain: str, domains: Container[str]) -> str:
    """The domain itself or the nearest above it that is one of `domains`; empty when none is."""
    while domain and domain not in domains:
        domain = domain.partition(".")[2]
    return domain


def _rsa_first(keys: Iterable[SigningKey]) -> tuple[SigningKey, ...]:
    return tuple(sorted(keys, key=lambda key: key.algorithm != "rsa-sha256"))
