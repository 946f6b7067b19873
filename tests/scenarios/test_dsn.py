"""What a sender asked to be told, and mail that is not in ASCII: passed on where the next hop can, dealt with here where it cannot."""

from __future__ import annotations

import email
import smtplib
from collections.abc import Iterator, Sequence
from email.message import Message

import pytest
from attrs import frozen

from tests.support.nodes import Cluster, Node, smarthost
from tests.support.processes import Processes, wait_until
from tests.support.redis_server import RedisServer
from tests.support.sink import EXTENSIONS, Received, Rule, Sink

SENDER = "sender@home.test"
CONTENT = b"From: sender@home.test\r\nSubject: asked\r\n\r\nthe body of it\r\n"


@frozen
class Places:
    """Where mail goes: a host that offers DSN and SMTPUTF8, one that offers neither, and the sender's own."""

    node: Node
    modern: Sink
    old: Sink
    home: Sink

    def send(
        self,
        recipients: dict[str, str],
        content: bytes = CONTENT,
        parameters: Sequence[str] = (),
        sender: str = SENDER,
    ) -> str:
        """A message to these recipients with their parameters of RCPT; the queue id."""
        with smtplib.SMTP(self.node.smtp_host, self.node.smtp_port, timeout=30) as client:
            client.ehlo("client.test")
            assert {"dsn", "smtputf8", "8bitmime"} <= client.esmtp_features.keys()
            client.command_encoding = "utf-8"
            code, text = client.docmd("MAIL", f"FROM:<{sender}> {' '.join(parameters)}".rstrip())
            assert code == 250, text
            for recipient, wishes in recipients.items():
                code, text = client.docmd("RCPT", f"TO:<{recipient}> {wishes}".rstrip())
                assert code == 250, text
            code, text = client.data(content)
        assert code == 250, text
        return text.decode().split()[-1]

    def notice(self, number: int = 1) -> tuple[Received, Message, list[Message]]:
        """The newest of so many notices that reached the sender: as received, its status blocks."""
        received = self.home.wait_for(number, watched=[self.node.process])
        assert len(received) == number
        newest = received[-1]
        assert newest.reverse_path == ""
        # The standard library reads the fields of message/global-delivery-status under the older name only.
        content = newest.content.replace(b"message/global-delivery-status", b"message/delivery-status")
        report = email.message_from_bytes(content)
        status = report.get_payload()[1]
        assert isinstance(status, Message)
        return newest, report, status.get_payload()  # type: ignore[return-value]

    def settled(self) -> None:
        """Nothing is queued any more: what has not been told by now never will be."""
        wait_until(lambda: self.node.metric("queue_items") == 0, "the queue is empty", watched=[self.node.process])


@pytest.fixture
def places(processes: Processes, redis: RedisServer) -> Iterator[Places]:
    modern = Sink(processes, "modern", keep=True, extensions={"*": (*EXTENSIONS, "DSN", "SMTPUTF8")}).start()
    old = Sink(processes, "old", keep=True).start()
    home = Sink(processes, "home", keep=True, extensions={"*": (*EXTENSIONS, "SMTPUTF8")}).start()
    destinations = [
        {"match": ["modern.test"], "hosts": modern.endpoints},
        {"match": ["old.test"], "hosts": old.endpoints},
        smarthost(home.endpoints),
    ]
    cluster = Cluster(processes, redis, {"destination": destinations, "delivery": {"tls": "none", "retry": ["1s"]}})
    node = cluster.node("node").start()
    yield Places(node, modern, old, home)
    assert modern.problems() + old.problems() + home.problems() == []
    errors = [event for event in node.events() if event["event"] == "error"]
    assert not errors, errors[:3]


def test_passed_on_as_it_was_given(places: Places) -> None:
    """A next hop with DSN gets RET, ENVID, NOTIFY and ORCPT to the letter, and success is its to tell."""
    places.send(
        {
            "a@modern.test": "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Alias+2Btag@first.test",
            "b@modern.test": "NOTIFY=NEVER",
            "c@modern.test": "",
        },
        parameters=("RET=HDRS", "ENVID=QQ+3D1"),
    )
    (received,) = places.modern.wait_for(1, watched=[places.node.process])
    assert received.recipients == ["a@modern.test", "b@modern.test", "c@modern.test"]
    assert received.recipient_parameters == [
        "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Alias+2Btag@first.test",
        "NOTIFY=NEVER",
        "",
    ]
    assert received.parameters.endswith("RET=HDRS ENVID=QQ+3D1")
    places.settled()
    assert places.home.messages() == []


def test_never(places: Places) -> None:
    """NOTIFY=NEVER: a failure is in the log, and nowhere else."""
    places.old.rules(Rule("rcpt", reply="550 5.1.1 no such user"))
    queue_id = places.send({"a@old.test": "NOTIFY=NEVER"})
    wait_until(lambda: places.node.events_named("notice_dropped"), "it failed", watched=[places.node.process])
    (dropped,) = places.node.events_named("notice_dropped")
    assert dropped["item"] == queue_id
    places.settled()
    assert places.home.messages() == []


