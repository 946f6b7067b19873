"""An edge as it stands on the open internet: a certificate, users, and one listener for each way to reach it.

    edge = SecuredEdge(cluster)
    edge.add_user("ann", "a password")
    edge.start()
    edge.port("starttls")

No network may relay here, so that a message only gets through when AUTH was right (or the listener is the one that
says so). What a client needs to trust the edge is `edge.root`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from tests.net.certificates import Authority
from tests.support.nodes import COMMAND, Cluster, Node, Settings, merge
from tests.support.processes import free_port

HOSTNAME = "edge.relay.test"
USER = "ann@example.com"
PASSWORD = "correct horse \u00e9 battery=staple"

LISTENERS: Mapping[str, Settings] = {
    "starttls": {"mode": "submission", "tls": "starttls", "require_tls": True},
    "implicit": {"mode": "submission", "tls": "implicit"},
    "clear": {"mode": "submission", "tls": "starttls", "auth_without_tls": True},
    "mx": {"mode": "mx", "tls": "starttls"},
    "proxy": {"mode": "submission", "tls": "starttls", "proxy_protocol_from": ["127.0.0.1/32"]},
    "proxy-implicit": {"mode": "submission", "tls": "implicit", "proxy_protocol_from": ["127.0.0.1/32"]},
}


@frozen
class CertificateFiles:
    """A certificate with its key, and the root that signed it, as PEM files."""

    certificate: Path
    key: Path
    root: Path


def certificate_files(directory: Path, *names: str, authority: Authority | None = None) -> CertificateFiles:
    """A certificate for host names and IP addresses, of this authority or of one of its own."""
    authority = authority or Authority()
    issued = authority.issue(*names)
    stem = names[0].replace("*", "any")
    files = CertificateFiles(directory / f"{stem}.pem", directory / f"{stem}.key", directory / "root.pem")
    files.certificate.write_bytes(issued.certificate)
    files.key.touch(mode=0o600)
    files.key.write_bytes(issued.key)
    files.root.write_bytes(authority.certificate)
    return files


class SecuredEdge:
    """One node of a cluster with a certificate, a users file, and the named listeners."""

    def __init__(
        self,
        cluster: Cluster,
        listeners: Sequence[str] | Mapping[str, Settings] = tuple(LISTENERS),
        *,
        name: str = "edge",
        over: Settings | None = None,
    ) -> None:
        """`listeners` are names from `LISTENERS`, or names with settings of their own (all but the address)."""
        if not isinstance(listeners, Mapping):
            listeners = {listener: LISTENERS[listener] for listener in listeners}
        directory = cluster.processes.directory
        self.ports = {listener: free_port() for listener in listeners}
        self.files = certificate_files(directory, HOSTNAME, "localhost", "127.0.0.1")
        self.users_file = directory / "users"
        self.users_file.touch(mode=0o600)
        settings: dict[str, Any] = {
            "node": {"hostname": HOSTNAME},
            "listener": [
                {"address": f"127.0.0.1:{self.ports[listener]}", **listeners[listener]} for listener in listeners
            ],
            "tls": {"certificate": str(self.files.certificate), "key": str(self.files.key)},
            "access": {
                "networks": ["192.0.2.0/24"],  # nobody's: a list that is empty could be taken for one that is not set
                "relay_domains": ["ours.test"],
                "users_file": str(self.users_file),
            },
        }
        self.node: Node = cluster.node(name, over=merge(settings, over or {}))
        self.node.smtp_port = next(iter(self.ports.values()))

    @property
    def root(self) -> str:
        """The certificate that clients have to trust, a file."""
        return str(self.files.root)

    def port(self, listener: str) -> int:
        """The port of the listener of that name, on 127.0.0.1."""
        return self.ports[listener]

    def add_user(self, name: str = USER, password: str = PASSWORD, *options: str) -> None:
        """`relaycluster user add`, as an operator does it."""
        command = [COMMAND, "user", "add", "--users-file", str(self.users_file), "--password-stdin", *options, name]
        done = subprocess.run(command, input=password + "\n", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> SecuredEdge:
        """Start it; returns when /readyz says 200."""
        self.node.start()
        return self

    def queued(self, queue_id: str) -> dict[str, Any]:
        """The log's one line about a message that was queued."""
        found = [event for event in self.node.events_named("message_queued") if event["id"] == queue_id]
        assert len(found) == 1, json.dumps(self.node.events()[-5:], indent=1)
        return found[0]
