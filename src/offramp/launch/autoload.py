"""The hook that PyTorch calls at `import torch` (entry point group `torch.backends`)."""

from __future__ import annotations

import os


def autoload() -> None:
    """Open the chip named by `OFFRAMP_CHIP`; do nothing, and import nothing, when it is unset."""
    if not os.environ.get("OFFRAMP_CHIP"):
        return
