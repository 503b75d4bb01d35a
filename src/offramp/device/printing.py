"""Printing tensors of a chip that has no float64.

PyTorch chooses the width of printed numbers in float64 on the tensor's own device; here the few
numbers it looks at are brought to the CPU first.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, _tensor_str


def install() -> None:
    """Let tensors of any device but the CPU print without arithmetic in float64 there."""
    convert: Any = _tensor_str.tensor_totype

    def tensor_totype(tensor: Tensor) -> Any:
        return convert(tensor if tensor.device.type == "cpu" else tensor.cpu())

    _tensor_str.tensor_totype = tensor_totype
