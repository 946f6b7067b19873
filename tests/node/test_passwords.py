"""Password hashes: those that other programs made are checked, weak and broken ones are refused when they are read."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaycluster.node.passwords import SALT_OCTETS, PasswordHash, trouble

PASSWORD = "pässwörd".encode()

# Each made by the program that stands beside it.
MADE_BY_OTHERS = [
    ("argon2 -id", "$argon2id$v=19$m=1024,t=2,p=1$c29tZXNhbHQ$colKYdFTT2mh+QFSDr7gkppXLaxsr1Ygkp6bhr3rURw"),
    ("argon2 -id -p 4", "$argon2id$v=19$m=4096,t=3,p=4$c29tZXNhbHQ$DyamgRNlzLufhJVq86GphhOHew5HJXvZBn2jMmrkAK0"),
    ("htpasswd -B", "$2y$05$DFyF0QYbJUipjR6CvCnElubsGDBMEdNf/6T3LzjEruKLZeuFnz9lS"),
    ("mkpasswd -m bcrypt", "$2b$05$.nAsDjpgrnWjdVnKxyYVW.pkeUJ75COnQyswdW5JUX0ia6kyMqHTK"),
    ("mkpasswd -m bcrypt-a", "$2a$05$KhxHLFMLP8OIZzE0d4k4Gus0qOaP.PUazw6B.84lGj6pXPd2AufbO"),
    ("doveadm pw -s BLF-CRYPT", "{BLF-CRYPT}$2y$05$CXZhP.oI6.Kdc2K/eaK9fe5W7DVBph/CIJaaYeQADDSeHxHQ871Ay"),
    (
        "doveadm pw -s ARGON2ID",
        "{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$ID6wfABkdW5j6xk8q970Ug$9GlOSwj9QZ0aJNg3qC7zaFSM7TVE7I2JHcKefjLxsaA",
    ),
    (
        "doveadm pw -s SHA512-CRYPT",
        "{SHA512-CRYPT}$6$7/qbcNlhX5YxGwgJ$d3YzpOltWxe./r8RsHl0XovhgbjeQc3ms.xtyEuM.ec9UYwmOtwVmzxtL57a9B3fI3w3D5GAkOTfQ9/MhwMsY0",
    ),
    (
        "htpasswd -5",
        "$6$rounds=1000$xrp1sYZ3kaS/gWd.$49uhUdm74MjlH5KODYGMJA413z7ayZjwu8tcLzdL5KqL2vs1rqF4v6sMTNvkpQg13Z9Rn0xdNGnWIeGaMIgw60",
    ),
    (
        "mkpasswd -m sha512crypt -R 10000",
        "{crypt}$6$rounds=10000$YmzGb.eiSefHy9kO$kAZSgjak9vrrKlt3h0jKvyOi0vBcg5MUkSNN.O31GLKIAVROxaWcaAPrmlkqq8toHUyzr0HZj4ak33DSR0KU.1",
    ),
    (
        "openssl passwd -6",
        "$6$abcdefgh$qlUjQo8xiC5dmwOr49rtm.DQdv9onQYoWr0dgDR2SqMkw1296.hIZnRd/ltg71cpfDQGxCw0Bli1kXypCoIxg0",
    ),
]
SHA512 = MADE_BY_OTHERS[-1][1]
ARGON2 = MADE_BY_OTHERS[0][1]
BCRYPT = MADE_BY_OTHERS[2][1]


@pytest.mark.parametrize("made", [made for _, made in MADE_BY_OTHERS], ids=[by for by, _ in MADE_BY_OTHERS])
def test_hashes_of_other_programs(made: str) -> None:
    """The right password fits, one that differs in the last octet, in case or in length does not."""
    stored = PasswordHash.read(made)
    assert stored.verify(PASSWORD)
    for wrong in (
        PASSWORD[:-1] + b"e",
        PASSWORD.upper(),
        PASSWORD + b"x",
        PASSWORD[:-1],
        "pa\u0308sswo\u0308rd".encode(),
    ):
        assert not stored.verify(wrong)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")
@pytest.mark.parametrize("password", ["x", "correct horse battery staple", "pässwörd", "y" * 200])
def test_openssl_of_this_machine(password: str) -> None:
    """What `openssl passwd -6` makes here and now fits."""
    made = subprocess.run(["openssl", "passwd", "-6", password], capture_output=True, text=True, check=True).stdout
    stored = PasswordHash.read(made.strip())
    assert stored.verify(password.encode())
    assert not stored.verify(password.encode() + b" ")


def test_bcrypt_looks_at_72_octets() -> None:
    """A longer password fits its hash, as in the program that made it (`htpasswd -B`), which cut it there."""
    stored = PasswordHash.read("$2y$05$sT7MN0iRLiO5wIvGE3H/TeVvZkgTgEbqRKmea4QLEXIGWyCDXST8.")
    assert stored.verify(b"a" * 80)
    assert not stored.verify(b"a" * 71)


@settings(max_examples=5, deadline=None)
@given(st.binary(min_size=1, max_size=100), st.binary(min_size=SALT_OCTETS, max_size=SALT_OCTETS))
def test_what_is_made_is_read_back(password: bytes, salt: bytes) -> None:
    """A new hash fits its password and no other, can be read, and differs with the salt."""
    made = PasswordHash.make(password, salt)
    assert PasswordHash.read(made.text) == made
    assert made.verify(password)
    assert not made.verify(password + b"x")


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("", "no Argon2id, bcrypt or SHA512-CRYPT hash"),
        ("secret", "no Argon2id"),
        ("$1$abc$xyz", "no Argon2id"),
        ("$apr1$8iS1swQd$zBG.EAQgBM03I/DNHVLPK0", "no Argon2id"),
        ("$5$abc$xyz", "no Argon2id"),
        ("{PLAIN}secret", "kind {PLAIN} are not accepted"),
        ("{SSHA}abc", "kind {SSHA} are not accepted"),
        ("{SHA512-CRYPT}" + BCRYPT, "is no such hash"),
        ("{ARGON2ID}", "is no such hash"),
        (SHA512[:-1], "SHA512-CRYPT hash that is not whole"),
        (SHA512.replace("$6$", "$6$rounds=0100$"), "not whole"),
        (SHA512.replace("$6$", "$6$rounds=999$"), "rounds of 999, where 1000 to 500000"),
        (SHA512.replace("$6$", "$6$rounds=999999999$"), "rounds of 999999999"),
        (BCRYPT[:-1], "bcrypt hash that is not whole"),
        (BCRYPT.replace("$05$", "$31$"), "bcrypt cost of 31, where 4 to 14"),
        ("$2y$05$" + "9" * 53, "bcrypt hash that is not whole"),
        (ARGON2.replace("v=19", "v=16"), "not whole, or not of version 19"),
        (ARGON2.replace("argon2id", "argon2i"), "no Argon2id"),
        (ARGON2.replace("m=1024", "m=4194304"), "memory in KiB of 4194304"),
        (ARGON2.replace("m=1024", "m=7"), "memory in KiB of 7"),
        (ARGON2.replace("t=2", "t=100000"), "passes of 100000"),
        (ARGON2.replace("p=1", "p=64"), "lanes of 64"),
        (ARGON2.replace("c29tZXNhbHQ", "c29tZXNhbHR"), "salt or hash is not whole"),
        (ARGON2.replace("c29tZXNhbHQ", "c29t"), "salt or hash is not whole"),
        (ARGON2[:-30], "salt or hash is not whole"),
    ],
)
def test_weak_and_broken_hashes(written: str, reason: str) -> None:
    """Each is refused when it is read, with what is wrong and the fix, and without the hash in the text."""
    with pytest.raises(ValueError, match="relaycluster user add --replace") as caught:
        PasswordHash.read(written)
    assert reason in str(caught.value)
    assert len(written) < 20 or written[-12:] not in str(caught.value)


def test_what_is_no_password() -> None:
    """Empty, with a NUL, or endless; and nothing else."""
    assert trouble(b"")
    assert "NUL" in trouble(b"a\0b")
    assert trouble(b"x" * 1025)
    assert not trouble(b"x" * 1024)
    assert not trouble(" \t\n'\"\\%$é".encode())


def test_a_hash_does_not_show() -> None:
    """Neither in a `repr` nor in what holds it."""
    assert ARGON2 not in repr([PasswordHash.read(ARGON2)])
