"""The matrix products and the attention in an operation, by its shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from offramp.costs.operation import Operation, Tensor

# What reading sizes raises when there are fewer than the operator's schema promises.
_NO_SUCH_SHAPES = (IndexError, TypeError, ValueError, ZeroDivisionError)


@dataclass(frozen=True, slots=True)
class Product:
    """`batch` products [m, k] x [k, n] of one dtype; `m` is an average where groups differ."""

    m: float
    n: float
    k: float
    batch: float
    dtype: str
    convolution: bool = False

    @property
    def flops(self) -> float:
        """2 m n k each; a complex product is four real ones."""
        real = 4 if self.dtype.startswith("complex") else 1
        return 2.0 * self.m * self.n * self.k * self.batch * real


@dataclass(frozen=True, slots=True)
class Attention:
    """Fused attention: `batch` sequences of `heads` query heads.

    `queries` and `keys` are lengths, averages where sequences are packed; `width` is the head
    size of queries and keys, `value_width` that of values; `window` is how many keys before its
    own place a query sees, 0 for all. `last`: a causal mask lets the last query see the last key,
    rather than the first one the first.
    """

    batch: float
    heads: int
    queries: float
    keys: float
    width: int
    value_width: int
    dtype: str
    causal: bool = False
    window: int = 0
    backward: bool = False
    last: bool = False

    @property
    def pairs(self) -> float:
        """Query-key pairs of one head that count: half of the square when causal.

        Queries that are the last of more keys' tokens see all the keys before them as well.
        """
        q, k = self.queries, self.keys
        if not self.causal:
            return q * k
        if self.last:
            q = min(q, k)  # earlier ones see nothing
            before = k - q
        else:
            before = 0
        if self.window and self.window < min(before + q, k):
            return q * self.window - max(0, self.window - before) ** 2 / 2
        return q * before + (q * q / 2 if q <= k else k * k / 2 + (q - k) * k)

    @property
    def flops(self) -> float:
        """Forward two products a pair; backward five, scores computed again among them."""
        each = 3 * self.width + 2 * self.value_width if self.backward else self.width
        each += 0 if self.backward else self.value_width
        return 2.0 * self.batch * self.heads * self.pairs * each


def products(op: Operation) -> tuple[Product, ...]:
    """The matrix products in `op`; none when it is no product, or its shapes are no product's."""
    find = _PRODUCTS.get(op.base)
    try:
        return find(op) if find is not None else ()
    except _NO_SUCH_SHAPES:
        return ()


def attention(op: Operation) -> Attention | None:
    """The fused attention that `op` is, if it is, with shapes that attention has."""
    place = _ATTENTION.get(op.base)
    try:
        return _find_attention(op, *place) if place is not None else None
    except _NO_SUCH_SHAPES:
        return None


def _find_attention(
    op: Operation, first: int, sequence_first: bool, backward: bool
) -> Attention | None:
    q, k, v = (op.tensor(first + i) for i in range(3))
    if q is None or k is None or v is None:
        return None
    packed = len(q.sizes) == 3
    sequence_first = sequence_first or packed
    queries, heads = _length_and_heads(q.sizes, sequence_first)
    keys, _ = _length_and_heads(k.sizes, sequence_first)
    batch: float = 1 if packed else q.sizes[0]
    offsets = _offsets(op, first + 3)
    if sequence_first and offsets is not None and offsets.numel > 1:
        documents = (offsets.numel - 1) / batch
        batch, queries, keys = batch * documents, queries / documents, keys / documents
    causal = any(op.values.get(key) for key in ("is_causal", "causal", "custom_mask_type"))
    window = op.values.get("window_size_left") or op.values.get("window_size") or 0
    if not isinstance(window, int) or window < 0:
        window = 0
    return Attention(
        *(batch, heads, queries, keys, q.sizes[-1], v.sizes[-1], q.dtype),
        causal=bool(causal),
        window=window,
        backward=backward,
        last="flash" in op.base or op.values.get("custom_mask_type") == _TO_THE_LAST,
    )


def _length_and_heads(sizes: Sequence[int], sequence_first: bool) -> tuple[float, int]:
    if sequence_first:  # [batch, length, heads, width], or [tokens, heads, width]
        return sizes[-3], sizes[-2]
    return sizes[-2], sizes[-3]  # [batch, heads, length, width]


def _offsets(op: Operation, start: int) -> Tensor | None:
    """Where packed sequences begin: the first one-dimensional integers after q, k and v."""
    for item in op.inputs[start:]:
        if isinstance(item, Tensor) and len(item.sizes) == 1 and item.dtype in ("int32", "int64"):
            return item
    return None


def _pair(op: Operation, first: int, second: int) -> tuple[Tensor, Tensor] | None:
    a, b = op.tensor(first), op.tensor(second)
    return None if a is None or b is None else (a, b)


def _matrices(first: int, second: int) -> Callable[[Operation], tuple[Product, ...]]:
    """[..., m, k] x [..., k, n], or x [k]: mm, bmm, mv and those with an addend in front."""

    def find(op: Operation) -> tuple[Product, ...]:
        pair = _pair(op, first, second)
        if pair is None or not pair[0].sizes or not pair[1].sizes:
            return ()
        a, b = pair
        n = b.sizes[-1] if len(b.sizes) > 1 else 1
        m = a.sizes[-2] if len(a.sizes) > 1 else 1
        heads = (t.sizes[:-2] for t in (a, b))
        batch = max(math.prod(sizes) for sizes in heads)
        return (Product(m, n, a.sizes[-1], batch, a.dtype),)

    return find


