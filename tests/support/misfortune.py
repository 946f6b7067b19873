"""The cast of the scenarios of misfortune: one node, one DNS server, one receiving server with an address for each case.

Each case is a row: what its domain's DNS and hosts do, and what must become of one message to it: attempts, when the
next is due, the notice's status code, and the events. All rows of a table are sent at once and run side by side; so
each also shows that nobody else's misfortune is its own.
"""

from __future__ import annotations

import email
import os
import smtplib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, field, frozen

from tests.net.certificates import Authority, Issued
from tests.support.dns import FakeDNS
from tests.support.nodes import Cluster, Node
from tests.support.processes import REPOSITORY, Processes, free_port, wait_until
from tests.support.redis_server import RedisServer
from tests.support.sink import Received, Rule, Sink

SCHEDULE_SECONDS = (1.0, 600.0)
"""One more attempt soon, the next when the scenario is over."""
SPREAD = 0.1
WELL = "127.0.2.1"
"""The host at which all is well: it takes the notices."""
HERE = "HERE"
"""In a rule's `match`: the row's own first host. `HERE2` is its second."""
SENDERS = "sender.test"
TWO_HOSTS = "{domain} MX 10 mx1.{domain}\n{domain} MX 20 mx2.{domain}\nmx1.{domain} A {host}\nmx2.{domain} A {second}"
ROUTE = "{domain} MX 10 mx.{domain}\nmx.{domain} A {host}"


@frozen
class Misfortune:
    """One row. The message goes to `u@NAME.test`, or to `recipients` there.

    `outcome` is what becomes of the recipients that the table speaks of: "delivered" (in the end), "deferred" (again and
    again) or "failed". `attempts` is how many it took until then (of a deferral: 2 are looked at). `stage`, `status`
    and `says` are of the event that tells of it: where, with which enhanced code, with which words; for "delivered" after
    several attempts they are of the deferral before. `said` when the words are the server's, so that the notice shows
    them as such. `may_have_arrived` when a duplicate must be marked. `connections` is how many the first host saw, where
    that matters; `copies` how many messages all hosts took. `tls` is the destination's policy, `certificate` what its host
    presents: "good", "expired", "stranger" (another name) or "unknown" (another root).
    """

    name: str
    outcome: str
    rules: tuple[Rule, ...] = ()
    zone: str = ROUTE
    stage: str = ""
    status: str = ""
    says: str = ""
    said: bool = True
    attempts: int = 1
    bounce_class: str = ""
    may_have_arrived: bool = False
    recipients: tuple[str, ...] = ("u",)
    content: bytes = b"Subject: misfortune\r\n\r\nx\r\n"
    extensions: tuple[str, ...] | None = None
    refuses: bool = False
    tls: str = "none"
    used_tls: bool = False
    certificate: str = ""
    connections: int | None = None
    copies: int | None = None
    host: str = ""  # an address of its own; the fixture gives one
    second: str = field(default="", init=False)

    @property
    def domain(self) -> str:
        return f"{self.name}.test"

    @property
    def sender(self) -> str:
        """The sender, whose notices are this row's alone."""
        return f"{self.name}@{SENDERS}"


