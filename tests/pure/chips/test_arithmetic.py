"""Settings of a chip's arithmetic: read strictly, from chip files and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp import chips
from offramp.chips import ChipFileError
from offramp.chips.arithmetic import KEYS, parse, resolve
from offramp.errors import UsageError

FILE = """
title = "X"
vendor = "Y"
[sources]
sheet = "s"
[facts]
memory = { value = 1, unit = "GB", tier = "vendor", source = "sheet" }
[presentation]
device_type = { value = "cuda", tier = "vendor", source = "sheet" }
device_name = { value = "X", tier = "vendor", source = "sheet" }
collectives = { value = "nccl", tier = "vendor", source = "sheet" }
[arithmetic]
"""
TRUST = 'tier = "vendor", source = "sheet"'


@pytest.mark.parametrize(
    ("text", "native"),
    [
        ("accumulate=fp16", {"accumulate": 1, "chunk": 0}),
        ("accumulate=bf16", {"accumulate": 2, "chunk": 0}),
        ("accumulate=fp32", {"accumulate": 0, "chunk": 0}),
        ("accumulate=chunked:128", {"accumulate": 1, "chunk": 128}),
        ("accumulate=chunked:4:bf16", {"accumulate": 2, "chunk": 4}),
        ("split_k=8", {"split_k": 8}),
        ("flush_to_zero=true", {"flush_to_zero": True}),
        ("flush_to_zero=false", {"flush_to_zero": False}),
        ("rounding=stochastic", {"stochastic": True, "seed": 0}),
        ("rounding=stochastic:7", {"stochastic": True, "seed": 7}),
        ("rounding=nearest", {"stochastic": False, "seed": 0}),
        ("exp_ulp=0", {"exp_ulp": 0}),
        ("float64=refused", {}),
    ],
)
def test_values_by_hand(text: str, native: dict[str, int]) -> None:
    assert resolve((), [text]).native() == native
    assert resolve((), [text]).by_hand == (text,)


@pytest.mark.parametrize(
    ("value", "bits", "products"),
    [("ieee", 23, 1), ("tf32", 10, 1), ("bf16x1", 7, 1), ("bf16x9", 7, 9), ("14", 14, 1)],
)
def test_formats_of_float32_products(value: str, bits: int, products: int) -> None:
    given_ = resolve((), [f"matmul.float32={value}"]).native()
    assert given_["matmul_when"] == 1
    assert (given_["matmul_bits"], given_["matmul_products"]) == (bits, products)
    assert given_["attention_too"] == 1
    assert "attention_too" not in resolve((), [f"convolution.float32={value}"]).native()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("accumulate", "expected KEY=VALUE, such as accumulate=fp16"),
        ("=fp16", "expected KEY=VALUE"),
        ("acumulate=fp16", "unknown key 'acumulate'; did you mean 'accumulate'"),
        ("zzz=1", "unknown key 'zzz'; expected one of matmul.float32, "),
        ("accumulate=fp8", "'fp8' is not a value of accumulate; expected fp32, fp16, bf16, "),
        ("accumulate=chunked:0", "'chunked:0' is not a value of accumulate"),
        ("matmul.float32=24", "or 1 to 23 bits of significand"),
        ("matmul.float32=bf16x2", "expected ieee, tf32, bf16x1, bf16x3, "),
        ("split_k=0", "expected a whole number from 1 to 1024"),
        ("exp_ulp=-1", "expected a whole number of units in the last place"),
        ("float64=float32", "expected refused or host"),
    ],
)
def test_what_cannot_be_meant_is_told(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as told:
        parse(text)
    assert problem in str(told.value)
    assert repr(text) in str(told.value)


def test_a_key_given_twice() -> None:
    assert resolve((), ["split_k=2", "split_k=2"]).by_hand == ("split_k=2",)
    with pytest.raises(UsageError, match="split_k is given twice, as 2 and 3"):
        resolve((), ["split_k=2", "split_k=3"])


@given(st.text(max_size=30))
def test_any_text_is_a_setting_or_a_usage_error(text: str) -> None:
    for whole in (text, f"accumulate={text}", f"split_k={text}", f"matmul.float32={text}"):
        try:
            setting = parse(whole)
        except UsageError:
            continue
        assert setting.key in KEYS
        assert resolve((), [setting.text]).native() is not None


def read(tmp_path: Path, lines: str) -> chips.Chip:
    path = tmp_path / "x.toml"
    path.write_text(FILE + lines)
    return chips.read(path)


def test_a_chip_states_its_own_and_a_hand_replaces_it(tmp_path: Path) -> None:
    stated = f'"matmul.float32" = {{ value = "tf32", when = "allowed", unless = "A_B=0", {TRUST} }}'
    chip = read(tmp_path, f'{stated}\naccumulate = {{ value = "fp16", {TRUST} }}')
    own = resolve(chip.arithmetic, [])
    assert own.native()["matmul_when"] == 2
    assert (own.native()["matmul_variable"], own.native()["matmul_off"]) == ("A_B", "0")
    assert "attention_too" not in own.native()
    assert own.by_hand == ()
    changed = resolve(chip.arithmetic, ["accumulate=fp32", "split_k=2"])
    assert changed.by_hand == ("accumulate=fp32", "split_k=2")
    assert [(row["key"], row["by_hand"], row["tier"]) for row in changed.rows()] == [
        ("matmul.float32", False, "vendor"),
        ("accumulate", True, "assumed"),
        ("split_k", True, "assumed"),
    ]
    assert [key for section, key, _ in chip.all_facts() if section == "arithmetic"] == [
        "matmul.float32",
        "accumulate",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (f'acumulate = {{ value = "fp16", {TRUST} }}', "did you mean 'accumulate'"),
        (f'accumulate = {{ value = "fp8", {TRUST} }}', "'fp8' is not a value of accumulate"),
        ('accumulate = { value = "fp16", tier = "vendor" }', "accumulate.source: missing"),
        (f'"matmul.float32" = {{ value = "tf32", when = "now", {TRUST} }}', "not one of always, "),
        (f'"matmul.float32" = {{ value = "tf32", unless = "A", {TRUST} }}', "is not NAME=VALUE"),
        (f'split_k = {{ value = "2", when = "allowed", {TRUST} }}', "only the formats of float32"),
    ],
)
def test_wrong_files_are_told(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(ChipFileError) as told:
        read(tmp_path, line)
    assert problem in str(told.value)


def test_every_quirk_of_tensor_cells_has_its_arithmetic() -> None:
    """The quirks say it to people, the arithmetic to the virtual chip; both stand or neither."""
    for name in chips.names():
        chip = chips.load(name)
        quirks = {quirk.name for quirk in chip.quirks}
        keys = {setting.key: setting for setting in chip.arithmetic}
        assert ("tf32-default" in quirks) == ("convolution.float32" in keys), name
        if "fp32-tensor-cell" in quirks:
            unless = keys["matmul.float32"].unless
            assert unless in next(q.what for q in chip.quirks if q.name == "fp32-tensor-cell")
