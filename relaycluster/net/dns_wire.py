"""One DNS question and what one packet says about it: bytes to a closed union; no input raises.

RFC 1035 (messages), RFC 2181 (TTL), RFC 2308 (negative answers), RFC 6891 (EDNS0), RFC 6840 5.7 (AD). The packets are
parsed by `twisted.names.dns`, which reads a packet that was cut off as a shorter one with fewer answers: here such a
packet is not an answer.
"""

from __future__ import annotations

import struct
from io import BytesIO
from socket import AF_INET6, inet_ntop

from attrs import frozen
from twisted.names import dns

from relaycluster.policy.host_names import is_host_name, is_usable_address
from relaycluster.policy.routing import MX

TYPE_A = dns.A
TYPE_AAAA = dns.AAAA
TYPE_MX = dns.MX
_TYPE_OPT = 41

EDNS_PAYLOAD_BYTES = 1232
"""The largest UDP answer that we ask for: what passes everywhere without fragments (DNS flag day 2020)."""

MOST_CNAMES = 10
MOST_RECORDS = 100
"""How many records of an answer are kept; of MX records the preferred ones."""

_MOST_POINTERS = 5_000
"""Twisted's 1,000 make an answer with 500 MX records undecodable; so many let each that fits 64 KiB through, and still
bound what a packet of chained pointers costs."""

ROOT = "."
"""The host of a null MX record (RFC 7505)."""

_HEADER = struct.Struct("!H2B4H")
_RCODE_NAMES = {1: "FORMERR", 2: "SERVFAIL", 4: "NOTIMP", 5: "REFUSED", 16: "BADVERS"}
_EDNS_REFUSALS = (1, 4, 16)


@frozen
class Question:
    """`name` in lower case without a final dot, `record_type` a DNS type number."""

    name: str
    record_type: int


@frozen
class Found:
    """Records of the wanted type: `exchangers` by rising preference, or `addresses`, those that can be used. Both are
    empty when every record is unusable. `ROOT` is an exchanger only where it is the only record, as RFC 7505 3 wants
    it. `ttl_seconds` is the smallest on the way, CNAMEs included."""

    exchangers: tuple[MX, ...]
    addresses: tuple[str, ...]
    ttl_seconds: int
    authenticated: bool


@frozen
class NoData:
    """The name exists without records of this type. `ttl_seconds` as RFC 2308 5 counts it; 0 without a SOA record."""

    ttl_seconds: int


@frozen
class NoName:
    """The name, or the one that its CNAME leads to, does not exist."""

    ttl_seconds: int


@frozen
class Continues:
    """The packet ends with a CNAME: ask for `name` next."""

    name: str
    ttl_seconds: int


@frozen
class Truncated:
    """The answer did not fit: ask again over TCP."""


@frozen
class ServerTrouble:
    """This server gives no usable answer; another may. `without_edns` when the same one may, asked without EDNS.
    `is_down` when it cannot be reached at all."""

    reason: str
    without_edns: bool = False
    is_down: bool = False


@frozen
class Stray:
    """Not an answer to this question: damaged, late, or forged. Go on waiting."""

    reason: str


Final = Found | NoData | NoName
Reading = Found | NoData | NoName | Continues | Truncated | ServerTrouble | Stray


def encode_query(question: Question, query_id: int, edns: bool = True) -> bytes:
    """The packet that asks `question`, recursion and the AD bit desired."""
    message = dns.Message(query_id, recDes=1, authenticData=1)
    message.addQuery(question.name.encode("ascii"), question.record_type)
    if edns:
        message.additional.append(dns.RRHeader(b"", _TYPE_OPT, EDNS_PAYLOAD_BYTES))
    return message.toStr()


def read_packet(packet: bytes, question: Question, query_id: int) -> Reading:
    """What a packet from the server that was asked says about the question."""
    if len(packet) < _HEADER.size:
        return Stray("short packet")
    identifier, flags, _, questions, answers, authority, additional = _HEADER.unpack_from(packet)
    if identifier != query_id or not flags & 0x80:
        return Stray("wrong id")
    message = dns.Message()
    message.maxCompressionPointers = _MOST_POINTERS
    stream = BytesIO(packet)
    try:
        message.decode(stream)
    except Exception as error:  # the decoder documents only some of what it raises
        return Stray(f"undecodable: {type(error).__name__}")
    extended = next((record.ttl >> 24 for record in message.additional if record.type == _TYPE_OPT), 0)
    rcode = extended << 4 | message.rCode
    if not message.queries and rcode not in (dns.OK, dns.ENAME) and not answers:
        pass  # an error without the question in it: id and address must do (RFC 1035 4.1.1)
    elif not _is_about(message.queries, question):
        return Stray("wrong question")
    if message.trunc:
        return Truncated()
    if rcode not in (dns.OK, dns.ENAME):
        return ServerTrouble(_RCODE_NAMES.get(rcode, f"RCODE {rcode}"), rcode in _EDNS_REFUSALS)
    counts = (len(message.queries), len(message.answers), len(message.authority), len(message.additional))
    if counts != (questions, answers, authority, additional) or stream.read(1):
        return Stray("damaged packet")
    return _follow(message, question, rcode == dns.ENAME)


