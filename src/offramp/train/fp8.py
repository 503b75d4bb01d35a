"""Linear layers whose products are in 8-bit floating point, for chips that have it.

E4M3 for activations and weights, E5M2 for gradients, each tensor scaled by its largest value at the
moment it is used (Micikevicius et al., arXiv:2209.05433). Weights and sums stay in higher
precision.

Shapes: N tokens, K inputs, M outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from offramp.errors import UsageError

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # what the hardware's 8-bit products ask of each dimension


class Float8Linear(nn.Linear):
    """A linear layer with 8-bit products; its weight is the plain layer's."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) to (..., M) in bfloat16."""
        short_NK = input.to(torch.bfloat16).flatten(0, -2)
        out: Tensor = _Product.apply(short_NK, self.weight.to(torch.bfloat16))
        out = out.unflatten(0, input.shape[:-1])
        return out if self.bias is None else out + self.bias.to(out.dtype)


def convert(layer: nn.Module, tokens: int) -> int:
    """Give the linear layers inside a decoder layer 8-bit products; how many there were.

    tokens   rows of a product: those of a micro-batch

    Routers keep theirs, for small differences there choose other experts. Raises UsageError where
    the tokens are no multiple of 16.
    """
    if tokens % MULTIPLE:
        raise UsageError(
            f"train.fp8 needs micro-batches of a multiple of {MULTIPLE} tokens; got {tokens}"
        )
    found = [
        module
        for module in layer.modules()
        if type(module) is nn.Linear
        and not module.in_features % MULTIPLE
        and not module.out_features % MULTIPLE
    ]
    for module in found:
        module.__class__ = Float8Linear
    return len(found)


def quantize(value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The tensor in 8 bits, and the factor, float32 (), that gives its values back."""
    largest = value.abs().amax().float().clamp(min=1e-12)
    scale = torch.finfo(dtype).max / largest
    return (value.float() * scale).to(dtype), scale.reciprocal()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_NK: Tensor, weight_MK: Tensor) -> Tensor:
        ctx.save_for_backward(input_NK, weight_MK)
        return _multiply(quantize(input_NK, FORWARD), quantize(weight_MK, FORWARD), input_NK.dtype)

    @staticmethod
    def backward(ctx: Any, grad_NM: Tensor) -> tuple[Tensor, Tensor]:
        input_NK, weight_MK = ctx.saved_tensors
        grad = quantize(grad_NM, BACKWARD)
        turned = grad[0].t().contiguous(), grad[1]
        grad_NK = _multiply(grad, _turned(quantize(weight_MK, FORWARD)), grad_NM.dtype)
        grad_MK = _multiply(turned, _turned(quantize(input_NK, FORWARD)), grad_NM.dtype)
        return grad_NK, grad_MK


def _turned(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return pair[0].t().contiguous(), pair[1]


def _multiply(
    left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Tensor:
    """left (a, b) times the transpose of right (c, b), each with its factor: (a, c)."""
    return torch._scaled_mm(
        left[0], right[0].t(), scale_a=left[1], scale_b=right[1], out_dtype=dtype
    )
