"""Attacks that worked on other servers, each as a class of its own, at every cut of the octets.

A sender must not be able to end a message early, to make two out of one, or to put words into the mouth of a client whose
TLS begins behind them. The vulnerabilities that showed each class are named where it is tried.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relaycluster.mail.reply import Reply
from relaycluster.smtp.server import ServerConversation
from relaycluster.smtp.server_events import (
    AuthAsked,
    CloseAfterSend,
    ConnectAsked,
    Content,
    ContentEnd,
    DataAsked,
    Event,
    Hello,
    MailAsked,
    RecipientAsked,
    StartTLS,
    Wait,
)
from relaycluster.smtp.server_settings import BareNewline, Dialect, ServerSettings
from relaycluster.smtp.server_states import State
from tests.smtp.test_framing import SMUGGLERS

HELLO = b"EHLO client.example\r\n"
RECIPIENTS = b"MAIL FROM:<honest@client.example>\r\nRCPT TO:<b@example.net>\r\n"
SMUGGLED = b"MAIL FROM:<smuggled@client.example>\r\nRCPT TO:<victim@example.net>\r\nDATA\r\nSecond.\r\n"
QUESTIONS = (ConnectAsked, AuthAsked, MailAsked, RecipientAsked, DataAsked, ContentEnd)
DIALECTS = {
    kind: Dialect(
        ServerSettings("mx.example.org", errors=100, bare_newline=kind, starttls=True, auth=True, auth_without_tls=True)
    )
    for kind in BareNewline
}


class Client:
    """Sends octets; every question is accepted; writes down what a driver would have been told."""

    def __init__(self, bare_newline: BareNewline = BareNewline.REJECT) -> None:
        self.conversation = ServerConversation(DIALECTS[bare_newline])
        self.events: list[Event] = []
        self.sent = b""
        self.say(b"")

    def say(self, *parts: bytes) -> None:
        for part in parts:
            self.conversation.receive_data(part)
            while not isinstance(event := self.conversation.next_event(), Wait):
                self.events.append(event)
                if isinstance(event, QUESTIONS):
                    self.conversation.accept()
            self.sent += self.conversation.data_to_send()

    @property
    def senders(self) -> list[str]:
        return [event.reverse_path.text for event in self.events if isinstance(event, MailAsked)]

    @property
    def messages(self) -> list[bytes]:
        """The content of each message that was accepted."""
        messages, content = [], b""
        for event in self.events:
            if isinstance(event, DataAsked):
                content = b""
            elif isinstance(event, Content):
                content += event.data
            elif isinstance(event, ContentEnd):
                messages.append(content)
        return messages

    @property
    def outcome(self) -> tuple[list[str], list[bytes], bytes, State]:
        return self.senders, self.messages, self.sent, self.conversation.state


def cuts(data: bytes) -> Iterator[tuple[bytes, ...]]:
    """Whole, octet by octet, and cut in two at each place."""
    yield (data,)
    yield tuple(data[at : at + 1] for at in range(len(data)))
    for place in range(1, len(data)):
        yield data[:place], data[place:]


@pytest.mark.parametrize("bare_newline", BareNewline)
@pytest.mark.parametrize("smuggler", SMUGGLERS, ids=repr)
def test_smuggling_through_data(smuggler: bytes, bare_newline: BareNewline) -> None:
    """CVE-2023-51764, CVE-2023-51765, CVE-2023-51766, CVE-2024-27305: a false end of content, of whatever CR, LF, dot and NUL, and a
    second message behind it. It is one message or none, and the second's envelope is never asked about."""
    attack = RECIPIENTS + b"DATA\r\nFirst." + smuggler + SMUGGLED + b".\r\nNOOP\r\n"
    outcomes = []
    for parts in cuts(attack):
        client = Client(bare_newline)
        client.say(HELLO, *parts)
        assert client.senders == ["honest@client.example"]
        assert len(client.messages) <= 1
        assert client.sent.endswith(b"250 2.0.0 Ok\r\n")
        outcomes.append(client.outcome)
        if client.messages:
            assert client.messages[0].replace(b"\r\n", b"").count(b"\r") == 0
            assert b"MAIL FROM:<smuggled@client.example>\r\n" in client.messages[0]
        else:
            assert bare_newline is BareNewline.REJECT
            assert b"554 5.6.0 " in client.sent
    assert all(outcome == outcomes[0] for outcome in outcomes)


