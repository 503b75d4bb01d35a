"""How far predictions are from measurements, and what a user who went by them would have lost.

Errors are relative to the measurement: predicted / measured - 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import median
from typing import Any

NEAR = 0.10


@dataclass(frozen=True)
class Scored:
    """A row with its prediction: seconds of a step, or bytes where `is_memory`.

    counted    whether every input was stated
    job        equal for layouts of one job
    fits       whether the prediction says that it fits; it ran, so it did
    plain      what costs without the factors of training let expect
    shares     of a step, where it goes by the prediction
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
    plain: float = 0.0
    shares: Mapping[str, float] = field(default_factory=dict)

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


def summarize(rows: Iterable[Scored]) -> Summary | None:
    """The summary of rows; None without rows."""
    scored = list(rows)
    if not scored:
        return None
    errors = [abs(row.error) for row in scored]
    return Summary(
        len(scored),
        median(errors),
        quantile(errors, 0.9),
        sum(error <= NEAR for error in errors) / len(errors),
        median(row.predicted / row.measured for row in scored),
        sum(row.low <= row.measured <= row.high for row in scored) / len(scored),
    )


def as_benchmarks_say(rows: Iterable[Scored]) -> list[Scored]:
    """The rows with what costs without the factors of training let expect."""
    return [_scaled(row, row.plain / row.predicted) for row in rows]


def within_sources(rows: Iterable[Scored]) -> list[Scored]:
    """The rows with predictions that are right in the median of each source."""
    of_source = _grouped(rows, lambda row: row.source)
    middles = {
        source: median(row.predicted / row.measured for row in several)
        for source, several in of_source.items()
    }
    found = [row for several in of_source.values() for row in several]
    return [_scaled(row, 1 / middles[row.source]) for row in found]


def repeated(rows: Iterable[Scored]) -> list[float]:
    """How far two measurements of one job by one source differ, for each two of them.

    They are of one layout too: their predictions are equal.
    """
    several = _grouped(rows, lambda row: (row.source, row.job, row.predicted)).values()
    pairs = (sorted((a.measured, b.measured)) for them in several for a, b in combinations(them, 2))
    return [slow / quick - 1 for quick, slow in pairs]


def _scaled(row: Scored, by: float) -> Scored:
    return replace(row, predicted=row.predicted * by, low=row.low * by, high=row.high * by)


def _grouped(rows: Iterable[Scored], key: Callable[[Scored], Any]) -> dict[Any, list[Scored]]:
    found: dict[Any, list[Scored]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return found


def regret(rows: Iterable[Scored]) -> Regret | None:
    """What choosing by prediction costs, over the jobs of which several layouts were measured."""
    lost = []
    times = (row for row in rows if not row.is_memory)
    for several in _grouped(times, lambda row: row.job).values():
        if len({row.predicted for row in several}) < 2:
            continue
        chosen = min(several, key=lambda row: row.predicted)
        best = min(several, key=lambda row: row.measured)
        lost.append(chosen.measured / best.measured - 1)
    return Regret(len(lost), median(lost), max(lost)) if lost else None
