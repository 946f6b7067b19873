"""Keys from files, whose keys sign for whom, signatures that stock dkimpy verifies, and what a signature costs."""

from __future__ import annotations

import statistics
import time
from base64 import b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from relaycluster.interfaces import FileTrouble
from relaycluster.mail.header import author_domain, split_fields
from relaycluster.mail.trace import header_end
from relaycluster.metrics import SigningResult
from relaycluster.node.dkim_keys import new_key, read_key
from relaycluster.node.signing import DKIMKeyFile, Signer
from tests.node.dkim_world import LETTER, NOW, ODD, Keys, verified


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Both kinds for example.net, one for a domain below it, and another domain's as the fallback."""
    found = Keys(tmp_path_factory.mktemp("keys"))
    found.add("ed._domainkey.example.net", "ed25519")
    found.add("s1._domainkey.example.net")
    found.add("s1._domainkey.sub.example.net", "ed25519")
    found.add("s1._domainkey.fallback.test", fallback=True)
    return found


@pytest.fixture(scope="module")
def signer(keys: Keys) -> Signer:
    """With those keys."""
    return keys.signer()


@pytest.mark.parametrize("name", ODD)
def test_odd_messages_verify(keys: Keys, signer: Signer, name: str) -> None:
    """Whatever a message looks like, stock dkimpy verifies both signatures, and the message behind them is untouched."""
    message = ODD[name]
    signed = signer.sign(message, NOW)
    assert signed.endswith(message)
    if name == "white space":  # dkimpy can not read white space before a colon
        signed = signed.replace(b"To :", b"To:")
    assert verified(signed, keys.records) == [True, True]


