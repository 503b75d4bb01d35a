"""Which operators of a graph a compiler computes in one kernel.

The rules are those of TorchInductor's scheduler, in short (Ansel et al. 2024, "PyTorch 2",
section 4.4): an operator joins the kernel of one that it reads from where both go over the same
elements, or over parts of rows that the other reduces, and where no other kernel lies between.
Products, attention, lookups in memory and everything with a kernel of its own stay as they are.
Views are indexing and cost nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch.fx import Node


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_VIEWS = _names(
    """
    view _unsafe_view reshape permute transpose t expand slice select unsqueeze squeeze alias
    as_strided split split_with_sizes unbind detach lift_fresh_copy diagonal
    """
)
# Elementwise, though PyTorch does not tag them so.
_POINTWISE = _names(
    """
    _to_copy clone copy cat full full_like zeros_like ones_like arange empty_like scalar_tensor
    where constant_pad_nd slice_scatter rand_like randn_like native_dropout bernoulli triu tril
    silu_backward gelu_backward threshold_backward native_dropout_backward sigmoid_backward
    tanh_backward repeat flip
    """
)
# Along rows, whatever their arguments say.
_OF_ROWS = _names(
    """
    _softmax _log_softmax _softmax_backward_data _log_softmax_backward_data native_layer_norm
    _fused_rms_norm
    """
)
_REDUCTIONS = _OF_ROWS | _names(
    """
    sum mean max min amax amin var var_mean any all prod linalg_vector_norm logsumexp
    """
)
POINTWISE, ROWS, COLUMNS, WHOLE = _FORMS = "pointwise", "rows", "columns", "whole"


@dataclass(eq=False)
class Unit:
    """Nodes that become one kernel, or one node with a kernel of its own (`elements` is 0).

    elements   that it goes over
    form       whether it sums along rows (the last dimensions), along others, over everything, or
               not at all
    totals     its sums over everything, which are known only when all of it has run
    """

    nodes: list[Node]
    elements: int = 0
    form: str = POINTWISE
    readers: set[Unit] = field(default_factory=set)
    totals: set[Node] = field(default_factory=set)

    @property
    def is_fused(self) -> bool:
        """Whether it is made of operators that a compiler writes anew."""
        return self.elements > 0


def name_of(node: Node) -> str:
    """The operator's name without namespace and overload; empty for what is no operator."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return ""
    return str(target._schema.name.split("::")[1])


