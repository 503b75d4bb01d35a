"""Products on a chip of round numbers: tiles, waves, splits, the two sides of the roofline."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from signatures import chip, mm, tensor

from offramp import chips
from offramp.costs import Constants, Costs, Operation, Product, Span, for_chip
from offramp.costs.constants import Tile
from offramp.costs.matmul import compute

RATE, BANDWIDTH = 100e12, 1e12
SIZES = st.integers(1, 9000)


def ideal(tiles: tuple[Tile, ...] = (Tile(128, 128, 1.0),), **changes: Span) -> Constants:
    """Everything at the peak and nothing fixed, but for `changes`."""
    spans = {key: Span.exact(1.0) for key in for_chip("nobody").spans}
    spans |= {"products.ramp": Span.exact(0.0), "memory.ramp": Span.exact(0.0)}
    spans |= {"memory.kernel": Span.exact(0.0)}
    return Constants("ideal", {**spans, **changes}, tiles)


def seconds(folder: Path, m: int, n: int, k: int, batch: int = 1, ramp: float = 0.0) -> float:
    """Of the multiplications alone on ten multiprocessors, in tiles of 128 x 128.

    A kernel of a second forbids the second one that splitting K needs.
    """
    changes = {"memory.kernel": Span.exact(1.0), "products.ramp": Span.exact(ramp)}
    limits = Costs(chip(folder), ideal(**changes)).limits
    product = Product(m, n, k, batch, "bfloat16")
    return compute(product, limits.rate("bfloat16"), limits).value


@pytest.mark.parametrize(
    ("blocks", "waves"), [(1, 1), (10, 1), (11, 2), (20, 2), (21, 3), (100, 10)]
)
def test_waves_of_ten_multiprocessors(tmp_path: Path, blocks: int, waves: int) -> None:
    exact = waves * 10 * 2 * 128 * 128 * 8192 / RATE
    assert seconds(tmp_path, 128 * blocks, 128, 8192) == exact
    assert seconds(tmp_path, 128, 128 * blocks, 8192) == exact
    assert seconds(tmp_path, 128, 128, 8192, batch=blocks) == exact


def test_a_tile_is_computed_in_full(tmp_path: Path) -> None:
    first, *same, more = (seconds(tmp_path, m, 128, 8192) for m in (1, 128, 1280, 1281))
    assert same == [first, first]
    assert more == 2 * first


def test_the_ramp_adds_to_k(tmp_path: Path) -> None:
    plain, ramped = (seconds(tmp_path, 1280, 128, 8192, ramp=ramp) for ramp in (0, 512))
    assert ramped / plain == pytest.approx((8192 + 512) / 8192, rel=1e-12)


def test_products_of_a_large_result_take_their_work_and_a_kernel(tmp_path: Path) -> None:
    kernel = {"memory.kernel": Span.exact(1e-6)}
    cost = Costs(chip(tmp_path), ideal(**kernel)).of(mm(6400, 6400, 8192))
    assert cost.seconds == pytest.approx(2 * 6400 * 6400 * 8192 / RATE + 1e-6, rel=1e-12)
    assert cost.kind == "matmul"
    assert cost.flops == 2 * 6400 * 6400 * 8192


def test_a_long_k_is_split_where_tiles_are_few(tmp_path: Path) -> None:
    """One tile on ten multiprocessors: eight parts are 8 times as fast but for partial sums."""
    limits = Costs(chip(tmp_path), ideal()).limits
    k = 1 << 20
    partial = 2 * 8 * 128 * 128 * 4 / BANDWIDTH
    work = 10 * 2 * 128 * 128 * k / 8 / RATE
    span = compute(Product(128, 128, k, 1, "bfloat16"), limits.rate("bfloat16"), limits)
    assert span.value == pytest.approx(work + partial, rel=1e-12)


def test_skinny_products_are_bound_by_memory(tmp_path: Path) -> None:
    costs = Costs(chip(tmp_path), ideal((Tile(16, 128, 1.0), Tile(128, 128, 1.0))))
    cost = costs.of(mm(1, 8192, 8192))
    assert cost.seconds == pytest.approx((8192 * 8192 + 2 * 8192) * 2 / BANDWIDTH)


def test_without_multiprocessors_there_are_no_waves_and_a_wider_interval(tmp_path: Path) -> None:
    known = Costs(chip(tmp_path)).of(mm(8192, 8192, 8192))
    unknown = Costs(chip(tmp_path, cores=None)).of(mm(8192, 8192, 8192))
    assert unknown.high / unknown.low > known.high / known.low
    assert "no waves" in unknown.basis
    assert "waves of 10" in known.basis


def test_float32_takes_tensor_cells_only_where_the_chip_does_so_by_default() -> None:
    zhenwu, ampere = (Costs(chips.load(name)) for name in ("zhenwu-810e", "nvidia-a100"))
    assert "float32 matrix" in zhenwu.of(mm(4096, 4096, 4096, "float32")).basis
    assert "float32 vector" in ampere.of(mm(4096, 4096, 4096, "float32")).basis
    reduced = ampere.of(mm(4096, 4096, 4096, "float32", allow_tf32=True))
    assert "tf32 matrix" in reduced.basis
    x, w, y = (
        tensor(*s, dtype="float32") for s in ((8, 64, 32, 32), (64, 64, 3, 3), (8, 64, 30, 30))
    )
    assert "tf32 matrix" in ampere.of(Operation("aten::convolution", (x, w, None), (y,))).basis


def test_a_16_bit_format_that_is_only_emulated_takes_float32s_rate() -> None:
    volta = Costs(chips.load("nvidia-v100"))
    half, short, full = (
        volta.of(mm(8192, 8192, 8192, dtype)) for dtype in ("float16", "bfloat16", "float32")
    )
    assert "float16 matrix" in half.basis
    assert "float32 vector rate in place of bfloat16" in short.basis
    assert short.seconds == full.seconds > 5 * half.seconds


def test_a_range_is_used_by_its_middle_and_says_so(tmp_path: Path) -> None:
    rate = 'int8 = { low = 100, high = 400, unit = "TOP/s", tier = "press", source = "made" }'
    costs = Costs(chip(tmp_path, rates=rate), ideal())
    a, b = tensor(12800, 8192, dtype="int8"), tensor(8192, 12800, dtype="int8")
    cost = costs.of(Operation("aten::_int_mm", (a, b), (tensor(12800, 12800, dtype="int32"),)))
    work = 2 * 12800 * 8192 * 12800
    assert (cost.low, cost.seconds, cost.high) == pytest.approx(
        (work / 4e14, work / 2e14, work / 1e14)
    )
    assert "middle of its range" in cost.basis
    assert cost.basis.endswith("weakest: press")


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, st.sampled_from(["nvidia-h100", "kunlun-p800", "zhenwu-810e"]))
def test_never_beyond_peak_or_bandwidth_and_more_is_never_cheaper(
    m: int, n: int, k: int, name: str
) -> None:
    costs = Costs(chips.load(name))
    cost = costs.of(mm(m, n, k))
    rate = costs.limits.rate("bfloat16").peak
    assert cost.low <= cost.seconds <= cost.high
    assert cost.seconds >= cost.flops / rate.value
    assert cost.low >= cost.flops / rate.high * (1 - 1e-12)
    assert cost.seconds >= cost.bytes / costs.limits.bandwidth.value
    for larger in (mm(m + 64, n, k), mm(m, n + 64, k), mm(m, n, k + 64)):
        assert costs.of(larger).seconds >= cost.seconds * (1 - 1e-9)
    assert math.isfinite(cost.high)


def test_a_calibration_replaces_the_constants() -> None:
    chip_ = chips.load("nvidia-a100")
    usual = Costs(chip_)
    spans = {**usual.constants.spans, "products.peak_share": Span(0.44, 0.44, 0.44, "measured")}
    halved = Costs(chip_, replace(usual.constants, spans=spans))
    ratio = halved.of(mm(8192, 8192, 8192)).seconds / usual.of(mm(8192, 8192, 8192)).seconds
    assert ratio == pytest.approx(2.0, rel=0.01)
