"""curl's SMTP: STARTTLS and SMTPS, both AUTH mechanisms, with and without an initial response."""

from __future__ import annotations

import subprocess

import pytest

from tests.support import programs
from tests.support.letters import check, letter
from tests.support.nodes import Cluster
from tests.support.secured import PASSWORD, USER, SecuredEdge
from tests.support.sink import Sink


@pytest.fixture
def edge(cluster: Cluster) -> SecuredEdge:
    """One user, whose password has octets beyond ASCII."""
    found = SecuredEdge(cluster, ["starttls", "implicit"])
    found.add_user()
    return found.start()


def curl(edge: SecuredEdge, url: str, content: bytes, *options: str) -> subprocess.CompletedProcess[str]:
    """One message to this URL."""
    file = edge.node.process.directory / "upload.eml"
    file.write_bytes(content)
    return subprocess.run(
        [
            *(programs.require("curl"), "--silent", "--show-error", "--verbose", "--max-time", "60", "--url", url),
            *("--cacert", edge.root, "--mail-from", USER, "--mail-rcpt", "bob@example.org"),
            *("--upload-file", str(file), *options),
        ],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def test_every_way_in(edge: SecuredEdge, sink: Sink) -> None:
    """Each message arrives as it lay in the file."""
    starttls = f"smtp://localhost:{edge.port('starttls')}/curl.test"
    implicit = f"smtps://localhost:{edge.port('implicit')}/curl.test"
    number = 0
    for url, tls in ((starttls, ["--ssl-reqd"]), (implicit, [])):
        for mechanism in ("PLAIN", "LOGIN"):
            for initial_response in (["--sasl-ir"], []):
                number += 1
                content = letter(f"curl {number}")
                options = [*tls, *initial_response, "--login-options", f"AUTH={mechanism}"]
                said = curl(edge, url, content, *options, "--user", f"{USER}:{PASSWORD}")
                assert said.returncode == 0, said.stderr
                assert f"AUTH {mechanism}" in said.stderr
                trace = check(edge, sink.wait_for(number)[-1], content, user=USER)
                assert trace.helo == "curl.test"


def test_refusals_have_curls_exit_status(edge: SecuredEdge, sink: Sink) -> None:
    """67 for a login that was denied, 55 for a refused MAIL or RCPT, 60 for a certificate that cannot be verified."""
    starttls = f"smtp://localhost:{edge.port('starttls')}/curl.test"
    content = letter("not wanted")
    assert curl(edge, starttls, content, "--ssl-reqd", "--user", f"{USER}:wrong").returncode == 67
    assert curl(edge, starttls, content, "--ssl-reqd").returncode == 55
    assert curl(edge, starttls, content).returncode == 55
    assert curl(edge, starttls, content, "--ssl-reqd", "--capath", "/nonexistent", "--cacert", "").returncode != 0
    assert sink.messages() == []
