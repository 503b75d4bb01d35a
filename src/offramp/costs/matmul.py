"""Matrix products: a roofline whose compute side counts tiles, waves and the ramp along K."""

from __future__ import annotations

import math
from dataclasses import dataclass

from offramp.costs.constants import Tile
from offramp.costs.cost import Cost, Span
from offramp.costs.flops import Product
from offramp.costs.limits import Limits, Rate
from offramp.costs.memory_bound import size
from offramp.costs.operation import Operation

# Parts into which K may be split when the result has too few tiles to fill the chip.
SPLITS = (1, 2, 4, 8, 16)
_PARTIAL_BYTES = 4  # partial sums are float32


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to cut a product: a tile, K in `split` parts, `units` pieces of equal work."""

    tile: Tile
    split: int
    units: float
    depth: float  # elements of K in a piece

    @property
    def flops(self) -> float:
        """Work of one piece, padding included, without the ramp."""
        return 2.0 * self.tile.rows * self.tile.columns * self.depth


def cost(op: Operation, parts: tuple[Product, ...], limits: Limits) -> Cost:
    """Seconds of an operation made of products: each in turn, at least the time of its bytes."""
    moved = sum(size(item) for item in (*op.inputs, *op.outputs))
    total, basis = Span.exact(0), ""
    for part in parts:
        rate = limits.rate(part.dtype, convolution=part.convolution, reduced=_reduced(op))
        total = total + compute(part, rate, limits)
        basis = f"product: {rate.basis}, {_waves(limits)}"
    speed = limits.bandwidth * limits.constants["memory.pointwise_share"]
    total = total.at_least(Span.exact(moved) / speed)
    total = total + limits.constants["memory.kernel"] * len(parts)
    flops = sum(part.flops for part in parts)
    return Cost.of_span(total, "matmul", basis, flops=flops, bytes=moved)


def compute(product: Product, rate: Rate, limits: Limits) -> Span:
    """Seconds of the multiplications with the best plan; memory and fixed time left out.

    With C multiprocessors, u pieces take ceil(u / C) waves, and each wave C pieces' work:
    `waves x C x 2 tm tn (K / split + ramp) / rate`. Where C is only a guess, pieces are not
    rounded up to waves, but never run on fewer than the guess, and the interval widens.
    """
    if not product.flops:
        return Span.exact(0)
    ramp = limits.constants["products.ramp"]
    cores = _cores(limits)
    exact = limits.multiprocessors is not None

    kernel = limits.constants["memory.kernel"].value
    results = product.m * product.n * product.batch
    speed = (limits.bandwidth * limits.constants["memory.pointwise_share"]).value
    real = product.flops / (2.0 * product.m * product.n * product.k * product.batch)
    last = Span.exact(1) if exact else limits.constants["products.unknown_waves"]

    def seconds(plan: Plan) -> float:
        work = plan.flops * (1 + ramp.value / plan.depth) / plan.tile.share * real * last.value
        taken = _filled(plan.units, cores.value, exact) * work / rate.achieved.value
        partials = 2.0 * plan.split * results * _PARTIAL_BYTES / speed + kernel
        return taken + (partials if plan.split > 1 else 0.0)

    best = min(_plans(product, limits), key=seconds)
    value, low, high = (_filled(best.units, c, exact) for c in (cores.value, cores.low, cores.high))
    filled = Span(value, low, high, cores.tier)
    deep = (ramp / best.depth + 1) * (best.flops / best.tile.share)
    span = (filled * deep * real / rate.achieved * last).at_least(
        Span.exact(product.flops) / rate.peak
    )
    return span + _partials(product, best, limits)


def _filled(units: float, cores: float, exact: bool) -> float:
    return math.ceil(units / cores) * cores if exact else max(units, cores)


def _cores(limits: Limits) -> Span:
    if limits.multiprocessors is not None:
        return Span.exact(limits.multiprocessors)
    return limits.constants["products.cores"]


def _plans(product: Product, limits: Limits) -> list[Plan]:
    plans = []
    for tile in limits.constants.tiles:
        blocks = math.ceil(product.m / tile.rows) * math.ceil(product.n / tile.columns)
        for split in SPLITS:
            plans.append(Plan(tile, split, blocks * product.batch * split, product.k / split))
    return plans


def _partials(product: Product, plan: Plan, limits: Limits) -> Span:
    """One more kernel, which adds up the partial sums of a split K."""
    if plan.split == 1:
        return Span.exact(0)
    results = product.m * product.n * product.batch
    moved = 2.0 * plan.split * results * _PARTIAL_BYTES
    speed = limits.bandwidth * limits.constants["memory.pointwise_share"]
    return Span.exact(moved) / speed + limits.constants["memory.kernel"]


def _reduced(op: Operation) -> bool | None:
    allowed = op.values.get("allow_tf32")
    return None if allowed is None else bool(allowed)


def _waves(limits: Limits) -> str:
    if limits.multiprocessors is not None:
        return f"waves of {limits.multiprocessors} tiles"
    return "multiprocessors unknown, no waves"
