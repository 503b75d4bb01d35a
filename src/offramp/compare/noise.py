"""The noise floor: what rounding alone makes of the program, tensor by tensor.

Recordings of the same program with noise of rounding size (`offramp record --perturb`) are paired
with the one without. The floor of a tensor is the root mean square of its errors over them. Of a
tensor of few numbers that is itself uncertain (a loss may be unmoved by chance), so that there the
floor is at least the median of what is near it in time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from offramp.compare.pairing import Pair, pairs
from offramp.record.recording import Key, Recording
from offramp.record.rows import EPSILONS

FEW = 64  # elements below which a tensor's floor leans on its neighbours'
NEAR = 8  # rows on either side
LEAST = 0.25  # of the format's spacing: no floor is below
_COLUMN_ELEMENTS = 0


@dataclass(frozen=True)
class Floor:
    """Errors of rounding by step and tensor, and of each step's loss and norm of gradients.

    rows       {step: {key: error}}
    losses     [steps] absolute, the largest so far
    norms      [steps] relative, the largest so far
    count      how many recordings it rests on
    """

    rows: Mapping[int, Mapping[Key, float]]
    losses: np.ndarray
    norms: np.ndarray
    count: int
    curves: tuple[np.ndarray, ...] = ()

    @property
    def words(self) -> str:
        """What it rests on."""
        of = "1 recording" if self.count == 1 else f"{self.count} recordings"
        return f"measured: {of} with noise of rounding size"

    def of(self, pair: Pair) -> np.ndarray:
        """The floor of each row of a pair; where nothing was measured, inf."""
        known = self.rows.get(pair.number, {})
        return np.asarray([known.get(key, np.inf) for key in pair.keys])


def measure(base: Recording, noisy: Sequence[Recording]) -> Floor:
    """The floor that recordings with noise show against the one without."""
    squares: dict[int, dict[Key, list[float]]] = {}
    least: dict[int, dict[Key, tuple[float, float]]] = {}
    for one in noisy:
        for pair in pairs(base, one):
            kept = squares.setdefault(pair.number, {})
            eps = np.asarray(EPSILONS)[pair.column("format")]
            elements = pair.stats()[0][:, _COLUMN_ELEMENTS]
            whole = pair.error.tolist()
            of = least.setdefault(pair.number, {})
            for key, error, e, n in zip(pair.keys, whole, eps, elements, strict=True):
                kept.setdefault(key, []).append(min(error, 2.0) ** 2)
                of[key] = (float(e), float(n))
    floors = {step: _floors(found, least[step]) for step, found in squares.items()}
    curves = tuple(_along(base, one) for one in noisy)
    return Floor(floors, _band(base, noisy), _norm_band(base, noisy), len(noisy), curves)


def _floors(
    squares: Mapping[Key, Sequence[float]], known: Mapping[Key, tuple[float, float]]
) -> dict[Key, float]:
    keys = list(squares)
    raw = np.sqrt([float(np.mean(squares[key])) for key in keys])
    eps = np.asarray([known[key][0] for key in keys])
    few = np.asarray([known[key][1] < FEW for key in keys])
    found = np.maximum(raw, LEAST * eps)
    for place in np.flatnonzero(few).tolist():
        near = found[max(0, place - NEAR) : place + NEAR + 1]
        found[place] = max(found[place], float(np.median(near)))
    return dict(zip(keys, found.tolist(), strict=True))


def _along(base: Recording, other: Recording) -> np.ndarray:
    """Differences of losses step by step; nan where either has none."""
    count = min(len(base.steps), len(other.steps))
    return np.asarray(other.losses[:count] - base.losses[:count])


def _band(base: Recording, noisy: Sequence[Recording]) -> np.ndarray:
    """How far rounding moves the loss: the largest so far, step by step."""
    found = np.zeros(len(base.steps))
    for one in noisy:
        moved = np.nan_to_num(np.abs(_along(base, one)), nan=0.0, posinf=0.0)
        found[: len(moved)] = np.maximum(found[: len(moved)], moved)
    return np.maximum.accumulate(found) if len(found) else found


def _norm_band(base: Recording, noisy: Sequence[Recording]) -> np.ndarray:
    found = np.zeros(len(base.steps))
    for one in noisy:
        for place, (a, b) in enumerate(zip(base.steps, one.steps, strict=False)):
            found[place] = max(found[place], relative(a.gradient_norm, b.gradient_norm))
    return np.maximum.accumulate(found) if len(found) else found


def relative(a: float | None, b: float | None) -> float:
    """|b - a| / max(|a|, |b|); 0 where either is unknown, 2 where one alone is finite."""
    if a is None or b is None:
        return 0.0
    if not (np.isfinite(a) and np.isfinite(b)):
        return 0.0 if np.isfinite(a) == np.isfinite(b) else 2.0
    largest = max(abs(a), abs(b))
    return abs(b - a) / largest if largest else 0.0
