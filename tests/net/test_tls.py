"""TLS of outbound connections: who is believed under which policy, what a failure is called, what is resumed."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import pytest
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.ssl import PrivateCertificate

from relaycluster.mail import outcome
from relaycluster.mail.outcome import Delivered, Stage
from relaycluster.net.outbound import ConnectFailed, OutboundConnection, OutboundSettings, Timeouts, connect
from relaycluster.net.tls import BROKEN_SECONDS, LONGEST_BROKEN_SECONDS, ClientTLS, NotTrusted, reason
from relaycluster.smtp.client_events import TLSPolicy
from tests.net.certificates import Authority, Issued
from tests.net.loopback import CONTENT, LoopbackCase, chunks, transaction, turn
from tests.net.scripted_server import ScriptedServer, ScriptedSession, drop, hang

EHLO = "250-mx.example.com\r\n250-STARTTLS\r\n250-PIPELINING\r\n250 8BITMIME"


class TLSTests(LoopbackCase):
    """Whole sessions over loopback."""

    def setUp(self) -> None:
        super().setUp()
        self.authority = Authority()
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.ca_file = str(Path(directory.name) / "root.pem")
        Path(self.ca_file).write_bytes(self.authority.certificate)

    def server(self, *names: str, authority: Authority | None = None, **script: Any) -> ScriptedServer:
        """A server with STARTTLS and a certificate for the names."""
        server = ScriptedServer(**{"EHLO": [EHLO], **script})
        issued = (authority or self.authority).issue(*names)
        server.tls = PrivateCertificate.loadPEM(issued.key + issued.certificate).options()
        return server

    async def session(
        self, server: ScriptedServer, policy: TLSPolicy, host: str = "mx.example.com"
    ) -> OutboundConnection:
        """A session with the server under the policy."""
        settings = OutboundSettings("r", ClientTLS(self.ca_file), Timeouts(tls_seconds=5))
        target = attrs.evolve(self.listen(server), tls=policy, host=host)
        connection = await connect(reactor, target, settings)
        self.connections.append(connection)
        return connection

    async def fails(self, server: ScriptedServer, policy: TLSPolicy, host: str = "mx.example.com") -> ConnectFailed:
        try:
            await self.session(server, policy, host)
        except ConnectFailed as failed:
            self.assertIsInstance(failed.outcome, outcome.Deferred)
            self.assertEqual(failed.outcome.stage, Stage.TLS)
            self.assertNotIn("MAIL", server.heard)
            return failed
        raise AssertionError("connected")

    @inlineCallbacks
    def test_opportunistic_with_any_certificate(self) -> Any:
        """Under "may" and "encrypt" a certificate of somebody else is no obstacle; the mail is encrypted."""
        for policy in (TLSPolicy.MAY, TLSPolicy.ENCRYPT):
            server = self.server("elsewhere.example.org", authority=Authority())
            connection = yield Deferred.fromCoroutine(self.session(server, policy))
            self.assertIn(connection.tls.version, ("TLSv1.2", "TLSv1.3"))
            self.assertTrue(connection.tls.cipher)
            (each,) = yield connection.send(transaction())
            self.assertIsInstance(each, Delivered)
            self.assertEqual(server.contents, [CONTENT])
            self.assertEqual(server.heard[:5], ["GREETING", "EHLO", "STARTTLS", "EHLO", "MAIL"])

    @inlineCallbacks
    def test_verified(self) -> Any:
        """Under "verify" a chain that ends in a trusted root, for the host's name, a wildcard or its address."""
        for host, name in (
            ("mx.example.com", "mx.example.com"),
            ("mx.example.com", "*.example.com"),
            ("mx.example.com.", "mx.example.com"),
            ("127.0.0.1", "127.0.0.1"),
        ):
            server = self.server(name)
            connection = yield Deferred.fromCoroutine(self.session(server, TLSPolicy.VERIFY, host))
            (each,) = yield connection.send(transaction())
            self.assertIsInstance(each, Delivered)

    @inlineCallbacks
    def test_not_verified(self) -> Any:
        """A wrong name, or an unknown root: deferred, with the reason, and nothing is said under such a TLS."""
        wrong_name = self.server("mx.example.org")
        failed = yield Deferred.fromCoroutine(self.fails(wrong_name, TLSPolicy.VERIFY))
        self.assertIn("the certificate does not name mx.example.com", str(failed.outcome.reply))
        self.assertEqual(wrong_name.heard, ["GREETING", "EHLO", "STARTTLS"])
        unknown_root = self.server("mx.example.com", authority=Authority())
        failed = yield Deferred.fromCoroutine(self.fails(unknown_root, TLSPolicy.VERIFY))
        self.assertIn("the certificate's signature is not its issuer's", str(failed.outcome.reply))
        self.assertEqual(unknown_root.heard, ["GREETING", "EHLO", "STARTTLS"])

    @inlineCallbacks
    def test_certificates_without_a_usable_name(self) -> Any:
        """No alternative names, or a wildcard where none may be: deferred like a wrong name, in words; nothing escapes as a fault of ours."""
        for names in ((), ("*",), ("f*.*.example.com",), ("*.*.example.com",)):
            server = self.server(*names)
            failed = yield Deferred.fromCoroutine(self.fails(server, TLSPolicy.VERIFY))
            self.assertIn("the certificate has no usable names", str(failed.outcome.reply))
            self.assertEqual(server.heard, ["GREETING", "EHLO", "STARTTLS"])
            self.assertEqual(self.flushLoggedErrors(), [])

    @inlineCallbacks
    def test_replies_injected_behind_starttls(self) -> Any:
        """What stands in clear behind the 220 is not believed (CVE-2011-0411): no session, not even an encrypted one."""
        for injected in ("250-mx.example.com\r\n250 PIPELINING", "25", "250 ok"):
            server = self.server("mx.example.com", STARTTLS=[f"220 go\r\n{injected}"])
            failed = yield Deferred.fromCoroutine(self.fails(server, TLSPolicy.ENCRYPT))
            self.assertTrue(failed.tls_failed)
            self.assertEqual(server.heard, ["GREETING", "EHLO", "STARTTLS"])

    @inlineCallbacks
    def test_failures_of_tls_are_marked(self) -> Any:
        """Rubbish instead of a handshake, a connection that is dropped or hangs: the caller may try again in clear."""

        def rubbish(session: ScriptedSession) -> None:
            session.is_deaf = True
            session.say("220 go")
            reactor.callLater(0.02, session.say, "what do you mean?")  # type: ignore[attr-defined]

        def silence(session: ScriptedSession) -> None:
            session.is_deaf = True
            session.say("220 go")

        def leave(session: ScriptedSession) -> None:
            session.say("220 go")
            drop(session)

        for how in (rubbish, leave, drop):
            failed = yield Deferred.fromCoroutine(self.fails(self.server("x", STARTTLS=[how]), TLSPolicy.ENCRYPT))
            self.assertTrue(failed.tls_failed, how)
            yield Deferred.fromCoroutine(self.goes_to_clear(how, Timeouts(tls_seconds=5)))
        for how in (silence, hang):
            target = attrs.evolve(self.listen(self.server("x", STARTTLS=[how])), tls=TLSPolicy.ENCRYPT)
            settings = OutboundSettings("r", ClientTLS(self.ca_file), Timeouts(tls_seconds=0.05))
            failed = yield self.assertFailure(connect(reactor, target, settings), ConnectFailed)
            self.assertTrue(failed.tls_failed, how)
            self.assertIn("timed out", str(failed.outcome.reply))
            yield Deferred.fromCoroutine(self.goes_to_clear(how, Timeouts(tls_seconds=0.05)))

    async def goes_to_clear(self, how: Any, timeouts: Timeouts) -> None:
        """Under "may": once per TLS trouble, then in clear from the start, and it is told why."""
        server = self.server("x", STARTTLS=[how])
        target = attrs.evolve(self.listen(server), tls=TLSPolicy.MAY)
        settings = OutboundSettings("r", ClientTLS(self.ca_file), timeouts)
        for attempts in (2, 3, 4):
            connection = await connect(reactor, target, settings)
            self.connections.append(connection)
            self.assertEqual((server.connections, server.most_at_once), (attempts, attempts - 1))  # ours all stand
            self.assertEqual(server.heard.count("STARTTLS"), 1)
            self.assertIsNone(connection.tls)
            self.assertEqual(connection.target, target)  # so that the pool shares it
            self.assertRegex(
                connection.tls_used, "clear: (The TLS handshake with the host failed|timed out|connection lost)"
            )
            self.assertIsInstance((await connection.send(transaction()))[0], Delivered)

    @inlineCallbacks
    def test_a_host_that_is_down_is_not_taken_for_one_with_broken_tls(self) -> Any:
        """When it breaks off in clear as well, the trouble is another, and TLS is tried the next time."""
        server = self.server("x", STARTTLS=[drop, "220 go"], GREETING=["220 hi", drop, "220 hi"])
        target = attrs.evolve(self.listen(server), tls=TLSPolicy.MAY)
        settings = OutboundSettings("r", ClientTLS(self.ca_file))
        failed = yield self.assertFailure(connect(reactor, target, settings), ConnectFailed)
        self.assertEqual((failed.outcome.stage, failed.tls_failed), (Stage.GREETING, False))
        connection = yield connect(reactor, target, settings)
        self.connections.append(connection)
        self.assertIsNotNone(connection.tls)

    @inlineCallbacks
    def test_a_host_that_takes_nothing_in_clear(self) -> Any:
        """One handshake broke off, and the host was remembered; but it wants TLS: that session ends, and the next one tries again."""
        for refusal in ("530 5.7.0 Must issue a STARTTLS command first", "451 5.7.3 STARTTLS is required to send mail"):
            server = self.server("x", STARTTLS=[drop, "220 go"], MAIL=[refusal, "250 ok"])
            target = attrs.evolve(self.listen(server), tls=TLSPolicy.MAY)
            settings = OutboundSettings("r", ClientTLS(self.ca_file))
            connection = yield connect(reactor, target, settings)
            self.connections.append(connection)
            (each,) = yield connection.send(transaction())
            self.assertEqual((each.stage, connection.tls, connection.usable), (Stage.MAIL, None, False))
            connection = yield connect(reactor, target, settings)
            self.connections.append(connection)
            self.assertIsInstance((yield connection.send(transaction()))[0], Delivered)
            self.assertIsNotNone(connection.tls)

    @inlineCallbacks
    def test_421_under_tls_is_not_broken_tls(self) -> Any:
        """A busy host says so under TLS: it is not asked again in clear, neither now nor later."""
        server = self.server("x", EHLO=[EHLO, "421 4.3.2 too busy", EHLO])
        target = attrs.evolve(self.listen(server), tls=TLSPolicy.MAY)
        settings = OutboundSettings("r", ClientTLS(self.ca_file))
        failed = yield self.assertFailure(connect(reactor, target, settings), ConnectFailed)
        self.assertEqual(failed.outcome.reply.code, 421)
        self.assertFalse(failed.tls_failed)
        self.assertEqual(server.connections, 1)
        connection = yield connect(reactor, target, settings)
        self.connections.append(connection)
        self.assertIsNotNone(connection.tls)

    @inlineCallbacks
    def test_cancelled_in_the_handshake(self) -> Any:
        """Who gives up does not find out anything about the host's TLS, and does not begin anew in clear."""
        server = self.server("x", STARTTLS=[hang])
        target = attrs.evolve(self.listen(server), tls=TLSPolicy.MAY)
        ours = ClientTLS(self.ca_file)
        connecting = connect(reactor, target, OutboundSettings("r", ours))
        while "STARTTLS" not in server.heard:
            yield turn()
        connecting.cancel()
        self.failureResultOf(connecting, ConnectFailed)
        while server.sessions:
            yield turn()
        self.assertEqual(server.connections, 1)
        self.assertEqual(ours.broken(target.address, target.port, 0), "")

    @inlineCallbacks
    def test_starttls_refused(self) -> Any:
        """454: under "may" the same session goes on in clear; under "encrypt" mail waits, and nothing is said in clear."""
        server = self.server("x", STARTTLS=["454 4.7.0 TLS not available"])
        connection = yield Deferred.fromCoroutine(self.session(server, TLSPolicy.MAY))
        self.assertEqual((server.connections, connection.tls_used), (1, "clear: STARTTLS refused"))
        self.assertIsInstance((yield connection.send(transaction()))[0], Delivered)
        for policy in (TLSPolicy.ENCRYPT, TLSPolicy.VERIFY):
            server = self.server("x", STARTTLS=["454 4.7.0 TLS not available"])
            failed = yield Deferred.fromCoroutine(self.fails(server, policy))
            self.assertIn(failed.outcome.reply.enhanced, ("4.7.4", "4.7.0"))

    @inlineCallbacks
    def test_required_and_not_offered(self) -> Any:
        """Whoever strips the offer gets nothing to read: the mail waits."""
        for policy in (TLSPolicy.ENCRYPT, TLSPolicy.VERIFY):
            failed = yield Deferred.fromCoroutine(self.fails(ScriptedServer(), policy))
            self.assertEqual(failed.outcome.reply.enhanced, "4.7.4")

    @inlineCallbacks
    def test_what_is_wrong_with_a_certificate(self) -> Any:
        """An operator reads the reason, not the name of an OpenSSL routine."""
        expired = self.authority.issue("mx.example.com", starts=timedelta(days=-9), ends=timedelta(days=-1))
        early = self.authority.issue("mx.example.com", starts=timedelta(days=1), ends=timedelta(days=9))
        unknown = Authority("Another Root").issue("mx.example.com")
        for issued, words in (
            (expired, "the certificate has expired"),
            (early, "the certificate is not yet valid"),
            (unknown, "the certificate's issuer is unknown"),
        ):
            server = ScriptedServer(EHLO=[EHLO])
            server.tls = PrivateCertificate.loadPEM(issued.key + issued.certificate).options()
            failed = yield Deferred.fromCoroutine(self.fails(server, TLSPolicy.VERIFY))
            self.assertEqual(str(failed.outcome.reply), f"454 4.7.5 The TLS handshake with the host failed ({words})")

    @inlineCallbacks
    def test_resumed_over_sockets(self) -> Any:
        """The second connection takes the first one's session up again, and is as protected, and as verified, as the first."""
        server = self.server("mx.example.com")
        target = attrs.evolve(self.listen(server), tls=TLSPolicy.VERIFY)
        settings = OutboundSettings("r", ClientTLS(self.ca_file))
        for _ in range(2):
            connection = yield connect(reactor, target, settings)
            self.connections.append(connection)
            self.assertRegex(connection.tls_used, r"^TLSv1\.[23] \S+, verified$")
            self.assertIsInstance((yield connection.send(transaction()))[0], Delivered)
            gone: Deferred[object] = Deferred()
            connection.on_closed = gone.callback
            connection.close()
            yield gone

    @inlineCallbacks
    def test_may_without_starttls(self) -> Any:
        """Nothing is offered: the session goes on in clear."""
        connection = yield Deferred.fromCoroutine(self.session(ScriptedServer(), TLSPolicy.MAY))
        self.assertIsNone(connection.tls)
        self.assertIsInstance((yield connection.send(transaction()))[0], Delivered)

    @inlineCallbacks
    def test_no_tls_in_this_node(self) -> Any:
        """Settings without TLS: a target that wants it fails and says why, one that may do without does without."""
        target = attrs.evolve(self.listen(self.server("x")), tls=TLSPolicy.ENCRYPT)
        failed = yield self.assertFailure(connect(reactor, target, OutboundSettings("r")), ConnectFailed)
        self.assertTrue(failed.tls_failed)
        connection = yield connect(reactor, attrs.evolve(target, tls=TLSPolicy.MAY), OutboundSettings("r"))
        self.connections.append(connection)
        self.assertEqual(connection.tls_used, "clear: this node has no TLS")

    @inlineCallbacks
    def test_a_host_whose_name_is_none(self) -> Any:
        """What OpenSSL would not take as a server name is a failure of this delivery alone."""
        for host in ("mü.example.com", "mx\0.example.com"):
            failed = yield Deferred.fromCoroutine(self.fails(self.server("x"), TLSPolicy.ENCRYPT, host))
            self.assertTrue(failed.tls_failed)

    @inlineCallbacks
    def test_large_contents(self) -> Any:
        """Megabytes pass through TLS as they were, from bytes and from an iterator, to a server that reads with pauses."""

        def pause(session: ScriptedSession) -> None:
            session.transport.pauseProducing()
            reactor.callLater(0.05, session.transport.resumeProducing)  # type: ignore[attr-defined]

        content = (b"." * 76 + b"\r\n") * 50_000
        server = self.server("mx.example.com", CONTENT=[pause])
        connection = yield Deferred.fromCoroutine(self.session(server, TLSPolicy.VERIFY))
        for each in (content, chunks(content, 10_001)):
            (result,) = yield connection.send(transaction(content=each, size=len(content)))
            self.assertIsInstance(result, Delivered)
        self.assertEqual(server.contents, [content, content])

    @inlineCallbacks
    def test_close(self) -> Any:
        """QUIT under TLS, and the connection is gone."""
        server = self.server("mx.example.com")
        connection = yield Deferred.fromCoroutine(self.session(server, TLSPolicy.VERIFY))
        closed: Deferred[OutboundConnection] = Deferred()
        connection.on_closed = closed.callback
        connection.close()
        yield closed
        while not server.closed:
            yield turn()
        self.assertEqual(server.heard[-1], "QUIT")

    @inlineCallbacks
    def test_dropped_under_tls(self) -> Any:
        """A server that goes away after the dot leaves the same doubt as in clear."""
        server = self.server("mx.example.com", DOT=[drop])
        connection = yield Deferred.fromCoroutine(self.session(server, TLSPolicy.VERIFY))
        (each,) = yield connection.send(transaction())
        self.assertEqual((each.stage, each.may_have_arrived), (Stage.FINAL_DOT, True))


