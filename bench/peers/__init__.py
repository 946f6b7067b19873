"""The servers that are measured: how each is configured and started, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Mode = Literal["accept", "relay", "secured"]


@dataclass(frozen=True)
class Credentials:
    """The certificate that a peer shows (PEM files), and the one user who may send."""

    certificate: Path
    key: Path
    user: str
    password: str


@dataclass(frozen=True)
class Site:
    """Where a peer listens, and where the mail for dN.test goes: `sink_prefix` + N, port `sink_port`."""

    host: str
    port: int
    http_port: int
    sink_prefix: str
    sink_port: int
    domains: int
    credentials: Credentials | None = None  # mode "secured" needs them


class Peer(Protocol):
    """One server under test."""

    name: str
    embeds_redis: bool  # there is a Redis socket to be found under its directory
    patience_seconds: float  # how long its first process may take to stop the others by itself

    def assert_usable(self, work: Path) -> None:
        """Raise BenchError with what is missing on this machine."""

    def prepare(self, directory: Path, mode: Mode, site: Site) -> list[str]:
        """Write a configuration that keeps all state under `directory`; return the command, to run in the foreground.

        In mode "accept" mail is queued durably and stays; in mode "relay" it is sent on to the sink. "secured" is as "accept", but
        only for those who have said STARTTLS and AUTH.
        """

    def password_check(self) -> str:
        """How it looks at a password in mode "secured", and what it remembers of that: for the reader of the table."""

    def part(self, process_name: str) -> str:
        """Which part of the peer a process belongs to, for CPU by part."""


def peer_named(name: str) -> Peer:
    """The peer of that name; KeyError when there is none."""
    from bench.peers.ours import Relaycluster
    from bench.peers.postfix import Postfix

    known: dict[str, type[Peer]] = {"relaycluster": Relaycluster, "postfix": Postfix}
    return known[name]()
