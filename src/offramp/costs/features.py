"""What decides an operator's time on a measured machine: the name of a curve, and a place on it.

Names go from the operator itself to its like, which stands in where only that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from offramp.costs import memory_bound
from offramp.costs.classes import REDUCTIONS, ROWWISE
from offramp.costs.flops import Product
from offramp.costs.flops import attention as find_attention
from offramp.costs.flops import products as find_products
from offramp.costs.operation import Argument, Operation, Tensor, Tensors

WHOLE = float(1 << 20)  # elements in a run that never ends
_SPECIAL_POWERS = (0, 0.5, 1, 2, 3, -0.5, -1, -2)  # which PyTorch computes without `pow`


@dataclass(frozen=True)
class Feature:
    """A place on a curve: the first of `names` that was measured; `times` over."""

    names: tuple[str, ...]
    dtype: str
    place: Mapping[str, float]
    times: float = 1.0


@dataclass(frozen=True)
class Features:
    """All that an operation does, part by part; `like` stands in where a part was not measured."""

    parts: tuple[Feature, ...]
    kind: str = "memory"
    flops: float = 0.0
    bytes: float = field(default=0.0)
    like: tuple[Feature, ...] = ()


def features(op: Operation) -> Features | None:
    """The parts of `op`, or None where its shapes say nothing."""
    moved = float(sum(memory_bound.size(item) for item in (*op.inputs, *op.outputs)))
    products = find_products(op)
    if products:
        flops = sum(part.flops for part in products)
        parts = tuple(_product(op, p) for p in products)
        whole = _convolution(op, products)
        if whole is not None:
            return Features((whole,), "matmul", flops, moved, parts)
        return Features(parts, "matmul", flops, moved)
    shape = find_attention(op)
    if shape is not None:
        way = "backward" if shape.backward else "forward"
        place = {
            "heads": shape.batch * shape.heads,
            "length": math.sqrt(shape.queries * shape.keys),
            "width": (shape.width + shape.value_width) / 2,
        }
        names = (f"attention.{way}{'.causal' if shape.causal else ''}", f"attention.{way}")
        part = Feature(names, shape.dtype, place)
        return Features((part,), "attention", shape.flops, moved)
    if op.base not in ROWWISE and op.base not in REDUCTIONS:
        moved = memory_bound.traffic(op).bytes
    return Features((_moving(op, moved),), "memory", 0.0, moved)


def _product(op: Operation, product: Product) -> Feature:
    """A product; `nt` says that the second matrix lies transposed, as a linear layer's weight."""
    place = {"m": product.m, "n": product.n, "k": product.k, "batch": product.batch}
    first = 1 if op.base.startswith(("add", "_addmm", "badd")) else 0
    layout = "nt" if op.base == "linear" else _layout(op, first)
    names: tuple[str, ...]
    if product.batch > 1:
        names = (f"bmm.{layout}", "bmm.nn")
    elif op.base.startswith("addmm"):
        names = (f"addmm.{layout}", "addmm.nt", f"product.{layout}", "product.nn")
    else:
        names = (f"product.{layout}", "product.nn")
    return Feature(names, product.dtype, place)


def _convolution(op: Operation, products: Sequence[Product]) -> Feature | None:
    """A convolution of images, without groups; a backward pass is one part."""
    backward = op.base.startswith("convolution_backward")
    weight = op.tensor(2 if backward else 1)
    one = products[0].convolution and products[0].batch == 1 and not op.values.get("transposed")
    if not one or weight is None or len(weight.sizes) != 4:
        return None
    window = math.prod(weight.sizes[2:])
    inner, outer = window * weight.sizes[1], weight.sizes[0]
    work = math.prod((products[0].m, products[0].n, products[0].k))
    place = {"m": work / (inner * outer), "n": float(outer), "k": float(inner)}
    form = "point" if window == 1 else "window"
    if not backward:
        return Feature((f"convolution.{form}",), products[0].dtype, place)
    mask = op.values.get("output_mask")
    of_weight = isinstance(mask, list) and not mask[0]
    name = "convolution_backward.weight" if of_weight else "convolution_backward"
    times = len(products) / 2 if not of_weight else 1.0
    return Feature((f"{name}.{form}",), products[0].dtype, place, times)


def _layout(op: Operation, first: int) -> str:
    return _lies(op.tensor(first)) + _lies(op.tensor(first + 1))


def _lies(tensor: Tensor | None) -> str:
    if tensor is None or len(tensor.sizes) < 2:
        return "n"
    return "t" if tensor.strides[-2] == 1 and tensor.strides[-1] != 1 else "n"


def _moving(op: Operation, moved: float) -> Feature:
    base, dtype = op.base, _dtype(op)
    listed = [item for item in op.inputs if isinstance(item, Tensors)]
    if listed and base not in ("cat", "stack"):
        place = {"bytes": max(moved, 1.0), "count": float(max(i.count for i in listed))}
        like = "_foreach_norm" if "norm" in base else "_foreach_mul_"
        return Feature((base, like, "mul.2"), dtype, {**place, "run": WHOLE})
    if base in ("embedding", "embedding_dense_backward"):
        return _lookup(op, dtype)
    if base.startswith("nll_loss"):
        scores = next(t for t in op.tensors if len(t.sizes) > 1 or base == "nll_loss_forward")
        classes = scores.sizes[-1] if scores.sizes else 1
        rows = max(1.0, scores.numel / max(1, classes))
        return Feature((base,), scores.dtype, {"rows": rows, "classes": float(max(1, classes))})
    place = {"bytes": max(moved, 1.0)}
    if base in ROWWISE or base.startswith(("native_layer_norm", "_fused_rms_norm")):
        return Feature((base, "_softmax"), dtype, {**place, "row": _row(op)})
    if base in REDUCTIONS:
        outer, row = _reduced(op)
        names = (f"{base}.outer", "sum.outer") if outer else (base, "sum")
        return Feature((*names, "sum"), dtype, {**place, "row": row})
    place["run"] = _run(op)
    return Feature(_pointwise_names(op), dtype, place)


