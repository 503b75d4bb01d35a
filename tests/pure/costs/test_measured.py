"""Measured curves against closed forms, and the file that holds them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from signatures import CHIP

from offramp import chips
from offramp.chips import ChipFileError
from offramp.costs import Costs, Operation
from offramp.costs.measured import Curve, curve_text, path_beside, read

COSTS = """
title = "By hand"

[sources]
run = "made up"

[host.operator]
value = 4
low = 2
high = 8
unit = "us"
tier = "measured"
source = "run"
note = "n"

"""
SIZES = (1.0, 16.0, 256.0, 4096.0)
POWERS = st.floats(-2, 2, allow_nan=False)


def power_law(scale: float, powers: tuple[float, float]) -> Curve:
    """seconds = scale m^a n^b on a grid."""
    grid = itertools.product(SIZES, SIZES)
    seconds = tuple(scale * m ** powers[0] * n ** powers[1] for m, n in grid)
    return Curve((("m", SIZES), ("n", SIZES)), seconds)


@given(POWERS, POWERS, st.floats(1, 4096), st.floats(1, 4096))
def test_a_power_law_is_met_everywhere(a: float, b: float, m: float, n: float) -> None:
    found = power_law(1e-6, (a, b)).at({"m": m, "n": n})
    assert found == pytest.approx(1e-6 * m**a * n**b, rel=1e-9)


@given(st.lists(st.floats(1e-9, 1e3), min_size=4, max_size=4), st.floats(1, 1e5))
def test_between_two_points_lies_between_their_seconds(seconds: list[float], m: float) -> None:
    curve = Curve((("run", SIZES),), tuple(seconds))
    held = min(m, SIZES[-1])
    below = max(i for i, size in enumerate(SIZES) if size <= held)
    ends = seconds[below : below + 2]
    assert min(ends) * (1 - 1e-9) <= curve.at({"run": m}) <= max(ends) * (1 + 1e-9)


def test_beyond_the_last_point_work_grows_in_proportion_and_shape_does_not() -> None:
    curve = Curve((("bytes", (10.0, 100.0)), ("run", (1.0, 8.0))), (1.0, 0.5, 4.0, 2.0))
    assert curve.at({"bytes": 1000, "run": 8}) == pytest.approx(20)
    assert curve.at({"bytes": 1000, "run": 1e6}) == pytest.approx(20)
    assert curve.at({"bytes": 1, "run": 8}) == pytest.approx(0.5)
    attention = Curve((("length", (2.0,)),), (1.0,))
    assert attention.at({"length": 6}) == pytest.approx(9)


@pytest.mark.parametrize(
    ("seconds", "low", "message"),
    [
        ((1.0,), 1.0, "1 seconds for a grid"),
        ((1.0, 0.0), 1.0, "positive"),
        ((1.0, 2.0), 2.0, "low"),
    ],
)
def test_a_curve_that_is_none_is_refused(
    seconds: tuple[float, ...], low: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Curve((("m", (1.0, 2.0)),), seconds, low)


def machine(folder: Path, curves: str) -> chips.Chip:
    """A chip with a file of costs beside it."""
    path = folder / "made.toml"
    sync = 'execution = { value = "synchronous", tier = "vendor", source = "made" }'
    chip = CHIP.replace("COUNT", sync).replace("RATES", "")
    path.write_text(f'costs = "{path_beside(path).name}"\n{chip}')
    path_beside(path).write_text(COSTS + curves)
    return chips.read(path)


@given(st.lists(st.floats(1e-9, 1e3), min_size=6, max_size=6), st.floats(0.1, 1), st.floats(1, 9))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, seconds: list[float], low: float, high: float
) -> None:
    axes = (("rows", (1.0, 64.0)), ("width", (16.0, 64.0, 1e6)))
    curve = Curve(axes, tuple(seconds), low, high)
    path = tmp_path_factory.mktemp("curves") / "a.costs.toml"
    path.write_text(COSTS + curve_text("embedding", "float32", curve, "run"))
    constants, found = read(path)
    assert constants["host.operator"].value == pytest.approx(4e-6)
    assert found is not None
    back = found.curves["embedding", "float32"]
    assert back.axes == axes
    assert back.seconds == pytest.approx(curve.seconds, rel=1e-4)
    assert (back.low, back.high) == pytest.approx((low, high), rel=1e-3)


def test_a_curve_goes_before_the_model_and_its_like_stands_in(tmp_path: Path) -> None:
    axes = (("bytes", (1200.0, 12000.0)), ("run", (8.0,)))
    text = curve_text("mul.2", "float32", Curve(axes, (1e-6, 1e-5), 0.5, 2), "run")
    costs = Costs(machine(tmp_path, text))
    tensor = '["float32", [100], [1]]'
    for name in ("mul.Tensor", "atan2", "add_.Tensor"):
        op = f'{{"op": "aten::{name}", "in": [{tensor}, {tensor}], "out": [{tensor}]}}'
        cost = costs.of(Operation.parse(op))
        assert (cost.seconds, cost.low, cost.high) == pytest.approx((1e-6, 5e-7, 2e-6))
        assert cost.basis == "measured: mul.2 float32; weakest: measured"
    assert costs.host.operator.value == pytest.approx(4e-6)
    assert costs.host.view.value > 0  # not measured here: that of chips in general


def test_a_product_has_its_layout_and_its_work(tmp_path: Path) -> None:
    axes = (("m", (8.0,)), ("n", (8.0,)), ("k", (8.0,)))
    text = curve_text("product.nt", "float32", Curve(axes, (1e-3,)), "run")
    costs = Costs(machine(tmp_path, text))
    first, out = '["float32", [16, 8], [8, 1]]', '["float32", [16, 8], [8, 1]]'
    turned = '["float32", [8, 8], [1, 8]]'
    op = Operation.parse(f'{{"op": "aten::mm", "in": [{first}, {turned}], "out": [{out}]}}')
    cost = costs.of(op)
    assert cost.seconds == pytest.approx(2e-3)
    assert (cost.kind, cost.flops) == ("matmul", 2 * 16 * 8 * 8)
    plain = op.__class__.parse(f'{{"op": "aten::mm", "in": [{first}, {first}], "out": [{out}]}}')
    assert "measured" not in costs.of(plain).basis.partition(";")[0]  # no curve: the model


def test_one_memory_has_no_copies(tmp_path: Path) -> None:
    costs = Costs(machine(tmp_path, ""))
    tensor = '["float32", [1000000], [1]]'
    tensors = f'"in": [{tensor}, {tensor}], "out": [{tensor}]'
    text = f'{{"op": "aten::copy_", {tensors}, "values": {{"way": "to chip"}}}}'
    assert costs.of(Operation.parse(text)).seconds == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seconds = [", "seconds = [3, "), "seconds for a grid"),
        (("bytes = [", "bites = ["), "bites"),
        (("bytes = [1,", "bytes = [0,"), "positive numbers in rising order"),
        (('name = "mul.2"', 'nam = "mul.2"'), "name.*missing"),
        (('source = "run"', 'source = "walk"'), "not in .sources"),
        (("low = 1", "low = 3"), "low 3"),
    ],
)
def test_a_wrong_file_says_where(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = curve_text("mul.2", "float32", Curve((("bytes", (1.0, 2.0)),), (1.0, 2.0)), "run")
    path = tmp_path / "a.costs.toml"
    path.write_text(COSTS + text.replace(*change))
    with pytest.raises(ChipFileError, match=message):
        read(path)


def test_costs_that_are_not_there_are_named(tmp_path: Path) -> None:
    chip = machine(tmp_path, "")
    path_beside(tmp_path / "made.toml").unlink()
    with pytest.raises(ChipFileError, match=r"made\.costs\.toml: cannot be read"):
        Costs(chip)


def test_execution_is_one_of_two(tmp_path: Path) -> None:
    assert machine(tmp_path, "").is_synchronous
    path = tmp_path / "made.toml"
    path.write_text(path.read_text().replace("synchronous", "sometimes"))
    with pytest.raises(ChipFileError, match=r"execution.*'sometimes' is not one of asynchronous"):
        chips.read(path)


def test_no_point_is_lost_between_log_and_exp() -> None:
    curve = power_law(1e-6, (1, 1))
    for m, n in itertools.product(SIZES, SIZES):
        assert math.isclose(curve.at({"m": m, "n": n}), 1e-6 * m * n, rel_tol=1e-12)
