"""Cross-entropy of a language model's head, a few tokens' logits at a time.

The logits of a batch are the largest tensor of a small model's training: tokens x vocabulary, kept
for the backward pass. Here the gradients are taken while a chunk's logits exist, in the forward
pass, and only theirs are kept. Under tensor parallelism each rank has its part of the vocabulary.

Shapes: N tokens, D hidden numbers, V vocabulary (of this rank).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from offramp.train.data.batches import IGNORED


@dataclass(frozen=True)
class Chunking:
    """How the loss is computed.

    tokens   whose logits exist at a time; 0: all of them, and the loss is PyTorch's own, unless a
             group shares the vocabulary
    group    the ranks that share the vocabulary, or None
    first    the first token of this rank's part of the vocabulary
    """

    tokens: int = 1024
    group: dist.ProcessGroup | None = None
    first: int = 0


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    bias_V: Tensor | None = None,
    chunking: Chunking | None = None,
) -> Tensor:
    """The sum over tokens of -log softmax(hidden weight^T + bias)[target], in nats, as float32.

    targets_N   token numbers of the whole vocabulary, or IGNORED
    weight_VD   this rank's part where a group shares the vocabulary; the gradient of `hidden_ND`
                is then this rank's part of a sum over the group

    The products are in the format of `hidden_ND`; the softmax and the sums are in float32.
    """
    chunking = chunking or Chunking()
    if not chunking.tokens and chunking.group is None:
        bias = None if bias_V is None else bias_V.to(hidden_ND.dtype)
        logits_NV = F.linear(hidden_ND, weight_VD.to(hidden_ND.dtype), bias).float()
        return F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="sum")
    loss: Tensor = _LinearCrossEntropy.apply(hidden_ND, weight_VD, bias_V, targets_N, chunking)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        chunking: Chunking,
    ) -> Tensor:
        weight = weight_VD.to(hidden_ND.dtype)
        bias = None if bias_V is None else bias_V.to(hidden_ND.dtype)
        wanted = ctx.needs_input_grad[:3]
        grads = _Gradients.like(hidden_ND, weight_VD, bias_V, wanted)
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        for part in _parts(len(targets_N), chunking.tokens or max(1, len(targets_N))):
            logits_NV = F.linear(hidden_ND[part], weight, bias).float()
            loss_N, grad_NV = _softmax_loss(logits_NV, targets_N[part], chunking, any(wanted))
            total += loss_N.sum()
            if grad_NV is not None:
                grads.add(part, grad_NV.to(hidden_ND.dtype), hidden_ND[part], weight)
        ctx.save_for_backward(*grads.tensors())
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            grad if grad is None else grad * scale.to(grad.dtype) for grad in ctx.saved_tensors
        )
        return *scaled, None, None


@dataclass
class _Gradients:
    """The gradients of hidden, weight and bias; None where nobody wants one."""

    hidden_ND: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None

    @staticmethod
    def like(
        hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, wanted: tuple[bool, ...]
    ) -> _Gradients:
        return _Gradients(
            torch.empty_like(hidden_ND) if wanted[0] else None,
            torch.zeros_like(weight_VD) if wanted[1] else None,
            torch.zeros_like(bias_V) if wanted[2] and bias_V is not None else None,
        )

    def add(self, part: slice, grad_NV: Tensor, hidden_ND: Tensor, weight_VD: Tensor) -> None:
        if self.hidden_ND is not None:
            torch.mm(grad_NV, weight_VD, out=self.hidden_ND[part])
        if self.weight_VD is not None:
            if self.weight_VD.dtype == grad_NV.dtype:
                self.weight_VD.addmm_(grad_NV.T, hidden_ND)
            else:  # a chunk's product is rounded to the short format, the sum over chunks is not
                self.weight_VD += grad_NV.T @ hidden_ND
        if self.bias_V is not None:
            self.bias_V += grad_NV.sum(0)

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.hidden_ND, self.weight_VD, self.bias_V


def _softmax_loss(
    logits_NV: Tensor, targets_N: Tensor, chunking: Chunking, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss of each token and, in the memory of the logits, its gradient by them."""
    vocabulary = logits_NV.shape[1]
    local_N = targets_N - chunking.first
    here_N = (local_N >= 0) & (local_N < vocabulary) & (targets_N != IGNORED)
    column_N1 = local_N.clamp(0, vocabulary - 1)[:, None]
    top_N1 = _reduced(logits_NV.amax(1, keepdim=True), dist.ReduceOp.MAX, chunking.group)
    logits_NV -= top_N1
    target_N = logits_NV.gather(1, column_N1)[:, 0] * here_N
    target_N = _reduced(target_N, dist.ReduceOp.SUM, chunking.group)
    exp_NV = logits_NV.exp_()
    sum_N1 = _reduced(exp_NV.sum(1, keepdim=True), dist.ReduceOp.SUM, chunking.group)
    counted_N = targets_N != IGNORED
    loss_N = torch.where(counted_N, sum_N1[:, 0].log() - target_N, 0.0)
    if not with_gradient:
        return loss_N, None
    exp_NV *= counted_N[:, None] / sum_N1
    exp_NV.scatter_add_(1, column_N1, -here_N[:, None].to(exp_NV.dtype))
    return loss_N, exp_NV


def _reduced(value: Tensor, op: Any, group: dist.ProcessGroup | None) -> Tensor:
    if group is not None:
        dist.all_reduce(value, op, group=group)
    return value


def _parts(count: int, size: int) -> Iterator[slice]:
    """Slices of `size`, in order."""
    return (slice(first, min(first + size, count)) for first in range(0, count, size))
