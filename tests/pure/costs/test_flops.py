"""Products and attention found in operations, against closed forms."""

from __future__ import annotations

import pytest
from signatures import flash, mm, tensor

from offramp.costs import Operation, Tensors
from offramp.costs.flops import attention, products


def flops(op: Operation) -> float:
    return sum(part.flops for part in products(op))


def test_products_of_matrices() -> None:
    assert flops(mm(3, 5, 7)) == 2 * 3 * 5 * 7
    x, bias = tensor(3, 7), tensor(5)
    assert flops(Operation("aten::addmm", (bias, x, tensor(7, 5)), (tensor(3, 5),))) == 210
    batched = Operation("aten::bmm", (tensor(4, 3, 7), tensor(4, 7, 5)), (tensor(4, 3, 5),))
    assert flops(batched) == 840
    added = (tensor(4, 3, 5), *batched.inputs)
    assert flops(Operation("aten::baddbmm", added, (tensor(4, 3, 5),))) == 840
    linear = Operation("aten::linear", (tensor(2, 3, 7), tensor(5, 7), bias), (tensor(2, 3, 5),))
    assert flops(linear) == 2 * 2 * 3 * 5 * 7
    assert flops(Operation("aten::mv", (tensor(3, 7), tensor(7)), (tensor(3),))) == 42
    assert flops(mm(3, 5, 7, "complex64")) == 4 * 210


