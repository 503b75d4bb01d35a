"""Facts as text for people, and a chip as plain data for JSON."""

from __future__ import annotations

import math
from typing import Any

from offramp import units
from offramp.chips import export
from offramp.chips.catalogue import Chip
from offramp.chips.facts import SUPPORT, Fact, Value

# A mark behind a figure that is less than a maker's or a measured one.
MARKS = {"derived": "=", "press": "*", "assumed": "?"}
LEGEND = "= derived by arithmetic, * press only, ? assumed or range only"


def value_text(fact: Fact) -> str:
    """The value with its unit; bounds in brackets; a range where only that is known."""
    if fact.value is None:
        low, high = _ends(fact)
        return f"{low} to {high}"
    text = quantity(fact.value, fact.unit)
    if fact.low is None and fact.high is None:
        return text
    low, high = _ends(fact)
    if fact.low is None:
        return f"{text} (up to {high})"
    return f"{text} (at least {low})" if fact.high is None else f"{text} ({low} to {high})"


def _ends(fact: Fact) -> tuple[str, str]:
    low, high = fact.interval
    return quantity(low, fact.unit), quantity(high, fact.unit)


def quantity(value: Value, unit: str) -> str:
    """One value of a fact, in the unit that reads best."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) or unit in ("count", "year", "text"):
        return str(value)
    if unit == "B" and value % 2**20 == 0:
        return f"{value / 2**20:,.0f} MiB" if value % 2**30 else f"{value / 2**30:,.0f} GiB"
    if unit == "USD":
        return f"USD {value:,.0f}"
    if unit in ("W", "mm2"):
        return f"{value:,g} {unit}"
    return units.format_quantity(value, unit)


def mark(fact: Fact) -> str:
    """The mark of the fact's tier, empty for a maker's or a measured figure."""
    return MARKS["assumed"] if fact.value is None else MARKS.get(fact.tier, "")


def format_groups(chip: Chip) -> list[tuple[str, tuple[str, ...], Fact | None]]:
    """(support, dtypes, their fact) as the file groups them; what is left out comes last."""
    groups: dict[Fact, list[str]] = {}
    for name, fact in chip.formats.items():
        groups.setdefault(fact, []).append(name)
    order = list(SUPPORT)
    rows: list[tuple[str, tuple[str, ...], Fact | None]] = [
        (str(fact.value), tuple(dtypes), fact)
        for fact, dtypes in sorted(groups.items(), key=lambda row: order.index(str(row[0].value)))
    ]
    unsaid = tuple(sorted(chip.unknown_formats - set(chip.formats)))
    return [*rows, ("unknown", unsaid, None)] if unsaid else rows


def tpp_text(chip: Chip) -> str:
    """Total processing performance in one line: the figure, and what it counts and misses."""
    found = export.performance(chip)
    low, high = found.interval
    if not found.counted:
        return "unknown: no rate is public"
    figure = f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
    if math.isinf(high):
        figure = f"at least {low:,.0f}"
    missing = f"; rates not public: {', '.join(found.missing)}" if found.missing else ""
    return f"{figure}, from {', '.join(found.counted)} (weakest tier: {found.tier}{missing})"


def verdict_text(chip: Chip, found: export.Assessment) -> str:
    """The class, or what the answer hangs on."""
    if found.verdict != export.UNKNOWN or len(found.possible) == 1:
        return found.verdict
    bands = export.density_bands(export.profile(chip), found.rule)
    if bands:
        return "unknown: " + ", ".join(_band(*band) for band in bands)
    return f"unknown: {' or '.join(found.possible)}, by {', '.join(found.open_inputs)}"


def _band(low: float, high: float, name: str) -> str:
    if low == 0:
        return f"{name} if the die is at most {high:.0f} mm2"
    return f"{name} above {low:.0f} mm2" if math.isinf(high) else f"{name} up to {high:.0f}"


def as_data(chip: Chip) -> dict[str, Any]:
    """The whole chip as JSON types: every fact with unit, tier and source; infinity is null."""
    shown = chip.presentation
    return {
        "name": chip.name,
        "title": chip.title,
        "vendor": chip.vendor,
        "aliases": list(chip.aliases),
        "memory_bytes": chip.memory_bytes,
        "facts": {key: fact_data(fact) for key, fact in chip.facts.items()},
        "rates": {
            "matrix": {key: fact_data(fact) for key, fact in chip.matrix_rates.items()},
            "vector": {key: fact_data(fact) for key, fact in chip.vector_rates.items()},
        },
        "formats": {key: fact_data(fact) for key, fact in chip.formats.items()},
        "unknown_formats": sorted(chip.unknown_formats),
        "missing_ops": {key: fact_data(fact) for key, fact in chip.missing_ops.items()},
        "arithmetic": {
            setting.key: fact_data(setting.fact)
            | {"when": setting.when, "unless": setting.unless or None}
            for setting in chip.arithmetic
        },
        "quirks": [
            {key: getattr(quirk, key) for key in ("name", "what", "effect", "tier", "source")}
            for quirk in chip.quirks
        ],
        "presentation": {key: fact_data(fact) for key, fact in shown.facts.items()}
        | {"detect": [{"kind": sign.kind, "value": sign.value} for sign in shown.detect]},
        "cluster": {key: fact_data(fact) for key, fact in chip.cluster.facts.items()}
        | {"environment": {key: fact_data(f) for key, f in chip.cluster.environment.items()}},
        "export": export_data(chip),
    }


def fact_data(fact: Fact) -> dict[str, Any]:
    """One fact; bounds and note only where the file has them."""
    data = {"value": fact.value, "unit": fact.unit, "tier": fact.tier, "source": fact.source}
    extra = {"low": fact.low, "high": fact.high, "note": fact.note or None}
    return data | {key: value for key, value in extra.items() if value is not None}


def export_data(chip: Chip) -> dict[str, Any]:
    """TPP and the class under every rule, with the rule's date."""
    found = export.performance(chip)
    return {
        "disclaimer": export.DISCLAIMER,
        "tpp": {
            "low": found.interval[0],
            "high": None if math.isinf(found.interval[1]) else found.interval[1],
            "counted": list(found.counted),
            "rates_not_public": list(found.missing),
            "weakest_tier": found.tier,
        },
        "rules": [
            {
                "id": one.rule.id,
                "title": one.rule.title,
                "in_force": one.rule.in_force.isoformat(),
                "source": one.rule.source,
                "class": one.verdict,
                "possible": list(one.possible),
                "depends_on": list(one.open_inputs),
            }
            for one in export.assess_chip(chip)
        ],
    }
