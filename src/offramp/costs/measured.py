"""Measured curves: seconds of an operator on one machine, against the sizes that decide them.

Between its points a curve is a power law of each axis (a straight line on logarithmic paper): fixed
time, cache and memory bandwidth, partly filled units are such laws, and one passes into the next.
Below its first point it is the fixed time of a call. Beyond its last, along an axis of work, the
resource is full and time grows in proportion; along an axis of shape nothing changes any more.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.chips.reading import Context, Table, read_trust
from offramp.costs.algorithms import sent
from offramp.costs.constants import read_table
from offramp.costs.cost import Cost, Span
from offramp.costs.features import Feature
from offramp.costs.features import features as find_features
from offramp.costs.operation import Operation

# Axes of work: time grows with this power of them beyond the last point. The others are of shape.
GROWTH: Mapping[str, float] = {
    **dict.fromkeys(("m", "n", "k", "batch", "heads", "bytes", "rows", "table", "count"), 1.0),
    "length": 2.0,  # attention: queries times keys
}
SHAPES = ("run", "row", "width", "classes", "ranks")
COLLECTIVES_DTYPE = "float32"  # in which collectives are measured; others take its curves
_CURVE_KEYS = ("name", "dtype", "axes", "seconds", "low", "high", "tier", "source")


@dataclass(frozen=True)
class Curve:
    """Seconds on a grid: `seconds` has the last axis fastest, `low` and `high` are relative."""

    axes: tuple[tuple[str, tuple[float, ...]], ...]
    seconds: tuple[float, ...]
    low: float = 1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if len(self.seconds) != math.prod(len(points) for _, points in self.axes):
            raise ValueError(f"{len(self.seconds)} seconds for a grid of {self.axes}")
        if not all(0 < s < math.inf for s in self.seconds):
            raise ValueError("seconds are not all positive numbers")
        if not 0 < self.low <= 1 <= self.high < math.inf:
            raise ValueError(f"low {self.low} and high {self.high} do not hold one between them")

    def at(self, place: Mapping[str, float]) -> float:
        """Seconds at a place, which names every axis. KeyError where one is missing."""
        values = [math.log(s) for s in self.seconds]
        beyond = 0.0
        for name, points in reversed(self.axes):
            here = place[name]
            if here > points[-1]:
                beyond += GROWTH.get(name, 0.0) * math.log(here / points[-1])
            index, share = _between(points, here)
            size = len(points)
            rows = [values[i : i + size] for i in range(0, len(values), size)]
            after = min(index + 1, size - 1)
            values = [row[index] * (1 - share) + row[after] * share for row in rows]
        return math.exp(values[0] + beyond)


def _between(points: Sequence[float], here: float) -> tuple[int, float]:
    """The point below, and how far to the next one on a logarithmic scale; held at the ends."""
    if here <= points[0]:
        return 0, 0.0
    if here >= points[-1]:
        return len(points) - 1, 0.0
    index = bisect.bisect_right(points, here) - 1
    return index, math.log(here / points[index]) / math.log(points[index + 1] / points[index])


@dataclass(frozen=True)
class Measured:
    """The curves of one machine, by name and number format."""

    curves: Mapping[tuple[str, str], Curve]

    def cost(self, op: Operation) -> Cost | None:
        """What `op` takes, or None where no curve is for it or its like."""
        found = find_features(op)
        if found is None or not found.parts:
            return None
        known = self._parts(found.parts) or self._parts(found.like)
        if not known:
            return None
        total, names = Span.exact(0), []
        for part, curve, name in known:
            seconds = curve.at(part.place) * part.times
            total = total + Span(seconds, seconds * curve.low, seconds * curve.high, "measured")
            names.append(name)
        basis = f"measured: {' and '.join(dict.fromkeys(names))}"
        return Cost.of_span(total, found.kind, basis, flops=found.flops, bytes=found.bytes)

    def _parts(self, parts: Sequence[Feature]) -> list[tuple[Feature, Curve, str]]:
        """Every part with its curve and the curve's name; nothing where one has none."""
        found = []
        for part in parts:
            curve, name = self._curve(part)
            if curve is None:
                return []
            found.append((part, curve, name))
        return found

    def collective(self, name: str, size: int, ranks: int) -> Cost | None:
        """What a collective of `size` bytes takes; None where no group so large was measured."""
        known = "send" if name == "recv" else name
        curve = self.curves.get((known, COLLECTIVES_DTYPE))
        grid = dict(curve.axes) if curve is not None else {}
        if curve is None or grid.keys() != {"ranks", "bytes"} or ranks > grid["ranks"][-1]:
            return None
        seconds = curve.at({"ranks": ranks, "bytes": max(size, 1)})
        span = Span(seconds, seconds * curve.low, seconds * curve.high, "measured")
        moved = sent(name, size, ranks)
        return Cost.of_span(span, "collective", f"measured: {known} of {ranks} ranks", bytes=moved)

    def _curve(self, part: Feature) -> tuple[Curve | None, str]:
        for dtype in (part.dtype, "float32"):
            for name in part.names:
                curve = self.curves.get((name, dtype))
                if curve is not None and all(axis in part.place for axis, _ in curve.axes):
                    return curve, f"{name} {dtype}"
        return None, ""


