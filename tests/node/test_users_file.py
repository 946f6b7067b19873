"""The users file: what a line means, what is wrong with it and where, and that an edit leaves everything else alone."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.interfaces import FileTrouble
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import MessageClass
from relaycluster.node import users_file
from relaycluster.node.passwords import PasswordHash
from relaycluster.node.users_file import User, key_of, name_trouble, parse_line, render
from relaycluster.policy.account import Account
from relaycluster.policy.rate import Rate

HASH = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$colKYdFTT2mh+QFSDr7gkppXLaxsr1Ygkp6bhr3rURw"
BCRYPT = "$2y$05$DFyF0QYbJUipjR6CvCnElubsGDBMEdNf/6T3LzjEruKLZeuFnz9lS"


def write(directory: Path, text: str) -> str:
    file = directory / "users"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_a_file(tmp_path: Path) -> None:
    """Comments and empty lines go for nothing; a line of htpasswd and one with everything are read; names are found in any case."""
    path = write(
        tmp_path,
        f"# who may send\n\nalice:{HASH}\r\n"
        f"  Büro@Example.com:{{BLF-CRYPT}}{BCRYPT}:sender=@Exämple.com sender=@.example.org sender=Boss@Example.net"
        " messages=100/h recipients=1000/d,burst=50 class=bulk\n#bob:x\ncarol:!" + HASH,
    )
    users = users_file.read(path)
    assert list(users) == ["alice", "büro@example.com", "carol"]
    assert users[key_of("ALICE")] == User(Account("alice"), PasswordHash("argon2id", HASH))
    assert users[key_of("Bu\u0308ro@example.com")] == User(
        Account(
            "Büro@Example.com",
            ("@xn--exmple-cua.com", "@.example.org", "boss@example.net"),
            Rate(100, 3600, 100),
            Rate(1000, 86_400, 50),
            MessageClass.BULK,
        ),
        PasswordHash("bcrypt", BCRYPT),
    )
    assert users["carol"].shut


def test_senders_mean_what_the_account_compares(tmp_path: Path) -> None:
    """A sender as the file writes it allows the address as SMTP carries it."""
    account = parse_line(f"a:{HASH}:sender=@Exämple.com sender=Boss@Example.net sender=@.sub.example").account
    assert account.may_send_as(Address("x@exämple.com", "xn--exmple-cua.com"))
    assert account.may_send_as(Address("bOSS@example.NET", "example.net"))
    assert account.may_send_as(Address("x@a.b.sub.example", "a.b.sub.example"))
    assert not account.may_send_as(Address("x@sub.example", "sub.example"))
    assert not account.may_send_as(Address("notboss@example.net", "example.net"))
    assert not account.may_send_as(Address("x@evilsub.example", "evilsub.example"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("alice", "there is no colon"),
        (f":{HASH}", "the name is empty"),
        (f"a b:{HASH}", "is not a name"),
        (f"a\x07b:{HASH}", "'a\\x07b' is not a name"),
        ("x" * 255 + f":{HASH}", "longer than 254 octets"),
        ("alice:secret", "no Argon2id, bcrypt or SHA512-CRYPT hash"),
        ("alice:", "no Argon2id"),
        ("alice:!", "no Argon2id"),
        ("alice:{SHA512-CRYPT}$6$abc:1000:1000::/home/alice", "not whole"),
        (f"alice:{HASH}:1000:1000::/home/alice", "'1000:1000::/home/alice' is no option"),
        (f"alice:{HASH}:quota=5", "'quota=5' is no option"),
        (f"alice:{HASH}:sender=alice", "'alice' is not a sender"),
        (f"alice:{HASH}:sender=@", "is not a domain name"),
        (f"alice:{HASH}:sender=@*.example.com", "is not a domain name"),
        (f"alice:{HASH}:messages=many", "'many' is not a rate"),
        (f"alice:{HASH}:recipients=0/h", "a rate of nothing"),
        (f"alice:{HASH}:class=Bulk", "'Bulk' is not a class"),
        (f"alice:{HASH}:class=bulk class=bulk", "class stands there twice"),
        (f"ALICE:{HASH}\nalice:{HASH}", "alice is in line 3 already"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    """The trouble has file, line and reason, never the hash; nothing of the file is used."""
    path = write(tmp_path, f"# users\nbob:{HASH}\n{line}\n")
    with pytest.raises(FileTrouble) as caught:
        users_file.read(path)
    assert (caught.value.path, caught.value.line) == (path, 3 + line.count("\n"))
    assert reason in caught.value.reason
    assert HASH[-20:] not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, a directory, or not UTF-8: one line with the fix."""
    missing = str(tmp_path / "users")
    with pytest.raises(FileTrouble, match=r"users: cannot be read \(No such file.*relaycluster user add"):
        users_file.read(missing)
    with pytest.raises(FileTrouble, match=r"cannot be read \(Is a directory\)"):
        users_file.read(str(tmp_path))
    Path(missing).write_bytes(b"# fine\n" + b"b\xfcro:x\n")
    with pytest.raises(FileTrouble, match="users:2: is not UTF-8"):
        users_file.read(missing)
    Path(missing).write_bytes(b"")
    assert not users_file.read(missing)


