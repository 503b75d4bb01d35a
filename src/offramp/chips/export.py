"""US export thresholds of October 2022, October 2023 and January 2026. Not legal advice.

The rules are data (rules/*.toml). Inputs are intervals: an input that is not public is an open
one. A rule answers only when every value that the inputs allow gives the same class; otherwise
the answer is `unknown`, with the classes that remain possible.
"""

from __future__ import annotations

import datetime
import itertools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from offramp.chips.catalogue import Chip
from offramp.chips.facts import TIERS, Fact, Tier
from offramp.chips.reading import ChipFileError, Table

RULES = Path(__file__).parent / "rules"
DISCLAIMER = "not legal advice"
UNKNOWN = "unknown"
Interval: TypeAlias = tuple[float, float]
ANYTHING: Interval = (0.0, math.inf)

# Bits of the largest input to a multiplication. TF32 is left out: it multiplies 19-bit numbers
# held in 32 bits, and whether the rules mean one or the other is not settled.
BIT_LENGTHS: Mapping[str, int] = MappingProxyType(
    {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16}
    | {"float8": 8, "int8": 8, "float4": 4}
)
_RATE_OF_DTYPE = {f: f for f in BIT_LENGTHS} | {
    "float8_e4m3fn": "float8",
    "float8_e5m2": "float8",
    "float8_e4m3fnuz": "float8",
    "float8_e5m2fnuz": "float8",
    "float4_e2m1fn_x2": "float4",
}
_NUMBERS = ("tpp", "density", "io_gbs", "memory_gbs")
_LABELS = {
    "tpp": "total processing performance",
    "density": "die area",  # the other half of density is TPP
    "io_gbs": "link and host bandwidth",
    "memory_gbs": "memory bandwidth",
    "datacenter": "data center use",
}


@dataclass(frozen=True)
class Profile:
    """What the rules ask of a chip: intervals, each open where an input is not public.

    `tpp`: tera-operations times bits. `die_mm2`: mm2 of die. `io_gbs`, `memory_gbs`: GB/s.
    """

    tpp: Interval
    die_mm2: Interval = ANYTHING
    io_gbs: Interval = ANYTHING
    memory_gbs: Interval = ANYTHING
    datacenter: bool | None = None

    @property
    def density(self) -> Interval:
        """TPP per mm2, bounded by the extremes of both."""
        low = self.tpp[0] / self.die_mm2[1]
        high = self.tpp[1] / self.die_mm2[0] if self.die_mm2[0] > 0 else math.inf
        return (low, high)


@dataclass(frozen=True)
class Performance:
    """Total processing performance, what it counts and how far that can be trusted."""

    interval: Interval
    counted: tuple[str, ...]
    missing: tuple[str, ...]  # formats that the chip has, without a public rate
    tier: Tier | None  # the weakest among those counted


@dataclass(frozen=True)
class Rule:
    id: str
    title: str
    in_force: datetime.date
    source: str
    otherwise: str
    outcomes: tuple[tuple[str, tuple[Mapping[str, Any], ...]], ...]


@dataclass(frozen=True)
class Assessment:
    """A chip under one rule: `verdict` is a class of the rule, or `unknown`."""

    rule: Rule
    verdict: str
    possible: tuple[str, ...]
    open_inputs: tuple[str, ...]


def performance(chip: Chip) -> Performance:
    """TPP of a chip: the largest dense rate in tera-operations a second times its bits.

    A measured rate is a floor of the peak. A format that the chip has, and whose rate is not
    public, leaves the upper end open.
    """
    low, high = 0.0, 0.0
    counted: list[str] = []
    tiers: list[Tier] = []
    for unit, rates in (("matrix", chip.matrix_rates), ("vector", chip.vector_rates)):
        for name, fact in rates.items():
            if name in BIT_LENGTHS:
                bottom, top = _rate_interval(fact)
                low = max(low, bottom / 1e12 * BIT_LENGTHS[name])
                high = max(high, top / 1e12 * BIT_LENGTHS[name])
                counted.append(f"{unit} {name}")
                tiers.append(fact.tier)
    native = {_RATE_OF_DTYPE.get(f) for f, s in chip.formats.items() if s.value == "native"}
    missing = sorted(
        f for f in native if f and not (f in chip.matrix_rates or f in chip.vector_rates)
    )
    weakest = sorted(tiers, key=list(TIERS).index)[-1] if tiers else None
    interval = (low, math.inf if missing or not counted else high)
    return Performance(interval, tuple(counted), tuple(missing), weakest)


def profile(chip: Chip) -> Profile:
    """The rules' view of a chip, from its facts."""
    datacenter = chip.facts.get("datacenter")
    return Profile(
        tpp=performance(chip).interval,
        die_mm2=_interval(chip, "die_area"),
        io_gbs=_sum(_interval(chip, "link_bandwidth", 1e9), _interval(chip, "host_bandwidth", 1e9)),
        memory_gbs=_interval(chip, "memory_bandwidth", 1e9),
        datacenter=bool(datacenter.value) if datacenter else None,
    )


