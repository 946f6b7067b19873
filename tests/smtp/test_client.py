"""The client's conversation, told as dialogs: what the server says, what the client answers, what came of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import evolve

from relaycluster.mail.address import NULL, Address
from relaycluster.mail.envelope import BodyType, Envelope, Notify, NotifyRequest, Ret
from relaycluster.mail.outcome import Deferred, Delivered, Failed, Outcome, Stage
from relaycluster.mail.reply import Reply
from relaycluster.policy.trouble import was_said_by_host
from relaycluster.smtp.client import ONE_WRITE, ClientConversation
from relaycluster.smtp.client_events import (
    ContentWanted,
    Ended,
    Event,
    Finished,
    Ready,
    TLSPolicy,
    TLSWanted,
    Transaction,
)
from relaycluster.smtp.client_states import ACTIVITIES, STAGES, TRANSITIONS, State, Trigger

HOST = "mx.example.com"
CONTENT = b"Subject: hello\r\n\r\n.dot\r\n"
WIRE = b"Subject: hello\r\n\r\n..dot\r\n.\r\n"
UTF8_HEADER = "Subject: Grüße\r\n\r\nx\r\n".encode()
UTF8_BODY = "Subject: x\r\n\r\nü\r\n".encode()
PIPELINING = ("250-mx.example.com", "250-PIPELINING", "250-SIZE 1000000", "250 8BITMIME")
PLAIN = ("250-mx.example.com", "250 SIZE")


def address(text: str) -> Address:
    return Address(text, text.rpartition("@")[2])


def transaction(
    *recipients: str,
    content: bytes = CONTENT,
    size: int | None = None,
    body: BodyType = BodyType.SEVEN_BIT,
    smtputf8: bool = False,
    may_finish: Callable[[], bool] = lambda: True,
    reverse_path: str = "a@example.net",
) -> Transaction:
    to = tuple(address(each) for each in recipients or ("b@example.com",))
    envelope = Envelope(address(reverse_path) if reverse_path else NULL, to, body, smtputf8)
    return Transaction(envelope, content, len(content) if size is None else size, may_finish)


class Dialog:
    """A conversation, and the server that a test speaks for."""

    def __init__(self, tls: TLSPolicy = TLSPolicy.NONE) -> None:
        self.client = ClientConversation("relay.example.net", HOST, tls)

    def says(self, *lines: str) -> None:
        """The server says the lines, all at once."""
        self.client.receive_data("".join(f"{line}\r\n" for line in lines).encode())

    def heard(self) -> list[str]:
        """The lines that the server got since it was last asked."""
        return self.client.data_to_send().decode().split("\r\n")[:-1]

    def events(self) -> list[Event]:
        """What the client found out since it was last asked."""
        events = []
        while (event := self.client.next_event()) is not None:
            events.append(event)
        return events

    def outcomes(self) -> tuple[Outcome, ...]:
        """Of the transaction that just finished, and nothing else did."""
        (finished,) = self.events()
        assert isinstance(finished, Finished)
        return finished.outcomes

    def outcomes_and_end(self) -> tuple[tuple[Outcome, ...], Ended]:
        """Of the transaction with which the connection ended."""
        finished, ended = self.events()
        assert isinstance(finished, Finished)
        assert isinstance(ended, Ended)
        assert self.client.state is State.CLOSED
        return finished.outcomes, ended

    def failure(self) -> Ended:
        """How the session came to nothing."""
        (ended,) = self.events()
        assert isinstance(ended, Ended)
        assert ended.outcome is not None
        assert self.client.state is State.CLOSED
        return ended


def ready(*ehlo: str, tls: TLSPolicy = TLSPolicy.NONE) -> Dialog:
    """A session that stands."""
    dialog = Dialog(tls)
    dialog.says("220 mx.example.com ESMTP")
    assert dialog.heard() == ["EHLO relay.example.net"]
    dialog.says(*ehlo)
    (event,) = dialog.events()
    assert isinstance(event, Ready)
    assert dialog.client.state is State.READY
    assert not dialog.heard()
    return dialog


# The table


def test_every_state_has_its_row_stage_and_words() -> None:
    """A new state can not be forgotten anywhere."""
    assert set(TRANSITIONS) == set(STAGES) == set(ACTIVITIES) == set(State)


def test_every_state_is_reached_and_every_trigger_is_used() -> None:
    """The table holds nothing dead; each state but the first follows from another, and all end in CLOSED."""
    following = {after for row in TRANSITIONS.values() for after in row.values()}
    assert following == set(State) - {State.GREETING}
    assert {trigger for row in TRANSITIONS.values() for trigger in row} == set(Trigger)
    assert all(
        row.get(Trigger.BREAK) is State.CLOSED for state, row in TRANSITIONS.items() if state is not State.CLOSED
    )


# The session


def test_session_with_ehlo() -> None:
    """Greeting, EHLO, and the extensions with their parameters; unknown ones are kept and do nothing."""
    dialog = Dialog()
    dialog.says("220-mx.example.com", "220 welcome")
    assert dialog.heard() == ["EHLO relay.example.net"]
    dialog.says(
        "250-mx.example.com greets you",
        "250-pipelining",
        "250-SIZE 35882577",
        "250-8BITMIME",
        "250-SMTPUTF8",
        "250-CHUNKING",
        "250-DSN",
        "250-STARTTLS",
        "250-AUTH PLAIN LOGIN",
        "250-X-NEW one two",
        "250 ENHANCEDSTATUSCODES",
    )
    (event,) = dialog.events()
    assert isinstance(event, Ready)
    offers = event.extensions
    assert offers.pipelining
    assert offers.eight_bit_mime
    assert offers.smtputf8
    assert offers.chunking
    assert offers.dsn
    assert offers.starttls
    assert offers.enhanced_status_codes
    assert offers.size_limit == 35882577
    assert offers.keywords["AUTH"] == "PLAIN LOGIN"
    assert offers.keywords["X-NEW"] == "one two"


@pytest.mark.parametrize("said", ["250 SIZE", "250 SIZE 0", "250 SIZE x", "250 SIZE " + "9" * 21, "250 SIZE ²"])
def test_size_without_a_limit(said: str) -> None:
    """RFC 1870 section 4: no number, or 0, is no limit; nonsense is none either."""
    offers = ready("250-mx", said).client.extensions
    assert offers.size
    assert offers.size_limit is None


def test_session_with_helo() -> None:
    """RFC 5321 3.2: a server without EHLO gets HELO, and is used without any extension."""
    dialog = Dialog()
    dialog.says("220 old.example.com")
    dialog.heard()
    dialog.says("500 what?")
    assert dialog.heard() == ["HELO relay.example.net"]
    dialog.says("250 PIPELINING")
    assert dialog.events() == [Ready(dialog.client.extensions)]
    assert not dialog.client.extensions.pipelining
    dialog.client.begin(transaction())
    assert dialog.heard() == ["MAIL FROM:<a@example.net>"]


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ("554 5.7.1 not you", Failed(Reply(554, "5.7.1", ("not you",)), Stage.GREETING, HOST)),
        ("450 4.3.2 busy", Deferred(Reply(450, "4.3.2", ("busy",)), Stage.GREETING, HOST)),
    ],
)
def test_refused_greeting(said: str, outcome: Outcome) -> None:
    """A refusal is the outcome by its code; the client says QUIT and goes."""
    dialog = Dialog()
    dialog.says(said)
    assert dialog.failure() == Ended(outcome, polite=True)  # type: ignore[arg-type]
    assert dialog.heard() == ["QUIT"]


def test_refused_ehlo_and_helo() -> None:
    """4yz to EHLO is no reason to try HELO; 5yz to HELO is final."""
    dialog = Dialog()
    dialog.says("220 hi")
    dialog.says("451 4.3.0 not now")
    assert dialog.failure().outcome == Deferred(Reply(451, "4.3.0", ("not now",)), Stage.EHLO, HOST)
    dialog = Dialog()
    dialog.says("220 hi")
    dialog.says("502 5.5.1 no EHLO")
    dialog.says("550 5.7.1 no HELO either")
    assert dialog.failure().outcome == Failed(Reply(550, "5.7.1", ("no HELO either",)), Stage.EHLO, HOST)


@pytest.mark.parametrize("said", ["354 go on", "SSH-2.0-OpenSSH_9.2", "220-one\r\n221 two", ""])
def test_strange_greeting(said: str) -> None:
    """What speaks no SMTP is not spoken to: deferred, cut off, and the reason is named."""
    dialog = Dialog()
    dialog.says(said)
    ended = dialog.failure()
    assert isinstance(ended.outcome, Deferred)
    assert ended.outcome.stage is Stage.GREETING
    assert ended.outcome.reply.enhanced == "4.5.0"
    assert not ended.polite
    assert not dialog.heard()


def test_greeting_with_more_behind_it() -> None:
    """A server that answers EHLO before it was said is one reply ahead, and its 250 would count for another command."""
    dialog = Dialog()
    dialog.says("220 hi", "250 hi again")
    assert dialog.failure().outcome == Deferred(
        Reply.of(451, "4.5.0", "a reply that nobody asked for while waiting for the reply to EHLO"), Stage.EHLO, HOST
    )
    assert not dialog.heard()


def test_421_at_any_time_before_the_session_stands() -> None:
    """RFC 5321 3.8: the server goes; deferred with its own words."""
    for before in ([], ["220 hi"], ["220 hi", "500 no EHLO"]):
        dialog = Dialog()
        for said in before:
            dialog.says(said)
        dialog.says("421 4.3.2 going down")
        outcome = dialog.failure().outcome
        assert isinstance(outcome, Deferred)
        assert outcome.reply == Reply(421, "4.3.2", ("going down",))


def test_close() -> None:
    """QUIT, and the end with whatever the server answers, or with the connection."""
    for said in ("221 bye", "250 ok", "421 bye", "500 what?"):
        dialog = ready(*PLAIN)
        dialog.client.close()
        assert dialog.heard() == ["QUIT"]
        dialog.says(said)
        assert dialog.events() == [Ended(polite=True)]
    dialog = ready(*PLAIN)
    dialog.client.close()
    dialog.client.connection_lost("closed by the server")
    assert dialog.events() == [Ended()]
    dialog.client.close()
    assert dialog.events() == []


# TLS

WITH_TLS = ("250-mx.example.com", "250-STARTTLS", "250 PIPELINING")


def test_starttls() -> None:
    """STARTTLS where it is offered, the handshake by the caller, then EHLO again; what was said in clear is forgotten."""
    dialog = Dialog(TLSPolicy.MAY)
    dialog.says("220 hi")
    dialog.heard()
    dialog.says(*WITH_TLS)
    assert dialog.heard() == ["STARTTLS"]
    dialog.says("220 go")
    assert dialog.events() == [TLSWanted()]
    assert dialog.heard() == []
    dialog.client.tls_started()
    assert not dialog.client.extensions.pipelining
    assert dialog.heard() == ["EHLO relay.example.net"]
    dialog.says("250-mx.example.com", "250 STARTTLS")
    assert dialog.events() == [Ready(dialog.client.extensions)]
    assert dialog.client.encrypted
    assert not dialog.client.extensions.pipelining


@pytest.mark.parametrize("behind", ["250-mx\r\n250 PIPELINING\r\n", "2", "250 ok\r\n", "\r\n"])
def test_replies_injected_behind_starttls(behind: str) -> None:
    """CVE-2011-0411 for clients: what came in clear behind the 220 is not believed, whole or in part; TLS failed."""
    for policy in (TLSPolicy.MAY, TLSPolicy.ENCRYPT, TLSPolicy.VERIFY):
        dialog = Dialog(policy)
        dialog.says("220 hi")
        dialog.says(*WITH_TLS)
        dialog.client.receive_data(f"220 go\r\n{behind}".encode())
        ended = dialog.failure()
        assert ended.tls_failed
        assert isinstance(ended.outcome, Deferred)
        assert ended.outcome.stage is Stage.TLS


def test_clear_text_after_starttls_was_accepted() -> None:
    """The same when it comes a moment later, before the handshake is done."""
    dialog = Dialog(TLSPolicy.MAY)
    dialog.says("220 hi")
    dialog.says(*WITH_TLS)
    dialog.says("220 go")
    assert dialog.events() == [TLSWanted()]
    dialog.says("250 mx.example.com")
    assert dialog.failure().tls_failed


def test_starttls_refused_under_may() -> None:
    """The same session goes on in clear, with the extensions that it has."""
    for said in ("454 4.7.0 no TLS now", "502 5.5.1 no such thing"):
        dialog = Dialog(TLSPolicy.MAY)
        dialog.says("220 hi")
        dialog.says(*WITH_TLS)
        dialog.says(said)
        assert dialog.events() == [Ready(dialog.client.extensions)]
        assert dialog.client.extensions.pipelining
        assert not dialog.client.encrypted


@pytest.mark.parametrize("policy", [TLSPolicy.ENCRYPT, TLSPolicy.VERIFY])
def test_tls_that_is_required_and_cannot_be_had(policy: TLSPolicy) -> None:
    """Not offered, refused, or a host with HELO alone: deferred, whatever the code, and no mail in clear."""
    for said in (["250 mx.example.com"], ["500 no EHLO", "250 hi"], ["\r\n".join(WITH_TLS), "502 5.5.1 no"]):
        dialog = Dialog(policy)
        dialog.says("220 hi")
        for each in said:
            dialog.says(each)
        outcome = dialog.failure().outcome
        assert isinstance(outcome, Deferred)
        assert outcome.stage is Stage.TLS
        assert outcome.reply.enhanced == "4.7.4"


def test_tls_that_fails() -> None:
    """A failed handshake, a connection lost from STARTTLS to the first reply under TLS: the caller learns that TLS was
    it, so that it may try in clear."""
    steps: list[Callable[[Dialog], None]] = [
        lambda dialog: dialog.client.connection_lost("reset"),
        lambda dialog: (dialog.says("220 go"), dialog.client.tls_failed("no shared cipher"))[1],
        lambda dialog: (dialog.says("220 go"), dialog.client.timed_out())[1],
        lambda dialog: (dialog.says("220 go"), dialog.client.tls_started(), dialog.client.connection_lost("alert"))[2],
    ]
    for step in steps:
        dialog = Dialog(TLSPolicy.MAY)
        dialog.says("220 hi")
        dialog.says(*WITH_TLS)
        step(dialog)
        ended = dialog.events()[-1]
        assert isinstance(ended, Ended)
        assert ended.tls_failed
        assert isinstance(ended.outcome, Deferred)


def test_a_lost_connection_before_starttls_has_nothing_to_do_with_tls() -> None:
    """Trying in clear would not help."""
    dialog = Dialog(TLSPolicy.MAY)
    dialog.says("220 hi")
    dialog.client.connection_lost("reset")
    assert not dialog.failure().tls_failed


# One transaction


def test_pipelined_transaction() -> None:
    """RFC 2920: MAIL, RCPT and DATA in one write, the content and its dot in another."""
    dialog = ready(*PIPELINING)
    dialog.client.begin(transaction("b@example.com", "c@example.com"))
    assert dialog.heard() == [
        f"MAIL FROM:<a@example.net> SIZE={len(CONTENT)}",
        "RCPT TO:<b@example.com>",
        "RCPT TO:<c@example.com>",
        "DATA",
    ]
    dialog.says("250 2.1.0 ok", "250 2.1.5 ok", "251 2.1.5 ok", "354 go")
    assert dialog.client.data_to_send() == WIRE
    dialog.says("250 2.0.0 queued as 4F2A")
    delivered = Delivered(Reply(250, "2.0.0", ("queued as 4F2A",)), HOST)
    assert dialog.outcomes() == (delivered, delivered)
    assert dialog.client.state is State.READY


def test_transaction_in_lock_step() -> None:
    """Without PIPELINING each command waits for the reply to the last one."""
    dialog = ready(*PLAIN)
    dialog.client.begin(transaction("b@example.com", "c@example.com", reverse_path=""))
    assert dialog.heard() == [f"MAIL FROM:<> SIZE={len(CONTENT)}"]
    dialog.says("250 ok")
    assert dialog.heard() == ["RCPT TO:<b@example.com>"]
    dialog.says("250 ok")
    assert dialog.heard() == ["RCPT TO:<c@example.com>"]
    dialog.says("250 ok")
    assert dialog.heard() == ["DATA"]
    dialog.says("354 go")
    assert dialog.client.data_to_send() == WIRE
    dialog.says("250 ok")
    assert [type(outcome) for outcome in dialog.outcomes()] == [Delivered, Delivered]


def test_lock_step_server_that_runs_ahead() -> None:
    """Two replies to one command: the second must not count for the next command."""
    dialog = ready(*PLAIN)
    dialog.client.begin(transaction())
    dialog.says("250 ok", "250 ok")
    ((outcome,), ended) = dialog.outcomes_and_end()
    assert isinstance(outcome, Deferred)
    assert not ended.polite


@pytest.mark.parametrize("extensions", [PIPELINING, PLAIN])
@pytest.mark.parametrize(("code", "kind"), [(450, Deferred), (550, Failed)])
def test_mail_refused(extensions: tuple[str, ...], code: int, kind: type[Outcome]) -> None:
    """All recipients share the refusal; the session goes on, without RSET since no transaction is open."""
    dialog = ready(*extensions)
    dialog.client.begin(transaction("b@example.com", "c@example.com"))
    dialog.heard()
    dialog.says(f"{code} not from you")
    if extensions is PIPELINING:
        assert dialog.events() == []
        dialog.says("503 MAIL first", "503 MAIL first", "503 RCPT first")
    refused = kind(Reply.of(code, "", "not from you"), Stage.MAIL, HOST)  # type: ignore[call-arg,arg-type]
    assert dialog.outcomes() == (refused, refused)
    dialog.client.begin(transaction())
    assert dialog.heard()[0].startswith("MAIL")


@pytest.mark.parametrize("extensions", [PIPELINING, PLAIN])
def test_some_recipients_refused(extensions: tuple[str, ...]) -> None:
    """Each recipient has its own outcome; the others get the message."""
    dialog = ready(*extensions)
    dialog.client.begin(transaction("b@example.com", "c@example.com", "d@example.com"))
    dialog.says("250 ok")
    dialog.says("550 5.1.1 no such user")
    dialog.says("250 ok")
    dialog.says("452 4.2.2 full")
    dialog.heard()
    dialog.says("354 go")
    assert dialog.client.data_to_send() == WIRE
    dialog.says("250 2.0.0 ok")
    assert dialog.outcomes() == (
        Failed(Reply.of(550, "5.1.1", "no such user"), Stage.RCPT, HOST),
        Delivered(Reply.of(250, "2.0.0", "ok"), HOST),
        Deferred(Reply.of(452, "4.2.2", "full"), Stage.RCPT, HOST),
    )


def test_all_recipients_refused_in_lock_step() -> None:
    """DATA is not even said; the next transaction begins with RSET, since MAIL was accepted."""
    dialog = ready(*PLAIN)
    dialog.client.begin(transaction())
    dialog.says("250 ok")
    dialog.heard()
    dialog.says("550 no")
    assert dialog.heard() == []
    assert dialog.outcomes() == (Failed(Reply.of(550, "", "no"), Stage.RCPT, HOST),)
    dialog.client.begin(transaction())
    assert dialog.heard() == ["RSET"]
    dialog.says("250 reset")
    assert dialog.heard() == [f"MAIL FROM:<a@example.net> SIZE={len(CONTENT)}"]


def test_all_recipients_refused_and_data_too() -> None:
    """With PIPELINING the DATA that was written ahead is refused: nothing more to say, but RSET before the next."""
    dialog = ready(*PIPELINING)
    dialog.client.begin(transaction())
    dialog.heard()
    dialog.says("250 ok", "550 no", "503 no recipients")
    assert dialog.outcomes() == (Failed(Reply.of(550, "", "no"), Stage.RCPT, HOST),)
    dialog.client.begin(transaction())
    assert [line.partition(" ")[0] for line in dialog.heard()] == ["RSET", "MAIL", "RCPT", "DATA"]
    dialog.says("250 reset", "250 ok", "250 ok", "354 go")
    dialog.says("250 ok")
    assert isinstance(dialog.outcomes()[0], Delivered)


@pytest.mark.parametrize("answer", ["250 2.0.0 queued", "554 no valid recipients", "354 more"])
def test_all_recipients_refused_and_354_nevertheless(answer: str) -> None:
    """RFC 2920 3.1: a single dot, no content; whatever the answer, nothing counts as delivered."""
    dialog = ready(*PIPELINING)
    dialog.client.begin(transaction("b@example.com", "c@example.com"))
    dialog.heard()
    dialog.says("250 ok", "550 no", "451 later", "354 go")
    assert dialog.client.data_to_send() == b".\r\n"
    dialog.says(answer)
    assert dialog.outcomes() == (
        Failed(Reply.of(550, "", "no"), Stage.RCPT, HOST),
        Deferred(Reply.of(451, "", "later"), Stage.RCPT, HOST),
    )


def test_mail_refused_but_recipient_and_data_accepted() -> None:
    """Even a single dot could bring somebody an empty message: the connection is cut off instead."""
    dialog = ready(*PIPELINING)
    dialog.client.begin(transaction())
    dialog.heard()
    dialog.says("550 5.7.1 no", "250 ok", "354 go")
    outcomes, ended = dialog.outcomes_and_end()
    assert outcomes == (Failed(Reply.of(550, "5.7.1", "no"), Stage.MAIL, HOST),)
    assert not ended.polite
    assert dialog.heard() == []


@pytest.mark.parametrize(("code", "kind"), [(451, Deferred), (554, Failed)])
def test_data_refused(code: int, kind: type[Outcome]) -> None:
    """Those whose RCPT was accepted share the refusal; a RCPT's own refusal stays."""
    dialog = ready(*PIPELINING)
    dialog.client.begin(transaction("b@example.com", "c@example.com"))
    dialog.heard()
    dialog.says("250 ok", "250 ok", "553 no", f"{code} not now")
    assert dialog.outcomes() == (
        kind(Reply.of(code, "", "not now"), Stage.DATA, HOST),  # type: ignore[call-arg,arg-type]
        Failed(Reply.of(553, "", "no"), Stage.RCPT, HOST),
    )
    dialog.client.begin(transaction())
    assert dialog.heard()[0] == "RSET"


