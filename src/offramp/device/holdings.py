"""What a program's tensors are for, as far as the program's own objects tell.

Told at an out-of-memory, where the first question is what holds the memory. The categories come
from the objects that Python still references; what only the autograd graph keeps is the rest.
"""

from __future__ import annotations

import gc

import torch

_CATEGORIES = ("parameters", "gradients", "optimizer state", "buffers", "other tensors of Python")


def explain(kind: str, index: int) -> str:
    """Lines for an out-of-memory message: bytes by category on chip `index`. Never raises."""
    try:
        held = by_category(kind, index)
    except Exception:  # a message about memory must not fail for want of it
        return ""
    rows = [f"\n  {_size(held[name])} {name}" for name in _CATEGORIES if held.get(name)]
    return "\nBy what the program keeps it for:" + "".join(rows) if rows else ""


def by_category(kind: str, index: int) -> dict[str, int]:
    """Bytes of storages on one chip that Python objects reference, by category."""
    objects = gc.get_objects()
    owner: dict[int, tuple[str, int]] = {}

    def claim(tensor: object, category: str) -> None:
        if not isinstance(tensor, torch.Tensor) or tensor.device != torch.device(kind, index):
            return
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            owner.setdefault(storage._cdata, (category, storage.nbytes()))

    for thing in objects:
        if issubclass(type(thing), torch.optim.Optimizer):
            for state in thing.state.values():
                for value in state.values() if isinstance(state, dict) else ():
                    claim(value, "optimizer state")
        elif issubclass(type(thing), torch.nn.Module):
            for parameter in thing._parameters.values():
                claim(parameter, "parameters")
                if parameter is not None:
                    claim(parameter.grad, "gradients")
            for buffer in thing._buffers.values():
                claim(buffer, "buffers")
    for thing in objects:
        if issubclass(type(thing), torch.Tensor):
            claim(thing, "other tensors of Python")
    total: dict[str, int] = {}
    for category, size in owner.values():
        total[category] = total.get(category, 0) + size
    return total


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"
