"""A DNS server for tests: zone lines in, answers and misfortunes out, over UDP and TCP on one port.

In a test, on its own thread::

    with FakeDNS("example.test MX 10 mx.example.test\\nmx.example.test A 127.0.0.2") as dns:
        ...  # dns.address is "127.0.0.1:PORT"; dns.queries lists what was asked

As a process for other processes (the port may be 0; the first line of output says `listening 127.0.0.1:PORT`)::

    python -m tests.support.dns --listen 127.0.0.1:5353 --zone FILE

One line for each record or misfortune, `#` begins a comment::

    example.test         MX 10 mx.example.test
    mx.example.test      60 A 127.0.0.2              # a number before the type is the TTL, 300 without
    mx.example.test      AAAA ::1
    alias.test           CNAME example.test
    null.test            MX 0 .
    *.bulk.test          MX 10 sink.test             # all names below, as far as no line names them
    example.test         SOA 60                      # the minimum of negative answers at and below this name

    bad.test             SERVFAIL                    # also REFUSED, FORMERR, NOTIMP, NXDOMAIN
    half.test            SERVFAIL AAAA               # for these types only; so with every misfortune
    slow.test            TIMEOUT                     # no answer
    late.test            DELAY 0.5                   # seconds
    trunc.test           TRUNCATE                    # empty and truncated over UDP, whole over TCP
    mute.test            TRUNCATE-SILENT             # the same, but TCP says nothing
    shut.test            TRUNCATE-CLOSED             # the same, but TCP closes the connection
    odd.test             TRUNCATE-GARBAGE            # the same, but TCP brings bytes that are no answer
    old.test             NO-EDNS                     # FORMERR for questions with EDNS
    forged.test          FORGED                      # forgeries first (id, question, port, damage), then the truth
    flood.test           FLOOD                       # nothing but forgeries over UDP, the truth over TCP
    garbage.test         GARBAGE                     # bytes that are no answer
    cut.test             CUT                         # the true answer without its last bytes
    lame.test            REFERRAL                    # names other servers instead of answering

A name without any line is NXDOMAIN; one with lines, or with names below it, but none of the type is an empty answer.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from dnslib import AAAA, CNAME, MX, NS, QTYPE, RCODE, RR, SOA, A, DNSHeader, DNSQuestion, DNSRecord

DEFAULT_TTL = 300
DEFAULT_MINIMUM = 60
FORGED_ADDRESS = "203.0.113.66"

_RCODES = ("SERVFAIL", "REFUSED", "FORMERR", "NOTIMP", "NXDOMAIN")
_MISFORTUNES = (
    *_RCODES,
    *("TIMEOUT", "TRUNCATE", "TRUNCATE-SILENT", "TRUNCATE-CLOSED", "TRUNCATE-GARBAGE"),
    *("NO-EDNS", "FORGED", "FLOOD", "GARBAGE", "CUT", "REFERRAL"),
)


class Query(NamedTuple):
    """One question as it arrived; `transport` is "udp" or "tcp", `query_id` and `port` are the asker's."""

    name: str
    record_type: str
    transport: str
    query_id: int = 0
    port: int = 0


