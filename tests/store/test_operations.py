"""The history of many partitions, kept within its memory."""

from __future__ import annotations

from relaycluster.store.redis import keys
from relaycluster.store.redis.operations import OLDEST_AT_ONCE
from tests.contract.backends import PARTITIONS, ContractTestCase

OCTETS = 5120
SIZE = keys.trace_octets(OCTETS)


class TrimTest(ContractTestCase):
    major = 6
    timeout = 60

    async def put(self, partition: int, times: range) -> None:
        """A key of history for each of these times."""
        tag = keys.partition_tag(partition)
        commands = []
        for at in times:
            name = b"%07d" % at
            commands += [("SET", keys.key(tag, "TRACE", name), b"x" * OCTETS)]
            commands += [("ZADD", keys.key(tag, "TRACES"), at, name)]
        commands += [("HINCRBY", keys.key(tag, "COUNTS"), "trace", len(times) * SIZE)]
        for command in commands:
            await self.backend.redis.request(*command)

    async def left(self) -> list[int]:
        """The times of what is left, in all partitions."""
        found = []
        for partition in range(PARTITIONS):
            tag = keys.partition_tag(partition)
            found += [int(name) for name in await self.backend.redis.request("ZRANGE", keys.key(tag, "TRACES"), 0, -1)]
        self.assertEqual(await self.backend.violations(), [])
        return sorted(found)

    async def trim(self, to: int) -> tuple[int, int]:
        """What left, and in how many steps."""
        ask, steps = self.backend.redis.request_all, 0

        def request_all(commands: list[bytes], operation: str) -> object:
            nonlocal steps
            steps += 1
            return ask(commands, operation)

        self.backend.redis.request_all = request_all
        freed = await self.backend.operations.trim_traces(range(PARTITIONS), to * SIZE + SIZE // 2)
        self.backend.redis.request_all = ask
        return freed // SIZE, steps

    async def test_the_oldest_of_all_partitions(self) -> None:
        """Evenly spread: exactly as many as must, the oldest, in a few steps, however many partitions there are."""
        for partition in range(PARTITIONS):
            await self.put(partition, range(partition, 20 * PARTITIONS, PARTITIONS))
        freed, steps = await self.trim(15 * PARTITIONS)
        self.assertEqual(freed, 5 * PARTITIONS)
        self.assertEqual(await self.left(), list(range(5 * PARTITIONS, 20 * PARTITIONS)))
        self.assertTrue(steps <= 3, steps)

    async def test_one_partition_has_it_all(self) -> None:
        """What is old is in one of them, and far more than is looked at first: younger ones elsewhere stay."""
        old = 60 * OLDEST_AT_ONCE
        await self.put(3, range(old))
        for partition in (0, 7):
            await self.put(partition, range(10_000 + partition, 10_004 + partition))
        freed, steps = await self.trim(8 + 10)
        self.assertEqual(freed, old - 10)
        self.assertEqual((await self.left())[:11], [*range(old - 10, old), 10_000])
        self.assertTrue(steps <= 16, steps)

    async def test_all_of_it(self) -> None:
        """No memory for history: nothing is left, and it ends."""
        await self.put(1, range(3))
        self.assertEqual((await self.backend.operations.trim_traces(range(PARTITIONS), 0)), 3 * SIZE)
        self.assertEqual(await self.left(), [])
        self.assertEqual((await self.backend.operations.trim_traces(range(PARTITIONS), 0)), 0)
