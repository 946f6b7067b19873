"""AUTH's dialog: what comes out of its base64, and what does not."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycluster.smtp.grammar import GrammarError
from relaycluster.smtp.server_auth import AuthDialog, parse_auth
from relaycluster.smtp.server_events import AuthAsked

names = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=60)
passwords = st.binary(min_size=1, max_size=80).filter(lambda octets: b"\0" not in octets)


def refusal(dialog: AuthDialog, line: bytes) -> tuple[int, str]:
    with pytest.raises(GrammarError) as caught:
        dialog.respond(line)
    return caught.value.reply.code, caught.value.reply.enhanced


@given(names, passwords, st.one_of(st.just(""), names))
def test_plain(user: str, password: bytes, authorization: str) -> None:
    """RFC 4616 section 2: identity, user and password, whatever is in them."""
    message = b"\0".join((authorization.encode(), user.encode(), password))
    assert AuthDialog("PLAIN").respond(b64encode(message)) == AuthAsked("PLAIN", user, password, authorization)


@given(names, passwords)
def test_login(user: str, password: bytes) -> None:
    """Two answers; the challenges are those that every client knows."""
    dialog = AuthDialog("LOGIN")
    assert dialog.challenge == b64encode(b"Username:")
    assert dialog.respond(b64encode(user.encode())) is None
    assert dialog.challenge == b64encode(b"Password:")
    assert dialog.respond(b64encode(password)) == AuthAsked("LOGIN", user, password)


@given(st.binary(max_size=60), st.sampled_from(["PLAIN", "LOGIN"]), st.booleans())
def test_anything_is_answered(octets: bytes, mechanism: str, encoded: bool) -> None:
    """Any answer: credentials that are fit for a log and a key, a further challenge, or 501 5.5.2."""
    dialog = AuthDialog(mechanism)
    refusals = []
    try:
        result = dialog.respond(b64encode(octets) if encoded else octets)
    except GrammarError as error:
        refusals.append((error.reply.code, error.reply.enhanced))
    else:
        if result is None:
            assert mechanism == "LOGIN"
        else:
            assert result.user
            assert (result.user + result.authorization).isprintable()
            assert result.password
            assert b"\0" not in result.password
    assert set(refusals) <= {(501, "5.5.2")}


@pytest.mark.parametrize(
    "line", [b"AAAA=", b"AAAA====", b"AAB=\r", b"AA A=", b"AB==", b"A", b"=", b"AA=A", b"_-__", b"AHUAcA"]
)
def test_base64_is_strict(line: bytes) -> None:
    """What a lenient decoder would read is refused (RFC 4648 3.3, 3.5): one text, one reading."""
    assert refusal(AuthDialog("PLAIN"), line) == (501, "5.5.2")


@pytest.mark.parametrize("name", [b"", b"\xff", b"a\nb", b"\xc2\x85", b"n" * 256, b"a\0b"])
def test_names_that_are_none(name: bytes) -> None:
    """No name, no UTF-8, control characters, too long."""
    assert refusal(AuthDialog("LOGIN"), b64encode(name)) == (501, "5.5.2")
    assert refusal(AuthDialog("PLAIN"), b64encode(b"\0" + name + b"\0x")) == (501, "5.5.2")
    assert AuthDialog("LOGIN").respond(b64encode(b"n" * 255)) is None


def test_the_command() -> None:
    """The mechanism in any case; an equals sign is an initial response that is empty (RFC 4954 section 4)."""
    assert parse_auth(b"plain") == ("PLAIN", None)
    assert parse_auth(b"LOGIN =") == ("LOGIN", b"")
    assert parse_auth(b"LOGIN dXNlcg==") == ("LOGIN", b"dXNlcg==")
    for argument, code in (
        (b"", 501),
        (b"PLAIN  x", 501),
        (b"PLAIN x y", 501),
        (b"\xff", 501),
        (b"X" * 21, 501),
        (b"CRAM-MD5", 504),
    ):
        with pytest.raises(GrammarError) as caught:
            parse_auth(argument)
        assert (caught.value.reply.code, caught.value.reply.enhanced) == (code, "5.5.4")


def test_a_password_does_not_show() -> None:
    """Neither in a traceback's values nor in a log that prints an event."""
    assert "secret" not in repr(AuthAsked("PLAIN", "user", b"secret"))