class Cast:
    """The running processes with a table's rows, all sent."""

    def __init__(self, node: Node, sink: Sink, dns: FakeDNS, rows: Mapping[str, Misfortune]) -> None:
        self.node = node
        self.sink = sink
        self.dns = dns
        self.rows = rows

    def send(self, row: Misfortune) -> None:
        """One message to all of the row's recipients."""
        with smtplib.SMTP(self.node.smtp_host, self.node.smtp_port, timeout=30) as client:
            client.ehlo("client.test")
            needs_utf8 = not all(map(str.isascii, row.recipients))
            options = ["SMTPUTF8", "BODY=8BITMIME"] if needs_utf8 else []
            recipients = [f"{name}@{row.domain}" for name in row.recipients]
            client.sendmail(row.sender, recipients, row.content, mail_options=options)

    # What was seen of a row

    def events(self, row: Misfortune, name: str) -> list[dict[str, Any]]:
        """The node's events of this kind about items to the row's domain."""
        return [event for event in self.node.events_named(name) if event.get("domain") == row.domain]

    def received(self, row: Misfortune) -> list[Received]:
        """What the hosts took for the row's recipients."""
        return [
            each for each in self.sink.messages() if each.recipients and each.recipients[0].endswith(f"@{row.domain}")
        ]

    def notices(self, row: Misfortune) -> list[Message]:
        """The notices to the row's sender."""
        return [
            email.message_from_bytes(each.content)
            for each in self.sink.messages()
            if each.reverse_path == "" and each.recipients == [row.sender]
        ]

    def wait(self, row: Misfortune, name: str, count: int = 1) -> list[dict[str, Any]]:
        """The row's events of this kind, when there are so many."""
        wait_until(
            lambda: len(self.events(row, name)) >= count,
            f"{row.name} has {count} event(s) {name!r}",
            90,
            watched=[self.node.process],
        )
        return self.events(row, name)

    # What must hold

    def check(self, row: Misfortune) -> None:
        """The row came out as its table says."""
        getattr(self, f"_check_{row.outcome}")(row)
        if row.connections is not None:
            endpoint = f"{row.host}:{self.sink.port}"
            assert self.sink.stat().connections.get(endpoint, 0) == row.connections
        marked = self.events(row, "possible_duplicate")
        assert bool(marked) == row.may_have_arrived, marked
        problems = [problem for message in self.received(row) for problem in message.problems]
        assert problems == []

    def _check_delivered(self, row: Misfortune) -> None:
        delivered = self.wait(row, "delivered")[0]
        assert delivered["attempts"] == row.attempts
        deferrals = self.events(row, "deferred")
        assert len(deferrals) == row.attempts - 1
        for number, event in enumerate(deferrals):
            self._check_event(row, event, number + 1)
            assert_due(event, number)
            assert when(delivered) - when(event) >= event["delay_seconds"] - 0.05, "the next attempt came too soon"
        received = self.received(row)
        assert len(received) == (1 if row.copies is None else row.copies)
        for message in received:
            assert message.content.endswith(row.content)
            assert sorted(message.recipients) == sorted(f"{name}@{row.domain}" for name in row.recipients)
            assert message.tls == row.used_tls
        assert not self.events(row, "failed")
        assert not self.notices(row)

    def _check_deferred(self, row: Misfortune) -> None:
        deferrals = self.wait(row, "deferred", 2)
        assert len(deferrals) == 2
        for number, event in enumerate(deferrals):
            self._check_event(row, event, number + 1)
            assert_due(event, number)
        first, second = deferrals
        assert when(second) - when(first) >= first["delay_seconds"] - 0.05, "the next attempt came too soon"
        assert not self.events(row, "failed")
        assert not self.events(row, "delivered")
        assert not self.notices(row)
        assert len(self.received(row)) == (row.copies or 0)

    def _check_failed(self, row: Misfortune) -> None:
        failed = self.wait(row, "failed")
        assert len(failed) == len(row.recipients)
        for event in failed:
            self._check_event(row, event, row.attempts)
            assert event["bounce_class"] == row.bounce_class
        assert len(self.received(row)) == (row.copies or 0)
        wait_until(lambda: self.notices(row), f"{row.name}: the notice", watched=[self.node.process])
        (notice,) = self.notices(row)
        check_notice(notice, row)

    def _check_event(self, row: Misfortune, event: Mapping[str, Any], attempts: int) -> None:
        assert event["attempts"] == attempts
        assert event["stage"] == row.stage
        assert row.status in event["reply"], event["reply"]
        assert row.says in event["reply"], event["reply"]
        assert event["reply"].isprintable(), "unescaped words of a server"


def check_notice(notice: Message, row: Misfortune) -> None:
    """An RFC 3464 notice about each of the row's recipients, that says who said what."""
    assert notice.get_content_type() == "multipart/report"
    parts = notice.get_payload()
    assert isinstance(parts, list)
    text, report = parts[0], parts[1]
    assert isinstance(text, Message)
    assert isinstance(report, Message)
    about = [fields for fields in _groups(report) if "Final-Recipient" in fields]
    assert len(about) == len(row.recipients)
    for fields in about:
        assert fields["Action"] == "failed"
        assert fields["Status"] == row.status
        kind, _, words = fields["Diagnostic-Code"].partition(";")
        assert (kind.strip().lower() == "smtp") == row.said, fields["Diagnostic-Code"]
        assert row.says in " ".join(words.split())
        assert fields["Remote-MTA"] or not row.said
    assert text.get_payload()


def _groups(report: Message) -> list[Message]:
    """The groups of fields of a delivery status, plain (RFC 3464) or internationalized (RFC 6533), which Python does not know."""
    if report.get_content_type() == "message/delivery-status":
        return list(report.get_payload())  # type: ignore[arg-type]
    assert report.get_content_type() == "message/global-delivery-status"
    payload = report.get_payload(decode=True)
    if payload is None:
        payload = "\r\n".join(str(part) for part in report.get_payload()).encode()
    assert isinstance(payload, bytes)
    return [email.message_from_bytes(group) for group in payload.replace(b"\r\n", b"\n").split(b"\n\n")]


