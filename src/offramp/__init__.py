"""offramp: run PyTorch programs written for CUDA on the chips you can get, or on virtual ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offramp.launch.session import Session, use

__version__ = "0.1.0"
__all__ = ["Session", "__version__", "use"]


def __getattr__(name: str) -> Any:
    """`use` and `Session` load torch, so they are imported at their first use."""
    if name in ("Session", "use"):
        from offramp.launch import session

        return getattr(session, name)
    raise AttributeError(f"module 'offramp' has no attribute {name!r}")
