"""Tokens a second, energy and money of a rehearsal in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from offramp.report.lines import Line, plural
from offramp.units import format_seconds

HOUR_S = 3600.0
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def lines(summary: Mapping[str, Any]) -> Iterator[Line]:
    """What is known of the three, and that energy is unknown where no power is public."""
    yield from _tokens(summary)
    yield from _energy(summary)
    yield from _money(summary)
    yield from _run(summary)


def format_energy(joules: float) -> str:
    """`882 Wh`, `1.35 MWh`; under 1 Wh in joules."""
    value, unit = (joules / HOUR_S, "Wh") if joules >= HOUR_S else (joules, "J")
    power = 0
    while value >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_PREFIXES[power]}{unit}"


def format_money(amount: float, currency: str) -> str:
    """`5.51 USD`, `12,345 USD`: three digits, and whole numbers from a thousand."""
    number = f"{amount:,.0f}" if amount >= 999.5 else f"{amount:.3g}"
    return f"{number} {currency}".rstrip()


def format_rate(count: float) -> str:
    """A count a second: `135,000`, `264`, `1.25`."""
    return f"{count:,.0f}" if count >= 99.95 else f"{count:.3g}"


def spread(interval: Mapping[str, float], text: Callable[[float], str]) -> str:
    """The interval as words, such as `1 Wh (0.5 Wh to 2 Wh)`."""
    low, high = text(interval["low"]), text(interval["high"])
    return f"{text(interval['mid'])} ({low} to {high})"


def _tokens(summary: Mapping[str, Any]) -> Iterator[Line]:
    tokens = summary["tokens"]
    if tokens is None or "per_s" not in tokens:
        return
    rate, each = spread(tokens["per_s"], format_rate), format_rate(tokens["per_s_chip"]["mid"])
    per_step = f"{tokens['per_step']:,} a step ({tokens['source']})"
    yield Line("tokens", f"{rate} a second, {each} a chip; {per_step}")


def _energy(summary: Mapping[str, Any]) -> Iterator[Line]:
    energy = summary["energy"]
    if energy is None:
        yield Line("energy", "unknown: no power of the chip is public")
        return
    said = f"{spread(energy['step_j'], format_energy)} a step"
    if "per_1e9_tokens_j" in energy:
        said += f", {format_energy(energy['per_1e9_tokens_j']['mid'])} for 10^9 tokens"
    yield Line("energy", f"{said}: {basis(energy)}")


def basis(energy: Mapping[str, Any]) -> str:
    """What the energy rests on: the power, its tier and note, and the convention."""
    power = energy["power_w"]
    watts = f"{power['mid']:,.4g} W"
    if power["low"] != power["high"]:
        watts += f" ({power['low']:,.4g} W to {power['high']:,.4g} W)"
    tier = ": ".join(filter(None, (energy["power_tier"], energy["power_note"])))
    return f"{watts} a chip ({tier}), {energy['convention']}"


def _money(summary: Mapping[str, Any]) -> Iterator[Line]:
    money = summary["money"]
    if money is None:
        return

    def text(amount: float) -> str:
        return format_money(amount, money["currency"])

    said = f"{spread(money['step'], text)} a step"
    if "per_1e9_tokens" in money:
        said += f", {text(money['per_1e9_tokens']['mid'])} for 10^9 tokens"
        said += f", {text(money['per_1e12_tokens']['mid'])} for 10^12"
    price = format_money(money["chip_hour"], money["currency"])
    yield Line("money", f"{said}: {price} a chip and hour (--price)")


def _run(summary: Mapping[str, Any]) -> Iterator[Line]:
    run = summary["run"]
    if run is None:
        return
    parts = [spread(run["seconds"], format_long)]
    if run["energy_j"] is not None:
        parts.append(format_energy(run["energy_j"]["mid"]))
    if run["money"] is not None:
        parts.append(format_money(run["money"]["mid"], summary["money"]["currency"]))
    yield Line("run", f"{plural(run['steps'], 'step')}: {', '.join(parts)}; steps alone")


def format_long(seconds: float) -> str:
    """A duration that may be of days: `3.4 days`, `5.2 h`, else as `format_seconds`."""
    for size, unit in ((86400.0, "days"), (HOUR_S, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return format_seconds(seconds)
