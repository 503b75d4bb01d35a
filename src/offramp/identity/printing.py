"""Printing tensors, for which PyTorch computes in float64 on the device."""

from __future__ import annotations

from typing import Any

import torch
import torch._tensor_str

from offramp.identity.patches import Patches
from offramp.identity.runtime import Runtime
from offramp.identity.tally import Tally


def install(runtime: Runtime, counts: Tally, patches: Patches) -> None:
    """Format the numbers on the host, where the device has no float64."""
    if "float64" not in runtime.chip.absent_formats:
        return
    before = torch._tensor_str._tensor_str
    names = ("cuda", runtime.kind)

    def tensor_str(self: torch.Tensor, indent: int) -> Any:
        return before(self.cpu() if self.device.type in names else self, indent)

    patches.set(torch._tensor_str, "_tensor_str", tensor_str)
