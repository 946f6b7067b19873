"""TLS of inbound sessions over a transport in memory: what is said where, and what is believed."""

from __future__ import annotations

from typing import Any, get_args

import attrs
import pytest
from twisted.internet.defer import Deferred

from relaycluster.net.inbound import InboundFactory, SessionLimits
from relaycluster.net.inbound_protocol import SERVED
from relaycluster.net.server_tls import CertificateFiles, ServerTLS
from relaycluster.smtp.server_events import Event
from relaycluster.smtp.server_settings import ServerSettings
from tests.net.certificates import Authority
from tests.net.test_inbound import QUEUED, TRANSACTION, House, codes, lose
from tests.net.test_server_tls import NOW
from tests.net.tls_clients import MemoryClient, client_context

ROOT = Authority()
SETTINGS = ServerSettings("mx.example.org", starttls=True, auth=True)
PLAIN = b"AUTH PLAIN AHVzZXIAc2VjcmV0\r\n"  # \0user\0secret


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ServerTLS:
    directory = tmp_path_factory.mktemp("tls")
    issued = ROOT.issue("mx.example.org")
    (directory / "c.pem").write_bytes(issued.certificate)
    (directory / "c.key").write_bytes(issued.key)
    tls = ServerTLS("1.2", lambda: NOW)
    tls.load(CertificateFiles((), str(directory / "c.pem"), str(directory / "c.key")))
    return tls


def house_of(tls: ServerTLS, implicit: bool = False, **changes: Any) -> House:
    return House(settings=SETTINGS, tls=tls, implicit_tls=implicit, **changes)


class Client:
    """A client that can speak TLS, its octets cut as is wished."""

    def __init__(self, house: House, cut: int = 1 << 20) -> None:
        self.protocol, self.peer = house.connect()
        self.cut = cut
        self.tls: MemoryClient | None = None

    def write(self, wire: bytes) -> None:
        for at in range(0, len(wire), self.cut):
            self.protocol.dataReceived(wire[at : at + self.cut])

    def start_tls(self) -> None:
        self.tls = MemoryClient(client_context(ROOT.certificate), "mx.example.org")
        self.tls.feed(b"")

    def shake_hands(self) -> bytes:
        """To the end; returns what the server said behind it."""
        self.start_tls()
        assert self.tls is not None
        said = b""
        while True:
            wire = self.tls.take()
            self.write(wire)
            answer = self.peer.value()
            self.peer.clear()
            said += self.tls.feed(answer)
            if self.tls.is_open and not answer:
                return said
            assert wire or answer, "the handshake stands still"

    def say(self, text: bytes) -> list[str]:
        assert self.tls is not None
        self.write(self.tls.say(text))
        return self.hear()

    def hear(self) -> list[str]:
        assert self.tls is not None
        heard = self.tls.feed(self.peer.value())
        self.peer.clear()
        lines = heard.decode("ascii").split("\r\n")
        assert lines.pop() == "", "replies are whole lines"
        return lines

    def secured(self) -> Client:
        """STARTTLS and the handshake."""
        self.write(b"EHLO client.example\r\n")
        self.peer.clear()
        self.write(b"STARTTLS\r\n")
        assert self.peer.take() == ["220 2.0.0 Ready to start TLS"]
        assert self.shake_hands() == b""
        return self


@pytest.mark.parametrize("cut", [1, 1 << 20])
def test_starttls(tls: ServerTLS, cut: int) -> None:
    """220 in clear, the handshake, then a session that knows nothing of what was said before, and everything of its TLS."""
    house = house_of(tls)
    client = Client(house, cut).secured()
    session = client.protocol.session
    assert (session.helo, session.esmtp, session.user) == ("", False, "")
    assert session.tls is not None
    assert session.tls.version == "TLSv1.3"
    assert codes(client.say(b"MAIL FROM:<a@client.example>\r\n")) == ["503 5.5.1"]
    ehlo = client.say(b"EHLO client.example\r\n")
    assert not any("STARTTLS" in line for line in ehlo)
    assert any("AUTH PLAIN" in line for line in ehlo)
    assert codes(client.say(PLAIN)) == ["235 2.7.0"]
    assert codes(client.say(TRANSACTION + b"x\r\n.\r\n"))[-1] == "250 2.0.0"
    asked = {question[0]: question[1] for question in house.intake.asked}
    assert asked["connect"].tls is None
    assert (asked["data"].tls, asked["data"].user, asked["data"].helo) == (session.tls, "user", "client.example")
    assert client.say(b"QUIT\r\n")[-1].startswith("221 ")
    assert client.tls is not None
    assert client.tls.is_closed, "close_notify"
    assert client.peer.disconnecting


