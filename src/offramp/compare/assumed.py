"""A noise floor where none was measured: what rounding makes of the first step at most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from offramp.compare.pairing import NORM, Pair
from offramp.record import rows
from offramp.record.rows import EPSILONS

FORWARD, BACKWARD = 2.0, 8.0  # spacings of the coarsest format met


class Assumed:
    """The floor of the first step in detail; later steps, in which errors have grown, have none.

    Errors of gradients are measured against the largest of their kind in the step: a gradient that
    is zero but for rounding (of a bias before a normalization) has errors as large as itself.
    """

    words = "assumed from the formats' spacing: the first step alone can be judged"
    count = 0

    def __init__(self, paired: Sequence[Pair]) -> None:
        self._first = paired[0].number
        self.losses, self.norms = np.zeros(0), np.zeros(0)

    def of(self, pair: Pair) -> np.ndarray:
        """The floor of each row; inf for a step that is not judged."""
        if pair.number != self._first:
            return np.full(len(pair.keys), np.inf)
        whats = np.asarray([key[0] for key in pair.keys])
        eps = np.asarray(EPSILONS)[pair.column("format")]
        coarsest = np.maximum.accumulate(np.where(whats == rows.WEIGHT, 0.0, eps))
        floor = np.where(whats == rows.WEIGHT, eps, FORWARD * coarsest)
        norms = pair.stats()[0][:, NORM]
        for what in (rows.GRADIENT, rows.WEIGHT_GRADIENT, rows.STEP_GRADIENT):
            of = whats == what
            if of.any():
                norm = np.where(norms[of] > 0, norms[of], 1.0)
                floor[of] = BACKWARD * coarsest[of] * np.maximum(norms[of].max() / norm, 1.0)
        # An update of Adam's is as large for a gradient of rounding size as for any.
        return np.where(whats == rows.UPDATED, np.inf, np.maximum(floor, np.finfo(float).tiny))