def test_scaled_products_multiply_float8() -> None:
    a, b = tensor(32, 64, dtype="float8_e4m3fn"), tensor(64, 16, dtype="float8_e4m3fn")
    scale = tensor(dtype="float32")
    (part,) = products(Operation("aten::_scaled_mm", (a, b, scale, scale), (tensor(32, 16),)))
    assert part.dtype == "float8_e4m3fn"
    assert part.flops == 2 * 32 * 16 * 64


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((96, 7), (4, 7, 5)),  # tokens in groups of rows
        ((4, 5, 7), (7, 96)),  # tokens in groups of columns
        ((7, 96), (96, 5)),  # tokens in groups of the inner dimension
    ],
)
def test_grouped_products_cost_all_tokens_once(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    ends = tensor(4, dtype="int32")
    (part,) = products(Operation("aten::_grouped_mm", (tensor(*a), tensor(*b), ends)))
    assert part.batch == 4
    assert part.flops == 2 * 96 * 7 * 5


def test_convolution_is_an_implicit_product() -> None:
    x, w, y = tensor(2, 6, 8, 8), tensor(10, 3, 3, 3), tensor(2, 10, 6, 6)
    values = {"groups": 2, "transposed": False, "output_mask": [True, True, False]}
    forward = 2 * (2 * 6 * 6) * 10 * (3 * 3 * 3)
    assert flops(Operation("aten::convolution", (x, w, None), (y,), values)) == forward
    back = Operation("aten::convolution_backward", (y, x, w), (x, w), values)
    assert flops(back) == 2 * forward
    only = Operation(
        "aten::convolution_backward",
        (y, x, w),
        (w,),
        {**values, "output_mask": [False, True, True]},
    )
    assert flops(only) == forward


def test_transposed_convolution_counts_the_places_of_its_input() -> None:
    x, w, y = tensor(2, 6, 8, 8), tensor(6, 5, 3, 3), tensor(2, 5, 10, 10)
    values = {"groups": 1, "transposed": True}
    forward = 2 * (2 * 8 * 8) * 6 * (5 * 3 * 3)
    assert flops(Operation("aten::convolution", (x, w, None), (y,), values)) == forward


def test_attention_forward_and_backward() -> None:
    full = attention(flash(2, 4, 256, 64, causal=False))
    assert full is not None
    assert full.flops == 4 * 2 * 4 * 256 * 256 * 64
    half = attention(flash(2, 4, 256, 64))
    back = attention(flash(2, 4, 256, 64, backward=True))
    assert half is not None
    assert back is not None
    assert half.flops == full.flops / 2
    assert back.flops == 2.5 * half.flops


def test_attention_of_grouped_queries_other_lengths_and_heads() -> None:
    q, k, v = tensor(2, 8, 100, 192), tensor(2, 2, 300, 192), tensor(2, 2, 300, 128)
    name = "aten::_scaled_dot_product_efficient_attention"
    found = attention(Operation(name, (q, k, v, None), (tensor(2, 8, 100, 128),)))
    assert found is not None
    assert found.flops == 2 * 2 * 8 * 100 * 300 * (192 + 128)


@pytest.mark.parametrize("kernel", ["flash", "cudnn"])
def test_packed_sequences_see_only_themselves(kernel: str) -> None:
    x, ends = tensor(1024, 4, 64), tensor(9, dtype="int32")
    op = Operation(f"aten::_{kernel}_attention_forward", (x, x, x, None, ends, ends), (x,))
    found = attention(op)
    assert found is not None
    assert found.flops == 4 * 4 * 64 * 8 * 128 * 128


def test_where_the_sequence_is_depends_on_the_operator() -> None:
    x = tensor(2, 512, 4, 64)
    names = {"_flash_attention_forward": 512, "_cudnn_attention_forward": 4}
    for name, length in names.items():
        found = attention(Operation(f"aten::{name}", (x, x, x), (x,)))
        assert found is not None
        assert (found.batch, found.queries, found.heads) == (2, length, 2048 // length)


def test_a_window_bounds_the_keys() -> None:
    x = tensor(1, 1024, 4, 64)
    values = {"is_causal": True, "window_size_left": 128}
    found = attention(Operation("aten::_flash_attention_forward", (x, x, x), (x,), values))
    assert found is not None
    assert found.pairs == 1024 * 128 - 128 * 128 / 2


@pytest.mark.parametrize(
    ("name", "values", "last"),
    [
        ("aten::_scaled_dot_product_flash_attention_for_cpu", {}, True),  # as tapes have it
        ("aten::_scaled_dot_product_flash_attention", {}, True),
        ("aten::_scaled_dot_product_efficient_attention", {}, False),
        ("aten::_scaled_dot_product_cudnn_attention", {}, False),
    ],
)
@pytest.mark.parametrize(("queries", "keys"), [(96, 96), (96, 288), (1, 77), (120, 90)])
def test_a_causal_mask_of_fewer_queries_than_keys(
    name: str, values: dict[str, object], last: bool, queries: int, keys: int
) -> None:
    q, k = tensor(1, 4, queries, 64), tensor(1, 2, keys, 64)
    found = attention(Operation(name, (q, k, k), (q,), {"is_causal": True, **values}))
    assert found is not None
    offset = keys - queries if last else 0
    counted = sum(max(0, min(keys, query + 1 + offset)) for query in range(queries))
    # The diagonal counts for half a pair of each query.
    assert found.pairs == counted - min(queries, keys) / 2


@pytest.mark.parametrize(("kind", "last"), [(1, False), (2, True)])
def test_the_efficient_kernel_s_mask_has_a_kind(kind: int, last: bool) -> None:
    q, k = tensor(1, 96, 4, 64), tensor(1, 288, 4, 64)
    values = {"custom_mask_type": kind}
    found = attention(Operation("aten::_efficient_attention_forward", (q, k, k), (q,), values))
    assert found is not None
    assert found.pairs == (96 * 288 - 96 * 96 / 2 if last else 96 * 96 / 2)


@pytest.mark.parametrize(
    ("queries", "keys", "window"), [(64, 256, 32), (64, 256, 200), (64, 80, 30)]
)
def test_a_window_of_the_last_queries(queries: int, keys: int, window: int) -> None:
    q, k = tensor(1, queries, 4, 64), tensor(1, keys, 4, 64)
    values = {"is_causal": True, "window_size_left": window}
    found = attention(Operation("aten::_flash_attention_forward", (q, k, k), (q,), values))
    assert found is not None
    seen = [min(window, query + 0.5 + keys - queries) for query in range(queries)]
    assert found.pairs == pytest.approx(sum(seen), abs=1)


def test_other_operators_have_no_products() -> None:
    listed = Operation("aten::_foreach_add_.List", (Tensors(2, 8, "float32", 32),) * 2)
    assert products(listed) == ()
    assert attention(listed) is None
    assert products(Operation("aten::mm", (None, None))) == ()
    assert attention(Operation("aten::_scaled_dot_product_flash_attention")) is None
