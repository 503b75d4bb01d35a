"""Matrix products in a chip's arithmetic, bit by bit against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from arithmetic_reference import (
    HALVES,
    Set,
    as_bfloat16,
    as_half,
    back,
    flushed,
    keep_bits,
    normal,
    on_chip,
    summed,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.chips.arithmetic import resolve

ROUND = {"fp16": as_half, "bf16": as_bfloat16}


@pytest.mark.parametrize(("value", "bits"), [("tf32", 10), ("bf16x1", 7), ("13", 13), ("1", 1)])
def test_inputs_of_float32_products_keep_so_many_bits(arith: Set, value: str, bits: int) -> None:
    arith(f"matmul.float32={value}")
    x = normal(400).reshape(20, 20) * np.exp(normal(20, 20, seed=4) * 20)
    assert np.array_equal(back(on_chip(x) @ torch.eye(20, device="cuda")), keep_bits(x, bits))


def test_ties_go_to_even_and_special_numbers_stay(arith: Set) -> None:
    arith("matmul.float32=tf32")
    x = np.array([1 + 2**-11, 1 + 3 * 2**-11, -(1 + 2**-11), 2.0**-140, 3e38, 0.0], np.float32)
    given_ = back(on_chip(x[:, None]) @ torch.ones(1, 1, device="cuda"))[:, 0]
    assert given_[:3].tolist() == [1.0, 1 + 2**-9, -1.0]
    assert np.array_equal(given_, keep_bits(x, 10))
    special = np.array([[np.inf], [-np.inf], [np.nan]], np.float32)
    special = back(on_chip(special) @ torch.ones(1, 1, device="cuda"))[:, 0]
    assert special[:2].tolist() == [np.inf, -np.inf]
    assert np.isnan(special[2])


def test_a_product_is_that_of_rounded_inputs(arith: Set) -> None:
    arith("matmul.float32=tf32")
    a, b = normal(33, 65), normal(65, 17, seed=5)
    exact = keep_bits(a, 10).astype(np.float64) @ keep_bits(b, 10).astype(np.float64)
    error = np.abs(back(on_chip(a) @ on_chip(b)) - exact).max()
    assert error < 65 * 2**-23 * 8  # sums in float32
    assert np.abs(a.astype(np.float64) @ b - exact).max() > 20 * error


@pytest.mark.parametrize("products", [1, 3, 6, 9])
def test_more_bfloat16_products_come_closer(arith: Set, products: int) -> None:
    a, b = normal(16, 64), normal(64, 16, seed=5)
    arith(f"matmul.float32=bf16x{products}")
    error = np.abs(back(on_chip(a) @ on_chip(b)) - a.astype(np.float64) @ b).max()
    low, high = {1: (1e-3, 1e-1), 3: (1e-6, 2e-4), 6: (0, 5e-6), 9: (0, 5e-6)}[products]
    assert low <= error < high


@pytest.mark.parametrize("form", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("accumulate=fp16", {"form": "fp16"}),
        ("accumulate=bf16", {"form": "bf16"}),
        ("accumulate=chunked:16", {"form": "fp16", "chunk": 16}),
        ("accumulate=chunked:24:bf16", {"form": "bf16", "chunk": 24}),
        ("split_k=3", {"splits": 3}),
        ("accumulate=fp16 split_k=4", {"form": "fp16", "splits": 4}),
        ("accumulate=chunked:8 split_k=2", {"form": "fp16", "chunk": 8, "splits": 2}),
    ],
)
def test_sums_are_those_of_the_reference(arith: Set, form: str, text: str, how: Any) -> None:
    arith(*text.split())
    a, b = ROUND[form](normal(9, 101)), ROUND[form](normal(101, 515, seed=5))
    expected = ROUND[form](summed(a, b, **how))
    given_ = back(on_chip(a, HALVES[form]) @ on_chip(b, HALVES[form]))
    assert np.array_equal(given_, expected)
    assert "accumulate" not in text or not np.array_equal(given_, ROUND[form](a @ b))


def test_float16_sums_overflow_and_reach_subnormals(arith: Set) -> None:
    arith("accumulate=fp16")
    large = np.full((1, 9), 100, np.float32)
    assert np.isinf(back(on_chip(large, torch.float16) @ on_chip(large.T * 2, torch.float16)))
    tiny = as_half(normal(4, 40) * np.float32(2e-5))
    b = as_half(normal(40, 5, seed=6) * np.float32(0.1))
    expected = as_half(summed(tiny, b, "fp16"))
    assert np.array_equal(back(on_chip(tiny, torch.float16) @ on_chip(b, torch.float16)), expected)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 40), st.integers(1, 9), st.data())
def test_any_shape_in_any_order(chip: Any, m: int, k: int, n: int, splits: int, data: Any) -> None:
    chunk = data.draw(st.integers(1, 80))
    chip.set_arithmetic(resolve((), [f"accumulate=chunked:{chunk}", f"split_k={splits}"]))
    a, b = as_half(normal(m, k)), as_half(normal(k, n, seed=9))
    given_ = back(on_chip(a, torch.float16) @ on_chip(b, torch.float16))
    chip.set_arithmetic(resolve((), ()))
    assert np.array_equal(given_, as_half(summed(a, b, "fp16", chunk, splits)))


def test_threads_change_nothing(arith: Set) -> None:
    a, b = as_half(normal(64, 256)), as_half(normal(256, 700, seed=5))
    arith("accumulate=fp16")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        given_ = back(on_chip(a, torch.float16) @ on_chip(b, torch.float16))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(given_, as_half(summed(a, b, "fp16")))


def same_products(device: str, a: torch.Tensor, c: torch.Tensor) -> list[torch.Tensor]:
    """Every operator that is a matrix product, on [6, 6] and [2, 6, 6]."""
    a, c = a.to(device), c.to(device)
    three, added = torch.stack([a, c]), torch.stack([c, a])
    out = torch.empty_like(a)
    return [
        torch.mm(a, c),
        torch.mm(a.t(), c.t()),
        torch.mm(a, c, out=out),
        torch.addmm(c, a, c, beta=0.5, alpha=2),
        torch.addmm(c[0], a, c),
        c.clone().addmm_(a, a),
        torch.addmm(c * float("nan"), a, c, beta=0),
        torch.bmm(three, added),
        torch.baddbmm(added, three, added),
        added.clone().baddbmm_(three, added, alpha=0.25),
        torch.addbmm(c, three, added),
        torch.ops.aten._addmm_activation(c[0], a, c),
        torch.nn.functional.linear(three, a, c[0]),
        three @ a,
        torch.einsum("bij,bkj->bik", three, added),
        torch.empty(0, 3, device=device) @ torch.empty(3, 2, device=device),
        torch.empty(2, 0, device=device) @ torch.empty(0, 2, device=device),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_product_operator_agrees_on_whole_numbers(arith: Set, dtype: torch.dtype) -> None:
    """Small whole numbers are exact in every format and order: results are the CPU's to the bit."""
    rng = np.random.default_rng(1)
    a, c = (torch.from_numpy(rng.integers(-2, 3, (6, 6)).astype(np.float32)) for _ in range(2))
    expected = same_products("cpu", a.to(dtype), c.to(dtype))
    arith("matmul.float32=10", "accumulate=fp16", "split_k=2", "flush_to_zero=true")
    results = same_products("cuda", a.to(dtype), c.to(dtype))
    for given_, right in zip(results, expected, strict=True):
        assert given_.dtype == right.dtype
        assert given_.stride() == right.stride()
        assert torch.equal(given_.cpu(), right)


