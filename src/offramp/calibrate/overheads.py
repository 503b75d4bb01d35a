"""What calls cost the host: operators of a network so small that only calls are left of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from offramp.calibrate.capture import operations
from offramp.calibrate.timing import Timer
from offramp.costs.classes import VIEWS
from offramp.costs.cost import Span
from offramp.costs.measured import Measured

REPEATS = 15
LEAST_S = 1e-7  # of any call


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.up(self.norm(x)).chunk(2, dim=-1)
        down: Tensor = self.down(nn.functional.silu(first) * second)
        return x + down


class _Tiny(nn.Module):
    """A network of 8 blocks for 2 x 4 vectors of 16 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(16) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        loss: Tensor = nn.functional.mse_loss(x, torch.zeros_like(x))
        return loss


def measure(timer: Timer, curves: Measured) -> dict[str, Span]:
    """The constants of the host, by their keys in a file of costs."""
    view = _view(timer)
    return {
        "host.operator": _operator(timer, curves, view),
        "host.view": view,
        "host.listed": _listed(timer),
        "host.readback": _readback(timer),
    }


def _span(times: list[float]) -> Span:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    middle = max(middle, LEAST_S)
    return Span(middle, min(max(low, 0.0), middle), max(high, middle), "measured")


def _repeat(timer: Timer, call: Callable[[int], Any], count: int) -> list[float]:
    timer.host_seconds(call, count)
    return [timer.host_seconds(call, count) / count for _ in range(REPEATS)]


def _view(timer: Timer) -> Span:
    """A view with its place in autograd's graph."""
    x = torch.ones(16, device=timer.device, requires_grad=True)
    return _span(_repeat(timer, lambda i: x.view(4, 4), 1000))


def _operator(timer: Timer, curves: Measured, view: Span) -> Span:
    """One operator of a program, forward or backward, beyond what its curve says.

    The network's time, less its operators' on an accelerator's host nothing, on a host that
    computes itself their curves, less its views, over the number of operators.
    """
    network = _Tiny().to(timer.device)
    x = torch.ones(2, 4, 16, device=timer.device)

    def step(index: int = 0) -> None:
        network.zero_grad(set_to_none=True)
        network(x).backward()

    step()
    found = operations(step)
    launched = [op for op in found if op.base not in VIEWS]
    views = len(found) - len(launched)
    known = 0.0
    if timer.is_host:
        costs = [curves.cost(op) for op in launched]
        known = sum(cost.seconds for cost in costs if cost is not None)
    times = _repeat(timer, step, 20)
    return _span([(t - known - views * view.value) / len(launched) for t in times])


def _listed(timer: Timer) -> Span:
    """Each tensor of a list; where the host computes, the curves of list operators have it."""
    if timer.is_host:
        return Span(0.0, 0.0, 0.0, "measured")
    many = [torch.ones(16, device=timer.device) for _ in range(64)]
    single = statistics.median(_repeat(timer, lambda i: torch._foreach_mul_(many[:1], 1.0), 50))
    times = _repeat(timer, lambda i: torch._foreach_mul_(many, 1.0), 50)
    return _span([(t - single) / 63 for t in times])


def _readback(timer: Timer) -> Span:
    x = torch.ones((), device=timer.device)
    return _span(_repeat(timer, lambda i: x.item(), 200))
