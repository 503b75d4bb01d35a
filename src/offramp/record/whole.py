"""Whole tensors and operators of chosen modules and steps."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from offramp.record import rows, sampling
from offramp.record.frames import Frame
from offramp.record.operators import OperatorTrace
from offramp.record.part import Part


class Whole:
    """Copies of the tensors that the part asks for, until they are written."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._tracing: tuple[nn.Module, OperatorTrace] | None = None
        self._frames: list[Frame] = []
        self._kept: list[tuple[list[int | str], Tensor]] = []

    def enter(self, step: int, module: nn.Module, call: int) -> None:
        """Follow the operators of a module that was asked for, unless one around it is followed."""
        name = self._names.get(module)
        is_asked = name is not None and (not self._part.steps or step in self._part.steps)
        if is_asked and self._tracing is None:
            trace = OperatorTrace(step, str(name), call)
            self._tracing = (module, trace)
            trace.__enter__()

    def leave(self, module: nn.Module | None) -> None:
        """The module ends; None: whatever is followed does."""
        if self._tracing is None or module not in (None, self._tracing[0]):
            return
        trace, self._tracing = self._tracing[1], None
        trace.__exit__(None, None, None)
        self._frames.append(trace.frame())

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
        yield from self._frames
        self._frames = []
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
