"""Operations bound by memory: which bytes, which pattern, how time grows with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from signatures import add, chip, tensor

from offramp import chips
from offramp.costs import Costs, Operation, Tensor, Tensors
from offramp.costs.memory_bound import traffic

MI = 1 << 20


def test_the_formula_on_round_numbers(tmp_path: Path) -> None:
    costs = Costs(chip(tmp_path))
    cost = costs.of(add(MI))
    c = costs.constants
    fixed = c["memory.kernel"].value + c["memory.ramp"].value
    share = c["memory.pointwise_share"].value
    assert cost.bytes == 3 * 2 * MI
    assert cost.seconds == pytest.approx(fixed + 6 * MI / (share * 1e12))
    assert cost.kind == "memory"


def moved(name: str, ins: tuple[object, ...], outs: tuple[object, ...], **values: object) -> object:
    found = traffic(Operation(name, ins, outs, values))  # type: ignore[arg-type]
    return (found.bytes, found.pattern)


def test_copies_and_fills_do_not_read_what_they_overwrite() -> None:
    x, y = tensor(MI), tensor(MI, dtype="float32")
    assert moved("aten::copy_", (y, x), (y,), way="on chip") == (6 * MI, "pointwise")
    assert moved("aten::zero_", (y,), (y,)) == (4 * MI, "pointwise")
    assert moved("aten::add.out", (x, x, x), (x,)) == (6 * MI, "pointwise")
    assert moved("aten::_to_copy", (x,), (y,)) == (6 * MI, "pointwise")


def test_a_transposing_copy_is_strided() -> None:
    flipped = Tensor("bfloat16", (1024, 1024), (1, 1024))
    assert moved("aten::clone", (flipped,), (tensor(1024, 1024),)) == (4 * MI, "strided")
    assert moved("aten::clone", (flipped,), (flipped,)) == (4 * MI, "pointwise")
    row = Tensor("bfloat16", (1024, 1024), (0, 1))
    assert moved("aten::mul.Tensor", (row, tensor(1024, 1024)), (tensor(1024, 1024),)) == (
        *(4 * MI + 2048,),
        "pointwise",
    )


def test_lookups_move_rows_not_the_table() -> None:
    table, ids, rows = tensor(50000, 1024), tensor(2048, dtype="int64"), tensor(2048, 1024)
    assert moved("aten::embedding", (table, ids), (rows,)) == (2 * 2 * 2 * MI + 8 * 2048, "gather")
    back = moved("aten::embedding_dense_backward", (rows, ids), (table,))
    assert back == (50000 * 1024 * 2 + 3 * (4 * MI + 8 * 2048), "scatter")
    patch = moved("aten::index_add_", (table, ids, rows), (table,))
    assert patch == (3 * (4 * MI + 8 * 2048), "scatter")


def test_a_loss_reads_one_value_a_row() -> None:
    scores, labels = tensor(2048, 50000, dtype="float32"), tensor(2048, dtype="int64")
    found = traffic(Operation("aten::nll_loss_forward", (scores, labels, None), (tensor(),)))
    assert found.bytes < 50000
    back = moved("aten::nll_loss_backward", (tensor(), scores, labels), (scores,))
    assert back == (2048 * 50000 * 4, "pointwise")


def test_long_rows_are_read_twice_by_softmax() -> None:
    short, long = tensor(1024, 1024), tensor(1024, 2048)
    assert moved("aten::_softmax", (short,), (short,), dim=-1) == (4 * MI, "reduction")
    assert moved("aten::_softmax", (long,), (long,), dim=-1) == (12 * MI, "reduction")


def test_fused_optimizers_only_read_gradients() -> None:
    group = Tensors(300, MI, "float32", 4 * MI)
    steps = Tensors(300, 300, "float32", 1200)
    none = Tensors(0, 0, "", 0)
    op = Operation(
        "aten::_fused_adamw_", (group, group, group, group, none, steps), (group,) * 4 + (none,)
    )
    found = traffic(op)
    assert found.bytes == 7 * 4 * MI + 1200  # 4 read, 3 written
    assert found.kernels == 9


def test_unknown_operators_read_and_write_everything_once() -> None:
    assert moved("mine::anything", (tensor(MI), None), (tensor(MI),)) == (4 * MI, "pointwise")


def test_empty_results_need_no_kernel(tmp_path: Path) -> None:
    costs = Costs(chip(tmp_path))
    assert costs.of(add(0)).seconds == 0
    nothing = tensor(0, 64)
    total = Operation("aten::sum", (nothing,), (tensor(dtype="float32"),))
    assert costs.of(total).seconds > 0, "a sum of nothing writes a zero"


def test_views_are_free_and_links_are_links(tmp_path: Path) -> None:
    costs = Costs(chip(tmp_path))
    view = costs.of(Operation("aten::view", (tensor(MI),), (tensor(MI),)))
    assert (view.seconds, view.kind) == (0.0, "view")
    x = tensor(1 << 30)
    share = costs.constants["links.host_share"].value
    fixed = costs.constants["memory.kernel"].value
    for way, rate in (("to chip", 32e9), ("from chip", 32e9), ("between chips", 200e9)):
        cost = costs.of(Operation("aten::copy_", (x, x), (x,), {"way": way}))
        assert cost.kind == "copy"
        assert cost.seconds == pytest.approx(fixed + 2 * (1 << 30) / (rate * share))
    inside = costs.of(Operation("aten::copy_", (x, x), (x,), {"way": "on chip"}))
    assert inside.kind == "memory"


@given(st.integers(0, 1 << 24), st.integers(0, 1 << 24))
def test_more_bytes_are_never_cheaper_nor_beyond_the_bandwidth(a: int, b: int) -> None:
    costs = Costs(chips.load("kunlun-p800"))
    less, more = (costs.of(add(size)) for size in sorted((a, b)))
    assert less.seconds <= more.seconds
    for cost in (less, more):
        assert cost.low <= cost.seconds <= cost.high
        assert cost.low >= cost.bytes / costs.limits.bandwidth.high