class Zone:
    """The lines, ready to answer."""

    def __init__(self, text: str) -> None:
        self.records: dict[str, list[RR]] = {}
        self.misfortunes: dict[str, list[tuple[str, float, tuple[str, ...]]]] = {}
        self.minimums: dict[str, int] = {}
        self.parents: set[str] = set()
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if words:
                try:
                    self._add(words)
                except (IndexError, KeyError, ValueError) as error:
                    raise ValueError(f"zone line {number}: {line.strip()!r}: {error!r}") from error

    def _add(self, words: list[str]) -> None:
        name = words[0].lower().rstrip(".")
        for index in range(1, name.count(".") + 1):
            self.parents.add(name.split(".", index)[index])
        rest = words[1:]
        ttl = int(rest.pop(0)) if rest[0].isdigit() else DEFAULT_TTL
        kind = rest.pop(0).upper()
        if kind == "DELAY":
            self.misfortunes.setdefault(name, []).append((kind, float(rest[0]), tuple(rest[1:])))
        elif kind in _MISFORTUNES:
            self.misfortunes.setdefault(name, []).append((kind, 0.0, tuple(rest)))
        elif kind == "SOA":
            self.minimums[name] = int(rest[0])
        else:
            data = {
                "A": lambda: A(rest[0]),
                "AAAA": lambda: AAAA(rest[0]),
                "CNAME": lambda: CNAME(rest[0]),
                "MX": lambda: MX(rest[1], int(rest[0])),
            }[kind]()
            self.records.setdefault(name, []).append(RR(name, getattr(QTYPE, kind), ttl=ttl, rdata=data))

    def _owner(self, name: str) -> str | None:
        """The name itself, or the wildcard that covers it, or None."""
        if name in self.records or name in self.misfortunes:
            return name
        parent = name
        while "." in parent:
            parent = parent.partition(".")[2]
            if f"*.{parent}" in self.records or f"*.{parent}" in self.misfortunes:
                return f"*.{parent}"
        return None

    def misfortune(self, name: str, record_type: str) -> tuple[str, float] | None:
        for kind, seconds, types in self.misfortunes.get(self._owner(name) or "", ()):
            if not types or record_type in types:
                return kind, seconds
        return None

    def fill(self, reply: DNSRecord, name: str, record_type: str) -> None:
        """Answer, authority and code for a question, CNAMEs followed as a resolver does."""
        for _ in range(20):
            owner = self._owner(name)
            records = self.records.get(owner or "", [])
            wanted = [rr for rr in records if QTYPE[rr.rtype] == record_type]
            aliases = [] if wanted else [rr for rr in records if QTYPE[rr.rtype] == "CNAME"]
            for rr in wanted or aliases:
                reply.add_answer(RR(name, rr.rtype, ttl=rr.ttl, rdata=rr.rdata))
            if not aliases:
                break
            name = str(aliases[0].rdata.label).rstrip(".").lower()
        else:
            return
        if not wanted:
            if owner is None and name not in self.parents:
                reply.header.rcode = RCODE.NXDOMAIN
            apex, minimum = name, DEFAULT_MINIMUM
            while apex:
                if apex in self.minimums:
                    minimum = self.minimums[apex]
                    break
                apex = apex.partition(".")[2]
            times = (1, 3600, 600, 86400, minimum)
            reply.add_auth(RR(apex or ".", QTYPE.SOA, ttl=3600, rdata=SOA("ns.invalid", "root.invalid", times)))


