"""What we relay arrives at Debian's Postfix, Exim and OpenSMTPD as it was sent, and what they answer is understood."""

from __future__ import annotations

import email
import re
import smtplib
from collections.abc import Iterator, Sequence
from email.message import Message

import pytest
from attrs import frozen

from tests.scenarios.test_real_messages import made_messages, real_messages
from tests.support.next_hops import DEFERRAL, DEFERRED, DOMAINS, HOME, HOPS, SIZE_LIMIT, USERS, Kept, NextHop
from tests.support.nodes import Cluster, Node, smarthost
from tests.support.processes import Processes, wait_until
from tests.support.redis_server import RedisServer
from tests.support.sink import Received, Sink

CLEAR, SECURED = DOMAINS
SENDER = f"sender@{HOME}"
LETTER = b"From: sender@back.test\r\nSubject: next hop\r\n\r\nthe body of it\r\n"


@frozen
class Stage:
    """A node whose mail for two domains goes to one server, in clear and with opportunistic TLS; all other mail goes home."""

    node: Node
    hop: NextHop
    home: Sink

    def send(
        self, recipients: Sequence[str], content: bytes = LETTER, parameters: Sequence[str] = (), wishes: str = ""
    ) -> str:
        """One message through the node; its queue id."""
        with smtplib.SMTP(self.node.smtp_host, self.node.smtp_port, timeout=120) as client:
            client.ehlo("client.test")
            options = [*parameters, *([] if content.isascii() else ["BODY=8BITMIME"])]
            assert client.mail(SENDER, options)[0] == 250
            for recipient in recipients:
                assert client.rcpt(recipient, [wishes] if wishes else [])[0] == 250
            # Not client.data(): it would mend line ends.
            assert client.docmd("DATA")[0] == 354
            client.send((b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n")
            code, text = client.getreply()
        assert code == 250, text
        return text.decode().split()[-1]

    def events(self, name: str, queue_id: str, count: int = 1) -> list[dict[str, object]]:
        """The node's events of this kind about a message, when there are so many."""

        def found() -> list[dict[str, object]]:
            return [event for event in self.node.events_named(name) if str(event["item"]).partition("-")[0] == queue_id]

        wait_until(lambda: len(found()) >= count, f"{count} × {name}", 60, watched=[self.node.process])
        return found()

    def notice(self, about: str) -> tuple[Received, Message]:
        """The report that came home and speaks of this recipient; its group about it."""

        def found() -> list[tuple[Received, Message]]:
            reports = []
            for received in self.home.messages():
                for part in email.message_from_bytes(received.content).walk():
                    if part.get_content_type() == "message/delivery-status":
                        groups = [group for group in part.get_payload() if isinstance(group, Message)]
                        reports += [(received, each) for each in groups if about in each.get("Final-Recipient", "")]
            return reports

        wait_until(found, f"a notice about {about}", 60, watched=[self.node.process, self.hop.process])
        (only,) = found()
        return only


@pytest.fixture(scope="module", params=HOPS)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """One server with all that goes with it, for all of its tests."""
    processes = Processes()
    try:
        home = Sink(processes, keep=True).start()
        hop = HOPS[request.param](processes, home.endpoints[0]).start()
        redis = RedisServer(processes).start()
        destinations = [
            {"match": [CLEAR], "hosts": [hop.endpoint], "tls": "none", "connections": 4},
            {"match": [SECURED], "hosts": [hop.endpoint], "tls": "may", "connections": 4},
            smarthost(home.endpoints, tls="none"),
        ]
        node = Cluster(processes, redis, {"destination": destinations, "delivery": {"retry": ["1s", "1s", "1h"]}}).node(
            "node"
        )
        node.start()
        yield Stage(node, hop, home)
        errors = node.events_named("error")
        assert not errors, errors[:3]
    except BaseException:
        print(processes.tails())
        raise
    finally:
        processes.close()


def difference(kept: Kept, content: bytes) -> str:
    """The first place, from the end, where they are not the same."""
    same = 0
    while same < min(len(content), len(kept.content)) and kept.content[-1 - same] == content[-1 - same]:
        same += 1
    around = slice(-same - 200, len(content) - same + 100)
    return f"{kept.user}: {same} octets from the end: {kept.content[around]!r} is not {content[-same - 200 : len(content) - same + 100]!r}"


def in_front(kept: Kept, content: bytes) -> Message:
    """The header fields in front of what was sent, which must stand behind them octet for octet."""
    assert kept.content.endswith(content), difference(kept, content)
    return email.message_from_bytes(kept.content[: len(kept.content) - len(content)] + b"\r\n")


def check(stage: Stage, kept: Kept, content: bytes, queue_id: str, *, tls: bool) -> None:
    """It is what was sent, behind the server's fields and ours and no others, and it came by TLS or not."""
    fields = in_front(kept, content)
    # Date: and Message-ID: are added to a submission that lacks them.
    assert set(fields.keys()) <= {*stage.hop.own_fields, "Received", "Date", "Message-ID"}, fields.keys()
    theirs, ours = fields.get_all("Received", [])
    assert f" id {queue_id}" in re.sub(r"\s+", " ", ours)
    protocol = re.search(r" with (?:e?smtps?\w*)", re.sub(r"\s+", " ", theirs), re.IGNORECASE)
    assert protocol is not None, theirs
    assert protocol[0].lower().endswith("s") == tls, theirs


HEAD = b"From: sender@back.test\r\nDate: Mon, 02 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@back.test>\r\n"


def contents() -> dict[str, bytes]:
    """CPython's messages and made ones, but not those that some server mends in its own way: a beginning that is no header field, an
    address without a domain, NUL."""
    found = {
        name: content
        for name, content in {**real_messages(), **made_messages()}.items()
        if all(b":" in field for field in header_fields(content))
        and not any(re.match(rb"(?i)(from|to|cc):[^@]*$", field) for field in header_fields(content))
        and b"\0" not in content
    }
    noise = made_messages()["1 MB"].replace(b"\0", b"0")
    return found | {
        "1 MB": noise,
        "complete": HEAD + b"Subject: folded\r\n\t and\r\n  spaced  \r\n\r\nbody\r\n",
        "no body": HEAD + b"\r\n",
        "blank lines": HEAD + b"\r\n\r\n\r\n\r\n",
        "dots in front": HEAD + b"\r\n.\r\n..\r\n...\r\n.a\r\n" + b".\r\n" * 3000,
        "long lines": HEAD + b"\r\n" + b"".join(b"." + b"x" * length + b"\r\n" for length in (996, 997, 510, 1)),
        "8-bit": HEAD + "Subject: Grüße\r\n\r\n日本\r\n.ζεστό\r\n".encode() + bytes(range(128, 256)) + b"\r\n",
        "white ends": HEAD + b"\r\ntrailing blanks  \t \r\n \r\n\t\r\n",
    }


def header_fields(content: bytes) -> list[bytes]:
    """The header's fields, folded as they are; a header that is empty is one field that is none."""
    return re.split(rb"\r\n(?![ \t])", content.partition(b"\r\n\r\n")[0].removesuffix(b"\r\n"))


@pytest.mark.parametrize("domain", DOMAINS)
def test_all_kinds_of_content(stage: Stage, domain: str) -> None:
    """CPython's messages, dots, 8-bit, long lines, 1 MB, no body: what each server keeps is what was sent, once, in clear and by TLS."""
    messages = list(contents().items())
    assert 40 < len(messages) <= len(USERS)
    before = len(stage.hop.kept())
    known = {kept.path for kept in stage.hop.kept()}
    queue_ids = [stage.send([f"{user}@{domain}"], content) for user, (_, content) in zip(USERS, messages, strict=False)]
    stage.hop.wait_for(before + len(messages))
    fresh = [kept for kept in stage.hop.kept() if kept.path not in known]
    assert sorted(kept.user for kept in fresh) == sorted(USERS[: len(messages)])
    for kept in fresh:
        number = USERS.index(kept.user)
        check(stage, kept, messages[number][1], queue_ids[number], tls=domain == SECURED and stage.hop.tls_works)


def test_many_recipients(stage: Stage) -> None:
    """One message to a hundred people: each has it once, and it was one transaction."""
    known = {kept.path for kept in stage.hop.kept()}
    queue_id = stage.send([f"{user}@{SECURED}" for user in USERS])
    stage.hop.wait_for(len(known) + len(USERS))
    fresh = [kept for kept in stage.hop.kept() if kept.path not in known]
    assert sorted(kept.user for kept in fresh) == sorted(USERS)
    for kept in fresh:
        check(stage, kept, LETTER, queue_id, tls=stage.hop.tls_works)
    (delivered,) = stage.events("delivered", queue_id)
    assert delivered["attempts"] == 1
    assert len({in_front(kept, LETTER).get_all("Received", [])[0] for kept in fresh}) == 1


def test_refusals_are_understood(stage: Stage) -> None:
    """Of three recipients one has the message, one is unknown and bounces with the server's words, one is asked to come later and waits."""
    known = {kept.path for kept in stage.hop.kept()}
    content = HEAD + b"Subject: three\r\n\r\nx\r\n"
    queue_id = stage.send([f"u7@{SECURED}", f"nobody@{SECURED}", f"{DEFERRED}@{SECURED}"], content)

    (failed,) = stage.events("failed", queue_id)
    assert failed["stage"] == "rcpt"
    assert stage.hop.refusal in str(failed["reply"])
    assert failed["bounce_class"] == "bad-mailbox"
    received, about = stage.notice(f"nobody@{SECURED}")
    assert received.reverse_path == ""
    assert received.recipients == [SENDER]
    assert about["Action"] == "failed"
    assert about["Status"].startswith("5.")
    assert stage.hop.refusal in re.sub(r"\s+", " ", about["Diagnostic-Code"])
    assert stage.hop.host in about["Remote-MTA"] or stage.hop.name in about["Remote-MTA"]

    for event in stage.events("deferred", queue_id, 2)[:2]:
        assert event["stage"] == "rcpt"
        assert DEFERRAL.partition(" ")[2] in str(event["reply"])
    # Who has it is not sent it again with those that wait.
    fresh = [kept for kept in stage.hop.wait_for(len(known) + 1) if kept.path not in known]
    assert [kept.user for kept in fresh] == ["u7"]
    check(stage, fresh[0], content, queue_id, tls=stage.hop.tls_works)


def test_too_large(stage: Stage) -> None:
    """A message above the limit that the server announces is returned, and a smaller one behind it goes through."""
    line = b"y" * 76 + b"\r\n"
    queue_id = stage.send([f"u8@{CLEAR}"], HEAD + b"\r\n" + line * (SIZE_LIMIT // len(line) + 1))
    (failed,) = stage.events("failed", queue_id)
    assert failed["stage"] == "mail"
    assert str(SIZE_LIMIT) in str(failed["reply"])
    _, about = stage.notice(f"u8@{CLEAR}")
    assert about["Status"] == "5.3.4"
    stage.events("delivered", stage.send([f"u9@{CLEAR}"]))


def test_success_is_told_by_the_next_hop(stage: Stage) -> None:
    """All three offer DSN: what the sender asked for is passed on, and the notice of success is the server's, not ours."""
    recipient = f"u99@{CLEAR}"
    stage.send(
        [recipient], LETTER, ["RET=HDRS", "ENVID=QQ314159"], "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;first@origin.test"
    )
    received, about = stage.notice(recipient)
    assert about["Action"] == "delivered"
    assert f"{stage.hop.name}.test".encode() in received.content.lower()
    assert b"relay.test" not in received.content.partition(b"message/delivery-status")[2].partition(b"\r\n--")[0]
    if stage.hop.quotes_wishes:
        assert about["Original-Recipient"].replace(" ", "") == "rfc822;first@origin.test"
        assert b"QQ314159" in received.content