@pytest.mark.parametrize(("code", "kind"), [(452, Deferred), (554, Failed)])
def test_content_refused(code: int, kind: type[Outcome]) -> None:
    """The reply to the final dot is for all that were accepted; the session is free for the next, without RSET."""
    dialog = ready(*PIPELINING)
    dialog.client.begin(transaction("b@example.com", "c@example.com"))
    dialog.says("250 ok", "250 ok", "550 no", "354 go")
    dialog.heard()
    dialog.says(f"{code} not this")
    assert dialog.outcomes() == (
        kind(Reply.of(code, "", "not this"), Stage.FINAL_DOT, HOST),  # type: ignore[call-arg,arg-type]
        Failed(Reply.of(550, "", "no"), Stage.RCPT, HOST),
    )
    dialog.client.begin(transaction())
    assert dialog.heard()[0].startswith("MAIL")


# The connection breaks

BEFORE = [
    (State.MAIL, Stage.MAIL, []),
    (State.RCPT, Stage.RCPT, ["250 ok"]),
    (State.DATA, Stage.DATA, ["250 ok", "250 ok", "550 no"]),
    (State.FINAL_DOT, Stage.FINAL_DOT, ["250 ok", "250 ok", "550 no", "354 go"]),
]


@pytest.mark.parametrize(("state", "stage", "said"), BEFORE)
@pytest.mark.parametrize("how", ["lost", "timeout", "malformed", "421", "given up"])
def test_broken_off_at_each_stage(state: State, stage: Stage, said: list[str], how: str) -> None:
    """Who has no outcome is deferred at the stage where it happened. The message may have arrived only when the final dot
    was written and its reply was not seen; 421 is a reply."""
    dialog = ready(*PIPELINING)
    dialog.client.begin(transaction("b@example.com", "c@example.com"))
    dialog.heard()
    if said:
        dialog.says(*said)
    dialog.heard()
    assert dialog.client.state is state
    match how:
        case "lost":
            dialog.client.connection_lost("reset")
        case "timeout":
            dialog.client.timed_out()
        case "malformed":
            dialog.says("whatever")
        case "421":
            dialog.says("421 4.3.2 going down")
        case _:
            dialog.client.give_up(Reply.of(451, "4.3.0", "given up"))
    (first, second), ended = dialog.outcomes_and_end()
    assert isinstance(first, Deferred)
    assert first.stage is stage
    assert first.may_have_arrived == (state is State.FINAL_DOT and how != "421")
    if len(said) > 2:
        assert second == Failed(Reply.of(550, "", "no"), Stage.RCPT, HOST)
    else:
        assert second == first
    assert ended.outcome is None
    assert dialog.heard() == []


