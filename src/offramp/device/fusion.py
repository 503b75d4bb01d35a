"""Which operators of a graph a compiler computes in one kernel.

The rules are those of TorchInductor's lowering and scheduler, in short (Ansel et al. 2024,
"PyTorch 2", section 4.4). An elementwise value is not stored but computed again by each that needs
it, unless a kernel of its own reads it, the graph gives it, or that would take many reads or
operators. What is stored joins the kernel of one that it reads from, or of one that reads the same,
where both go over the same elements, or over parts of rows that the other reduces, and where no
other kernel lies between. Products, attention, lookups in memory and everything with a kernel of
its own stay as they are. Views are indexing and cost nothing.
"""

from __future__ import annotations

import operator
import sys
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
# Another result each time: never computed again.
_RANDOM = _names("rand_like randn_like native_dropout bernoulli")
POINTWISE, ROWS, COLUMNS, WHOLE = _FORMS = "pointwise", "rows", "columns", "whole"
# How much a value that several need may take to be computed again, and one that one needs:
# realize_reads_threshold and realize_opcount_threshold of torch._inductor.config, and what
# torch/_inductor/graph.py allows before everything is stored.
_READS, _OPERATORS = (4, 8), (30, 100)


@dataclass(eq=False)
class Unit:
    """Nodes that become one kernel, or one node with a kernel of its own (`elements` is 0).

    nodes      what it computes; elementwise ones may be in other units too
    elements   that it goes over
    form       whether it sums along rows (the last dimensions), along others, over everything, or
               not at all
    reads      what it needs, views looked through; of its own nodes too
    totals     its sums over everything, which are known only when all of it has run
    outputs    its results that other units read, or the graph gives: nodes that are one tensor, or
               that take one of a node with several
    """

    nodes: list[Node]
    elements: int = 0
    form: str = POINTWISE
    reads: set[Node] = field(default_factory=set)
    readers: set[Unit] = field(default_factory=set)
    totals: set[Node] = field(default_factory=set)
    outputs: list[Node] = field(default_factory=list)

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
    """The node's result as a fake tensor, where it is one tensor, or one and its mask."""
    value = node.meta.get("val")
    if isinstance(value, tuple | list) and name_of(node) == "native_dropout":
        value = value[0]
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
    unstored: dict[Node, Unit] = {}  # what computes a value, for each that needs it
    given: set[Node] = set()
    for node in nodes:
        if node.op == "output":
            given = sources_of(node)
        if node.op != "call_function" or is_view(node):
            continue
        made = _with_sources(_unit(node), unstored)
        if _is_computed_again(node, made):
            unstored[node] = made
            continue
        sources = {unit_of[maker] for maker in map(maker_of, made.reads) if maker in unit_of}
        home = _home(made, sources, units)
        if home is None:
            home = made
            if _is_lookup(node) and made.nodes == [node]:  # of what is stored: a kernel of its own
                home.elements = 0
            units.append(home)
        else:
            _join(home, made)
        unit_of[node] = home
        for source in sources - {home}:
            source.readers.add(home)
    for unit in units:
        wanted = given.union(*(one.reads for one in unit.readers))
        stored = [node for node in unit.nodes if unit_of.get(node) is unit]
        unit.outputs = [one for node in stored for one in _results_of(node) if one in wanted]
    return _ordered(units)


def _results_of(node: Node) -> list[Node]:
    """The node, or those that take one of its several results."""
    if isinstance(node.meta.get("val"), tuple | list):
        return [user for user in node.users if user.target is operator.getitem]
    return [node]


def _with_sources(made: Unit, unstored: dict[Node, Unit]) -> Unit:
    """The unit of one node, with the nodes that compute what it reads and what those read."""
    (node,) = made.nodes
    before: dict[Node, None] = {}
    for base in sorted(sources_of(node), key=lambda each: each.name):
        source = unstored.get(maker_of(base))
        made.reads |= source.reads if source else {base}
        before |= dict.fromkeys(source.nodes if source else ())
    made.nodes = [*before, node]
    return made


def _is_computed_again(node: Node, made: Unit) -> bool:
    """Whether those who read the node's result compute it themselves."""
    is_cheap = made.is_fused and made.form == POINTWISE and not _is_lookup(node)
    if not is_cheap or name_of(node) in _RANDOM:
        return False
    readers = _readers_of(node)
    if not readers or any(not _unit(reader).is_fused for reader in readers):
        return False
    alone = len(readers) == 1  # then the second of each pair
    return len(made.reads) <= _READS[alone] and len(made.nodes) <= _OPERATORS[alone]


def _readers_of(node: Node) -> set[Node]:
    """Those who read a node's result, views looked through."""
    found: set[Node] = set()
    for user in node.users:
        found |= _readers_of(user) if is_view(user) else {user}
    return found


def _home(made: Unit, sources: set[Unit], units: list[Unit]) -> Unit | None:
    """The kernel that takes a unit, of those that it reads from and then of those that read the
    same: the last that there is.
    """
    if not made.is_fused:
        return None
    others = [one for one in units if one not in sources and one.reads & made.reads]
    vertical = [one for one in units if one in sources]
    for one in (*reversed(vertical), *reversed(others)):
        is_alike = one in sources or one.elements == made.elements
        if one.is_fused and is_alike and _takes(one, made, sources):
            return one
    return None


def _join(home: Unit, made: Unit) -> None:
    home.nodes += [node for node in made.nodes if node not in home.nodes]
    home.form = max(home.form, made.form, key=_FORMS.index)
    home.reads |= made.reads
    home.totals |= made.totals
    home.elements = max(home.elements, made.elements)


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
    is_pointwise = _is_elementwise(node) or _is_lookup(node)
    if is_pointwise and not name.endswith("_") and value is not None and node.all_input_nodes:
        return Unit([node], max(1, value.numel()))
    return Unit([node])


def _is_lookup(node: Node) -> bool:
    """Whether it is a lookup that becomes part of what it looks at, as in a loss by classes.

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
    if name in _RANDOM and _is_drawn_eagerly():
        return False
    tags = target.tags if isinstance(target, torch._ops.OpOverload) else ()
    return name in _POINTWISE or (bool(name) and torch.Tag.pointwise in tags)


def _is_drawn_eagerly() -> bool:
    """Whether random numbers are left to PyTorch's own kernels: TorchInductor's setting."""
    config = sys.modules.get("torch._inductor.config")  # takes seconds to import; unset until then
    return config is not None and bool(config.fallback_random)


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


def _takes(home: Unit, made: Unit, sources: set[Unit]) -> bool:
    """Whether an operator can join the kernel of one that it reads from."""
    two_sums = home.form == made.form == COLUMNS and home not in sources
    if not two_sums and (home.form == COLUMNS or (made.form == COLUMNS and home.form != POINTWISE)):
        return False  # other elements in one block
    if home.totals & made.reads:
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
