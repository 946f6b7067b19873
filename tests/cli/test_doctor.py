"""`relaycluster doctor` against servers that are wrong in one way each: what is wrong is found, and nothing else."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from relaycluster import config
from relaycluster.cli.doctor.findings import Verdict
from relaycluster.cli.doctor.node import judge
from relaycluster.cli.doctor.relay_attempts import ELSEWHERE, PROBE, attempts
from relaycluster.cli.doctor.targets import approaches, as_stranger, targets
from relaycluster.cli.main import main
from tests.support.secured import CertificateFiles, certificate_files

Answer = Callable[[str], str]


def sound(line: str) -> str:
    """What a good server answers."""
    verb = line[:4].upper()
    if verb == "EHLO":
        return "250-server.test\r\n250 PIPELINING"
    if verb in ("MAIL", "NOOP", "RSET"):
        return "250 2.0.0 ok"
    if verb == "RCPT":
        return "550 5.7.1 relaying denied"
    return "221 2.0.0 bye" if verb == "QUIT" else "500 5.5.1 what?"


class Server:
    """An SMTP server on its own thread that answers each line as it is told to; with a certificate it speaks STARTTLS, and
    with `careless` it also runs what stood in clear behind that command."""

    def __init__(self, answer: Answer, files: CertificateFiles | None = None, *, careless: bool = False) -> None:
        self._answer = answer
        self._careless = careless
        self._context: ssl.SSLContext | None = None
        if files is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(files.certificate, files.key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.peers: set[str] = set()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            self.peers.add(peer[0])
            threading.Thread(target=self._session, args=(connection,), daemon=True).start()

    def _session(self, connection: socket.socket) -> None:
        received, secure = b"", False
        connection.settimeout(10)
        try:
            connection.sendall(b"220 server.test ESMTP\r\n")
            while True:
                while b"\r\n" not in received:
                    data = connection.recv(4096)
                    if not data:
                        return
                    received += data
                line, _, received = received.partition(b"\r\n")
                text = line.decode()
                if text == "STARTTLS" and self._context is not None and not secure:
                    connection.sendall(b"220 2.0.0 go\r\n")
                    connection = self._context.wrap_socket(connection, server_side=True)
                    secure = True
                    received = received if self._careless else b""
                    continue
                said = self._answer(text)
                if text.startswith("EHLO") and self._context is not None and not secure:
                    said = said.replace("250 PIPELINING", "250-PIPELINING\r\n250 STARTTLS")
                connection.sendall(said.encode() + b"\r\n")
        except OSError:
            pass
        finally:
            connection.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers that are gone when the test ends."""
    servers: list[Server] = []

    def start(*arguments: Any, **options: Any) -> Server:
        servers.append(Server(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments])


