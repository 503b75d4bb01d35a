"""offramp: run PyTorch programs written for CUDA on the chips you can get, or on virtual ones."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
