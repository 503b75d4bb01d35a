"""Fused attention: shares at the reference head size, idle multiprocessors, bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from signatures import chip, flash, tensor

from offramp import chips
from offramp.costs import Costs, Operation


def test_long_sequences_run_at_the_share_of_the_peak(tmp_path: Path) -> None:
    costs = Costs(chip(tmp_path))
    kernel = costs.constants["memory.kernel"].value
    for backward, key, kernels in ((False, "forward", 1), (True, "backward", 3)):
        cost = costs.of(flash(1, 16, 16384, 128, causal=False, backward=backward))
        share = costs.constants[f"attention.{key}_share"].value
        assert cost.seconds == pytest.approx(cost.flops / (100e12 * share) + kernels * kernel)
        assert cost.kind == "attention"


def test_smaller_heads_are_slower_for_their_softmax(tmp_path: Path) -> None:
    costs = Costs(chip(tmp_path))
    width = costs.constants["attention.softmax_width"].value
    kernel = costs.constants["memory.kernel"].value
    wide, narrow = (costs.of(flash(1, h, 8192, d, causal=False)) for h, d in ((8, 128), (16, 64)))
    assert wide.flops == narrow.flops
    ratio = (narrow.seconds - kernel) / (wide.seconds - kernel)
    assert ratio == pytest.approx((64 + width) / 64 * 128 / (128 + width))


def test_causal_takes_half_and_the_diagonal(tmp_path: Path) -> None:
    costs = Costs(chip(tmp_path))
    kernel = costs.constants["memory.kernel"].value
    full, half = (
        costs.of(flash(1, 16, 8192, 128, causal=c)).seconds - kernel for c in (False, True)
    )
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