def when(event: Mapping[str, Any]) -> float:
    """The event's time in seconds."""
    return datetime.fromisoformat(event["time"]).timestamp()


def assert_due(event: Mapping[str, Any], number: int) -> None:
    """The next attempt is due as the schedule says, give or take its jitter."""
    usual = SCHEDULE_SECONDS[number]
    assert usual * (1 - SPREAD) <= event["delay_seconds"] <= usual * (1 + SPREAD)


def _certificates(rows: Sequence[Misfortune], authority: Authority, directory: Path) -> dict[str, tuple[Path, Path]]:
    files: dict[str, tuple[Path, Path]] = {}
    for row in rows:
        if not row.certificate:
            continue
        name = f"mx.{row.domain}"
        issued: Issued
        match row.certificate:
            case "good":
                issued = authority.issue(name)
            case "expired":
                issued = authority.issue(name, starts=timedelta(days=-9), ends=timedelta(days=-1))
            case "stranger":
                issued = authority.issue("mx.elsewhere.test")
            case "unknown":
                issued = Authority("Another Root").issue(name)
            case other:
                raise AssertionError(other)
        files[row.host] = (directory / f"{row.name}.pem", directory / f"{row.name}.key")
        files[row.host][0].write_bytes(issued.certificate)
        files[row.host][1].write_bytes(issued.key)
    return files


def _placed(table: Sequence[Misfortune]) -> list[Misfortune]:
    """Each row with its own addresses."""
    rows = []
    for number, row in enumerate(table):
        placed = row if row.host else evolve(row, host=f"127.0.2.{number + 2}")
        object.__setattr__(placed, "second", f"127.0.3.{number + 2}")
        rows.append(placed)
    return rows


def _rules(rows: Sequence[Misfortune], port: int) -> list[Rule]:
    places = {}
    found = []
    for row in rows:
        places = {HERE: f"{row.host}:{port}", HERE + "2": f"{row.second}:{port}"}
        found += [evolve(rule, match=places.get(rule.match, rule.match)) for rule in row.rules]
    return found


@contextmanager
def cast(table: Sequence[Misfortune], over: Mapping[str, Any] | None = None) -> Iterator[Cast]:
    """Everything started, and every row's message accepted. At the end no node may have logged an error."""
    rows = _placed(table)
    assert len({row.name for row in rows}) == len(rows)
    processes = Processes()
    authority = Authority()
    port = free_port()
    zone = [f"{SENDERS} MX 10 mx.{SENDERS}", f"mx.{SENDERS} A {WELL}"]
    zone += [row.zone.format(domain=row.domain, host=row.host, second=row.second) for row in rows]
    try:
        with FakeDNS("\n".join(zone), f"127.0.0.1:{free_port()}") as dns:
            redis = RedisServer(processes).start()
            sink = Sink(
                processes,
                hosts=[WELL, *[row.host for row in rows], *[row.second for row in rows if "{second}" in row.zone]],
                port=port,
                keep=True,
                extensions={row.host: row.extensions for row in rows if row.extensions is not None},
                certificates=_certificates(rows, authority, processes.directory),
            ).start()
            sink.rules(*_rules(rows, port))
            for row in rows:
                if row.refuses:
                    sink.refuse(f"{row.host}:{port}")
            roots = processes.directory / "roots.pem"
            roots.write_bytes(authority.certificate)
            policies = [
                {"match": [row.domain], "port": port, "tls": row.tls, "connections": 2}
                for row in rows
                if row.tls != "none"
            ]
            common = {
                "dns": {"servers": [dns.address]},
                "destination": [*policies, {"match": ["*"], "port": port}],
                "delivery": {"tls": "none", "retry": [f"{seconds:g}s" for seconds in SCHEDULE_SECONDS], "idle": "2s"},
                **(over or {}),
            }
            node = Cluster(processes, redis, common).node("node")
            impatient = Path(__file__).parent / "impatient"
            node.process.environment["PYTHONPATH"] = os.pathsep.join([str(impatient), str(REPOSITORY)])
            node.process.environment["SSL_CERT_FILE"] = str(roots)
            node.start()
            found = Cast(node, sink, dns, {row.name: row for row in rows})
            for row in rows:
                found.send(row)
            yield found
            errors = node.events_named("error")
            assert not errors, errors[:3]
    except BaseException:
        print(processes.tails())
        raise
    finally:
        processes.close()


def named(table: Sequence[Misfortune]) -> pytest.MarkDecorator:
    """A test for each row, under its name."""
    return pytest.mark.parametrize("name", [row.name for row in table])
