"""Watches a run: losses that jump, gradients that are not finite, steps that do not come."""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from offramp.errors import OfframpError

STALLED = 76  # the exit status of a run that was ended because no step finished
MEMORY = 0.98  # weight of the past in the running mean and variance of the loss
SETTLED = 50  # losses before a jump can be told from the first descent


class DivergedError(OfframpError):
    """Training cannot go on: the gradients stay without finite values."""


@dataclass
class LossWatch:
    """Tells a jump of the loss from its usual scatter; its state is part of a checkpoint.

    A loss is a spike when it lies more than `limit` standard deviations above the running mean of
    the finite losses before it.
    """

    limit: float
    bad_steps: int
    mean: float = 0.0
    variance: float = 0.0
    seen: int = 0
    bad_in_a_row: int = 0

    def see(self, step: int, loss: float, norm: float) -> str | None:
        """What is worth saying of this step, or None. Raises DivergedError."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.bad_in_a_row += 1
            what = f"loss {loss:g}, gradient norm {norm:g}"
            if self.bad_in_a_row >= self.bad_steps:
                raise DivergedError(
                    f"step {step}: {what}; {self.bad_in_a_row} steps in a row had no finite "
                    "gradients. Lower optimizer.lr, lengthen schedule.warmup, or set "
                    "train.precision = 'fp32' to see whether it is the format"
                )
            return f"step {step} was left out: {what}"
        self.bad_in_a_row = 0
        deviation = math.sqrt(self.variance)
        spike = bool(
            self.limit and self.seen >= SETTLED and loss > self.mean + self.limit * deviation
        )
        said = (
            f"step {step}: loss {loss:.4f} jumped from a mean of {self.mean:.4f} "
            f"+- {deviation:.4f}; the data of this step, or a learning rate too high"
            if spike
            else None
        )
        self._remember(loss)
        return said

    def _remember(self, loss: float) -> None:
        self.seen += 1
        weight = max(1.0 / self.seen, 1.0 - MEMORY)
        difference = loss - self.mean
        self.mean += weight * difference
        self.variance = (1.0 - weight) * (self.variance + weight * difference**2)

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {
            "mean": self.mean,
            "variance": self.variance,
            "seen": self.seen,
            "bad_in_a_row": self.bad_in_a_row,
        }

    def resume(self, state: Mapping[str, float]) -> None:
        """Go on from `state`."""
        self.mean, self.variance = state["mean"], state["variance"]
        self.seen, self.bad_in_a_row = int(state["seen"]), int(state["bad_in_a_row"])


class StallWatch:
    """Ends the process when `beat` has not been called for `limit_s` seconds (0: never).

    A collective that waits for a lost worker holds Python's main thread, so a thread of its own
    writes every thread's stack to the standard error and leaves with status STALLED.
    """

    def __init__(self, limit_s: float, rank: int) -> None:
        self._limit_s, self._rank = limit_s, rank
        self._last_s = time.monotonic()
        self._done = threading.Event()
        if limit_s:
            threading.Thread(target=self._run, name="stall watch", daemon=True).start()

    def beat(self) -> None:
        """A step finished."""
        self._last_s = time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        self._done.set()

    def _run(self) -> None:
        while not self._done.wait(min(1.0, self._limit_s / 4)):
            still_s = time.monotonic() - self._last_s
            if still_s > self._limit_s:
                sys.stderr.write(
                    f"offramp: process {self._rank}: no step finished for {still_s:.0f} s "
                    "(watch.stall_s). A worker may be lost, or storage may hang; "
                    "the last checkpoint is untouched. Where each thread is:\n"
                )
                faulthandler.dump_traceback(sys.stderr)
                sys.stderr.flush()
                os._exit(STALLED)


@dataclass
class LossScale:
    """The factor that keeps fp16 gradients from vanishing: halved at overflow, doubled in time.

    The rule of mixed-precision training (Micikevicius et al., arXiv:1710.03740, section 3.2),
    with the constants of PyTorch's GradScaler.
    """

    value: float = 1.0
    clean: int = 0
    active: bool = False
    patience: int = 2000

    @staticmethod
    def for_precision(precision: str) -> LossScale:
        """One for fp16; for other formats one that stays 1."""
        active = precision == "fp16"
        return LossScale(65536.0 if active else 1.0, 0, active)

    def update(self, finite: bool) -> None:
        """A step's gradients were finite, or not."""
        if not self.active:
            return
        if not finite:
            self.value, self.clean = self.value / 2, 0
            return
        self.clean += 1
        if self.clean >= self.patience:
            self.value, self.clean = self.value * 2, 0
