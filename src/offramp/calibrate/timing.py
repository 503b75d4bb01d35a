"""Times calls on one device: medians of several samples, each long enough for its clock.

On an accelerator a sample lies between two events of its stream, and is launched while the device
is still busy, so that it holds the device's time and not the host's. On the host itself a sample is
the time of the calls; with one thread it is the processor's time of that thread, which other
programs on the machine do not lengthen.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[int], Any]

SAMPLE_S = 2e-4  # a sample is at least so long
POINT_S = 0.015  # samples are taken for so long, but never fewer than FEWEST
FEWEST, MOST = 3, 15
BUSY_SIZE = 2048  # of the products that keep an accelerator busy while calls are launched


@dataclass(frozen=True)
class Sample:
    """Seconds of one call: the median, and the quartiles around it."""

    seconds: float
    low: float
    high: float


class Timer:
    """Times calls on `device`."""

    def __init__(self, device: torch.device, *, point_s: float = POINT_S) -> None:
        self.device = device
        self.is_host = device.type == "cpu"
        self._point_s = point_s
        one = torch.get_num_threads() == 1
        self._clock = time.thread_time if self.is_host and one else time.perf_counter
        self._busy: torch.Tensor | None = None

    @property
    def clock(self) -> str:
        """What the times are read from, in words."""
        if not self.is_host:
            return "events of the device"
        if self._clock is time.thread_time:
            return "processor time of the one thread"
        return f"wall time of {torch.get_num_threads()} threads"

    def host_seconds(self, call: Call, count: int) -> float:
        """The host's time for `count` calls in a row, however long the device takes."""
        self.synchronize()
        start = self._clock()
        for index in range(count):
            call(index)
        taken = self._clock() - start
        self.synchronize()
        return taken

    def synchronize(self) -> None:
        """Wait until the device has done all that it was given."""
        if not self.is_host:
            torch.accelerator.synchronize(self.device)

    def of(self, call: Call) -> Sample:
        """Seconds of `call(i)`, with i counting up over all calls made."""
        call(0)
        first = max(self._block(call, 1, 1), 1e-8)
        count = max(1, min(1000, round(SAMPLE_S / first)))
        place, taken, times = 2, 0.0, list[float]()
        while len(times) < FEWEST or (taken < self._point_s and len(times) < MOST):
            times.append(self._block(call, place, count) / count)
            place += count
            taken += max(times[-1] * count, 1e-6)
        quarters = statistics.quantiles(times, n=4, method="inclusive")
        return Sample(max(quarters[1], 1e-9), max(quarters[0], 1e-9), max(quarters[2], 1e-9))

    def _block(self, call: Call, place: int, count: int) -> float:
        """Seconds of `count` calls."""
        if self.is_host:
            start = self._clock()
            for index in range(place, place + count):
                call(index)
            return self._clock() - start
        start_event, end_event = (torch.Event(self.device, enable_timing=True) for _ in range(2))
        self._keep_busy()
        start_event.record()
        for index in range(place, place + count):
            call(index)
        end_event.record()
        end_event.synchronize()
        return float(start_event.elapsed_time(end_event)) * 1e-3

    def _keep_busy(self) -> None:
        if self._busy is None:
            self._busy = torch.ones(BUSY_SIZE, BUSY_SIZE, device=self.device)
        for _ in range(8):
            torch.mm(self._busy, self._busy)