@pytest.mark.parametrize(
    ("said", "stage"),
    [
        (["354 go"], Stage.MAIL),
        (["250 ok", "354 go"], Stage.RCPT),
        (["250 ok", "250 ok", "250 ok"], Stage.DATA),
        (["250 ok", "250 ok", "354 go", "354 go"], Stage.FINAL_DOT),
    ],
)
def test_a_reply_of_the_wrong_class(said: list[str], stage: Stage) -> None:
    """A reply that can not belong to its command shows that the two sides count differently: cut off, deferred."""
    dialog = ready(*PIPELINING)
    dialog.client.begin(transaction())
    for each in said:
        dialog.says(each)
        dialog.heard()
    (outcome,), ended = dialog.outcomes_and_end()
    assert isinstance(outcome, Deferred)
    assert outcome.stage is stage
    assert outcome.may_have_arrived == (stage is Stage.FINAL_DOT)
    assert outcome.reply.enhanced == "4.5.0"
    assert not ended.polite


@pytest.mark.parametrize("behind", ["250 2.0.0 queued\r\n", "2", "421 bye\r\n"])
def test_a_reply_that_comes_with_354_is_not_the_final_one(behind: str) -> None:
    """A 250 that was sent before the content was is not for the content. None of the content is sent."""
    dialog = ready(*PIPELINING)
    dialog.client.begin(transaction())
    dialog.heard()
    dialog.client.receive_data(f"250 ok\r\n250 ok\r\n354 go\r\n{behind}".encode())
    (outcome,), _ = dialog.outcomes_and_end()
    assert isinstance(outcome, Deferred)
    assert not outcome.may_have_arrived
    assert dialog.client.data_to_send() == b""


