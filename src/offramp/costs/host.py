"""What calls cost on the host: the time in which the program cannot issue the next one."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.costs.classes import VIEWS
from offramp.costs.constants import Constants
from offramp.costs.cost import Span
from offramp.costs.operation import Operation, Tensors


@dataclass(frozen=True, slots=True)
class HostCosts:
    """Seconds of the host per call, each with its interval.

    `operator`: one that reaches the device; `view`: one without a kernel; `listed`: what each
    tensor of a list adds; `collective`: a call of torch.distributed; `readback`: reading a value,
    after the device has got there.
    """

    operator: Span
    view: Span
    listed: Span
    collective: Span
    readback: Span

    @classmethod
    def of(cls, constants: Constants) -> HostCosts:
        return cls(*(constants[f"host.{key}"] for key in _KEYS))

    def launch(self, op: Operation) -> Span:
        """The host's seconds for this call."""
        each = self.view if op.base in VIEWS else self.operator
        listed = sum(i.count for i in op.inputs if isinstance(i, Tensors))
        return each + self.listed * listed if listed else each


_KEYS = ("operator", "view", "listed", "collective", "readback")
