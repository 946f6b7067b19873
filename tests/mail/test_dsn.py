"""Delivery status notices."""

from __future__ import annotations

from email import message_from_bytes
from email.message import EmailMessage
from email.policy import compat32, default
from quopri import decodestring

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from relaycluster.mail.address import NULL, Address
from relaycluster.mail.downgrade import downgrade
from relaycluster.mail.dsn import (
    HEADER_LENGTH,
    Action,
    RecipientReport,
    Report,
    build,
    envelope,
    is_global,
    notice_entropy,
)
from relaycluster.mail.envelope import BodyType, Envelope
from relaycluster.mail.queue_id import RANDOM_BITS
from relaycluster.mail.reply import Reply
from tests.support.replies import heard

ALICE = Address("alice@example.com", "example.com")
BOB = Address("bob@example.org", "example.org")
CAROL = Address("carol@example.org", "example.org")
ORIGINAL = (
    b"From: alice@example.com\r\nTo: bob@example.org\r\nSubject: Lunch on Friday\r\nMessage-ID: <m1@example.com>\r\n\r\n"
    b"The body.\r\n"
)
UNKNOWN = RecipientReport(
    BOB,
    Action.FAILED,
    "5.1.1",
    heard("550-5.1.1 no such user\n550 5.1.1 see https://example.org/help"),
    host="mx.example.org",
    original_recipient="rfc822;bob@example.org",
    last_attempt=1_767_229_200.0,
)
REPORT = Report(
    notice_id="01NOTICE000000000000000000",
    queue_id="01MESSAGE00000000000000000",
    hostname="relay.example.net",
    reverse_path=ALICE,
    arrived=1_767_225_600.0,
    made=1_767_229_201.0,
    recipients=(UNKNOWN,),
    original=ORIGINAL,
    envelope_id="QQ314159",
)


def read(report: Report) -> EmailMessage:
    """Build it, look at the wire form, and let the standard library read it."""
    data = build(report)
    assert data.isascii()
    assert b"\0" not in data
    assert data.count(b"\r\n") == data.count(b"\n") == data.count(b"\r")
    assert max(map(len, data.split(b"\r\n"))) <= 998
    assert data.endswith(b"\r\n")
    message = message_from_bytes(data, policy=default)
    assert isinstance(message, EmailMessage)
    for part in message.walk():
        assert not part.defects
    return message


def parts(message: EmailMessage) -> tuple[str, list[EmailMessage], EmailMessage]:
    """The text, the blocks of the machine-readable part, the third part."""
    text, status, original = message.iter_parts()
    assert text.get_content_type() == "text/plain"
    assert status.get_content_type() == "message/delivery-status"
    return text.get_content(), status.get_payload(), original  # type: ignore[return-value]


def test_header() -> None:
    """RFC 3464 2, RFC 3834: whom it is from and to, that a program wrote it, and what it belongs to."""
    message = read(REPORT)
    assert message["From"].addresses[0].addr_spec == "MAILER-DAEMON@relay.example.net"
    assert message["From"].addresses[0].display_name == "Mail Delivery System"
    assert message["To"].addresses[0].addr_spec == "alice@example.com"
    assert message["Subject"] == "Your message to bob@example.org could not be delivered"
    assert message["Date"] == "Thu, 01 Jan 2026 01:00:01 +0000"
    assert message["Message-ID"] == "<01NOTICE000000000000000000@relay.example.net>"
    assert message["In-Reply-To"] == message["References"] == "<m1@example.com>"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message.get_content_type() == "multipart/report"
    assert message["Content-Type"].params["report-type"] == "delivery-status"
    assert "Return-Path" not in message


def test_status_part() -> None:
    """What programs read: the fields of RFC 3464 2.2 and 2.3, one block for the message and one for each recipient."""
    _, (about, bob), _ = parts(read(REPORT))
    assert dict(about.items()) == {
        "Original-Envelope-Id": "QQ314159",
        "Reporting-MTA": "dns; relay.example.net",
        "X-Relaycluster-Queue-Id": "01MESSAGE00000000000000000",
        "Arrival-Date": "Thu, 01 Jan 2026 00:00:00 +0000",
    }
    assert dict(bob.items()) == {
        "Original-Recipient": "rfc822; bob@example.org",
        "Final-Recipient": "rfc822; bob@example.org",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mx.example.org",
        "Diagnostic-Code": "smtp; 550 5.1.1 no such user see https://example.org/help",
        "Last-Attempt-Date": "Thu, 01 Jan 2026 01:00:00 +0000",
    }