def test_more_than_the_reply_to_ehlo() -> None:
    """The session does not even begin."""
    dialog = Dialog()
    dialog.says("220 hi")
    dialog.says("250-mx", "250 PIPELINING", "250 ok")
    assert isinstance(dialog.failure().outcome, Deferred)


@pytest.mark.parametrize("said", ["421 4.4.2 idle too long", "250 ok", "rubbish"])
def test_anything_said_between_transactions_ends_the_session(said: str) -> None:
    """421 is the usual end of an idle connection; anything else would be taken for the reply to the next command."""
    dialog = ready(*PIPELINING)
    dialog.says(said)
    (ended,) = dialog.events()
    assert isinstance(ended, Ended)
    assert ended.outcome is None


def test_half_a_reply_before_a_transaction() -> None:
    """The rest of it would be read as the reply to MAIL."""
    dialog = ready(*PIPELINING)
    dialog.client.receive_data(b"250 o")
    dialog.client.begin(transaction())
    (outcome,), _ = dialog.outcomes_and_end()
    assert isinstance(outcome, Deferred)
    assert outcome.stage is Stage.MAIL
    assert dialog.heard() == []


def test_more_than_the_reply_to_the_final_dot() -> None:
    """The message is delivered; the connection is not believed any more."""
    dialog = ready(*PIPELINING)
    dialog.client.begin(transaction())
    dialog.says("250 ok", "250 ok", "354 go")
    dialog.says("250 2.0.0 queued", "250 and one more")
    (outcome,), _ = dialog.outcomes_and_end()
    assert isinstance(outcome, Delivered)


