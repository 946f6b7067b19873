"""What the outcomes of a transaction mean for its recipients."""

from __future__ import annotations

import pytest

from relaycluster.mail.address import Address
from relaycluster.mail.envelope import Envelope
from relaycluster.mail.outcome import Deferred, Delivered, Failed, Outcome, Stage
from relaycluster.mail.reply import Reply
from relaycluster.node.verdicts import for_next_host
from relaycluster.policy.pace import SlowDown
from relaycluster.policy.reply_rules import NO_RULES, ReplyRule, ReplyRules
from relaycluster.policy.text_pattern import TextPattern
from relaycluster.policy.trouble import LocalTrouble, broke_off, judge_local
from relaycluster.smtp.client import ClientConversation
from relaycluster.smtp.client_events import Finished, TLSPolicy, Transaction
from tests.support.replies import heard

BUSY = Deferred(heard("421 4.7.0 too fast"), Stage.MAIL, "mx")
SLOW_DOWN = ReplyRules([ReplyRule("r", TextPattern("too fast"), SlowDown())])


@pytest.mark.parametrize(
    ("each", "gone", "rules", "expected"),
    [
        (Delivered(heard("250 ok"), "mx"), True, NO_RULES, False),
        (Deferred(heard("450 4.2.1 later"), Stage.RCPT, "mx"), False, NO_RULES, False),
        (Deferred(heard("450 4.2.1 later"), Stage.RCPT, "mx"), True, NO_RULES, True),
        (Failed(heard("550 5.1.1 no"), Stage.RCPT, "mx"), True, NO_RULES, False),
        (BUSY, True, NO_RULES, True),
        (BUSY, True, SLOW_DOWN, False),
        (judge_local(Stage.MAIL, LocalTrouble.TOO_LARGE, "mx").outcome, False, NO_RULES, True),
        (Failed(heard("552 5.3.4 too large"), Stage.MAIL, "mx"), False, NO_RULES, False),
        (judge_local(Stage.MAIL, LocalTrouble.CONNECTION_LOST, "mx").outcome, True, NO_RULES, True),
        (judge_local(Stage.FINAL_DOT, LocalTrouble.CONNECTION_LOST, "mx").outcome, True, NO_RULES, False),
        (judge_local(Stage.CONTENT, LocalTrouble.INTERNAL, "mx").outcome, True, NO_RULES, False),
    ],
)
def test_for_next_host(each: Outcome, gone: bool, rules: ReplyRules, expected: bool) -> None:
    """Another host is asked for what was this one's trouble and certainly has not arrived; not for what was ours, since the lease may be
    another's by now."""
    assert for_next_host(each, gone, "a.example", rules) is expected


def test_what_we_broke_off_ourselves() -> None:
    """Held back before the dot, given up, or without content: neither the host nor the network is to blame. A connection that is lost is
    another matter."""

    def outcome(end: str) -> Outcome:
        address = Address("a@a.example", "a.example")
        client = ClientConversation("us.example", "mx", TLSPolicy.NONE)
        client.receive_data(b"220 hi\r\n")
        client.receive_data(b"250 mx\r\n")
        client.begin(Transaction(Envelope(address, (address,)), b"x\r\n", 3, lambda: end != "held back"))
        client.receive_data(b"250 ok\r\n")
        client.receive_data(b"250 ok\r\n")
        if end == "held back":
            client.receive_data(b"354 go\r\n")
        elif end == "lost":
            client.connection_lost("reset")
        else:
            client.give_up(Reply.of(451, "4.3.0", "given up by this node"))
        while not isinstance(event := client.next_event(), Finished):
            assert event is not None
        return event.outcomes[0]

    for end in ("held back", "given up", "lost"):
        each = outcome(end)
        assert broke_off(each) is for_next_host(each, True, "a.example", NO_RULES) is (end == "lost")
