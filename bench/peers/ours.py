"""relaycluster as its users start it: `twistd -n relaycluster --config FILE`, embedded Redis, `durability = "fsync"`.

All options that the file leaves out have their defaults. Any of them can be changed for one benchmark through the
environment (`RELAYCLUSTER_NODE__WORKERS=2 make bench`); what was set is kept in the results.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.errors import BenchError
from bench.peers import Mode, Site

CONFIGURATION = """\
[node]
id = "bench"
hostname = "relay.bench.test"
roles = [{roles}]
state_dir = "{state}"
drain_deadline = "2s"

[redis]
url = "embedded"
durability = "fsync"

[[listener]]
address = "{host}:{port}"
mode = "submission"
tls = "{tls}"
"""

OPEN = """
[access]
networks = ["127.0.0.0/8"]
"""

SECURED = """
require_tls = true

[tls]
certificate = "{certificate}"
key = "{key}"

[access]
networks = ["192.0.2.0/24"]
users_file = "{users}"
"""

REST = """
[limits]
connections_per_client = 2000

[http]
listen = "{host}:{http_port}"
"""

DESTINATION = """
[[destination]]
match = ["d{n}.test"]
hosts = ["{prefix}{n}:{port}"]
"""


class Relaycluster:
    """One node with both roles (or the edge alone), one process, one embedded Redis."""

    name = "relaycluster"
    embeds_redis = True
    patience_seconds = 8.0

    def __init__(self, profile: Path | None = None) -> None:
        self._profile = profile
        if profile is not None:
            self.patience_seconds = 60.0  # a profile is written after the reactor has stopped

    def assert_usable(self, work: Path) -> None:
        if not self._twistd.exists():
            raise BenchError(f"{self._twistd} is missing: run the benchmark with the Python of the project's .venv")

    @property
    def _twistd(self) -> Path:
        return Path(sys.executable).with_name("twistd")

    def prepare(self, directory: Path, mode: Mode, site: Site) -> list[str]:
        path = directory / "relaycluster.toml"
        path.write_text(configuration(directory / "state", mode, site))
        if mode == "secured":
            self._add_user(users_file(directory / "state"), site)
        (directory / "state").mkdir()
        command = [str(self._twistd), "-n", "--pidfile="]
        if self._profile is not None:
            command += ["--profiler=cprofile", f"--profile={self._profile}", "--savestats"]
        return [*command, "relaycluster", "--config", str(path)]

    def _add_user(self, users: Path, site: Site) -> None:
        assert site.credentials is not None
        command: list[str | Path] = [
            Path(sys.executable).with_name("relaycluster"),
            "user",
            "add",
            "--users-file",
            users,
        ]
        command += ["--password-stdin", site.credentials.user]
        done = subprocess.run(
            command, input=site.credentials.password + "\n", capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchError(f"relaycluster user add: {done.stderr.strip()}")

    def password_check(self) -> str:
        return "Argon2id, and a short memory of the passwords that were right (keyed hashes)"

    def part(self, process_name: str) -> str:
        return "redis" if process_name.startswith("redis") else "python"


def configuration(state: Path, mode: Mode, site: Site) -> str:
    """The TOML file of a node for one suite."""
    tls = "starttls" if mode == "secured" else "none"
    text = CONFIGURATION.format(
        roles='"edge", "delivery"' if mode == "relay" else '"edge"',
        state=state,
        host=site.host,
        port=site.port,
        tls=tls,
    )
    if mode == "secured":
        assert site.credentials is not None
        text += SECURED.format(
            certificate=site.credentials.certificate, key=site.credentials.key, users=users_file(state)
        )
    else:
        text += OPEN
    text += REST.format(host=site.host, http_port=site.http_port)
    for n in range(1, site.domains + 1):
        text += DESTINATION.format(n=n, prefix=site.sink_prefix, port=site.sink_port)
    return text


def users_file(state: Path) -> Path:
    """Where the users of mode "secured" are."""
    return state.parent / "users"
