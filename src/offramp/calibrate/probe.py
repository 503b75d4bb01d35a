"""A probe: the grid of a curve, and a call that does the operator at a place of it.

Inputs and results go round through more memory than caches hold, as in a program whose step touches
more than that: what a call reads was last touched long before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offramp.calibrate.timing import Call

ROUND_BYTES = 64 << 20  # of all that one probe goes round through
MOST_SETS = 128

Place = Mapping[str, int]
Axes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Probe:
    """One curve: `build(place)` gives the call that is timed at that place."""

    name: str
    dtype: torch.dtype
    axes: Axes
    build: Callable[[Place], Call]

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def going_round(make: Callable[[], Any], size: int, work: Callable[[Any], Any]) -> Call:
    """`work` on one set of inputs after another; results stay as long as there are sets.

    size   bytes of one set with its result
    """
    count = max(1, min(MOST_SETS, ROUND_BYTES // max(1, size)))
    sets = [make() for _ in range(count)]
    kept: deque[Any] = deque(maxlen=count)

    def call(index: int) -> None:
        kept.append(work(sets[index % count]))

    for index in range(count):  # memory for the results comes from the system once, not each time
        call(index)
    return call


def filled(sizes: int | tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Values do not matter to any probe; numbers that are all alike are made quickly."""
    return torch.full(
        sizes if isinstance(sizes, tuple) else (sizes,), 0.5, dtype=dtype, device=device
    )
