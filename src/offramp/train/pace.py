"""Settles how many steps a run by the clock takes."""

from __future__ import annotations

import statistics
import time

MEASURED_STEPS = 12
MEASURED_S = 4.0
SKIPPED = 2  # the first steps allocate and compile


class Pace:
    """Measures the first steps, then gives a number of steps that ends at about `limit_s`.

    reserve_s   taken off the limit: what happens beside the steps
    """

    def __init__(self, limit_s: float, *, reserve_share: float = 0.08) -> None:
        self._limit_s = limit_s * (1.0 - reserve_share)
        self._began_s = self._last_s = time.monotonic()
        self._steps_s: list[float] = []

    def settle(self, step: int) -> int | None:
        """After `step` steps: how many there will be, or None while it is too early to tell."""
        now_s = time.monotonic()
        self._steps_s.append(now_s - self._last_s)
        self._last_s = now_s
        spent_s = now_s - self._began_s
        enough = len(self._steps_s) >= MEASURED_STEPS and spent_s >= MEASURED_S
        if not enough and spent_s < self._limit_s:
            return None
        usual_s = statistics.median(self._steps_s[SKIPPED:] or self._steps_s)
        return step + max(0, int((self._limit_s - spent_s) / usual_s))
