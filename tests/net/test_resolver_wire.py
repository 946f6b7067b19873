"""One packet against one question: what it says, and that no packet at all can raise."""

from __future__ import annotations

import struct

import pytest
from dnslib import AAAA, CNAME, EDNS0, MX, NS, OPCODE, QTYPE, RCODE, RR, SOA, TXT, A, DNSHeader, DNSQuestion, DNSRecord
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relaycluster.net import dns_wire
from relaycluster.net.dns_wire import (
    TYPE_A,
    TYPE_AAAA,
    TYPE_MX,
    Continues,
    Found,
    NoData,
    NoName,
    Question,
    ServerTrouble,
    Stray,
    Truncated,
    encode_query,
    read_packet,
)
from relaycluster.policy import host_names, routing

ID = 4711
MX_OF_EXAMPLE = Question("example.test", TYPE_MX)
A_OF_EXAMPLE = Question("example.test", TYPE_A)


def packet(
    question: Question, *answers: RR, authority: tuple[RR, ...] = (), edns: int | None = 0, **header: int
) -> bytes:
    """A reply to the question; `edns` is the upper part of the RCODE in its OPT record."""
    fields = {"id": ID, "qr": 1, "rd": 1, "ra": 1, **header}
    record = DNSRecord(DNSHeader(**fields), q=DNSQuestion(question.name, question.record_type))
    for rr in answers:
        record.add_answer(rr)
    for rr in authority:
        record.add_auth(rr)
    if edns is not None:
        record.add_ar(EDNS0(udp_len=1232, ext_rcode=edns))
    return bytes(record.pack())


def rr(name: str, record_type: str, data: object, ttl: int = 300, rclass: int = 1) -> RR:
    return RR(name, getattr(QTYPE, record_type), rclass=rclass, ttl=ttl, rdata=data)


def soa(ttl: int, minimum: int) -> RR:
    return rr("test", "SOA", SOA("ns.test", "root.test", (1, 2, 3, 4, minimum)), ttl)


def mx(preference: int, host: str, ttl: int = 300, name: str = "example.test") -> RR:
    return rr(name, "MX", MX(host, preference), ttl)


def test_a_query_asks_one_question_with_edns() -> None:
    """RD and AD set, one question, an OPT record that allows 1232 bytes; without EDNS no OPT."""
    query = DNSRecord.parse(encode_query(MX_OF_EXAMPLE, ID))
    assert (query.header.id, query.header.rd, query.header.ad, query.header.opcode) == (ID, 1, 1, OPCODE.QUERY)
    assert [(str(q.qname), q.qtype) for q in query.questions] == [("example.test.", QTYPE.MX)]
    assert [(QTYPE[ar.rtype], ar.edns_len) for ar in query.ar] == [("OPT", 1232)]
    assert DNSRecord.parse(encode_query(MX_OF_EXAMPLE, ID, edns=False)).ar == []


def test_exchangers_are_found_in_order_with_the_smallest_ttl() -> None:
    """Names in lower case, by preference; the records live as long as the first that ends."""
    reading = read_packet(packet(MX_OF_EXAMPLE, mx(20, "B.test", 90), mx(10, "a.test", 600)), MX_OF_EXAMPLE, ID)
    assert reading == Found((routing.MX(10, "a.test"), routing.MX(20, "b.test")), (), 90, False)


def test_addresses_are_found_in_canonical_text() -> None:
    """Both families; what cannot be connected to is left out."""
    answers = (rr("example.test", "A", A("192.0.2.1")), rr("example.test", "A", A("0.0.0.0")))
    assert read_packet(packet(A_OF_EXAMPLE, *answers), A_OF_EXAMPLE, ID) == Found((), ("192.0.2.1",), 300, False)
    question = Question("example.test", TYPE_AAAA)
    answers = (rr("example.test", "AAAA", AAAA("2001:db8:0:0::1")), rr("example.test", "AAAA", AAAA("::")))
    assert read_packet(packet(question, *answers), question, ID) == Found((), ("2001:db8::1",), 300, False)


def test_the_ad_bit_is_kept() -> None:
    """What the server proved by DNSSEC is marked so, and nothing else is."""
    reading = read_packet(packet(MX_OF_EXAMPLE, mx(1, "a.test"), ad=1), MX_OF_EXAMPLE, ID)
    assert isinstance(reading, Found)
    assert reading.authenticated


def test_cnames_are_followed_through_the_packet() -> None:
    """In any order of records, with the smallest TTL on the way; records of other owners do not count."""
    answers = (
        mx(10, "mx.test", name="target.test"),
        mx(1, "evil.test", name="unrelated.test"),
        rr("middle.test", "CNAME", CNAME("Target.test"), 50),
        rr("example.test", "CNAME", CNAME("middle.test"), 200),
    )
    reading = read_packet(packet(MX_OF_EXAMPLE, *answers), MX_OF_EXAMPLE, ID)
    assert reading == Found((routing.MX(10, "mx.test"),), (), 50, False)