class Handshake:
    """A handshake in memory with a server of the standard library's ssl."""

    def __init__(self, issued: Issued, directory: Path) -> None:
        (directory / "chain.pem").write_bytes(issued.key + issued.certificate)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(directory / "chain.pem")
        self.names: list[str | None] = []
        self.context.sni_callback = lambda _object, name, _context: self.names.append(name)

    def run(self, client: SSL.Connection) -> ssl.SSLObject:
        """Shake hands, and say something, as SMTP does: TLS 1.3 sends its tickets with it."""
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = self.context.wrap_bio(to_server, to_client, server_side=True)
        client.set_connect_state()

        def pass_on() -> None:
            try:
                while True:
                    to_server.write(client.bio_read(1 << 16))
            except SSL.WantReadError:
                pass
            if to_client.pending:
                client.bio_write(to_client.read())

        finished = 0
        for _ in range(10):
            finished = 0
            try:
                client.do_handshake()
                finished += 1
            except SSL.WantReadError:
                pass
            pass_on()
            try:
                server.do_handshake()
                finished += 1
            except ssl.SSLWantReadError:
                pass
            pass_on()
            if finished == 2:
                break
        assert finished == 2, "no handshake"
        server.write(b"250 hello\r\n")
        pass_on()
        assert client.recv(100) == b"250 hello\r\n"
        client.shutdown()  # OpenSSL does not resume the session of a connection that was cut off
        return server


