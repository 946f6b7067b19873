"""Debian's Postfix with a queue, a configuration and a log of its own; an installed and running one is not touched.

Its tuning is the default one. What differs from a fresh install is only what the benchmark needs: no DNS for 127.0.0.1,
a route for each recipient domain, no local delivery, and in mode "accept" no queue manager, so that mail stays queued.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
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
smtpd_peername_lookup = no
message_size_limit = 26214400
mailbox_size_limit = 0
transport_maps = texthash:{directory}/routes
"""

OPEN = """\
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
"""

SECURED = """\
mynetworks = 192.0.2.0/24
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_tls_security_level = encrypt
smtpd_tls_auth_only = yes
smtpd_tls_cert_file = {certificate}
smtpd_tls_key_file = {key}
smtpd_sasl_auth_enable = yes
smtpd_sasl_path = bench
smtpd_sasl_local_domain = bench.test
"""

SASL = """\
pwcheck_method: auxprop
auxprop_plugin: sasldb
mech_list: PLAIN
sasldb_path: {passwords}
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
        main += self._secured(directory, settings, site) if mode == "secured" else OPEN
        (settings / "main.cf").write_text(main + (NO_BRAKE if mode != "relay" else ""))
        (settings / "master.cf").write_text(master(mode, site))
        for name in ("dynamicmaps.cf", "postfix-files"):  # which files and table types this build has
            if (INSTALLED / name).exists():
                shutil.copy(INSTALLED / name, settings)
        (directory / "routes").write_text(
            "".join(f"d{n}.test smtp:[{site.sink_prefix}{n}]:{site.sink_port}\n" for n in range(1, site.domains + 1))
        )
        return [shutil.which("postfix", path=_PATH) or "postfix", "-c", str(settings), "start-fg"]

    def _secured(self, directory: Path, settings: Path, site: Site) -> str:
        """What main.cf says of TLS and SASL; the one user goes into a sasldb of our own."""
        credentials = site.credentials
        assert credentials is not None
        add = shutil.which("saslpasswd2", path=_PATH)
        if add is None:
            raise BenchError("the suite tls needs saslpasswd2: apt-get install sasl2-bin libsasl2-modules")
        passwords = directory / "sasldb2"
        command: list[str | Path] = [add, "-p", "-c", "-f", passwords, "-u", "bench.test", credentials.user]
        done = subprocess.run(command, input=credentials.password, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"saslpasswd2: {done.stderr.strip()}")
        owner = pwd.getpwnam("postfix")
        os.chown(passwords, owner.pw_uid, owner.pw_gid)
        # Debian's build looks for `smtpd_sasl_path` in `sasl` beside main.cf.
        (settings / "sasl").mkdir()
        (settings / "sasl" / "bench.conf").write_text(SASL.format(passwords=passwords))
        return SECURED.format(certificate=credentials.certificate, key=credentials.key)

    def password_check(self) -> str:
        return "Cyrus SASL's sasldb: the password in clear, looked up for each login, no memory"

    def part(self, process_name: str) -> str:
        return "postfix"


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"


def master(mode: Mode, site: Site) -> str:
    """master.cf: the SMTP listener and Debian's services."""
    rows = [(f"{site.host}:{site.port}", "inet", "n", "-", "-", "smtpd"), *SERVICES]
    if mode != "relay":
        rows = [row for row in rows if row[0] != "qmgr"]
    return "".join(
        f"{service} {kind} {private} - n {wakeup} {limit} {command}\n"
        for service, kind, private, wakeup, limit, command in rows
    )
