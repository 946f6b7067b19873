"""`relaycluster user`: what it writes, what it says, and that nothing is changed when it says no."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from click.testing import CliRunner, Result

from relaycluster.cli.main import main
from relaycluster.node import users_file


def run(*arguments: str, password: bytes | None = None, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["user", *arguments], input=password, env=env)


def add(path: object, name: str, *options: str, password: bytes = b"secret\n") -> Result:
    return run("add", "--users-file", str(path), "--password-stdin", *options, name, password=password)


def test_add(tmp_path: Path) -> None:
    """The file is made for its owner alone; the hash is Argon2id of the password, which stands nowhere; exit 0."""
    path = tmp_path / "users"
    result = add(path, "alice")
    assert (result.exit_code, result.stdout) == (0, f"added alice in {path}\n")
    assert "chown" in result.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert text.startswith("alice:$argon2id$v=19$")
    assert "secret" not in text + result.output
    stored = users_file.read(str(path))["alice"].password
    assert stored.verify(b"secret")
    assert not stored.verify(b"secret\n")
    assert add(path, "bob").stderr == ""


def test_add_with_everything(tmp_path: Path) -> None:
    """Each option stands in the line as it is read again, and `list` shows it."""
    path = tmp_path / "users"
    options = ("--sender", "Boss@Example.com", "--sender", "@Exämple.org", "--messages", "100/h", "--class", "bulk")
    assert add(path, "büro", *options, "--recipients", "1000/d,burst=50").exit_code == 0
    words = path.read_text(encoding="utf-8").rstrip("\n").split(":")[2]
    assert words == (
        "sender=boss@example.com sender=@xn--exmple-cua.org messages=100/h recipients=1000/d,burst=50 class=bulk"
    )
    shown = json.loads(run("list", "--json", "--users-file", str(path)).stdout)
    assert shown["users"] == [
        {
            "name": "büro",
            "password": "argon2id",
            "senders": ["boss@example.com", "@xn--exmple-cua.org"],
            "messages": "100/h",
            "recipients": "1000/d,burst=50",
            "class": "bulk",
        }
    ]
    table = run("list", "--users-file", str(path)).stdout.splitlines()
    assert table[0].split() == ["name", "password", "senders", "messages", "recipients", "class"]
    assert table[1].split()[:2] == ["büro", "argon2id"]


def test_replace(tmp_path: Path) -> None:
    """Only with --replace; what is not given stays; the password too with --keep-password."""
    path = tmp_path / "users"
    add(path, "alice", "--messages", "5/h", "--sender", "@example.com")
    before = path.read_text()
    result = add(path, "Alice", password=b"other\n")
    assert result.exit_code == 2
    assert "alice is there already; --replace" in result.stderr
    assert path.read_text() == before
    assert (
        add(path, "ALICE", "--replace", "--class", "urgent", password=b"other\n").stdout == f"changed ALICE in {path}\n"
    )
    user = users_file.read(str(path))["alice"]
    assert user.password.verify(b"other")
    assert (user.account.name, str(user.account.messages)) == ("alice", "5/h,burst=5")
    run("add", "--users-file", str(path), "--replace", "--keep-password", "--any-sender", "alice")
    user = users_file.read(str(path))["alice"]
    assert user.password.verify(b"other")
    assert user.account.senders == ()
    assert user.account.message_class is not None
    assert "there is no user bob to replace" in add(path, "bob", "--replace").stderr


def test_a_shut_user_stays_shut(tmp_path: Path) -> None:
    """A new password does not open what somebody shut by hand."""
    path = tmp_path / "users"
    add(path, "alice")
    path.write_text(path.read_text().replace(":$", ":!$"))
    add(path, "alice", "--replace", password=b"new\n")
    assert users_file.read(str(path))["alice"].shut
    assert "argon2id, shut" in run("list", "--users-file", str(path)).stdout


def test_passwords_that_are_none(tmp_path: Path) -> None:
    """Empty, several lines, a NUL, not UTF-8, too long: exit 2, one line, no file."""
    path = tmp_path / "users"
    for password, reason in (
        (b"", "empty"),
        (b"\n", "empty"),
        (b"a\nb\n", "several lines"),
        (b"a\0b\n", "NUL"),
        (b"p\xe4ss\n", "not UTF-8"),
        (b"x" * 1025 + b"\n", "longer than 1024"),
        (b"x" * 10_000, "longer than 1024"),
    ):
        result = add(path, "alice", password=password)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), password[:20]
        assert reason in result.stderr
    assert not path.exists()
    assert add(path, "alice", password=b" pass word \r\n").exit_code == 0
    assert users_file.read(str(path))["alice"].password.verify(b" pass word ")


def test_options_that_are_wrong(tmp_path: Path) -> None:
    """A usage error that says what is wrong and how to write it; no file."""
    path = tmp_path / "users"
    for options, reason in (
        (("--sender", "alice"), "'alice' is not a sender"),
        (("--messages", "lots"), "'lots' is not a rate"),
        (("--class", "slow"), "'slow' is not a class"),
        (("--keep-password",), "--keep-password goes with --replace"),
        (("--any-sender", "--sender", "@example.com"), "contradict"),
    ):
        result = add(path, "alice", *options)
        assert result.exit_code == 2
        assert reason in result.stderr
    assert "is not a name" in add(path, "a b").stderr
    assert not path.exists()


def test_without_a_terminal(tmp_path: Path) -> None:
    """Nothing waits for ever for somebody to type."""
    result = run("add", "--users-file", str(tmp_path / "users"), "alice")
    assert result.exit_code == 2
    assert "--password-stdin" in result.stderr


def test_remove(tmp_path: Path) -> None:
    """The user goes, others and comments stay; a second time is an error."""
    path = tmp_path / "users"
    add(path, "alice")
    add(path, "bob")
    path.write_text("# ours\n" + path.read_text())
    result = run("remove", "--users-file", str(path), "--json", "ALICE")
    assert json.loads(result.stdout) == {"ok": True, "file": str(path), "user": "ALICE", "done": "removed"}
    assert [line.split(":")[0] for line in path.read_text().splitlines()] == ["# ours", "bob"]
    result = run("remove", "--users-file", str(path), "alice")
    assert (result.exit_code, result.stderr) == (2, f"{path}: there is no user alice\n")


def test_a_faulty_file(tmp_path: Path) -> None:
    """Each verb names file and line, and changes nothing."""
    path = tmp_path / "users"
    path.write_text("alice:x\n")
    for result in (
        add(path, "bob"),
        run("list", "--users-file", str(path)),
        run("remove", "--users-file", str(path), "alice"),
    ):
        assert result.exit_code == 2
        assert result.stderr.startswith(f"{path}:1: this is no Argon2id")
    assert path.read_text() == "alice:x\n"


def test_a_file_that_everybody_reads(tmp_path: Path) -> None:
    """`list` warns on stderr, and still lists."""
    path = tmp_path / "users"
    add(path, "alice")
    os.chmod(path, 0o644)
    result = run("list", "--users-file", str(path))
    assert result.exit_code == 0
    assert f"chmod o-r {path}" in result.stderr


def test_the_file_of_the_configuration(tmp_path: Path) -> None:
    """Without --users-file the configuration tells which; the first user can be added while its file is not there yet, and without
    any there is an error with the fix."""
    file = tmp_path / "relay.toml"
    file.write_text('[access]\nusers_file = "users"\n')
    result = run("add", "--config", str(file), "--password-stdin", "alice", password=b"secret")
    assert result.exit_code == 0, result.stderr
    assert set(users_file.read(str(tmp_path / "users"))) == {"alice"}
    assert "alice" in run("list", "--config", str(file)).stdout
    env = {"RELAYCLUSTER_ACCESS__USERS_FILE": str(tmp_path / "others")}
    assert run("add", "--password-stdin", "bob", password=b"secret", env=env).exit_code == 0
    assert "bob" in run("list", env=env).stdout
    result = run("list")
    assert result.exit_code == 2
    assert "access.users_file is not set" in result.stderr
    assert "cannot be read" in run("list", "--config", str(tmp_path / "nowhere")).stderr
    file.write_text('[access]\nusers_file = "users"\n[node]\nidd = "x"\n')
    assert "node.idd" in run("list", "--config", str(file)).stderr
