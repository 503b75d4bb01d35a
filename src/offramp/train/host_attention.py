"""Causal attention for host processors: whole products instead of small tiles.

PyTorch's attention on a CPU works through tiles of 32 by 512 whose products are far below the rate
of a large one, most of all in the backward pass. Here a block of queries meets all the keys that
it may see in one batched product. Scores exist for one block at a time, and are computed again in
the backward pass.

Shapes: B sequences, H heads, K key-value heads (G = H / K queries' heads each), T tokens, D numbers
a head (values may have another width); N = B K, and R = G x the block's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from offramp.train.formats import product_dtype

BLOCK = 128  # queries whose scores exist at a time


def suits(query_BHTD: Tensor, key_BKTD: Tensor, dropout: float) -> bool:
    """Whether this is the faster way: a host, a short format in products, and enough tokens.

    Measured on two cores with avx512_bf16: twice as fast from 256 tokens to 4,096 in bfloat16, no
    faster in float32, slower below one block.
    """
    kind, tokens = query_BHTD.device.type, query_BHTD.shape[2]
    if kind != "cpu" or dropout or tokens < BLOCK or key_BKTD.shape[2] < tokens:
        return False
    return product_dtype(query_BHTD) == torch.bfloat16


def causal_attention(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    scale: float | None = None,
    mask_B1TT: Tensor | None = None,
) -> Tensor:
    """softmax(scale query key^T) value with every token seeing those up to itself, (B, H, T, D).

    Fewer queries than keys are those of the last tokens.

    mask_B1TT   True where a token (of the queries) may see one (of the keys): itself, and any of
                those before it; or (T, T), the same for every sequence
    Scores are rounded to the format of the inputs; softmax and sums over tokens are in float32.
    """
    scale = query_BHTD.shape[-1] ** -0.5 if scale is None else scale
    format = product_dtype(query_BHTD)
    inputs = (x.to(format) for x in (query_BHTD, key_BKTD, value_BKTD))
    with torch.autocast(query_BHTD.device.type, enabled=False):
        out: Tensor = _CausalAttention.apply(*inputs, mask_B1TT, scale)
    return out


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(query, key, value, mask)
        batch, heads, tokens, _ = query.shape
        key_NTD, value_NTD = key.flatten(0, 1), value.flatten(0, 1)
        groups = heads // key.shape[1]
        out_NGTD = query.new_empty(len(key_NTD), groups, tokens, value.shape[-1])
        for first, past, seen in _blocks(query, key):
            query_NRD = _rows(query, key, first, past) * scale
            share_NRT = _shares(query_NRD, key_NTD[:, :seen], mask, first, past)
            out_NRD = torch.bmm(share_NRT, value_NTD[:, :seen])
            out_NGTD[:, :, first:past] = out_NRD.unflatten(1, (-1, past - first))
        return out_NGTD.view(batch, heads, tokens, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        _, heads, tokens, width = query.shape
        key_NTD, value_NTD = key.flatten(0, 1), value.flatten(0, 1)
        query_grad = query.new_empty(len(key_NTD), heads // key.shape[1], tokens, width)
        key_grad = torch.zeros_like(key_NTD, dtype=torch.float32)
        value_grad = torch.zeros_like(value_NTD, dtype=torch.float32)
        for first, past, seen in _blocks(query, key):
            query_NRD = _rows(query, key, first, past) * ctx.scale
            share_NRT = _shares(query_NRD, key_NTD[:, :seen], mask, first, past)
            grad_NRD = _rows(grad, key, first, past)
            value_grad[:, :seen] += torch.bmm(share_NRT.mT, grad_NRD)
            share_grad = torch.bmm(grad_NRD, value_NTD[:, :seen].mT)
            score_grad = torch._softmax_backward_data(share_grad, share_NRT, -1, share_NRT.dtype)
            rows_grad = torch.bmm(score_grad, key_NTD[:, :seen]).mul_(ctx.scale)
            query_grad[:, :, first:past] = rows_grad.unflatten(1, (-1, past - first))
            key_grad[:, :seen] += torch.bmm(score_grad.mT, query_NRD)
        return (
            query_grad.view_as(query),
            key_grad.to(key.dtype).view_as(key),
            value_grad.to(value.dtype).view_as(value),
            None,
            None,
        )


def _blocks(query_BHTD: Tensor, key_BKTD: Tensor) -> Iterator[tuple[int, int, int]]:
    """(first, past the last query, keys that these may see) of every block."""
    tokens, keys = query_BHTD.shape[2], key_BKTD.shape[2]
    for first in range(0, tokens, BLOCK):
        past = min(first + BLOCK, tokens)
        yield first, past, keys - tokens + past


def _rows(of_BHTD: Tensor, key_BKTD: Tensor, first: int, past: int) -> Tensor:
    """A block's tokens, those of the heads that share a key-value head one after another."""
    grouped = of_BHTD[:, :, first:past].unflatten(1, (key_BKTD.shape[1], -1))
    rows_NRD: Tensor = grouped.reshape(-1, grouped.shape[2] * (past - first), of_BHTD.shape[-1])
    return rows_NRD


def _shares(
    query_NRD: Tensor, seen_NTD: Tensor, mask: Tensor | None, first: int, past: int
) -> Tensor:
    """How much each query of a block takes of each token that it may see, (N, R, T)."""
    score_NRT = torch.bmm(query_NRD, seen_NTD.mT)
    side, seen = past - first, seen_NTD.shape[1]
    if mask is None:
        later = score_NRT.new_full((side, side), -torch.inf).triu_(1)
        score_NRT.unflatten(1, (-1, side))[..., seen - side :] += later
    else:
        hidden = ~mask[..., first:past, :seen]
        by_row = score_NRT.view(hidden.shape[0] if hidden.dim() > 2 else 1, -1, side, seen)
        by_row.masked_fill_(hidden, -torch.inf)
    return score_NRT.softmax(-1)
