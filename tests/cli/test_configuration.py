"""`relaycluster check-config` and `config-schema`: what they print, where, and with which exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from relaycluster import __version__
from relaycluster.cli.main import VERBS, main


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env={"RELAYCLUSTER_NODE__HOSTNAME": "relay.example.net"})


def write(directory: Path, text: str) -> str:
    file = directory / "relay.toml"
    file.write_text(text)
    return str(file)


def test_a_right_file(tmp_path: Path) -> None:
    """Exit 0, one line that says what would start, nothing on stderr."""
    path = write(tmp_path, '[node]\nid = "a"\nroles = ["edge"]')
    result = run("check-config", "--config", path)
    assert result.exit_code == 0
    assert result.stdout == f"ok {path}: node a (edge); listeners: 127.0.0.1:2525; embedded Redis\n"
    assert result.stderr == ""


def test_a_wrong_file(tmp_path: Path) -> None:
    """Exit 2, every fault on stderr, nothing on stdout."""
    path = write(tmp_path, '[node]\nidd = "a"\n[redis]\npartitions = 3')
    result = run("check-config", "--config", path)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f'{path}: node.idd: unknown key; did you mean "id"? (line 2)',
        f"{path}: redis.partitions: 3 is not a power of two; write 2 or 4 (line 4)",
    ]


def test_the_files_that_it_names_are_read(tmp_path: Path) -> None:
    """A wrong certificate, key, users or aliases file is told before a node is started with it: file, line, reason. Exit 2."""
    for name, text in (("chain", "x"), ("users", "alice\n"), ("aliases", "a: b@c.test\n?\n"), ("key", "x")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    path = write(
        tmp_path,
        '[tls]\ncertificate = "chain"\nkey = "key"\n[access]\nusers_file = "users"\naliases_file = "aliases"\n'
        '[[listener]]\naddress = "127.0.0.1:587"\ntls = "starttls"\n'
        '[[dkim]]\ndomain = "a.test"\nselector = "s"\nkey_file = "key"',
    )
    result = run("check-config", "--config", path)
    assert (result.exit_code, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        str(tmp_path / "chain"),
        str(tmp_path / "key"),
        f"{tmp_path / 'users'}:1",
        f"{tmp_path / 'aliases'}:2",
    ]


def test_warnings_are_no_faults(tmp_path: Path) -> None:
    """Exit 0, the warning on stderr."""
    path = write(tmp_path, "[node]\nworkers = 2")
    result = run("check-config", "--config", path)
    assert result.exit_code == 0
    assert result.stderr == f"{path}: warning: node.workers: this release runs one process\n"


def test_json(tmp_path: Path) -> None:
    """The same as one object on stdout, for programs."""
    path = write(tmp_path, "[node]\nworkers = 2")
    result = run("check-config", "--json", "--config", path)
    expected = {"ok": True, "file": path, "errors": [], "warnings": ["node.workers: this release runs one process"]}
    assert json.loads(result.stdout) == expected
    path = write(tmp_path, "[nodes]")
    result = run("check-config", "--json", "--config", path)
    assert result.exit_code == 2
    report = json.loads(result.stdout)
    assert (report["ok"], len(report["errors"])) == (False, 1)


def test_without_a_file() -> None:
    """The defaults and the environment."""
    result = run("check-config")
    assert result.exit_code == 0
    assert result.stdout.startswith("ok defaults: node ")


def test_a_missing_file() -> None:
    """One line, exit 2."""
    result = run("check-config", "--config", "/nowhere/x")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("/nowhere/x: cannot be read")


def test_the_schema() -> None:
    """It is JSON Schema, and has every section."""
    schema = json.loads(run("config-schema").stdout)
    assert {"node", "redis", "listener", "delivery", "destination"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_is_there(verb: str) -> None:
    """Each name leads to a command with a help text, and stands in the list."""
    assert run(verb, "--help").exit_code == 0
    assert verb in run("--help").stdout


def test_an_unknown_verb() -> None:
    """A usage error, as click words it."""
    result = run("fly")
    assert result.exit_code == 2
    assert "No such command 'fly'" in result.stderr


def test_as_a_program() -> None:
    """`python -m relaycluster.cli` is the command, and the list of verbs imports neither Twisted nor pydantic."""
    said = subprocess.run(
        [sys.executable, "-m", "relaycluster.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"relaycluster, version {__version__}\n"
    code = "import sys, relaycluster.cli.main; print([m for m in ('twisted', 'pydantic', 'rich') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"
