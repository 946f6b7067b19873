"""msmtp, as the sendmail of many machines: STARTTLS and TLS from the first byte, AUTH, DSN; its exit status on refusals."""

from __future__ import annotations

import subprocess

import pytest

from tests.support import programs
from tests.support.letters import check, letter
from tests.support.nodes import Cluster
from tests.support.processes import Processes
from tests.support.secured import PASSWORD, USER, SecuredEdge
from tests.support.sink import EXTENSIONS, Sink

CONFIGURATION = """\
defaults
host localhost
domain msmtp.test
from {user}
timeout 60
tls {tls}
tls_starttls {starttls}
tls_trust_file {root}
auth {mechanism}
user {user}
passwordeval "cat {password}"
set_from_header off
set_date_header off
set_msgid_header off
account default
port {port}
"""


@pytest.fixture
def sink(processes: Processes) -> Sink:
    """A receiving server that speaks DSN."""
    return Sink(processes, keep=True, extensions={"*": [*EXTENSIONS, "DSN"]}).start()


@pytest.fixture
def edge(cluster: Cluster) -> SecuredEdge:
    """One user, whose password has octets beyond ASCII."""
    found = SecuredEdge(cluster, ["starttls", "implicit"])
    found.add_user()
    return found.start()


def msmtp(
    edge: SecuredEdge, listener: str, content: bytes, *options: str, mechanism: str = "plain", password: str = PASSWORD
) -> subprocess.CompletedProcess[bytes]:
    """One message through this listener."""
    directory = edge.node.process.directory
    (directory / "password").write_text(password + "\n")
    text = CONFIGURATION.format(
        user=USER,
        tls="on",
        starttls="off" if listener == "implicit" else "on",
        root=edge.root,
        mechanism=mechanism,
        password=directory / "password",
        port=edge.port(listener),
    )
    file = directory / "msmtprc"
    file.write_text(text)
    file.chmod(0o600)
    # Like a sendmail it takes lines that end in LF.
    return subprocess.run(
        [programs.require("msmtp"), f"--file={file}", "--debug", *options, "bob@example.org"],
        input=content.replace(b"\r\n", b"\n"),
        capture_output=True,
        check=False,
    )


def test_every_way_in(edge: SecuredEdge, sink: Sink) -> None:
    """Each message arrives as it was given."""
    number = 0
    for listener in ("starttls", "implicit"):
        for mechanism in ("plain", "login"):
            number += 1
            content = letter(f"msmtp {number}")
            said = msmtp(edge, listener, content, mechanism=mechanism)
            assert said.returncode == 0, said.stderr + said.stdout
            trace = check(edge, sink.wait_for(number)[-1], content, user=USER)
            assert trace.helo == "msmtp.test"


def test_dsn_requests_reach_the_next_hop(edge: SecuredEdge, sink: Sink) -> None:
    """RET and NOTIFY, as they were asked for, stand in MAIL and RCPT to a next hop that speaks DSN."""
    content = letter("tell me")
    said = msmtp(edge, "starttls", content, "--dsn-return=full", "--dsn-notify=success,failure")
    assert said.returncode == 0, said.stderr + said.stdout
    received = sink.wait_for(1)[0]
    check(edge, received, content, user=USER)
    assert "RET=FULL" in received.parameters.split()
    notify = [word for word in received.recipient_parameters[0].split() if word.startswith("NOTIFY=")]
    assert set(notify[0].removeprefix("NOTIFY=").split(",")) == {"SUCCESS", "FAILURE"}


def test_a_refused_login_is_told(edge: SecuredEdge, sink: Sink) -> None:
    """EX_NOPERM, and no message."""
    assert msmtp(edge, "starttls", letter("no"), password="wrong").returncode == 77
    assert sink.messages() == []