def test_text_for_a_person() -> None:
    """What happened, to which message, to whom, what the other side said, what it means, and under which id to ask."""
    text = " ".join(parts(read(REPORT))[0].split())
    for words in (
        "mail system at relay.example.net",
        "arrived here at Thu, 01 Jan 2026 00:00:00 +0000 could not be delivered",
        "Its subject: Lunch on Friday",
        "<bob@example.org> There is no such mailbox.",
        "The mail server mx.example.org said: 550 5.1.1 no such user see https://example.org/help",
        "id 01MESSAGE00000000000000000 at relay.example.net",
    ):
        assert words in text


def test_a_delay() -> None:
    """A delay says until when it goes on, that nothing is to be done, and gives no expiry where none is known."""
    ours = Reply(
        451, "4.4.3", ("The domain name system gave no answer", "(MX of example.org: 10.0.0.53:53: timed out)")
    )
    delayed = evolve(UNKNOWN, action=Action.DELAYED, status="4.4.3", reply=ours, host="", retry_until=1_767_657_600.0)
    text, (_, bob), _ = parts(read(evolve(REPORT, recipients=(delayed,))))
    assert bob["Action"] == "delayed"
    assert bob["Will-Retry-Until"] == "Tue, 06 Jan 2026 00:00:00 +0000"
    assert bob["Diagnostic-Code"] == "X-Relaycluster; 451 4.4.3 The domain name system gave no answer"
    assert "10.0.0.53" not in text  # which machines we ask is nobody's business
    assert "Remote-MTA" not in bob
    assert "do NOT need to send it again" in " ".join(text.split())
    assert "tried again until Tue, 06 Jan 2026 00:00:00 +0000" in " ".join(text.split())


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("mx.example.org", "dns; mx.example.org"),
        ("192.0.2.1", "dns; [192.0.2.1]"),
        ("2001:db8::1", "dns; [IPv6:2001:db8::1]"),
    ],
)
def test_the_host_that_said_so(host: str, shown: str) -> None:
    """An address is no name of type dns without brackets (RFC 3464 2.1.2)."""
    _, (_, bob), _ = parts(read(evolve(REPORT, recipients=(evolve(UNKNOWN, host=host),))))
    assert bob["Remote-MTA"] == shown


def test_relayed() -> None:
    """A message that went to a system without DSN (RFC 3461 5.2.2) is not shown as an error."""
    relayed = evolve(UNKNOWN, action=Action.RELAYED, status="2.0.0", reply=heard("250 2.0.0 ok"))
    message = read(evolve(REPORT, recipients=(relayed,)))
    text, (_, bob), _ = parts(message)
    assert bob["Action"] == "relayed"
    assert bob["Status"] == "2.0.0"
    assert message["Subject"] == "Your message to bob@example.org was passed on"
    assert "no error" in text


def test_several_recipients() -> None:
    """Each recipient has its paragraph and its block."""
    carol = evolve(UNKNOWN, recipient=CAROL, status="5.2.2", original_recipient="")
    message = read(evolve(REPORT, recipients=(UNKNOWN, carol), envelope_id=""))
    text, (about, first, second), _ = parts(message)
    assert message["Subject"] == "Your message to 2 recipients could not be delivered"
    assert "Original-Envelope-Id" not in about
    assert (first["Final-Recipient"], second["Final-Recipient"]) == (
        "rfc822; bob@example.org",
        "rfc822; carol@example.org",
    )
    assert "Original-Recipient" not in second
    assert "mailbox is full" in text


