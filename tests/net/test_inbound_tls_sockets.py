"""TLS and PROXY of listeners over real loopback sockets, with clients that somebody else wrote."""

from __future__ import annotations

import smtplib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from relaycluster.net.inbound import InboundFactory, InboundProtocol, InboundSessions, SessionLimits
from relaycluster.net.proxy import ProxyGate
from relaycluster.net.server_tls import CertificateFiles, ServerTLS
from relaycluster.smtp.server_settings import ServerSettings
from tests.net.certificates import Authority
from tests.net.test_inbound import Intake
from tests.net.test_server_tls import NOW
from tests.net.tls_clients import client_context

ROOT = Authority()
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
CONTENTS = [b"Subject: x\r\n\r\nHello.\r\n", b".\r\n..\r\n.x\r\n" * 1000, (b"y" * 76 + b"\r\n") * 40000]


def read_all(client: socket.socket) -> bytes:
    got = b""
    while piece := client.recv(65536):
        got += piece
    return got


def read_lines(client: socket.socket, last: bytes) -> bytes:
    """Up to the line that begins with `last`."""
    got = b""
    while not any(line.startswith(last) for line in got.split(b"\r\n")[:-1]):
        piece = client.recv(65536)
        assert piece, got
        got += piece
    return got


class TLSOverSockets(TestCase):
    """A listener with STARTTLS, one with implicit TLS, and one of each behind a gate, on ephemeral ports of 127.0.0.1."""

    timeout = 60

    def setUp(self) -> None:
        self.intake = Intake()
        self.sessions = InboundSessions(SessionLimits())
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.tls = ServerTLS("1.2", lambda: NOW)
        self.load("mx.example.org")
        self.ports: list[Any] = []
        self.starttls = self.listen(self.factory(False))
        self.implicit = self.listen(self.factory(True))

    @inlineCallbacks
    def tearDown(self) -> Any:
        for port in self.ports:
            yield port.stopListening()
        gone = self.sessions.drain()
        self.sessions.abandon()
        yield gone

    def load(self, default: str, *sni: str) -> None:
        self.tls.load(self.issue(default), [self.issue(name) for name in sni])

    def issue(self, name: str) -> CertificateFiles:
        issued = ROOT.issue(name)
        certificate, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        certificate.write_bytes(issued.certificate)
        key.write_bytes(issued.key)
        return CertificateFiles((), str(certificate), str(key))

    def factory(self, implicit: bool) -> InboundFactory:
        return InboundFactory(
            intake=self.intake,
            settings=ServerSettings("mx.example.org", starttls=not implicit, auth=True, fruitless_commands=10**6),
            sessions=self.sessions,
            clock=reactor,  # type: ignore[arg-type]
            listener="127.0.0.1:0",
            mode="submission",
            tls=self.tls,
            implicit_tls=implicit,
        )

    def listen(self, factory: Any) -> int:
        port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.ports.append(port)
        number: int = port.getHost().port
        return number

    def gated(self, implicit: bool) -> int:
        return self.listen(ProxyGate(self.factory(implicit), [ip_network("127.0.0.0/8")], reactor))  # type: ignore[arg-type]

    def connect(self, port: int) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=30)

    @inlineCallbacks
    def test_smtplib_over_tls(self) -> Any:
        """STARTTLS and implicit, 1.2 and 1.3, AUTH inside, the certificate verified: messages small, dotty and of three megabytes
        arrive byte for byte; the node knows the version and the user."""

        def send(version: ssl.TLSVersion, implicit: bool) -> None:
            context = client_context(ROOT.certificate, version)
            context.check_hostname = False
            if implicit:
                client: smtplib.SMTP = smtplib.SMTP_SSL("127.0.0.1", self.implicit, timeout=30, context=context)
            else:
                client = smtplib.SMTP("127.0.0.1", self.starttls, timeout=30)
            with client:
                if not implicit:
                    client.starttls(context=context)
                client.login("user", "secret")
                for content in CONTENTS:
                    client.sendmail("a@client.example", ["b@example.net"], content)

        for version in VERSIONS:
            for implicit in (False, True):
                self.intake.sinks.clear()
                yield deferToThread(send, version, implicit)
                self.assertEqual([sink.written for sink in self.intake.sinks], CONTENTS)
                session = self.intake.asked[-1][1]
                self.assertEqual((session.tls.version, session.user), (version.name.replace("_", "."), "user"))

    @inlineCallbacks
    def test_names_and_reload(self) -> Any:
        """Each client gets the certificate of the name that it asks for; a reload changes it for the next one, while the open
        session goes on; and a session is taken up again behind the reload."""
        self.load("mx.example.org", "mail.example.com")

        def visit(context: ssl.SSLContext, name: str, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
            client = context.wrap_socket(self.connect(self.implicit), server_hostname=name, session=session)
            assert client.recv(4096).startswith(b"220 ")
            return client

        def numbers(*names: str) -> list[str]:
            context, found = client_context(ROOT.certificate), []
            for name in names:
                with visit(context, name) as client:
                    certificate = client.getpeercert()
                    assert certificate is not None
                    found.append(str(certificate["serialNumber"]))
            return found

        before = yield deferToThread(numbers, "mx.example.org", "mail.example.com")
        self.assertEqual(len(set(before)), 2)
        for version in VERSIONS:
            context = client_context(ROOT.certificate, version)
            client = yield deferToThread(visit, context, "mail.example.com")
            self.load("mx.example.org", "mail.example.com")
            client.sendall(b"NOOP\r\n")
            answer = yield deferToThread(client.recv, 4096)
            self.assertEqual(answer, b"250 2.0.0 Ok\r\n")
            again = yield deferToThread(visit, context, "mail.example.com", client.session)
            self.assertTrue(again.session_reused)
            client.close()
            again.close()
        after = yield deferToThread(numbers, "mx.example.org", "mail.example.com")
        self.assertEqual(len({*before, *after}), 4)

    @inlineCallbacks
    def test_commands_injected_behind_starttls(self) -> Any:
        """RFC 3207 and CVE-2011-0411, over a real socket: what came in one segment with STARTTLS is not answered inside TLS and
        leaves no trace in the session; what comes after the 220 in clear breaks the handshake."""
        evil = b"EHLO evil\r\nMAIL FROM:<x@evil.example>\r\nRCPT TO:<y@example.net>\r\nDATA\r\n"

        def inject() -> bytes:
            context = client_context()
            with self.connect(self.starttls) as plain:
                read_lines(plain, b"220 ")
                plain.sendall(b"EHLO client.example\r\n")
                read_lines(plain, b"250 ")
                plain.sendall(b"STARTTLS\r\n" + evil)
                assert plain.recv(4096) == b"220 2.0.0 Ready to start TLS\r\n"
                with context.wrap_socket(plain) as client:
                    client.sendall(b"NOOP\r\nMAIL FROM:<a@client.example>\r\nQUIT\r\n")
                    return read_all(client)

        def inject_late() -> bytes:
            with self.connect(self.starttls) as plain:
                read_lines(plain, b"220 ")
                plain.sendall(b"EHLO client.example\r\nSTARTTLS\r\n")
                read_lines(plain, b"220 ")
                plain.sendall(evil)
                return read_all(plain)

        got = yield deferToThread(inject)
        self.assertEqual([line[:9] for line in got.split(b"\r\n")], [b"250 2.0.0", b"503 5.5.1", b"221 2.0.0", b""])
        got = yield deferToThread(inject_late)
        self.assertIn(got[:1], (b"", b"\x15"))
        self.assertEqual({asked[0] for asked in self.intake.asked}, {"connect"})

    @inlineCallbacks
    def test_the_greeting_is_encrypted_and_the_goodbye_is_certain(self) -> Any:
        """Under implicit TLS no octet precedes the handshake; at the end close_notify stands before the end of the connection, so
        that a client knows that nothing was cut off."""

        def talk() -> tuple[bytes, bytes]:
            with self.connect(self.implicit) as plain:
                plain.settimeout(30)
                context = client_context(ROOT.certificate)
                with context.wrap_socket(plain, server_hostname="mx.example.org", suppress_ragged_eofs=False) as client:
                    greeting = read_lines(client, b"220 ")
                    client.sendall(b"QUIT\r\n")
                    return greeting, read_all(client)  # raises at an end without close_notify

        greeting, farewell = yield deferToThread(talk)
        self.assertEqual(greeting, b"220 mx.example.org ESMTP relaycluster\r\n")
        self.assertTrue(farewell.startswith(b"221 2.0.0 "))

    @inlineCallbacks
    def test_a_client_that_pipelines_without_reading(self) -> Any:
        """Back-pressure reaches through TLS: the server stops reading, and later every reply comes, in order."""
        count = 50000
        stopped = threading.Event()
        stop = InboundProtocol.pauseProducing

        def pause(session: InboundProtocol) -> None:
            stopped.set()
            stop(session)

        self.patch(InboundProtocol, "pauseProducing", pause)
        for port in self.ports:
            port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)

        def talk() -> bytes:
            with socket.socket() as plain:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                plain.settimeout(30)
                plain.connect(("127.0.0.1", self.implicit))
                with client_context().wrap_socket(plain) as client:
                    read_lines(client, b"220 ")
                    left = b"".join(b"VRFY x\r\n" if n % 2 else b"HELP\r\n" for n in range(count)) + b"QUIT\r\n"
                    got: list[bytes] = []

                    def write() -> None:
                        client.sendall(left)

                    writer = threading.Thread(target=write)
                    writer.start()
                    assert stopped.wait(30), "the server never stopped reading"
                    got.append(read_all(client))
                    writer.join(30)
                    return b"".join(got)

        got = yield deferToThread(talk)
        lines = got.split(b"\r\n")
        self.assertEqual([line[:3] for line in lines[:-2]], [b"252" if n % 2 else b"214" for n in range(count)])
        self.assertTrue(lines[-2].startswith(b"221 "))

    @inlineCallbacks
    def test_proxy_before_everything(self) -> Any:
        """Before STARTTLS and before implicit TLS, version 1 and 2, in one segment with what follows or octet by octet."""
        plain_port, tls_port = self.gated(False), self.gated(True)
        v1 = b"PROXY TCP4 192.0.2.1 198.51.100.1 1000 25\r\n"
        v2 = (
            b"\r\n\r\n\x00\r\nQUIT\n\x21\x21"
            + struct.pack("!H", 36)
            + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
            + socket.inet_pton(socket.AF_INET6, "2001:db8::2")
            + struct.pack("!HH", 1000, 25)
        )

        def drip(client: socket.socket, data: bytes) -> None:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(len(data)):
                client.sendall(data[at : at + 1])

        def whole(client: socket.socket, data: bytes) -> None:
            client.sendall(data)

        def visit(port: int, header: bytes, write: Callable[[socket.socket, bytes], None]) -> bytes:
            with self.connect(port) as plain:
                write(plain, header)
                if port == tls_port:
                    with client_context().wrap_socket(plain) as client:
                        return read_lines(client, b"220 ")
                write(plain, b"EHLO client.example\r\nQUIT\r\n")
                return read_all(plain)

        for header, address in ((v1, "192.0.2.1"), (v2, "2001:db8::1")):
            for port in (plain_port, tls_port):
                for write in (drip, whole):
                    got = yield deferToThread(visit, port, header, write)
                    self.assertTrue(got.startswith(b"220 mx.example.org"), got)
                    session = self.intake.asked[-1][1]
                    self.assertEqual((session.peer_address, session.via), (address, "127.0.0.1"))