def read(path: Path) -> tuple[Mapping[str, Span], Measured | None]:
    """A file of measured costs: constants, and curves. Raises ChipFileError."""
    top = Table.of_file(path, "the costs that `offramp calibrate` wrote beside the chip file")
    rows = top.tables("curves")
    file = read_table(top)
    return file.spans, read_curves(rows, Context(path, file.sources, {}))


def read_curves(rows: Sequence[Table], context: Context) -> Measured | None:
    """The curves of a file of costs; None without any. Raises ChipFileError."""
    curves: dict[tuple[str, str], Curve] = {}
    for row in rows:
        read_trust(row, context)
        name: str = row.take("name", str)
        dtype: str = row.take("dtype", str)
        axes = _axes(row.table("axes", required=True))
        seconds: list[Any] = row.take("seconds", list)
        low: float = row.take("low", (int, float), 1.0)
        high: float = row.take("high", (int, float), 1.0)
        row.close(_CURVE_KEYS)
        if not all(_is_number(s) for s in seconds):
            raise row.fail("seconds", "expected a list of numbers")
        if (name, dtype) in curves:
            raise row.fail("name", f"{name!r} of {dtype} is there twice")
        try:
            curves[name, dtype] = Curve(axes, tuple(map(float, seconds)), float(low), float(high))
        except ValueError as error:
            raise row.fail("seconds", str(error)) from error
    return Measured(curves) if curves else None


def _axes(table: Table) -> tuple[tuple[str, tuple[float, ...]], ...]:
    axes = []
    for name in table.names():
        if name not in GROWTH and name not in SHAPES:
            break
        points: list[Any] = table.take(name, list)
        numbers = all(_is_number(p) and p > 0 for p in points)
        if not points or not numbers or sorted(set(points)) != points:
            raise table.fail(name, f"{points!r} are not positive numbers in rising order")
        axes.append((name, tuple(map(float, points))))
    table.close((*GROWTH, *SHAPES))
    if not axes:
        raise table.fail("", "empty; expected at least one axis, such as bytes = [4096, 1048576]")
    return tuple(axes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def curve_text(name: str, dtype: str, curve: Curve, source: str) -> str:
    """One curve as a file of costs has it."""
    axes = ", ".join(f"{axis} = [{_numbers(points)}]" for axis, points in curve.axes)
    return (
        f'[[curves]]\nname = "{name}"\ndtype = "{dtype}"\naxes = {{ {axes} }}\n'
        f"seconds = [{_numbers(curve.seconds)}]\n"
        f"low = {curve.low:.4g}\nhigh = {curve.high:.4g}\n"
        f'tier = "measured"\nsource = "{source}"\n'
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.5g}" for v in values)


def path_beside(chip_file: Path) -> Path:
    """Where the costs of a calibrated chip file are: `this.toml` has `this.costs.toml`."""
    return chip_file.with_name(f"{chip_file.stem}.costs.toml")
