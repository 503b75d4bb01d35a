"""Noise of rounding size, put into a program to see what the program makes of rounding.

Initial weights and the outputs of every innermost module are multiplied by 1, 1 + eps or 1 - eps/2,
eps being the spacing of the format at 1: each result may move to a neighbouring number. Another
order of summation does the same to fp32 results; of the results of narrow formats it moves only
those near a tie, so that one in `NARROW_SHARE` is moved. Gradients meet the same factors on their
way back. Numbers come from a generator of its own: the program's random numbers stay what they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NARROW_SHARE = 8  # one in so many numbers of formats with fewer bits than fp32 is moved
_NARROW_EPS = 1e-4


class Perturbation:
    """A seeded source of factors beside 1."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def weights(self, root: nn.Module) -> None:
        """Move the weights of a model, once, in place."""
        with torch.no_grad():
            for parameter in root.parameters():
                if parameter.is_floating_point() and not hasattr(parameter, "to_local"):
                    parameter.mul_(self._factors(parameter))

    def output(self, output: Any) -> Any:
        """A module's output, moved: tensors, and tuples, lists and dicts of them."""
        if isinstance(output, Tensor):
            can_move = output.is_floating_point() and output.dtype.itemsize > 1
            return output * self._factors(output) if can_move else output
        if isinstance(output, tuple) and hasattr(output, "_fields"):
            return type(output)(*(self.output(item) for item in output))
        if isinstance(output, tuple | list):
            return type(output)(self.output(item) for item in output)
        return output

    def _factors(self, like: Tensor) -> Tensor:
        eps = torch.finfo(like.dtype).eps
        kinds = 3 if eps < _NARROW_EPS else 2 * NARROW_SHARE
        host = torch.device("cpu")  # where the generator is, whatever the program's default is
        drawn = torch.randint(
            0, kinds, like.shape, generator=self._generator, dtype=torch.uint8, device=host
        )
        table = torch.ones(kinds, dtype=torch.float64, device=host)
        table[0], table[1] = 1 + eps, 1 - eps / 2
        return table.to(like.dtype)[drawn.int()].to(like.device)
