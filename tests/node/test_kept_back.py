"""What a lane does for mail that cannot be sent for now: it waits untouched, what is overdue does not wait, and the operator's word is heard."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from relaycluster.net.outbound import ConnectFailed
from relaycluster.node.operations import Operations
from relaycluster.policy.pause import Why
from relaycluster.policy.suspension import LOOK_AGAIN_MS, Suspension, Suspensions
from relaycluster.store.memory_operator import MemoryOperator
from tests.node.lanes import REFUSED, Node
from tests.node.test_settle import RETRY
from tests.node.world import counting, result


def dead(count: int) -> Node:
    """A node that has found its only destination dead, and parked it, with so many items untouched."""
    node = Node(connections=20)
    node.at_once = lambda target: ConnectFailed(REFUSED)
    node.queue(count + 6)  # each probe takes two
    node.lane.wake()
    node.world.advance(60)
    assert node.lane.opening.reach.window.failures == 3
    return node


def let_wait(node: Node, seconds: float) -> None:
    """Time passes, and the poll finds what is due."""
    for _ in range(int(seconds / 20)):
        node.world.clock.advance(20)
        for domain, due in node.world.partition().index().items():
            if due <= node.world.queue.now_ms() and domain == node.lane.domain:
                node.lane.wake()


class KeptBackTest(SynchronousTestCase):
    def test_a_flush_of_a_dead_destination(self) -> None:
        """Its server is back, and the operator says so: the hosts are probed at once, and everything goes; nothing is put off."""
        node = dead(10)
        operator = MemoryOperator(node.world.cluster, node.world.queue)  # type: ignore[arg-type]
        place = node.world.partition()
        operations = Operations(
            node.world.queue,
            operator,
            node.settlement,
            node.world.log,
            node.owner_of,
            counting(),
            node.taken.append,
            lambda: node.suspensions,
            lambda domain: node.lane.try_now(),
            lambda: 0.5,
        )
        untouched = {item_id for item_id, item in place.items.items() if not item.attempts}
        attempts = {item_id: item.attempts for item_id, item in place.items.items()}
        self.assertEqual(len(untouched), 10)
        result(operator.flush("example.com", "alice", ""))
        node.lane.wake()  # the hint
        result(operations.look_at(node.lane.partition))
        # Still dead: one probe, with the two items that it takes.
        now = {item_id: item.attempts for item_id, item in place.items.items()}
        self.assertEqual(sum(now.values()) - sum(attempts.values()), 2)
        node.at_once = node.connection
        result(operator.flush("example.com", "alice", ""))
        result(operations.look_at(node.lane.partition))
        node.work_off()
        self.assertEqual(place.items, {})

    def test_overdue_for_a_dead_destination(self) -> None:
        """At its time each sender hears of the delay, once, and at the end of the lifetime of the failure; no attempt is counted that was
        not made; in the history stands that nothing was tried, and why."""
        node = dead(40)
        place = node.world.partition()
        untouched = [item_id for item_id, item in place.items.items() if not item.attempts]
        let_wait(node, RETRY.delay_notice_seconds + 300)
        told = [each for each in node.world.events("notice_queued") if each["kind"] == "delayed"]
        self.assertEqual(len({each["item"] for each in told}), len(told))
        self.assertTrue({each["item"] for each in told} >= {each for each in untouched if each in place.items})
        still = [place.items[each] for each in untouched if each in place.items and not place.items[each].attempts]
        self.assertTrue(len(still) > 2)
        self.assertTrue(all(item.delay_notified for item in still))
        self.assertTrue(all(place.waiting[item.id] <= node.world.queue.now_ms() for item in still))
        operator = MemoryOperator(node.world.cluster, node.world.queue)  # type: ignore[arg-type]
        (_, record), *_ = result(operator.trace(still[-1].id))
        self.assertIn("not tried: 451 4.4.1 The host refused", record.reply)
        let_wait(node, RETRY.lifetime_seconds)
        self.assertEqual(place.items, {})
        self.assertEqual(len(node.world.events("expired")), 46)

    def test_overdue_for_a_suspended_destination(self) -> None:
        """A suspension keeps nothing beyond its lifetime, and hides no delay; what is young waits, and is paused under the suspension's name."""
        node = Node(connections=20)
        node.at_once = node.connection
        node.suspensions = Suspensions.build([Suspension("*.com", 0), Suspension("example.com", 0)])
        old = node.queue(120)
        node.lane.wake()
        let_wait(node, RETRY.lifetime_seconds - 300)
        young = node.queue(3)
        place = node.world.partition()
        pause = place.paused["example.com"]
        self.assertEqual((pause.why, pause.detail), (Why.SUSPENDED, "example.com"))
        self.assertEqual(len(node.world.events("notice_queued")), 120)
        self.assertEqual({item.attempts for item in place.items.values()}, {0})
        let_wait(node, 300 + 2 * LOOK_AGAIN_MS / 1000)
        self.assertEqual(set(place.waiting), {item.id for item in young})
        failed = node.world.events("failed")
        self.assertEqual({each["item"] for each in failed}, {item.id for item in old})
        self.assertIn("5.4.7", failed[0]["reply"])
        self.assertIn("suspended at this system", failed[0]["reply"])
        self.assertEqual(node.made, [])

    def test_an_answer_is_lost_while_sorting_out(self) -> None:
        """What was claimed for nobody goes back."""
        node = Node()
        node.suspensions = Suspensions.build([Suspension("example.com", 0)])
        node.queue(3)
        node.world.clock.advance(RETRY.lifetime_seconds + 1)
        node.world.queue.losing = {"claim_overdue"}
        node.lane.wake()
        self.assertEqual((len(node.world.partition().leased), node.taken), (0, []))
        node.world.queue.losing.clear()
        node.world.advance(2)
        self.assertEqual(node.world.partition().items, {})
