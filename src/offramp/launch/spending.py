"""What a step yields and uses up beside time: tokens, energy, money. Arithmetic on a summary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offramp.chips.facts import Fact
from offramp.costs.cost import Span
from offramp.errors import UsageError

HOUR_S = 3600.0
ENERGY_CONVENTION = (
    "every chip at its board power for the whole step; chips only, without hosts, network and "
    "cooling"
)
_PRICE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:\s*([^\s0-9.,+-][^0-9]{0,15}))?", re.ASCII)


@dataclass(frozen=True)
class Price:
    """What one chip costs for an hour, in a currency that the user names or leaves out."""

    amount: float
    currency: str = ""

    @classmethod
    def parse(cls, text: str) -> Price:
        """Read `2.5` or `2.5 USD`. Raises UsageError."""
        match = _PRICE.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"--price {text!r}: expected the price of a chip for an hour, such as 2.5 or "
                "'2.5 USD'"
            )
        amount, currency = match.groups()
        return cls(float(amount), (currency or "").strip())


@dataclass(frozen=True)
class Terms:
    """What a summary is not told by the program that is played.

    tokens_per_step  tokens of one optimizer step, over all chips; None: not known
    tokens_source    who says so
    run_steps        optimizer steps of the whole run; None: not known
    price            of a chip for an hour; None: not known
    """

    tokens_per_step: int | None = None
    tokens_source: str = ""
    run_steps: int | None = None
    price: Price | None = None

    def __post_init__(self) -> None:
        if self.tokens_per_step is not None and self.tokens_per_step < 1:
            raise UsageError(
                f"--tokens-per-step {self.tokens_per_step}: expected a positive number"
            )


def spend(
    step_s: Mapping[str, float], world: int, power: Fact | None, terms: Terms
) -> dict[str, Any]:
    """Tokens a second, energy and money of a step, and of the run: plain data.

    step_s   seconds of a step: "mid", "low", "high"; so are all intervals of the result
    power    what one of the `world` chips draws, the mean where they differ; None: not known

    Energy is in joules. What is not known is None.
    """
    step = Span(step_s["mid"], step_s["low"], step_s["high"])
    draw = None if power is None else Span.of_fact(power) * world
    joules = None if draw is None else step * draw
    price = terms.price
    cost = None if price is None else step * (world * price.amount / HOUR_S)
    tokens = terms.tokens_per_step
    found: dict[str, Any] = {"tokens": None, "energy": None, "money": None, "run": None}
    if tokens is not None:
        found["tokens"] = {"per_step": tokens, "source": terms.tokens_source}
        if step.low > 0:
            rate = Span.exact(tokens) / step
            found["tokens"] |= {"per_s": _interval(rate), "per_s_chip": _interval(rate / world)}
    if power is not None and joules is not None:
        found["energy"] = {
            "power_w": _interval(Span.of_fact(power)),
            "power_tier": power.tier,
            "power_note": power.note,
            "convention": ENERGY_CONVENTION,
            "step_j": _interval(joules),
            **_by_tokens(joules, tokens, "_j"),
        }
    if price is not None and cost is not None:
        found["money"] = {
            "chip_hour": price.amount,
            "currency": price.currency,
            "step": _interval(cost),
            **_by_tokens(cost, tokens, ""),
        }
    if terms.run_steps:
        found["run"] = {
            "steps": terms.run_steps,
            "seconds": _interval(step * terms.run_steps),
            "energy_j": None if joules is None else _interval(joules * terms.run_steps),
            "money": None if cost is None else _interval(cost * terms.run_steps),
        }
    return found


def _by_tokens(of_step: Span, tokens: int | None, unit: str) -> dict[str, Any]:
    """The same for a billion and for a trillion tokens."""
    if tokens is None:
        return {}
    return {
        f"per_{name}_tokens{unit}": _interval(of_step * (count / tokens))
        for name, count in (("1e9", 1e9), ("1e12", 1e12))
    }


def _interval(span: Span) -> dict[str, float]:
    return {"mid": span.value, "low": span.low, "high": span.high}