def test_rset_refused() -> None:
    """A server that can not forget is left."""
    dialog = ready(*PLAIN)
    dialog.client.begin(transaction())
    dialog.says("250 ok")
    dialog.says("550 no")
    dialog.events()
    dialog.client.begin(transaction())
    dialog.says("502 no RSET")
    (outcome,), _ = dialog.outcomes_and_end()
    assert isinstance(outcome, Deferred)
    assert outcome.stage is Stage.MAIL


# Long contents


def long_transaction(may_finish: Callable[[], bool] = lambda: True) -> tuple[Dialog, Transaction]:
    dialog = ready(*PIPELINING)
    long = transaction(content=b"x" * (ONE_WRITE + 1), may_finish=may_finish)
    dialog.client.begin(long)
    dialog.heard()
    dialog.says("250 ok", "250 ok", "354 go")
    assert dialog.events() == [ContentWanted(long)]
    assert dialog.client.data_to_send() == b""
    return dialog, long


def test_long_content_in_chunks() -> None:
    """The caller gives it piece by piece; dots are stuffed across the cuts."""
    dialog, _ = long_transaction()
    wire = b""
    for chunk in (b"one\r\n", b".\r\ntwo", b"", b"\r", b"\n.three"):
        dialog.client.send_content(chunk)
        wire += dialog.client.data_to_send()
    dialog.client.finish()
    assert wire + dialog.client.data_to_send() == b"one\r\n..\r\ntwo\r\n..three\r\n.\r\n"
    dialog.says("250 ok")
    assert isinstance(dialog.outcomes()[0], Delivered)


