"""Kernels for NVIDIA's hardware, where PyTorch or a package beside it is a CUDA build.

The native core puts its own above those that are there when the chip is opened. Here is what
comes on top later: PyTorch's own kernels in Python, and libraries that packages load.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import torch

_LATE = "torch._native"  # registers its kernels at the end of `import torch`, after the hooks


def settle() -> None:
    """Let PyTorch register what it has, before the chip is opened above it."""
    if importlib.util.find_spec(_LATE) is not None:
        importlib.import_module(_LATE)


def install(core: ModuleType) -> None:
    """Cover the kernels of every library that is loaded from now on."""
    operators: Any = torch.ops
    load = operators.load_library

    def load_library(path: Any) -> None:
        core.cover_library(lambda: load(path))

    operators.load_library = load_library
