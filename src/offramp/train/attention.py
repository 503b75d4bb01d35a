"""Causal attention that stays inside each document, as transformers calls it.

transformers looks attention up by the name in a model's configuration. Under NAMES it finds
`attend`, in one kernel or by products, which takes the documents of the batch from the keyword
`packing` that travels through the layers, so that no model code knows of packing.

Shapes: B sequences, H heads, T tokens, D numbers a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from offramp.train import host_attention

NAME = "offramp"
NAMES = {"fused": NAME, "products": f"{NAME}_products"}  # by the choices of `model.attention`


@dataclass(frozen=True, eq=False)
class Packing:
    """What attention must know of a batch.

    spans        (row, first token, past the last token) of every document, in order; None where
                 every row is one document
    mask_BTT     instead of spans: True where a token may attend; for compiled layers and for
                 context parallelism, whose queries and keys are not the same tokens
    distance_TT  with a mask whose tokens are in another order: how far each key is before its query
    context      gathers the keys and values of a whole sequence (context parallelism), or None
    """

    spans: tuple[tuple[int, int, int], ...] | None = None
    mask_BTT: Tensor | None = None
    distance_TT: Tensor | None = None
    context: Any = None


def register() -> None:
    """Make both kinds of attention known to transformers under NAMES."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    made: dict[str, Any] = {"fused": attend, "products": partial(attend, by_products=True)}
    for kind, name in NAMES.items():
        AttentionInterface.register(name, made[kind])
        AttentionMaskInterface.register(name, lambda *args, **kwargs: None)


def find_spans(documents_BT: Tensor) -> tuple[tuple[int, int, int], ...] | None:
    """The spans of equal numbers along each row (a tensor in host memory); None: one a row."""
    rows = documents_BT.numpy()
    edges = (rows[:, 1:] != rows[:, :-1]).nonzero()
    if not len(edges[0]):
        return None
    width = rows.shape[1]
    cuts: list[list[int]] = [[0] for _ in rows]
    for row, column in zip(*(axis.tolist() for axis in edges), strict=True):
        cuts[row].append(column + 1)
    return tuple(
        (row, first, past)
        for row, firsts in enumerate(cuts)
        for first, past in zip(firsts, [*firsts[1:], width], strict=True)
    )


def causal_mask(documents_BT: Tensor) -> Tensor:
    """(B, 1, T, T), True where a query (row) sees a key (column): earlier, same document."""
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return same_BTT.tril()[:, None]


