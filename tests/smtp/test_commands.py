"""Verbs and their arguments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail.address import NULL, Address
from relaycluster.mail.envelope import BodyType
from relaycluster.smtp.commands import COMMANDS, MailCommand, Verb, parse_mail, parse_rcpt, split_command
from relaycluster.smtp.grammar import GrammarError
from relaycluster.smtp.server_settings import EXTENSIONS, Dialect, ServerSettings

DIALECT = Dialect(ServerSettings("mx.example.org", message_size_bytes=1000))


@pytest.mark.parametrize("verb", COMMANDS)
def test_verbs_in_any_case_with_white_space_behind(verb: Verb) -> None:
    """RFC 5321 2.4: case does not matter; 4.1.1: trailing white space is let pass."""
    name = verb.value
    for text in (name, name.lower(), name.title(), name + " ", name + "\t", name + " \t "):
        assert split_command(text.encode()) == (verb, b"")
    assert split_command(name.encode() + b" an argument \t") == (verb, b"an argument")


@given(st.binary(max_size=30))
def test_any_line_has_a_verb(line: bytes) -> None:
    """No line raises, and a line that begins with none of the words known is UNKNOWN."""
    verb, argument = split_command(line)
    assert isinstance(verb, Verb)
    assert line.find(argument) >= 0


def test_mail_with_and_without_parameters() -> None:
    """MAIL's arguments become a value; SIZE at the limit is within it."""
    sender = Address("a@b.example", "b.example")
    assert parse_mail(b"FROM:<a@b.example>", DIALECT, True) == MailCommand(sender)
    assert parse_mail(b"from:<>", DIALECT, False) == MailCommand(NULL)
    assert parse_mail(b"FROM:<a@b.example> SIZE=1000 BODY=8bitmime", DIALECT, True) == MailCommand(
        sender, 1000, BodyType.EIGHT_BIT
    )


@pytest.mark.parametrize(
    ("argument", "code", "enhanced"),
    [
        (b"FROM:<a@b.example> SIZE=1001", 552, "5.3.4"),
        (b"FROM:<a@b.example> SIZE=99999999999999999999", 552, "5.3.4"),
        (b"FROM:<a@b.example> SIZE=1e3", 501, "5.5.4"),
        (b"FROM:<a@b.example> BODY=x", 501, "5.5.4"),
        (b"FROM:<a@b.example> SMTPUTF8", 555, "5.5.4"),
        (b"TO:<a@b.example>", 501, "5.5.4"),
        (b"FROM:a@b.example", 501, "5.1.7"),
    ],
)
def test_mail_refused(argument: bytes, code: int, enhanced: str) -> None:
    """Each fault has its reply."""
    with pytest.raises(GrammarError) as caught:
        parse_mail(argument, DIALECT, True)
    assert (caught.value.reply.code, caught.value.reply.enhanced) == (code, enhanced)


def test_parameters_need_ehlo() -> None:
    """After HELO no extension is offered, so no parameter is known (RFC 5321 2.2.1)."""
    for parse, argument in ((parse_mail, b"FROM:<a@b.example> SIZE=1"), (parse_rcpt, b"TO:<a@b.example> NOTIFY=NEVER")):
        with pytest.raises(GrammarError) as caught:
            parse(argument, DIALECT, False)
        assert caught.value.reply.code == 555


def test_the_reply_to_ehlo_comes_from_the_table() -> None:
    """The first line is the host's name, the others are the extensions' keywords, and their octets lengthen the line."""
    assert DIALECT.ehlo_lines[0] == "mx.example.org"
    assert [line.split(" ")[0] for line in DIALECT.ehlo_lines[1:]] == [extension.keyword for extension in EXTENSIONS]
    assert "SIZE 1000" in DIALECT.ehlo_lines
    assert DIALECT.command_line_octets == 512 + 26 + 17
