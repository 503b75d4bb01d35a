"""Costs over the whole catalogue, the host, and what is asked of a chip without facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from signatures import add, flash, mm, tensor

from offramp import chips
from offramp.costs import Cost, Costs, MissingFactError, Operation, Tensors, classes
from offramp.costs.flops import KNOWN
from offramp.errors import UsageError

REAL = [name for name in chips.names() if name != "cpu"]
KINDS = {"matmul", "attention", "memory", "copy", "view"}


@pytest.mark.parametrize("name", REAL)
def test_every_chip_has_a_cost_for_what_it_runs(name: str) -> None:
    chip = chips.load(name)
    costs = Costs(chip)
    x = tensor(1 << 20)
    operations = [
        *(mm(512, 1024, 2048, d) for d in ("bfloat16", "float16", "float32", "float64", "int8")),
        *(mm(512, 1024, 2048, d) for d in ("float8_e4m3fn", "float4_e2m1fn_x2", "complex64")),
        *(flash(2, 8, 1024, 64), flash(2, 8, 1024, 64, backward=True), add(1 << 20)),
        *(Operation("aten::copy_", (x, x), (x,), {"way": w}) for w in ("to chip", "on chip")),
        Operation("aten::copy_", (x, x), (x,), {"way": "between chips"}),
    ]
    for op in operations:
        cost = costs.of(op)
        assert 0 < cost.low < cost.seconds < cost.high, op
        assert cost.kind in KINDS
        assert "weakest: " in cost.basis
        assert "\n" not in cost.basis


def test_a_chip_without_rates_says_what_is_missing_and_the_way_out() -> None:
    costs = Costs(chips.load("cpu"))
    for op in (mm(8, 8, 8), add(8)):
        with pytest.raises(MissingFactError, match=r"cpu has no .*; give a chip file") as caught:
            costs.of(op)
        assert isinstance(caught.value, UsageError)
    assert costs.of(Operation("aten::view", (tensor(8),), (tensor(8),))).seconds == 0


def test_a_cost_is_worked_out_once() -> None:
    costs = Costs(chips.load("nvidia-h100"))
    assert costs.of(mm(64, 64, 64)) is costs.of(mm(64, 64, 64))


def test_a_missing_format_takes_the_next_wider_one() -> None:
    costs = Costs(chips.load("kunlun-p800"))
    assert costs.of(mm(4096, 4096, 4096)).basis.startswith("product: float16 matrix rate in place")
    eight = Costs(chips.load("nvidia-a100"))
    assert "bfloat16 matrix rate in place of float8" in (
        eight.of(mm(4096, 4096, 4096, "float8_e4m3fn")).basis
    )
    narrow = Costs(chips.load("ascend-950dt")).of(mm(4096, 4096, 4096))
    assert "float8 matrix rate in place of bfloat16" in narrow.basis
    assert narrow.basis.endswith("weakest: assumed")


def test_bandwidth_ranges_and_gaps_say_so() -> None:
    assert "known as a range" in Costs(chips.load("zhenwu-810e")).of(add(1 << 24)).basis
    assert "in proportion" in Costs(chips.load("tpu-v7")).of(add(1 << 24)).basis
    span = Costs(chips.load("zhenwu-810e")).limits.bandwidth
    assert span.value == pytest.approx((1.0e12 * 2.8e12) ** 0.5)
    assert (span.low, span.high) == (1.0e12, 2.8e12)


def test_the_host_charges_by_what_is_called() -> None:
    host = Costs(chips.load("nvidia-h100")).host
    view = host.launch(Operation("aten::view", (tensor(8),), (tensor(8),)))
    one = host.launch(add(8))
    many = host.launch(Operation("aten::_foreach_sqrt", (Tensors(300, 300, "float32", 1200),)))
    assert 0 < view.value < one.value < many.value
    assert many.value - one.value == pytest.approx(300 * host.listed.value)
    assert host.collective.value > one.value
    assert host.readback.low > 0


def test_the_example_of_the_docs_is_true() -> None:
    text = (Path(__file__).parents[3] / "docs" / "costs.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(code, names)
    cost = names["cost"]
    assert isinstance(cost, Cost)
    for value in (cost.seconds, cost.low, cost.high):
        assert f"{value:.3g}" in code
    assert cost.basis in code


def test_overlap_slows_compute_down() -> None:
    costs = Costs(chips.load("nvidia-h100"))
    assert costs.overlap.low <= costs.overlap_slowdown <= costs.overlap.high
    assert costs.overlap.low >= 1


NAMES = sorted(KNOWN.union(*(v for v in vars(classes).values() if isinstance(v, frozenset))))
TENSOR = st.builds(
    lambda sizes, dtype: tensor(*sizes, dtype=dtype),
    st.lists(st.integers(0, 300), max_size=5),
    st.sampled_from(["bfloat16", "float32", "int64", "bool", "float8_e4m3fn", "complex64"]),
)
LISTED = st.builds(
    Tensors, *[st.integers(0, 9)] * 2, st.sampled_from(["", "int8"]), st.integers(0, 9)
)
ARGUMENT = st.one_of(st.none(), TENSOR, LISTED)
VALUES = st.dictionaries(
    st.sampled_from(
        ["dim", "groups", "is_causal", "window_size_left", "transposed", "output_mask"]
    ),
    st.one_of(st.none(), st.integers(-3, 5), st.booleans(), st.lists(st.booleans(), max_size=4)),
)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([*NAMES, "mine::unknown"]),
    *(st.lists(ARGUMENT, max_size=7), st.lists(st.one_of(TENSOR, LISTED), max_size=3), VALUES),
)
def test_any_call_has_a_cost(
    name: str, ins: list[Any], outs: list[Any], values: dict[str, Any]
) -> None:
    costs = Costs(chips.load("zhenwu-810e"))
    full = name if "::" in name else f"aten::{name}.overload"
    cost = costs.of(Operation(full, tuple(ins), tuple(outs), values))
    assert 0 <= cost.low <= cost.seconds <= cost.high < float("inf")
    assert cost.kind in KINDS
    assert cost.flops >= 0
    assert cost.bytes >= 0
