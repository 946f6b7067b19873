"""Delivery status notices: what a sender gets to read when mail failed, waits, or went where no notices come from.

RFC 3464 inside RFC 6522: a text for a person, a part for programs, and the header of the message (or all of it). The same report
gives the same octets, so that enqueuing it twice is harmless. Whatever remote servers said is stripped of control characters and
bounded, since it is a stranger's text in a mail that carries our name.

All of it is 7-bit, with one exception: to a sender who declared SMTPUTF8, what is internationalized comes back as it was, in the types
of RFC 6533. What stands outside of the parts is internationalized only when the sender's own address is, so that any host takes the notice
that took the sender's other mail.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from hashlib import blake2b
from ipaddress import ip_address
from itertools import groupby
from textwrap import wrap
from types import MappingProxyType
from typing import Final, assert_never

from attrs import frozen

from relaycluster.mail.address import NULL, Address
from relaycluster.mail.downgrade import downgrade, quoted_printable
from relaycluster.mail.envelope import BodyType, Envelope
from relaycluster.mail.queue_id import RANDOM_BITS
from relaycluster.mail.reply import Reply
from relaycluster.mail.trace import address_literal, date_time, header_end
from relaycluster.mail.xtext import in_ascii

SAID_LENGTH: Final = 900
"""Of what a remote server said, this many characters are shown: a word of that length still fits a line (RFC 5322 2.1.1)."""

HEADER_LENGTH: Final = 32_768
"""Of the header of the message, this many octets come back."""

_WIDTH: Final = 76


class Action(Enum):
    """The Action field (RFC 3464 2.3.3)."""

    FAILED = "failed"
    DELAYED = "delayed"
    RELAYED = "relayed"


@frozen
class RecipientReport:
    """What there is to say about one recipient.

    `status` is the enhanced status code; `reply` the last reply, a server's or ours (`Reply.heard`);
    `host` the MX host that was asked last. Times are seconds since the epoch. `original_recipient` is the ORCPT
    parameter, decoded (`xtext.original_recipient`), with its type: `rfc822;bob@example.org`.
    """

    recipient: Address
    action: Action
    status: str
    reply: Reply
    host: str = ""
    original_recipient: str = ""
    last_attempt: float | None = None
    retry_until: float | None = None


@frozen
class Report:
    """One notice: about one item, to one sender.

    `notice_id` is the queue id of the notice itself, `queue_id` that of the message; `hostname` is ours; `made` and `arrived` are
    seconds since the epoch; `original` the content, or its head that includes the header; with `full` all of it comes back (RET=FULL);
    `envelope_id` is the ENVID parameter, decoded; `smtputf8` tells that the message was declared so. Recipients with the same action stand
    together, and the first ones name the notice.
    """

    notice_id: str
    queue_id: str
    hostname: str
    reverse_path: Address
    arrived: float
    made: float
    recipients: tuple[RecipientReport, ...]
    original: bytes
    full: bool = False
    envelope_id: str = ""
    smtputf8: bool = False


# For people: by enhanced code, then by its subject.
_MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "1.1": "There is no such mailbox. Please check the part of the address before the @ for typing mistakes.",
        "1.2": "The domain does not exist. Please check the part of the address after the @ for typing mistakes.",
        "1.10": "The domain exists, but declares that it accepts no mail. Please check the address, or ask the recipient for another.",
        "1.6": "The mailbox has moved, and the receiving system does not say where to. Please ask the recipient.",
        "2.1": "The mailbox exists but is switched off. Please reach the recipient in another way.",
        "2.2": "The recipient's mailbox is full. Please try again later, or tell the recipient in another way.",
        "2.3": "The message is larger than the recipient may receive. Please send less at once.",
        "3.4": "The message is larger than the receiving system accepts. Please send less at once.",
        "4.1": "The receiving system could not be reached.",
        "4.2": "The connection to the receiving system broke off.",
        "4.3": "The domain name system gave no usable answer about the recipient's domain.",
        "4.4": "No mail server could be found for the domain. Please check the part of the address after the @.",
        "4.6": "The message goes in a circle between mail systems. Their administrators have to mend that.",
        "4.7": "It could not be delivered in all the time that it was kept here.",
        "6.3": "The receiving system cannot take the characters in this message, and it could not be converted.",
        "6.7": "The receiving system takes only mail whose addresses and header are plain ASCII, and this message has others.",
        "7.4": "A secure connection is required, and the receiving system does not offer one.",
        "7.5": "A secure connection to the receiving system could not be made.",
        "1": "The receiving system does not accept this address.",
        "2": "There is a problem with the recipient's mailbox.",
        "3": "There is a problem on the receiving system.",
        "4": "There is a problem with the network or the routing of mail.",
        "5": "Our system and the receiving system did not understand each other.",
        "6": "The receiving system does not accept the content of the message.",
        "7": "The receiving system refuses the message because of its rules.",
    }
)

_NOT_PRINTABLE = re.compile(r"[^ -~]+")
_SPACES = re.compile(r"[\t\r\n ]+")
_message_id = re.compile(
    rb"^message-id:[ \t]*(?:\r\n[ \t]+)?(<[!-;=?-~]{1,250}>)[ \t]*\r$", re.IGNORECASE | re.MULTILINE
).search
_subject = re.compile(rb"^subject:[ \t]*([^\0-\x1f\x7f]{1,200})\r$", re.IGNORECASE | re.MULTILINE).search


def notice_entropy(item_id: str, kind: Action, recipients: Sequence[str], attempt: int) -> int:
    """The random part of the notice's queue id, computed from what the notice is about: whoever makes this notice
    again, on whatever node, makes it under the same id. For `queue_id.make`."""
    text = "\0".join((item_id, kind.value, str(attempt), *sorted(recipients)))
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest(), "big") % (
        1 << RANDOM_BITS
    )


def envelope(report: Report) -> Envelope:
    """The envelope of the notice: from the null reverse-path, so that it never causes another (RFC 5321 6.1, RFC 3464 2)."""
    if not is_global(report):
        return Envelope(NULL, (report.reverse_path,))
    return Envelope(NULL, (report.reverse_path,), BodyType.EIGHT_BIT, smtputf8=True)


def is_global(report: Report) -> bool:
    """Whether the notice is internationalized (RFC 6533): something in it is, and its reader can be expected to understand that."""
    reverse_path = report.reverse_path.text
    if not reverse_path.isascii():
        return True
    return report.smtputf8 and (
        _is_utf8(_header(report))
        or not all(entry.recipient.text.isascii() and entry.original_recipient.isascii() for entry in report.recipients)
    )


def build(report: Report) -> bytes:
    """The notice as a message with CRLF line ends and lines of at most 998 octets; none above 126, unless `is_global`.

    `ValueError` for the null reverse-path, to which nothing is ever sent, and without recipients.
    """
    if report.reverse_path.is_null:
        raise ValueError("a message from the null reverse-path causes no notice")
    if not report.recipients:
        raise ValueError("a notice about nobody")
    as_utf8 = is_global(report)
    parts = (_text_part(report, as_utf8), _status_part(report, as_utf8), _original_part(report, as_utf8))
    boundary = _boundary(report.notice_id, parts)
    # RFC 6522 3: the report-type is the subtype of the second part.
    lines = [
        b"From: Mail Delivery System <MAILER-DAEMON@%s>" % _clean(report.hostname).encode(),
        b"To: " + _to(report.reverse_path).encode(),
        _field("Subject", _subject_text(report)),
        _field("Date", date_time(report.made)),
        b"Message-ID: <%s@%s>" % (_clean(report.notice_id).encode(), _clean(report.hostname).encode()),
        *_threading(report),
        b"Auto-Submitted: auto-replied",  # RFC 3834 5: vacation programs and list servers keep quiet
        b"MIME-Version: 1.0",
        b"Content-Type: multipart/report; report-type=%sdelivery-status;" % (b"global-" if as_utf8 else b""),
        b'\tboundary="%s"' % boundary,
        *([b"Content-Transfer-Encoding: 8bit"] if as_utf8 else []),
        b"",
        b"This is a delivery status notice in MIME format (RFC 3464).",
    ]
    for part in parts:  # each ends in CRLF; the one before a delimiter belongs to the delimiter (RFC 2046 5.1.1)
        lines += [b"--" + boundary, part]
    lines += [b"--" + boundary + b"--", b""]
    return b"\r\n".join(lines)


def _subject_text(report: Report) -> str:
    what = {
        Action.FAILED: "could not be delivered",
        Action.DELAYED: "is delayed",
        Action.RELAYED: "was passed on",
    }[report.recipients[0].action]
    text = report.recipients[0].recipient.text
    number = sum(entry.action is report.recipients[0].action for entry in report.recipients)
    if number > 1:
        return f"Your message to {number} recipients {what}"
    whom = f" to {_clean(text)}" if len(text) <= 100 and text.isascii() else ""
    return f"Your message{whom} {what}"


def _text_part(report: Report, as_utf8: bool) -> bytes:
    """What a person reads first. What happened, to whom, what the other side said, what can be done."""
    shown = _clean_utf8 if as_utf8 else _address
    lines = [f"This is the mail system at {_clean(report.hostname)}.", ""]
    subject = _shown_subject(report, as_utf8)
    for action, entries in groupby(report.recipients, lambda entry: entry.action):
        recipients = list(entries)
        opening, closing = _words(action, recipients[0])
        lines += wrap(f"Your message that arrived here at {date_time(report.arrived)} {opening}", _WIDTH)
        if subject:
            lines += ["", *_wrap("Its subject: ", subject)]
        for entry in recipients:
            lines += ["", f"<{shown(entry.recipient.text)}>"]
            if entry.action is not Action.RELAYED:
                lines += _wrap("    ", _meaning(entry.status))
            if entry.reply.heard:
                by = (
                    f"The mail server {_clean(entry.host)} said: " if entry.host else "The receiving mail server said: "
                )
                lines += _wrap("    ", by + _said(entry.reply))
            else:
                lines += _wrap("    ", f"Our own mail system says: {_said(entry.reply)}")
        if closing:
            lines += ["", *wrap(closing, _WIDTH)]
        lines.append("")
    lines += [f"The message has the id {_clean(report.queue_id)} at {_clean(report.hostname)}.", ""]
    kind = (
        b"charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\nContent-Language: en\r\n\r\n"
        if as_utf8
        else b"charset=us-ascii\r\nContent-Language: en\r\n\r\n"
    )
    return b"Content-Type: text/plain; " + kind + "\r\n".join(lines).encode("utf-8" if as_utf8 else "ascii", "replace")


def _words(action: Action, first: RecipientReport) -> tuple[str, str]:
    """What happened to the recipients with this action, and what can be done."""
    match action:
        case Action.FAILED:
            return (
                "could not be delivered to the recipients below. It will not be tried again.",
                "If you do not know what to do about it, forward this notice as a whole to your postmaster or to the help desk "
                "of your mail provider. To try again, send the message again.",
            )
        case Action.DELAYED:
            until = f" until {date_time(first.retry_until)}" if first.retry_until is not None else ""
            return (
                "has not been delivered yet to the recipients below. "
                f"You do NOT need to send it again: it will be tried again{until}.",
                "If it cannot be delivered by then, you will get another notice.",
            )
        case Action.RELAYED:
            return (
                "was passed on for the recipients below to a mail system that does not send notices of delivery. "
                "There was no error, and you may hear no more about it.",
                "",
            )
        case _:
            assert_never(action)


def _shown_subject(report: Report, as_utf8: bool) -> str:
    """The message's subject, if it can be shown as it is."""
    found = _subject(_header(report))
    if found is None or b"=?" in found.group(1):
        return ""
    try:
        return _clean_utf8(found.group(1).decode("utf-8" if as_utf8 else "ascii"))
    except UnicodeDecodeError:
        return ""


