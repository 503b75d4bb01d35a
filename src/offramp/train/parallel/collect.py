"""Collectives that autograd knows: what is done to gradients is the transpose of what was done."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as functional

# PyTorch 2.13 gave these other names, and warns of the old ones.
_all_gather, _all_gather_autograd, _reduce_scatter_autograd = (
    getattr(functional, new, None) or getattr(functional, old)
    for new, old in (
        ("all_gather_single", "all_gather_tensor"),
        ("all_gather_single_autograd", "all_gather_tensor_autograd"),
        ("reduce_scatter_single_autograd", "reduce_scatter_tensor_autograd"),
    )
)
_operators = torch.ops._c10d_functional


def waited(pending: Tensor) -> Tensor:
    """The result of a collective, on the current stream."""
    out: Tensor = functional.wait_tensor(pending)
    return out


def gather(part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """The parts of all ranks along `dim`; gradients are summed, each rank getting its part."""
    if torch.compiler.is_compiling():
        return waited(_all_gather_autograd(part.contiguous(), dim, group))
    whole = _settled(_Gather.apply(part.contiguous(), group))
    size = dist.get_world_size(group)
    if dim == 0:
        return whole
    if len(whole) == size and whole.shape[1 : dim + 1].numel() == whole.shape[dim]:
        return whole.view(1, *whole.shape[1:dim], -1, *whole.shape[dim + 1 :])
    return torch.cat(whole.chunk(size), dim)


def scatter_sum(whole: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """This rank's part along `dim` of the sum over ranks; gradients are gathered."""
    if torch.compiler.is_compiling():
        return waited(_reduce_scatter_autograd(whole.contiguous(), "sum", dim, group))
    size = dist.get_world_size(group)
    # Nothing here holds what is sent: it may be freed before the wait, as PyTorch's own does.
    return _settled(_ScatterSum.apply(_by_rank(whole.contiguous(), dim, size), group))


def sum_backward(same: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`same`, equal on all ranks; its gradient is the sum of theirs."""
    out: Tensor = _SumBackward.apply(same, group)
    return out


def sum_forward(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over ranks; every rank's part gets the gradient of the sum."""
    out: Tensor = _SumForward.apply(part, group)
    return out


def split(same: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """This rank's part along `dim` of what is equal on all ranks; gradients are gathered."""
    out: Tensor = _Split.apply(same, dim, group)
    return out


def join(part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """The parts of all ranks, where all go on alike: each part's gradient is a part of theirs."""
    out: Tensor = _Join.apply(part, dim, group)
    return out


# Below autograd: a call of PyTorch's own takes a wrapper and three Python layers more.


def _gathered(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The parts of all ranks along the first dimension; the caller waits."""
    size, name = dist.get_world_size(group), group.group_name
    with torch._C._AutoDispatchBelowAutograd():
        out: Tensor = _operators.all_gather_into_tensor(part, size, name)
    return out


def _scattered(whole: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's part along the first dimension of the sum over ranks; the caller waits."""
    size, name = dist.get_world_size(group), group.group_name
    with torch._C._AutoDispatchBelowAutograd():
        out: Tensor = _operators.reduce_scatter_tensor(whole, "sum", size, name)
    return out


def _by_rank(whole: Tensor, dim: int, size: int) -> Tensor:
    """What each rank is to get, one after the other along the first dimension."""
    return whole if dim == 0 else torch.cat(whole.chunk(size, dim))


def _settled(pending: Tensor) -> Tensor:
    """The same tensor, once it may be used on the current stream."""
    with torch._C._AutoDispatchBelowAutograd():
        _operators.wait_tensor(pending)
    return pending


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gathered(part, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _settled(_scattered(grad.contiguous(), ctx.group)), None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _scattered(whole, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _settled(_gathered(grad.contiguous(), ctx.group)), None


class _SumBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, same: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return same.view_as(same)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return waited(functional.all_reduce(grad.contiguous(), "sum", ctx.group)), None


class _SumForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        return waited(functional.all_reduce(part.contiguous(), "sum", group))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, same: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return same.chunk(dist.get_world_size(group), dim)[dist.get_rank(group)].contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return waited(_all_gather(grad.contiguous(), ctx.dim, ctx.group)), None, None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return waited(_all_gather(part.contiguous(), dim, group))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        size, rank = dist.get_world_size(ctx.group), dist.get_rank(ctx.group)
        return grad.chunk(size, ctx.dim)[rank].contiguous(), None, None
