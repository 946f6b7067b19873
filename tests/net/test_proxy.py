"""The gate for listeners behind balancers, over a transport in memory."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import attrs
import pytest
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from relaycluster.net.proxy import GatedConnection, ProxyGate
from relaycluster.net.server_tls import ServerTLS
from relaycluster.policy.rate import Rate
from relaycluster.smtp.server_settings import ServerSettings
from tests.net.test_inbound import LIMITS, TRANSACTION, House, Peer, codes
from tests.net.test_inbound_tls import ROOT, tls  # noqa: F401 - a fixture
from tests.net.test_proxy_header import GOOD, SIGNATURE, TCP4, TCP6, v2
from tests.net.tls_clients import MemoryClient, client_context

BALANCER = "10.0.0.7"
V1 = b"PROXY TCP4 192.0.2.1 198.51.100.1 1000 25\r\n"
V2 = v2(1, 0x11, TCP4 + b"\x05\x00\x03abc")
LOCAL = v2(0, 0x00, b"")


class Gate:
    """A gate before a listener."""

    def __init__(self, **changes: Any) -> None:
        self.house = House(**changes)
        self.gate = ProxyGate(
            self.house.factory,
            [ip_network("10.0.0.0/8"), ip_network("2001:db8:ffff::/48")],
            self.house.clock,  # type: ignore[arg-type]
        )

    def connect(self, address: str = BALANCER) -> tuple[GatedConnection, Peer]:
        protocol, peer = self.gate.buildProtocol(None), Peer(address)
        protocol.makeConnection(peer)
        return protocol, peer

    def nothing_is_left(self) -> bool:
        return not self.house.clock.getDelayedCalls() and not len(self.house.sessions)

    @property
    def results(self) -> list[str]:
        return [heard[1] for heard in self.house.observer.heard if heard[0] == "proxied"]


def lose(protocol: GatedConnection) -> None:
    protocol.connectionLost(Failure(ConnectionDone()))


@pytest.mark.parametrize("header", [V1, V2])
def test_any_cut(header: bytes) -> None:
    """Header and first commands cut in two at any place, or into single octets: nothing is said before the header is whole, then
    the session is the client's."""
    said = header + b"EHLO client.example\r\nQUIT\r\n"
    for cut in range(len(said)):
        gate = Gate()
        protocol, peer = gate.connect()
        protocol.dataReceived(said[:cut])
        assert (peer.value() == b"") is (cut < len(header))
        protocol.dataReceived(said[cut:])
        lines = peer.take()
        assert (lines[0][:3], lines[-1][:3]) == ("220", "221")
    gate = Gate()
    protocol, peer = gate.connect()
    for at in range(len(said)):
        protocol.dataReceived(said[at : at + 1])
    assert peer.take()[-1].startswith("221 ")
    lose(protocol)
    assert gate.nothing_is_left()


@pytest.mark.parametrize("name", [name for name, (_, route) in GOOD.items() if route is not None])
def test_the_client_is_who_the_header_says(name: str) -> None:
    """For the node, its limits and its logs; the balancer is only the way."""
    header, route = GOOD[name]
    assert route is not None
    gate = Gate()
    protocol, _ = gate.connect()
    protocol.dataReceived(header)
    session = gate.house.intake.asked[0][1]
    assert (session.peer_address, session.peer_port) == (route.peer_address, route.peer_port)
    assert (session.local_address, session.local_port) == (route.local_address, route.local_port)
    assert session.via == BALANCER
    protocol.dataReceived(b"EHLO client.example\r\n" + TRANSACTION)
    assert gate.house.intake.asked[-1][1].via == BALANCER
    assert gate.results == ["client"]


def test_limits_count_the_client_and_not_the_balancer() -> None:
    """Two connections of one client through two balancers are two of that client; others are welcome."""
    gate = Gate(limits=attrs.evolve(LIMITS, connections=10, connections_per_client=1))

    def visit(header: bytes, balancer: str = BALANCER) -> str:
        protocol, peer = gate.connect(balancer)
        protocol.dataReceived(header)
        return codes(peer.take())[0]

    assert visit(V1) == "220"
    assert visit(V2, "2001:db8:ffff::1") == "421 4.7.0"
    assert visit(v2(1, 0x21, TCP6)) == "220"
    assert visit(V1.replace(b"192.0.2.1", b"192.0.2.2")) == "220"