def value_of(node: Node) -> torch.Tensor | None:
    """The node's result as a fake tensor, where it is one tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def is_view(node: Node) -> bool:
    """Whether it is another way to index what it reads."""
    return name_of(node) in _VIEWS or node.target is operator.getitem


def base_of(node: Node) -> Node:
    """What a chain of views looks at: a node, or one result of a node with several."""
    while is_view(node) and isinstance(source := node.args[0], Node):
        if node.target is operator.getitem and not is_view(source):
            break
        node = source
    return node


def maker_of(base: Node) -> Node:
    """The node that computes what `base_of` gives."""
    return base.args[0] if base.target is operator.getitem else base  # type: ignore[return-value]


def plan(nodes: Iterable[Node]) -> list[Unit]:
    """The kernels of a graph, in an order in which they can run; without views and placeholders."""
    units: list[Unit] = []
    unit_of: dict[Node, Unit] = {}
    for node in nodes:
        if node.op != "call_function" or is_view(node):
            continue
        makers = {maker_of(base) for base in sources_of(node)}
        sources = {unit_of[maker] for maker in makers if maker in unit_of}
        made = _unit(node)
        inlined = _is_inlined(node)
        open_to = {unit_of[maker_of(base_of(node.all_input_nodes[0]))]} if inlined else sources
        home = next((one for one in _latest(open_to, units) if _takes(one, made, sources)), None)
        if home is None:
            home = made
            if inlined:  # not into anything: a lookup with a kernel of its own
                home.elements = 0
            units.append(home)
        else:
            home.nodes.append(node)
            home.form = max(home.form, made.form, key=_FORMS.index)
            home.totals |= made.totals
            home.elements = max(home.elements, made.elements)
        unit_of[node] = home
        for source in sources - {home}:
            source.readers.add(home)
    return _ordered(units)


def sources_of(node: Node) -> set[Node]:
    """What a node reads, views looked through."""
    return {base_of(each) for each in node.all_input_nodes}


def _unit(node: Node) -> Unit:
    value = value_of(node)
    name = name_of(node)
    if name in _REDUCTIONS and not str(node.target).endswith(".other"):
        first = next(
            (v for each in node.all_input_nodes if (v := value_of(each)) is not None), None
        )
        if first is not None:
            form = _direction(node, first)
            return Unit([node], first.numel(), form, totals={node} if form == WHOLE else set())
    is_pointwise = _is_elementwise(node) or _is_inlined(node)
    if is_pointwise and not name.endswith("_") and value is not None and node.all_input_nodes:
        return Unit([node], max(1, value.numel()))
    return Unit([node])


def _is_inlined(node: Node) -> bool:
    """Whether a lookup becomes part of what it looks at, as in a loss by classes.

    One number that is put into constant rows is a comparison of positions; what is picked from
    rows that are computed is computed there alone.
    """
    source = base_of(node.args[0]) if node.args and isinstance(node.args[0], Node) else None
    if source is None:
        return False
    if str(node.target) == "aten.scatter.value":
        return name_of(source) in ("full", "full_like", "zeros_like", "ones_like")
    return name_of(node) == "gather" and source.op == "call_function" and _is_elementwise(source)


def _is_elementwise(node: Node) -> bool:
    name, target = name_of(node), node.target
    tags = target.tags if isinstance(target, torch._ops.OpOverload) else ()
    return name in _POINTWISE or (bool(name) and torch.Tag.pointwise in tags)


def _direction(node: Node, value: torch.Tensor) -> str:
    """Whether a reduction goes along the last dimensions of what it reads, others, or all."""
    if name_of(node) in _OF_ROWS or value.numel() == (value.shape or (1,))[-1]:
        return ROWS
    at = 2 if name_of(node) == "linalg_vector_norm" else 1
    dims = node.args[at] if len(node.args) > at else None
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, list | tuple) or not dims:
        return WHOLE
    kept = {int(dim) % max(1, value.dim()) for dim in dims if isinstance(dim, int)}
    if len(kept) == value.dim():
        return WHOLE
    return ROWS if value.dim() - 1 in kept else COLUMNS


def _latest(sources: set[Unit], units: list[Unit]) -> list[Unit]:
    """Kernels that are read from, the last first."""
    order = {unit: at for at, unit in enumerate(units)}
    return sorted((one for one in sources if one.is_fused), key=order.__getitem__, reverse=True)


def _takes(home: Unit, made: Unit, sources: set[Unit]) -> bool:
    """Whether an operator can join the kernel of one that it reads from."""
    if not made.is_fused:
        return False
    if home.form == COLUMNS or (made.form == COLUMNS and home.form != POINTWISE):
        return False  # other elements in one block
    if any(home.totals & sources_of(node) for node in made.nodes):
        return False  # known only when the kernel has ended
    if made.form == COLUMNS and home.elements != made.elements:
        return False
    larger, smaller = sorted((home.elements, made.elements), reverse=True)
    if larger % smaller:
        return False
    grows = made.elements > home.elements
    if grows and home.form == POINTWISE and home.elements > 1 and _is_wide(home):
        return False  # computed again for every element that reads it: not worth it
    others = sources - {home}
    return not _leads(home, others)


def _is_wide(unit: Unit) -> bool:
    """Whether its results are more than what a cache holds anyway."""
    return unit.elements > 1 << 16


def _leads(home: Unit, others: set[Unit]) -> bool:
    """Whether one of the others comes after `home` by way of a third kernel."""
    seen: set[Unit] = set()
    waiting = list(home.readers)
    while waiting:
        one = waiting.pop()
        if one in others:
            return True
        if one not in seen:
            seen.add(one)
            waiting.extend(one.readers)
    return False


def _ordered(units: list[Unit]) -> list[Unit]:
    """By dependence, and as they stood otherwise."""
    missing: dict[Unit, int] = dict.fromkeys(units, 0)
    for unit in units:
        for reader in unit.readers:
            missing[reader] += 1
    ready = [unit for unit in units if not missing[unit]]
    done: list[Unit] = []
    while ready:
        unit = ready.pop(0)
        done.append(unit)
        for reader in sorted(unit.readers, key=units.index):
            missing[reader] -= 1
            if not missing[reader]:
                ready.append(reader)
    assert len(done) == len(units), "kernels wait for each other"
    return done


def outputs_of(unit: Unit) -> list[Node]:
    """The nodes of a kernel whose results others read, directly or as views, or the graph gives."""
    inside = set(unit.nodes)
    return [node for node in unit.nodes if _is_read(node, inside)]


def _is_read(node: Node, inside: set[Node]) -> bool:
    return any(
        _is_read(user, inside) if is_view(user) else user not in inside for user in node.users
    )
