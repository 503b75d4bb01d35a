"""Rounding by chance, exponentials and attention in a chip's arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from arithmetic_reference import (
    HALVES,
    Set,
    as_bfloat16,
    back,
    exponential,
    keep_bits,
    normal,
    on_chip,
    stochastic,
    summed,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from offramp.chips.arithmetic import resolve


@pytest.mark.parametrize("form", ["fp16", "bf16"])
def test_casts_round_by_chance(arith: Set, form: str) -> None:
    x = normal(1000) * np.exp(normal(1000, seed=5) * 6).astype(np.float32)
    wide = on_chip(x)
    arith("rounding=stochastic:11")
    first, second = back(wide.to(HALVES[form])), back(wide.to(HALVES[form]))
    assert np.array_equal(first, stochastic(x, form, 11, 0))
    assert np.array_equal(second, stochastic(x, form, 11, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("form", ["fp16", "bf16"])
def test_rounding_by_chance_is_right_on_average(arith: Set, form: str) -> None:
    """The mean of n roundings of one number is within four standard errors of the number."""
    value, n = np.float32(1.0007), 40_000
    wide = on_chip(np.full(n, value))
    arith("rounding=stochastic")
    drawn = back(wide.to(HALVES[form])).astype(np.float64)
    assert len(np.unique(drawn)) == 2
    assert abs(drawn.mean() - value) < 4 * drawn.std() / n**0.5
    exact = on_chip(np.full(9, 1.5, np.float32)).to(HALVES[form])
    assert exact.tolist() == [1.5] * 9


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_a_number_goes_to_one_of_its_neighbours(chip: Any, values: list[float]) -> None:
    x = np.array(values, np.float32)
    wide = on_chip(x)
    for form, dtype in HALVES.items():
        chip.set_arithmetic(resolve((), ["rounding=stochastic:5"]))
        drawn = back(wide.to(dtype))
        chip.set_arithmetic(resolve((), ()))
        if form == "bf16":
            assert np.array_equal(np.isinf(drawn), np.abs(drawn) > 3.4e38)
        small = np.abs(x) < 65504 if form == "fp16" else np.abs(x) < 3.3e38
        step = np.maximum(np.spacing(np.abs(x[small])) * 2.0 ** (13 if form == "fp16" else 16), 0)
        tiny = 2.0**-24 if form == "fp16" else 0.0
        assert (np.abs(drawn[small] - x[small]) <= np.maximum(step, tiny)).all()
        if small.all():
            assert np.array_equal(drawn, stochastic(x, form, 5, 0))


def test_operators_on_16_bits_round_by_chance(arith: Set) -> None:
    a, b = as_bfloat16(normal(300)), as_bfloat16(normal(300, seed=6))
    one, two = on_chip(a, torch.bfloat16), on_chip(b, torch.bfloat16)
    arith("rounding=stochastic:2")
    assert np.array_equal(back(one + two), stochastic(a + b, "bf16", 2, 0))
    assert np.array_equal(back(one.mul_(two)), stochastic(a * b, "bf16", 2, 1))
    assert (one > two).dtype == torch.bool
    assert (one + torch.ones(300, device="cuda")).dtype == torch.float32
    given_ = back(two[None] @ torch.eye(300, device="cuda", dtype=torch.bfloat16))
    assert np.array_equal(given_[0], b)  # exact sums stay


def test_small_updates_are_lost_to_the_nearest_and_kept_by_chance(arith: Set) -> None:
    """1 + 512 updates of 2^-10 is 1.5; to the nearest bfloat16, it stays 1 (Gupta et al. 2015)."""

    def trained() -> float:
        weight = torch.nn.Parameter(torch.ones(4096, device="cuda", dtype=torch.bfloat16))
        optimizer = torch.optim.SGD([weight], lr=2.0**-10, foreach=True)
        weight.grad = -torch.ones_like(weight)
        for _ in range(512):
            optimizer.step()
        return float(weight.detach().float().mean())

    assert trained() == 1.0
    arith("rounding=stochastic")
    assert abs(trained() - 1.5) < 0.01


def test_exponentials_are_off_by_what_was_asked(arith: Set) -> None:
    x = np.concatenate([normal(2000) * 30, [0.0, -0.0, 88.8, -104.0, np.inf, -np.inf]])
    x = x.astype(np.float32)
    for ulp in (0, 1, 64):
        arith(f"exp_ulp={ulp}")
        with np.errstate(over="ignore"):
            assert np.array_equal(back(torch.exp(on_chip(x))), exponential(x, ulp))
    assert np.isnan(torch.exp(torch.tensor([float("nan")], device="cuda")).item())


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp_": lambda x: x.clone().exp_(),
    "exp2": torch.exp2,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "softplus": functional.softplus,
    "softmax": lambda x: torch.softmax(x, -1),
    "log_softmax": lambda x: torch.log_softmax(x, 0),
    "logsumexp": lambda x: torch.logsumexp(x, (0, 1)),
    "logsumexp_kept": lambda x: torch.logsumexp(x, 1, keepdim=True),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_functions_made_of_exponentials(arith: Set, name: str, dtype: torch.dtype) -> None:
    """Right to rounding with right exponentials; forwards and backwards off with wrong ones."""

    def results(device: str) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.from_numpy(normal(7, 33) * 3).to(dtype).to(device).requires_grad_()
        y = FUNCTIONS[name](x)
        (grad,) = torch.autograd.grad(y, x, torch.linspace(1, 2, y.numel()).view_as(y).to(y))
        return y.detach().cpu(), grad.cpu()

    expected = results("cpu")
    arith("exp_ulp=0")
    for mine, right in zip(results("cuda"), expected, strict=True):
        assert mine.dtype == right.dtype
        assert mine.stride() == right.stride()
        # The CPU's own bfloat16 rounds on the way.
        slack = {} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.02}
        torch.testing.assert_close(mine, right, **slack)
    arith("exp_ulp=60000")
    worse = results("cuda")[0]
    if dtype == torch.float32:  # 60,000 of its units are about one of bfloat16's
        assert not torch.equal(worse, expected[0])
    torch.testing.assert_close(worse, expected[0], rtol=0.05, atol=0.05)


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.5},
    "bool mask": {"attn_mask": torch.rand(9, 12, generator=torch.manual_seed(1)) > 0.3},
    "bias": {"attn_mask": torch.randn(2, 1, 9, 12, generator=torch.manual_seed(1))},
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_by_products_is_attention(arith: Set, name: str, dtype: torch.dtype) -> None:
    def results(device: str) -> list[torch.Tensor]:
        parts = [normal(2, 4, 9, 8), normal(2, 4, 12, 8, seed=4), normal(2, 4, 12, 8, seed=5)]
        q, k, v = (torch.from_numpy(p).to(dtype).to(device).requires_grad_() for p in parts)
        call = dict(CALLS[name])
        if (mask := call.get("attn_mask")) is not None:
            call["attn_mask"] = mask.to(device) if mask.dtype == torch.bool else mask.to(q)
        y = functional.scaled_dot_product_attention(q, k, v, **call)
        return [y, *torch.autograd.grad(y, [q, k, v], torch.ones_like(y))]

    expected = results("cpu")
    arith("split_k=2")
    for mine, right in zip(results("cuda"), expected, strict=True):
        slack = {} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.03}
        torch.testing.assert_close(mine.detach().cpu(), right.detach(), **slack)


def test_attention_is_the_reference_with_wrong_products_and_exponentials(arith: Set) -> None:
    q, k, v = normal(5, 8), normal(6, 8, seed=4), normal(6, 8, seed=5)
    arith("matmul.float32=tf32", "split_k=1", "exp_ulp=1000")
    given_ = functional.scaled_dot_product_attention(*(on_chip(p)[None, None] for p in (q, k, v)))
    scores = summed(keep_bits(q, 10), keep_bits(k, 10).T) * np.float32(8**-0.5)
    weights = exponential(scores - scores.max(1, keepdims=True), 1000)
    mixed = summed(keep_bits(weights, 10), keep_bits(v, 10))
    expected = mixed / weights.sum(1, keepdims=True)
    assert np.abs(back(given_)[0, 0] / expected - 1).max() < 2**-22


def test_grouped_heads(arith: Set) -> None:
    def results(device: str) -> torch.Tensor:
        q = torch.from_numpy(normal(1, 4, 5, 8)).to(device)
        k = torch.from_numpy(normal(1, 2, 5, 8, seed=4)).to(device)
        return functional.scaled_dot_product_attention(q, k, k, enable_gqa=True).cpu()

    expected = results("cpu")
    arith("split_k=2")
    torch.testing.assert_close(results("cuda"), expected)


def test_convolutions_round_their_inputs(chip: Any, arith: Set) -> None:
    x, w = normal(1, 1, 6, 6), normal(1, 1, 1, 1, seed=4)
    arith("convolution.float32=tf32")
    given_ = back(functional.conv2d(on_chip(x), on_chip(w)))
    assert np.array_equal(given_, keep_bits(x, 10) * keep_bits(w, 10))
    arith("accumulate=fp16")
    functional.conv2d(on_chip(x, torch.float16), on_chip(w, torch.float16))
    assert ("accumulate", "aten::convolution", False) in {m[:3] for m in chip.arithmetic_met()}