@cache
def rules() -> tuple[Rule, ...]:
    """Every rule, oldest first."""
    return tuple(sorted((_read(p) for p in RULES.glob("*.toml")), key=lambda rule: rule.in_force))


def assess(subject: Profile, rule: Rule) -> Assessment:
    """The class of `subject` under `rule`: tried at every corner that could change it."""
    points = _sample(subject)
    found = {
        corner: _classify(dict(zip(points, corner, strict=True)), rule)
        for corner in itertools.product(*points.values())
    }
    order = [name for name, _ in rule.outcomes] + [rule.otherwise]
    possible = tuple(sorted(set(found.values()), key=order.index))
    verdict = possible[0] if len(possible) == 1 else UNKNOWN
    opened = [_LABELS[key] for place, key in enumerate(points) if _matters(place, found)]
    return Assessment(rule, verdict, possible, tuple(opened))


def _matters(place: int, found: Mapping[tuple[Any, ...], str]) -> bool:
    """Whether two corners that differ in one place only have different classes."""
    classes: dict[tuple[Any, ...], str] = {}
    for corner, name in found.items():
        rest = corner[:place] + corner[place + 1 :]
        if classes.setdefault(rest, name) != name:
            return True
    return False


def assess_chip(chip: Chip) -> tuple[Assessment, ...]:
    """A chip under every rule, oldest first."""
    subject = profile(chip)
    return tuple(assess(subject, rule) for rule in rules())


def density_bands(subject: Profile, rule: Rule) -> tuple[tuple[float, float, str], ...]:
    """Where the die area alone decides: (from mm2, to mm2, class), small dies first; else empty."""
    if assess(subject, rule).open_inputs != (_LABELS["density"],):
        return ()
    tpp, (smallest, largest) = subject.tpp[0], subject.die_mm2
    cuts = {tpp / cut for cut in _cuts("density")}
    edges = [smallest, *sorted(cut for cut in cuts if smallest < cut < largest), largest]
    point = {key: values[0] for key, values in _sample(subject).items()}
    bands: list[tuple[float, float, str]] = []
    for low, high in itertools.pairwise(edges):
        middle = (low + high) / 2 if math.isfinite(high) else 2 * low
        name = _classify(point | {"density": tpp / middle}, rule)
        if bands and bands[-1][2] == name:
            low = bands.pop()[0]
        bands.append((low, high, name))
    return tuple(bands)


def _classify(point: Mapping[str, Any], rule: Rule) -> str:
    for name, alternatives in rule.outcomes:
        if any(all(_holds(point, *c) for c in when.items()) for when in alternatives):
            return name
    return rule.otherwise


def _holds(point: Mapping[str, Any], key: str, wanted: Any) -> bool:
    if key == "earlier":
        identity, name = wanted
        return _classify(point, next(r for r in rules() if r.id == identity)) == str(name)
    if key == "datacenter":
        return point[key] is wanted
    value: float = point[key]
    low, high = float(wanted.get("at_least", 0.0)), wanted.get("below")
    return value >= low and (high is None or value < float(high))


def _sample(subject: Profile) -> dict[str, list[Any]]:
    """Values of each input at which some rule can change, and the ends of its interval."""
    points: dict[str, list[Any]] = {}
    for key in _NUMBERS:
        low, high = getattr(subject, key)
        near = {near for cut in _cuts(key) for near in (cut, math.nextafter(cut, -math.inf))}
        inside = {value for value in near if low <= value <= high}
        points[key] = sorted({low, high} | inside)
    known = subject.datacenter
    points["datacenter"] = [True, False] if known is None else [known]
    return points


@cache
def _cuts(key: str) -> frozenset[float]:
    return frozenset(
        float(cut)
        for rule in rules()
        for _, alternatives in rule.outcomes
        for when in alternatives
        for cut in when.get(key, {}).values()
    )


def _rate_interval(fact: Fact) -> Interval:
    low, high = fact.interval
    return (low, math.inf) if fact.tier == "measured" and fact.high is None else (low, high)


def _interval(chip: Chip, key: str, scale: float = 1.0) -> Interval:
    fact = chip.facts.get(key)
    return (fact.interval[0] / scale, fact.interval[1] / scale) if fact else ANYTHING


def _sum(one: Interval, other: Interval) -> Interval:
    return (one[0] + other[0], one[1] + other[1])


def _read(path: Path) -> Rule:
    table = Table(path, tomllib.loads(path.read_text(encoding="utf-8")))
    outcomes = []
    for row in table.tables("outcome"):
        conditions: list[Mapping[str, Any]] = row.take("any", list)
        for key in {key for when in conditions for key in when}:
            if key not in (*_NUMBERS, "datacenter", "earlier"):
                raise ChipFileError(path, row.key("any"), f"unknown input {key!r}")
        outcomes.append((row.take("class", str), tuple(conditions)))
        row.close(("class", "any"))
    rule = Rule(
        id=path.stem,
        title=table.take("title", str),
        in_force=table.take("in_force", datetime.date),
        source=table.take("source", str),
        otherwise=table.take("otherwise", str),
        outcomes=tuple(outcomes),
    )
    table.close(("title", "in_force", "source", "otherwise", "outcome"))
    return rule