rates = st.builds(
    Rate, st.integers(1, 10_000), st.sampled_from([1, 60, 3600, 7200, 86_400]), st.sampled_from([1, 2, 7, 100])
)
domains = st.sampled_from(["example.com", "xn--exmple-cua.com", "a.b.example"])
users = st.builds(
    User,
    st.builds(
        Account,
        st.text(max_size=20).filter(lambda name: not name_trouble(name)),
        st.lists(
            st.builds(lambda start, domain: f"{start}{domain}", st.sampled_from(["a@", "@", "@."]), domains),
            unique=True,
        ).map(tuple),
        st.none() | rates,
        st.none() | rates,
        st.none() | st.sampled_from(MessageClass),
    ),
    st.sampled_from([PasswordHash("argon2id", HASH), PasswordHash("bcrypt", BCRYPT)]),
    st.booleans(),
)


@given(users)
def test_what_is_written_is_read_back(user: User) -> None:
    """Every user that there can be survives the file."""
    assert parse_line(render(user)) == user


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_any_text_is_read_or_told(text: str) -> None:
    """A line is a user or a ValueError with one line of text, never anything else."""
    said = ""
    try:
        parse_line(text)
    except ValueError as error:
        said = str(error)
    assert "\n" not in said


def edit(path: str, name: str, user: User | None) -> None:
    def change(_users: Mapping[str, User]) -> Mapping[str, User | None]:
        return {key_of(name): user}

    users_file.edit(path, change)


def test_an_edit_leaves_the_rest(tmp_path: Path) -> None:
    """Comments, order, spelling and labels of others stay octet by octet; a changed user keeps the place, a new one comes last."""
    text = f"# first\nalice:{{ARGON2ID}}{HASH}\n\n  bob:{HASH}:class=bulk  messages=5/h\n# last\nCarol:{HASH}\n"
    path = write(tmp_path, text)
    edit(path, "ALICE", User(Account("alice"), PasswordHash("bcrypt", BCRYPT)))
    assert Path(path).read_text() == text.replace(f"{{ARGON2ID}}{HASH}", BCRYPT)
    edit(path, "dave", User(Account("dave"), PasswordHash("bcrypt", BCRYPT)))
    edit(path, "carol", None)
    expected = text.replace(f"{{ARGON2ID}}{HASH}", BCRYPT).replace(f"Carol:{HASH}\n", f"dave:{BCRYPT}\n")
    assert Path(path).read_text() == expected


def test_modes(tmp_path: Path) -> None:
    """A new file is its owner's alone, whatever the umask; an old one keeps its mode; nothing else is left in the directory; a link stays a link."""
    path = str(tmp_path / "users")
    old_mask = os.umask(0)
    try:
        edit(path, "alice", User(Account("alice"), PasswordHash("bcrypt", BCRYPT)))
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        os.chmod(path, 0o640)
        link = tmp_path / "link"
        link.symlink_to("users")
        edit(str(link), "bob", User(Account("bob"), PasswordHash("bcrypt", BCRYPT)))
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
    assert link.is_symlink()
    assert set(users_file.read(path)) == {"alice", "bob"}
    assert sorted(os.listdir(tmp_path)) == ["link", "users"]


def test_a_refused_edit_changes_nothing(tmp_path: Path) -> None:
    """A faulty file is not edited, a missing directory is told, and a change that gives up leaves file and directory as they were."""
    path = write(tmp_path, "nonsense\n")
    with pytest.raises(FileTrouble, match="users:1: "):
        edit(path, "alice", None)
    with pytest.raises(FileTrouble, match="its directory cannot be used"):
        edit(str(tmp_path / "nowhere" / "users"), "alice", None)

    def give_up(_users: Mapping[str, User]) -> Mapping[str, User | None]:
        raise KeyError("no")

    path = write(tmp_path, f"alice:{HASH}\n")
    with pytest.raises(KeyError):
        users_file.edit(path, give_up)
    assert os.listdir(tmp_path) == ["users"]
    assert set(users_file.read(path)) == {"alice"}


def test_edits_at_once_lose_nothing(tmp_path: Path) -> None:
    """Several who add at once come one after the other: everybody is there in the end."""
    path = str(tmp_path / "users")
    names = [f"user{number}" for number in range(24)]

    def add(some: list[str]) -> None:
        for name in some:
            edit(path, name, User(Account(name), PasswordHash("bcrypt", BCRYPT)))

    threads = [threading.Thread(target=add, args=(names[first::4],)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(users_file.read(path)) == set(names)
