"""Debian's mail servers as the hosts that we send to: Postfix, Exim and OpenSMTPD, each a private instance that keeps what it takes.

Each takes mail to `u0` … `u99` at clear.test and tls.test (it offers STARTTLS for both), defers `later`, refuses everybody else there in
its own words, and sends all other mail to one place, so that its own notices come back. What can be switched off of the mending that
each does to a message of its own users is switched off. Postfix is the installed one with
directories of its own; the others are unpacked beside it, each in a root directory of its own (`debian.py`).
"""

from __future__ import annotations

import os
import smtplib
import socket
import ssl
from pathlib import Path

from attrs import frozen

from tests.net.certificates import Authority
from tests.support.debian import Root
from tests.support.postfix import Postfix
from tests.support.processes import Process, Processes, free_port, wait_until

DOMAINS = ("clear.test", "tls.test")
USERS = tuple(f"u{number}" for number in range(100))
DEFERRED = "later"
DEFERRAL = "4.7.1 the mailbox is busy: come later"
SIZE_LIMIT = 2_000_000
HOME = "back.test"
"""Mail to this domain goes to the place that a hop is given."""


@frozen
class Kept:
    """What a hop has in one user's mailbox: lines end with CRLF again; in front stand the hop's own fields."""

    user: str
    path: Path
    content: bytes


class NextHop:
    """A server that runs. `own_fields` are the header fields that it may put in front, beside `Received:`; `refusal` is what it says of
    a user whom it does not know; `tls_works` whether a handshake with it can succeed at all; `quotes_wishes` whether its notices
    quote ENVID and ORCPT."""

    name: str
    host: str
    port: int
    process: Process
    mailboxes: Path
    own_fields: frozenset[str]
    refusal: str
    tls_works: bool = False
    quotes_wishes: bool = True

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self) -> NextHop:
        """Start it; returns when it takes mail."""
        self.process.start()
        wait_until(self._greets, f"{self.name} greets", watched=[self.process])
        self.tls_works = self._shakes_hands()
        return self

    def _shakes_hands(self) -> bool:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        client = smtplib.SMTP(self.host, self.port, "probe.test", timeout=10)
        try:
            return client.starttls(context=context)[0] == 220
        except ssl.SSLError:
            return False
        finally:
            client.close()

    def _greets(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), 5) as client:
                greets = client.recv(4) == b"220 "
                client.sendall(b"QUIT\r\n")
                return greets
        except OSError:
            return False

    def kept(self, *users: str) -> list[Kept]:
        """All that these users (default: all) have."""
        found = []
        for box in sorted(self.mailboxes.glob("*/new")):
            user = box.parent.name
            if not users or user in users:
                found += [Kept(user, path, path.read_bytes().replace(b"\n", b"\r\n")) for path in sorted(box.iterdir())]
        return found

    def wait_for(self, count: int, *users: str, timeout_seconds: float = 60.0) -> list[Kept]:
        """All that these users have, once it is so much."""
        wait_until(
            lambda: len(self.kept(*users)) >= count,
            f"{self.name} keeps {count} messages",
            timeout_seconds,
            watched=[self.process],
        )
        return self.kept(*users)


def _certificate(directory: Path) -> tuple[Path, Path]:
    """Of a root that nobody knows, as most hosts have: opportunistic TLS asks no more."""
    issued = Authority().issue("hop.test")
    certificate, key = directory / "hop.pem", directory / "hop.key"
    certificate.write_bytes(issued.certificate)
    key.touch(0o600)
    key.write_bytes(issued.key)
    return certificate, key


class PostfixHop(NextHop):
    """The installed Postfix."""

    name = "postfix"
    host = "127.0.0.1"
    own_fields = frozenset({"Return-Path", "X-Original-To", "Delivered-To"})
    refusal = "User unknown in virtual mailbox table"

    def __init__(self, processes: Processes, home: str) -> None:
        place = processes.directory / "postfix-hop"
        place.mkdir()
        certificate, key = _certificate(place)
        self.mailboxes = place / "mail"
        self.mailboxes.mkdir()
        os.chown(self.mailboxes, 65534, 65534)
        users, later = place / "users", place / "later"
        addresses = [f"{user}@{domain}" for user in (*USERS, DEFERRED) for domain in DOMAINS]
        users.write_text("".join(f"{each} {each.partition('@')[0]}/\n" for each in addresses))
        later.write_text("".join(f"{DEFERRED}@{domain} 450 {DEFERRAL}\n" for domain in DOMAINS))
        parameters = {
            "myhostname": "postfix.test",
            "virtual_mailbox_domains": " ".join(DOMAINS),
            "virtual_mailbox_maps": f"texthash:{users}",
            "virtual_mailbox_base": str(self.mailboxes),
            "virtual_uid_maps": "static:65534",
            "virtual_gid_maps": "static:65534",
            "virtual_mailbox_limit": "0",
            "message_size_limit": str(SIZE_LIMIT),
            "message_drop_headers": "",
            "local_header_rewrite_clients": "",
            "smtpd_recipient_restrictions": f"check_recipient_access texthash:{later}",
            "smtpd_tls_security_level": "may",
            "smtpd_tls_cert_file": str(certificate),
            "smtpd_tls_key_file": str(key),
            "smtpd_tls_received_header": "yes",
            "relayhost": "[{}]:{}".format(*home.rsplit(":", 1)),
        }
        server = Postfix(processes, parameters, name="postfix-server")
        with (server.directory / "etc" / "master.cf").open("a") as services:
            services.write("virtual unix - n n - - virtual\n")
        self.port, self.process = server.port, server.process


