"""The contract of failed logins: back-off over the whole cluster, for the memory store and every real Redis."""

from __future__ import annotations

import random
from typing import Any

from relaycluster.interfaces import QueueError
from relaycluster.policy import backoff
from relaycluster.policy.backoff import STEPS, Record, steps_of, subjects
from tests.contract.backends import over_all_backends

HOME = subjects("alice", "192.0.2.1")
PAIR = STEPS["pair"]
DAY_MS = 86_400_000
SLACK_SECONDS = 10.0
"""A real server's clock goes on while the test runs."""


class AttemptsContract:
    backend: Any
    assertEqual: Any
    assertTrue: Any
    assertFalse: Any

    async def wait(self, of: tuple[str, ...] = HOME) -> float:
        seconds: float = await self.backend.attempts.wait(of)
        return seconds

    async def failed(self, of: tuple[str, ...] = HOME, times: int = 1) -> list[float]:
        waits: list[float] = []
        for _ in range(times):
            waits = await self.backend.attempts.failed(of)
        return waits

    def assert_about(self, seconds: float, expected_ms: int) -> None:
        self.assertTrue(expected_ms / 1000 - SLACK_SECONDS < seconds <= expected_ms / 1000, (seconds, expected_ms))

    async def test_the_pair_shuts_first(self) -> None:
        """Nothing is shut before; the first failures are free; then the pair of user and address is shut, for twice as long each
        time, and neither the user elsewhere nor others at the address are."""
        self.assertEqual(await self.wait(), 0)
        self.assertEqual(await self.failed(times=PAIR.free), [0, 0, 0])
        self.assertEqual(await self.wait(), 0)
        for doubling in range(3):
            self.assertEqual(await self.failed(), [PAIR.first_ms * 2**doubling / 1000, 0, 0])
            self.assert_about(await self.wait(), PAIR.first_ms * 2**doubling)
        self.assertEqual(await self.wait(subjects("alice", "192.0.2.2")), 0)
        self.assertEqual(await self.wait(subjects("bob", "192.0.2.1")), 0)

    async def test_the_wait_passes(self) -> None:
        """It ends when it was said to, the memory of it later, and then the first failures are free again."""
        await self.failed(times=PAIR.free + 1)
        await self.backend.advance(PAIR.first_ms)
        self.assertEqual(await self.wait(), 0)
        self.assertEqual((await self.failed())[0], PAIR.first_ms * 2 / 1000)
        await self.backend.advance(PAIR.most_failures * PAIR.forgive_ms)
        self.assertEqual((await self.failed())[0], 0)

    async def test_guesses_at_many_users_shut_the_address(self) -> None:
        """One guess for each name: the address is shut for every name, also for one that nobody tried."""
        waits: list[float] = []
        for number in range(STEPS["address"].free + 1):
            waits = await self.failed(subjects(f"user{number}", "2001:db8::1"))
        self.assertEqual(waits, [0, 0, STEPS["address"].first_ms / 1000])
        self.assert_about(await self.wait(subjects("nobody", "2001:db8::2")), STEPS["address"].first_ms)
        self.assertEqual(await self.wait(subjects("nobody", "2001:db8:0:1::1")), 0)

    async def test_guesses_from_everywhere_do_not_lock_the_user_out(self) -> None:
        """Many addresses guess at one user: strangers wait for the user's name, but where the user has logged in before, they still
        may; a success elsewhere changes nothing for strangers."""
        await self.backend.attempts.succeeded(HOME[:1])
        for number in range(STEPS["user"].free + 1):
            await self.failed(subjects("alice", f"198.51.100.{number}"))
        self.assertTrue(await self.wait(subjects("alice", "203.0.113.9")) > 0)
        self.assertEqual(await self.wait(), 0)
        await self.backend.attempts.succeeded(HOME[:1])
        await self.failed(subjects("alice", "198.51.100.77"), 5)
        self.assertTrue(await self.wait(subjects("alice", "203.0.113.9")) > 0)

    async def test_a_known_pair_is_still_counted(self) -> None:
        """Being known is no licence: somebody who guesses from the user's own address is shut as anywhere, without being forgotten as known,
        and a success begins anew."""
        await self.backend.attempts.succeeded(HOME[:1])
        await self.failed(times=PAIR.free + 1)
        self.assert_about(await self.wait(), PAIR.first_ms)
        for number in range(STEPS["address"].free):
            await self.failed(subjects(f"user{number}", "192.0.2.1"))
        await self.backend.advance(PAIR.first_ms)
        self.assertEqual(await self.wait(), 0)
        await self.backend.attempts.succeeded(HOME[:1])
        self.assertEqual((await self.failed())[0], 0)

    async def test_being_known_ends(self) -> None:
        """A month after the last success the pair hides nothing any more."""
        await self.backend.attempts.succeeded(HOME[:1])
        await self.backend.advance(backoff.PROVED_MS + 1)
        for number in range(STEPS["address"].free + 1):
            await self.failed(subjects(f"user{number}", "192.0.2.1"))
        self.assertTrue(await self.wait() > 0)

    async def test_any_name(self) -> None:
        """What a client calls itself can neither break a key nor meet another's."""
        for name in ("a b", "a\nb", "}", "{rc:cluster}", "*", "\udc80", "é", "x" * 5000, ""):
            pair = subjects(name, "192.0.2.1")
            self.assertEqual(await self.wait(pair[:2]), 0)
            await self.failed(pair[:2], PAIR.free + 1)
            self.assertTrue(await self.wait(pair[:2]) > 0, name)

    async def test_works_when_the_store_is_full(self) -> None:
        """A full queue is no time of free guesses."""
        await self.backend.fill()
        await self.backend.attempts.succeeded(HOME[:1])
        await self.failed(times=PAIR.free + 1)
        self.assertTrue(await self.wait() > 0)
        await self.backend.empty()

    async def test_is_the_policy(self) -> None:
        """A long random story gives what `policy/backoff.py` says, step by step."""
        chance = random.Random(7)
        model = {subject: Record() for subject in HOME}
        now_ms = 1_800_000_000_000
        for _ in range(80):
            pause_ms = chance.choice((0, 0, 0, 5_000, 60_000, 600_000, 3_600_000, 40 * DAY_MS))
            now_ms += pause_ms
            await self.backend.advance(pause_ms)
            deed = chance.choice(("failed", "failed", "failed", "wait", "wait", "succeeded"))
            if deed == "failed":
                waits = await self.failed()
                for subject, wait in zip(HOME, waits, strict=True):
                    model[subject] = model[subject].failed(now_ms, steps_of(subject))
                    self.assert_about(wait + 0.001, model[subject].wait_ms(now_ms, steps_of(subject)) + 1)
            elif deed == "wait":
                expected = backoff.wait_ms(model.items(), now_ms)
                self.assertTrue(abs(await self.wait() * 1000 - expected) < SLACK_SECONDS * 1000)
            else:
                await self.backend.attempts.succeeded(HOME[:1])
                model[HOME[0]] = backoff.proved(now_ms)

    async def test_away(self) -> None:
        """Without an answer every question fails with a `QueueError`: nobody may take silence for 0."""
        await self.backend.go_away()
        for ask in (self.backend.attempts.wait, self.backend.attempts.failed, self.backend.attempts.succeeded):
            try:
                await ask(HOME)
            except QueueError:
                continue
            raise AssertionError(f"{ask} answered")


over_all_backends(AttemptsContract, globals())
