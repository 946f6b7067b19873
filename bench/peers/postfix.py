"""Debian's Postfix with a queue, a configuration and a log of its own; an installed and running one is not touched.

Its tuning is the default one. What differs from a fresh install is only what the benchmark needs: no DNS for 127.0.0.1,
a route for each recipient domain, no local delivery, and in mode "accept" no queue manager, so that mail stays queued.
"""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

from bench.errors import BenchError
from bench.peers import Mode, Site

DAEMONS = Path("/usr/lib/postfix/sbin")
INSTALLED = Path("/etc/postfix")

MAIN = """\
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
daemon_directory = {daemons}
maillog_file = {directory}/mail.log
maillog_file_prefixes = {directory}
myhostname = postfix.bench.test
mydestination =
alias_maps =
alias_database =
inet_interfaces = {host}
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_peername_lookup = no
message_size_limit = 26214400
mailbox_size_limit = 0
transport_maps = texthash:{directory}/routes
"""

# Without a queue manager nothing drains the incoming queue; Postfix would brake its clients for that.
NO_BRAKE = "in_flow_delay = 0s\n"

# service, type, wakeup, process limit, command; all unprivileged ones as in Debian's master.cf, none in a chroot
SERVICES = (
    ("pickup", "unix", "n", "60", "1", "pickup"),
    ("cleanup", "unix", "n", "-", "0", "cleanup"),
    ("qmgr", "unix", "n", "300", "1", "qmgr"),
    ("tlsmgr", "unix", "-", "1000?", "1", "tlsmgr"),
    ("rewrite", "unix", "-", "-", "-", "trivial-rewrite"),
    ("bounce", "unix", "-", "-", "0", "bounce"),
    ("defer", "unix", "-", "-", "0", "bounce"),
    ("trace", "unix", "-", "-", "0", "bounce"),
    ("verify", "unix", "-", "-", "1", "verify"),
    ("flush", "unix", "n", "1000?", "0", "flush"),
    ("proxymap", "unix", "-", "-", "-", "proxymap"),
    ("smtp", "unix", "-", "-", "-", "smtp"),
    ("relay", "unix", "-", "-", "-", "smtp"),
    ("showq", "unix", "n", "-", "-", "showq"),
    ("error", "unix", "-", "-", "-", "error"),
    ("retry", "unix", "-", "-", "-", "error"),
    ("discard", "unix", "-", "-", "-", "discard"),
    ("anvil", "unix", "-", "-", "1", "anvil"),
    ("scache", "unix", "-", "-", "1", "scache"),
    ("postlog", "unix-dgram", "n", "-", "1", "postlogd"),
)


class Postfix:
    """`postfix start-fg` over a private configuration."""

    name = "postfix"
    embeds_redis = False
    patience_seconds = 0.0  # the first process is a shell that does not pass signals on

    def assert_usable(self, work: Path) -> None:
        if not shutil.which("postfix", path=_PATH) or not (DAEMONS / "master").exists():
            raise BenchError("Postfix is not installed: apt-get install --no-install-recommends postfix")
        if os.geteuid() != 0:
            raise BenchError(
                "Postfix has to be started by root: run the benchmark as root, or without BENCH_PEER=postfix"
            )
        for parent in (work, *work.resolve().parents):
            if not parent.stat().st_mode & 0o001:
                raise BenchError(
                    f"{parent} is closed to the user postfix: set BENCH_WORK, as BENCH_WORK=/var/tmp/bench"
                )

    def prepare(self, directory: Path, mode: Mode, site: Site) -> list[str]:
        settings = directory / "etc"
        settings.mkdir()
        (directory / "queue").mkdir()
        (directory / "data").mkdir()
        owner = pwd.getpwnam("postfix")
        os.chown(directory / "data", owner.pw_uid, owner.pw_gid)
        main = MAIN.format(directory=directory, daemons=DAEMONS, host=site.host)
        (settings / "main.cf").write_text(main + (NO_BRAKE if mode == "accept" else ""))
        (settings / "master.cf").write_text(master(mode, site))
        for name in ("dynamicmaps.cf", "postfix-files"):  # which files and table types this build has
            if (INSTALLED / name).exists():
                shutil.copy(INSTALLED / name, settings)
        (directory / "routes").write_text(
            "".join(f"d{n}.test smtp:[{site.sink_prefix}{n}]:{site.sink_port}\n" for n in range(1, site.domains + 1))
        )
        return [shutil.which("postfix", path=_PATH) or "postfix", "-c", str(settings), "start-fg"]

    def part(self, process_name: str) -> str:
        return "postfix"


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"


def master(mode: Mode, site: Site) -> str:
    """master.cf: the SMTP listener and Debian's services."""
    rows = [(f"{site.host}:{site.port}", "inet", "n", "-", "-", "smtpd"), *SERVICES]
    if mode == "accept":
        rows = [row for row in rows if row[0] != "qmgr"]
    return "".join(
        f"{service} {kind} {private} - n {wakeup} {limit} {command}\n"
        for service, kind, private, wakeup, limit, command in rows
    )