@pytest.mark.parametrize("bare_newline", BareNewline)
@pytest.mark.parametrize("smuggler", [*SMUGGLERS[::4], b"\r\n.\r\n", b"\n.\r\n", b"\r\n.\n"], ids=repr)
def test_smuggling_through_chunks(smuggler: bytes, bare_newline: BareNewline) -> None:
    """The same in chunks, where not even the true end of content is one: only the count says where a message ends. The smuggler
    is cut in two chunks at each place, and the stream at each place around it."""
    for place in range(len(smuggler) + 1):
        first, second = b"First." + smuggler[:place], smuggler[place:] + SMUGGLED + b".\r\n"
        attack = b"BDAT %d\r\n%bBDAT %d LAST\r\n%bNOOP\r\n" % (len(first), first, len(second), second)
        outcomes = []
        for parts in cuts(attack):
            client = Client(bare_newline)
            client.say(HELLO + RECIPIENTS, *parts)
            assert client.senders == ["honest@client.example"]
            assert len(client.messages) <= 1
            assert client.sent.endswith(b"250 2.0.0 Ok\r\n")
            outcomes.append(client.outcome)
            if bare_newline is BareNewline.NORMALIZE:
                assert client.messages[0].endswith(b"Second.\r\n.\r\n")
        assert all(outcome == outcomes[0] for outcome in outcomes)
        if smuggler == b"\r\n.\r\n":
            assert outcomes[0][1] == [first + second]


@pytest.mark.parametrize(
    "before", [b"", RECIPIENTS, RECIPIENTS + b"BDAT 3\r\na\nb", RECIPIENTS + b"BDAT 26214401\r\n" + b"x" * 26214401]
)
def test_a_refused_chunk_is_never_read_as_commands(before: bytes) -> None:
    """A chunk that has no place, or whose message is void, is swallowed to its last octet: what it holds stays content."""
    attack = b"BDAT %d LAST\r\n%b" % (len(SMUGGLED), SMUGGLED)
    for parts in list(cuts(attack))[:: 1 if len(before) < 1000 else 40]:
        client = Client()
        client.say(HELLO, before)
        if before == RECIPIENTS:
            client.conversation.refuse_content(Reply.of(451, "4.3.0", "later"))
        already = len(client.senders)
        client.say(*parts, b"NOOP\r\n")
        assert len(client.senders) == already
        assert len(client.messages) <= 1
        assert client.sent.endswith(b"250 2.0.0 Ok\r\n")


@pytest.mark.parametrize(
    "line",
    [
        b"BDAT",
        b"BDAT ",
        b"BDAT x",
        b"BDAT -5 LAST",
        b"BDAT +5",
        b"BDAT 5,LAST",
        b"BDAT 5\n",
        b"BDAT\t5",
        b" BDAT 5",
        b"\tBDAT 5 LAST",
        b"\x0cBDAT 5",
        b"BDAT\x0b5",
        b"BDAT 5\rLAST",
        b"BDAT 5\r ",
        b"bdat 5 LAS",
    ],
)
def test_a_chunk_without_a_known_end_ends_the_session(line: bytes) -> None:
    """Two readers who disagree on the length of a chunk disagree on everything behind it. So nothing behind it is read."""
    for parts in cuts(line + b"\r\n" + SMUGGLED):
        client = Client()
        client.say(HELLO + RECIPIENTS, *parts)
        assert client.senders == ["honest@client.example"]
        assert client.messages == []
        assert isinstance(client.events[-1], CloseAfterSend)
        assert client.conversation.state is State.CLOSED


