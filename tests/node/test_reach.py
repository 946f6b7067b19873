"""What is known of a destination outlives its lanes, as long as it matters."""

from __future__ import annotations

import gc

from relaycluster.mail import outcome
from relaycluster.mail.outcome import Stage
from relaycluster.net.outbound import ConnectFailed
from relaycluster.node.reach import Reaches
from relaycluster.policy.pace import SlowDown
from relaycluster.policy.reply_rules import ReplyRule, ReplyRules
from relaycluster.policy.text_pattern import TextPattern
from relaycluster.policy.window import MOST_PARK_SECONDS
from tests.node.lanes import Node
from tests.support.replies import heard


def test_a_dead_destination_is_remembered() -> None:
    """Its lane goes while it is parked. The next lane of the same name probes with one connection; when nobody had mail for it for long, it
    is forgotten."""
    reaches = Reaches()
    reach = reaches.of("dead.example", 5)
    reach.become(reach.window.refused(0, 0.0, 0.5))
    reaches.of("fine.example", 5)
    reaches.keep(1.0)
    del reach
    gc.collect()
    assert reaches.find("fine.example") is None
    assert reaches.of("dead.example", 5).window.allowed(20.0) == 1
    reaches.keep(20.0 + 2 * MOST_PARK_SECONDS)
    gc.collect()
    assert reaches.find("dead.example") is None


def test_slow_down_in_a_greeting() -> None:
    """The host rests, and is not taken for dead; nor is a domain's own host when all under its limit rest. Afterwards there are half as
    many connections, not a new slow start."""
    for changes in ({}, {"name": "provider"}):
        node = Node(connections=20, **changes)
        node.rules = ReplyRules([ReplyRule("r", TextPattern("slow"), SlowDown())])
        node.targets = node.targets[:1]
        node.queue(60)
        node.lane.wake()
        slow = outcome.Deferred(heard("421 4.7.0 slow down"), Stage.GREETING, "mx1.example")
        while node.attempts:
            node.refused(ConnectFailed(slow))
        assert node.lane.opening.reach.window.failures == 0
        assert node.lane.opening.closed_seconds(node.world.clock.seconds()) > 0