@pytest.mark.parametrize(("code", "kind"), [(452, Deferred), (552, Failed)])
def test_refused_in_the_middle_of_the_content(code: int, kind: type[Outcome]) -> None:
    """The server's words count; the rest of the content and the dot are not sent."""
    dialog, _ = long_transaction()
    dialog.client.send_content(b"one\r\n")
    dialog.heard()
    dialog.says(f"{code} too much")
    outcomes, ended = dialog.outcomes_and_end()
    assert outcomes == (kind(Reply.of(code, "", "too much"), Stage.CONTENT, HOST),)  # type: ignore[call-arg,arg-type]
    assert not ended.polite
    dialog.client.send_content(b"two\r\n")
    dialog.client.finish()
    assert dialog.client.data_to_send() == b""


def test_accepted_in_the_middle_of_the_content() -> None:
    """A 250 before the dot is for nothing that we sent."""
    dialog, _ = long_transaction()
    dialog.says("250 2.0.0 queued")
    (outcome,), _ = dialog.outcomes_and_end()
    assert isinstance(outcome, Deferred)
    assert outcome.stage is Stage.CONTENT
    assert not outcome.may_have_arrived


def test_lost_in_the_middle_of_the_content() -> None:
    """Without its dot the message can not have arrived."""
    dialog, _ = long_transaction()
    dialog.client.send_content(b"one\r\n")
    dialog.client.connection_lost("reset")
    (outcome,), _ = dialog.outcomes_and_end()
    assert outcome == Deferred(
        Reply.of(451, "4.4.2", "connection lost while sending the content: reset"), Stage.CONTENT, HOST
    )


