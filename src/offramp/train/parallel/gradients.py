"""Gradients over all ranks: their norm, and those of weights that two stages hold."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from offramp.train.layout import Layout


def square_sum(parameters: Iterable[nn.Parameter], layout: Layout, device: torch.device) -> Tensor:
    """This rank's share of the sum of squares of all gradients, float32, shape ().

    A gradient that other ranks of this rank's stage hold as well counts once over all of them.
    """
    stage = layout.world // layout.pp
    by_copies: dict[int, list[Tensor]] = {}
    for parameter in parameters:
        grad = parameter.grad
        if grad is None:
            continue
        shards = 1
        if isinstance(grad, DTensor):
            sizes = zip(grad.placements, grad.device_mesh.shape, strict=True)
            shards = math.prod(size for placement, size in sizes if not placement.is_replicate())
            grad = grad.to_local()
        if grad.numel():
            by_copies.setdefault(stage // shards, []).append(grad)
    total = torch.zeros((), dtype=torch.float32, device=device)
    for copies, grads in by_copies.items():
        norms = torch._foreach_norm(grads, 2, dtype=torch.float32)
        total += torch.stack(norms).square().sum() / copies
    return total


def add_from(grad: Tensor, peer: int, group: dist.ProcessGroup) -> None:
    """Add the gradient that rank `peer` of the group holds for the same weight, on both."""
    own = grad.to_local() if isinstance(grad, DTensor) else grad
    other = torch.empty_like(own)
    operations = [
        dist.P2POp(dist.isend, own.clone(), group=group, group_peer=peer),
        dist.P2POp(dist.irecv, other, group=group, group_peer=peer),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    own += other