def findings(*arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit status, and check → finding."""
    result = run("--json", "--timeout", "5", *arguments)
    said = json.loads(result.stdout)
    assert said["ok"] is (result.exit_code == 0)
    return result.exit_code, {finding["check"]: finding for finding in said["findings"]}


def failures(found: dict[str, dict[str, str]]) -> set[str]:
    return {check for check, finding in found.items() if finding["result"] == "failed"}


def test_a_sound_server(serve: Callable[..., Server]) -> None:
    """Exit 0; the battery was run to its end, from the address that was asked for."""
    server = serve(sound)
    status, found = findings("--host", "127.0.0.1", "--port", str(server.port), "--source", "127.0.0.3")
    assert (status, failures(found)) == (0, set())
    count = len(attempts("localhost", "127.0.0.1", []))
    assert found["open relay"]["detail"] == f"as 127.0.0.3, all {count} attempts were refused"
    assert server.peers == {"127.0.0.3"}


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        (f"<{PROBE}@{ELSEWHERE}>", "plain"),
        (f"<{PROBE}%{ELSEWHERE}@ours.test>", "percent at ours.test"),
        (f"<{ELSEWHERE}!{PROBE}@ours.test>", "bang at ours.test"),
        (f'<"{PROBE}@{ELSEWHERE}"@ours.test>', "quoted mailbox at ours.test"),
        (f"<@ours.test:{PROBE}@{ELSEWHERE}>", "source route by ours.test"),
        (f"<{PROBE}@[192.0.2.1]>", "address literal"),
        (f"<{PROBE}@{ELSEWHERE}.>", "trailing dot"),
        (f"<{PROBE}@notours.test>", "another domain that ends as ours.test"),
    ],
)
def test_one_hole(serve: Callable[..., Server], wanted: str, name: str) -> None:
    """A server that takes exactly this recipient is found out, and the hole is named."""
    server = serve(lambda line: "250 2.1.5 ok" if line == f"RCPT TO:{wanted}" else sound(line))
    status, found = findings("--host", "127.0.0.1", "--port", str(server.port), "--domain", "ours.test")
    assert (status, failures(found)) == (1, {"open relay"})
    assert name in found["open relay"]["detail"]


def test_undecided_is_not_sound(serve: Callable[..., Server]) -> None:
    """450 may become 250 tomorrow: a warning, and the reply is shown; a server that hangs up counts as undecided, too."""
    server = serve(lambda line: "450 4.7.1 later" if line.startswith("RCPT") else sound(line))
    status, found = findings("--host", "127.0.0.1", "--port", str(server.port))
    assert status == 0
    assert found["open relay"]["result"] == "warning"
    count = len(attempts("localhost", "127.0.0.1", []))
    assert found["open relay"]["detail"].endswith(
        f"0 of {count} attempts were refused, {count} undecided: plain: 450 4.7.1 later"
    )
    server = serve(lambda line: "421 4.7.0 enough" if line.startswith("RCPT") else sound(line))
    _, found = findings("--host", "127.0.0.1", "--port", str(server.port))
    assert found["open relay"]["result"] == "warning"


def test_a_server_that_ends_sessions_is_tested_to_the_end(serve: Callable[..., Server]) -> None:
    """421 after a few refusals costs a new connection, not the rest of the battery."""
    refused = 0

    def impatient(line: str) -> str:
        nonlocal refused
        refused += line.startswith("RCPT")
        return "421 4.7.0 too many errors" if line.startswith("RCPT") and refused % 3 == 0 else sound(line)

    server = serve(impatient)
    status, found = findings("--host", "127.0.0.1", "--port", str(server.port))
    assert status == 0
    assert found["open relay"]["result"] == "ok"


def test_tls(serve: Callable[..., Server], tmp_path: Path) -> None:
    """The version, the names and the chain of a certificate of our own making; nothing is injected."""
    server = serve(sound, certificate_files(tmp_path, "localhost"))
    status, found = findings("--host", "localhost", "--port", str(server.port))
    assert (status, failures(found)) == (0, set())
    assert found["TLS"]["detail"].startswith("TLSv1.3")
    assert found["certificate's names"]["result"] == "ok"
    assert found["certificate's chain"]["result"] == "warning"
    assert found["certificate"]["result"] == "warning"  # it has a day left
    assert found["commands injected behind STARTTLS"]["detail"] == "thrown away"


def test_commands_injected_behind_starttls(serve: Callable[..., Server], tmp_path: Path) -> None:
    """A server that runs them inside of TLS (CVE-2011-0411) is found out."""
    server = serve(sound, certificate_files(tmp_path, "localhost"), careless=True)
    status, found = findings("--host", "localhost", "--port", str(server.port))
    assert (status, failures(found)) == (1, {"commands injected behind STARTTLS"})


def test_a_password_asked_for_in_clear(serve: Callable[..., Server]) -> None:
    """334 to AUTH PLAIN without TLS, and AUTH among the keywords in clear."""
    server = serve(lambda line: "334 " if line.startswith("AUTH") else sound(line))
    assert failures(findings("--host", "127.0.0.1", "--port", str(server.port))[1]) == {"AUTH in clear"}
    offers = serve(lambda line: sound(line).replace("250 PIPELINING", "250-PIPELINING\r\n250 AUTH PLAIN"))
    assert failures(findings("--host", "127.0.0.1", "--port", str(offers.port))[1]) == {"AUTH in clear"}


def test_a_server_that_believes_strangers(serve: Callable[..., Server]) -> None:
    """PROXY and XCLIENT that are answered 250."""
    server = serve(lambda line: "250 2.0.0 ok" if line[:7] in ("PROXY T", "XCLIENT") else sound(line))
    found = findings("--host", "127.0.0.1", "--port", str(server.port))[1]
    assert failures(found) == {"PROXY from a stranger", "XCLIENT"}


def test_nobody_there() -> None:
    """A port that nobody listens on is one finding, and exit status 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        status, found = findings("--host", "127.0.0.1", "--port", str(taken.getsockname()[1]))
    assert (status, set(found), failures(found)) == (1, {"greeting"}, {"greeting"})


def test_the_table(serve: Callable[..., Server]) -> None:
    """The same for people; what a server says cannot move the terminal's cursor, or pass for our own markup."""
    server = serve(lambda line: "250 2.1.5 [bold]\x1b[2Jok" if line.startswith("XCLIENT") else sound(line))
    result = run("--host", "127.0.0.1", "--port", str(server.port))
    assert result.exit_code == 1
    assert f"127.0.0.1:{server.port}" in result.stdout
    assert "[bold]?[2Jok" in result.stdout
    assert result.stdout.rstrip().endswith("1 failed")


def test_what_excludes_itself() -> None:
    """Usage errors, exit status 2."""
    assert run("--host", "127.0.0.1", "--config", "x.toml").exit_code == 2
    assert run("--port", "25").exit_code == 2
    assert run("--config", "/nonexistent.toml").exit_code == 2


def listening(tmp_path: Path, text: str) -> list[Any]:
    """The targets of a configuration."""
    file = tmp_path / "relay.toml"
    file.write_text('[node]\nid = "a"\nhostname = "relay.example.net"\n' + text)
    return targets(config.load(str(file), {}))


def test_as_whom_a_listener_is_tested(tmp_path: Path) -> None:
    """An address that may relay is never the one that tests: another one of loopback, one in a PROXY header, or none."""
    loopback = '[[listener]]\naddress = "127.0.0.1:2525"\n'
    (target,) = listening(tmp_path, loopback)
    assert target.local
    assert as_stranger(target, approaches(target)) is None  # all of loopback may relay, and only loopback reaches it

    (target,) = listening(tmp_path, loopback + '[access]\nnetworks = ["127.0.0.1/32"]\n')
    found = as_stranger(target, approaches(target))
    assert found is not None
    assert found.source == "127.77.77.77"

    (target,) = listening(
        tmp_path, '[[listener]]\naddress = "0.0.0.0:2525"\n[access]\nnetworks = ["198.51.100.0/24"]\n'
    )
    found = as_stranger(target, approaches(target))
    assert found is not None
    assert (found.host, found.source) == ("127.0.0.1", "127.0.0.1")

    behind = '[[listener]]\naddress = "127.0.0.1:2525"\nproxy_protocol_from = ["127.0.0.0/8"]\n'
    (target,) = listening(tmp_path, behind + '[access]\nnetworks = ["127.0.0.0/8", "198.51.100.0/24"]\n')
    found = as_stranger(target, approaches(target))
    assert found is not None
    assert found.client == "203.0.113.77"
    assert found.preface == b"PROXY TCP4 203.0.113.77 127.0.0.1 40000 2525\r\n"

    (target,) = listening(tmp_path, behind.replace("127.0.0.0/8", "192.0.2.1/32"))
    assert as_stranger(target, approaches(target)) is None

    (target,) = listening(tmp_path, loopback + 'mode = "mx"\n[access]\nrelay_domains = ["ours.test"]\n')
    assert as_stranger(target, approaches(target)) is not None  # nobody relays by address there


def test_what_redis_says(tmp_path: Path) -> None:
    """Each thing that INFO can tell, judged."""
    file = tmp_path / "relay.toml"
    file.write_text('[node]\nid = "a"\nhostname = "relay.example.net"\n')
    read = config.load(str(file), {})
    good = {"redis_version": "7.0.15", "used_memory": "1000", "maxmemory": "100000", "aof_last_write_status": "ok"}

    def verdicts(ahead_seconds: float = 0.0, **changed: str) -> dict[str, Verdict]:
        return {found.check: found.verdict for found in judge({**good, **changed}, read, ahead_seconds)}

    assert set(verdicts().values()) == {Verdict.OK}
    assert verdicts(aof_last_write_status="err")["disk"] is Verdict.FAILED
    assert verdicts(used_memory="99000")["memory"] is Verdict.FAILED
    assert verdicts(maxmemory="0")["memory"] is Verdict.WARNING
    assert verdicts(60.0)["clock"] is Verdict.WARNING
