"""Whole tensors and operators of chosen modules and steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from offramp.record import backward, rows, sampling
from offramp.record.frames import Frame
from offramp.record.gathering import tensors_of
from offramp.record.operators import Following, OperatorTrace
from offramp.record.part import Part


@dataclass(frozen=True)
class _Tracing:
    """The module that is followed, and the place of its first node in the order of nodes."""

    module: nn.Module
    trace: OperatorTrace
    mode: Following
    since: int


class Whole:
    """Copies of the tensors that the part asks for, until they are written."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._tracing: _Tracing | None = None
        self._traces: list[OperatorTrace] = []
        self._handles: list[RemovableHandle] = []
        self._kept: list[tuple[list[int | str], Tensor]] = []
        self._is_unseen = False

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """What the recorder itself calls is no operator of a module that is followed."""
        self._is_unseen = True
        try:
            yield
        finally:
            self._is_unseen = False

    def enter(self, step: int, module: nn.Module, call: int) -> None:
        """Follow the operators of a module that was asked for, unless one around it is followed."""
        name = self._names.get(module)
        is_asked = name is not None and (not self._part.steps or step in self._part.steps)
        if is_asked and self._tracing is None:
            trace = OperatorTrace(step, str(name), call, lambda: self._is_unseen)
            self._tracing = _Tracing(module, trace, trace.forward(), backward.now())
            self._tracing.mode.__enter__()

    def leave(self, module: nn.Module | None, output: Any = None) -> None:
        """The module ends with an output: its backward pass is followed until `frames`.

        None: whatever is followed ends.
        """
        if module is None:
            self._put_back()
        if self._tracing is None or module not in (None, self._tracing.module):
            return
        ended, self._tracing = self._tracing, None
        ended.mode.__exit__(None, None, None)
        self._traces.append(ended.trace)
        self._handles += backward.follow(ended.trace, tensors_of(output), ended.since)

    def _put_back(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def name(self, module: nn.Module, name: str) -> None:
        """Tell the name of a module."""
        globs = filter(None, self._part.tensors.split(","))
        if any(fnmatchcase(name, glob) for glob in globs):
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
        self._put_back()
        traces, self._traces = self._traces, []
        yield from (trace.frame() for trace in traces)
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
