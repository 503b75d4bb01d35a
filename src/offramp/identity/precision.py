"""What PyTorch's own Python computes in float64 on the device, where the device has none.

A program did not ask for the format there: a loss scale is inverted on the host.
"""

from __future__ import annotations

from typing import Any

import torch

from offramp.identity.patches import Patches
from offramp.identity.runtime import Runtime
from offramp.identity.tally import Tally


class _HostScale:
    """A loss scale whose float64 is the host's; otherwise the scale itself."""

    def __init__(self, scale: torch.Tensor) -> None:
        self._scale = scale

    def double(self) -> torch.Tensor:
        return self._scale.cpu().double()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scale, name)


def install(runtime: Runtime, counts: Tally, patches: Patches) -> None:
    """Keep PyTorch's own float64 off a device that lacks it."""
    if "float64" not in runtime.chip.absent_formats:
        return
    scaler: Any = torch.amp.GradScaler
    unscale = scaler.unscale_

    def unscale_(self: Any, optimizer: torch.optim.Optimizer) -> Any:
        scale = getattr(self, "_scale", None)
        if scale is None:  # disabled, or not used yet
            return unscale(self, optimizer)
        self._scale = _HostScale(scale)
        try:
            return unscale(self, optimizer)
        finally:
            self._scale = scale

    patches.set(scaler, "unscale_", unscale_)
