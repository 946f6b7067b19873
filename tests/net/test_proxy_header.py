"""The PROXY header's parser: what the specification shows, at any cut, and nothing else."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.net.proxy_header import V1_OCTETS, V2_OCTETS, ProxyHeader, ProxyHeaderError, Route, parse

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(command: int, family: int, payload: bytes, version: int = 2) -> bytes:
    return SIGNATURE + bytes([version << 4 | command, family]) + struct.pack("!H", len(payload)) + payload


def addresses(source: str, destination: str, source_port: int = 1000, destination_port: int = 25) -> bytes:
    packed = ip_address(source).packed + ip_address(destination).packed
    return packed + struct.pack("!HH", source_port, destination_port)


TCP4 = addresses("192.0.2.1", "198.51.100.1")
TCP6 = addresses("2001:db8::1", "2001:db8::2")
TLV = b"\x05\x00\x03abc"  # PP2_TYPE_UNIQUE_ID
ROUTE4 = Route("192.0.2.1", 1000, "198.51.100.1", 25)
ROUTE6 = Route("2001:db8::1", 1000, "2001:db8::2", 25)

GOOD = {
    "v1 TCP4": (b"PROXY TCP4 192.0.2.1 198.51.100.1 1000 25\r\n", ROUTE4),
    "v1 TCP6": (b"PROXY TCP6 2001:db8::1 2001:DB8:0::2 1000 25\r\n", ROUTE6),
    "v1 TCP6 mapped": (
        b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 0 65535\r\n",
        Route("192.0.2.1", 0, "2001:db8::2", 65535),
    ),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", None),
    "v1 UNKNOWN, the longest": (
        b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535".ljust(V1_OCTETS - 2, b".") + b"\r\n",
        None,
    ),
    "v2 TCP4": (v2(1, 0x11, TCP4), ROUTE4),
    "v2 TCP6": (v2(1, 0x21, TCP6), ROUTE6),
    "v2 TCP4 with TLVs": (v2(1, 0x11, TCP4 + TLV + TLV), ROUTE4),
    "v2 TCP6 with an empty TLV": (v2(1, 0x21, TCP6 + b"\x04\x00\x00"), ROUTE6),
    "v2 the longest": (v2(1, 0x11, TCP4 + b"\x04" + struct.pack("!H", 505) + bytes(505)), ROUTE4),
    "v2 LOCAL": (v2(0, 0x00, b""), None),
    "v2 LOCAL with addresses that count for nothing": (v2(0, 0x11, TCP4), None),
    "v2 UNSPEC": (v2(1, 0x00, b"whatever"), None),
    "v2 UNIX": (v2(1, 0x31, bytes(216)), None),
}

BAD = {
    "no header": b"EHLO client.example\r\n",
    "a TLS handshake": b"\x16\x03\x01\x02\x00",
    "v1 in lower case": b"proxy TCP4 192.0.2.1 198.51.100.1 1000 25\r\n",
    "v1 of another protocol": b"PROXY UDP4 192.0.2.1 198.51.100.1 1000 25\r\n",
    "v1 with two spaces": b"PROXY TCP4  192.0.2.1 198.51.100.1 1000 25\r\n",
    "v1 with a trailing space": b"PROXY TCP4 192.0.2.1 198.51.100.1 1000 25 \r\n",
    "v1 without a port": b"PROXY TCP4 192.0.2.1 198.51.100.1 1000\r\n",
    "v1 with a name": b"PROXY TCP4 client.example 198.51.100.1 1000 25\r\n",
    "v1 with a zero in front": b"PROXY TCP4 192.0.2.01 198.51.100.1 1000 25\r\n",
    "v1 with an IPv6 address as TCP4": b"PROXY TCP4 2001:db8::1 198.51.100.1 1000 25\r\n",
    "v1 with a high port": b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 25\r\n",
    "v1 with a signed port": b"PROXY TCP4 192.0.2.1 198.51.100.1 +1000 25\r\n",
    "v1 with a port with a zero in front": b"PROXY TCP4 192.0.2.1 198.51.100.1 01000 25\r\n",
    "v1 with a zone": b"PROXY TCP6 fe80::1%eth0 2001:db8::2 1000 25\r\n",
    "v1 with a bare newline in it": b"PROXY TCP4 192.0.2.1 198.51.100.1 1000 25\nEHLO x\r\n",
    "v1 with octets above 127": b"PROXY TCP4 192.0.2.\xb2 198.51.100.1 1000 25\r\n",
    "v1 without an end": b"PROXY UNKNOWN ".ljust(V1_OCTETS, b"x"),
    "v1 whose end comes too late": b"PROXY UNKNOWN ".ljust(V1_OCTETS - 1, b"x") + b"\r\n",
    "v2 of another version": v2(1, 0x11, TCP4, version=3),
    "v2 with another command": v2(2, 0x11, TCP4),
    "v2 of a datagram": v2(1, 0x12, TCP4),
    "v2 of an unknown family": v2(1, 0x41, TCP4),
    "v2 too short for its addresses": v2(1, 0x21, TCP4),
    "v2 too short for a UNIX address": v2(1, 0x31, bytes(215)),
    "v2 too long": SIGNATURE + b"\x21\x11" + struct.pack("!H", V2_OCTETS - 15),
    "v2 that ends within a TLV": v2(1, 0x11, TCP4 + b"\x05\x00"),
    "v2 with a TLV that is too long": v2(1, 0x11, TCP4 + b"\x05\x00\x04abc"),
}


@pytest.mark.parametrize("name", GOOD)
def test_headers(name: str) -> None:
    """Exactly the header's octets are taken, whatever follows; and not one octet less will do."""
    data, route = GOOD[name]
    assert parse(data) == parse(data + b"EHLO x\r\n") == parse(data + data) == ProxyHeader(len(data), route)
    for cut in range(len(data)):
        assert parse(data[:cut]) is None


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_header(name: str) -> None:
    """Is refused, and at no cut taken for one."""
    data = BAD[name]
    with pytest.raises(ProxyHeaderError):
        parse(data)
    for cut in range(len(data)):
        try:
            assert parse(data[:cut]) is None
        except ProxyHeaderError:
            break


def test_a_malformed_header_is_known_for_it_at_once() -> None:
    """Nobody is waited for who can not become right any more."""
    for early in (b"E", b"PROXX", b"\r\nx", SIGNATURE + b"\x31\x11\x00\x0c", SIGNATURE + b"\x22\x11\x00\x0c"):
        with pytest.raises(ProxyHeaderError):
            parse(early)


@given(st.binary(max_size=600) | st.builds(lambda tail: SIGNATURE + tail, st.binary(max_size=600)))
def test_any_octets(data: bytes) -> None:
    """Nothing raises but the error that is meant, and a decision is never taken back by what follows."""
    try:
        header = parse(data)
    except ProxyHeaderError:
        with pytest.raises(ProxyHeaderError):
            parse(data + b"more")
    else:
        if header is not None:
            assert parse(data + b"more") == header
            assert header.octets <= max(V1_OCTETS, V2_OCTETS)
        else:
            assert len(data) < V2_OCTETS


@given(st.text(alphabet="PROXYTCP46UNKW 0123456789.:af\r\n", max_size=120))
def test_any_text_behind_the_first_word(text: str) -> None:
    """Version 1 is decided after its longest line at the latest."""
    data = b"PROXY " + text.encode("ascii")
    try:
        undecided = parse(data) is None
    except ProxyHeaderError:
        return
    assert not undecided or len(data) < V1_OCTETS