@pytest.mark.parametrize("cut", [1, 1 << 20])
def test_implicit_tls(tls: ServerTLS, cut: int) -> None:
    """Not one octet before the handshake but its own; then the greeting, and a session that is secure from the start."""
    house = house_of(tls, implicit=True)
    client = Client(house, cut)
    assert client.peer.value() == b""
    assert house.intake.asked == []
    assert client.shake_hands() == b"220 mx.example.org ESMTP relaycluster\r\n"
    assert house.intake.asked[0][1].tls is not None
    assert not any("STARTTLS" in line for line in client.say(b"EHLO client.example\r\n"))
    assert codes(client.say(b"STARTTLS\r\n")) == ["503 5.5.1"]
    assert codes(client.say(TRANSACTION + b"x\r\n.\r\n"))[-1] == "250 2.0.0"
    lose(client.protocol)
    assert len(house.sessions) == 0
    assert house.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    "injected", [b"NOOP\r\n", b"EHLO evil\r\nMAIL FROM:<x@evil.example>\r\nRCPT TO:<y@example.net>\r\n", b"MAIL"]
)
@pytest.mark.parametrize("cut", [1, 5, 1 << 20])
def test_nothing_that_came_in_clear_is_used_under_tls(tls: ServerTLS, injected: bytes, cut: int) -> None:
    """What an attacker puts behind the client's STARTTLS (CVE-2011-0411): thrown away when it came with the command; what comes
    after the 220 belongs to the handshake and breaks it. Never is it a command."""
    house = house_of(tls)
    client = Client(house, cut)
    client.write(b"EHLO client.example\r\n")
    client.peer.clear()
    client.write(b"STARTTLS\r\n" + injected)
    assert client.peer.value().startswith(b"220 2.0.0 Ready to start TLS\r\n")
    client.peer.clear()
    commands = list(house.observer.commands)
    if not client.peer.disconnecting and cut > len(b"STARTTLS\r\n" + injected):
        assert client.shake_hands() == b""
        assert codes(client.say(b"NOOP\r\nRSET\r\nEHLO client.example\r\n"))[:2] == ["250 2.0.0", "250 2.0.0"]
        assert client.protocol.session.helo == "client.example"
        assert [verb for verb, _ in house.observer.commands[len(commands) :]] == ["NOOP", "RSET", "EHLO"]
    else:
        client.write(b"\r\n" * 20)
        assert client.peer.disconnecting
        assert house.observer.commands == commands
    assert [asked[0] for asked in house.intake.asked] == ["connect"]


@pytest.mark.parametrize("implicit", [False, True])
def test_a_handshake_that_never_comes(tls: ServerTLS, implicit: bool) -> None:
    """The whole of it has its deadline, which dripping octets do not move; then the connection is cut, with no word in clear."""
    house = house_of(tls, implicit)
    client = Client(house)
    if not implicit:
        client.write(b"EHLO client.example\r\nSTARTTLS\r\n")
    client.peer.clear()
    client.start_tls()
    assert client.tls is not None
    hello = client.tls.take()
    for at in range(59):
        house.clock.advance(1)
        client.write(hello[at : at + 1])
    assert not client.peer.disconnecting
    house.clock.advance(1)
    assert client.peer.aborted
    assert client.peer.value() == b""
    assert ("rejected", "tls_timeout", 421) in house.observer.heard
    lose(client.protocol)
    assert house.clock.getDelayedCalls() == []
    assert len(house.sessions) == 0


@pytest.mark.parametrize("octets", [b"EHLO client.example\r\n", b"GET / HTTP/1.0\r\n\r\n", bytes(1000)])
def test_a_client_that_speaks_no_tls(tls: ServerTLS, octets: bytes) -> None:
    """To a listener with implicit TLS: no greeting, no reply, an alert at most; reported once, with a reason."""
    house = house_of(tls, implicit=True)
    client = Client(house)
    client.write(octets)
    assert client.peer.disconnecting
    assert client.peer.value()[:1] in (b"", b"\x15")
    lose(client.protocol)
    assert [heard for heard in house.observer.heard if heard[0] == "rejected"] == [("rejected", "tls", 454)]
    assert house.observer.rejections[0][2].startswith("454 4.7.0 TLS handshake failed: ")
    assert house.intake.asked == []