@pytest.fixture
def authority() -> Authority:
    return Authority()


def client_tls(authority: Authority, directory: Path, **options: int) -> ClientTLS:
    (directory / "root.pem").write_bytes(authority.certificate)
    return ClientTLS(str(directory / "root.pem"), **options)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("verify", [False, True])
def test_sessions_are_resumed(authority: Authority, tmp_path: Path, newest: ssl.TLSVersion, verify: bool) -> None:
    """The second connection to a host under the same policy shakes hands in short, and is verified all the same."""
    clients = client_tls(authority, tmp_path)
    handshake = Handshake(authority.issue("mx.example.com"), tmp_path)
    handshake.context.maximum_version = newest
    for resumed in (False, True, True):
        client = clients.connection_to("mx.example.com", 25, verify=verify).clientConnectionForTLS(None)
        assert handshake.run(client).session_reused is resumed
        clients.verify_host(client, "mx.example.com")
        with pytest.raises(NotTrusted):
            clients.verify_host(client, "mx.example.org")
        clients.remember(client, "mx.example.com", 25, verify=verify)


def test_sessions_are_not_shared(authority: Authority, tmp_path: Path) -> None:
    """Not between hosts, ports or policies: one that was not verified must never pass for one that was."""
    clients = client_tls(authority, tmp_path)
    handshake = Handshake(authority.issue("mx.example.com"), tmp_path)
    client = clients.connection_to("mx.example.com", 25, verify=False).clientConnectionForTLS(None)
    handshake.run(client)
    clients.remember(client, "mx.example.com", 25, verify=False)
    for host, port, verify in (
        ("mx.example.com", 25, True),
        ("mx.example.com", 26, False),
        ("mx2.example.com", 25, False),
    ):
        client = clients.connection_to(host, port, verify=verify).clientConnectionForTLS(None)
        assert not handshake.run(client).session_reused
    clients.forget("mx.example.com", 25, verify=False)
    client = clients.connection_to("mx.example.com", 25, verify=False).clientConnectionForTLS(None)
    assert not handshake.run(client).session_reused


