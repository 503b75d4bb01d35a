"""Factors: what whole training runs take over what benchmarks of their parts let expect.

Constants of costs come from benchmarks: one kernel at a time, a cool chip, an idle network.
Training keeps all of it busy for hours. `training.toml` has one factor for each group of constants,
on all chips alike, which `offramp validate --fit` found on published runs; and, for every source of
such runs, the factors that are found without all of its makers: it is predicted by what never saw
them.

A factor multiplies seconds: 1.1 says that what the constants tell takes a tenth longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

from offramp.chips.reading import Context, Table
from offramp.costs.constants import Constants, read_constant
from offramp.costs.cost import Span
from offramp.costs.link_family import Family, Protocol, Range

DATA = Path(__file__).parent / "training.toml"

Factors = Mapping[str, Span]
NONE: Factors = MappingProxyType({})  # as benchmarks say

# What each factor stands for, as files that have it say in their notes.
MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "products": "matrix products: clocks under lasting load, shapes that nobody chose",
        "attention": "fused attention, forward and backward",
        "memory": "what moves bytes: elementwise operators, reductions, copies, optimizers",
        "kernels": "a kernel's fixed time on the chip, and the gap to the next",
        "host": "what the host takes to launch",
        "links": "transfers inside a node, by their bytes",
        "network": "transfers between nodes, by their bytes",
        "latency": "steps of collectives: other ranks are late, switches shared",
        "overlap": "how much longer than alone compute takes beside a collective",
    }
)
# Constants, without their section, of which each factor makes less: shares of a rate.
_SHARES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "products": ("products", ("peak_share", "measured_share", "vector_share")),
    "attention": (
        "attention",
        ("forward_share", "backward_share", "vendor_forward_share", "vendor_backward_share"),
    ),
    "memory": (
        "memory",
        ("pointwise_share", "reduction_share", "strided_share", "gather_share", "scatter_share"),
    ),
}
# And of which it makes more: times.
_TIMES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "kernels": ("memory", ("kernel", "ramp")),
    "host": ("host", ("operator", "view", "listed", "collective", "readback")),
}


def in_training(constants: Constants, factors: Factors) -> Constants:
    """The constants of a chip as they are in training."""
    spans: dict[str, Span] = {}
    for name, factor in factors.items():
        section, keys = _SHARES.get(name, ("", ()))
        for key in keys:
            spans[f"{section}.{key}"] = constants[f"{section}.{key}"] / factor
        section, keys = _TIMES.get(name, ("", ()))
        for key in keys:
            spans[f"{section}.{key}"] = constants[f"{section}.{key}"] * factor
    if "overlap" in factors:
        spans["overlap.slowdown"] = _overlap(constants["overlap.slowdown"], factors["overlap"])
    return Constants(constants.family, {**constants.spans, **spans}, constants.tiles)


def _overlap(slowdown: Span, factor: Span) -> Span:
    """What compute takes longer, multiplied; never less than nothing."""
    value, low, high = (max(0.0, s - 1) for s in (slowdown.value, slowdown.low, slowdown.high))
    return Span(value, low, high, slowdown.tier) * factor + 1


def of_links(family: Family, factors: Factors, *, between_nodes: bool) -> Family:
    """What a kind of link reaches in training."""
    slower = factors.get("network" if between_nodes else "links", Span.exact(1))
    later = factors.get("latency", Span.exact(1))
    switch = None if family.switch is None else _less(family.switch, slower)
    return replace(
        family,
        ring=_less(family.ring, slower),
        switch=switch,
        switch_latency=_more(family.switch_latency, later),
        protocols=tuple(_late(protocol, later) for protocol in family.protocols),
    )


def _late(protocol: Protocol, factor: Span) -> Protocol:
    return replace(
        protocol,
        base=_more(protocol.base, factor),
        step=_more(protocol.step, factor),
        tree_step=_more(protocol.tree_step, factor),
    )


def _less(share: Range, factor: Span) -> Range:
    """A share of the nominal bandwidth, of which there is no more than all."""
    ends = (share.slow / factor.high, share.value / factor.value, share.fast / factor.low)
    return Range(*(min(1.0, end) for end in ends))


def _more(seconds: Range, factor: Span) -> Range:
    return Range(
        seconds.slow * factor.high, seconds.value * factor.value, seconds.fast * factor.low
    )


def factors(unseen: str = "") -> Factors:
    """The factors that hold in training; with `unseen`, those for that source's runs.

    They move constants with their intervals, and do not widen them: what a constant may be was
    said already.
    """
    whole, without = read(DATA)
    found = without.get(unseen, whole)
    return {name: Span(s.value, s.value, s.value, s.tier) for name, s in found.items()}


@cache
def read(path: Path) -> tuple[Factors, Mapping[str, Factors]]:
    """Read a file of factors strictly: those of all runs, and those without each source.

    Raises ChipFileError (file, key, expectation).
    """
    top = Table.of_file(path, "a file of factors")
    sources = top.table("sources", required=True)
    context = Context(path, {key: sources.take(key, str) for key in sources.names()}, {})
    top.take("title", str)
    whole = _factors(top.table("all", required=True), context)
    without = {}
    for row in top.tables("without"):
        title = row.take("unseen", str)
        without[title] = _factors(row, context, ("unseen",))
    top.close(("title", "sources", "all", "without"))
    return whole, MappingProxyType(without)


def _factors(table: Table, context: Context, others: tuple[str, ...] = ()) -> Factors:
    found = {
        name: read_constant(table.table(name, required=True), "1", context)
        for name in MEANINGS
        if name in table.names()
    }
    table.close((*MEANINGS, *others))
    for name, span in found.items():
        if not span.low > 0:
            raise table.fail(name, "expected a factor above 0")
    return MappingProxyType(found)