def _linear(op: Operation) -> tuple[Product, ...]:
    pair = _pair(op, 0, 1)
    if pair is None or len(pair[1].sizes) != 2 or not pair[0].sizes:
        return ()
    x, weight = pair
    n, k = weight.sizes
    return (Product(math.prod(x.sizes[:-1]), n, k, 1, x.dtype),)


def _grouped(op: Operation) -> tuple[Product, ...]:
    """Groups of rows, of columns or of the inner dimension, taken to be of one size."""
    pair = _pair(op, 0, 1)
    if pair is None:
        return ()
    a, b = pair
    offsets = _offsets(op, 2)
    groups = offsets.numel if offsets is not None else 1
    if len(a.sizes) == 2 and len(b.sizes) == 3:  # [tokens, k] x [groups, k, n]
        groups, k, n = b.sizes
        return (Product(a.sizes[0] / groups, n, k, groups, a.dtype),)
    if len(a.sizes) == 3 and len(b.sizes) == 2:  # [groups, m, k] x [k, tokens]
        groups, m, k = a.sizes
        return (Product(m, b.sizes[1] / groups, k, groups, a.dtype),)
    if len(a.sizes) == 2:  # [m, tokens] x [tokens, n]
        m, tokens = a.sizes
        return (Product(m, b.sizes[-1], tokens / max(groups, 1), max(groups, 1), a.dtype),)
    return _matrices(0, 1)(op)


def _convolution(op: Operation) -> tuple[Product, ...]:
    """As an implicit product: every place of the output (or of a transposed one's input)."""
    pair = _pair(op, 0, 1)
    out = op.outputs[0] if op.outputs else None
    if pair is None or not isinstance(out, Tensor):
        return ()
    x, weight = pair
    groups = int(op.values.get("groups", 1) or 1)
    if op.values.get("transposed"):
        places = x.sizes[0] * math.prod(x.sizes[2:])
        n, k = math.prod(weight.sizes[1:]), weight.sizes[0] // groups
    else:
        places = out.sizes[0] * math.prod(out.sizes[2:])
        n, k = weight.sizes[0] // groups, math.prod(weight.sizes[1:])
    return (Product(places, n, k, groups, x.dtype, convolution=True),)


def _convolution_backward(op: Operation) -> tuple[Product, ...]:
    """Gradients of the input and of the weight, each as much work as the forward pass."""
    grad, pair = op.tensor(0), _pair(op, 1, 2)
    if grad is None or pair is None:
        return ()
    x, weight = pair
    groups = int(op.values.get("groups", 1) or 1)
    transposed = bool(op.values.get("transposed"))
    at = x if transposed else grad
    places = at.sizes[0] * math.prod(at.sizes[2:])
    inner, outer = math.prod(weight.sizes[1:]), weight.sizes[0] // groups
    mask = op.values.get("output_mask", (True, True, False))
    of_input = Product(places, inner, outer, groups, x.dtype, convolution=True)
    of_weight = Product(outer, inner, places, groups, x.dtype, convolution=True)
    return tuple(p for p, wanted in zip((of_input, of_weight), mask, strict=False) if wanted)


_PRODUCTS: Mapping[str, Callable[[Operation], tuple[Product, ...]]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "matmul", "_int_mm", "_scaled_mm"), _matrices(0, 1)),
    **dict.fromkeys(
        ("addmm", "addmm_", "baddbmm", "baddbmm_", "addmv", "addmv_", "_addmm_activation"),
        _matrices(1, 2),
    ),
    "linear": _linear,
    **dict.fromkeys(("_grouped_mm", "_scaled_grouped_mm"), _grouped),
    **dict.fromkeys(
        (
            *("convolution", "_convolution", "convolution_overrideable", "conv2d", "conv1d"),
            *("cudnn_convolution", "miopen_convolution", "mkldnn_convolution", "conv3d"),
        ),
        _convolution,
    ),
    **dict.fromkeys(
        ("convolution_backward", "convolution_backward_overrideable"), _convolution_backward
    ),
}
# Of the memory-efficient kernel; flash kernels have no other causal mask.
_TO_THE_LAST = 2
# Name -> place of the queries, whether the sequence comes before the heads, backward.
_SDPA = "_scaled_dot_product_{}attention{}"
_ATTENTION: Mapping[str, tuple[int, bool, bool]] = {
    **{_SDPA.format(k, ""): (0, False, False) for k in ("flash_", "efficient_", "cudnn_")},
    **{_SDPA.format(k, "_backward"): (1, False, True) for k in ("flash_", "efficient_", "cudnn_")},
    **{_SDPA.format(*k): (0, False, False) for k in (("flash_", "_for_cpu"),)},
    **{_SDPA.format(*k): (1, False, True) for k in (("flash_", "_for_cpu_backward"),)},
    _SDPA.format("fused_", "_overrideable"): (0, False, False),
    _SDPA.format("fused_", "_overrideable_backward"): (1, False, True),
    **{f"_{k}_attention_forward": (0, True, False) for k in ("flash", "efficient")},
    **{f"_{k}_attention_backward": (1, True, True) for k in ("flash", "efficient")},
    "_cudnn_attention_forward": (0, False, False),
    "_cudnn_attention_backward": (1, False, True),
    **{f"flash_attn::_flash_attn_{k}forward": (0, True, False) for k in ("", "varlen_")},
    **{f"flash_attn::_flash_attn_{k}backward": (1, True, True) for k in ("", "varlen_")},
    **{f"flash_attn_3::{k}": (0, True, False) for k in ("fwd", "_flash_attn_forward")},
    **{f"flash_attn_3::{k}": (1, True, True) for k in ("bwd", "_flash_attn_backward")},
}
# Every operator in which work is counted, without namespace `aten` and overload.
KNOWN = frozenset(_PRODUCTS) | frozenset(_ATTENTION)