def test_kept_sessions_are_bounded(authority: Authority, tmp_path: Path) -> None:
    """A million hosts do not fill the memory: the one that was remembered first goes first."""
    clients = client_tls(authority, tmp_path, most_sessions=2)
    handshake = Handshake(authority.issue("mx.example.com"), tmp_path)
    for host in ("a.example", "b.example", "c.example"):
        client = clients.connection_to(host, 25, verify=False).clientConnectionForTLS(None)
        handshake.run(client)
        clients.remember(client, host, 25, verify=False)
    for host, resumed in (("a.example", False), ("b.example", True), ("c.example", True)):
        client = clients.connection_to(host, 25, verify=False).clientConnectionForTLS(None)
        assert handshake.run(client).session_reused is resumed


def test_broken_tls_is_remembered_for_a_while(authority: Authority, tmp_path: Path, monkeypatch: Any) -> None:
    """By address and port; forgotten after its time, and, with too many of them, the oldest first."""
    monkeypatch.setattr("relaycluster.net.tls.MOST_BROKEN", 2)
    clients = client_tls(authority, tmp_path)
    clients.note_broken("192.0.2.1", 25, "a fault", 100.0)
    assert clients.broken("192.0.2.1", 25, 100.0 + BROKEN_SECONDS - 1) == "a fault"
    assert clients.broken("192.0.2.1", 26, 100.0) == ""
    assert clients.broken("192.0.2.2", 25, 100.0) == ""
    assert clients.broken("192.0.2.1", 25, 100.0 + BROKEN_SECONDS) == ""
    for number in (1, 2, 3):
        clients.note_broken(f"192.0.2.{number}", 25, "a fault", 100.0)
    assert [clients.broken(f"192.0.2.{number}", 25, 100.0) for number in (1, 2, 3)] == ["", "a fault", "a fault"]