def test_no_final_dot_without_leave() -> None:
    """A node that may not send any more writes nothing that could make the message arrive, short or long."""
    asked = []
    dialog, _ = long_transaction(may_finish=lambda: bool(asked.append("long")))
    dialog.client.send_content(b"one\r\n")
    dialog.heard()
    dialog.client.finish()
    for each, size in ((dialog, "long"), (ready(*PIPELINING), "short")):
        if size == "short":
            each.client.begin(transaction(may_finish=lambda: bool(asked.append("short"))))
            each.heard()
            each.says("250 ok", "250 ok", "354 go")
        assert each.client.data_to_send() == b""
        (outcome,), ended = each.outcomes_and_end()
        assert isinstance(outcome, Deferred)
        assert outcome.stage is Stage.CONTENT
        assert not outcome.may_have_arrived
        assert not ended.polite
    assert asked == ["long", "short"]


# What the extensions allow


def test_parameters_of_mail() -> None:
    """SIZE where it is offered; BODY=8BITMIME and SMTPUTF8 where they are needed, the latter also where 8-bit octets may be more of
    what was declared (RFC 6531 3.4)."""
    full = ("250-mx", "250-SIZE", "250-8BITMIME", "250 SMTPUTF8")
    cases = [
        (transaction(), "SIZE=24"),
        (transaction(body=BodyType.EIGHT_BIT), "SIZE=24 BODY=8BITMIME"),
        (transaction(content="ü\r\n".encode()), "SIZE=4 BODY=8BITMIME"),
        (transaction(smtputf8=True), "SIZE=24"),
        (transaction(smtputf8=True, content=UTF8_HEADER), "SIZE=23 BODY=8BITMIME SMTPUTF8"),
        (transaction(smtputf8=True, content=UTF8_BODY), "SIZE=18 BODY=8BITMIME SMTPUTF8"),
        (transaction(content=UTF8_HEADER), "SIZE=23 BODY=8BITMIME"),
        (transaction("jürgen@example.com"), "SIZE=24 SMTPUTF8"),
    ]
    for each, parameters in cases:
        dialog = ready(*full)
        dialog.client.begin(each)
        assert dialog.heard() == [f"MAIL FROM:<a@example.net> {parameters}"]
    dialog = ready("250 mx")
    dialog.client.begin(transaction())
    assert dialog.heard() == ["MAIL FROM:<a@example.net>"]


@pytest.mark.parametrize(
    ("extensions", "unsendable", "enhanced"),
    [
        (("250-mx", "250 SIZE 1000"), transaction(size=1001), "5.3.4"),
        (("250 mx",), transaction(body=BodyType.EIGHT_BIT), "5.6.3"),
        (("250 mx",), transaction(content="ü\r\n".encode()), "5.6.3"),
        (("250-mx", "250 8BITMIME"), transaction(smtputf8=True, content=UTF8_HEADER), "5.6.7"),
        (("250 mx",), transaction(smtputf8=True, content=UTF8_HEADER), "5.6.7"),
        (("250-mx", "250 8BITMIME"), transaction("jürgen@example.com"), "5.6.7"),
        (("250-mx", "250 8BITMIME"), transaction(reverse_path="jürgen@example.com"), "5.6.7"),
        (("250 mx",), transaction("b@example.com>\r\nRCPT TO:<c@example.com"), "5.1.3"),
        (("250 mx",), transaction("b@example.com\n"), "5.1.3"),
        (("250 mx",), transaction(reverse_path="a@example.net>\r\nRSET"), "5.1.3"),
    ],
)
def test_what_the_host_cannot_take_is_not_begun(
    extensions: tuple[str, ...], unsendable: Transaction, enhanced: str
) -> None:
    """Failed before a byte is written, and the session stands for the next."""
    dialog = ready(*extensions)
    dialog.client.begin(unsendable)
    assert dialog.heard() == []
    (outcome,) = dialog.outcomes()
    assert isinstance(outcome, Failed)
    assert outcome.reply.enhanced == enhanced
    assert not was_said_by_host(outcome)
    assert dialog.client.state is State.READY
    dialog.client.begin(transaction())
    assert dialog.heard()


def test_a_message_of_just_the_size_limit() -> None:
    """RFC 1870: the limit is the largest size that is taken."""
    dialog = ready("250-mx", "250 SIZE 1000")
    dialog.client.begin(transaction(size=1000))
    assert dialog.heard() == ["MAIL FROM:<a@example.net> SIZE=1000"]


