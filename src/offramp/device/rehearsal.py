"""A rehearsal on this process's chip: operators give shapes, and a tape is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from offramp.device import uncomputed
from offramp.device.attribution import Attribution
from offramp.device.virtual import VirtualDevice
from offramp.names import Names

PARAMETERS, GRADIENTS, OPTIMIZER = 1, 2, 3  # categories of memory, as on the tape
KNOWN_BYTES = 1 << 20
_begun = False
_declared = Counter[str]()


@dataclass(frozen=True)
class Reel:
    """What came onto the tape since it was last taken from."""

    records: bytes
    signatures: list[str]
    names: list[str]
    groups: list[dict[str, Any]]


class Recording:
    """The tape of this process.

    `step_ended` is called after each step of the optimizer with the most parameters so far, with
    how many steps it has made; in a program that makes no optimizer, after each backward pass.
    """

    def __init__(self, device: VirtualDevice, step_ended: Callable[[int], None]) -> None:
        self._core = device.native
        self._names = Names("")  # number 0: of nothing
        self._step_ended = step_ended
        self._filed: set[int] = set()
        self._largest: tuple[int, int] = (0, 0)  # elements and identity of the main optimizer
        self._steps = 0
        self._core.start_tape()
        self._attribution = Attribution(
            self._core, self._names, self._begin, self._end, self._count
        )

    def take(self) -> Reel:
        """What is new on the tape."""
        records, signatures, groups = self._core.drain_tape()
        return Reel(records, signatures, self._names.take_new(), groups)

    def _begin(self, optimizer: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        elements = sum(parameter.numel() for parameter in parameters)
        if elements > self._largest[0]:
            self._largest, self._steps = (elements, id(optimizer)), 0
        for parameter in parameters:
            self._file(parameter, PARAMETERS)
            self._file(parameter.grad, GRADIENTS)

    def _end(self, optimizer: Any) -> None:
        for state in optimizer.state.values():
            for value in state.values() if isinstance(state, Mapping) else ():
                self._file(value, OPTIMIZER)
        if self._largest[1] == id(optimizer):
            self._count()

    def _count(self) -> None:
        self._steps += 1
        self._step_ended(self._steps)

    def _file(self, value: Any, category: int) -> None:
        """Say what the memory behind a tensor is for; once for each block."""
        local = getattr(value, "_local_tensor", value)
        if not isinstance(local, Tensor) or local.device.type == "cpu":
            return
        data = local.data if isinstance(local, nn.Parameter) else local
        serial = self._core.block_serial(data.untyped_storage()._cdata)
        if serial and serial not in self._filed:
            self._filed.add(serial)
            self._core.note_category(local.device.index or 0, serial, category)


def begin(device: VirtualDevice, *, known_bytes: int = KNOWN_BYTES, kept: float = 1.0) -> None:
    """From now on compute no values on this process's chips; for the life of the process.

    known_bytes   tensors up to this size are computed all the same, where their values are known
    kept          the share of elements that a mask keeps, where its values are not known
    """
    import torch._meta_registrations  # noqa: F401 -- the shape rules that are written in Python

    global _begun
    core = device.native
    core.rehearse(known_bytes, kept)
    _begun = True
    uncomputed.install(core.is_known, device.kind)


def declared_answers(device: VirtualDevice) -> dict[str, int]:
    """What was asked of values that are not there, and how often."""
    answers: dict[str, int] = device.native.declared_answers()
    return {**answers, **_declared}


def declare(what: str) -> None:
    """Count something else that was not done, beside the answers."""
    _declared[what] += 1


def is_under_way() -> bool:
    """Whether operators on this process's chips give shapes and no values."""
    return _begun