def test_wrong_shapes_are_the_cpus_errors(arith: Set) -> None:
    arith("matmul.float32=tf32", "accumulate=fp16")
    a = torch.ones(2, 3, device="cuda")
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        a @ a
    with pytest.raises(RuntimeError, match=r"same dtype|expected m1 and m2"):
        a @ torch.ones(3, 2, device="cuda").half()


def test_gradients_go_through_the_same_arithmetic(arith: Set) -> None:
    arith("matmul.float32=tf32", "split_k=2")
    x, w = normal(5, 7), normal(3, 7, seed=8)
    weight = on_chip(w).requires_grad_()
    torch.nn.functional.linear(on_chip(x), weight).backward(torch.ones(5, 3, device="cuda"))
    ones = np.ones((5, 3), np.float32)
    assert np.array_equal(back(weight.grad), summed(ones.T, keep_bits(x, 10), splits=2))


def test_subnormal_numbers_are_flushed(arith: Set) -> None:
    x = np.array([[1e-39, -1e-40, 2e-38, 1.0]], np.float32)
    y = np.array([[1e-38], [1.0], [1.0], [1.0]], np.float32)
    arith("flush_to_zero=true")
    assert np.array_equal(back(on_chip(x) * on_chip(y.T)), flushed(flushed(x) * flushed(y.T)))
    assert back(on_chip(x) @ on_chip(np.eye(4, dtype=np.float32)))[0].tolist()[:2] == [0, 0]
    assert np.signbit(back(on_chip(x) + 0.0 * on_chip(x) - 0.0))[0, 1]
    half = torch.full((3,), 2.0**-20, dtype=torch.float16, device="cuda")
    assert (half * 1).tolist() == [0, 0, 0]
    kept = on_chip(x)
    assert np.array_equal(back(kept.clone()), x)  # what only moves stays
    kept.add_(0)
    assert np.array_equal(back(kept), flushed(x))
    torch._foreach_mul_([kept := on_chip(x)], 1.0)
    assert np.array_equal(back(kept), flushed(x))


def test_memory_of_the_chip_is_that_of_the_plain_product(chip: Any, arith: Set) -> None:
    a = torch.ones(256, 256, device="cuda")

    def grown() -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = a @ a
        return torch.cuda.max_memory_allocated() - before + 0 * kept.numel()

    plain = grown()
    arith("matmul.float32=tf32", "split_k=2")
    assert grown() == plain
