"""What is fuzzed: functions of octets that return, or raise because something that must hold does not."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from relaycluster.mail.address import Address
from relaycluster.mail.header import author_domain, domain_of, mailboxes, split_fields
from relaycluster.net.proxy_header import V1_OCTETS, V2_OCTETS, ProxyHeaderError, parse
from relaycluster.smtp.commands import Verb, parse_bdat, parse_hello, parse_mail, parse_rcpt, split_command
from relaycluster.smtp.framing import CommandFramer, ContentScanner, LineTrouble
from relaycluster.smtp.grammar import (
    GrammarError,
    parse_forward_path,
    parse_mailbox,
    parse_parameters,
    parse_reverse_path,
)
from relaycluster.smtp.server_auth import parse_auth
from relaycluster.smtp.server_settings import Dialect, ServerSettings
from tests.fuzz import reference
from tests.fuzz.sessions import Driver, Plan, Random, single, whole

Cut = Callable[[bytes], Iterator[bytes]]

DIALECT = Dialect(ServerSettings("relay.test", starttls=True, auth=True, auth_without_tls=True))


def grammar(data: bytes) -> None:
    """Arguments of commands: an address, or a reply; what was accepted reads back as the same."""
    verb, argument = split_command(data)
    assert isinstance(verb, Verb)
    for utf8 in (False, True):
        for parse_path in (parse_reverse_path, parse_forward_path):
            try:
                address, rest = parse_path(data, utf8)
            except GrammarError as trouble:
                _well_formed_refusal(trouble)
                continue
            assert data.endswith(rest)
            _well_formed_address(address, utf8)
            if address.domain:
                again, nothing = parse_path(f"<{address.text}>".encode(), utf8)
                assert (again, nothing) == (address, b""), (address, again)
        _refused_or(partial(parse_parameters, data, utf8))
        _refused_or(partial(parse_rcpt, argument, DIALECT, True, utf8))
    for call in (
        lambda: parse_mail(argument, DIALECT, True),
        lambda: parse_mail(argument, DIALECT, False),
        lambda: parse_mail(data, DIALECT, True),
        lambda: parse_rcpt(data, DIALECT, True),
        lambda: parse_hello(data),
        lambda: parse_bdat(data),
        lambda: parse_auth(data),
    ):
        _refused_or(call)
    _refused_or(lambda: parse_mailbox(data.decode("utf-8", "replace")))


def _refused_or(call: Callable[[], object]) -> None:
    try:
        call()
    except GrammarError as trouble:
        _well_formed_refusal(trouble)


def _well_formed_refusal(trouble: GrammarError) -> None:
    encoded = trouble.reply.encode()
    assert 400 <= trouble.reply.code <= 599
    assert encoded.count(b"\r\n") == len(trouble.reply.lines)
    assert all(32 <= octet < 127 or octet in b"\r\n" for octet in encoded), encoded
    assert len(encoded) <= 512 * len(trouble.reply.lines)


def _well_formed_address(address: Address, utf8: bool) -> None:
    assert not re.search(r"[\x00-\x1f\x7f]", address.text), address
    assert utf8 or address.text.isascii()
    assert address.domain.isascii(), address
    assert address.domain == address.domain.lower()
    assert len(address.text.encode()) <= 256


def header(data: bytes) -> None:
    """A message's header: nothing is lost in taking it apart, and no address list takes the program down."""
    fields = split_fields(data)
    assert b"".join(field.raw for field in fields) == data or not data.endswith(b"\r\n")
    domain = author_domain(fields)
    assert domain == domain.lower()
    assert domain.isascii(), domain
    for value in [data, *(field.value for field in fields)]:
        for mailbox in mailboxes(value):
            domain_of(mailbox)


