"""8-bit content for 7-bit hops."""

from __future__ import annotations

from email import message_from_bytes
from email.message import Message

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaycluster.mail.downgrade import downgrade, is_eight_bit, quoted_printable

# --- random MIME trees, written by hand so that the test knows each octet ---

line = st.one_of(
    st.text(max_size=100).map(lambda text: text.replace("\r", "").replace("\n", "").encode()),
    st.binary(max_size=90).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b"")),
    st.sampled_from(
        [b"", b".", b"..", b"From me", b"ends in space ", b"tab\t", b"=3D", b"--", b"--b0", "\u00fc".encode() * 40]
    ),
    st.sampled_from([b"x" * 75 + b"--b0", b"\xfc" + b"x" * 70 + b"--b1", b"\xe4" * 300, b"a" * 990]),
)
bodies = st.lists(line, max_size=6).map(b"\r\n".join)
encodings = st.sampled_from([b"", b"Content-Transfer-Encoding: 8bit\r\n", b"content-transfer-encoding:\r\n 8BIT\r\n"])
types = st.sampled_from(
    [
        b"Content-Type: text/plain; charset=utf-8\r\n",
        b'Content-Type: text/html;\r\n\tcharset="iso-8859-1"\r\n',
        b"Content-Type: application/octet-stream\r\nX-Other: kept   as is \r\n",
        b"",
    ]
)


@st.composite
def leaves(draw: st.DrawFn) -> bytes:
    return draw(types) + draw(encodings) + b"\r\n" + draw(bodies)


@st.composite
def multiparts(draw: st.DrawFn, children: st.SearchStrategy[bytes]) -> bytes:
    parts = draw(st.lists(children, min_size=1, max_size=3))
    number = 0
    while any(b"--b%d" % number in part.replace(b"\r\n", b"") for part in parts):
        number += 1
    boundary = b"b%d" % number
    header = b'Content-Type: multipart/mixed; boundary="' + boundary + b'"\r\n' + draw(encodings)
    text = header + b"\r\n" + draw(st.sampled_from([b"", b"a preamble\r\n"]))
    for part in parts:
        text += b"--" + boundary + b"\r\n" + part + b"\r\n"
    return text + b"--" + boundary + draw(st.sampled_from([b"--\r\n", b"--\r\nan epilogue\r\n", b"--"]))


