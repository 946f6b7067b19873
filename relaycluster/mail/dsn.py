"""Delivery status notices: what a sender gets to read when mail failed, waits, or went where no notices come from.

RFC 3464 inside RFC 6522: a text for a person, a part for programs, and the header of the message (or all of it). The same report
gives the same octets, so that enqueuing it twice is harmless. All of it is 7-bit; whatever remote servers said is
stripped of control characters and bounded, since it is a stranger's text in a mail that carries our name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from hashlib import blake2b
from textwrap import wrap
from types import MappingProxyType
from typing import Final, assert_never

from attrs import frozen

from relaycluster.mail.address import NULL, Address
from relaycluster.mail.downgrade import downgrade, quoted_printable
from relaycluster.mail.envelope import Envelope
from relaycluster.mail.queue_id import RANDOM_BITS
from relaycluster.mail.reply import Reply
from relaycluster.mail.trace import date_time, header_end

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

    `status` is the enhanced status code; `reply` the last reply, `remote` telling whether it came over the wire or is ours;
    `host` the MX host that was asked last. Times are seconds since the epoch. `original_recipient` is the ORCPT
    parameter, decoded, with its type: `rfc822;bob@example.org`.
    """

    recipient: Address
    action: Action
    status: str
    reply: Reply
    remote: bool
    host: str = ""
    original_recipient: str = ""
    last_attempt: float | None = None
    retry_until: float | None = None


