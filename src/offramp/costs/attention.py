"""Fused attention, forward and backward: by its products at a share of the rate, or by its bytes.

Unfused attention needs nothing here: its products and its softmax are operators of their own.
"""

from __future__ import annotations

from offramp.costs.cost import Cost, Span
from offramp.costs.flops import Attention
from offramp.costs.limits import Limits
from offramp.costs.memory_bound import size
from offramp.costs.operation import Operation

ROWS = 128  # queries in a block of the flash kernels, their usual size
REFERENCE_WIDTH = 128  # head size at which the shares of the constants hold


def cost(op: Operation, shape: Attention, limits: Limits) -> Cost:
    """Seconds of a fused attention kernel; at least the time of the bytes in and out."""
    moved = sum(size(item) for item in (*op.inputs, *op.outputs))
    rate = limits.rate(shape.dtype)
    share = _share(op, shape, limits)
    speed = limits.bandwidth * limits.constants["memory.pointwise_share"]
    # Never faster than the peak: the share of a measured rate may exceed it at wide heads.
    fastest = Span.exact(shape.flops) / rate.peak
    seconds = (_work(shape, limits) / (rate.peak * share)).at_least(fastest)
    seconds = seconds.at_least(Span.exact(moved) / speed)
    seconds = seconds + limits.constants["memory.kernel"] * (3 if shape.backward else 1)
    which = "backward" if shape.backward else "forward"
    basis = f"attention {which}: {limits.constants.family} share of the peak, {rate.basis}"
    return Cost.of_span(seconds, "attention", basis, flops=shape.flops, bytes=moved)


def _work(shape: Attention, limits: Limits) -> Span:
    """Operations that the kernel really spends.

    Blocks on the diagonal are done in full; each row of a block pays for loading and storing as
    for `ramp` more of what it loops over; a chip with more multiprocessors than blocks has idle
    ones.
    """
    if not shape.flops:
        return Span.exact(0)
    rows = shape.keys if shape.backward else shape.queries
    pairs = shape.pairs
    if shape.causal:
        diagonal = min(ROWS, shape.queries) * min(shape.queries, shape.keys) / 2
        pairs = min(pairs + diagonal, shape.queries * shape.keys)
    done = limits.constants["attention.ramp"] * rows + pairs
    work = done * (shape.flops / shape.pairs)
    if limits.multiprocessors is not None:
        blocks = shape.batch * shape.heads * max(1.0, rows / ROWS)
        work = work * max(1.0, limits.multiprocessors / blocks)
    return work


def _share(op: Operation, shape: Attention, limits: Limits) -> Span:
    """Share of the peak at this head size: the softmax of a pair takes as long as the products of
    `softmax_width` elements, d / (d + width) of the time goes to products."""
    constants = limits.constants
    way = "backward" if shape.backward else "forward"
    vendor = "cudnn" in op.base or op.name.startswith("flash_attn_3::")
    share = constants[f"attention.{'vendor_' if vendor else ''}{way}_share"]
    if "efficient" in op.base:
        share = share * constants["attention.efficient_share"]
    if shape.causal:
        share = share * constants["attention.causal_share"]
    width = constants["attention.softmax_width"]
    head = max(1, (shape.width + shape.value_width) / 2)

    def filled(extra: float) -> float:
        return (head / (head + extra)) / (REFERENCE_WIDTH / (REFERENCE_WIDTH + extra))

    ends = sorted(filled(extra) for extra in (width.low, width.value, width.high))
    return share * Span(ends[1], ends[0], ends[2], width.tier)
