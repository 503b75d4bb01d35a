"""Number formats by the names that jobs give them, and the one in which a product is taken."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def product_dtype(operand: Tensor) -> torch.dtype:
    """The format in which `operand` is multiplied: autocast's where that is on, else its own."""
    kind = operand.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else operand.dtype
