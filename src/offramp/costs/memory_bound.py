"""Operations whose time is that of moving bytes: which bytes, in which pattern."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.costs.classes import (
    EXTRA_READS,
    GATHERS,
    LOOKUPS,
    PATCHES,
    REDUCTIONS,
    ROWS_IN_REGISTERS,
    ROWWISE,
    SCATTERS,
    SPARSE_READS,
    WRITES,
)
from offramp.costs.cost import Cost, Span
from offramp.costs.limits import Limits
from offramp.costs.operation import Argument, Operation, Tensor, Tensors

# Tensors that one kernel of a list operation takes: the argument space of a launch holds the
# addresses of 30 to 110 (PyTorch's multi_tensor_apply, by the number of lists).
TENSORS_PER_KERNEL = 36


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that an operation moves, how (a share of the constants' memory section), kernels."""

    bytes: float
    pattern: str
    kernels: int = 1


def cost(op: Operation, limits: Limits) -> Cost:
    """Seconds of an operation that is neither product nor attention nor a copy over a link."""
    moved = traffic(op)
    seconds = transfer(moved, limits)
    basis = f"{moved.pattern} bytes: {limits.bandwidth_basis}, {limits.constants.family} share"
    return Cost.of_span(seconds, "memory", basis, bytes=moved.bytes)


def transfer(moved: Traffic, limits: Limits) -> Span:
    """Fixed time of the kernels, and the bytes at what the pattern leaves of the bandwidth.

    b bytes take (b + r) / (share x bandwidth) with r = ramp x share x bandwidth: of the full
    speed, a tensor of b bytes sees b / (b + r).
    """
    constants = limits.constants
    speed = limits.bandwidth * constants[f"memory.{moved.pattern}_share"]
    ramp = constants["memory.ramp"] if moved.bytes else 0.0
    return constants["memory.kernel"] * moved.kernels + ramp + Span.exact(moved.bytes) / speed


def traffic(op: Operation) -> Traffic:
    """What `op` reads and writes; an operator that nobody classified reads and writes it all."""
    base = op.base
    read, written = sum(map(size, _read(op))), sum(map(size, op.outputs))
    if base in LOOKUPS:  # as many bytes of the table as come out, and the indices
        indices = sum(size(item) for item in op.inputs[1:])
        return Traffic(2 * written + indices, "gather")
    if base in PATCHES:  # the target, or a copy of it, is changed where the update says
        update = sum(size(item) for item in op.inputs[1:])
        copied = 0 if base.endswith("_") else sum(map(size, op.inputs[:1])) + written
        return Traffic(copied + 3 * update, "scatter")
    if base in SCATTERS:  # the gradient is filled with zeros, then added to
        update = sum(size(item) for item in op.inputs)
        return Traffic(written + 3 * update, "scatter")
    if base in SPARSE_READS:
        rows = sum(size(item) for item in op.inputs[1:])
        return Traffic(2 * rows + written, "gather")
    if base in WRITES:
        return Traffic(written, "pointwise")
    if base.startswith("_fused_") and base.endswith("_") and len(op.outputs) > 1:
        written -= size(op.outputs[1])  # gradients are in the schema's written ones, but only read
    if base in REDUCTIONS or base in ROWWISE:
        again = EXTRA_READS.get(base, 0.0) + _long_rows(op)
        return Traffic(read * (1 + again) + written, "reduction", _kernels(op))
    if base in GATHERS:
        return Traffic(read + written, "gather")
    pattern = "strided" if _crossed(op) else "pointwise"
    return Traffic(read * (1 + EXTRA_READS.get(base, 0.0)) + written, pattern, _kernels(op))


def size(item: Argument) -> int:
    return 0 if item is None else item.bytes


def _read(op: Operation) -> tuple[Argument, ...]:
    """The inputs that are really read: neither `out=` nor what a copy overwrites."""
    if op.base == "copy_" or op.base == "_foreach_copy_":
        return op.inputs[1:]
    if "out" in op.overload.split("_") and op.outputs:
        return op.inputs[: -len(op.outputs)]
    return op.inputs


def _long_rows(op: Operation) -> float:
    """One more pass where a row of a softmax does not fit into the registers of a block."""
    if op.base not in ROWWISE or not op.tensors:
        return 0.0
    sizes = op.tensors[0].sizes
    dim = op.values.get("dim", -1)
    inside = isinstance(dim, int) and -len(sizes) <= dim < len(sizes)
    return 1.0 if inside and sizes[dim] > ROWS_IN_REGISTERS else 0.0


def _kernels(op: Operation) -> int:
    if op.name.startswith("offramp::"):  # what a compiler fused is one kernel
        return 1
    counts = [i.count for i in (*op.inputs, *op.outputs) if isinstance(i, Tensors)]
    return max(1, -(-max(counts, default=1) // TENSORS_PER_KERNEL))


def _crossed(op: Operation) -> bool:
    """Whether tensors of the full shape have their neighbours in memory along different dims."""
    tensors = [t for t in (*_read(op), *op.outputs) if isinstance(t, Tensor)]
    largest = max((t.numel for t in tensors), default=0)
    fastest = set()
    for tensor in tensors:
        dims = [d for d, size in enumerate(tensor.sizes) if size > 1]
        if tensor.numel == largest and dims and all(tensor.strides[d] for d in dims):
            fastest.add((len(tensor.sizes), min(dims, key=lambda d: tensor.strides[d])))
    return len({dim for _, dim in fastest}) > 1 and len({rank for rank, _ in fastest}) == 1