@frozen
class Report:
    """One notice: about one item, to one sender.

    `notice_id` is the queue id of the notice itself, `queue_id` that of the message; `hostname` is ours; `made` and `arrived` are
    seconds since the epoch; `original` the content, or its head that includes the header; with `full` all of it comes back (RET=FULL);
    `envelope_id` is the ENVID parameter, decoded. All recipients have the same action.
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
        "6.7": "The receiving system cannot take internationalized addresses.",
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
_subject = re.compile(rb"^subject:[ \t]*([ -~]{1,200})\r$", re.IGNORECASE | re.MULTILINE).search


def notice_entropy(item_id: str, kind: Action, recipients: Sequence[str], attempt: int) -> int:
    """The random part of the notice's queue id, computed from what the notice is about: whoever makes this notice
    again, on whatever node, makes it under the same id. For `queue_id.make`."""
    text = "\0".join((item_id, kind.value, str(attempt), *sorted(recipients)))
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest(), "big") % (
        1 << RANDOM_BITS
    )


def envelope(report: Report) -> Envelope:
    """The envelope of the notice: from the null reverse-path, so that it never causes another (RFC 5321 6.1, RFC 3464 2)."""
    return Envelope(NULL, (report.reverse_path,), smtputf8=not report.reverse_path.text.isascii())


def build(report: Report) -> bytes:
    """The notice as a message with CRLF line ends, lines of at most 998 octets and no octet above 126.

    `ValueError` for the null reverse-path, to which nothing is ever sent, and without recipients.
    """
    if report.reverse_path.is_null:
        raise ValueError("a message from the null reverse-path causes no notice")
    if not report.recipients:
        raise ValueError("a notice about nobody")
    parts = (_text_part(report), _status_part(report), _original_part(report))
    boundary = _boundary(report.notice_id, parts)
    lines = [
        b"From: Mail Delivery System <MAILER-DAEMON@%s>" % _clean(report.hostname).encode(),
        b"To: " + _to(report.reverse_path).encode(),
        _field("Subject", _subject_text(report)),
        _field("Date", date_time(report.made)),
        b"Message-ID: <%s@%s>" % (_clean(report.notice_id).encode(), _clean(report.hostname).encode()),
        *_threading(report),
        b"Auto-Submitted: auto-replied",  # RFC 3834 5: vacation programs and list servers keep quiet
        b"MIME-Version: 1.0",
        b"Content-Type: multipart/report; report-type=delivery-status;",
        b'\tboundary="%s"' % boundary,
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
    if len(report.recipients) > 1:
        return f"Your message to {len(report.recipients)} recipients {what}"
    whom = f" to {_clean(text)}" if len(text) <= 100 and text.isascii() else ""
    return f"Your message{whom} {what}"


def _text_part(report: Report) -> bytes:
    """What a person reads first. What happened, to whom, what the other side said, what can be done."""
    first = report.recipients[0]
    when = date_time(report.arrived)
    match first.action:
        case Action.FAILED:
            opening = "could not be delivered to the recipients below. It will not be tried again."
            closing = (
                "If you do not know what to do about it, forward this notice as a whole to your postmaster or to the help desk "
                "of your mail provider. To try again, send the message again."
            )
        case Action.DELAYED:
            until = f" until {date_time(first.retry_until)}" if first.retry_until is not None else ""
            opening = (
                "has not been delivered yet to the recipients below. "
                f"You do NOT need to send it again: it will be tried again{until}."
            )
            closing = "If it cannot be delivered by then, you will get another notice."
        case Action.RELAYED:
            opening = (
                "was passed on for the recipients below to a mail system that does not send notices of delivery. "
                "There was no error, and you may hear no more about it."
            )
            closing = ""
        case _:
            assert_never(first.action)
    lines = [f"This is the mail system at {_clean(report.hostname)}.", ""]
    lines += wrap(f"Your message that arrived here at {when} {opening}", _WIDTH)
    subject = _subject(_header(report))
    if subject is not None and b"=?" not in subject.group(1):
        lines += ["", *_wrap("Its subject: ", subject.group(1).decode("ascii"))]
    for entry in report.recipients:
        lines += ["", f"<{_address(entry.recipient)}>"]
        if entry.action is not Action.RELAYED:
            lines += _wrap("    ", _meaning(entry.status))
        if entry.remote:
            by = f"The mail server {_clean(entry.host)} said: " if entry.host else "The receiving mail server said: "
            lines += _wrap("    ", by + _said(entry.reply))
        else:
            lines += _wrap("    ", f"Our own mail system says: {_said(entry.reply)}")
    if closing:
        lines += ["", *wrap(closing, _WIDTH)]
    lines += ["", f"The message has the id {_clean(report.queue_id)} at {_clean(report.hostname)}.", ""]
    body = "\r\n".join(lines).encode("ascii", "replace")
    return b"Content-Type: text/plain; charset=us-ascii\r\nContent-Language: en\r\n\r\n" + body


def _status_part(report: Report) -> bytes:
    """The part that programs read (RFC 3464 2.2 and 2.3)."""
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
            lines.append(_field("Original-Recipient", entry.original_recipient))
        # RFC 6533 3: the type tells that the address is not ASCII; in a 7-bit notice it is written in \x{...} form.
        address_type = "rfc822" if entry.recipient.text.isascii() else "utf-8"
        lines.append(f"Final-Recipient: {address_type}; {_address(entry.recipient)}".encode("ascii"))
        lines.append(_field("Action", entry.action.value))
        lines.append(_field("Status", entry.status))
        if entry.host:
            lines.append(_field("Remote-MTA", f"dns; {entry.host}"))
        if entry.action is not Action.RELAYED or entry.remote:
            kind = "smtp" if entry.remote else "X-Relaycluster"
            lines.append(_field("Diagnostic-Code", f"{kind}; {_said(entry.reply)}"))
        if entry.last_attempt is not None:
            lines.append(_field("Last-Attempt-Date", date_time(entry.last_attempt)))
        if entry.action is Action.DELAYED and entry.retry_until is not None:
            lines.append(_field("Will-Retry-Until", date_time(entry.retry_until)))
    return b"Content-Type: message/delivery-status\r\n\r\n" + b"\r\n".join(lines) + b"\r\n"


def _original_part(report: Report) -> bytes:
    """The message that this is about, or its header."""
    if report.full:
        # RFC 2046 5.2.1: a message/rfc822 part may not be encoded, so its inside must be 7-bit already.
        whole = downgrade(report.original)
        if whole is not None and _is_seven_bit(whole):
            return b"Content-Type: message/rfc822\r\n\r\n" + whole
    header = _header(report)
    if len(header) > HEADER_LENGTH:
        header = header[: header.rfind(b"\r\n", 0, HEADER_LENGTH) + 2]
    if _is_seven_bit(header):
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


def _is_seven_bit(data: bytes) -> bool:
    """Whether data may travel as 7bit (RFC 2045 2.7): ASCII, no NUL, CRLF only as a pair, no over-long line."""
    pairs = data.count(b"\r\n")
    return (
        data.isascii()
        and b"\0" not in data
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
    """The sender's address as a header may hold it in 7 bits. A non-ASCII one cannot be written there (RFC 6857 has only
    detours): the envelope knows it."""
    text = reverse_path.text
    if text.isascii() and text.isprintable() and len(text) <= SAID_LENGTH:
        return f"<{text}>"
    return "undisclosed-recipients:;"


def _address(address: Address) -> str:
    """An address in printable ASCII; other characters as RFC 6533 3 writes them, bounded."""
    return "".join(
        character if " " <= character <= "~" else f"\\x{{{ord(character):X}}}" for character in address.text[:320]
    )[:SAID_LENGTH]


def _said(reply: Reply) -> str:
    """What a server said, in one line of printable ASCII."""
    return _clean(str(reply))


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