INJECTIONS = [
    b"EHLO attacker.example\r\n",
    b"EHLO attacker.example\r\n" + SMUGGLED + b".\r\n",
    b"AUTH PLAIN AHVzZXIAc2VjcmV0\r\n",
    b"AUTH PLAIN\r\n",
    b"STARTTLS\r\n",
    b"NOOP",
    b"MAIL FROM:<smuggled@cli",
    b"\r",
    b"x" * 5000,
    b"bare\nline\r",
    b"BDAT 1000\r\n",
    b"BDAT 1000 LAST\r\nabc",
    b"QUIT\r\n",
    b"GET / HTTP/1.1\r\n",
]


@pytest.mark.parametrize("state", ["ready", "authenticated"])
@pytest.mark.parametrize("injected", INJECTIONS, ids=lambda octets: repr(octets[:20]))
def test_injection_before_tls(injected: bytes, state: str) -> None:
    """CVE-2011-0411, CVE-2024-34083: what somebody on the way puts behind STARTTLS, in the same packet or in a later one. It is
    neither done nor answered nor remembered, not even as half a line; the client within TLS is heard from its first octet."""
    within = b"NOOP\r\n" + HELLO + RECIPIENTS + b"DATA\r\nHello.\r\n.\r\n"
    before = HELLO + (b"AUTH PLAIN AHVzZXIAc2VjcmV0\r\n" if state == "authenticated" else b"")
    clear = b"STARTTLS\r\n" + injected
    outcomes = []
    for parts in list(cuts(clear))[:: 1 if len(clear) < 500 else 100]:
        client = Client()
        client.say(before)
        client.events.clear()
        client.sent = b""
        client.say(*parts)
        assert client.events == [StartTLS()]
        assert client.sent == b"220 2.0.0 Ready to start TLS\r\n"
        client.conversation.secured()
        client.say(b"")
        assert client.sent == b"220 2.0.0 Ready to start TLS\r\n"
        client.say(*(within[at : at + 1] for at in range(len(within))))
        assert [event.name for event in client.events if isinstance(event, Hello)] == ["client.example"]
        assert client.senders == ["honest@client.example"]
        assert client.messages == [b"Hello.\r\n"]
        assert not any(isinstance(event, AuthAsked) for event in client.events)
        outcomes.append(client.sent)
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_what_was_said_in_the_clear_is_forgotten() -> None:
    """RFC 3207 section 4.2: neither the client's name, nor who it is, nor a transaction outlasts the beginning of TLS."""
    client = Client()
    client.say(HELLO + b"AUTH PLAIN AHVzZXIAc2VjcmV0\r\n" + RECIPIENTS + b"RSET\r\nSTARTTLS\r\n")
    client.conversation.secured()
    client.sent = b""
    client.say(b"DATA\r\nMAIL FROM:<a@b.example>\r\nAUTH LOGIN\r\n" + HELLO + b"DATA\r\nAUTH LOGIN\r\n")
    codes = [line[:3] for line in client.sent.split(b"\r\n") if line[3:4] == b" "]
    assert codes == [b"503", b"503", b"503", b"250", b"503", b"334"]
    assert b"250 AUTH PLAIN LOGIN\r\n" in client.sent
    assert b"STARTTLS" not in client.sent


def test_half_a_message_is_never_accepted() -> None:
    """A first chunk that was refused, for whatever reason and however passing, takes the whole message with it, though the client
    goes on as if nothing had happened."""
    for answers in (["chunk"], ["data"]):
        client = Client()
        client.say(HELLO + RECIPIENTS)
        conversation = client.conversation
        conversation.receive_data(b"BDAT 5\r\nfirstBDAT 8 LAST\r\nsecond\r\n")
        while not isinstance(event := conversation.next_event(), Wait):
            client.events.append(event)
            if isinstance(event, DataAsked):
                conversation.reject(Reply.of(451, "4.3.0", "later")) if answers == ["data"] else conversation.accept()
            elif isinstance(event, Content):
                conversation.refuse_content(Reply.of(451, "4.3.0", "later"))
        assert sum(isinstance(event, DataAsked) for event in client.events) == 1
        assert client.messages == []
        assert conversation.data_to_send() == b"451 4.3.0 later\r\n" * 2