@pytest.mark.parametrize("name", [name for name, (_, route) in GOOD.items() if route is None])
def test_a_health_check(name: str) -> None:
    """LOCAL, UNKNOWN and what else names no client: greeting, EHLO, NOOP and QUIT, and nothing that belongs to mail."""
    gate = Gate()
    protocol, peer = gate.connect()
    protocol.dataReceived(GOOD[name][0])
    assert codes(peer.take()) == ["220"]
    protocol.dataReceived(b"EHLO balancer\r\n")
    assert peer.take()[0].startswith("250-")
    protocol.dataReceived(b"NOOP\r\n" + TRANSACTION + b"VRFY x\r\nQUIT\r\n")
    assert codes(peer.take()) == ["250 2.0.0", "503 5.5.1", "503 5.5.1", "503 5.5.1", "503 5.5.1", "221 2.0.0"]
    session = gate.house.intake.asked[0][1]
    assert (session.peer_address, session.via) == (BALANCER, "")
    assert [asked[0] for asked in gate.house.intake.asked] == ["connect"]
    assert gate.results == ["health"]
    lose(protocol)
    assert gate.nothing_is_left()


def test_health_checks_are_nobodys_connections() -> None:
    """However often a balancer looks, no limit per client makes the node look dead; the slots of the process still count."""
    limits = attrs.evolve(
        LIMITS, connections=5, connections_per_client=1, connection_rate_per_client=Rate.parse("1/h"), stress_at=2
    )
    gate = Gate(limits=limits)

    def visit() -> str:
        protocol, peer = gate.connect()
        protocol.dataReceived(LOCAL)
        return codes(peer.take())[0]

    assert [visit() for _ in range(6)] == ["220"] * 5 + ["421 4.3.2"]


@pytest.mark.parametrize("address", ["192.0.2.1", "11.0.0.1", "2001:db8::1", "::ffff:192.0.2.1", ""])
def test_strangers(address: str) -> None:
    """Who is no balancer is cut off at once, before a word of it is read; and it is told to nobody but the operator."""
    gate = Gate()
    protocol, peer = gate.connect(address)
    assert peer.aborted
    protocol.dataReceived(V1 + b"EHLO x\r\n")
    assert peer.value() == b""
    assert gate.results == ["untrusted"]
    session, reason, reply = gate.house.observer.rejections[0]
    assert (session.peer_address, reason) == (address.removeprefix("::ffff:"), "proxy_untrusted")
    assert session.listener == "0.0.0.0:587"
    assert reply.startswith("421 4.7.0 ")
    lose(protocol)
    assert gate.house.intake.asked == []
    assert gate.nothing_is_left()


def test_a_balancer_with_an_ipv4_address_on_an_ipv6_socket() -> None:
    """Is trusted by its IPv4 network."""
    gate = Gate()
    protocol, peer = gate.connect(f"::ffff:{BALANCER}")
    protocol.dataReceived(V1)
    assert codes(peer.take()) == ["220"]
    assert gate.house.intake.asked[0][1].via == BALANCER


@pytest.mark.parametrize(
    "octets",
    [b"EHLO client.example\r\n", b"PROXY TCP4 x\r\n", b"PROXY UNKNOWN ".ljust(200, b"x"), SIGNATURE + b"\x11" + V2],
)
def test_a_malformed_header(octets: bytes) -> None:
    """The connection is closed without a word, whatever the cuts, and reported once with the reason."""
    for step in (1, len(octets)):
        gate = Gate()
        protocol, peer = gate.connect()
        for at in range(0, len(octets), step):
            protocol.dataReceived(octets[at : at + step])
        assert peer.aborted
        assert peer.value() == b""
        assert gate.results == ["malformed"]
        assert gate.house.observer.rejections[0][2].startswith("421 4.7.0 Malformed PROXY header: ")
        lose(protocol)
        assert gate.nothing_is_left()


