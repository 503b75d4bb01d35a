"""How far predictions are from measurements, and what a user who went by them would have lost.

Errors are relative to the measurement: predicted / measured - 1.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

NEAR = 0.10
# Kinds of work that a fit tells apart, and the shares that they are made of. A bubble is as long as
# what is computed, and is told by it.
KINDS = {
    "matmul": ("matmul", "bubble"),
    "attention": ("attention",),
    "memory": ("memory", "copy"),
    "communication": ("communication",),
    "host": ("host", "idle"),
}
PRIOR = 0.05
BOUNDS = (0.5, 3.0)
SWEEPS = 60


@dataclass(frozen=True)
class Scored:
    """A row with its prediction: seconds of a step, or bytes where `is_memory`.

    counted    whether every input was stated
    job        equal for layouts of one job
    fits       whether the prediction says that it fits; it ran, so it did
    shares     of the predicted step, by kind of work
    """

    id: str
    source: str
    chip: str
    model: str
    job: tuple[Any, ...]
    is_memory: bool
    measured: float
    predicted: float
    low: float
    high: float
    fits: bool
    counted: bool
    unknown: tuple[str, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def error(self) -> float:
        """Predicted over measured, minus one."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Summary:
    """Of some rows: the median and 90th percentile of absolute errors, the share within NEAR.

    ratio    the median of predicted over measured
    inside   the share of measurements inside their intervals
    """

    rows: int
    median: float
    ninetieth: float
    near: float
    ratio: float
    inside: float


@dataclass(frozen=True)
class Regret:
    """What choosing layouts by prediction costs.

    jobs    of which several layouts were measured
    median, worst   how much longer the layout predicted best takes than the one measured best
    """

    jobs: int
    median: float
    worst: float


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarize(rows: Iterable[Scored], factors: dict[str, float] | None = None) -> Summary | None:
    """The summary of rows, predictions multiplied by their source's factor; None without rows."""
    scored = list(rows)
    if not scored:
        return None
    by = factors or {}
    ratios = [r.predicted * by.get(r.source, 1.0) / r.measured for r in scored]
    errors = [abs(ratio - 1) for ratio in ratios]
    inside = [
        r.low * by.get(r.source, 1.0) <= r.measured <= r.high * by.get(r.source, 1.0)
        for r in scored
    ]
    return Summary(
        len(scored),
        median(errors),
        quantile(errors, 0.9),
        sum(error <= NEAR for error in errors) / len(errors),
        median(ratios),
        sum(inside) / len(inside),
    )


def unseen_factors(rows: Iterable[Scored]) -> dict[str, float]:
    """For each source, the factor that is right in the median of all other sources.

    Every source counts once there, by its own median, however many rows it has. 1 where there is no
    other source.
    """
    of_source: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        of_source[row.source].append(row.measured / row.predicted)
    middles = {source: median(ratios) for source, ratios in of_source.items()}
    return {
        source: median([m for other, m in middles.items() if other != source] or [1.0])
        for source in middles
    }


def fitted(rows: Sequence[Scored]) -> dict[str, float]:
    """Factors by kind of work with which rows come out best, in relative least squares.

    Minimizes the sum over rows of w (sum over kinds of f x share x predicted / measured - 1)^2,
    where the rows of a source weigh as one, plus PRIOR times the sum of (f - 1)^2, so that what
    rows do not tell stays at 1. Factors are kept within BOUNDS.
    """
    kinds = list(KINDS)
    sizes = Counter(row.source for row in rows)
    factors = dict.fromkeys(kinds, 1.0)
    parts = [(1 / sizes[row.source], _parts(row)) for row in rows]
    for _ in range(SWEEPS):  # each kind in turn, the others held: a convex sum of squares
        for kind in kinds:
            above, below = PRIOR, PRIOR
            for weight, part in parts:
                rest = sum(factors[k] * part[k] for k in kinds if k != kind)
                above += weight * part[kind] * (1 - rest)
                below += weight * part[kind] ** 2
            factors[kind] = min(max(above / below, BOUNDS[0]), BOUNDS[1])
    return factors


def unseen_fit(rows: Iterable[Scored]) -> list[Scored]:
    """The rows with predictions corrected by factors that were fitted without their source."""
    scored = list(rows)
    corrected = []
    for source in sorted({row.source for row in scored}):
        factors = fitted([row for row in scored if row.source != source])
        corrected += [_corrected(row, factors) for row in scored if row.source == source]
    return corrected


def _parts(row: Scored) -> dict[str, float]:
    """What each kind takes, over the measured step."""
    ratio = row.predicted / row.measured
    return {
        kind: ratio * sum(row.shares.get(name, 0.0) for name in names)
        for kind, names in KINDS.items()
    }


def _corrected(row: Scored, factors: Mapping[str, float]) -> Scored:
    by = sum(factors[kind] * part for kind, part in _parts(row).items()) / sum(_parts(row).values())
    return replace(row, predicted=row.predicted * by, low=row.low * by, high=row.high * by)


def regret(rows: Iterable[Scored]) -> Regret | None:
    """What choosing by prediction costs, over the jobs of which several layouts were measured."""
    of_job: dict[tuple[Any, ...], list[Scored]] = defaultdict(list)
    for row in rows:
        if not row.is_memory:
            of_job[row.job].append(row)
    lost = []
    for several in of_job.values():
        if len({row.predicted for row in several}) < 2:
            continue
        chosen = min(several, key=lambda row: row.predicted)
        best = min(several, key=lambda row: row.measured)
        lost.append(chosen.measured / best.measured - 1)
    return Regret(len(lost), median(lost), max(lost)) if lost else None