def test_a_chain_without_end_is_trouble() -> None:
    """A loop, and one that is too long, end."""
    loop = (rr("example.test", "CNAME", CNAME("b.test")), rr("b.test", "CNAME", CNAME("example.test")))
    long = tuple(rr(f"c{i}.test" if i else "example.test", "CNAME", CNAME(f"c{i + 1}.test")) for i in range(20))
    for answers in (loop, long):
        reading = read_packet(packet(MX_OF_EXAMPLE, *answers), MX_OF_EXAMPLE, ID)
        assert reading == ServerTrouble("CNAME chain too long")


def test_a_chain_that_leaves_the_packet_continues() -> None:
    """Without the proof of absence that a SOA is, the target is still to be asked for."""
    alias = rr("example.test", "CNAME", CNAME("target.test"), 70)
    assert read_packet(packet(MX_OF_EXAMPLE, alias), MX_OF_EXAMPLE, ID) == Continues("target.test", 70)
    with_proof = packet(MX_OF_EXAMPLE, alias, authority=(soa(600, 600),))
    assert read_packet(with_proof, MX_OF_EXAMPLE, ID) == NoData(70)


@pytest.mark.parametrize(("ttl", "minimum", "expected"), [(3600, 60, 60), (30, 60, 30), (2**31 + 5, 60, 0)])
def test_negative_answers_live_as_their_soa_says(ttl: int, minimum: int, expected: int) -> None:
    """RFC 2308 5: the smaller of the SOA's TTL and its minimum; RFC 2181 8: a TTL with the highest bit set is 0."""
    authority = (soa(ttl, minimum),)
    assert read_packet(packet(MX_OF_EXAMPLE, authority=authority), MX_OF_EXAMPLE, ID) == NoData(expected)
    no_name = packet(MX_OF_EXAMPLE, authority=authority, rcode=RCODE.NXDOMAIN)
    assert read_packet(no_name, MX_OF_EXAMPLE, ID) == NoName(expected)


def test_negative_answers_without_soa_are_not_for_keeping() -> None:
    """RFC 2308 5."""
    assert read_packet(packet(MX_OF_EXAMPLE), MX_OF_EXAMPLE, ID) == NoData(0)
    assert read_packet(packet(MX_OF_EXAMPLE, rcode=RCODE.NXDOMAIN), MX_OF_EXAMPLE, ID) == NoName(0)


def test_a_referral_is_not_an_empty_answer() -> None:
    """RFC 2308 2.2: to take it for one would turn a misconfigured server into implicit MX."""
    ns = rr("test", "NS", NS("ns.test"))
    assert isinstance(read_packet(packet(MX_OF_EXAMPLE, authority=(ns,), ra=0), MX_OF_EXAMPLE, ID), ServerTrouble)


def test_codes_of_trouble() -> None:
    """Named for the log; those that a server without EDNS gives ask for a try without it (RFC 6891 6.2.2, 7)."""
    for code, name, without_edns in (
        (2, "SERVFAIL", False),
        (5, "REFUSED", False),
        (1, "FORMERR", True),
        (4, "NOTIMP", True),
    ):
        reading = read_packet(packet(MX_OF_EXAMPLE, rcode=code), MX_OF_EXAMPLE, ID)
        assert reading == ServerTrouble(name, without_edns)
    assert read_packet(packet(MX_OF_EXAMPLE, rcode=9), MX_OF_EXAMPLE, ID) == ServerTrouble("RCODE 9")
    assert read_packet(packet(MX_OF_EXAMPLE, edns=1), MX_OF_EXAMPLE, ID) == ServerTrouble("BADVERS", True)


def test_an_error_may_leave_the_question_out() -> None:
    """As servers do that could not read it; an answer may not."""
    bare = DNSRecord(DNSHeader(id=ID, qr=1, rcode=RCODE.FORMERR)).pack()
    assert read_packet(bare, MX_OF_EXAMPLE, ID) == ServerTrouble("FORMERR", True)
    for code in (RCODE.NOERROR, RCODE.NXDOMAIN):
        assert isinstance(read_packet(DNSRecord(DNSHeader(id=ID, qr=1, rcode=code)).pack(), MX_OF_EXAMPLE, ID), Stray)


def test_truncated() -> None:
    """Whatever else such a packet holds."""
    assert read_packet(packet(MX_OF_EXAMPLE, mx(1, "a.test"), tc=1), MX_OF_EXAMPLE, ID) == Truncated()


def test_impossible_exchangers_are_left_out() -> None:
    """An address is no host name (RFC 5321 5.1)."""
    answers = (mx(1, "192.0.2.1"), mx(2, "bad host.test"), mx(3, "good.test"), mx(4, "."))
    reading = read_packet(packet(MX_OF_EXAMPLE, *answers), MX_OF_EXAMPLE, ID)
    assert reading == Found((routing.MX(3, "good.test"),), (), 300, False)