def test_a_header_that_does_not_come() -> None:
    """Five seconds for the whole of it, which dripping octets do not prolong."""
    gate = Gate()
    protocol, peer = gate.connect()
    for at in range(4):
        gate.house.clock.advance(1)
        protocol.dataReceived(V1[at : at + 1])
    gate.house.clock.advance(0.9)
    assert not peer.aborted
    gate.house.clock.advance(0.1)
    assert peer.aborted
    assert gate.results == ["timeout"]
    protocol.dataReceived(V1[4:])
    lose(protocol)
    assert peer.value() == b""
    assert gate.nothing_is_left()


@pytest.mark.parametrize("half", [False, True])
def test_a_balancer_that_only_looks_whether_the_port_is_open(half: bool) -> None:
    """It connects and goes: no session, no report."""
    gate = Gate()
    protocol, peer = gate.connect()
    if half:
        protocol.readConnectionLost()
        assert peer.disconnecting
    lose(protocol)
    assert gate.house.observer.heard == []
    assert gate.nothing_is_left()


def test_a_second_header_is_none() -> None:
    """Only the first octets of a connection are a header: a client that sends one itself is a client with a strange command."""
    gate = Gate()
    protocol, peer = gate.connect()
    protocol.dataReceived(V1 + b"PROXY TCP4 10.0.0.1 198.51.100.1 1000 25\r\n")
    assert codes(peer.take())[0] == "220"
    assert protocol._session is not None
    assert protocol._session.session.peer_address == "192.0.2.1"


def test_the_ends_of_a_connection_reach_the_session() -> None:
    """A half-closed and a lost connection are the session's to deal with."""
    gate = Gate()
    protocol, peer = gate.connect()
    protocol.dataReceived(V1 + b"EHLO client.example\r\n" + TRANSACTION + b"half")
    peer.clear()
    protocol.readConnectionLost()
    assert peer.disconnecting
    lose(protocol)
    assert gate.house.intake.sinks[0].aborted == 1
    assert gate.nothing_is_left()


def test_refused_behind_the_gate() -> None:
    """A client for whom there is no slot hears so, and nothing is left of the octets that came with the header."""
    gate = Gate(limits=attrs.evolve(LIMITS, connections=0))
    protocol, peer = gate.connect()
    protocol.dataReceived(V1 + b"EHLO client.example\r\n")
    assert codes(peer.take()) == ["421 4.3.2"]
    lose(protocol)
    assert gate.nothing_is_left()


@pytest.mark.parametrize("header", [V1, V2])
@pytest.mark.parametrize("together", [True, False])
def test_before_implicit_tls(tls: ServerTLS, header: bytes, together: bool) -> None:  # noqa: F811
    """The header comes in clear before the first octet of the handshake, also in one piece with it."""
    gate = Gate(tls=tls, implicit_tls=True, settings=ServerSettings("mx.example.org"))
    protocol, peer = gate.connect()
    client = MemoryClient(client_context(ROOT.certificate), "mx.example.org")
    client.feed(b"")
    if together:
        protocol.dataReceived(header + client.take())
    else:
        protocol.dataReceived(header)
        assert peer.value() == b""
        protocol.dataReceived(client.take())
    client.feed(peer.value())
    peer.clear()
    protocol.dataReceived(client.take())
    assert client.feed(peer.value()).startswith(b"220 ")
    session = gate.house.intake.asked[0][1]
    assert (session.peer_address, session.via, session.tls is None) == ("192.0.2.1", BALANCER, False)


def test_other_networks_at_run_time() -> None:
    """What is trusted may be replaced; it counts from the next connection on."""
    gate = Gate()
    open_one, open_peer = gate.connect()
    gate.gate.trusted = [ip_network("172.16.0.0/12")]
    assert gate.connect()[1].aborted
    assert not gate.connect("172.16.0.1")[1].aborted
    open_one.dataReceived(V1)
    assert codes(open_peer.take()) == ["220"]
