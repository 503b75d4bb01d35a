"""The operators that a module's passes call, with what went into each and came out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from offramp.record import sampling
from offramp.record.frames import Frame

MOST_BYTES = 64 << 20  # of one pass of one call of a module


class OperatorTrace:
    """What one call of a module computed, forward and backward.

    Tensors are numbered by their content, so that the number tells which of those that operators
    met before an operator was given.

    is_unseen  whether what is called now is the recorder's own doing
    """

    def __init__(self, step: int, module: str, call: int, is_unseen: Callable[[], bool]) -> None:
        self.is_unseen = is_unseen
        self._head = {"step": step, "module": module, "call": call}
        self._told: dict[str, list[dict[str, Any]]] = {"operators": [], "backward": []}
        self._bytes = dict.fromkeys(self._told, 0)
        self._arrays: dict[str, np.ndarray] = {}
        self._known: dict[bytes, int] = {}

    def forward(self) -> Following:
        """A mode that keeps the operators of the forward pass while it is entered."""
        return Following(self, "operators", {})

    def backward(self, node: str) -> Following:
        """A mode that keeps the operators of a node of the backward pass, named `node`."""
        return Following(self, "backward", {"node": node})

    def add(self, pass_name: str, told: dict[str, Any]) -> None:
        """Keep what was told of an operator's call."""
        self._told[pass_name].append(told)

    def word(self, value: Any, pass_name: str) -> Any:
        """A value as JSON has it; tensors, formats and devices under a key of their own."""
        if isinstance(value, Tensor):
            return self._tensor(value, pass_name)
        if isinstance(value, bool | int | float | str) or value is None:
            return value
        if isinstance(value, list | tuple):
            return [self.word(item, pass_name) for item in value]
        if isinstance(value, dict):
            return {str(name): self.word(item, pass_name) for name, item in value.items()}
        kind = {torch.dtype: "format", torch.device: "device"}.get(type(value), "other")
        return {f"<{kind}>": str(value).removeprefix("torch.")}

    def _tensor(self, tensor: Tensor, pass_name: str) -> dict[str, Any]:
        told = {"<format>": str(tensor.dtype).removeprefix("torch.")}
        if self._bytes[pass_name] > MOST_BYTES or tensor.is_complex():
            return told | {"<tensor>": -1}
        try:
            whole = _copied(tensor)
        except (RuntimeError, TypeError, MemoryError):  # the program goes on without its copy
            whole = None
        return told | {"<tensor>": -1 if whole is None else self._number(whole, pass_name)}

    def _number(self, whole: np.ndarray, pass_name: str) -> int:
        key = hashlib.blake2b(f"{whole.dtype.str}{whole.shape}".encode(), digest_size=16)
        key.update(whole.tobytes())
        number = self._known.setdefault(key.digest(), len(self._arrays))
        if number == len(self._arrays):
            self._bytes[pass_name] += whole.nbytes
            self._arrays[str(number)] = whole
        return number

    def frame(self) -> Frame:
        """All of it."""
        return Frame("operators", {**self._head, **self._told}, self._arrays)


class Following(TorchDispatchMode):
    """Tells the trace of each operator; the operators run as they do without it."""

    def __init__(self, trace: OperatorTrace, pass_name: str, more: dict[str, Any]) -> None:
        super().__init__()
        self._trace, self._pass, self._more = trace, pass_name, more

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and keep what it took (before it could change it) and gave."""
        if self._trace.is_unseen():
            return func(*args, **(kwargs or {}))
        taken = {
            "args": self._trace.word(args, self._pass),
            "kwargs": self._trace.word(kwargs or {}, self._pass),
        }
        result = func(*args, **(kwargs or {}))
        out = self._trace.word(result, self._pass)
        self._trace.add(self._pass, {"name": str(func), **self._more, **taken, "out": out})
        return result


def _copied(tensor: Tensor) -> np.ndarray | None:
    """The tensor's own elements on the host, unseen by every mode; None where it has none."""
    with _disable_current_modes():
        local = sampling.plain(tensor)
        if local is None:
            return None
        narrow = local.dtype == torch.bfloat16 or (
            local.is_floating_point() and local.dtype.itemsize == 1
        )
        # Exact: numpy has no bfloat16.
        return (local.to(torch.float32) if narrow else local).cpu().contiguous().clone().numpy()
