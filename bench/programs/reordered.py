"""The same arithmetic in another order of summation, as another chip's kernels have it.

Products are split along the dimension that is summed over, in a random permutation; means and
variances of norms are taken in another order; attention is computed step by step instead of by one
kernel. Independent of the noise that `offramp record --perturb` makes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@contextlib.contextmanager
def reordered(seed: int) -> Iterator[None]:
    """Sum in another order inside the block, which the seed chooses."""
    generator = torch.Generator().manual_seed(seed)
    names = ("linear", "conv2d", "layer_norm", "scaled_dot_product_attention", "batch_norm")
    before = {name: getattr(F, name) for name in names}

    def parts(count: int) -> list[Tensor]:
        order = torch.randperm(count, generator=generator)
        pieces = int(torch.randint(1, 5, (), generator=generator))
        return list(order.chunk(min(pieces, count)))

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        total = sum(before["linear"](x[..., p], weight[:, p]) for p in parts(weight.shape[1]))
        return total if bias is None else total + bias

    def conv2d(x: Tensor, weight: Tensor, bias: Any = None, *rest: Any) -> Tensor:
        pieces = parts(weight.shape[1])
        total = sum(before["conv2d"](x[:, p], weight[:, p], None, *rest) for p in pieces)
        return total if bias is None else total + bias[:, None, None]

    def layer_norm(x: Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Tensor:
        order = torch.randperm(x.shape[-1], generator=generator)
        moved = x[..., order]
        mean = moved.mean(-1, keepdim=True)
        variance = (moved - mean).square().mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + eps) * weight + bias

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        order = torch.randperm(q.shape[-1], generator=generator)
        scores = (q[..., order] * scale) @ k[..., order].transpose(-1, -2)
        times = torch.randperm(v.shape[-2], generator=generator)
        share = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        return share[..., times] @ v[..., times, :]

    def batch_norm(
        x: Tensor,
        mean: Any,
        var: Any,
        weight: Any,
        bias: Any,
        training: bool,
        by: float,
        eps: float,
    ) -> Tensor:
        order = torch.randperm(x.shape[0], generator=generator)
        back = torch.argsort(order)
        y = before["batch_norm"](x[order], mean, var, weight, bias, training, by, eps)
        return y[back]

    F.linear, F.conv2d, F.layer_norm = linear, conv2d, layer_norm
    F.scaled_dot_product_attention, F.batch_norm = attention, batch_norm
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(F, name, function)
