"""The same program on the CPU and on the virtual chip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_flatten


def agree(program: Callable[[str], Any], *, exact: bool = True) -> Any:
    """Run `program` with device "cpu" and "cuda", seeded alike; results must be equal.

    Returns what the chip gave. `exact` asks for the same bits, else for equality to rounding.
    """
    torch.manual_seed(7)
    host = program("cpu")
    torch.manual_seed(7)
    chip = program("cuda")
    same(chip, host, exact=exact)
    return chip


def same(chip: Any, host: Any, *, exact: bool = True) -> None:
    """Two trees of tensors and numbers, the first on the chip, hold the same."""
    ours, shape = tree_flatten(chip)
    theirs, expected = tree_flatten(host)
    assert str(shape) == str(expected)
    for mine, other in zip(ours, theirs, strict=True):
        if not isinstance(other, torch.Tensor):
            assert mine == other
            continue
        assert mine.device.type == "cuda"
        assert mine.layout == other.layout
        if other.layout is torch.strided:
            assert mine.stride() == other.stride()
        else:
            mine, other = mine.to_dense(), other.to_dense()
        tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {}
        torch.testing.assert_close(mine.detach().cpu(), other.detach(), equal_nan=True, **tolerance)
