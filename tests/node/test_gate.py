"""The gate: each reason refuses as it must, and each is named."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from relaycluster.node.gate import Gate


class GateTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.redis, self.valid, self.full = "", True, False
        self.gate = Gate(lambda: self.redis, lambda: self.valid, lambda: self.full)
        self.gate.started = True

    def test_open(self) -> None:
        """Nothing in the way: mail is taken, and the node is ready."""
        self.assertEqual((self.gate.refusal(), self.gate.reasons()), (None, []))

    def test_redis(self) -> None:
        """Without Redis: 451, also when the queue was full before; the reason stands in one line."""
        self.redis, self.full = "connection refused", True
        refusal = self.gate.refusal()
        assert refusal is not None
        self.assertEqual((refusal.code, refusal.enhanced), (451, "4.3.0"))
        self.assertIn("redis: connection refused", self.gate.reasons())

    def test_full(self) -> None:
        """Above the watermark: 452 4.3.1."""
        self.full = True
        refusal = self.gate.refusal()
        assert refusal is not None
        self.assertEqual((refusal.code, refusal.enhanced), (452, "4.3.1"))
        self.assertEqual(len(self.gate.reasons()), 1)

    def test_not_ready_but_mail_is_taken(self) -> None:
        """A lease in doubt, a start, a drain: a balancer goes elsewhere, sessions that are here go on."""
        self.valid = False
        self.gate.draining, self.gate.started = True, False
        self.assertEqual(self.gate.refusal(), None)
        self.assertEqual(
            [reason.split(":")[0] for reason in self.gate.reasons()], ["draining", "starting", "membership"]
        )