def test_the_header_comes_back_and_not_the_body() -> None:
    """By default the third part is the message's header, as it was."""
    _, _, original = parts(read(REPORT))
    assert original.get_content_type() == "text/rfc822-headers"
    assert original.get_payload().replace("\r\n", "\n") == ORIGINAL[: ORIGINAL.index(b"\r\n\r\n") + 2].decode().replace(
        "\r\n", "\n"
    )
    assert b"The body." not in build(REPORT)


def test_the_whole_message_comes_back() -> None:
    """With RET=FULL it is a message/rfc822 part, octet by octet; 8-bit content is converted."""
    data = build(evolve(REPORT, full=True))
    assert b"Content-Type: message/rfc822\r\n\r\n" + ORIGINAL + b"\r\n--=_" in data
    _, _, original = parts(read(evolve(REPORT, full=True, original=ORIGINAL + b"m\xfcde\r\n")))
    inner = original.get_payload(0)
    assert inner["Subject"] == "Lunch on Friday"
    assert inner.get_payload(decode=True).replace(b"\r\n", b"\n") == b"The body.\nm\xfcde\n"


def test_a_header_that_is_not_clean() -> None:
    """8-bit octets, NUL and bare line ends in the header come back in quoted-printable, and decode to what they were; the
    same where the whole was asked for and cannot be had."""
    header = b"Subject: \xfcber\r\nX: a\0b\rc\nd\r\n"
    for full in (False, True):
        _, _, original = parts(read(evolve(REPORT, original=header + b"\r\nbody\r\n", full=full)))
        assert original.get_content_type() == "text/rfc822-headers"
        assert original.get_payload(decode=True) == header


def test_a_whole_that_is_not_seven_bit_stays_out() -> None:
    """A message/rfc822 part may not be encoded: NUL, bare line ends or over-long lines in it leave only the header."""
    for body in (b"a\0b\r\n", b"a\rb\r\n", b"a\nb\r\n", b"a" * 999 + b"\r\n"):
        _, _, original = parts(read(evolve(REPORT, original=ORIGINAL + body, full=True)))
        assert original.get_content_type() == "text/rfc822-headers"


def test_a_huge_header_is_cut() -> None:
    """Of a header of a megabyte a bounded piece comes back, cut between lines."""
    header = b"X-Line: " + b"x" * 60 + b"\r\n"
    data = build(evolve(REPORT, original=header * 15_000 + b"\r\n"))
    assert len(data) < HEADER_LENGTH + 5_000
    assert data.count(header) == HEADER_LENGTH // len(header)


words = st.text(st.characters(codec="utf-8"), max_size=1500)


@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(words, max_size=4).map(tuple),
    host=words,
    envelope_id=words,
    original_recipient=words,
    local_part=st.text(st.characters(codec="utf-8"), min_size=1, max_size=64),
    original=st.binary(max_size=1500),
    full=st.booleans(),
    action=st.sampled_from(Action),
    smtputf8=st.booleans(),
)
def test_strangers_cannot_break_it(
    lines: tuple[str, ...],
    host: str,
    envelope_id: str,
    original_recipient: str,
    local_part: str,
    original: bytes,
    full: bool,
    action: Action,
    smtputf8: bool,
) -> None:
    """Whatever a remote server, a sender or a message holds: the notice keeps its three parts and its fields, stays 7-bit unless it
    goes to a sender who declared SMTPUTF8, and no field appears that we did not write."""
    entry = evolve(
        UNKNOWN,
        recipient=Address(f"{local_part}@example.org", "example.org"),
        action=action,
        reply=Reply(550, "", lines, heard=True),
        host=host,
        original_recipient=original_recipient,
    )
    report = evolve(
        REPORT,
        recipients=(entry,),
        envelope_id=envelope_id,
        original=original,
        full=full,
        reverse_path=Address(f"{local_part}@example.com", "example.com"),
        smtputf8=smtputf8,
    )
    data = build(report)
    assert data.isascii() or is_global(report)
    assert b"\0" not in data
    assert max(map(len, data.split(b"\r\n"))) <= 998
    # The standard library knows no message/global-*, but their fields are the same.
    message = message_from_bytes(data.replace(b" message/global-delivery", b" message/delivery"), policy=compat32)
    _, status, _ = message.get_payload()
    about, recipient = status.get_payload()
    assert set(about.keys()) <= {"Original-Envelope-Id", "Reporting-MTA", "X-Relaycluster-Queue-Id", "Arrival-Date"}
    assert recipient["Action"] == action.value
    assert set(recipient.keys()) <= {
        "Original-Recipient",
        "Final-Recipient",
        "Action",
        "Status",
        "Remote-MTA",
        "Diagnostic-Code",
        "Last-Attempt-Date",
        "Will-Retry-Until",
    }
    assert set(message.keys()) <= {
        "From",
        "To",
        "Subject",
        "Date",
        "Message-ID",
        "In-Reply-To",
        "References",
        "Auto-Submitted",
        "MIME-Version",
        "Content-Type",
        "Content-Transfer-Encoding",
    }
    assert build(report) == data