def _dtype(op: Operation) -> str:
    """The format worked in; of a conversion both, `float32>bfloat16`."""
    of = [i.dtype for i in (*op.inputs, *op.outputs) if i is not None]
    if op.base == "copy_" and len(op.inputs) > 1 and op.inputs[1] is not None:
        source = op.inputs[1].dtype
        return of[0] if source == of[0] else f"{source}>{of[0]}"
    return of[0] if of else "float32"


def _pointwise_names(op: Operation) -> tuple[str, ...]:
    base = {"stack": "cat", "_to_copy": "copy_", "contiguous": "clone"}.get(op.base, op.base)
    if base == "pow" and op.values.get("exponent", 2) not in _SPECIAL_POWERS:
        base = "pow.general"
    full = _full_inputs(op)
    plain = base.rstrip("_")
    like = {1: "mul.1", 2: "mul.2"}.get(full, "mul.2" if full else "fill_")
    names = (f"{base}.{full}", base, f"{plain}.{full}", plain, like, "mul.2")
    return tuple(dict.fromkeys(names))


def _full_inputs(op: Operation) -> int:
    """How many inputs have as many elements as the result."""
    out = next((o.numel for o in op.outputs), 0)
    return sum(1 for t in op.tensors if t.numel == out)


def _lookup(op: Operation, dtype: str) -> Feature:
    """Rows of a table read by index, or added to by index."""
    table, indices = op.tensor(0), op.tensor(1)
    if table is None or indices is None:
        return Feature((op.base,), dtype, {})
    place = {"rows": float(max(1, indices.numel)), "width": float(table.sizes[-1])}
    if op.base == "embedding_dense_backward":
        place["table"] = float(op.values.get("num_weights", 1))
    return Feature((op.base,), dtype, place)


def _row(op: Operation) -> float:
    """Elements that are normalized together."""
    tensors = op.tensors
    sizes = tensors[0].sizes if tensors else ()
    dim = op.values.get("dim", -1)
    shape = op.values.get("normalized_shape")
    if isinstance(shape, list):
        return float(max(1, math.prod(shape)))
    inside = isinstance(dim, int) and -len(sizes) <= dim < len(sizes)
    return float(max(1, sizes[dim] if inside and sizes else 1))


def _reduced(op: Operation) -> tuple[bool, float]:
    """Whether a reduction keeps the innermost dimension, and how long rows of it are."""
    tensor = op.tensor(0)
    if tensor is None or not tensor.sizes:
        return False, 1.0
    given = op.values.get("dim", [])
    listed = given if isinstance(given, list) else [given]
    dims = {d % len(tensor.sizes) for d in listed if isinstance(d, int)}
    if not dims:
        return False, float(max(1, tensor.numel))
    steps = [d for d, size in enumerate(tensor.sizes) if size > 1]
    inner = min(steps, key=lambda d: tensor.strides[d], default=0)
    if inner in dims:
        return False, float(max(1, math.prod(tensor.sizes[d] for d in dims)))
    kept = math.prod(s for d, s in enumerate(tensor.sizes) if d > max(dims))
    return True, float(max(1, kept))


def _run(op: Operation) -> float:
    """Elements that lie one behind another in every tensor, dimensions merged where they can be.

    Kernels that go over elements go along runs; where runs are short each one has a price.
    """
    out = op.outputs[0] if op.outputs else None
    if not isinstance(out, Tensor):
        return WHOLE
    if op.base in ("cat", "stack"):
        return _piece(op, out)
    tensors = [t for t in (*op.tensors, out) if t.numel > 1]
    dims = [d for d in range(len(out.sizes)) if out.sizes[d] > 1]
    dims.sort(key=lambda d: out.strides[d])
    run, before = 1, [0] * len(tensors)
    for place, dim in enumerate(dims):
        steps = [_step(t, dim - len(out.sizes)) for t in tensors]
        if place == 0:
            fits = all(step in (0, 1) for step in steps)
        else:
            size = out.sizes[dims[place - 1]]
            fits = all(step == size * last for step, last in zip(steps, before, strict=True))
        if not fits:
            return float(run)
        run, before = run * out.sizes[dim], steps
    return WHOLE


def _step(tensor: Tensor, dim: int) -> int:
    """The stride along a dimension counted from the end; 0 where the tensor is repeated."""
    if -dim > len(tensor.sizes) or tensor.sizes[dim] == 1:
        return 0
    return tensor.strides[dim]


def _piece(op: Operation, out: Tensor) -> float:
    """Elements that each part of a concatenation puts in a row."""
    parts: Argument = op.inputs[0] if op.inputs else None
    count = parts.count if isinstance(parts, Tensors) else 1
    dim = op.values.get("dim", 0)
    if not isinstance(dim, int) or not -len(out.sizes) <= dim < len(out.sizes):
        return WHOLE
    inner = math.prod(out.sizes[dim % len(out.sizes) :])
    return WHOLE if inner == out.numel and dim == 0 else float(max(1, inner // max(1, count)))
