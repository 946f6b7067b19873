"""The cap on notices to one sender's domain."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from relaycluster.interfaces import IThrottle, QueueUnavailable
from relaycluster.mail.address import Address
from relaycluster.mail.dsn import Action
from relaycluster.node.notice_allowance import MOST_ANSWERS, NoticeAllowance
from relaycluster.policy.rate import Rate
from relaycluster.policy.throttle import spend


@implementer(IThrottle)
class CountingThrottle:
    """The oracle of the stores' throttles, at a time that stands."""

    def __init__(self) -> None:
        self.tats: dict[str, int] = {}
        self.now_us = 1_700_000_000_000_000
        self.is_away = False

    def spend(self, limit: str, interval_ns: int, burst: int, wanted: int) -> Deferred[int]:
        if self.is_away:
            return fail(QueueUnavailable())
        self.tats[limit], wait = spend(self.tats.get(limit, 0), self.now_us, interval_ns, burst, wanted)
        return succeed(wait)


class NoticeAllowanceTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.throttle = CountingThrottle()
        self.allowance = NoticeAllowance(self.throttle, Rate.parse_allowance("3/h"))
        self.items = 0

    def refusal(self, sender: str, item_id: str, kind: Action = Action.FAILED, attempt: int = 1) -> str:
        address = Address(sender, sender.partition("@")[2])
        asked = Deferred.fromCoroutine(self.allowance.refusal(address, item_id, kind, attempt))
        return self.successResultOf(asked)

    def refusals(self, *senders: str, kind: Action = Action.FAILED) -> list[str]:
        found = []
        for sender in senders:
            self.items += 1
            found.append(self.refusal(sender, f"item{self.items}", kind))
        return found

    def test_a_domain_gets_so_many(self) -> None:
        """The local-part does not matter, since whoever forges can choose it; other domains have their own count; the event's line
        names the key; and when the hour is over it goes on."""
        assert self.refusals("a@victim.example", "b@victim.example", "c@victim.example") == ["", "", ""]
        (why,) = self.refusals("d@victim.example")
        assert "(3/h are allowed, delivery.notices_per_sender)" in why
        assert self.refusals("a@other.example") == [""]
        self.throttle.now_us += 3600 * 1_000_000
        assert self.refusals("a@victim.example") == [""]

    def test_delays_leave_room_for_failures(self) -> None:
        """A large destination that is down for hours uses up what there is for delays, and nothing of what failures need."""
        told = self.refusals(*["a@victim.example"] * 10, kind=Action.DELAYED)
        assert [bool(why) for why in told] == [False] * 3 + [True] * 7
        assert self.refusals("a@victim.example", kind=Action.RELAYED) != [""]
        assert self.refusals(*["a@victim.example"] * 3) == [""] * 3
        assert self.refusals("a@victim.example") != [""]

    def test_written_again(self) -> None:
        """The outcome of one attempt that is written again costs nothing more, and is answered as before; the next attempt counts."""
        assert [self.refusal("a@victim.example", "x") for _ in range(5)] == [""] * 5
        assert self.refusal("a@victim.example", "x", attempt=2) == self.refusal("a@victim.example", "y") == ""
        assert [bool(self.refusal("a@victim.example", "z")) for _ in range(2)] == [True] * 2
        self.throttle.now_us += 3600 * 1_000_000
        assert self.refusal("a@victim.example", "z")  # it was told already that nothing is sent
        self.allowance.use(Rate.parse_allowance("1000000/h"))
        for number in range(MOST_ANSWERS + 1):
            self.refusal("a@other.example", f"n{number}")
        assert len(self.allowance._answers) == MOST_ANSWERS

    def test_no_limit(self) -> None:
        """Without a rate nobody is asked; a rate that comes by a reload holds from then on."""
        self.allowance.use(None)
        assert self.refusals(*["a@victim.example"] * 10) == [""] * 10
        assert not self.throttle.tats
        self.allowance.use(Rate.parse_allowance("1/h"))
        assert [bool(why) for why in self.refusals("a@victim.example", "a@victim.example")] == [False, True]

    def test_who_cannot_count_tells(self) -> None:
        """Without Redis no notice is dropped."""
        self.throttle.is_away = True
        assert self.refusals(*["a@victim.example"] * 5) == [""] * 5