def framing(data: bytes) -> None:
    """Lines and content out of chunks: the same as by hand, at any cuts, with bounded memory."""
    seed, stream = data[:1], data[1:]
    cuts = (whole, single, Random(seed[0] if seed else 0))
    limit = 40
    lines = [_lines(stream, cut, limit) for cut in cuts]
    assert lines[0] == lines[1] == lines[2], lines
    assert lines[0] == _lines_by_hand(stream, limit), (lines[0], _lines_by_hand(stream, limit))
    for normalize in (False, True):
        contents = [_content(stream, cut, normalize) for cut in cuts]
        assert contents[0] == contents[1] == contents[2], contents
        expected = _content_by_hand(stream, normalize)
        if expected is not None or contents[0] is not None:
            assert contents[0] == expected, (contents[0], expected)


def _lines(stream: bytes, cut: Cut, limit: int) -> list[bytes | LineTrouble]:
    framer = CommandFramer(limit)
    found: list[bytes | LineTrouble] = []
    for piece in cut(stream):
        framer.feed(piece)
        while (line := framer.next_line()) is not None:
            found.append(line)
        assert framer.pending <= limit
    return found


def _lines_by_hand(stream: bytes, limit: int) -> list[bytes | LineTrouble]:
    *complete, rest = stream.split(b"\r\n")
    found: list[bytes | LineTrouble] = [_judged(line, limit) or line for line in complete]
    if rest.endswith(b"\r"):
        rest = rest[:-1]  # perhaps half of an end
    if trouble := _judged(rest, limit):
        found.append(trouble)
    return found


def _judged(line: bytes, limit: int) -> LineTrouble | None:
    head = line[: limit - 2]
    if b"\r" in head or b"\n" in head:
        return LineTrouble.BARE_NEWLINE
    return LineTrouble.TOO_LONG if len(line) + 2 > limit else None


def _content(stream: bytes, cut: Cut, normalize: bool) -> tuple[bytes, bool, bytes] | None:
    """Content, whether it had a bare newline, and what stands behind it; None without an end."""
    scanner = ContentScanner(normalize)
    body, rest, ended = b"", b"", False
    for piece in cut(stream):
        if ended:
            rest += piece
            continue
        body += scanner.feed(piece)
        if scanner.rest is not None:
            ended, rest = True, scanner.rest
    assert scanner.size == len(body)
    return (body, scanner.has_bare_newline, rest) if ended else None


def _content_by_hand(stream: bytes, normalize: bool) -> tuple[bytes, bool, bytes] | None:
    lines = []
    while True:
        line, end, stream = stream.partition(b"\r\n")
        if not end:
            return None
        if line == b".":
            break
        lines.append(line[1:] if line.startswith(b".") else line)
    content = b"".join(line + b"\r\n" for line in lines)
    bare = re.search(rb"\r(?!\n)|(?<!\r)\n", content) is not None
    if normalize:
        content = re.sub(rb"\r\n|\r|\n", b"\r\n", content)
    return content, bare, stream


def proxy(data: bytes) -> None:
    """The PROXY header: the same answer as a reader that goes by the letter, as early as octet by octet, and bounded."""
    outcomes = []
    for size in range(min(len(data), V2_OCTETS + 40) + 1):
        try:
            found = parse(data[:size])
        except ProxyHeaderError:
            outcomes.append("error")
            break
        if found is not None:
            assert found.octets == size, (found, size)  # not an octet later than it could be known
            assert size <= V2_OCTETS
            outcomes.append(found)  # type: ignore[arg-type]
            break
    else:
        assert len(data) <= V2_OCTETS, "a header without end"
    first = outcomes[0] if outcomes else None
    try:
        at_once: object = parse(data)
    except ProxyHeaderError:
        at_once = "error"
    assert at_once == first, (at_once, first)
    if first is not None and first != "error":
        route = first.route  # type: ignore[attr-defined]
        expected = _proxy_by_hand(data)
        told = None if route is None else (route.peer_address, route.peer_port, route.local_address, route.local_port)
        assert told == expected, (told, expected)
    else:
        assert first == "error" or len(data) < V2_OCTETS


