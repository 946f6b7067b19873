"""Lanes and places: whoever needs one gets its turn, and whoever only holds one gives way."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from relaycluster.node.crowd import Crowd
from tests.node.lanes import Node


class Somebody:
    """Who stands in line."""

    def __init__(self, told: list[str], name: str, needs: int = 1) -> None:
        self.wants_turn = needs > 0
        self._told, self._name = told, name

    def take_turn(self) -> None:
        self._told.append(self._name)


class CrowdTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.crowd = Crowd(lambda _limit: 1)
        self.told: list[str] = []

    def test_in_turn(self) -> None:
        """First come, first served; whoever is to be first, is."""
        for name in ("a", "b"):
            self.assertTrue(self.crowd.wait("x", Somebody(self.told, name)))
        self.crowd.wait("x", Somebody(self.told, "c"), first=True)
        for _ in range(4):
            self.crowd.freed("x")
        self.assertEqual(self.told, ["c", "a", "b"])
        self.assertFalse(self.crowd.waits("x"))

    def test_a_turn_is_not_lost(self) -> None:
        """What some waited for is gone meanwhile, another way: the first that still needs a connection gets the turn."""
        for name, needs in (("done", 0), ("gone", 0), ("needy", 1), ("next", 1)):
            self.crowd.wait("x", Somebody(self.told, name, needs))
        self.crowd.freed("x")
        self.assertEqual(self.told, ["needy"])
        self.assertTrue(self.crowd.waits("x"))
        self.crowd.freed("x")
        self.crowd.wait("x", Somebody(self.told, "done", 0))
        self.crowd.freed("x")
        self.assertEqual(self.told, ["needy", "next"])
        self.assertFalse(self.crowd.waits("x"))

    def test_nothing_could_become_free(self) -> None:
        """Without a connection of the limit in this process there is nothing to wait for."""
        self.assertFalse(Crowd(lambda _limit: 0).wait("x", Somebody(self.told, "a")))


class PlacesTest(SynchronousTestCase):
    def test_hosts_that_take_connections_and_no_mail(self) -> None:
        """They greet, and never answer MAIL. They do not use up the places of those who wait."""
        node = Node([f"d{n}.example" for n in range(9)])
        node.pool._most = 8
        node.at_once = node.connection
        for lane in node.lanes:
            node.queue(2, lane.domain)
            lane.wake()
        self.assertTrue(node.pool.counts.waiting)
        node.world.advance(60)
        tried = {transaction.envelope.recipients[0].domain for each in node.made for transaction, _, _ in each.sent}
        self.assertEqual(tried, {lane.domain for lane in node.lanes})
