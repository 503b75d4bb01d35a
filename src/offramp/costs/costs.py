"""Costs of operations on one chip."""

from __future__ import annotations

from offramp.chips import Chip
from offramp.costs import attention, matmul, measured, memory_bound
from offramp.costs.classes import VIEWS
from offramp.costs.constants import Constants, for_chip
from offramp.costs.cost import Cost, Span
from offramp.costs.flops import attention as find_attention
from offramp.costs.flops import products as find_products
from offramp.costs.host import HostCosts
from offramp.costs.limits import Limits
from offramp.costs.operation import Operation
from offramp.costs.training import NONE, Factors, in_training

_LINKS = {"to chip": "host_link", "from chip": "host_link", "between chips": "peer_link"}


class Costs:
    """What operations cost on `chip`, each worked out once.

    `constants` replaces those of the chip's family. A chip file that `offramp calibrate` wrote
    brings its own, and curves that go before the models. `overlap` is how much longer compute
    takes while a collective of the chip runs, `overlap_slowdown` its value. `factors` make of it
    what it is in training; what was measured on the chip itself needs none.
    """

    def __init__(
        self, chip: Chip, constants: Constants | None = None, factors: Factors = NONE
    ) -> None:
        self.chip = chip
        self.constants = for_chip(chip.name) if constants is None else constants
        if chip.costs_file is None:
            self.constants = in_training(self.constants, factors)
        self.measured: measured.Measured | None = None
        if chip.costs_file is not None:
            own, self.measured = measured.read(chip.costs_file)
            if constants is None:
                self.constants = self.constants.over(own)
        self.limits = Limits(chip, self.constants)
        self.host = HostCosts.of(self.constants)
        self.overlap = self.constants["overlap.slowdown"]
        self.overlap_slowdown = self.overlap.value
        self._known: dict[Operation, Cost] = {}

    def of(self, op: Operation) -> Cost:
        """The cost on the device. Raises MissingFactError where the chip's facts say nothing."""
        known = self._known.get(op)
        if known is None:
            known = self._known[op] = self._work_out(op)
        return known

    def _work_out(self, op: Operation) -> Cost:
        if op.base in VIEWS:
            return Cost(0.0, 0.0, 0.0, "view", "no kernel")
        if op.outputs and not any(map(memory_bound.size, op.outputs)):
            return Cost(0.0, 0.0, 0.0, "view", "nothing to write, no kernel")
        link = _LINKS.get(str(op.values.get("way", "")))
        if link is not None and self.chip.is_synchronous:
            return Cost(0.0, 0.0, 0.0, "view", "the host's own memory, nothing to copy")
        if link is not None:
            return self._over(link, op)
        curve = self.measured.cost(op) if self.measured is not None else None
        if curve is not None:
            return curve
        parts = find_products(op)
        if parts:
            return matmul.cost(op, parts, self.limits)
        shape = find_attention(op)
        if shape is not None:
            return attention.cost(op, shape, self.limits)
        return memory_bound.cost(op, self.limits)

    def _over(self, link: str, op: Operation) -> Cost:
        """A copy between memories: the fixed time of a transfer, then bytes at the link's rate."""
        moved = sum(memory_bound.size(item) for item in op.outputs)
        speed = self.limits.host_link if link == "host_link" else self.limits.peer_link
        seconds = self.constants["memory.kernel"] + Span.exact(moved) / speed
        where = "host link" if link == "host_link" else "link between chips"
        basis = f"copy: {where}, {self.constants.family} share"
        return Cost.of_span(seconds, "copy", basis, bytes=moved)
