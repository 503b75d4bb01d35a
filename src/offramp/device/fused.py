"""A compiler for rehearsals: graphs are captured and differentiated as for a real one, and what it
would compute in one kernel becomes one operator without values, `offramp::fused`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from offramp.device import fusion

_NAMES = ("fused", "fused_reduction")
_SCHEMA = "(Tensor[] inputs, int[] layout) -> Tensor[]"
# How a layout spells a format; the position is its number.
_FORMATS = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.complex64, torch.complex128, torch.uint64, torch.uint32, torch.uint16),
)


def layout_of(values: Sequence[torch.Tensor]) -> list[int]:
    """Formats, shapes and strides of tensors in one list of integers."""
    numbers: list[int] = []
    for value in values:
        numbers += [_FORMATS.index(value.dtype), value.dim(), *value.shape, *value.stride()]
    return numbers


def made_from(layout: Sequence[int], device: torch.device | str) -> list[torch.Tensor]:
    """Empty tensors as a layout describes them."""
    made, at = [], 0
    while at < len(layout):
        dtype, dims = _FORMATS[layout[at]], layout[at + 1]
        shape = layout[at + 2 : at + 2 + dims]
        strides = layout[at + 2 + dims : at + 2 + 2 * dims]
        made.append(torch.empty_strided(shape, strides, dtype=dtype, device=device))
        at += 2 + 2 * dims
    return made


@cache
def _library() -> torch.library.Library:
    """The operators, with what PyTorch's meta device answers for them."""
    library = torch.library.Library("offramp", "DEF")
    for name in _NAMES:
        library.define(name + _SCHEMA)
        library.impl(name, lambda inputs, layout: made_from(layout, "meta"), "Meta")
        # A chip runs only what the CPU can; a rehearsal never asks it.
        library.impl(name, lambda inputs, layout: made_from(layout, "cpu"), "CPU")
    return library


def backend(graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """A backend of torch.compile."""
    from torch._decomp import core_aten_decompositions, get_decompositions
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch._aot_autograd.utils import make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    def lower(captured: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        boxed: Callable[..., Any] = make_boxed_func(lowered(captured).forward)
        return boxed

    table = core_aten_decompositions()
    # As Inductor: what a loss keeps is then its logits and two numbers a row.
    table.update(get_decompositions([torch.ops.aten._log_softmax, torch.ops.aten._softmax]))
    made: Callable[..., Any] = aot_autograd(
        fw_compiler=lower,
        bw_compiler=lower,
        inference_compiler=lower,
        decompositions=table,
        partition_fn=min_cut_rematerialization_partition,
        keep_inference_input_mutations=True,
    )(graph, inputs)
    return made


def lowered(captured: GraphModule) -> GraphModule:
    """The same graph with one operator for each kernel; unchanged where shapes are not fixed."""
    _library()
    nodes = list(captured.graph.nodes)
    if any(not _is_fixed(node) for node in nodes):
        return captured
    made = Graph()
    now: dict[Node, Node] = {}
    for node in nodes:
        if node.op in ("placeholder", "get_attr"):
            now[node] = made.node_copy(node)
    for unit in fusion.plan(nodes):
        if unit.is_fused:
            _add_kernel(made, unit, now)
        else:
            for node in unit.nodes:
                now[node] = made.node_copy(node, lambda old: _current(made, old, now))
    output = nodes[-1]
    made.output(torch.fx.map_arg(output.args[0], lambda old: _current(made, old, now)))
    return GraphModule(captured, made)


def _is_fixed(node: Node) -> bool:
    """Whether the node's results have numbers for shapes, and formats that can be spelled."""
    value = node.meta.get("val")
    for each in value if isinstance(value, tuple | list) else (value,):
        if isinstance(each, torch.SymInt | torch.SymFloat | torch.SymBool):
            return False
        if isinstance(each, torch.Tensor):
            numbers = (*each.shape, *each.stride(), each.storage_offset())
            if each.dtype not in _FORMATS or not all(type(n) is int for n in numbers):
                return False
    return True


def _current(made: Graph, old: Node, now: dict[Node, Node]) -> Node:
    """The node that stands for an old one; views are made where somebody needs them."""
    if old not in now:
        assert fusion.is_view(old), old.format_node()
        now[old] = made.node_copy(old, lambda node: _current(made, node, now))
    return now[old]


def _add_kernel(made: Graph, unit: fusion.Unit, now: dict[Node, Node]) -> None:
    inside = set(unit.nodes)
    read = {base for base in unit.reads if fusion.maker_of(base) not in inside}
    inputs = [_current(made, node, now) for node in sorted(read, key=lambda node: node.name)]
    values = [node.meta["val"] for node in unit.outputs]
    library = torch.ops.offramp
    kernel = library.fused if unit.form == fusion.POINTWISE else library.fused_reduction
    results = made.call_function(kernel.default, (inputs, layout_of(values)))
    for at, node in enumerate(unit.outputs):
        now[node] = made.call_function(operator.getitem, (results, at))