def _status_part(report: Report, as_utf8: bool) -> bytes:
    """The part that programs read (RFC 3464 2.2 and 2.3; RFC 6533 3)."""
    lines = []
    if report.envelope_id:
        lines.append(_field("Original-Envelope-Id", report.envelope_id))
    lines += [
        _field("Reporting-MTA", f"dns; {report.hostname}"),
        _field("X-Relaycluster-Queue-Id", report.queue_id),
        _field("Arrival-Date", date_time(report.arrived)),
    ]
    for entry in report.recipients:
        lines.append(b"")
        if entry.original_recipient:
            kind, _, address = entry.original_recipient.partition(";")
            lines.append(b"Original-Recipient: " + _typed(_clean(kind)[:40], address.strip(), as_utf8))
        lines.append(
            b"Final-Recipient: "
            + _typed("rfc822" if entry.recipient.text.isascii() else "utf-8", entry.recipient.text, as_utf8)
        )
        lines.append(_field("Action", entry.action.value))
        lines.append(_field("Status", entry.status))
        if entry.host:
            lines.append(_field("Remote-MTA", f"dns; {_host_name(entry.host)}"))
        if entry.action is not Action.RELAYED or entry.reply.heard:
            kind = "smtp" if entry.reply.heard else "X-Relaycluster"
            lines.append(_field("Diagnostic-Code", f"{kind}; {_said(entry.reply)}"))
        if entry.last_attempt is not None:
            lines.append(_field("Last-Attempt-Date", date_time(entry.last_attempt)))
        if entry.action is Action.DELAYED and entry.retry_until is not None:
            lines.append(_field("Will-Retry-Until", date_time(entry.retry_until)))
    kind_of_part = (
        b"Content-Type: message/global-delivery-status\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        if as_utf8
        else b"Content-Type: message/delivery-status\r\n\r\n"
    )
    return kind_of_part + b"\r\n".join(lines) + b"\r\n"


