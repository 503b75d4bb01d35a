"""Fused attention: shares at the reference head size, idle multiprocessors, bounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from signatures import chip, flash, tensor

from offramp import chips
from offramp.costs import Costs, Operation, Span


def kernels(folder: Path, *shapes: tuple[int, int, int, int], **how: bool) -> list[float]:
    """Seconds without the fixed time, with no ramp and no loss under a causal mask."""
    usual = Costs(chip(folder)).constants
    spans = {**usual.spans, "attention.ramp": Span.exact(0), "memory.kernel": Span.exact(0)}
    spans["attention.causal_share"] = Span.exact(1)
    costs = Costs(chip(folder), replace(usual, spans=spans))
    return [costs.of(flash(*shape, **how)).seconds for shape in shapes]


@pytest.mark.parametrize(("backward", "way"), [(False, "forward"), (True, "backward")])
def test_long_sequences_run_at_the_share_of_the_peak(
    tmp_path: Path, backward: bool, way: str
) -> None:
    shape = (1, 16, 16384, 128)
    (found,) = kernels(tmp_path, shape, causal=False, backward=backward)
    share = Costs(chip(tmp_path)).constants[f"attention.{way}_share"].value
    flops = 4 * 16 * 16384 * 16384 * 128 * (2.5 if backward else 1)
    assert found == pytest.approx(flops / (100e12 * share))


def test_each_block_pays_for_some_more_keys(tmp_path: Path) -> None:
    costs = Costs(chip(tmp_path))
    ramp = costs.constants["attention.ramp"].value
    kernel = costs.constants["memory.kernel"].value
    cost = costs.of(flash(1, 16, 4096, 128, causal=False))
    (without,) = kernels(tmp_path, (1, 16, 4096, 128), causal=False)
    assert (cost.seconds - kernel) / without == pytest.approx((4096 + ramp) / 4096)


def test_smaller_heads_are_slower_for_their_softmax(tmp_path: Path) -> None:
    width = Costs(chip(tmp_path)).constants["attention.softmax_width"].value
    wide, narrow = kernels(tmp_path, (1, 8, 8192, 128), (1, 16, 8192, 64), causal=False)
    assert narrow / wide == pytest.approx((64 + width) / 64 * 128 / (128 + width))


def test_causal_takes_half_and_the_diagonal(tmp_path: Path) -> None:
    shape = (1, 16, 8192, 128)
    (full,), (half,) = (kernels(tmp_path, shape, causal=causal) for causal in (False, True))
    assert half / full == pytest.approx((8192 + 128) / 8192 / 2)


def test_few_blocks_leave_multiprocessors_idle(tmp_path: Path) -> None:
    costs = Costs(chip(tmp_path, cores=100))
    one, ten = (costs.of(flash(b, 1, 1280, 128, causal=False)) for b in (1, 10))
    kernel = costs.constants["memory.kernel"].value
    assert ten.flops == 10 * one.flops
    assert ten.seconds - kernel == pytest.approx(one.seconds - kernel)


def test_the_makers_kernel_is_faster_than_the_portable_one() -> None:
    costs = Costs(chips.load("nvidia-h100"))
    x, row = tensor(4, 32, 4096, 128), tensor(4, 32, 4096, dtype="float32")
    seconds = [
        costs.of(Operation(f"aten::_scaled_dot_product_{k}_attention", (x, x, x), (x, row))).seconds
        for k in ("cudnn", "flash", "efficient")
    ]
    assert seconds == sorted(seconds)


@given(
    *(st.integers(1, 8), st.integers(1, 32), st.integers(1, 4096)),
    *(st.sampled_from([32, 64, 128, 256]), st.booleans(), st.booleans()),
)
def test_bounds_hold(b: int, h: int, s: int, d: int, causal: bool, backward: bool) -> None:
    for name in ("nvidia-a100", "kunlun-p800"):
        costs = Costs(chips.load(name))
        cost = costs.of(flash(b, h, s, d, causal=causal, backward=backward))
        longer = costs.of(flash(b, h, s + 128, d, causal=causal, backward=backward))
        assert cost.low <= cost.seconds <= cost.high
        assert cost.seconds >= cost.flops / costs.limits.rate("bfloat16").peak.value
        assert cost.seconds >= cost.bytes / costs.limits.bandwidth.value
        assert longer.seconds >= cost.seconds