def attend(
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention for transformers' layers: returns the output as (B, T, H, D), and no weights.

    Fewer key-value heads than query heads are shared out evenly (grouped queries). Layers with a
    window give it as `sliding_window`. With `by_products` every pair's weight is in memory, as
    before fused kernels.
    """
    packing = packing or Packing()
    sliding_window: int | None = kwargs.get("sliding_window")
    by_products: bool = kwargs.get("by_products", False)
    if packing.context is not None:
        key_BHTD, value_BHTD = packing.context.gather(key_BHTD), packing.context.gather(value_BHTD)
    options: dict[str, Any] = {
        "dropout_p": dropout if module.training else 0.0,
        "scale": scaling,
        "enable_gqa": key_BHTD.shape[1] != query_BHTD.shape[1],
    }
    mask_BTT = attention_mask if attention_mask is not None else packing.mask_BTT
    window = sliding_window if sliding_window and sliding_window < key_BHTD.shape[2] else None
    if mask_BTT is None and (window or by_products):
        mask_BTT = _whole_mask(packing, query_BHTD)
    if mask_BTT is not None:
        if window:
            mask_BTT = mask_BTT & _near(mask_BTT, packing.distance_TT, window)
        own = attention_mask is None and packing.context is None  # then it is causal
        by_mask = _by_products if by_products else _masked
        out_BHTD = by_mask(query_BHTD, key_BHTD, value_BHTD, mask_BTT, options, causal=own)
    elif packing.spans is None:
        out_BHTD = _causal(query_BHTD, key_BHTD, value_BHTD, options)
    else:
        out_BHTD = _by_document(query_BHTD, key_BHTD, value_BHTD, packing.spans, options)
    return out_BHTD.transpose(1, 2).contiguous(), None


def _by_products(
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    mask_BTT: Tensor,
    options: dict[str, Any],
    *,
    causal: bool,
) -> Tensor:
    """Weights of all pairs in memory, in the format of the query; what is causal is in the mask.

    PyTorch's softmax adds up in float32 by itself, and rounds what it keeps.
    """
    key_BHTD, value_BHTD = _for_each_head(query_BHTD, key_BHTD, value_BHTD)
    scale = options["scale"] or query_BHTD.shape[-1] ** -0.5
    scores_BHTT = (query_BHTD @ key_BHTD.mT) * scale
    shares_BHTT = scores_BHTT.masked_fill(~mask_BTT, -torch.inf).softmax(-1)
    if options["dropout_p"]:
        shares_BHTT = torch.dropout(shares_BHTT, options["dropout_p"], train=True)
    out_BHTD: Tensor = shares_BHTT.to(query_BHTD.dtype) @ value_BHTD
    return out_BHTD


def _for_each_head(
    query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and values as often as queries' heads share them."""
    groups = query_BHTD.shape[1] // key_BHTD.shape[1]
    if groups == 1:
        return key_BHTD, value_BHTD
    return key_BHTD.repeat_interleave(groups, 1), value_BHTD.repeat_interleave(groups, 1)


def _causal(
    query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, options: dict[str, Any]
) -> Tensor:
    if host_attention.suits(query_BHTD, key_BHTD, options["dropout_p"]):
        return host_attention.causal_attention(query_BHTD, key_BHTD, value_BHTD, options["scale"])
    return scaled_dot_product_attention(query_BHTD, key_BHTD, value_BHTD, is_causal=True, **options)


def _masked(
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    mask_BTT: Tensor,
    options: dict[str, Any],
    *,
    causal: bool,
) -> Tensor:
    if causal and host_attention.suits(query_BHTD, key_BHTD, options["dropout_p"]):
        return host_attention.causal_attention(
            query_BHTD, key_BHTD, value_BHTD, options["scale"], mask_BTT
        )
    # No fused kernel of CUDA's that takes a mask shares out keys, but for cuDNN's.
    key_BHTD, value_BHTD = _for_each_head(query_BHTD, key_BHTD, value_BHTD)
    options = options | {"enable_gqa": False}
    return scaled_dot_product_attention(
        query_BHTD, key_BHTD, value_BHTD, attn_mask=mask_BTT, **options
    )


def _by_document(
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    spans: tuple[tuple[int, int, int], ...],
    options: dict[str, Any],
) -> Tensor:
    """One causal attention a document; neighbouring rows of one document go together."""
    width = query_BHTD.shape[2]
    pieces: list[Tensor] = []  # along T, of one row
    rows: list[Tensor] = []
    whole = 0  # whole rows that wait
    for row, first, past in (*spans, (query_BHTD.shape[0], 0, 0)):
        if past - first == width:
            whole += 1
            continue
        if whole:
            part = slice(row - whole, row)
            rows.append(_causal(query_BHTD[part], key_BHTD[part], value_BHTD[part], options))
            whole = 0
        if past:
            one, span = slice(row, row + 1), slice(first, past)
            pieces.append(
                _causal(
                    query_BHTD[one, :, span],
                    key_BHTD[one, :, span],
                    value_BHTD[one, :, span],
                    options,
                )
            )
            if past == width:
                rows.append(torch.cat(pieces, 2))
                pieces = []
    return torch.cat(rows)


def _whole_mask(packing: Packing, query_BHTD: Tensor) -> Tensor:
    batch, width = query_BHTD.shape[0], query_BHTD.shape[2]
    if packing.spans is None:
        return torch.ones(width, width, dtype=torch.bool, device=query_BHTD.device).tril()
    documents_BT = torch.zeros(batch, width, dtype=torch.int64)
    for number, (row, first, past) in enumerate(packing.spans):
        documents_BT[row, first:past] = number
    return causal_mask(documents_BT).to(query_BHTD.device)


def _near(mask_BTT: Tensor, distance_TT: Tensor | None, window: int) -> Tensor:
    """True where a key is at most window - 1 tokens before its query."""
    if distance_TT is not None:
        return distance_TT < window
    queries, keys = mask_BTT.shape[-2:]
    ones = torch.ones(queries, keys, dtype=torch.bool, device=mask_BTT.device)
    return ones.triu(keys - queries - window + 1)