def test_the_same_report_gives_the_same_octets() -> None:
    """Enqueuing a notice again is idempotent; another notice has another boundary."""
    again = evolve(REPORT, recipients=(evolve(UNKNOWN),))
    assert build(again) == build(REPORT)
    boundary = read(REPORT).get_boundary()
    assert boundary is not None
    assert read(evolve(REPORT, notice_id="other")).get_boundary() != boundary


def test_the_boundary_is_not_in_the_content() -> None:
    """A message that quotes the notice's own boundary does not break it."""
    boundary = read(REPORT).get_boundary()
    assert boundary is not None
    hostile = evolve(REPORT, original=b"X: --" + boundary.encode() + b"\r\n--" + boundary.encode() + b"--: y\r\n\r\n")
    message = read(hostile)
    assert message.get_boundary() != boundary
    assert len(list(message.iter_parts())) == 3


MULLER = Address("m\u00fcl+ler@example.com", "example.com")
UTF8_ORIGINAL = ORIGINAL.replace(b"Lunch on Friday", "Gr\u00fc\u00dfe".encode())


def test_an_utf8_recipient_in_a_7_bit_notice() -> None:
    """RFC 6533 3: to a sender who declared no SMTPUTF8, such an address is of the type utf-8, in ASCII."""
    report = evolve(
        REPORT, recipients=(evolve(UNKNOWN, recipient=MULLER, original_recipient="UTF-8;\u00e9@example.org"),)
    )
    _, (_, recipient), _ = parts(read(report))
    assert recipient["Final-Recipient"] == "utf-8; m\\x{FC}l\\x{2B}ler@example.com"
    assert recipient["Original-Recipient"] == "UTF-8; \\x{E9}@example.org"
    assert envelope(report) == Envelope(NULL, (ALICE,))