def test_needs_seven_bit() -> None:
    """The caller can ask before, and convert: by the envelope's word, or by a short content's octets."""
    eight = [transaction(body=BodyType.EIGHT_BIT), transaction(content="ü\r\n".encode())]
    assert all(ready("250 mx").client.needs_seven_bit(each) for each in eight)
    assert not any(ready(*PIPELINING).client.needs_seven_bit(each) for each in eight)
    assert not ready("250 mx").client.needs_seven_bit(transaction())


def test_seven_bits_do_not_help_internationalized_mail() -> None:
    """A host without SMTPUTF8 gets no converted one: the caller hears 5.6.7 instead of 5.6.3."""
    for each in (transaction(smtputf8=True, content=UTF8_HEADER), transaction("jürgen@example.com", content=UTF8_BODY)):
        assert not ready("250 mx").client.needs_seven_bit(each)
    assert ready("250 mx").client.needs_seven_bit(transaction(smtputf8=True, content=UTF8_BODY))


def test_a_declaration_that_nothing_needs() -> None:
    """SMTPUTF8 declared, addresses and header ASCII: goes out plainly to a host without it."""
    dialog = ready("250-mx", "250 8BITMIME")
    dialog.client.begin(transaction(smtputf8=True, content=UTF8_BODY))
    assert dialog.heard() == ["MAIL FROM:<a@example.net> BODY=8BITMIME"]


# DSN

WISHES = Envelope(
    address("a@example.net"),
    (address("b@example.com"), address("c@example.com"), address("d@example.com"), address("e@example.com")),
    ret=Ret.HEADERS,
    envelope_id="QQ+2B1",
    requests={
        "b@example.com": NotifyRequest(frozenset({Notify.FAILURE, Notify.SUCCESS}), "rfc822;Bob+2Btag@example.org"),
        "c@example.com": NotifyRequest(frozenset()),
        "d@example.com": NotifyRequest(None, "utf-8;dörte@example.org"),
    },
)
WITH_DSN = ("250-mx.example.com", "250-PIPELINING", "250-SIZE", "250 DSN")


def test_wishes_are_passed_on() -> None:
    """RFC 3461 5.2.1: as they were given, each to whom it concerns; ORCPT in the form that any host may get (RFC 6533 3). What
    comes back says that the host will tell of success."""
    dialog = ready(*WITH_DSN)
    dialog.client.begin(Transaction(WISHES, CONTENT, len(CONTENT)))
    assert dialog.heard() == [
        "MAIL FROM:<a@example.net> SIZE=24 RET=HDRS ENVID=QQ+2B1",
        "RCPT TO:<b@example.com> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Bob+2Btag@example.org",
        "RCPT TO:<c@example.com> NOTIFY=NEVER",
        "RCPT TO:<d@example.com> ORCPT=utf-8;d\\x{F6}rte@example.org",
        "RCPT TO:<e@example.com>",
        "DATA",
    ]
    dialog.says("250 ok", *["250 ok"] * 4, "354 go")
    dialog.says("250 2.0.0 ok")
    assert dialog.outcomes() == (Delivered(Reply(250, "2.0.0", ("ok",)), HOST, dsn=True),) * 4


def test_wishes_stay_here_without_dsn() -> None:
    """A host that does not offer DSN gets plain commands, and no duty."""
    dialog = ready(*PIPELINING)
    dialog.client.begin(Transaction(WISHES, CONTENT, len(CONTENT)))
    assert [line for line in dialog.heard() if "=" in line] == ["MAIL FROM:<a@example.net> SIZE=24"]
    dialog.says("250 ok", *["250 ok"] * 4, "354 go")
    dialog.says("250 2.0.0 ok")
    assert not any(isinstance(each, Delivered) and each.dsn for each in dialog.outcomes())


def test_a_wish_with_a_line_break() -> None:
    """It would be a command of somebody else, like an address with one."""
    requests = {"b@example.com": NotifyRequest(None, "rfc822;x\r\nRCPT TO:<evil@example.com>")}
    for wished in (
        Envelope(WISHES.reverse_path, WISHES.recipients, requests=requests),
        evolve(WISHES, envelope_id="x\n"),
    ):
        dialog = ready(*WITH_DSN)
        dialog.client.begin(Transaction(wished, CONTENT, len(CONTENT)))
        assert dialog.heard() == []
        assert all(isinstance(each, Failed) and each.reply.enhanced == "5.1.3" for each in dialog.outcomes())


def test_begin_in_the_wrong_state_is_the_callers_error() -> None:
    """Two transactions at once would mix their replies."""
    dialog = ready(*PIPELINING)
    dialog.client.begin(transaction())
    with pytest.raises(RuntimeError):
        dialog.client.begin(transaction())


def test_many_transactions_in_one_session() -> None:
    """A session carries message after message."""
    dialog = ready(*PIPELINING)
    for number in range(50):
        dialog.client.begin(transaction())
        dialog.says("250 ok", "250 ok", "354 go")
        dialog.heard()
        dialog.says(f"250 2.0.0 queued as {number}")
        (outcome,) = dialog.outcomes()
        assert outcome == Delivered(Reply.of(250, "2.0.0", f"queued as {number}"), HOST)
