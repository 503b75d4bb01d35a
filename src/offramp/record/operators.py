"""The operators that a module's forward pass calls, with what went into each and came out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from offramp.record import sampling
from offramp.record.frames import Frame

MOST_BYTES = 64 << 20  # of one call of a module


class OperatorTrace(TorchDispatchMode):
    """Keeps copies while it is entered; the operators run as they do without it."""

    def __init__(self, step: int, module: str, call: int) -> None:
        super().__init__()
        self._head = {"step": step, "module": module, "call": call}
        self._told: list[dict[str, Any]] = []
        self._arrays: dict[str, np.ndarray] = {}
        self._bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and keep what it took (before it could change it) and gave."""
        taken = self._word(args), self._word(kwargs or {})
        result = func(*args, **(kwargs or {}))
        self._told.append(
            {"name": str(func), "args": taken[0], "kwargs": taken[1], "out": self._word(result)}
        )
        return result

    def _word(self, value: Any) -> Any:
        """A value as JSON has it; tensors, formats and devices under a key of their own."""
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, bool | int | float | str) or value is None:
            return value
        if isinstance(value, list | tuple):
            return [self._word(item) for item in value]
        if isinstance(value, dict):
            return {str(name): self._word(item) for name, item in value.items()}
        kind = {torch.dtype: "format", torch.device: "device"}.get(type(value), "other")
        return {f"<{kind}>": str(value).removeprefix("torch.")}

    def _tensor(self, tensor: Tensor) -> dict[str, Any]:
        local = sampling.plain(tensor)
        told = {"<format>": str(tensor.dtype).removeprefix("torch.")}
        if local is None or self._bytes > MOST_BYTES or tensor.is_complex():
            return told | {"<tensor>": -1}
        self._bytes += local.numel() * local.element_size()
        narrow = local.dtype == torch.bfloat16 or (
            local.is_floating_point() and local.dtype.itemsize == 1
        )
        # Copies are made outside of the mode: it would see them.
        whole = (local.to(torch.float32) if narrow else local).cpu().clone()
        number = len(self._arrays)
        self._arrays[str(number)] = whole.numpy()
        return told | {"<tensor>": number}

    def frame(self) -> Frame:
        """All of it."""
        return Frame("operators", {**self._head, "operators": self._told}, self._arrays)
