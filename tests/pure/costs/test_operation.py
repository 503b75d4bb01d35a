"""Signatures: the JSON form, bytes that exist, what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.costs import Operation, OperationError, Tensor, Tensors
from offramp.costs.operation import itemsize


def test_reads_tensors_lists_gaps_and_values() -> None:
    op = Operation.parse(
        '{"op":"aten::mm","in":[["bfloat16",[4096,512],[512,1]],'
        '{"count":3,"numel":99,"dtype":"float32","bytes":396},null],'
        '"out":[["bfloat16",[4096,64],[64,1]]],"values":{"is_causal":true}}'
    )
    assert op.name == "aten::mm"
    assert op.inputs == (
        Tensor("bfloat16", (4096, 512), (512, 1)),
        Tensors(3, 99, "float32", 396),
        None,
    )
    assert op.outputs == (Tensor("bfloat16", (4096, 64), (64, 1)),)
    assert op.values == {"is_causal": True}


def test_names_split_into_base_and_overload() -> None:
    listed = Operation("aten::_foreach_add_.List")
    assert (listed.base, listed.overload) == ("_foreach_add_", "List")
    assert Operation("flash_attn::_flash_attn_forward").base == "flash_attn::_flash_attn_forward"


def test_a_dimension_of_stride_zero_counts_once() -> None:
    assert Tensor("float32", (8, 1024), (0, 1)).bytes == 4096
    assert Tensor("float32", (8, 1024), (1024, 1)).bytes == 8 * 4096
    assert Tensor("float32", (0, 1024), (0, 1)).bytes == 0
    assert Tensor("int64", (), ()).bytes == 8


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        *(("bool", 1), ("uint8", 1), ("int64", 8), ("bfloat16", 2), ("float16", 2)),
        *(("float32", 4), ("float64", 8), ("complex32", 4), ("complex64", 8)),
        *(("complex128", 16), ("float8_e4m3fn", 1), ("float8_e8m0fnu", 1), ("uint16", 2)),
        ("float4_e2m1fn_x2", 1),
    ],
)
def test_itemsize(dtype: str, size: int) -> None:
    assert itemsize(dtype) == size


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mm", "is not JSON"),
        ("[]", "expected an object with 'op'"),
        ('{"op":"aten::mm","ins":[]}', r"unknown keys \['ins'\]"),
        ('{"op":"aten::mm","in":[["bfloat16",[4]]]}', "cannot read the tensor"),
        ('{"op":"aten::mm","in":[["bfloat16",[4],[1,1]]]}', "differ in number"),
        ('{"op":"aten::mm","in":[["half",[4],[1]]]}', "'half' is not a dtype"),
        ('{"op":"aten::mm","in":[{"count":1}]}', "cannot read the tensor"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, said: str) -> None:
    with pytest.raises(OperationError, match=said):
        Operation.parse(text)


@given(st.lists(st.integers(0, 100), max_size=4), st.sampled_from(["float32", "bfloat16"]))
def test_equal_signatures_are_one_key(sizes: list[int], dtype: str) -> None:
    strides = [1] * len(sizes)
    text = json.dumps(
        {"op": "aten::add.Tensor", "in": [[dtype, sizes, strides]], "values": {"a": [1]}}
    )
    first, second = Operation.parse(text), Operation.parse(text)
    assert first == second
    assert len({first, second}) == 1
