"""What operations and collectives cost: seconds with an interval and what they rest on."""

from __future__ import annotations

from offramp.costs.constants import Constants, families, for_chip
from offramp.costs.cost import Cost, Span
from offramp.costs.costs import Costs
from offramp.costs.flops import Attention, Product
from offramp.costs.host import HostCosts
from offramp.costs.limits import MissingFactError
from offramp.costs.operation import Operation, OperationError, Tensor, Tensors

__all__ = [
    "Attention",
    "Constants",
    "Cost",
    "Costs",
    "HostCosts",
    "MissingFactError",
    "Operation",
    "OperationError",
    "Product",
    "Span",
    "Tensor",
    "Tensors",
    "families",
    "for_chip",
]
