"""Verbs and their arguments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.mail.address import NULL, Address
from relaycluster.mail.envelope import BodyType, Notify, NotifyRequest, Ret
from relaycluster.smtp.commands import COMMANDS, MailCommand, Verb, parse_bdat, parse_mail, parse_rcpt, split_command
from relaycluster.smtp.grammar import GrammarError
from relaycluster.smtp.server_settings import EXTENSIONS, STAGES, Dialect, ServerSettings, Stage

DIALECT = Dialect(ServerSettings("mx.example.org", message_size_bytes=1000))
EVERYTHING = Dialect(ServerSettings("mx.example.org", starttls=True, auth=True, auth_without_tls=True))


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
    assert parse_mail(b"FROM:<a@b.example> smtputf8 RET=hdrs ENVID=a+2Bb", DIALECT, True) == MailCommand(
        sender, smtputf8=True, ret=Ret.HEADERS, envelope_id="a+2Bb"
    )


def test_rcpt_with_and_without_requests() -> None:
    """RCPT's arguments become an address and what is asked for it, None when that is nothing."""
    recipient = Address("a@b.example", "b.example")
    assert parse_rcpt(b"TO:<a@b.example>", DIALECT, True) == (recipient, None)
    assert parse_rcpt(b"TO:<a@b.example> ", DIALECT, False) == (recipient, None)
    assert parse_rcpt(b"TO:<a@b.example> NOTIFY=DELAY", DIALECT, True) == (
        recipient,
        NotifyRequest(frozenset({Notify.DELAY})),
    )


@given(st.integers(0, 10**20 - 1), st.booleans())
def test_bdat(octets: int, last: bool) -> None:
    """The count as it is, up to the longest that a size may have; LAST in any case."""
    assert parse_bdat(f"{octets}{' Last' if last else ''}".encode()) == (octets, last)


@given(st.one_of(st.binary(max_size=12), st.from_regex(rb"[0-9+ -]{0,22}( ?LAST)?[0-9 ]?", fullmatch=True)))
def test_bdat_is_understood_or_ends_the_session(argument: bytes) -> None:
    """A chunk whose length is in doubt has no second reading: 421, never a guess."""
    codes = set()
    try:
        octets, last = parse_bdat(argument)
    except GrammarError as error:
        codes.add(error.reply.code)
    else:
        words = argument.split()
        assert int(words[0]) == octets
        assert words[1:] in ([b"LAST"], []) or words[1].upper() == b"LAST"
        assert last == (len(words) == 2)
    assert codes <= {421}


@pytest.mark.parametrize(
    ("argument", "code", "enhanced"),
    [
        (b"FROM:<a@b.example> SIZE=1001", 552, "5.3.4"),
        (b"FROM:<a@b.example> SIZE=99999999999999999999", 552, "5.3.4"),
        (b"FROM:<a@b.example> SIZE=1e3", 501, "5.5.4"),
        (b"FROM:<a@b.example> BODY=x", 501, "5.5.4"),
        (b"FROM:<a@b.example> BODY=BINARYMIME", 501, "5.5.4"),
        (b"FROM:<a@b.example> SMTPUTF8=1", 501, "5.5.4"),
        (b"FROM:<a@b.example> RET=ALL", 501, "5.5.4"),
        (b"FROM:<a@b.example> ENVID=+", 501, "5.5.4"),
        (b"FROM:<a@b.example> AUTH=<>", 555, "5.5.4"),
        ("FROM:<ü@b.example>".encode(), 553, "5.6.7"),
        ('FROM:<"ü SMTPUTF8 "@b.example>'.encode(), 553, "5.6.7"),
        ("FROM:<a@b.example> ENVID=ü SMTPUTF8".encode(), 501, "5.5.4"),
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


def keywords(stage: Stage, dialect: Dialect = EVERYTHING) -> list[str]:
    return [line.split(" ")[0] for line in dialect.ehlo_lines(stage)[1:]]


def test_the_reply_to_ehlo_comes_from_the_table() -> None:
    """The first line is the host's name, the others are the extensions' keywords, and their octets lengthen the line."""
    clear = Stage(secure=False, authenticated=False)
    assert EVERYTHING.ehlo_lines(clear)[0] == "mx.example.org"
    assert keywords(clear) == [extension.keyword for extension in EXTENSIONS]
    assert "SIZE 1000" in DIALECT.ehlo_lines(clear)
    assert DIALECT.command_line_octets == 512 + 26 + 17 + 10 + 536
    assert EVERYTHING.command_line_octets == 512 + 26 + 17 + 10 + 536 + 507


def test_the_reply_to_ehlo_depends_on_the_stage() -> None:
    """STARTTLS in the clear only (RFC 3207 4.2); AUTH while it is of use, and under TLS unless the operator allows it without
    (RFC 4954 4); everything else at every stage."""
    always = [extension.keyword for extension in EXTENSIONS if extension.keyword not in ("STARTTLS", "AUTH")]
    careful = Dialect(ServerSettings("mx.example.org", starttls=True, auth=True))
    strict = Dialect(
        ServerSettings("mx.example.org", starttls=True, auth=True, auth_without_tls=True, require_tls=True)
    )
    for stage in STAGES:
        assert keywords(stage, DIALECT) == always
        auth = ["AUTH"] if stage.secure and not stage.authenticated else []
        assert (
            keywords(stage, careful)
            == keywords(stage, strict)
            == always + ([] if stage.secure else ["STARTTLS"]) + auth
        )
        assert ("AUTH" in keywords(stage)) == (not stage.authenticated)
        assert EVERYTHING.terms[stage.secure, stage.authenticated].ehlo_reply.decode().count("\r\n") == 1 + len(
            keywords(stage)
        )


def test_help_lists_what_the_listener_offers() -> None:
    """STARTTLS and AUTH where they are offered at some stage."""
    assert b"STARTTLS AUTH" in EVERYTHING.help_reply
    assert b"STARTTLS" not in DIALECT.help_reply
    assert b"AUTH" not in DIALECT.help_reply
