"""How many may come, how often, and what changes when slots run out."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.net.client_rates import ClientRates
from relaycluster.net.inbound import InboundSessions, SessionLimits
from relaycluster.policy.client import client_of
from relaycluster.policy.rate import Rate
from tests.net.test_inbound import LIMITS, TRANSACTION, House, codes, lose


def test_who_counts_as_one_client() -> None:
    """An IPv4 address; of IPv6 a network of 64 bits, with or without a zone."""
    assert client_of("192.0.2.1") == "192.0.2.1" != client_of("192.0.2.2")
    one = client_of("2001:db8:1:2::1")
    assert one == client_of("2001:db8:1:2:ffff:ffff:ffff:ffff") == client_of("2001:0db8:0001:0002:0::9%eth0")
    assert one == "2001:db8:1:2::/64"
    assert len({one, client_of("2001:db8:1:3::1"), client_of("2001:db8:0:2::1"), client_of("fe80::1")}) == 4


def test_an_ipv6_network_is_one_client() -> None:
    """Its second address finds the limit used up by the first; another network does not."""
    house = House(limits=attrs.evolve(LIMITS, connections_per_client=1))
    first, _ = house.connect("2001:db8::1")
    _, refused = house.connect("2001:db8::2")
    assert codes(refused.take()) == ["421 4.7.0"]
    _, other = house.connect("2001:db8:0:1::1")
    assert codes(other.take()) == ["220"]
    lose(first)
    _, again = house.connect("2001:db8::3")
    assert codes(again.take()) == ["220"]


def test_an_ipv4_client_of_an_ipv6_socket_is_an_ipv4_client() -> None:
    """It is counted, and known to the node, by its IPv4 address."""
    house = House(limits=attrs.evolve(LIMITS, connections_per_client=1))
    protocol, _ = house.connect("::ffff:192.0.2.1")
    assert protocol.session.peer_address == "192.0.2.1"
    assert codes(house.connect("192.0.2.1")[1].take()) == ["421 4.7.0"]
    assert codes(house.connect("::ffff:192.0.2.2")[1].take()) == ["220"]


def test_a_flood_of_connections() -> None:
    """A client that connects too often is turned away, however short its connections; when it has waited it is welcome again."""
    house = House(limits=attrs.evolve(LIMITS, connection_rate_per_client=Rate.parse_allowance("6/min")))

    def visit(address: str = "192.0.2.1") -> str:
        protocol, peer = house.connect(address)
        lose(protocol)
        return codes(peer.take())[0]

    assert [visit() for _ in range(8)] == ["220"] * 6 + ["421 4.7.0"] * 2
    assert ("rejected", "connection_rate", 421) in house.observer.heard
    assert visit("192.0.2.2") == "220"
    house.clock.advance(9)
    assert visit() == "421 4.7.0"
    house.clock.advance(1)
    assert [visit(), visit()] == ["220", "421 4.7.0"]
    house.clock.advance(60)
    assert [visit() for _ in range(7)] == ["220"] * 6 + ["421 4.7.0"]


def test_no_rate_no_table() -> None:
    """Without the limit nothing is remembered."""
    sessions = InboundSessions(SessionLimits())
    for number in range(10):
        session = House().factory.buildProtocol(None)
        assert sessions.admit(session, f"192.0.2.{number}", 0.0) is None
    assert len(sessions._rates) == 0


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 5)), max_size=100))
def test_the_table_of_clients_is_bounded(visits: list[tuple[int, float]]) -> None:
    """However many clients come, no more than its size are remembered; who is remembered is held to the rate exactly."""
    rates, bounded = ClientRates(), ClientRates(most_clients=5)
    rate = Rate.of(2, 10, 2)
    now = 0.0
    lately: list[int] = []  # clients that the bounded table knows, as long as nobody was forgotten
    for client, pause in visits:
        now += pause
        expected = rates.spend(str(client), rate, now)
        got = bounded.spend(str(client), rate, now)
        assert len(bounded) <= 5
        lately = [client, *(each for each in lately if each != client)]
        if len(set(lately)) <= 5:
            assert got == expected
        assert got or not expected  # forgetting only ever forgives


def test_stress() -> None:
    """From four fifths of the slots on, silence costs a session its slot after ten seconds and errors are borne once; a client that
    works is not touched. Below seven eighths of that it is over."""
    told: list[bool] = []
    house = House(limits=SessionLimits(connections=10, data_rate_grace_seconds=60))
    house.sessions.on_stress = told.append
    calm, calm_peer = house.connect("192.0.2.1")
    assert calm_peer.take()
    others = [house.connect(f"192.0.2.{number}") for number in range(2, 8)]
    assert told == []
    assert not house.sessions.is_stressed
    worker, worker_peer = house.connect("192.0.2.8")
    assert told == [True]
    worker.dataReceived(b"EHLO client.example\r\nNOOP\r\n")
    worker_peer.clear()
    idle, idle_peer = house.connect("192.0.2.9")
    idle_peer.clear()
    errant, errant_peer = house.connect("192.0.2.10")
    errant_peer.clear()
    errant.dataReceived(b"NO\r\nNO\r\n")
    assert codes(errant_peer.take()) == ["500 5.5.1", "421 4.7.0"]
    for _ in range(3):
        house.clock.advance(4)
        worker.dataReceived(b"NOOP\r\n")
    assert codes(idle_peer.take()) == ["421 4.4.2"]
    assert codes(worker_peer.take()) == ["250 2.0.0"] * 3
    # Who sat there before is looked at when its timer comes round.
    for _ in range(5):
        house.clock.advance(4)
        worker.dataReceived(b"NOOP\r\n")
    assert codes(calm_peer.take()) == ["421 4.4.2"]
    for protocol, _ in [*others[:1], (errant, None)]:
        lose(protocol)
    assert told == [True]
    lose(calm)
    assert house.sessions.connections == 7
    assert told == [True]
    lose(idle)
    assert told == [True, False]


def test_stress_does_not_cut_content_short() -> None:
    """Content has its own measure, the minimum rate: ten seconds between two pieces are nothing."""
    house = House(limits=SessionLimits(connections=1))
    protocol, peer = house.connect()
    assert house.sessions.is_stressed
    protocol.dataReceived(b"EHLO client.example\r\n" + TRANSACTION)
    peer.clear()
    for _ in range(2):
        house.clock.advance(14)
        protocol.dataReceived(b"x\r\n")
    protocol.dataReceived(b".\r\n")
    assert codes(peer.take()) == ["250 2.0.0"]


def test_without_stress() -> None:
    """A share above 1 switches it off."""
    house = House(limits=SessionLimits(connections=2, stress_at=2))
    house.connect("192.0.2.1")
    house.connect("192.0.2.2")
    assert not house.sessions.is_stressed


def test_an_error_more_under_stress_never_means_more_than_the_settings_say() -> None:
    """A listener that bears no error bears none under stress."""
    house = House(
        limits=SessionLimits(connections=1, stress_errors=5), settings=attrs.evolve(House().settings, errors=0)
    )
    protocol, peer = house.connect()
    peer.clear()
    protocol.dataReceived(b"NO\r\n")
    assert codes(peer.take()) == ["421 4.7.0"]


def test_limits_that_are_replaced() -> None:
    """New limits hold for new connections; what is open stays."""
    house = House()
    house.connect("192.0.2.1")
    house.connect("192.0.2.2")
    house.sessions.limits = attrs.evolve(LIMITS, connections=1)
    _, peer = house.connect("192.0.2.3")
    assert codes(peer.take()) == ["421 4.3.2"]
    assert house.sessions.connections == 2


def test_chunks_have_the_measure_of_content() -> None:
    """A BDAT whose octets come too slowly is cut as a DATA is; between two chunks it is a command that we wait for."""
    house = House()
    slow, slow_peer = house.client()
    slow.dataReceived(TRANSACTION.replace(b"DATA\r\n", b"") + b"BDAT 100000\r\n")
    slow_peer.clear()
    for _ in range(59):
        house.clock.advance(1)
        slow.dataReceived(b"x")
    assert slow_peer.value() == b""
    for _ in range(10):
        house.clock.advance(1)
        slow.dataReceived(b"x")
    assert codes(slow_peer.take()) == ["421 4.4.2"]
    assert ("rejected", "data_rate", 421) in house.observer.heard
    idle, idle_peer = house.client()
    idle.dataReceived(TRANSACTION.replace(b"DATA\r\n", b"") + b"BDAT 2\r\n\r\n")
    idle_peer.clear()
    house.clock.advance(99)
    assert idle_peer.value() == b""
    house.clock.advance(1)
    assert codes(idle_peer.take()) == ["421 4.4.2"]


def test_the_octets_of_a_refused_chunk_are_nobodys_content() -> None:
    """They are swallowed, but not for ever: the time for the next command runs meanwhile, however they drip."""
    house = House()
    protocol, peer = house.client()
    protocol.dataReceived(b"NOOP\r\n")
    peer.clear()
    house.clock.advance(90)
    protocol.dataReceived(b"BDAT 1000000\r\n")
    for _ in range(9):
        house.clock.advance(1)
        protocol.dataReceived(b"x")
    assert not peer.disconnecting
    for _ in range(120):
        house.clock.advance(1)
        protocol.dataReceived(b"x")
    assert peer.disconnecting
    assert ("rejected", "command_timeout", 421) in house.observer.heard