def test_a_client_that_goes_in_the_middle_of_the_handshake(tls: ServerTLS) -> None:
    """Is reported; one that only looked whether the port is open is not."""
    house = house_of(tls, implicit=True)
    looked, began = Client(house), Client(house)
    began.start_tls()
    assert began.tls is not None
    began.write(began.tls.take())
    lose(looked.protocol)
    assert house.observer.rejections == []
    lose(began.protocol)
    assert [reply for _, _, reply in house.observer.rejections] == [
        "454 4.7.0 TLS handshake failed: the client closed the connection"
    ]


def test_a_broken_record(tls: ServerTLS) -> None:
    """Ciphertext that was changed on the way ends the session; the message that it was part of is aborted, not cut short."""
    house = house_of(tls)
    client = Client(house).secured()
    client.say(b"EHLO client.example\r\n" + TRANSACTION)
    assert client.tls is not None
    wire = bytearray(client.tls.say(b"x\r\n.\r\n"))
    wire[-1] ^= 1
    client.write(bytes(wire))
    assert client.peer.disconnecting
    assert client.peer.value()[:1] == b"\x17", "an alert, encrypted"
    lose(client.protocol)
    sink = house.intake.sinks[0]
    assert (sink.written, sink.finished, sink.aborted) == (b"", 0, 1)
    assert house.observer.rejections[0][2].startswith("454 4.7.0 TLS failed: ")


def test_close_notify_from_the_client(tls: ServerTLS) -> None:
    """It says that it sends no more: what is under way is answered, then we close as well."""
    house = house_of(tls)
    answer: Deferred[Any] = Deferred()
    house.intake.answers = [answer]
    client = Client(house).secured()
    client.say(b"EHLO client.example\r\n")
    assert client.tls is not None
    client.write(client.tls.say(TRANSACTION + b"x\r\n.\r\n") + client.tls.close())
    assert not client.peer.disconnecting
    answer.callback(QUEUED)
    assert client.hear()[-1] == "250 2.0.0 queued as 01JD"
    assert client.peer.disconnecting


def test_a_connection_cut_under_tls_is_no_end_of_a_message(tls: ServerTLS) -> None:
    """A truncation attack: TCP ends without close_notify and without the final dot."""
    house = house_of(tls)
    client = Client(house).secured()
    client.say(b"EHLO client.example\r\n" + TRANSACTION + b"half\r\n")
    client.protocol.readConnectionLost()
    lose(client.protocol)
    assert (house.intake.sinks[0].finished, house.intake.sinks[0].aborted) == (0, 1)


def test_a_late_connect_answer_under_implicit_tls(tls: ServerTLS) -> None:
    """The handshake is not held up by the node's question; the greeting comes when it is answered, encrypted."""
    house = house_of(tls, implicit=True)
    answer: Deferred[Any] = Deferred()
    house.intake.says["connect"] = answer
    client = Client(house)
    assert client.shake_hands() == b""
    answer.callback(None)
    assert client.hear() == ["220 mx.example.org ESMTP relaycluster"]


def test_draining_under_tls(tls: ServerTLS) -> None:
    """An open session hears 421 and close_notify; one in its handshake hears 421 right behind it; none hears a word in clear."""
    house = house_of(tls)
    idle, shaking = Client(house).secured(), Client(house)
    shaking.write(b"EHLO client.example\r\nSTARTTLS\r\n")
    shaking.peer.clear()
    house.sessions.drain()
    assert codes(idle.hear()) == ["421 4.3.2"]
    assert idle.tls is not None
    assert idle.tls.is_closed
    assert shaking.peer.value() == b""
    assert shaking.shake_hands().startswith(b"421 4.3.2 ")
    assert shaking.peer.disconnecting


def test_draining_before_the_greeting_under_implicit_tls(tls: ServerTLS) -> None:
    """The node is not asked and nothing is said before the handshake is over; then the client hears why it can not stay."""
    house = house_of(tls, implicit=True)
    client = Client(house)
    house.sessions.drain()
    assert client.peer.value() == b""
    assert house.intake.asked == []
    assert b"421 4.3.2 " in client.shake_hands()
    assert client.peer.disconnecting
    assert [heard for heard in house.observer.heard if heard[0] == "failed"] == []


