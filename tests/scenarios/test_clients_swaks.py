"""swaks in all of its TLS and AUTH modes, and as a balancer that speaks the PROXY protocol."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support import programs
from tests.support.letters import check, letter
from tests.support.nodes import Cluster
from tests.support.secured import USER, SecuredEdge
from tests.support.sink import Sink

PASSWORD = "simple password"
ADDED = b"\r\n"  # swaks ends what it sends with a line end of its own


@pytest.fixture
def edge(cluster: Cluster) -> SecuredEdge:
    """Every listener, one user."""
    found = SecuredEdge(cluster)
    found.add_user(USER, PASSWORD)
    return found.start()


def swaks(edge: SecuredEdge, listener: str, content: bytes, *options: str) -> subprocess.CompletedProcess[str]:
    """One message through this listener."""
    programs.require_package("libnet-ssleay-perl")
    data = edge.node.process.directory / "letter.eml"
    # swaks takes LF from a file and sends CRLF; it stuffs dots by itself.
    data.write_bytes(content.replace(b"\r\n", b"\n"))
    return subprocess.run(
        [
            *(
                programs.require("swaks"),
                "--server",
                "localhost",
                "--port",
                str(edge.port(listener)),
                "--timeout",
                "30",
            ),
            *("--ehlo", "swaks.test", "--from", USER, "--to", "bob@example.org", "--data", f"@{data}"),
            *options,
        ],
        capture_output=True,
        check=False,
        text=True,
        errors="replace",
    )


def auth(mechanism: str) -> list[str]:
    return ["--auth", mechanism, "--auth-user", USER, "--auth-password", PASSWORD]


def test_tls_and_auth_modes(edge: SecuredEdge, sink: Sink) -> None:
    """Each combination arrives as it was sent, with the right protocol in the trace field."""
    verified = ["--tls-verify", "--tls-ca-path", edge.root]
    modes: list[tuple[str, list[str], bool]] = [
        ("starttls", ["-tls", *verified, *auth("PLAIN")], True),
        ("starttls", ["-tls", *verified, *auth("LOGIN")], True),
        ("starttls", ["--tls-optional", *auth("PLAIN")], True),
        ("starttls", ["-tls", "--tls-protocol", "tlsv1_2", *auth("PLAIN")], True),
        ("implicit", ["--tlsc", *verified, *auth("PLAIN")], True),
        ("implicit", ["--tlsc", *verified, *auth("LOGIN"), "--pipeline"], True),
        ("clear", [*auth("PLAIN")], False),
        ("clear", [*auth("LOGIN"), "--pipeline"], False),
    ]
    for number, (listener, options, tls) in enumerate(modes, 1):
        content = letter(f"swaks {number}")
        said = swaks(edge, listener, content, *options)
        assert said.returncode == 0, (options, said.stdout + said.stderr)
        trace = check(edge, sink.wait_for(number)[-1], content + ADDED, user=USER, tls=tls)
        assert trace.helo == "swaks.test"
        assert trace.queue_id in said.stdout


def test_refusals(edge: SecuredEdge, sink: Sink) -> None:
    """A wrong password, no AUTH, AUTH in clear where TLS is demanded, a TLS version of the last century."""
    content = letter("not wanted")
    wrong = ["--auth", "PLAIN", "--auth-user", USER, "--auth-password", "wrong"]
    for options, expected in (
        (["-tls", *wrong], r"535 5\.7\.8"),
        (["-tls"], r"530 5\.7\.0 Authentication"),
        ([], r"530 5\.7\.0"),
    ):
        said = swaks(edge, "starttls", content, *options)
        assert said.returncode != 0
        assert re.search(r"<[~*-]*\* +" + expected, said.stdout), said.stdout
    assert swaks(edge, "starttls", content, "-tls", "--tls-protocol", "tlsv1_1", *auth("PLAIN")).returncode != 0
    assert swaks(edge, "starttls", content, *auth("PLAIN")).returncode != 0
    assert sink.messages() == []


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("listener", ["proxy", "proxy-implicit"])
def test_proxy_protocol(edge: SecuredEdge, sink: Sink, version: str, listener: str) -> None:
    """The client of the header is the client: in the trace field, in the log and for access; the balancer is told apart."""
    told = [
        *("--proxy-version", version, "--proxy-family", "TCP4" if version == "1" else "AF_INET"),
        *("--proxy-source", "198.51.100.7", "--proxy-source-port", "4711"),
        *("--proxy-dest", "203.0.113.1", "--proxy-dest-port", "587"),
    ]
    if version == "2":
        told += ["--proxy-protocol", "STREAM", "--proxy-command", "PROXY"]
    tls = ["-tls"] if listener == "proxy" else ["--tlsc"]
    content = letter(f"behind a balancer {version}")
    said = swaks(edge, listener, content, *told, *tls, *auth("PLAIN"))
    assert said.returncode == 0, said.stdout + said.stderr
    check(edge, sink.wait_for(1)[0], content + ADDED, user=USER, client="198.51.100.7", via="127.0.0.1")
    # Without AUTH the address counts, and this one is nobody's.
    refused = swaks(edge, listener, content, *told, *tls)
    assert refused.returncode != 0
    assert "530 5.7.0" in refused.stdout
    # Who is in an allowed network, by the header, may relay without AUTH.
    inside = [word.replace("198.51.100.7", "192.0.2.9") for word in told]
    content = letter(f"from inside {version}")
    said = swaks(edge, listener, content, *inside, *tls)
    assert said.returncode == 0, said.stdout + said.stderr
    check(edge, sink.wait_for(2)[1], content + ADDED, client="192.0.2.9", via="127.0.0.1")


def test_proxy_header_where_none_is_taken(edge: SecuredEdge, sink: Sink) -> None:
    """A header on a listener that trusts nobody makes nobody: no message, no greeting for the client that it names."""
    said = swaks(edge, "clear", letter("forged"), "--proxy", "TCP4 192.0.2.9 203.0.113.1 4711 587")
    assert said.returncode != 0
    assert sink.messages() == []