def _is_about(queries: list[dns.Query], question: Question) -> bool:
    return (
        len(queries) == 1
        and queries[0].type == question.record_type
        and queries[0].cls == dns.IN
        and queries[0].name.name.lower() == question.name.encode("ascii")
    )


def _follow(message: dns.Message, question: Question, no_such_name: bool) -> Reading:
    """From the question along the CNAMEs of the packet to its records, or to where they end."""
    owner = question.name.encode("ascii")
    ttl = _LONGEST_TTL
    for _ in range(MOST_CNAMES + 1):
        own = [rr for rr in message.answers if rr.cls == dns.IN and rr.name.name.lower() == owner]
        wanted = [rr for rr in own if rr.type == question.record_type]
        if wanted:
            ttl = min(ttl, *(_ttl(rr) for rr in wanted))
            return _found(wanted, ttl, bool(message.authenticData))
        alias = next((rr for rr in own if isinstance(rr.payload, dns.Record_CNAME)), None)
        if alias is None:
            return _nothing(message, question, owner, ttl, no_such_name)
        assert isinstance(alias.payload, dns.Record_CNAME)
        ttl = min(ttl, _ttl(alias))
        owner = alias.payload.name.name.lower()
        if not is_host_name(_text(owner)):
            return ServerTrouble("CNAME to an impossible name")
    return ServerTrouble("CNAME chain too long")


def _nothing(message: dns.Message, question: Question, owner: bytes, ttl: int, no_such_name: bool) -> Reading:
    """No record of the wanted type at `owner`, the end of the chain (RFC 2308 2.1, 2.2)."""
    soa = next((rr for rr in message.authority if isinstance(rr.payload, dns.Record_SOA)), None)
    negative = 0
    if soa is not None:
        assert isinstance(soa.payload, dns.Record_SOA)
        negative = min(ttl, _ttl(soa), soa.payload.minimum)
    if no_such_name:
        return NoName(negative)
    if soa is None and owner != question.name.encode("ascii"):
        return Continues(_text(owner), ttl)
    if soa is None and not message.recAv and any(rr.type == dns.NS for rr in message.authority):
        return ServerTrouble("a referral: it does not resolve for us")
    return NoData(negative)


def _found(records: list[dns.RRHeader], ttl: int, authenticated: bool) -> Found:
    exchangers: set[MX] = set()
    named: set[tuple[int, str]] = set()
    addresses: dict[str, None] = {}
    for record in records[: 10 * MOST_RECORDS]:
        payload = record.payload
        if isinstance(payload, dns.Record_MX):
            host = _text(payload.name.name.lower()) or ROOT
            named.add((payload.preference, host))
            if is_host_name(host):
                exchangers.add(MX(payload.preference, host))
        elif isinstance(payload, dns.Record_A):
            addresses[payload.dottedQuad()] = None
        elif isinstance(payload, dns.Record_AAAA):
            addresses[inet_ntop(AF_INET6, payload.address)] = None
    if len(named) == 1:  # counted with the impossible ones: beside those, too, "." is a mistake and no refusal
        exchangers.update(MX(preference, host) for preference, host in named if host == ROOT)
    return Found(
        tuple(sorted(exchangers)[:MOST_RECORDS]),
        tuple(address for address in addresses if is_usable_address(address))[:MOST_RECORDS],
        ttl,
        authenticated,
    )


_LONGEST_TTL = 2**31 - 1


def _ttl(record: dns.RRHeader) -> int:
    """RFC 2181 8: a TTL with its highest bit set counts as 0."""
    return record.ttl if record.ttl <= _LONGEST_TTL else 0


def _text(name: bytes) -> str:
    """The name as text; one that is not ASCII becomes one that is no host name."""
    return name.decode("ascii", "replace")