def _typed(kind: str, address: str, as_utf8: bool) -> bytes:
    """An address with its type. In a 7-bit notice one of type utf-8 is written with `\\x{...}` (RFC 6533 3)."""
    if kind.lower() != "utf-8":
        return f"{kind}; {_address(address)}".encode("ascii")
    return f"{kind}; {_clean_utf8(address) if as_utf8 else in_ascii(address)[:SAID_LENGTH]}".encode()


def _original_part(report: Report, as_utf8: bool) -> bytes:
    """The message that this is about, or its header."""
    header = _header(report)
    as_it_is = as_utf8 and _is_utf8(header)
    if report.full:
        if as_it_is and _has_clean_lines(report.original):
            return b"Content-Type: message/global\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + report.original
        # RFC 2046 5.2.1: a message/rfc822 part may not be encoded, so its inside must be 7-bit already.
        whole = downgrade(report.original)
        if whole is not None and whole.isascii() and _has_clean_lines(whole):
            return b"Content-Type: message/rfc822\r\n\r\n" + whole
    if len(header) > HEADER_LENGTH:
        header = header[: header.rfind(b"\r\n", 0, HEADER_LENGTH) + 2]
    if as_it_is and _has_clean_lines(header):
        return b"Content-Type: message/global-headers\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + header
    if header.isascii() and _has_clean_lines(header):
        return b"Content-Type: text/rfc822-headers\r\n\r\n" + header
    return (
        b"Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
        + quoted_printable(header)
    )


