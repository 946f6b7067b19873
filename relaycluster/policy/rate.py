"""A rate as an operator writes it and as the throttle counts it: exact, with its burst.

The unit that is counted (SMTP transactions, messages) is the business of whoever holds the rate.
"""

from __future__ import annotations

from fractions import Fraction

from attrs import frozen

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_LARGEST_FIRST = sorted(_UNITS.items(), key=lambda unit: -unit[1])
MOST_PER_SECOND = 1_000_000
LONGEST_PERIOD_SECONDS = 30 * 86400
EXAMPLE = 'write it like "100/s", "20/min", "3000/h" or "100/s,burst=200"'


@frozen
class Rate:
    """So many in a period: `count` in each `period_seconds`, evenly spread, and up to `burst` at once after a pause.

    In any window of T seconds at most T × count / period + burst go through. Where no burst was given it is 1: they are
    evenly spread, whatever there was before.
    """

    count: int
    period_seconds: int
    burst: int = 1

    @classmethod
    def of(cls, count: int, period_seconds: int = 1, burst: int = 1) -> Rate:
        """A rate; raises ValueError with what is wrong and the fix in one line."""
        if count < 1 or period_seconds < 1:
            raise ValueError(f"a rate of nothing; {EXAMPLE}")
        if count > MOST_PER_SECOND * period_seconds:
            raise ValueError(
                f"more than {MOST_PER_SECOND} a second cannot be counted; leave the rate empty for no limit"
            )
        if period_seconds > LONGEST_PERIOD_SECONDS:
            raise ValueError('a period of more than 30 days; write it like "1000/30d"')
        if burst < 1:
            raise ValueError("a burst below 1 lets nothing through; write burst=1 or leave it out")
        return cls(count, period_seconds, burst)

    @classmethod
    def parse(cls, text: str) -> Rate:
        """`COUNT/[N]UNIT[,burst=COUNT]` with UNIT s, min, h or d; raises ValueError as `of` does."""
        amount, comma, option = text.replace(" ", "").partition(",")
        number, _, period = amount.partition("/")
        unit = period.lstrip("0123456789")
        multiple = period[: len(period) - len(unit)] or "1"
        if not _is_number(number) or unit not in _UNITS or not _is_number(multiple):
            raise ValueError(f"{text[:60]!r} is not a rate; {EXAMPLE}")
        name, _, burst = option.partition("=")
        if comma and (name != "burst" or not _is_number(burst)):
            raise ValueError(f"{option[:60]!r} is not an option of a rate; {EXAMPLE}")
        return cls.of(int(number), int(multiple) * _UNITS[unit], int(burst) if comma else 1)

    @classmethod
    def parse_allowance(cls, text: str) -> Rate:
        """A rate of what clients hand in, read like `parse`; where no burst is written, the whole count may come at once, as
        everybody means who writes "100/h" about a person."""
        rate = cls.parse(text)
        return rate if "," in text else cls(rate.count, rate.period_seconds, rate.count)

    @property
    def per_second(self) -> Fraction:
        """Exactly how many a second."""
        return Fraction(self.count, self.period_seconds)

    @property
    def interval_ns(self) -> int:
        """The nanoseconds between two of them, rounded up so that the limit is never exceeded."""
        return -(-self.period_seconds * 1_000_000_000 // self.count)

    def __str__(self) -> str:
        """The shortest text that `parse` reads back as the same rate."""
        name, size = next((name, size) for name, size in _LARGEST_FIRST if self.period_seconds % size == 0)
        multiple = self.period_seconds // size
        text = f"{self.count}/{'' if multiple == 1 else multiple}{name}"
        return text if self.burst == 1 else f"{text},burst={self.burst}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12
