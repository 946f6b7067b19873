"""Where fuzzing begins: one input for each thing that a client may say. The corpus grows from these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_TLS = b"\xfe\xfeTLS"
_BEGIN = b"EHLO c\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\n"
_V2 = b"\r\n\r\n\x00\r\nQUIT\n"

SEEDS: Mapping[str, Sequence[bytes]] = {
    "grammar": (
        b"<a@b.c>",
        b"<>",
        b"<postmaster>",
        b'<"a b\\"c"@b.c> SIZE=10 BODY=8BITMIME',
        b"<@x.y,@z.w:a@b.c>",
        b"<a@[192.0.2.1]>",
        b"<a@[IPv6:2001:db8::1]>",
        "<ä@ö.example> SMTPUTF8".encode(),
        b"MAIL FROM:<a@b.c> RET=HDRS ENVID=QQ+2B314 AUTH=<> SIZE=1",
        b"RCPT TO:<a@b.c> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;a+2Bb@c.d",
        b"RCPT TO:<a@b.c> ORCPT=utf-8;a\\x{E4}@c.d NOTIFY=NEVER",
        b"EHLO [IPv6:::1]",
        b"AUTH PLAIN AGEAYg==",
        b"BDAT 10 LAST",
        b"a%b@c.d",
    ),
    "header": (
        b"From: a@b.c\r\nTo: d@e.f\r\n",
        b'From: "A, B" <a@b.c>, (comment (nested)) d@e.f\r\n\tfolded\r\n',
        b"From: group: a@b.c, d@e.f;\r\n",
        b"From: =?utf-8?q?=C3=A4?= <a@b.c>\r\nSender: x@y.z\r\n",
        b"from : <@route.test:a@b.c>\r\nno colon\r\n: empty\r\n",
        "From: <ä@ö.example>\r\n".encode(),
        b'"a\\"b"@c.d',
    ),
    "framing": (
        b"\x00NOOP\r\nQUIT\r\n",
        b"\x01.\r\nrest",
        b"\x02a\r\n..b\r\n.\r\nrest",
        b"\x03a\n.\nb\r.\rc\r\n.\r\n",
        b"\x04" + b"x" * 50 + b"\r\nok\r\n",
        b"\x05a\r\r\n.\r\n\n.\r\n.\r\n",
    ),
    "proxy": (
        b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 25\r\nEHLO",
        b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 4711 25\r\n",
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n",
        _V2 + b"\x20\x00\x00\x00",
        _V2 + b"\x21\x11\x00\x0c" + b"\xc0\x00\x02\x01\xc6\x33\x64\x01\x12\x67\x00\x19",
        _V2 + b"\x21\x21\x00\x24" + b"\x20\x01" + b"\x00" * 30 + b"\x12\x67\x00\x19",
        _V2 + b"\x21\x11\x00\x13" + b"\x00" * 12 + b"\x03\x00\x04abcd",
        _V2 + b"\x21\x31\x00\xd8" + b"\x00" * 216,
        _V2 + b"\x20\x00\x02\x08" + b"\x00" * 520,
    ),
    "bdat": (
        b"\x00\x00\x17\x67",
        b"\x00\x01\x03\x64",
        b"\x10\x02\x03\x64\x04\x77",
        b"\x00\x03\x11\xa0\xb0\xc0\x61",
        b"\x00\x04\x80\x90\xa1",
        b"\x00\x05\xd2\xd3\x71",
        b"\x00\x06\xe0\xe1\xe2\xe3",
        b"\x80\x07\x0a\x0a\x6a\xb1\xc0\x7a",
        b"\x00\x08\xc1\x6a\xb0\xc1\xc0\x19\x69",
    ),
    "conversation": (
        b"\x00\x00" + _BEGIN + b"DATA\r\n.a\r\n..\r\n.\r\nQUIT\r\n",
        b"\x00\x01HELO c\r\nMAIL FROM:<>\r\nRCPT TO:<postmaster>\r\nDATA\r\n.\r\nRSET\r\nNOOP\r\nVRFY x\r\nHELP\r\nQUIT\r\n",
        b"\x00\x02" + _BEGIN + b"DATA\r\na\n.\n\r.\r\r\n.\r\nMAIL FROM:<x@y.z>\r\n",
        b"\x10\x03" + _BEGIN + b"DATA\r\na\n.\nb\r\n.\r\n" + _BEGIN[8:] + b"BDAT 3\r\na\r\nBDAT 2 LAST\r\n\nb",
        b"\x05\x04EHLO c\r\nSTARTTLS\r\nMAIL FROM:<injected@x.y>\r\n"
        + _TLS
        + b"EHLO d\r\nAUTH PLAIN AGEAYg==\r\n"
        + _BEGIN[8:],
        b"\x07\x05EHLO c\r\nMAIL FROM:<a@b.c>\r\nAUTH PLAIN AGEAYg==\r\nBDAT 4 LAST\r\nabcdDATA\r\nSTARTTLS\r\n"
        + _TLS
        + _BEGIN,
        b"\x0c\x06EHLO c\r\nAUTH LOGIN\r\nYQ==\r\nYg==\r\nAUTH LOGIN\r\n" + _BEGIN[8:] + b"DATA\r\nx\r\n.\r\n",
        b"\x0c\x07EHLO c\r\nAUTH PLAIN\r\n*\r\nAUTH PLAIN =\r\nAUTH LOGIN cmVmdXNlZA==\r\nYg==\r\nAUTH NTLM\r\nAUTH PLAIN\r\nBDAT 3\r\n",
        b"\x40\x08EHLO c\r\nNOOP\r\nMAIL FROM:<a@b.c>\r\nBDAT 3 LAST\r\nabcRSET\r\nQUIT\r\n",
        b"\x80\x09"
        + _BEGIN
        + b"RCPT TO:<x@y.z>\r\nRCPT TO:<later@y.z>\r\nRCPT TO:<v@y.z>\r\nDATA\r\n\xfd\x02\r\n.\r\nX\r\nX\r\nX\r\nX\r\n",
        b"\x00\x0aNOOP \xfd\x20\r\nNOOP\nX\r\n\xfd\xff\xfd\xffBDAT\r\nBDAT 4\nLAST\r\n",
        b"\x00\x0bGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00\x0c" + _BEGIN + b"RCPT TO:<bye@x.y>\r\nDATA\r\n",
        b"\x00\x0d"
        + _BEGIN
        + b"DATA\r\nlater\r\n.\r\n"
        + _BEGIN[8:]
        + b"BDAT 7\r\nlater\r\nBDAT 0 LAST\r\nBDAT 99999999999999999999\r\nx",
        b"\x00\x0eEHLO c\r\nMAIL FROM:<\xc3\xa4@b.c> SMTPUTF8 BODY=8BITMIME\r\nRCPT TO:<\xc3\xb6@b.c> NOTIFY=NEVER\r\nBDAT 2 LAST\r\n\xff\xfe",
        b"\x2c\x0f" + _BEGIN + b"AUTH PLAIN AGEAYg==\r\nRSET\r\nAUTH PLAIN AGEAYg==\r\nSTARTTLS\r\nQUIT\r\n",
    ),
}
