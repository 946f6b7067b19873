"""Debian's Postfix as a neighbour: a private instance with its own configuration, queue and log; an installed one is not touched."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.support import programs
from tests.support.processes import Process, Processes, free_port, wait_until

DAEMONS = Path("/usr/lib/postfix/sbin")
INSTALLED = Path("/etc/postfix")

# service, type, wakeup, process limit, command: what an instance needs that takes mail and sends it on
SERVICES = (
    ("pickup", "unix", "60", "1", "pickup"),
    ("cleanup", "unix", "-", "0", "cleanup"),
    ("qmgr", "unix", "300", "1", "qmgr"),
    ("tlsmgr", "unix", "1000?", "1", "tlsmgr"),
    ("rewrite", "unix", "-", "-", "trivial-rewrite"),
    ("bounce", "unix", "-", "0", "bounce"),
    ("defer", "unix", "-", "0", "bounce"),
    ("trace", "unix", "-", "0", "bounce"),
    ("verify", "unix", "-", "1", "verify"),
    ("flush", "unix", "1000?", "0", "flush"),
    ("proxymap", "unix", "-", "-", "proxymap"),
    ("smtp", "unix", "-", "-", "smtp"),
    ("relay", "unix", "-", "-", "smtp"),
    ("error", "unix", "-", "-", "error"),
    ("retry", "unix", "-", "-", "error"),
    ("discard", "unix", "-", "-", "discard"),
    ("anvil", "unix", "-", "1", "anvil"),
    ("scache", "unix", "-", "1", "scache"),
    ("postlog", "unix-dgram", "-", "1", "postlogd"),
)


class Postfix:
    """One instance that takes mail from this machine on `port` and sends it where `parameters` (of main.cf) say."""

    def __init__(self, processes: Processes, parameters: Mapping[str, str], *, name: str = "postfix") -> None:
        programs.require("postfix")
        if os.geteuid() != 0:
            programs.lacking("Postfix has to be started by root")
        self.port = free_port()
        self.directory = processes.directory / name
        settings = self.directory / "etc"
        settings.mkdir(parents=True)
        processes.directory.chmod(0o711)  # its daemons run as the user postfix
        (self.directory / "queue").mkdir()
        (self.directory / "data").mkdir()
        owner = pwd.getpwnam("postfix")
        os.chown(self.directory / "data", owner.pw_uid, owner.pw_gid)
        main = {
            "compatibility_level": "3.6",
            "queue_directory": f"{self.directory}/queue",
            "data_directory": f"{self.directory}/data",
            "daemon_directory": str(DAEMONS),
            "maillog_file": f"{self.directory}/mail.log",
            "maillog_file_prefixes": str(self.directory),
            "myhostname": f"{name}.client.test",
            "mydestination": "",
            "local_recipient_maps": "",
            "alias_maps": "",
            "alias_database": "",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "mynetworks": "127.0.0.0/8",
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            "smtpd_peername_lookup": "no",
            "smtp_dns_support_level": "disabled",
            "smtp_host_lookup": "native",
            **parameters,
        }
        (settings / "main.cf").write_text("".join(f"{key} = {value}\n" for key, value in main.items()))
        rows = [("127.0.0.1:" + str(self.port), "inet", "-", "-", "smtpd"), *SERVICES]
        (settings / "master.cf").write_text(
            "".join(
                f"{service} {kind} {'n' if kind != 'unix' or service in ('pickup', 'cleanup', 'qmgr', 'flush') else '-'}"
                f" - n {wakeup} {limit} {command}\n"
                for service, kind, wakeup, limit, command in rows
            )
        )
        for file in ("dynamicmaps.cf", "postfix-files"):  # which table types this build has
            if (INSTALLED / file).exists():
                shutil.copy(INSTALLED / file, settings)
        command = [programs.require("postfix"), "-c", str(settings), "start-fg"]
        self.process: Process = processes.add(name, command, directory=self.directory)

    def start(self) -> Postfix:
        """Start it; returns when it takes mail."""
        self.process.start()
        wait_until(self._greets, "Postfix greets", watched=[self.process])
        return self

    def _greets(self) -> bool:
        import socket

        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as client:
                greets = client.recv(4) == b"220 "
                client.sendall(b"QUIT\r\n")
                return greets
        except OSError:
            return False

    def log(self) -> str:
        """Everything it wrote so far."""
        path = self.directory / "mail.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""
