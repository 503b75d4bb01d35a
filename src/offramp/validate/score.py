"""How far predictions are from measurements, and what a user who went by them would have lost.

Errors are relative to the measurement: predicted / measured - 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

NEAR = 0.10


@dataclass(frozen=True)
class Scored:
    """A row with its prediction: seconds of a step, or bytes where `is_memory`.

    counted    whether every input was stated
    job        equal for layouts of one job
    fits       whether the prediction says that it fits; it ran, so it did
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