def test_abandoning_a_handshake(tls: ServerTLS) -> None:
    """The drain's deadline passed: it is cut."""
    house = house_of(tls)
    client = Client(house)
    client.write(b"EHLO client.example\r\nSTARTTLS\r\n")
    client.peer.clear()
    house.sessions.abandon()
    assert client.peer.aborted
    assert client.peer.value() == b""


def test_a_flooding_client_gets_no_handshake(tls: ServerTLS) -> None:
    """Under implicit TLS whoever is one too many is cut off; in clear it is told why."""
    for implicit in (False, True):
        house = house_of(tls, implicit, limits=SessionLimits(connections=1))
        Client(house)
        late = Client(house)
        assert late.peer.aborted is implicit
        assert (late.peer.value() == b"") is implicit
        assert ("rejected", "connections", 421) in house.observer.heard


def test_stress_shortens_the_handshake(tls: ServerTLS) -> None:
    """A slot is not for those who take their time."""
    house = house_of(tls, implicit=True, limits=SessionLimits(connections=1))
    client = Client(house)
    house.clock.advance(9.9)
    assert not client.peer.aborted
    house.clock.advance(0.2)
    assert client.peer.aborted


def test_pauses_under_tls(tls: ServerTLS) -> None:
    """Back-pressure reaches the socket: the sink's wish, and a client that does not read."""
    house = house_of(tls)
    client = Client(house).secured()
    client.say(b"EHLO client.example\r\n" + TRANSACTION)
    house.intake.sinks[0].throttle(True)
    assert not client.peer.is_read
    house.intake.sinks[0].throttle(False)
    assert client.peer.is_read
    client.protocol.pauseProducing()
    assert not client.peer.is_read


def test_tls_without_certificates() -> None:
    """Is a mistake of the wiring, found when the listener is made."""
    house = House()
    for settings, implicit in ((attrs.evolve(house.settings, starttls=True), False), (house.settings, True)):
        with pytest.raises(ValueError, match="needs certificates"):
            InboundFactory(
                intake=house.intake,
                settings=settings,
                sessions=house.sessions,
                clock=house.clock,  # type: ignore[arg-type]
                listener="x",
                mode="mx",
                implicit_tls=implicit,
            )


def test_certificates_that_were_never_loaded() -> None:
    """A fault of ours: reported; under implicit TLS the connection is cut, behind STARTTLS it ends with 421."""
    for implicit in (True, False):
        house = house_of(ServerTLS("1.2", lambda: NOW), implicit)
        client = Client(house)
        if implicit:
            assert client.peer.aborted
        else:
            client.write(b"EHLO client.example\r\nSTARTTLS\r\n")
            assert codes(client.peer.take())[-1] == "421 4.3.0"
            assert client.peer.disconnecting
        assert ("failed", "no certificate was loaded") in house.observer.heard
        lose(client.protocol)
        assert house.clock.getDelayedCalls() == []
        assert len(house.sessions) == 0


def test_nothing_goes_past_tls(tls: ServerTLS, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the server says after the handshake is records: application data or alerts, never a letter of SMTP."""
    house = house_of(tls)
    client = Client(house).secured()
    written: list[bytes] = []
    write = client.peer.write

    def spy(data: bytes) -> None:
        written.append(data)
        write(data)

    monkeypatch.setattr(client.peer, "write", spy)
    client.say(b"EHLO client.example\r\nFOO\r\n" + TRANSACTION)
    client.say(b"x\r\n.\r\nQUIT\r\n")
    assert len(written) >= 2
    for piece in written:
        while piece:
            assert piece[:3] in (b"\x17\x03\x03", b"\x15\x03\x03")
            piece = piece[5 + int.from_bytes(piece[3:5], "big") :]


def test_tickets_go_out_with_what_is_said_next(tls: ServerTLS) -> None:
    """TLS 1.3's tickets take no segment of their own; and whoever says nothing gets them with the reply that ends the session."""
    for speaks in (True, False):
        house = house_of(tls)
        client = Client(house).secured()
        assert client.tls is not None
        before = client.tls.tls.session
        assert before is None or not before.has_ticket
        if speaks:
            client.say(b"EHLO client.example\r\n")
        else:
            house.clock.pump([100.0] * 4)
            assert client.hear()[0].startswith("421 4.4.2 ")
            assert client.tls.is_closed
        session = client.tls.tls.session
        assert session is not None
        assert session.has_ticket


def test_every_event_is_served() -> None:
    """The table has all kinds of events that the conversation knows, and no other."""
    assert SERVED.keys() == set(get_args(Event))
