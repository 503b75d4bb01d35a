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
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.functional import scaled_dot_product_attention

from offramp.train import host_attention
from offramp.train.formats import product_dtype

NAME = "offramp"
NAMES = {"fused": NAME, "products": f"{NAME}_products"}  # by the choices of `model.attention`
FLASH_WIDTHS = 8  # CUDA's flash kernel takes heads of a multiple of this


@dataclass(frozen=True, eq=False)
class Packing:
    """What attention must know of a batch.

    spans        (row, first token, past the last token) of every document, in order; None where
                 every row is one document
    mask_BTT     instead of spans: True where a token may attend; for compiled layers
    context      the part of the sequences that the queries are, which gathers all their keys and
                 values (context parallelism), or None
    part_masks   with a context: such a mask for each part of the queries, with the keys up to its
                 end; None where every row is one document
    """

    spans: tuple[tuple[int, int, int], ...] | None = None
    mask_BTT: Tensor | None = None
    context: Any = None
    part_masks: tuple[Tensor, ...] | None = None


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


def causal_mask(documents_BT: Tensor, first: int = 0) -> Tensor:
    """(B, 1, queries, T), True where a query (row) sees a key (column): earlier, same document.

    Queries are the tokens from `first` on.
    """
    same_BTT = documents_BT[:, first:, None] == documents_BT[:, None, :]
    return same_BTT.tril(first)[:, None]


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
    how: dict[str, Any] = {
        "window": kwargs.get("sliding_window"),
        "by_products": kwargs.get("by_products", False),
        "options": {
            "dropout_p": dropout if module.training else 0.0,
            "scale": scaling,
            "enable_gqa": key_BHTD.shape[1] != query_BHTD.shape[1],
        },
    }
    if packing.context is not None:
        out_BHTD = _by_part(query_BHTD, key_BHTD, value_BHTD, packing, how)
    else:
        if attention_mask is not None:
            packing = Packing(mask_BTT=attention_mask)
        how["is_causal"] = attention_mask is None
        out_BHTD = _attended(query_BHTD, key_BHTD, value_BHTD, packing, **how)
    return out_BHTD.transpose(1, 2).contiguous(), None


def _by_part(
    query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, packing: Packing, how: dict[str, Any]
) -> Tensor:
    """Each part of the queries with the keys that its tokens may see."""
    key_BHTD, value_BHTD = packing.context.gather(key_BHTD), packing.context.gather(value_BHTD)
    parts = packing.context.parts(key_BHTD.shape[2])
    queries = query_BHTD.chunk(len(parts), 2)
    pieces = []
    for number, (first, past) in enumerate(parts):
        start = max(0, first + 1 - how["window"]) if how["window"] else 0
        mask = packing.part_masks[number][..., start:] if packing.part_masks else None
        near = slice(start, past)
        pieces.append(
            _attended(
                queries[number],
                key_BHTD[:, :, near],
                value_BHTD[:, :, near],
                Packing(mask_BTT=mask),
                **how,
            )
        )
    return torch.cat(pieces, 2)


def _attended(
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    packing: Packing,
    *,
    window: int | None,
    by_products: bool,
    options: dict[str, Any],
    is_causal: bool = True,
) -> Tensor:
    """Attention of queries that are the last of the keys' tokens; `is_causal`: any mask is."""
    mask_BTT = packing.mask_BTT
    window = window if window and window < key_BHTD.shape[2] else None
    if mask_BTT is None and (window or by_products):
        mask_BTT = _whole_mask(packing, query_BHTD, key_BHTD)
    if mask_BTT is not None:
        if window:
            mask_BTT = mask_BTT & _near(mask_BTT, window)
        by_mask = _by_products if by_products else _masked
        return by_mask(query_BHTD, key_BHTD, value_BHTD, mask_BTT, options, causal=is_causal)
    if packing.spans is None:
        return _causal(query_BHTD, key_BHTD, value_BHTD, options)
    return _by_document(query_BHTD, key_BHTD, value_BHTD, packing.spans, options)


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
    if query_BHTD.shape[2] != key_BHTD.shape[2]:
        return _causal_of_the_last(query_BHTD, key_BHTD, value_BHTD, options)
    return scaled_dot_product_attention(query_BHTD, key_BHTD, value_BHTD, is_causal=True, **options)


def _causal_of_the_last(
    query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, options: dict[str, Any]
) -> Tensor:
    """Queries that are the last of the keys' tokens: the last one sees all keys.

    As PyTorch's `causal_lower_right`: CUDA's flash kernel aligns its causal mask so, where
    scaled_dot_product_attention aligns to the first key. Other kernels get a mask.
    """
    format = product_dtype(query_BHTD)
    q, k, v = query_BHTD.to(format), key_BHTD.to(format), value_BHTD.to(format)
    dropout, grouped = options["dropout_p"], options["enable_gqa"]
    if q.is_cuda and _takes_flash(q.device, format, (q.shape[-1], v.shape[-1]), dropout, grouped):
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        out_BHTD: Tensor = flash(q, k, v, dropout, True, scale=options["scale"])[0]
        return out_BHTD
    mask_TT = _whole_mask(Packing(), query_BHTD, key_BHTD)
    return _masked(query_BHTD, key_BHTD, value_BHTD, mask_TT, options, causal=True)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _takes_flash(
    device: torch.device, dtype: torch.dtype, widths: tuple[int, int], dropout: float, grouped: bool
) -> bool:
    """Whether CUDA's flash kernel takes heads of these widths, of keys and of values."""
    if widths[0] % FLASH_WIDTHS:
        return False
    shapes = ((1 + grouped, widths[0]), (1, widths[0]), (1, widths[1]))
    q, k, v = (torch.empty(1, heads, 1, d, dtype=dtype, device=device) for heads, d in shapes)
    return bool(can_use_flash_attention(SDPAParams(q, k, v, None, dropout, False, grouped)))


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


def _whole_mask(packing: Packing, query_BHTD: Tensor, key_BHTD: Tensor) -> Tensor:
    batch, queries, width = query_BHTD.shape[0], query_BHTD.shape[2], key_BHTD.shape[2]
    if packing.spans is None:
        ones_TT = torch.ones(queries, width, dtype=torch.bool, device=query_BHTD.device)
        return ones_TT.tril(width - queries)
    documents_BT = torch.zeros(batch, width, dtype=torch.int64)
    for number, (row, first, past) in enumerate(packing.spans):
        documents_BT[row, first:past] = number
    return causal_mask(documents_BT).to(query_BHTD.device)


def _near(mask_BTT: Tensor, window: int) -> Tensor:
    """True where a key is at most window - 1 tokens before its query."""
    queries, keys = mask_BTT.shape[-2:]
    ones = torch.ones(queries, keys, dtype=torch.bool, device=mask_BTT.device)
    return ones.triu(keys - queries - window + 1)
