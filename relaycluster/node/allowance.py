"""How much a client or a user may hand in, counted over the whole cluster before any content is taken."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from relaycluster.interfaces import IThrottle, QueueError
from relaycluster.mail.reply import Reply
from relaycluster.policy.account import Account
from relaycluster.policy.client import client_of
from relaycluster.policy.rate import Rate

_UNKNOWN = Reply.of(451, "4.3.0", "The rate of mail can not be looked up now, try again later")


class Allowances:
    """Spends rates through `IThrottle`. One call for each MAIL or RCPT of those who have a limit, none for others.

    A message that is refused later stays counted: what is limited is how often a client comes.
    """

    def __init__(self, throttle: IThrottle | None) -> None:
        """Without `throttle` nobody may have a rate: it would be a limit that is not kept."""
        self._throttle = throttle

    def message(self, account: Account | None, peer_address: str, rate: Rate | None) -> Deferred[Reply | None] | None:
        """One more message. `rate` is what everybody has; the account's own goes before it. None: nothing to ask."""
        if account is not None:
            rate, subject = account.messages or rate, f"user/{account.name}"
        elif rate is not None:
            subject = f"client/{client_of(peer_address)}"
        if rate is None:
            return None
        return self._spend(f"messages/{subject}", rate, 450, "4.7.1", "messages")

    def recipient(self, account: Account) -> Deferred[Reply | None] | None:
        """One more recipient of the user's. Those that are refused for now are sent later, in another transaction (RFC 5321
        4.5.3.1.10)."""
        if account.recipients is None:
            return None
        return self._spend(f"recipients/user/{account.name}", account.recipients, 452, "4.5.3", "recipients")

    def _spend(self, limit: str, rate: Rate, code: int, enhanced: str, what: str) -> Deferred[Reply | None]:
        def judged(wait_us: int) -> Reply | None:
            if not wait_us:
                return None
            plain = Rate(rate.count, rate.period_seconds)  # without its burst, which says little to a person
            return Reply.of(
                code, enhanced, f"Too many {what} for now ({plain} are allowed), try again in {wait(wait_us)}"
            )

        def unknown(failure: Failure) -> Reply:
            failure.trap(QueueError)
            return _UNKNOWN

        if self._throttle is None:
            raise RuntimeError(f"there is a rate for {limit}, and nothing that counts")
        return self._throttle.spend(limit, rate.interval_ns, rate.burst, 1).addCallbacks(judged, unknown)


def wait(wait_us: int) -> str:
    """For a person: at least so long."""
    seconds = -(-wait_us // 1_000_000)
    for size, name in ((3600, "hour"), (60, "minute")):
        if seconds > 2 * size:
            return f"{-(-seconds // size)} {name}s"
    return "1 second" if seconds == 1 else f"{seconds} seconds"
