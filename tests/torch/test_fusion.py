"""What a compiler makes one kernel of: kernels and bytes counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from offramp.device import fused, fusion

X = torch.zeros(64, 256)
W = torch.zeros(256, 256)


def graph(function: Callable[..., object], *inputs: torch.Tensor) -> GraphModule:
    return make_fx(function, tracing_mode="fake")(*inputs)


def kernels(function: Callable[..., object], *inputs: torch.Tensor) -> list[list[str]]:
    """The operators of each kernel."""
    units = fusion.plan(graph(function, *inputs).graph.nodes)
    return [[fusion.name_of(node) for node in unit.nodes] for unit in units]


def test_a_chain_of_elementwise_operators_is_one_kernel() -> None:
    assert kernels(lambda x: (x * 2 + 1).tanh(), X) == [["mul", "add", "tanh"]]


def test_a_product_keeps_its_own_kernel_and_parts_what_it_lies_between() -> None:
    """x + f(x) W: the sum cannot be computed with f, for the product needs f first."""
    found = kernels(lambda x, w: x.tanh() + x.tanh() @ w + x, X, W)
    assert [unit for unit in found if "mm" in unit] == [["mm"]]
    made = kernels(lambda x, w: (y := x.tanh()) + y @ w, X, W)
    assert made == [["tanh"], ["mm"], ["add"]]


def test_a_norm_over_rows_is_one_kernel_with_what_it_feeds() -> None:
    def norm(x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5)

    assert kernels(norm, X) == [["mul", "mean", "add", "rsqrt", "mul"]]


def test_a_sum_over_rows_and_one_over_columns_are_two_kernels() -> None:
    found = kernels(lambda x: ((y := x * 2).sum(1), y.sum(0)), X)
    assert len(found) == 2


def test_an_elementwise_value_is_computed_by_each_that_needs_it() -> None:
    """As a gate that is needed before a product and after it."""

    def gated(a: torch.Tensor, b: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        gate = a.sigmoid()
        return ((gate * b) @ w) * gate

    assert kernels(gated, X, X, W) == [["sigmoid", "mul"], ["mm"], ["sigmoid", "mul"]]


def test_what_takes_many_reads_is_stored_where_several_need_it() -> None:
    def after(count: int) -> list[str]:
        """The last kernel, where the first adds so many tensors."""

        def run(w: torch.Tensor, *x: torch.Tensor) -> torch.Tensor:
            y = x[0] + x[1] + x[2] + x[3] + x[-1]
            return (y.abs() @ w) * y

        return kernels(run, W, *(torch.zeros(64, 256) for _ in range(count)))[-1]

    assert after(4) == ["add", "add", "add", "add", "mul"]
    assert after(5) == ["mul"]


def test_numbers_drawn_at_random_are_drawn_once() -> None:
    found = kernels(lambda x, w: ((y := torch.rand_like(x)).abs() @ w) * y, X, W)
    assert found == [["rand_like", "abs"], ["mm"], ["mul"]]


def test_kernels_that_read_the_same_are_one() -> None:
    assert kernels(lambda x, y: (x * y, x.abs()), X, X) == [["mul", "abs"]]
    assert kernels(lambda x, y: (x * y, y[:1].abs()), X, X) == [["mul"], ["abs"]]
    assert kernels(lambda x: (x.sum(0), (x * 2).sum(0)), X) == [["sum", "mul", "sum"]]


def test_a_kernel_reads_its_inputs_once_and_writes_what_others_read() -> None:
    lowered = fused.lowered(graph(lambda x, w: (y := (x * 2 + x).tanh()) @ w + y, X, W))
    calls = [node for node in lowered.graph.nodes if "offramp" in str(node.target)]
    assert len(calls) == 2
    first, last = calls
    assert len(first.args[0]) == 1  # x, although two operators read it
    assert fused.made_from(first.args[1], "meta")[0].shape == X.shape
    assert len(last.args[0]) == 2  # the product and y


def test_views_cost_nothing_and_reach_through() -> None:
    found = kernels(lambda x: (x.view(64, 2, 128).transpose(1, 2) * 2).reshape(64, 256) + 1, X)
    assert [name for unit in found for name in unit if name not in ("clone",)] == ["mul", "add"]


def test_several_results_of_one_operator_are_told_apart() -> None:
    def both(x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(x, 1, keepdim=True)
        return (x - mean) / variance.sqrt()

    assert len(kernels(both, X)) == 1
    made = fused.lowered(graph(lambda x: torch.var_mean(x, 1), X))
    (call,) = [node for node in made.graph.nodes if "offramp" in str(node.target)]
    assert [out.shape for out in fused.made_from(call.args[1], "meta")] == [(64,), (64,)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from(["float32", "int64"]))
def test_a_layout_gives_the_tensors_it_was_made_of(shape: list[int], dtype: str) -> None:
    value = torch.empty(shape, dtype=getattr(torch, dtype)).transpose(0, -1)
    (made,) = fused.made_from(fused.layout_of([value]), "meta")
    assert (made.shape, made.stride(), made.dtype) == (value.shape, value.stride(), value.dtype)


@given(
    st.lists(st.sampled_from(["tanh", "mm", "sum", "norm", "add", "pick"]), min_size=1, max_size=8)
)
@settings(deadline=None, max_examples=30)
def test_kernels_never_wait_for_each_other(steps: list[str]) -> None:
    """Any chain with skip connections can be ordered, and every operator is in one kernel."""

    def run(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        first = x
        for step in steps:
            if step == "mm":
                x = x @ w
            elif step == "sum":
                x = x + x.sum(0)
            elif step == "pick":
                x = x + x.gather(1, torch.zeros(64, 1, dtype=torch.int64))
            elif step == "norm":
                x = x / x.amax(1, keepdim=True)
            else:
                x = x + first if step == "add" else x.tanh()
        return x

    made = graph(run, X, W)
    calls = {n for n in made.graph.nodes if n.op == "call_function"}
    units = fusion.plan(made.graph.nodes)
    assert {n for unit in units for n in unit.nodes} == calls
    assert all(len(unit.nodes) == len(set(unit.nodes)) for unit in units)
    stored = [n for unit in units for n in unit.outputs]
    assert len(stored) == len(set(stored))
    fused.lowered(made).graph.lint()


def test_what_waits_for_the_whole_is_another_kernel() -> None:
    """As a cast to 8 bits, which needs the largest of all numbers first."""

    def cast(x: torch.Tensor) -> torch.Tensor:
        y = x.tanh()
        return (y * (448 / y.abs().max())).to(torch.float8_e4m3fn)

    assert kernels(cast, X) == [
        ["tanh", "abs", "max"],
        ["reciprocal", "mul", "tanh", "mul", "_to_copy"],
    ]
    assert kernels(lambda x: x - x.mean(), X) == [["mean"], ["sub"]]
    assert kernels(lambda x: x - x.mean((0, 1)), X) == [["mean"], ["sub"]]
    assert kernels(lambda x: x - x.mean(1, keepdim=True), X) == [["mean", "sub"]]
    assert kernels(lambda x: torch.max(x, x * 2), X) == [["mul", "maximum"]]


def test_a_sum_over_columns_is_parted_from_rows_and_from_everything() -> None:
    found = kernels(lambda x: ((y := x * 2).abs().amax(), y.sum(0)), X)
    assert found == [["mul", "abs", "amax"], ["mul", "sum"]]
    found = kernels(lambda x: ((y := x / x.amax(1, keepdim=True)).sum(), y.sum(0) + 1), X)
    assert found == [["amax", "div", "sum"], ["div", "sum"], ["add"]]


def test_two_sums_over_everything_share_a_kernel() -> None:
    assert kernels(lambda x: ((y := x.tanh()).sum(), y.abs().amax()), X) == [
        ["tanh", "sum", "abs", "amax"]
    ]


def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), targets)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_a_compiled_loss_keeps_its_logits_and_two_numbers_a_row() -> None:
    logits = torch.zeros(64, 5000, dtype=torch.bfloat16, requires_grad=True)
    out = torch.compile(loss, backend=fused.backend)(logits, torch.zeros(64, dtype=torch.int64))
    kept = [each for each in out.grad_fn.saved_tensors if each is not None]
    sizes = sorted(each.numel() for each in kept if each.dtype != torch.int64)
    assert sizes == [1, 64, 64, 64 * 5000]  # how many count; maxima, sums; the logits as they came
    assert {each.dtype for each in kept if each.numel() == 64 * 5000} == {torch.bfloat16}


def test_what_is_picked_from_computed_rows_is_not_a_kernel_of_its_own() -> None:
    def picked(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return (x - x.amax(1, keepdim=True)).gather(1, at)

    at = torch.zeros(64, 1, dtype=torch.int64)
    assert kernels(picked, X, at) == [["amax", "sub", "gather"]]
    assert kernels(lambda x, at: x.gather(1, at) * 2, X, at) == [["gather"], ["mul"]]


def test_one_number_in_constant_rows_is_a_comparison() -> None:
    def one_hot(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x).scatter(1, at, -1.0) * x

    at = torch.zeros(64, 1, dtype=torch.int64)
    assert kernels(one_hot, X, at) == [["zeros_like", "scatter", "mul"]]
    assert kernels(lambda x, at: x.scatter(1, at, -1.0), X, at) == [["scatter"]]