def test_broken_tls_is_tried_more_and_more_rarely(authority: Authority, tmp_path: Path) -> None:
    """Soon at first: most of what breaks a handshake is over in a moment. Some that break together count once; success forgets it."""
    clients = client_tls(authority, tmp_path)
    now, pauses = 0.0, []
    for _ in range(6):
        for later in (0, 1, 2):
            clients.note_broken("192.0.2.1", 25, "a fault", now + later)
        began = now
        while clients.broken("192.0.2.1", 25, now):
            now += 1
        pauses.append(now - began - 2)
    assert pauses == [BROKEN_SECONDS * factor for factor in (1, 2, 4, 8)] + [LONGEST_BROKEN_SECONDS] * 2
    clients.note_broken("192.0.2.1", 25, "a fault", now)
    clients.note_wanted("192.0.2.1", 25)
    assert clients.broken("192.0.2.1", 25, now) == ""
    clients.note_broken("192.0.2.1", 25, "a fault", now)
    assert clients.broken("192.0.2.1", 25, now + BROKEN_SECONDS) == ""


def test_server_name_indication(authority: Authority, tmp_path: Path) -> None:
    """RFC 6066 section 3: a name without its trailing dot, and no address."""
    clients = client_tls(authority, tmp_path)
    handshake = Handshake(authority.issue("mx.example.com"), tmp_path)
    for host in ("mx.example.com", "mx.example.com.", "192.0.2.1", "2001:db8::1"):
        handshake.run(clients.connection_to(host, 25, verify=False).clientConnectionForTLS(None))
    assert handshake.names == ["mx.example.com", "mx.example.com", None, None]


def test_reason_is_one_line() -> None:
    """What OpenSSL and the operating system say, without lists and line breaks."""
    assert reason(SSL.Error([("SSL routines", "", "certificate verify failed")])) == "certificate verify failed"
    assert reason(SSL.Error([])) == "[]"
    assert reason(OSError("two\nlines")) == "two lines"
    assert reason(None) == "None"