def test_null_mx_is_kept_where_it_is_alone() -> None:
    """RFC 7505 3: "." is null MX as the only record, whatever its preference and however often the packet has it; beside any other,
    possible or not, it is none."""
    for alone in ((mx(0, "."),), (mx(7, "."),), (mx(0, "."), mx(0, "."))):
        preference = alone[0].rdata.preference
        reading = read_packet(packet(MX_OF_EXAMPLE, *alone), MX_OF_EXAMPLE, ID)
        assert reading == Found((routing.MX(preference, dns_wire.ROOT),), (), 300, False)
    for beside in (mx(10, "192.0.2.1"), mx(0, "bad host.test"), mx(5, ".")):
        assert read_packet(packet(MX_OF_EXAMPLE, mx(0, "."), beside), MX_OF_EXAMPLE, ID) == Found((), (), 300, False)


def test_records_are_bounded() -> None:
    """The preferred ones of a thousand are kept."""
    answers = [mx(1000 - i, f"m{i}.test") for i in range(1000)]
    reading = read_packet(packet(MX_OF_EXAMPLE, *answers), MX_OF_EXAMPLE, ID)
    assert isinstance(reading, Found)
    assert [record.preference for record in reading.exchangers] == list(range(1, dns_wire.MOST_RECORDS + 1))


@pytest.mark.parametrize(
    "wrong",
    [
        packet(MX_OF_EXAMPLE, mx(1, "evil.test"), id=ID + 1),
        packet(MX_OF_EXAMPLE, mx(1, "evil.test"), qr=0),
        packet(Question("other.test", TYPE_MX), mx(1, "evil.test")),
        packet(A_OF_EXAMPLE, mx(1, "evil.test")),
        packet(MX_OF_EXAMPLE, mx(1, "evil.test")) + b"\0",
        b"",
        struct.pack("!H", ID),
    ],
)
def test_forgeries_are_strays(wrong: bytes) -> None:
    """Wrong id, a query, another name, another type, something behind the end: none is an answer, nor an error."""
    assert isinstance(read_packet(wrong, MX_OF_EXAMPLE, ID), Stray)


def test_another_class_does_not_count() -> None:
    """Only the Internet has mail."""
    chaos = rr("example.test", "MX", MX("evil.test", 1), rclass=3)
    assert read_packet(packet(MX_OF_EXAMPLE, chaos), MX_OF_EXAMPLE, ID) == NoData(0)


def test_the_question_comes_back_in_any_case() -> None:
    """Names compare without regard to case (RFC 4343)."""
    echoed = packet(Question("eXaMPle.TEST", TYPE_MX), mx(1, "a.test", name="EXAMPLE.test"))
    assert isinstance(read_packet(echoed, MX_OF_EXAMPLE, ID), Found)


FULL = packet(
    MX_OF_EXAMPLE,
    *(mx(i, f"mx{i}.example.test") for i in range(3)),
    rr("example.test", "TXT", TXT("text")),
    authority=(soa(60, 60),),
)


def test_no_part_of_an_answer_is_an_answer() -> None:
    """The parser reads a packet that was cut as one with fewer records, which would make implicit MX out of MX."""
    assert isinstance(read_packet(FULL, MX_OF_EXAMPLE, ID), Found)
    for length in range(len(FULL)):
        assert isinstance(read_packet(FULL[:length], MX_OF_EXAMPLE, ID), Stray), length


READINGS = (Found, NoData, NoName, Continues, Truncated, ServerTrouble, Stray)


@settings(max_examples=300)
@given(st.binary(max_size=200))
@example(b"\xc0\x0c" * 40)
def test_garbage_behind_a_true_header_never_raises(tail: bytes) -> None:
    """Right id, the response bit, counts of one to three, then anything."""
    for counts in ((1, 1, 0, 0), (1, 3, 1, 1), (0, 0, 0, 0)):
        data = struct.pack("!H2B4H", ID, 0x81, 0x80, *counts) + tail
        assert isinstance(read_packet(data, MX_OF_EXAMPLE, ID), READINGS)
        question = b"\7example\4test\0" + struct.pack("!HH", TYPE_MX, 1)
        assert isinstance(read_packet(data[:12] + question + tail, MX_OF_EXAMPLE, ID), READINGS)


@settings(max_examples=500)
@given(st.lists(st.tuples(st.integers(2, len(FULL) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_answer_never_raises_and_names_only_possible_hosts(changes: list[tuple[int, int]]) -> None:
    """Whatever bytes of a true answer are changed."""
    data = bytearray(FULL)
    for place, value in changes:
        data[place] = value
    reading = read_packet(bytes(data), MX_OF_EXAMPLE, ID)
    assert isinstance(reading, READINGS)
    if isinstance(reading, Found):
        for record in reading.exchangers:
            assert record.host == dns_wire.ROOT or host_names.is_host_name(record.host)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_no_bytes_raise(data: bytes) -> None:
    """Anything at all is a stray unless it is an answer."""
    assert isinstance(read_packet(data, MX_OF_EXAMPLE, ID), READINGS)