class FakeDNS:
    """The server; `start` returns when it listens. `on_query` is called on the server's thread before the answer is
    sent, with the `Query`."""

    def __init__(
        self, zone: str = "", listen: str = "127.0.0.1:0", on_query: Callable[[Query], object] = lambda _: None
    ) -> None:
        self._zone = Zone(zone)
        self._on_query = on_query
        host, _, port = listen.rpartition(":")
        self.host = host.strip("[]")
        self.port = int(port)
        self.queries: list[Query] = []
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._stopping = False
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """As the configuration's `dns.servers` wants it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def set_zone(self, text: str) -> None:
        """From the next question on, answer from these lines."""
        self._zone = Zone(text)

    def count(self, name: str, record_type: str) -> int:
        """How often this was asked, over both transports."""
        return sum(query.name == name and query.record_type == record_type for query in list(self.queries))

    def listen(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        for _ in range(50):  # with port 0: until a port is free for both transports
            self._udp = socket.socket(family, socket.SOCK_DGRAM)
            self._tcp = socket.socket(family, socket.SOCK_STREAM)
            self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                self._udp.bind((self.host, self.port))
                self._tcp.bind((self.host, self._udp.getsockname()[1]))
            except OSError:
                self._udp.close()
                self._tcp.close()
                if self.port:
                    raise
                continue
            self._tcp.listen(100)
            self.port = self._udp.getsockname()[1]
            return
        raise OSError("no port that is free for UDP and TCP")

    def start(self) -> FakeDNS:
        self.listen()
        self._waker, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self.serve, name=f"fake DNS {self.address}", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close the sockets and end the thread; what it held back is never answered."""
        if self._thread is not None:
            self._stopping = True
            self._wake.send(b"x")
            self._thread.join()
            self._thread = None
            self._wake.close()
            self._waker.close()

    def __enter__(self) -> FakeDNS:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def serve(self) -> None:
        """Answer until `stop`."""
        with contextlib.ExitStack() as stack:
            selector = self._selector = stack.enter_context(selectors.DefaultSelector())
            for listening in (self._udp, self._tcp):
                stack.callback(listening.close)
                listening.setblocking(False)
            self._streams: dict[socket.socket, bytes] = {}
            stack.callback(lambda: [stream.close() for stream in self._streams])
            selector.register(self._udp, selectors.EVENT_READ, self._read_udp)
            selector.register(self._tcp, selectors.EVENT_READ, self._accept)
            if self._thread is not None:
                selector.register(self._waker, selectors.EVENT_READ, lambda: None)
            while not self._stopping:
                wait = max(0.0, self._later[0][0] - time.monotonic()) if self._later else None
                for key, _ in selector.select(wait):
                    if not self._stopping:
                        key.data()
                while self._later and self._later[0][0] <= time.monotonic():
                    heapq.heappop(self._later)[2]()

    def _accept(self) -> None:
        stream, _ = self._tcp.accept()
        self._streams[stream] = b""
        self._selector.register(stream, selectors.EVENT_READ, lambda: self._read_tcp(stream))

    def _close(self, stream: socket.socket) -> None:
        if self._streams.pop(stream, None) is not None:
            self._selector.unregister(stream)
            stream.close()

    def _read_tcp(self, stream: socket.socket) -> None:
        try:
            data = stream.recv(65535)
        except OSError:
            data = b""
        if not data:
            self._close(stream)
            return
        buffered = self._streams[stream] + data
        while len(buffered) >= 2 and len(buffered) >= 2 + int.from_bytes(buffered[:2], "big"):
            size = 2 + int.from_bytes(buffered[:2], "big")
            packet, buffered = buffered[2:size], buffered[size:]
            self._answer(packet, "tcp", stream, ("", 0))
        if stream in self._streams:
            self._streams[stream] = buffered

    def _read_udp(self) -> None:
        packet, peer = self._udp.recvfrom(65535)
        self._answer(packet, "udp", None, peer)

    def _answer(self, packet: bytes, transport: str, stream: socket.socket | None, peer: tuple[str, int]) -> None:
        def send(data: bytes) -> None:
            with contextlib.suppress(OSError):  # the other side may have gone
                if stream is None:
                    self._udp.sendto(data, peer)
                elif stream in self._streams:
                    stream.sendall(len(data).to_bytes(2, "big") + data)

        try:
            request = DNSRecord.parse(packet)
            name = str(request.q.qname).rstrip(".").lower()
            record_type = QTYPE[request.q.qtype]
        except Exception:
            return  # not a question
        port = 0 if stream is not None else peer[1]
        query = Query(name, record_type, transport, request.header.id, port)
        self.queries.append(query)
        self._on_query(query)
        reply = DNSRecord(DNSHeader(id=request.header.id, qr=1, rd=request.header.rd, ra=1), q=request.q)
        zone = self._zone
        misfortune, seconds = zone.misfortune(name, record_type) or ("", 0.0)
        if misfortune in _RCODES:
            reply.header.rcode = getattr(RCODE, misfortune)
            if misfortune != "NXDOMAIN":
                send(reply.pack())
                return
        zone.fill(reply, name, record_type)
        whole = reply.pack()
        edns = any(QTYPE[rr.rtype] == "OPT" for rr in request.ar)
        match misfortune:
            case "TIMEOUT":
                return
            case "DELAY":
                due = time.monotonic() + seconds
                heapq.heappush(self._later, (due, next(self._numbers), lambda: send(whole)))
            case "TRUNCATE" | "TRUNCATE-SILENT" | "TRUNCATE-CLOSED" | "TRUNCATE-GARBAGE" if stream is None:
                cut = DNSRecord(DNSHeader(id=request.header.id, qr=1, rd=1, ra=1, tc=1), q=request.q)
                send(cut.pack())
            case "TRUNCATE-SILENT":
                return
            case "TRUNCATE-CLOSED" if stream is not None:
                self._close(stream)
            case "NO-EDNS" if edns:
                send(DNSRecord(DNSHeader(id=request.header.id, qr=1, rcode=RCODE.FORMERR)).pack())
            case "FORGED" if stream is None:
                self._forge(request, peer)
                send(whole)
            case "FLOOD" if stream is None:
                for _ in range(8):
                    self._forge(request, peer)
            case "GARBAGE" | "TRUNCATE-GARBAGE":
                send(packet[:2] + b"\x81\x80" + b"\xff" * 40)
            case "CUT":
                send(whole[:-3])
            case "REFERRAL":
                referral = DNSRecord(DNSHeader(id=request.header.id, qr=1, ra=0), q=request.q)
                referral.add_auth(RR(name.partition(".")[2] or ".", QTYPE.NS, rdata=NS("ns.elsewhere.test")))
                send(referral.pack())
            case _:
                # What does not fit (RFC 6891 6.2.5) is truncated.
                if stream is None and len(whole) > (1232 if edns else 512):
                    whole = DNSRecord(DNSHeader(id=request.header.id, qr=1, ra=1, tc=1), q=request.q).pack()
                send(whole)

    def _forge(self, request: DNSRecord, peer: tuple[str, int]) -> None:
        """Answers that are wrong in one point each, and a true-looking one from a port that was not asked."""

        def forged(query_id: int, question: DNSQuestion, qr: int = 1) -> bytes:
            record = DNSRecord(DNSHeader(id=query_id, qr=qr, rd=1, ra=1), q=question)
            if question.qtype == QTYPE.MX:
                record.add_answer(RR(question.qname, QTYPE.MX, ttl=86400, rdata=MX("forged.test", 0)))
            else:
                record.add_answer(RR(question.qname, QTYPE.A, ttl=86400, rdata=A(FORGED_ADDRESS)))
            return record.pack()

        query_id, asked = request.header.id, request.q
        good = forged(query_id, asked)
        for data in (
            forged(query_id ^ 1, asked),
            forged(query_id, DNSQuestion("other.test", asked.qtype)),
            forged(query_id, DNSQuestion(asked.qname, QTYPE.TXT)),
            forged(query_id, asked, qr=0),
            good[:-2],
            good[:14],
            good + b"more",
            b"",
        ):
            self._udp.sendto(data, peer)
        with socket.socket(self._udp.family, socket.SOCK_DGRAM) as other:
            other.bind((self.host, 0))
            other.sendto(good, peer)


def main() -> None:
    parser = argparse.ArgumentParser(description="A DNS server for tests.")
    parser.add_argument("--listen", default="127.0.0.1:5353", metavar="ADDRESS:PORT")
    parser.add_argument("--zone", required=True, metavar="FILE")
    options = parser.parse_args()
    with open(options.zone, encoding="utf-8") as file:
        server = FakeDNS(file.read(), options.listen)
    server.listen()
    print(f"listening {server.address}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve()
    sys.exit(0)


if __name__ == "__main__":
    main()