class EximHop(NextHop):
    """Exim, unpacked."""

    name = "exim"
    host = "127.0.0.31"
    own_fields = frozenset({"Return-path", "Envelope-to"})
    refusal = "Unrouteable address"

    def __init__(self, processes: Processes, home: str) -> None:
        self.port = free_port(self.host)
        user = "Debian-exim"
        root = Root(
            processes.directory / "exim-root", "exim4-daemon-light", ["/usr/sbin/exim4"], {user: "/var/spool/exim4"}
        )
        for directory in ("var/spool/exim4", "var/log/exim4", "var/mail"):
            root.directory(directory, owner=user, mode=0o750)
        self.mailboxes = root.path / "var/mail"
        certificate, key = _certificate(processes.directory)
        root.write("etc/exim4/hop.pem", certificate.read_bytes())
        root.write("etc/exim4/hop.key", key.read_bytes(), owner=user, mode=0o400)
        root.write("etc/users", "".join(f"{name}: {name}\n" for name in USERS))
        host, port = home.rsplit(":", 1)
        root.write("etc/exim4/exim4.conf", _EXIM.format(self=self, user=user, host=host, port=port))
        self.process = processes.add(self.name, root.command("/usr/sbin/exim4", "-bdf", "-q1m"))


_EXIM = f"""\
primary_hostname = exim.test
domainlist kept = {" : ".join(DOMAINS)}
local_interfaces = <; {{self.host}}.{{self.port}}
daemon_smtp_ports = {{self.port}}
log_file_path = /var/log/exim4/%slog
keep_environment = SCENARIO_DIRECTORY
deliver_drop_privilege = true
trusted_users = {{user}}
acl_smtp_rcpt = recipient
host_lookup =
rfc1413_query_timeout = 0s
smtp_accept_queue_per_connection = 0
message_size_limit = {SIZE_LIMIT}
return_path_remove = false
envelope_to_remove = false
delivery_date_remove = false
dsn_advertise_hosts = *
tls_advertise_hosts = *
tls_certificate = /etc/exim4/hop.pem
tls_privatekey = /etc/exim4/hop.key

begin acl
recipient:
  defer domains = +kept
        local_parts = {DEFERRED}
        message = 450 {DEFERRAL}
  require verify = recipient
  accept

begin routers
kept:
  driver = accept
  domains = +kept
  local_parts = lsearch;/etc/users
  transport = mailbox
back:
  driver = manualroute
  domains = ! +kept
  route_list = * {{host}}
  self = send
  transport = onwards

begin transports
mailbox:
  driver = appendfile
  maildir_format
  directory = /var/mail/$local_part_data
  return_path_add
  envelope_to_add
onwards:
  driver = smtp
  port = {{port}}

begin retry
* * F,1h,1s
"""


class OpenSMTPDHop(NextHop):
    """OpenSMTPD, unpacked. It offers neither PIPELINING nor CHUNKING; and that of Debian 12 offers a STARTTLS that always fails, as
    its keys live in another process in a way that OpenSSL 3 does not know (its issue 1171)."""

    name = "opensmtpd"
    host = "127.0.0.32"
    own_fields = frozenset({"Return-Path", "Delivered-To"})
    refusal = "Invalid recipient"
    quotes_wishes = False

    def __init__(self, processes: Processes, home: str) -> None:
        self.port = free_port(self.host)
        nobody = "/var/lib/opensmtpd/empty"
        root = Root(
            processes.directory / "opensmtpd-root",
            "opensmtpd",
            ["/usr/sbin/smtpd", "/usr/sbin/smtpctl", "/usr/libexec/opensmtpd/mail.maildir", "/bin/sh"],
            {"opensmtpd": nobody, "opensmtpq": nobody, "keeper": "/var/mail"},
        )
        root.directory(nobody.lstrip("/"))
        root.directory("var/spool/smtpd", mode=0o711)
        self.mailboxes = root.directory("var/mail", owner="keeper")
        certificate, key = _certificate(processes.directory)
        root.write("etc/hop.pem", certificate.read_bytes())
        root.write("etc/hop.key", key.read_bytes(), mode=0o600)
        numbers = f"{root.uid('keeper')}:{root.uid('keeper')}"
        root.write("etc/users", "".join(f"{user} {numbers}:/var/mail\n" for user in USERS))
        root.write("etc/later", "".join(f"{DEFERRED}@{domain}\n" for domain in DOMAINS))
        root.write("etc/smtpd.conf", _OPENSMTPD.format(self=self, home=home))
        self.process = processes.add(self.name, root.command("/usr/sbin/smtpd", "-d", "-f", "/etc/smtpd.conf"))


_OPENSMTPD = f"""\
pki hop cert "/etc/hop.pem"
pki hop key "/etc/hop.key"
smtp max-message-size "{SIZE_LIMIT}"
table users file:/etc/users
table later file:/etc/later
filter busy phase rcpt-to match rcpt-to <later> reject "450 {DEFERRAL}"
listen on {{self.host}} port {{self.port}} tls pki hop hostname opensmtpd.test filter busy
action keep maildir "/var/mail/%{{{{user.username}}}}" userbase <users>
action onwards relay host "smtp://{{home}}"
match from any for domain {{{{ {" ".join(DOMAINS)} }}}} action keep
match from any for any action onwards
"""

HOPS: dict[str, type[PostfixHop] | type[EximHop] | type[OpenSMTPDHop]] = {
    hop.name: hop for hop in (PostfixHop, EximHop, OpenSMTPDHop)
}
