"""What an operation costs: seconds with an interval, and the arithmetic of such intervals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from offramp.chips import TIERS, Fact

SMALL_TERM = 0.05
_RANK = {tier: rank for rank, tier in enumerate(TIERS)}


@dataclass(frozen=True, slots=True)
class Span:
    """A positive quantity with the interval that holds the truth, and the tier of its weakest part.

    Arithmetic is that of intervals: results hold every combination of what went in. A term of
    less than a twentieth of a sum does not set the sum's tier.
    """

    value: float
    low: float
    high: float
    tier: str = "derived"

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.value <= self.high:
            raise ValueError(f"{self.low}, {self.value}, {self.high} are not in rising order")

    @classmethod
    def exact(cls, value: float) -> Span:
        """A number that is known, such as a count of bytes."""
        return cls(value, value, value, "measured")

    @classmethod
    def of_fact(cls, fact: Fact) -> Span:
        """The fact's value and interval; the geometric mean where only a range is known."""
        low, high = fact.interval
        value = (low * high) ** 0.5 if fact.value is None else fact.value
        return cls(float(value), min(low, float(value)), max(high, float(value)), fact.tier)

    def __mul__(self, other: Span | float) -> Span:
        o = _span(other)
        tier = weakest((self.tier, o.tier))
        return Span(self.value * o.value, self.low * o.low, self.high * o.high, tier)

    def __add__(self, other: Span | float) -> Span:
        o = _span(other)
        total = self.value + o.value
        tier = weakest(part.tier for part in (self, o) if part.value >= SMALL_TERM * total)
        return Span(total, self.low + o.low, self.high + o.high, tier)

    def __truediv__(self, other: Span | float) -> Span:
        o = _span(other)
        tier = weakest((self.tier, o.tier))
        return Span(self.value / o.value, self.low / o.high, self.high / o.low, tier)

    def at_least(self, other: Span) -> Span:
        """The larger of both, bound by bound; the tier is that of the larger value."""
        tier = self.tier if self.value >= other.value else other.tier
        high = max(self.high, other.high)
        return Span(max(self.value, other.value), max(self.low, other.low), high, tier)


def _span(other: Span | float) -> Span:
    return other if isinstance(other, Span) else Span.exact(other)


def weakest(tiers: Iterable[str]) -> str:
    """The tier that is trusted least; `measured` for none."""
    return max(tiers, key=lambda tier: _RANK[tier], default="measured")


@dataclass(frozen=True, slots=True)
class Cost:
    """The seconds that one operation or collective takes: `low <= seconds <= high`.

    `kind` is "matmul", "attention", "memory", "copy", "view" or "collective". `basis` says in
    one line what the figure rests on and names the weakest tier. `flops` counts matrix products
    and attention; `bytes` is what was moved.
    """

    seconds: float
    low: float
    high: float
    kind: str
    basis: str
    flops: float = 0.0
    bytes: float = 0.0

    @classmethod
    def of_span(
        cls, span: Span, kind: str, basis: str, *, flops: float = 0.0, bytes: float = 0.0
    ) -> Cost:
        """A cost from seconds with their interval; the weakest tier is added to `basis`."""
        said = f"{basis}; weakest: {span.tier}"
        return cls(span.value, span.low, span.high, kind, said, flops, bytes)

    @classmethod
    def around(cls, seconds: float, relative: tuple[float, float], kind: str, basis: str) -> Cost:
        """A cost from seconds and a relative interval: (0.8, 1.5) is 20 % less to 50 % more."""
        low, high = relative
        return cls(seconds, seconds * low, seconds * high, kind, basis)
