"""CUDA's fused attention kernels by their own names, as context parallelism calls them.

Shapes: query [batch, heads, queries, size], key and value [batch, heads, keys, size], logsumexp
[batch, heads, queries]. The CPU's flash kernel computes all of them; what only seeds CUDA's
dropout is empty, and dropout is refused: the masks of forward and backward could not be the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
_NAME = "_scaled_dot_product_{}_attention"


def table(chip_name: str) -> dict[str, Callable[..., Any]]:
    """Operator name to kernel, for forward and backward of every fused kernel."""

    def refuse(kind: str, what: str) -> None:
        raise NotImplementedError(
            f"aten::{_NAME.format(kind)} with {what} is not supported on {chip_name} (virtual): "
            "the CPU has no kernel to compute its values with. Call "
            "torch.nn.functional.scaled_dot_product_attention, which chooses one that it has."
        )

    def forward(kind: str) -> Callable[..., Any]:
        def kernel(q: Tensor, k: Tensor, v: Tensor, *rest: Any, scale: float | None = None) -> Any:
            bias, dropout, causal = _options(kind, rest)
            if dropout != 0:
                refuse(kind, "dropout")
            out, logsumexp = _aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, causal, attn_mask=bias, scale=scale
            )
            seed = torch.zeros((), dtype=torch.int64, device=q.device)
            if kind == "efficient":
                return out, logsumexp, seed, seed.clone()
            lengths = (None, None, q.shape[2], k.shape[2])
            return out, logsumexp, *lengths, seed, seed.clone(), q.new_empty(0)

        return kernel

    def backward(kind: str) -> Callable[..., Any]:
        def kernel(*args: Any, scale: float | None = None) -> Any:
            if kind == "efficient":
                grad, q, k, v, bias, out, logsumexp, _, _, _, wanted, *causal = args
                if wanted[3]:
                    refuse("efficient", "a gradient of the bias")
            elif kind == "flash":
                grad, q, k, v, out, logsumexp, _, _, _, _, _, *causal = args
                bias = None
            else:
                grad, q, k, v, out, logsumexp, _, _, bias, _, _, _, _, _, *causal = args
            grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad, q, k, v, out, logsumexp, 0.0, bool(causal and causal[0]),
                attn_mask=bias, scale=scale,
            )  # fmt: skip
            return (*grads, None) if kind == "efficient" else grads

        return kernel

    kernels: dict[str, Callable[..., Any]] = {}
    for kind in ("flash", "efficient", "cudnn"):
        kernels[_NAME.format(kind)] = forward(kind)
        kernels[f"{_NAME.format(kind)}_backward"] = backward(kind)
    return kernels


def _options(kind: str, rest: tuple[Any, ...]) -> tuple[Tensor | None, float, bool]:
    """Bias, dropout and causality among the arguments after query, key and value."""
    names = ("dropout", "causal") if kind == "flash" else ("bias", "logsumexp", "dropout", "causal")
    options = dict(zip(names, rest, strict=False))
    return options.get("bias"), options.get("dropout", 0.0), options.get("causal", False)
