"""The contract of limits: rates and connections over the whole cluster, for the memory store and every real Redis."""

from __future__ import annotations

from typing import Any

from tests.contract.backends import over_all_backends
from tests.contract.test_queue import snapshot

NS = 1_000_000_000


class ThrottleContract:
    backend: Any
    assertEqual: Any
    assertTrue: Any

    async def take(self, interval_ns: int, burst: int, wanted: int) -> Any:
        return await self.backend.throttle.take("example.com", interval_ns, burst, wanted)

    async def test_a_grant_reaches_one_horizon_ahead(self) -> None:
        """At 50/s a grant holds the slots of the next 100 ms, 20 ms apart, however many are wanted; then: ask again."""
        slots, retry = await self.take(NS // 50, 1, 100)
        self.assertEqual(list(slots), [0, 20_000, 40_000, 60_000, 80_000, 100_000])
        self.assertTrue(60_000 <= retry <= 70_000)
        slots, retry = await self.take(NS // 50, 1, 1)
        self.assertEqual(list(slots), [])
        self.assertTrue(50_000 < retry <= 70_000)

    async def test_a_low_rate_gives_one_slot_at_a_time(self) -> None:
        """At one a minute: one slot now, and the time of the next."""
        slots, retry = await self.take(60 * NS, 1, 5)
        self.assertEqual(list(slots), [0])
        slots, retry = await self.take(60 * NS, 1, 5)
        self.assertEqual(list(slots), [])
        self.assertTrue(59_000_000 < retry <= 60_000_000)

    async def test_burst(self) -> None:
        """A burst of 3 after idleness, and then the rate."""
        slots, _ = await self.take(60 * NS, 3, 5)
        self.assertEqual(list(slots), [0, 0, 0])

    async def spend(self, interval_ns: int, burst: int, wanted: int, limit: str = "user alice messages") -> int:
        wait_us: int = await self.backend.throttle.spend(limit, interval_ns, burst, wanted)
        return wait_us

    async def test_an_allowance_is_all_or_nothing(self) -> None:
        """10 an hour with a burst of 10: four and six go, the eleventh has to wait for the first to come back, and trying takes
        nothing; somebody else's allowance is untouched."""
        each = 360 * NS
        self.assertEqual([await self.spend(each, 10, 4), await self.spend(each, 10, 6)], [0, 0])
        for wanted in (1, 3, 1, 3):
            wait_us = await self.spend(each, 10, wanted)
            self.assertTrue(0 <= wanted * 360_000_000 - wait_us < 20_000_000, wait_us)
        self.assertEqual(await self.spend(each, 10, 10, "user bob messages"), 0)

    async def test_more_than_the_burst_takes_the_burst(self) -> None:
        """A message to 50 with an allowance of 5 at once is not refused for ever: it takes all five."""
        self.assertEqual(await self.spend(60 * NS, 5, 50), 0)
        wait_us = await self.spend(60 * NS, 5, 50)
        self.assertTrue(290_000_000 < wait_us <= 300_000_000, wait_us)

    async def test_a_tightened_allowance_is_not_shut_for_long(self) -> None:
        """What was spent under a slow rate is brought into the bounds of the new one, and stays there."""
        self.assertEqual(await self.spend(86_400 * NS, 10, 10), 0)
        for _ in range(2):
            wait_us = await self.spend(60 * NS, 1, 1)
            self.assertTrue(40_000_000 < wait_us <= 60_000_000, wait_us)

    async def test_connections_are_leases(self) -> None:
        """Nobody gets more than the others leave; what the dead held is free; saying it twice changes nothing."""
        everybody = snapshot(1, 2, 3)

        async def hold(who: int, wanted: int, view: Any = everybody) -> int:
            granted: int = await self.backend.throttle.hold("example.com", who, wanted, 5, view)
            return granted

        self.assertEqual([await hold(1, 3), await hold(1, 3), await hold(2, 3)], [3, 3, 2])
        self.assertEqual([await hold(3, 1), await hold(1, 2), await hold(3, 1)], [0, 2, 1])
        self.assertEqual(await hold(3, 5, snapshot(2, 3)), 3)
        self.assertEqual(await hold(2, 0), 0)
        self.assertEqual(await hold(3, 5, snapshot(2, 3)), 5)

    async def test_who_wishes_for_more_gets_a_share(self) -> None:
        """One node holds all five: it may keep them while nobody wishes. Another got none: the first should keep two, so that
        the other may have three. It has what it wants now: nobody wishes any more. The wishes of the dead do not count. Of one
        connection for two each keeps none: they take turns."""
        everybody = snapshot(1, 2)

        async def hold(who: int, wanted: int) -> int:
            granted: int = await self.backend.throttle.hold("example.com", who, wanted, 5, everybody)
            return granted

        async def share(who: int, view: Any = everybody, maximum: int = 5) -> int:
            found: int = await self.backend.throttle.share("example.com", who, maximum, view)
            return found

        await hold(1, 5)
        self.assertEqual(await share(1), 5)
        self.assertEqual(await hold(2, 2), 0)
        self.assertEqual([await share(1), await share(2)], [2, 5])
        self.assertEqual(await share(1, maximum=1), 0)
        self.assertEqual(await share(1, snapshot(1)), 5)
        self.assertEqual([await hold(1, 3), await hold(2, 2), await share(1)], [3, 2, 5])

    async def test_limits_work_when_the_store_is_full(self) -> None:
        """Delivery needs tokens and connections, and delivery is what frees a full store."""
        await self.backend.fill()
        slots, _ = await self.take(NS // 50, 1, 1)
        self.assertEqual(list(slots), [0])
        self.assertEqual(await self.spend(NS, 2, 1), 0)
        self.assertEqual(await self.backend.throttle.hold("example.com", 1, 2, 5, snapshot(1)), 2)
        self.assertEqual(await self.backend.throttle.hold("example.com", 1, 9, 5, snapshot(1)), 5)
        await self.backend.empty()


over_all_backends(ThrottleContract, globals())