def _header(report: Report) -> bytes:
    return report.original[: header_end(report.original)]


def _threading(report: Report) -> list[bytes]:
    """The notice belongs to the sender's message (RFC 3834 3.1.5), when that has a plain Message-ID."""
    match = _message_id(_header(report))
    return [] if match is None else [b"In-Reply-To: " + match.group(1), b"References: " + match.group(1)]


def _is_utf8(header: bytes) -> bool:
    """Whether the header is internationalized (RFC 6532): octets above 127, all of them UTF-8."""
    if header.isascii():
        return False
    try:
        header.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _has_clean_lines(data: bytes) -> bool:
    """Whether data may travel unencoded (RFC 2045 2.7 and 2.8): no NUL, CRLF only as a pair, no over-long line."""
    pairs = data.count(b"\r\n")
    return (
        b"\0" not in data
        and data.count(b"\r") == pairs
        and data.count(b"\n") == pairs
        and max(map(len, data.split(b"\r\n"))) <= 998
    )


def _boundary(notice_id: str, parts: Sequence[bytes]) -> bytes:
    """A boundary that occurs in none of the parts, the same for the same notice."""
    number = 0
    while True:
        digest = blake2b(f"{notice_id}/{number}".encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        boundary = b"=_" + digest.encode("ascii")  # "=_" cannot occur in quoted-printable (RFC 2045 6.7)
        if not any(boundary in part for part in parts):
            return boundary
        number += 1


def _to(reverse_path: Address) -> str:
    """The sender's address as a header may hold it; the envelope knows it in any case."""
    text = reverse_path.text
    if text.isprintable() and len(text.encode("utf-8", "replace")) <= SAID_LENGTH:
        return f"<{text}>"
    return "undisclosed-recipients:;"


def _address(text: str) -> str:
    """An address in printable ASCII; other characters as RFC 6533 3 writes them, bounded."""
    return "".join(
        character if " " <= character <= "~" else f"\\x{{{ord(character):02X}}}" for character in text[:320]
    )[:SAID_LENGTH]


def _clean_utf8(text: str) -> str:
    """Printable characters in one line, of bounded length in UTF-8; a question mark for any other."""
    shown = "".join(character if character.isprintable() else "?" for character in text[:SAID_LENGTH])
    return shown.encode("utf-8", "replace")[:SAID_LENGTH].decode("utf-8", "ignore")


def as_told(reply: Reply) -> Reply:
    """A reply as a notice tells it: a server's whole, of our own the first line. What follows is for our operators."""
    return reply if reply.heard else Reply(reply.code, reply.enhanced, reply.lines[:1])


def _said(reply: Reply) -> str:
    """What a server, or we, said, in one line of printable ASCII."""
    return _clean(str(as_told(reply)))


def _host_name(host: str) -> str:
    """A host as a name of type dns (RFC 3464 2.1.2): an address in brackets."""
    try:
        return f"[{address_literal(str(ip_address(host)))}]"
    except ValueError:
        return host


def _clean(text: str) -> str:
    """Printable ASCII in one line, bounded: runs of white space become one space, runs of anything else a question mark."""
    text = _NOT_PRINTABLE.sub("?", _SPACES.sub(" ", text[: 2 * SAID_LENGTH])).strip()
    return text if len(text) <= SAID_LENGTH else text[: SAID_LENGTH - 3] + "..."


def _field(name: str, value: str) -> bytes:
    """One header field without its CRLF, folded at spaces where that keeps lines short (RFC 5322 2.2.3)."""
    return "\r\n ".join(_wrap(f"{name}: ", _clean(value), indent="")).encode("ascii")


def _wrap(prefix: str, text: str, indent: str = "    ") -> list[str]:
    """Lines of at most 76 characters where words allow it; a word is never cut."""
    text = prefix + text
    if len(text) <= _WIDTH:
        return [text]
    return wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _meaning(status: str) -> str:
    _, _, detail = status.partition(".")
    return (
        _MEANINGS.get(detail)
        or _MEANINGS.get(detail.partition(".")[0])
        or "The receiving system gave no usable reason."
    )
