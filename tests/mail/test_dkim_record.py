"""The DNS record of a key: what is published, and what is said of what was published wrongly."""

from __future__ import annotations

from base64 import b64encode

import pytest

from relaycluster.mail.dkim_record import PublicKey, findings, strings, zone_lines

RSA = PublicKey("rsa", bytes(range(256)) + b"tail of the key")
ED = PublicKey("ed25519", bytes(32))
P = b64encode(RSA.data).decode()


def test_what_is_published_is_right() -> None:
    """The record that is made for a key is found right for it, also cut into strings and joined again."""
    for key in (RSA, ED):
        assert findings([key.record], key) == []
        assert findings(["".join(strings(key.record))], key) == []


def test_strings() -> None:
    """No string is longer than a TXT record's strings may be (RFC 1035 3.3), and nothing is lost."""
    assert [len(text) for text in strings(RSA.record)] == [255, len(RSA.record) - 255]
    assert strings(ED.record) == [ED.record]


def test_zone_lines() -> None:
    """As a zone file wants it: absolute name, quotes, brackets around several lines."""
    assert zone_lines("s._domainkey.x.test", "v=DKIM1; p=") == 's._domainkey.x.test. IN TXT "v=DKIM1; p="'
    first, *inner, last = zone_lines("s._domainkey.x.test", RSA.record).split("\n")
    assert (first, last) == ("s._domainkey.x.test. IN TXT (", ")")
    assert "".join(line.strip().strip('"') for line in inner) == RSA.record


@pytest.mark.parametrize(
    "record",
    [
        f"p={P}",  # k=rsa and v= are what a missing tag means
        f" v = DKIM1 ;\tk = rsa; p = {P[:100]} {P[100:]} ; ",
        f"v=DKIM1; h=sha1:sha256; s=email; t=s; n=a note; x=unknown; p={P};",
        f"v=DKIM1; h= sha256; s=other:*; p={P}",
    ],
)
def test_other_ways_to_write_it(record: str) -> None:
    """What RFC 6376 3.6.1 allows is right."""
    assert findings([record], RSA) == []


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (f"v=DKIM1; k=ed25519; p={P}", "k='ed25519', but the key file holds a key of type rsa"),
        ("v=DKIM1; k=rsa", "p= is missing"),
        ("v=DKIM1; p=", "p= is empty: the key was revoked"),
        (f"v=DKIM1; p={P[:200]}", f"p= breaks off after 200 of {len(P)} characters"),
        (f'v=DKIM1; p={P[:50]}" "{P[50:]}', "p= has '\"' at character 51, which is no base64"),
        (f"v=DKIM1; p={P[:50]}!{P[51:]}", "p= has '!' at character 51, which is no base64"),
        (f"v=DKIM1; p={P[:50]}/{P[51:]}", f"p= is another key: only character 51 differs, '/' instead of {P[50]!r}"),
        (
            f"v=DKIM1; p={P[:60]}AAAA",
            f"p= is another key: it differs from character 61 on; DNS has 64 characters that end in {P[48:60] + 'AAAA'!r}, "
            f"the key file {len(P)} that end in {P[-16:]!r}",
        ),
        (f"v=DKIM1; h=sha1; p={P}", "h='sha1' does not allow sha256"),
        (f"v=DKIM1; s=tlsrpt; p={P}", "s='tlsrpt' does not allow email"),
        (f"v=DKIM2; p={P}", "v='DKIM2' must be v=DKIM1, and stand first"),
        (f"p={P}; v=DKIM1", "v='DKIM1' must be v=DKIM1, and stand first"),
        (f"v=DKIM1; p={P}; p={P}", "p= stands there twice"),
        (f"v=DKIM1 p={P[:10]}", None),
        ("v=spf1 -all", "v='spf1 -all' must be v=DKIM1"),
        ("some text", "'some text' is no tag; one is written name=value, with ; between two"),
    ],
)
def test_wrong_records(record: str, said: str | None) -> None:
    """What is wrong is said exactly, and is fatal."""
    found = findings([record], RSA)
    assert found
    assert all(finding.fatal for finding in found)
    if said is not None:
        assert said in found[0].text


def test_padding() -> None:
    """The right key that is only padded wrongly is named as that."""
    (padding,) = findings([f"v=DKIM1; k=ed25519; p={b64encode(ED.data).decode().rstrip('=')}"], ED)
    assert (padding.fatal, padding.text.partition(" with ")[0]) == (True, "p= is the right key")


def test_testing() -> None:
    """A domain that says that it only tests is a warning."""
    (testing,) = findings([f"v=DKIM1; t=y:s; p={P}"], RSA)
    assert (testing.fatal, testing.text.partition(":")[0]) == (False, "t=y")


def test_none_and_several() -> None:
    """Exactly one TXT record must stand at the name (RFC 6376 3.6.2.2)."""
    assert findings([], RSA)[0].text == "no TXT record"
    (several,) = findings(["v=spf1 -all", RSA.record], RSA)
    assert several.fatal
    assert several.text.startswith("2 TXT records where only one may be: 'v=spf1 -all', 'v=DKIM1; k=rsa; p=")


def test_nothing_raw_is_printed() -> None:
    """What a stranger's DNS says is shown without control characters."""
    for record in ("\x1b[31m; p=", "v=\x1b[31m", "v=DKIM1; k=\x07", "v=DKIM1; p=\x1b[31m"):
        assert all(finding.text.isprintable() for finding in findings([record], RSA))
