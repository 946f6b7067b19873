"""Whether one more notice may go to a sender's domain, counted over the whole cluster (`policy/notices.py`)."""

from __future__ import annotations

from relaycluster.interfaces import IThrottle, QueueError
from relaycluster.mail.address import Address
from relaycluster.mail.dsn import Action
from relaycluster.policy.notices import limit_of, why_dropped
from relaycluster.policy.rate import Rate

MOST_ANSWERS = 4096
"""So many answers are remembered, in case that what they were for has to be written again."""


class NoticeAllowance:
    """Spends `delivery.notices_per_sender`; with `rate` None there is no limit."""

    def __init__(self, throttle: IThrottle, rate: Rate | None) -> None:
        self._throttle = throttle
        self._rate = rate
        self._answers: dict[tuple[str, Action, int], str] = {}

    def use(self, rate: Rate | None) -> None:
        """Another limit, from the next notice on."""
        self._rate = rate

    async def refusal(self, reverse_path: Address, item_id: str, kind: Action, attempt: int) -> str:
        """Why no notice may be sent to this sender now; empty when one may, which is counted then: once for each kind and attempt of an
        item, however often its outcome is written. When the count can not be had, the notice is sent: that a sender hears of a failure
        matters more."""
        rate = self._rate
        if rate is None:
            return ""
        notice = (item_id, kind, attempt)
        answer = self._answers.get(notice)
        if answer is None:
            try:
                wait_us = await self._throttle.spend(limit_of(reverse_path, kind), rate.interval_ns, rate.burst, 1)
            except QueueError:
                return ""
            answer = self._answers[notice] = why_dropped(rate) if wait_us else ""
            if len(self._answers) > MOST_ANSWERS:
                del self._answers[next(iter(self._answers))]
        return answer
