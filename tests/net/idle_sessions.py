"""How much memory an idle session takes: a server in this process, its clients in another.

    python -m tests.net.idle_sessions plain|tls SESSIONS

prints kibibytes of resident memory per session twice: after EHLO, and after a message of 300 KiB in each. The first tenth of the
sessions only warms up.
"""

from __future__ import annotations

import gc
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from relaycluster.interfaces import IContentSink
from relaycluster.mail.reply import Reply
from relaycluster.net.inbound import InboundFactory, InboundSessions, SessionLimits
from relaycluster.smtp.server_settings import ServerSettings
from tests.net.test_inbound import QUEUED, Intake

MESSAGE = b"MAIL FROM:<a@client.example>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"
CONTENT = (b"y" * 76 + b"\r\n") * 4000 + b".\r\n"


@implementer(IContentSink)
class Forgetful:
    """Keeps nothing."""

    def write(self, data: bytes) -> None:
        """Forget it."""

    def finish(self) -> Deferred[Reply]:
        return succeed(QUEUED)

    def abort(self) -> None:
        """Nothing to do."""


class Indifferent(Intake):
    """Accepts everything and remembers nothing."""

    def connect(self, *_: Any) -> None:
        """Yes."""

    def mail(self, *_: Any) -> None:
        """Yes."""

    def recipient(self, *_: Any) -> None:
        """Yes."""

    def data(self, *_: Any) -> Forgetful:
        return Forgetful()


def resident_kib() -> int:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard) if hard >= 0 else count, hard))


def serve(kind: str, count: int) -> None:
    """The server; the clients are told over a pipe what to do next, and answer when it is done."""
    from tests.net.test_server_tls import Shelf

    with tempfile.TemporaryDirectory() as directory:
        shelf = Shelf(Path(directory))
        shelf.tls.load(shelf.issue("mx.example.org"))
    factory = InboundFactory(
        intake=Indifferent(),
        settings=ServerSettings("mx.example.org"),
        sessions=InboundSessions(SessionLimits(connections=2 * count, connections_per_client=2 * count, stress_at=2)),
        clock=reactor,  # type: ignore[arg-type]
        listener="127.0.0.1:0",
        mode="mx",
        tls=shelf.tls,
        implicit_tls=kind == "tls",
    )
    port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
    command = [sys.executable, "-m", "tests.net.idle_sessions", kind, str(count), str(port.getHost().port)]
    clients = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert clients.stdin is not None
    assert clients.stdout is not None

    def next_step() -> None:
        clients.stdin.write("go\n")  # type: ignore[union-attr]
        clients.stdin.flush()  # type: ignore[union-attr]
        assert clients.stdout.readline() == "done\n"  # type: ignore[union-attr]

    def from_reactor(ask: Callable[[], int]) -> int:
        from twisted.internet.threads import blockingCallFromThread

        answer: int = blockingCallFromThread(reactor, ask)
        return answer

    def measure() -> None:
        try:
            next_step()  # a tenth
            before, sessions = from_reactor(resident_kib), factory.sessions.connections
            next_step()  # the others
            more = factory.sessions.connections - sessions
            assert more == count - count // 10
            print((from_reactor(resident_kib) - before) / more)
            next_step()  # a message each
            print((from_reactor(resident_kib) - before) / more)
        finally:
            clients.kill()
            clients.wait()
            reactor.callFromThread(reactor.stop)  # type: ignore[attr-defined]

    reactor.callInThread(measure)  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


def visit(kind: str, count: int, port: int) -> None:
    """The clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    clients: list[socket.socket] = []

    def read(client: socket.socket, last: bytes) -> None:
        got = b""
        while not any(line.startswith(last) for line in got.split(b"\r\n")[:-1]):
            piece = client.recv(65536)
            assert piece
            got += piece

    def connect() -> None:
        client = socket.create_connection(("127.0.0.1", port))
        if kind == "tls":
            client = context.wrap_socket(client)
        read(client, b"220 ")
        client.sendall(b"EHLO client.example\r\n")
        read(client, b"250 ")
        clients.append(client)

    def send(client: socket.socket) -> None:
        client.sendall(MESSAGE)
        read(client, b"354 ")
        client.sendall(CONTENT)
        read(client, b"250 2.0.0 ")

    for connections in (count // 10, count - count // 10):
        sys.stdin.readline()
        for _ in range(connections):
            connect()
        print("done", flush=True)
    sys.stdin.readline()
    for client in clients:
        send(client)
    print("done", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    allow_files(int(sys.argv[2]) + 200)
    if len(sys.argv) > 3:
        visit(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        serve(sys.argv[1], int(sys.argv[2]))