def wrapped(children: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    rfc822 = children.map(
        lambda inner: b"Content-Type: message/rfc822\r\n\r\nMIME-Version: 1.0\r\nSubject: in\r\n" + inner
    )
    return multiparts(st.one_of(children, rfc822))


messages = st.recursive(leaves(), wrapped, max_leaves=6).map(
    lambda entity: b"Received: from a\r\n\tby b\r\nSubject:  two  spaces\r\nMIME-Version: 1.0\r\n" + entity + b"\r\n"
)


def leaf_payloads(message: Message) -> list[tuple[str, bytes]]:
    return [
        (part.get_content_type(), part.get_payload(decode=True))  # type: ignore[misc]
        for part in message.walk()
        if not part.is_multipart()
    ]


@settings(max_examples=400, deadline=None)
@given(messages)
def test_decoded_payloads_are_equal(content: bytes) -> None:
    """What is converted is pure ASCII, has the same parts with the same decoded octets for the standard library's parser, and
    lines that may travel; converting again changes nothing."""
    converted = downgrade(content)
    assert converted is not None
    assert converted.isascii()
    assert leaf_payloads(message_from_bytes(converted)) == leaf_payloads(message_from_bytes(content))
    assert downgrade(converted) == converted
    assert converted.startswith(b"Received: from a\r\n\tby b\r\nSubject:  two  spaces\r\nMIME-Version: 1.0\r\n")
    if content.isascii():
        assert converted is content


@settings(deadline=None)
@given(st.binary(max_size=4000))
def test_any_octets_are_survived(content: bytes) -> None:
    """Nothing raises, and nothing but ASCII or None comes out."""
    converted = downgrade(content)
    assert converted is None or converted.isascii()


@given(st.binary(max_size=600))
def test_quoted_printable(data: bytes) -> None:
    """Decodes to what it was, in short lines of which none ends in white space or is a lone dot."""
    import quopri

    text = quoted_printable(data)
    assert quopri.decodestring(text) == data
    for part in text.split(b"\r\n"):
        assert len(part) <= 76
        assert part != b"."
        assert part.rstrip(b" \t") == part
        assert b"\r" not in part
        assert b"\n" not in part


PLAIN = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"


def test_a_plain_message() -> None:
    """The body is encoded, one field changes, and the order of fields stays."""
    assert downgrade(b"A: 1\r\n" + PLAIN.replace(b"\r\n\r\n", b"\r\nB: 2\r\n\r\n") + "so gr\u00fcn\r\n".encode()) == (
        b"A: 1\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\nB: 2\r\n\r\nso gr=C3=BCn\r\n"
    )


def test_a_message_without_mime() -> None:
    """8-bit text of before MIME becomes MIME with the character set unknown-8bit (RFC 1428)."""
    assert downgrade(b"Subject: x\r\n\r\nm\xfcde\r\n") == (
        b"Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=unknown-8bit\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\nm=FCde\r\n"
    )


def test_only_the_part_that_needs_it() -> None:
    """In a multipart the ASCII part stays as it is, octet by octet, and the multipart that said 8bit says 7bit."""
    content = (
        b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="x y"\r\nContent-Transfer-Encoding: 8bit\r\n\r\n'
        b"--x y\r\ncontent-TYPE:text/plain\r\n\r\nascii   \t \r\n"
        b"--x y  \r\nContent-Type: image/png\r\n\r\n\x89PNG\xff\xfe\r\n"
        b"--x y--\r\n"
    )
    assert downgrade(content) == (
        b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="x y"\r\nContent-Transfer-Encoding: 7bit\r\n\r\n'
        b"--x y\r\ncontent-TYPE:text/plain\r\n\r\nascii   \t \r\n"
        b"--x y  \r\nContent-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\niVBOR//+\r\n\r\n"
        b"--x y--\r\n"
    )


def test_much_that_is_not_ascii_becomes_base64() -> None:
    """A text in another script is shorter in base64."""
    body = "\u043f\u0440\u0438\u0432\u0435\u0442 ".encode() * 20 + b"\r\n"
    converted = downgrade(PLAIN + body)
    assert converted is not None
    assert b"Content-Transfer-Encoding: base64\r\n" in converted
    assert message_from_bytes(converted).get_payload(decode=True) == body


def test_a_soft_break_cannot_make_a_delimiter() -> None:
    """A long line whose encoding would break just before `--b` does not end the part there."""
    tail = b"--b\r\n"
    for padding in range(60, 80):
        content = (
            b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\n"
            + b"\xfc"
            + b"x" * padding
            + tail
            + b"end\r\n--b--\r\n"
        )
        converted = downgrade(content)
        assert converted is not None
        assert leaf_payloads(message_from_bytes(converted)) == leaf_payloads(message_from_bytes(content))


SIGNED = (
    b"MIME-Version: 1.0\r\nContent-Type: multipart/signed; boundary=s\r\n\r\n"
    b"--s\r\nContent-Type: text/plain\r\n\r\n%s\r\n--s\r\nContent-Type: application/pgp-signature\r\n\r\nsig\r\n--s--\r\n"
)


@pytest.mark.parametrize(
    "content",
    [
        "Subject: \u00fc\r\n\r\nx\r\n".encode(),
        SIGNED % "\u00fc".encode(),
        PLAIN.replace(b"8bit", b"quoted-printable") + b"\xfc\r\n",
        PLAIN.replace(b"8bit", b"base64") + b"\xfc\r\n",
        PLAIN.replace(b"8bit", b"x-own") + b"\xfc\r\n",
        PLAIN.replace(b"text/plain; charset=utf-8", b"multipart/mixed") + b"\xfc\r\n",
        PLAIN.replace(b"text/plain; charset=utf-8", b"multipart/mixed; boundary=b") + b"\xfc\r\n",
        PLAIN.replace(b"text/plain; charset=utf-8", b"multipart/mixed; boundary=b")
        + b"\xfc\r\n--b\r\n\r\nx\r\n--b--\r\n",
        PLAIN.replace(b"text/plain; charset=utf-8", b"multipart/mixed; boundary=b")
        + b"--b\r\n\r\nx\r\n--b--\r\n\xfc\r\n",
        PLAIN.replace(b"text/plain; charset=utf-8", b"multipart/mixed; boundary=b")
        + b"--b\r\nX: \xfc\r\n\r\nx\r\n--b--\r\n",
        PLAIN.replace(b"text/plain; charset=utf-8", b"message/partial") + b"\xfc\r\n",
        PLAIN.replace(b"text/plain; charset=utf-8", b"message/delivery-status") + b"\xfc\r\n",
        PLAIN.replace(b"text/plain; charset=utf-8", b"message/rfc822") + b"Subject: \xfc\r\n\r\n",
        PLAIN.replace(b"MIME-Version: 1.0", b"Content-Type: text/html") + b"\xfc\r\n",
        b"From someone 1 Jan 1970\r\n" + PLAIN + b"\xfc\r\n",
        PLAIN.replace(b"text/plain; charset=utf-8", b"multipart/mixed; boundary*1;boundary*") + b"\xfc\r\n",
    ],
    ids=lambda content: None,
)
def test_what_cannot_be_converted(content: bytes) -> None:
    """8-bit header fields, signed parts, false or unknown encodings, broken structure, preambles and epilogues: None, and the
    sender is told with 5.6.3."""
    assert is_eight_bit(content)
    assert downgrade(content) is None


def test_a_signed_part_that_is_ascii_stays() -> None:
    """Only 8-bit octets inside make a signed part a reason to give up; beside it others are converted."""
    signed = (SIGNED % b"ascii").removeprefix(b"MIME-Version: 1.0\r\n")
    content = (
        b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=outer\r\n\r\n--outer\r\n"
        + signed
        + b"\r\n--outer\r\n\r\nm\xfcde\r\n--outer--\r\n"
    )
    converted = downgrade(content)
    assert converted is not None
    assert signed in converted
    assert b"m=FCde" in converted


def test_deep_nesting_ends() -> None:
    """A hundred multiparts in each other are nobody's mail: None, not a stack overflow."""
    content = b"MIME-Version: 1.0\r\n"
    for number in range(100):
        content += b"Content-Type: multipart/mixed; boundary=n%dn\r\n\r\n--n%dn\r\n" % (number, number)
    assert downgrade(content + b"\r\n\xfc\r\n") is None