def _proxy_by_hand(data: bytes) -> tuple[str, int, str, int] | None:
    """The client and the server of a header that is known to be good."""
    if data.startswith(b"PROXY "):
        line = data[:V1_OCTETS].partition(b"\r\n")[0].decode("latin-1")
        words = line.split(" ")
        if words[1] == "UNKNOWN":
            return None
        told = IPv4Address if words[1] == "TCP4" else IPv6Address
        return _plain(told(words[2])), int(words[4]), _plain(told(words[3])), int(words[5])
    command, family = data[12], data[13]
    if command == 0x20 or family not in (0x11, 0x21):
        return None
    size = 4 if family == 0x11 else 16
    kind = IPv4Address if family == 0x11 else IPv6Address
    source, destination = data[16 : 16 + size], data[16 + size : 16 + 2 * size]
    ports = struct.unpack("!HH", data[16 + 2 * size : 20 + 2 * size])
    return _plain(kind(source)), ports[0], _plain(kind(destination)), ports[1]


def _plain(address: IPv4Address | IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def conversation(data: bytes) -> None:
    """A whole session: no exception; whole, octet by octet and cut at random it is the same; and a slow reader finds the same
    messages in it."""
    _check(Plan.of(data))


def bdat(data: bytes) -> None:
    """The same, with octets that were made to be a session with chunks: every octet is one step of the client."""
    _check(Plan.of(bytes([data[0] & 0x90 if data else 0]) + data[1:2] + _chunked(data[2:])))


def _chunked(steps: bytes) -> bytes:
    """Steps as commands: chunks of right and wrong sizes, with newlines that stand across the cuts between them."""
    said = bytearray(b"EHLO c\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\n")
    pieces = (
        b"",
        b"x",
        b"\r\n",
        b"\r",
        b"\n",
        b".",
        b"\r\n.\r\n",
        b"ab\r\n",
        b"MAIL FROM:<>\r\n",
        b"later\r\n",
        b"x" * 40,
    )
    for step in steps:
        kind, choice = step >> 4, step & 0x0F
        piece = pieces[choice % len(pieces)]
        if kind < 6:
            said += b"BDAT %d\r\n" % len(piece) + piece
        elif kind < 8:
            said += b"BDAT %d LAST\r\n" % len(piece) + piece
        elif kind == 8:
            said += b"BDAT %d\r\n" % (len(piece) + 1) + piece
        elif kind == 9:
            said += b"BDAT %d LAST\r\n" % max(0, len(piece) - 1) + piece
        elif kind == 10:
            said += (b"RSET\r\n", b"EHLO c\r\n", b"NOOP\r\n", b"VRFY x\r\n")[choice % 4]
        elif kind == 11:
            said += (b"MAIL FROM:<a@b.c>\r\n", b"MAIL FROM:<nodata@b.c>\r\n")[choice % 2]
        elif kind == 12:
            said += (b"RCPT TO:<d@e.f>\r\n", b"RCPT TO:<refused@e.f>\r\n")[choice % 2]
        elif kind == 13:
            said += b"DATA\r\n" + piece + (b"\r\n.\r\n" if choice % 2 else b"")
        elif kind == 14:
            said += (b"BDAT\r\n", b"bdat 0 last\r\n", b"BDAT 0\r\n", b"BDAT 00 LAST \r\n", b"BDAT 1 LAS\r\nx")[
                choice % 5
            ]
        else:
            said += piece
    return bytes(said)


def _check(plan: Plan) -> None:
    short = sum(map(len, plan.segments)) < 2000
    cuts = (whole, single if short else Random(plan.seed + 1), Random(plan.seed))
    told = [Driver(plan).run(plan.segments, cut) for cut in cuts]
    first = told[0]
    for other in told[1:]:
        assert other.replies == first.replies, (first.replies, other.replies)
        assert other.events == first.events, (first.events, other.events)
    reading = reference.read(plan.segments, first.replies, plan.limits)
    assert reading.messages == first.messages, (reading.messages, first.messages)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "grammar": grammar,
    "header": header,
    "framing": framing,
    "proxy": proxy,
    "bdat": bdat,
    "conversation": conversation,
}
