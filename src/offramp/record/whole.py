"""Whole tensors of chosen modules and steps."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from offramp.record import rows, sampling
from offramp.record.frames import Frame
from offramp.record.part import Part


class Whole:
    """Copies of the tensors that the part asks for, until they are written."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._kept: list[tuple[list[int | str], Tensor]] = []

    def name(self, module: nn.Module, name: str) -> None:
        """Tell the name of a module."""
        if self._part.tensors and fnmatchcase(name, self._part.tensors):
            self._names[module] = name

    def keep(self, step: int, module: nn.Module, of: tuple[int, int, int], tensor: Tensor) -> None:
        """Keep a tensor of a module where it was asked for; `of`: what, call, place."""
        name = self._names.get(module)
        if name is None or (self._part.steps and step not in self._part.steps):
            return
        local = sampling.plain(tensor)
        if local is not None:
            self._kept.append(([step, name, *of], local.clone()))
        if of[0] == rows.INPUT and of[2] == 0:
            for place, (own, weight) in enumerate(module.named_parameters()):
                local = sampling.plain(weight)
                if local is not None:
                    key: list[int | str] = [step, f"{name}.{own}", rows.WEIGHT, of[1], place]
                    self._kept.append((key, local.clone()))

    def frames(self) -> Iterator[Frame]:
        """What was kept, as frames, each at most a step's; nothing is kept afterwards."""
        if not self._kept:
            return
        arrays: dict[str, np.ndarray] = {}
        formats = []
        for place, (_, tensor) in enumerate(self._kept):
            formats.append(str(tensor.dtype).removeprefix("torch."))
            wide = tensor.to(torch.float32) if _is_narrow(tensor) else tensor
            arrays[str(place)] = wide.cpu().contiguous().numpy()
        keys = [key for key, _ in self._kept]
        self._kept = []
        yield Frame("tensors", {"keys": keys, "formats": formats}, arrays)


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bfloat16 or (
        tensor.is_floating_point() and tensor.dtype.itemsize == 1
    )