def test_success_through_a_host_without_dsn(places: Places) -> None:
    """It was relayed, says one notice, with the sender's own names for envelope and recipient; who did not ask is not in it."""
    queue_id = places.send(
        {"a@old.test": "NOTIFY=SUCCESS ORCPT=rfc822;first@home.test", "b@old.test": "NOTIFY=FAILURE", "c@old.test": ""},
        parameters=("RET=FULL", "ENVID=QQ314159"),
    )
    (received,) = places.old.wait_for(1, watched=[places.node.process])
    assert received.recipient_parameters == ["", "", ""]
    _, report, (about, first) = places.notice()
    assert report["Subject"] == "Your message to a@old.test was passed on"
    assert (about["Original-Envelope-Id"], about["X-Relaycluster-Queue-Id"]) == ("QQ314159", queue_id)
    assert (first["Action"], first["Status"]) == ("relayed", "2.0.0")
    assert first["Original-Recipient"] == "rfc822; first@home.test"
    assert first["Final-Recipient"] == "rfc822; a@old.test"
    # RFC 3461 4.3: RET speaks of failures.
    assert b"the body of it" not in places.home.messages()[0].content
    places.settled()
    assert len(places.home.messages()) == 1


@pytest.mark.parametrize(("ret", "whole"), [("RET=FULL", True), ("RET=HDRS", False), ("", False)])
def test_how_much_comes_back(places: Places, ret: str, whole: bool) -> None:
    """RET decides whether a failure brings the message back or its header."""
    places.old.rules(Rule("rcpt", reply="550 5.1.1 no such user"))
    places.send({"a@old.test": "NOTIFY=FAILURE"}, parameters=(ret,))
    received, report, (_, first) = places.notice()
    assert first["Action"] == "failed"
    third = report.get_payload()[2]
    assert isinstance(third, Message)
    assert third.get_content_type() == ("message/rfc822" if whole else "text/rfc822-headers")
    assert (b"the body of it" in received.content) is whole
    assert b"Subject: asked" in received.content


UTF8_CONTENT = "From: sender@home.test\r\nSubject: Grüße\r\n\r\nüber\r\n".encode()
MAILBOX = "dörte@old.test"


def test_smtputf8_to_a_host_that_offers_it(places: Places) -> None:
    """Address and header arrive as they were sent, and the transaction says so."""
    places.send({"dörte@modern.test": ""}, UTF8_CONTENT, ("SMTPUTF8", "BODY=8BITMIME"), sender="jürgen@home.test")
    (received,) = places.modern.wait_for(1, watched=[places.node.process])
    assert (received.reverse_path, received.recipients) == ("jürgen@home.test", ["dörte@modern.test"])
    assert {"SMTPUTF8", "BODY=8BITMIME"} <= set(received.parameters.split())
    assert received.content.endswith(UTF8_CONTENT)


@pytest.mark.parametrize("recipient", [MAILBOX, "plain@old.test"])
def test_smtputf8_to_a_host_without_it(places: Places, recipient: str) -> None:
    """By the address or by the header alone: nothing is sent there, and the sender gets 5.6.7 in a notice of RFC 6533."""
    places.send({recipient: ""}, UTF8_CONTENT, ("SMTPUTF8", "BODY=8BITMIME"))
    received, report, (_, first) = places.notice()
    assert (first["Action"], first["Status"]) == ("failed", "5.6.7")
    assert first["Diagnostic-Code"].startswith("X-Relaycluster; 553 5.6.7")
    kind = "rfc822" if recipient.isascii() else "utf-8"
    assert f"\r\nFinal-Recipient: {kind}; {recipient}\r\n".encode() in received.content
    assert b"report-type=global-delivery-status" in received.content
    assert b"\r\nContent-Type: message/global-headers\r\n" in received.content
    assert "\r\nSubject: Grüße\r\n".encode() in received.content
    assert "SMTPUTF8" in received.parameters.split()
    assert report["Subject"].startswith("Your message")
    places.settled()
    assert places.old.messages() == []


def test_a_notice_to_a_sender_who_is_not_in_ascii(places: Places) -> None:
    """His address stands in it as it is, and it goes out with SMTPUTF8."""
    places.old.rules(Rule("rcpt", reply="550 5.1.1 no such user"))
    places.send({"a@old.test": ""}, CONTENT, ("SMTPUTF8",), sender="jürgen@home.test")
    wait_until(lambda: places.node.events_named("failed"), "it failed", watched=[places.node.process])
    received, _, (_, first) = places.notice()
    assert first["Status"] == "5.6.7"  # such a sender cannot be told to a host without SMTPUTF8
    assert received.recipients == ["jürgen@home.test"]
    assert "SMTPUTF8" in received.parameters.split()
    assert "\r\nTo: <jürgen@home.test>\r\n".encode() in received.content


def test_a_declaration_that_nothing_needs(places: Places) -> None:
    """SMTPUTF8 for a message that is plain: it goes where SMTPUTF8 is not known."""
    places.send({"a@old.test": ""}, CONTENT, ("SMTPUTF8",))
    (received,) = places.old.wait_for(1, watched=[places.node.process])
    assert received.content.endswith(CONTENT)


def test_plain_recipients_beside_one_that_is_not(places: Places) -> None:
    """The host without SMTPUTF8 gets it for those whom it can serve; the sender hears of the other."""
    places.send({MAILBOX: "", "a@old.test": "", "b@old.test": ""}, CONTENT, ("SMTPUTF8",))
    (received,) = places.old.wait_for(1, watched=[places.node.process])
    assert received.recipients == ["a@old.test", "b@old.test"]
    _, _, (_, *blocks) = places.notice()
    assert [block["Status"] for block in blocks] == ["5.6.7"]
