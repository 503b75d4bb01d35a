"""Optimizers, from PyTorch, and the learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from offramp.train.job import OptimizerSection, ScheduleSection

# What each optimizer keeps for a parameter, by the name that PyTorch gives it.
KEPT: Mapping[str, tuple[str, ...]] = {
    "AdamW": ("exp_avg", "exp_avg_sq"),
    "Muon": ("momentum_buffer",),
}


def learning_rate(section: ScheduleSection, step: int, total: int | None) -> float:
    """The share of the highest learning rate at `step` (from 0) of `total` steps.

    Rises linearly over `warmup` steps; then stays (constant; and wsd until its decay), or falls to
    `floor` along a cosine or a line. While `total` is not known yet it does not fall.
    """
    if step < section.warmup:
        return (step + 1) / section.warmup
    if total is None or section.name == "constant":
        return 1.0
    begin = section.warmup
    if section.name == "wsd":
        begin = max(begin, total - math.ceil(section.decay * total))
    if step < begin:
        return 1.0
    done = min(1.0, (step - begin + 1) / max(1, total - begin))
    left = 0.5 * (1 + math.cos(math.pi * done)) if section.name == "cosine" else 1.0 - done
    return section.floor + (1.0 - section.floor) * left


class Optimizers:
    """The optimizers of all parameters of this process, as one.

    named      parameters by global name
    matrices   the names that Muon may take: matrices of the layers
    plain      names whose weights do not decay: norms, biases and embeddings
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        section: OptimizerSection,
        *,
        matrices: Iterable[str] = (),
        plain: Iterable[str] = (),
    ) -> None:
        trained = {name: p for name, p in named.items() if p.requires_grad}
        muon = set(matrices) & set(trained) if section.name == "muon" else set()
        undecayed = set(plain)
        self._names = {id(p): name for name, p in trained.items()}
        self._all: list[torch.optim.Optimizer] = []
        rest: list[dict[str, Any]] = [
            {"params": [p for n, p in trained.items() if n not in muon and n not in undecayed]},
            {
                "params": [p for n, p in trained.items() if n not in muon and n in undecayed],
                "weight_decay": 0.0,
            },
        ]
        if groups := [group for group in rest if group["params"]]:
            self._all.append(
                torch.optim.AdamW(
                    groups,
                    lr=section.lr,
                    betas=(section.beta1, section.beta2),
                    eps=section.eps,
                    weight_decay=section.weight_decay,
                    fused=_has_fused(trained.values()),
                )
            )
        if muon:
            self._all.append(
                torch.optim.Muon(
                    [trained[name] for name in trained if name in muon],
                    lr=section.muon_lr,
                    momentum=section.muon_momentum,
                    weight_decay=section.weight_decay,
                )
            )
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["highest"] = group["lr"]
        self._allocate()

    def _allocate(self) -> None:
        """Make the state now: memory that will be needed is taken before the first step."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    state = optimizer.state[p]
                    for what in KEPT[type(optimizer).__name__]:
                        state[what] = torch.zeros_like(p, memory_format=torch.preserve_format)
                    if isinstance(optimizer, torch.optim.AdamW):
                        where = p.device if group["fused"] else "cpu"
                        state["step"] = torch.zeros((), dtype=torch.float32, device=where)

    def step(self, rate: float) -> None:
        """Update all parameters at `rate` times the highest learning rates."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = group["highest"] * rate
            optimizer.step()

    def zero(self) -> None:
        """Forget the gradients."""
        for optimizer in self._all:
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """What is kept for the parameters, by "<what>.<parameter's name>"; shared, not copied."""
        return {
            f"{what}.{self._names[id(p)]}": optimizer.state[p][what]
            for optimizer in self._all
            for p in (p for group in optimizer.param_groups for p in group["params"])
            for what in KEPT[type(optimizer).__name__]
        }

    def resume(self, updates: int) -> None:
        """Go on after `updates` updates; what `tensors` names has been filled."""
        for optimizer in self._all:
            for state in optimizer.state.values():
                if "step" in state:
                    state["step"].fill_(updates)


def _has_fused(parameters: Iterable[Tensor]) -> bool:
    """Whether PyTorch's fused AdamW runs where the parameters are; makers' devices are asked."""
    supported = _get_fused_kernels_supported_devices()
    kinds = {p.device.type for p in parameters}
    return all(kind in supported and _steps_fused(kind) for kind in kinds)


@cache
def _steps_fused(kind: str) -> bool:
    probe = nn.Parameter(torch.zeros(1, device=kind))
    probe.grad = torch.zeros_like(probe)
    try:
        torch.optim.AdamW([probe], fused=True).step()
    except (RuntimeError, NotImplementedError):
        return False
    return True
