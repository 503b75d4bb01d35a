"""What parallelism must know of number formats and of the chip."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offramp.train.formats import DTYPES


@dataclass(frozen=True)
class Numbers:
    """Formats and habits.

    precision        "bf16", "fp16" or "fp32": format of the products; weights are kept in fp32
    compile          torch.compile each layer
    eager_random     ... with the random numbers that it would draw uncompiled
    sum_only         the chip's collectives have no AVG; sums are all that is used, on any chip
    blocking_copies  the chip's copies from host memory do not run beside its work
    """

    precision: str = "bf16"
    compile: bool = False
    eager_random: bool = False
    sum_only: bool = False
    blocking_copies: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The format of the products."""
        return DTYPES[self.precision]