def wire_parts(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The header of a notice, and the header and body of each part, as octets."""
    header, _, rest = data.partition(b"\r\n\r\n")
    boundary = header.partition(b'boundary="')[2].partition(b'"')[0]
    _, *found, end = rest.split(b"--" + boundary)
    assert end == b"--\r\n"
    parted = [part.removeprefix(b"\r\n").removesuffix(b"\r\n").partition(b"\r\n\r\n") for part in found]
    return header, [(part_header, body) for part_header, _, body in parted]


def test_an_internationalized_notice() -> None:
    """RFC 6533: addresses and header come back as they are, in the types that may hold them, each marked as 8bit."""
    recipient = evolve(UNKNOWN, recipient=MULLER, original_recipient="utf-8;\u00e9@example.org", status="5.6.7")
    report = evolve(REPORT, recipients=(recipient,), original=UTF8_ORIGINAL, smtputf8=True)
    header, ((_, text), (status_header, status), (third_header, third)) = wire_parts(build(report))
    assert b"report-type=global-delivery-status;" in header
    assert b"\r\nContent-Transfer-Encoding: 8bit" in header
    assert header.isascii()
    assert "Its subject: Gr\u00fc\u00dfe\r\n".encode() in text
    assert f"<{MULLER}>".encode() in text
    assert status_header == b"Content-Type: message/global-delivery-status\r\nContent-Transfer-Encoding: 8bit"
    assert f"\r\nFinal-Recipient: utf-8; {MULLER}\r\n".encode() in status
    assert "\r\nOriginal-Recipient: utf-8; \u00e9@example.org\r\n".encode() in status
    assert third_header == b"Content-Type: message/global-headers\r\nContent-Transfer-Encoding: 8bit"
    assert third == UTF8_ORIGINAL[: UTF8_ORIGINAL.index(b"\r\n\r\n") + 2]
    assert envelope(report) == Envelope(NULL, (ALICE,), BodyType.EIGHT_BIT, smtputf8=True)
    _, (_, _, (whole_header, whole)) = wire_parts(build(evolve(report, full=True)))
    assert whole_header.startswith(b"Content-Type: message/global\r\n")
    assert whole == UTF8_ORIGINAL


def test_an_internationalized_sender() -> None:
    """Such an address stands in To as it is, and the notice needs SMTPUTF8 for it."""
    report = evolve(REPORT, reverse_path=MULLER)
    header, _ = wire_parts(build(report))
    assert f"\r\nTo: <{MULLER}>\r\n".encode() in header
    assert envelope(report) == Envelope(NULL, (MULLER,), BodyType.EIGHT_BIT, smtputf8=True)


def test_declared_and_not_needed() -> None:
    """SMTPUTF8 that the message made no use of, or a header that is no UTF-8: a plain notice."""
    assert build(evolve(REPORT, smtputf8=True)) == build(REPORT)
    assert not envelope(evolve(REPORT, smtputf8=True)).smtputf8
    junk = evolve(REPORT, original=ORIGINAL.replace(b"Lunch", b"\xff"), smtputf8=True)
    assert parts(read(junk))[2]["Content-Transfer-Encoding"] == "quoted-printable"


def test_an_internationalized_notice_for_a_7_bit_host() -> None:
    """It can be converted, since its parts may be encoded (RFC 6533 6), and decodes to the same."""
    recipient = evolve(UNKNOWN, recipient=MULLER)
    data = build(evolve(REPORT, recipients=(recipient,), original=UTF8_ORIGINAL, smtputf8=True))
    converted = downgrade(data)
    assert converted is not None
    assert converted.isascii()
    assert b"m=C3=BCl+ler@example.com" in converted
    _, before = wire_parts(data)
    _, after = wire_parts(converted)
    assert [decodestring(body) for _, body in after] == [body for _, body in before]


def test_several_actions() -> None:
    """What failed comes first and names the notice; each group says what it means."""
    relayed = evolve(UNKNOWN, recipient=CAROL, action=Action.RELAYED, status="2.0.0", reply=heard("250 2.0.0 ok"))
    message = read(evolve(REPORT, recipients=(UNKNOWN, relayed)))
    text, (_, bob, carol), _ = parts(message)
    assert message["Subject"] == "Your message to bob@example.org could not be delivered"
    assert (bob["Action"], carol["Action"]) == ("failed", "relayed")
    text = " ".join(text.split())
    assert text.index("could not be delivered") < text.index("<bob@") < text.index("passed on") < text.index("<carol@")


def test_envelope() -> None:
    """From the null reverse-path to the sender; and never a notice about mail from the null reverse-path."""
    assert envelope(REPORT).reverse_path is NULL
    assert envelope(REPORT).recipients == (ALICE,)
    with pytest.raises(ValueError, match="null reverse-path"):
        build(evolve(REPORT, reverse_path=NULL))
    with pytest.raises(ValueError, match="nobody"):
        build(evolve(REPORT, recipients=()))


def test_notice_entropy() -> None:
    """What the notice is about decides its id: the order of recipients does not, anything else does."""
    one = notice_entropy("item", Action.FAILED, ["a@x", "b@x"], 3)
    assert 0 <= one < 1 << RANDOM_BITS
    assert one == notice_entropy("item", Action.FAILED, ["b@x", "a@x"], 3)
    others = {
        notice_entropy("item-2", Action.FAILED, ["a@x", "b@x"], 3),
        notice_entropy("item", Action.DELAYED, ["a@x", "b@x"], 3),
        notice_entropy("item", Action.FAILED, ["a@x"], 3),
        notice_entropy("item", Action.FAILED, ["a@x", "b@x"], 4),
    }
    assert len(others | {one}) == 5