values = st.lists(
    st.sampled_from([b"a", b" ", b"\t", b"\r\n ", b"\r\n\t", b"=?x?=", b":", b";", b"\xc3\xa9", b'"', b"<a@b>", b"b="]),
    max_size=12,
).map(b"".join)
names = st.sampled_from([b"Subject", b"TO", b"cc", b"Reply-To", b"X-Other", b"References", b"List-Id", b"Received"])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(names, values), max_size=8),
    st.lists(st.sampled_from([b"x", b" ", b"\r\n", b".", b"\xff"]), max_size=12).map(b"".join),
)
def test_any_header_and_body(keys: Keys, signer: Signer, fields: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Any mixture of folds, spaces and duplicates verifies."""
    header = b"".join(b"%b:%b\r\n" % pair for pair in [*fields, (b"From", b" ann@sub.example.net")])
    assert verified(signer.sign(header + b"\r\n" + body, NOW), keys.records) == [True]


@pytest.mark.parametrize(
    "change",
    [
        (b"bob@example.org", b"eve@example.org"),
        (b"Figures", b"Figurines"),
        (b"text/plain", b"text/html"),
        (b"Dear Bob,\r\n", b"Dear Bob,\r\n\r\n"),
        (b"two  \r\n", b"two \r\n"),
        *(
            (b"From: Ann", b"%b: x\r\nFrom: Ann" % name)
            for name in (b"From", b"Subject", b"To", b"Date", b"Message-ID", b"Cc")
        ),
        *((b"From: Ann", b"%b: x\r\nFrom: Ann" % name) for name in (b"Reply-To", b"MIME-Version", b"Content-Type")),
        *((b"From: Ann", b"%b: x\r\nFrom: Ann" % name) for name in (b"List-Unsubscribe", b"List-Unsubscribe-Post")),
        (b"From: Ann", b"Content-Transfer-Encoding: base64\r\nFrom: Ann"),
    ],
)
def test_changes_break_it(keys: Keys, signer: Signer, change: tuple[bytes, bytes]) -> None:
    """Any change to what is covered breaks both signatures; so does one more field of an oversigned name."""
    signed = signer.sign(LETTER, NOW)
    changed = signed.replace(*change, 1)
    assert changed != signed
    assert verified(changed, keys.records) == [False, False]


@pytest.mark.parametrize(
    "change",
    [
        (b"Received:", b"Received: from elsewhere\r\nReceived:"),
        (b"Subject: Figures of\r\n\tthe", b"SUBJECT:Figures\r\n  of the"),
        (b"From: Ann", b"X-Virus: none\r\nList-Id: <x>\r\nFrom: Ann"),
    ],
)
def test_changes_on_the_way(keys: Keys, signer: Signer, change: tuple[bytes, bytes]) -> None:
    """What relays do on the way keeps both signatures: trace fields, other folds, other fields, empty lines at the end."""
    signed = signer.sign(LETTER, NOW)
    changed = signed.replace(*change, 1) + b"\r\n\r\n"
    assert change[1] in changed
    assert verified(changed, keys.records) == [True, True]


@pytest.mark.parametrize(
    ("author", "signed_by"),
    [
        ("example.net", ["s1._domainkey.example.net", "ed._domainkey.example.net"]),  # RSA first
        ("other.example.net", ["s1._domainkey.example.net", "ed._domainkey.example.net"]),
        ("sub.example.net", ["s1._domainkey.sub.example.net"]),
        ("a.b.sub.example.net", ["s1._domainkey.sub.example.net"]),
        ("badexample.net", ["s1._domainkey.fallback.test"]),
        ("net", ["s1._domainkey.fallback.test"]),
        ("", ["s1._domainkey.fallback.test"]),
        ("fallback.test", ["s1._domainkey.fallback.test"]),
    ],
)
def test_whose_keys(signer: Signer, author: str, signed_by: list[str]) -> None:
    """The domain's own keys, or the nearest domain's above it, or the fallback's."""
    assert [key.name for key in signer.keys_for(author)] == signed_by


def test_nobody_signs(tmp_path: Path) -> None:
    """Without a key for the author and a fallback, or without From:, the message is not signed; each is counted once."""
    counted: list[SigningResult] = []
    signer = Signer(counted.append)
    assert not signer.has_keys
    assert signer.sign(LETTER, NOW) == LETTER
    assert counted == []  # nobody asked for signatures
    signer.load([Keys(tmp_path).add("s1._domainkey.example.net")])
    assert signer.has_keys
    for message in (LETTER.replace(b"ann@example.net", b"ann@example.com"), b"Subject: x\r\n\r\n", b"\r\nx", b""):
        assert signer.sign(message, NOW) == message
    assert counted == ["no_key"] * 4
    signer.sign(LETTER, NOW)
    assert counted[4:] == ["signed"]


def test_signed_anew(keys: Keys, signer: Signer) -> None:
    """A content that was converted after it was signed verifies again, with each signature once; what others signed stays."""
    converted = signer.sign(LETTER, NOW).replace(b"Gr", b"=47r").replace(b"\r\n\r\n", b"\r\n\r\nconverted\r\n", 1)
    assert verified(converted, keys.records) == [False, False]
    anew = signer.sign_anew(converted, NOW + 60)
    assert verified(anew, keys.records) == [True, True]
    assert anew.count(b"DKIM-Signature:") == 2
    foreign = signer.sign(LETTER, NOW).replace(b"d=example.net", b"d=elsewhere.test")
    assert signer.sign_anew(foreign, NOW) == foreign
    assert signer.sign_anew(LETTER, NOW) == LETTER


def test_in_pieces(signer: Signer) -> None:
    """The body may come in pieces of any size, and the fields without the trace field that is added later."""
    whole = signer.sign(LETTER, NOW)[: -len(LETTER)]
    end = header_end(LETTER)
    fields = [field for field in split_fields(LETTER[:end]) if field.name != b"received"]
    for size in (1, 2, 7, 1000):
        signing = signer.begin(fields, author_domain(fields))
        assert signing is not None
        assert signing.names == ("s1._domainkey.example.net", "ed._domainkey.example.net")
        for at in range(end + 2, len(LETTER), size):
            signing.update(LETTER[at : at + size])
        assert signing.finish(NOW) == whole


def test_a_fault_while_signing(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted; a client's message hears of it, a notice of ours goes unsigned."""
    counted: list[SigningResult] = []
    signer = Signer(counted.append)
    signer.load([DKIMKeyFile("example.net", "s1", keys.add("broken._domainkey.example.com").key_file)])

    def fail(*_: object) -> bytes:
        raise RuntimeError("no")

    monkeypatch.setattr("relaycluster.node.signing.signature_field", fail)
    fields = split_fields(LETTER[: header_end(LETTER)])
    signing = signer.begin(fields, "example.net")
    assert signing is not None
    with pytest.raises(RuntimeError):
        signing.finish(NOW)
    assert signer.sign(LETTER, NOW) == LETTER
    assert counted == ["failed", "failed"]


# --- Files ------------------------------------------------------------------------------------------------------------


# Of 1016 bits: neither OpenSSL nor cryptography makes one everywhere.
SHORT = b"""\
-----BEGIN RSA PRIVATE KEY-----
MIICWAIBAAKBgADDN2mspByxzMDeJKYzkx75NruwL0rQUIUT8OWInz1x/aqYu4xr
vvwXG8TeIao7/l8CPHeEqyfHfr6+imTVNYs4MeMkJBN/bg1Wj091HEb07QRhpoBH
kVDfsZrFr+5SNyEPPrFPDww1PeDSvdOjfOvFpx+H58i72dgiF4cJGa3FAgMBAAEC
gYAAlpqpbAcwG/ta0AZ2MlPOEXWoVsQlc5CrGjc+3af8P3Tzp+EI9BbjZPCHcNeH
/cDAi3kau79PcRjXDyi1occtCwPpAFjYYlkXYNolboBm3cbXjy/yXIIYcdADFVuk
T7Y79kg5WBtwXD7Q5TKLPoqjmZ+8LAKQVGS54RIeZ+6wAQJAD2moutMDDdfQSuDu
CXoKLmZ5Spn3Ksl2jkEfkwXHhfTU2T51N2LQTAM7DpnK8nvPKvXhY8h3hXeIPfj6
AfnyWQJADKp551zty2wkxcJwm2bT9E8vRayb2CPwai+6MtVIR5Z946u9jIzCHDCy
i70Qi029Jldez40wXfk/VczkjTbxTQJAB4WorK1pcysd5D2MzyE5sNWgYrFr+Pzk
GJ9d+pI6g30vGGusJ4DZag+1lfWnH9sfC7d+7gUbmA7zdlN6KNbE2QJAAaMbZKtf
VTbiPemXEo8lAGQn0RKxhiuHDMKkh6OH1zD9jqsJMhyTjn9A5M0IUWk39LfAWoV+
Zfcsl5OHSzV51QJACqrYcfw6miHdIOQVYVSNq8NdabtCK0q46+xkBb+6NPHwGL3s
Zs5MDJJyLjasqtG5+lTwUYysanPc4aW1T25c7g==
-----END RSA PRIVATE KEY-----
"""


def read(tmp_path: Path, data: bytes) -> str:
    """What is said of a file with this in it; empty when it is fine."""
    file = tmp_path / "key.pem"
    file.write_bytes(data)
    try:
        read_key(str(file))
    except FileTrouble as trouble:
        return str(trouble).removeprefix(f"{file}:").lstrip()
    return ""


def mixed() -> bytes:
    """A key whose private exponents belong to another one: well-formed, but wrong."""
    keys = [rsa.generate_private_key(65537, 1024).private_numbers() for _ in range(2)]
    other, one = sorted(keys, key=lambda key: key.public_numbers.n)  # an exponent is below its modulus
    numbers = rsa.RSAPrivateNumbers(
        one.p, one.q, other.d, other.dmp1, other.dmq1, one.iqmp, rsa.RSAPublicNumbers(65537, one.p * one.q)
    )
    key = numbers.private_key(unsafe_skip_rsa_key_validation=True)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_kinds_of_key_files(tmp_path: Path) -> None:
    """PKCS #8, PKCS #1, and the bare seed of dkimpy's dknewkey, with other lines around them."""
    pem, edwards = new_key("rsa"), new_key("ed25519")
    old = load_pem_private_key(pem, None).private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    seed = load_pem_private_key(edwards, None).private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    assert [read(tmp_path, data) for data in (pem, edwards, old, b"# mine\n\n" + pem, pem.replace(b"\n", b"\r\n"))] == [
        ""
    ] * 5
    assert read(tmp_path, b64encode(seed) + b"\n") == ""
    assert read_key(str(tmp_path / "key.pem")).public.type == "ed25519"


def test_wrong_key_files(tmp_path: Path) -> None:
    """Each says what is wrong, and with which fix."""
    good = new_key("rsa")
    key = load_pem_private_key(good, None)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    curve = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    lines = good.splitlines(keepends=True)
    said = {
        "empty": (b"", "holds no private key: there is no line -----BEGIN PRIVATE KEY-----"),
        "text": (b"hello\n", "holds no private key: there is no line -----BEGIN PRIVATE KEY-----"),
        "public": (b"\n" + public, "2: holds a public key; the private key is needed"),
        "locked": (
            locked,
            "has a passphrase, which a node can not ask for; write it without one: openssl pkey -in OLD -out NEW",
        ),
        "curve": (curve, "holds a key of the kind EC; DKIM knows RSA and Ed25519"),
        "cut": (b"".join(lines[:9]), "the private key is damaged, or of an unknown kind"),
        "bad line": (
            b"".join([*lines[:4], b"!!!\n", *lines[5:]]),
            "5: the private key is damaged, or of an unknown kind",
        ),
        "other primes": (mixed(), "the private key is damaged: its signatures do not verify"),
        "large": (b"#" * 70_000 + good, "is too large for a key"),
    }
    for data, reason in said.values():
        assert read(tmp_path, data) == reason
    with pytest.raises(FileTrouble, match="can not be read: No such file or directory"):
        read_key(str(tmp_path / "none.pem"))
    with pytest.raises(FileTrouble, match="can not be read: Is a directory"):
        read_key(str(tmp_path))


def test_short_keys(tmp_path: Path) -> None:
    """RSA below 1024 bits is refused (RFC 8301 3.2); 1024 still signs."""
    assert "an RSA key of 1016 bits signs for nobody" in read(tmp_path, SHORT)
    assert read(tmp_path, new_key("rsa", 1024)) == ""


def test_reload(tmp_path: Path) -> None:
    """New keys sign from then on; signatures that have begun end with the old ones; a wrong file leaves everything as it was."""
    keys = Keys(tmp_path)
    first = keys.add("s1._domainkey.example.net")
    signer = Signer()
    signer.load([first])
    fields = split_fields(LETTER[: header_end(LETTER)])
    signing = signer.begin(fields, "example.net")
    assert signing is not None
    second = keys.add("s2._domainkey.example.net", "ed25519")
    signer.load([first, second])
    assert [key.selector for key in signer.keys_for("example.net")] == ["s1", "s2"]
    assert signing.names == ("s1._domainkey.example.net",)
    signing.update(LETTER[header_end(LETTER) + 2 :])
    assert verified(signing.finish(NOW) + LETTER, keys.records) == [True]

    broken = DKIMKeyFile("example.net", "s3", str(tmp_path / "missing"))
    for wrong in ([first, broken], [first, DKIMKeyFile("example.net", "s1", second.key_file)]):
        with pytest.raises(FileTrouble):
            signer.load(wrong)
        assert [key.selector for key in signer.keys_for("example.net")] == ["s1", "s2"]
    signer.load([])
    assert signer.keys_for("example.net") == ()


# --- Cost -------------------------------------------------------------------------------------------------------------


def test_the_cost_of_a_signature(tmp_path: Path) -> None:
    """Signing 5 KiB, header and body, costs at most twice the bare RSA-2048 signature of the same library in the same run: medians
    of batches that take turns, so that whatever else the machine does touches both alike."""
    entry = Keys(tmp_path).add("s1._domainkey.example.net")
    signer = Signer()
    signer.load([entry])
    bare = read_key(entry.key_file).sign
    line = b"Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor.\r\n"
    message = (LETTER + line * 100)[: 5 * 1024]
    text = b"x" * 1000  # what is signed of this message is about as long

    def ours() -> None:
        signer.sign(message, NOW)

    def theirs() -> None:
        bare(text)

    def batch(work: object) -> float:
        assert callable(work)
        start = time.thread_time()
        for _ in range(10):
            work()
        return time.thread_time() - start

    batch(ours), batch(theirs)  # what is made once
    both = [(batch(ours), batch(theirs)) for _ in range(25)]
    ratio = statistics.median(one for one, _ in both) / statistics.median(other for _, other in both)
    assert ratio <= 2, f"{ratio:.2f} times the bare signature"
