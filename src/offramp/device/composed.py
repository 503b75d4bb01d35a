"""Operators that PyTorch has for accelerators only, composed of those that the CPU has.

Programs meet them through public names: `SyncBatchNorm`, `torch.mm(..., out_dtype=)`, CTC loss.
Signatures are those of ATen (native_functions.yaml).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_libraries: list[torch.library.Library] = []


def install(key: str) -> None:
    """Register every operator of this file at the dispatch key of the chip's tensors."""
    library = torch.library.Library("aten", "IMPL")
    for name, function in _table().items():
        library.impl(name, function, key)
    _libraries.append(library)  # registrations live as long as it does


def _table() -> dict[str, Callable[..., Any]]:
    return {
        "_use_cudnn_ctc_loss": lambda *args: False,
        "_use_cudnn_ctc_loss.Tensor": lambda *args: False,
        "_use_miopen_ctc_loss": lambda *args: False,
        "_use_miopen_ctc_loss.Tensor": lambda *args: False,
        "_fused_dropout": _fused_dropout,
        "_masked_scale": lambda values, mask, scale: values * mask.to(values.dtype) * scale,
        "_fused_rms_norm_backward": _rms_norm_backward,
        "batch_norm_stats": _batch_norm_stats,
        "batch_norm_elemt": _batch_norm_apply,
        "batch_norm_gather_stats": _gather_stats,
        "batch_norm_gather_stats_with_counts": _gather_stats,
        "batch_norm_backward_reduce": _batch_norm_backward_reduce,
        "batch_norm_backward_elemt": _batch_norm_backward_apply,
        **_products(),
    }


def _fused_dropout(
    values: Tensor, keep: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    mask = torch.empty_like(values, dtype=torch.uint8).bernoulli_(keep, generator=generator)
    return values * mask / keep, mask


def _rms_norm_backward(
    grad: Tensor,
    values: Tensor,
    normalized_shape: list[int],
    rstd: Tensor,
    weight: Tensor | None,
    wanted: list[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradient of y = w x / sqrt(mean(x^2) + eps), with rstd = 1 / sqrt(mean(x^2) + eps)."""
    inner = list(range(values.dim() - len(normalized_shape), values.dim()))
    outer = list(range(values.dim() - len(normalized_shape)))
    grad, unit = grad.to(rstd.dtype), values.to(rstd.dtype) * rstd
    scaled = grad if weight is None else grad * weight
    d_values = rstd * (scaled - unit * (scaled * unit).mean(inner, keepdim=True))
    d_weight = None
    if weight is not None and wanted[1]:
        product = grad * unit
        d_weight = (product.sum(outer) if outer else product).to(weight.dtype)
    return (d_values.to(values.dtype) if wanted[0] else None), d_weight


# [Note: synchronized batch normalization] Channels C are dimension 1. Each rank reduces its own
# part to a mean and an inverse standard deviation, all gather these, and combine them by their
# counts: the variance of the whole is the mean of the parts' variances plus that of their means.


def _accumulated(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _others(values: Tensor) -> list[int]:
    return [dim for dim in range(values.dim()) if dim != 1]


def _channels(of: Tensor, like: Tensor) -> Tensor:
    return of.reshape(1, -1, *[1] * (like.dim() - 2))


def _batch_norm_stats(values: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(
        values.to(_accumulated(values.dtype)), dim=_others(values), correction=0
    )
    return mean, torch.rsqrt(var + eps)


def _batch_norm_apply(
    values: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    eps: float,
) -> Tensor:
    result = (values - _channels(mean, values)) * _channels(invstd, values)
    if weight is not None:
        result = result * _channels(weight, values)
    if bias is not None:
        result = result + _channels(bias, values)
    return result.to(values.dtype)


def _gather_stats(
    values: Tensor,
    means: Tensor,
    invstds: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor | int,
) -> tuple[Tensor, Tensor]:
    """Shapes: means and invstds [ranks, C], counts [ranks] or one number for every rank."""
    if isinstance(counts, int):
        counts = means.new_full((means.shape[0],), counts)
    share = counts.to(means.dtype).reshape(-1, 1)
    total = share.sum()
    mean = (share * means).sum(0) / total
    squares = (share * (invstds.pow(-2) - eps + (means - mean).square())).sum(0)
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    if running_var is not None:
        running_var.lerp_((squares / (total - 1)).to(running_var.dtype), momentum)
    return mean, torch.rsqrt(squares / total + eps)


def _batch_norm_backward_reduce(
    grad: Tensor,
    values: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    *wanted: bool,
) -> tuple[Tensor | None, ...]:
    """Sums over all but C of the gradient and of its product with x - mean; d weight; d bias."""
    grad, dims = grad.to(mean.dtype), _others(values)
    total = grad.sum(dims)
    product = (grad * (values - _channels(mean, values))).sum(dims)
    d_weight = (product * invstd).to(values.dtype if weight is None else weight.dtype)
    d_bias = total.to(d_weight.dtype)
    for_values, for_weight, for_bias = wanted
    return (
        total if for_values else None,
        product if for_values else None,
        d_weight if for_weight else None,
        d_bias if for_bias else None,
    )


def _batch_norm_backward_apply(
    grad: Tensor,
    values: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
) -> Tensor:
    share = 1 / count.sum().to(mean.dtype)
    scale = invstd if weight is None else invstd * weight
    centred = values - _channels(mean, values)
    slope = _channels(sum_dy_xmu * share * invstd.square(), values)
    shifted = grad - _channels(sum_dy * share, values) - centred * slope
    return (shifted * _channels(scale, values)).to(values.dtype)


def _products() -> dict[str, Callable[..., Any]]:
    """Matrix products with a wider result: computed in that format throughout."""

    def wider(function: Callable[..., Tensor], count: int) -> Callable[..., Tensor]:
        def product(*args: Any, **kwargs: Any) -> Tensor:
            dtype = args[count]
            return function(*(t.to(dtype) for t in args[:count]), **kwargs)

        return product

    def into(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, out, **kwargs: out.copy_(function(*args, **kwargs))

    products: dict[str, tuple[Callable[..., Tensor], int]] = {
        "mm": (torch.mm, 2),
        "bmm": (torch.bmm, 2),
        "addmm": (torch.addmm, 3),
        "baddbmm": (torch.baddbmm, 3),
    }
    table: dict[str, Callable[..., Any]] = {}
    for name, (function, count) in products.items():
        table[f"{name}.dtype"] = wider(function, count)
        table[f"{name}.dtype_out"] = into(table[f"{name}.dtype"])
    return table
