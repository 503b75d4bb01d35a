"""Two numbers for a link: latency a step and bandwidth, from measured seconds of collectives.

A ring (`algorithms.py`) takes `steps x latency + bytes / bandwidth`, linear in both numbers. They
are those of least squares on logarithms, so that small messages count as large ones; a point that
is off by more than a factor of e counts as if it were by just that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from offramp.costs.algorithms import Case, Hop, Shape, seconds
from offramp.costs.cost import Span

_ROUNDS = 30


@dataclass(frozen=True, slots=True)
class Point:
    """Seconds of one collective of so many bytes among `ranks` ranks that one link joins."""

    name: str
    ranks: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Fit:
    """`latency` in seconds a step, `bandwidth` in bytes/s; `worst`: the largest factor by which a
    point is off, either way.
    """

    latency: Span
    bandwidth: Span
    worst: float


def fit(points: Sequence[Point]) -> Fit:
    """The link that fits best; its intervals hold the middle half of the points.

    Raises ValueError where all points together do not show a bandwidth.
    """
    rows = [_parts(point) for point in points]
    taken = [point.seconds for point in points]
    latency, inverse = _solve([(a / t, b / t, 1.0) for (a, b), t in zip(rows, taken, strict=True)])
    for _ in range(_ROUNDS):  # Gauss and Newton's
        said = [a * latency + b * inverse for a, b in rows]
        if not all(s > 0 for s in said):
            break
        off = [max(-1.0, min(1.0, math.log(s / t))) for s, t in zip(said, taken, strict=True)]
        latency, inverse = _solve(
            [(a / s, b / s, 1 - o) for (a, b), s, o in zip(rows, said, off, strict=True)]
        )
    if not inverse > 0:
        raise ValueError("seconds do not grow with bytes; measure larger ones")
    ratios = sorted(
        p.seconds / (a * latency + b * inverse) for (a, b), p in zip(rows, points, strict=True)
    )
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if ratios[1:] else (1,) * 3
    low, high = min(low, 1.0), max(high, 1.0)
    return Fit(
        Span(latency, latency * low, latency * high, "measured"),
        Span(1 / inverse, 1 / (inverse * high), 1 / (inverse * low), "measured"),
        max(ratios[-1], 1 / ratios[0]),
    )


def _parts(point: Point) -> tuple[float, float]:
    """Steps and bytes on the link: the closed form with a step, and a byte/s, of one."""
    shape = Shape(point.ranks, 1, point.ranks, point.ranks)
    only_steps, only_bytes = Hop(math.inf, math.inf, 1.0, 1.0), Hop(1.0, 1.0, 0.0, 0.0)
    return (
        seconds("ring", point.name, point.bytes, shape, _case(only_steps)),
        seconds("ring", point.name, point.bytes, shape, _case(only_bytes)),
    )


def _case(hop: Hop) -> Case:
    return Case(hop, hop, 0.0)


def _solve(rows: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Least squares for `a x + b y = c`, neither x nor y below zero."""
    aa, ab, bb, ac, bc = (
        sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2))
    )
    determinant = aa * bb - ab * ab
    if determinant > 1e-12 * aa * bb:
        x, y = (ac * bb - bc * ab) / determinant, (bc * aa - ac * ab) / determinant
        if x >= 0 and y >= 0:
            return x, y

    def off(solution: tuple[float, float]) -> float:
        return sum((a * solution[0] + b * solution[1] - c) ** 2 for a, b, c in rows)

    alone = ((max(0.0, ac / aa) if aa else 0.0, 0.0), (0.0, max(0.0, bc / bb) if bb else 0.0))
    return min(alone, key=off)
