"""Two loss curves of one program, step by step.

Differences of neighbouring steps are not independent; means of blocks of steps nearly are (batch
means: Law and Kelton, Simulation Modeling and Analysis). The interval is Student's of the blocks'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

FEWEST_STEPS = 8
MOST_BLOCKS = 20
LEVEL = 0.95


@dataclass(frozen=True)
class Curves:
    """The second curve less the first.

    mean, low, high   of the difference, in the loss's unit; the interval at 95 %
    relative          mean over the mean loss
    steps             that were compared
    margin            what is taken to be no difference, in the loss's unit
    within            whether the interval lies within the margin
    steps_needed      steps after which the interval would be as narrow as the margin; None: it is
    """

    mean: float
    low: float
    high: float
    relative: float
    steps: int
    margin: float
    within: bool
    steps_needed: int | None


def compare(a: np.ndarray, b: np.ndarray, margin: float) -> Curves | None:
    """The paired test; None where fewer than 8 steps have a finite loss in both.

    margin   relative to the first curve's mean
    """
    count = min(len(a), len(b))
    a, b = a[:count], b[:count]
    finite = np.isfinite(a) & np.isfinite(b)
    differences = (b - a)[finite]
    size = len(differences)
    if size < FEWEST_STEPS:
        return None
    blocks = np.array_split(differences, min(MOST_BLOCKS, max(4, int(math.sqrt(size)))))
    means = np.asarray([block.mean() for block in blocks])
    mean, level = float(differences.mean()), float(np.abs(a[finite]).mean())
    half = student(len(means) - 1) * float(means.std(ddof=1)) / math.sqrt(len(means))
    room = margin * level
    within = abs(mean) + half <= room
    left = max(room - abs(mean), 0.0)
    needed = None
    if not within and half > 0:
        # The interval narrows as one over the root of the steps; it must come clear of the
        # margin's edge, from inside or from outside.
        gap = left if left > 0 else abs(mean) - room
        needed = math.ceil(size * (half / gap) ** 2) if gap > 0 else None
    if needed is not None and needed <= size:
        needed = None  # it is settled: outside the margin
    return Curves(
        mean, mean - half, mean + half, mean / level if level else 0.0, size, room, within, needed
    )


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by Cornish and Fisher's series (Abramowitz and Stegun,
    26.7.5); below three degrees of freedom, by its closed forms."""
    p = (1 + LEVEL) / 2
    if freedom <= 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / freedom ** (place + 1) for place, term in enumerate(terms)))
