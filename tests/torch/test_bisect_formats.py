"""The arithmetic of a chip, set by hand, is what `compare --bisect` names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from arithmetic_reference import Floats, Set, as_half, keep_bits, normal, summed
from recording_here import record
from torch import nn

from offramp.compare import run
from offramp.compare.formats import Explained, explain
from offramp.compare.operators import Named, bisect
from offramp.compare.verdict import DIFFERENT, PRECISION, SAME, Place, Verdict
from offramp.record.frames import Frame
from offramp.record.recording import Recording

DEPTH = 2048
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def recorded(
    path: Path, dtype: torch.dtype, module: str = "0", perturb: int = -1, scale: float = 1.0
) -> Recording:
    """Two steps of a small model on the chip, in one format."""

    def work() -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(DEPTH, 48), nn.Tanh(), nn.Linear(48, 16), nn.Softmax(-1)]
        model = nn.Sequential(*layers, nn.Linear(16, 1)).to(dtype).to("cuda")  # rounded on the host
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            x = (scale * torch.randn(64, DEPTH)).to(dtype).to("cuda")
            model(x).square().mean().backward()
            optimizer.step()

    found, _ = record(path, work, tensors=module, steps=(0,), perturb=perturb)
    assert not found.notes
    return found


def told(
    arith: Set, folder: Path, text: str, dtype: torch.dtype, module: str = "0"
) -> tuple[Verdict, Verdict, str]:
    """The verdict on the chip with the setting and without, as `--bisect` changes it, its words."""
    a, noisy = (recorded(folder / f"{n}.rec", dtype, module, n) for n in (-1, 1))
    arith(text)
    b = recorded(folder / "b.rec", dtype, module)
    plain = run.judged([a], [b], [[noisy]], 0.005)
    found, words = run.bisect(plain, a.path, b.path)
    return plain.verdict, found.verdict, words


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("matmul.float32=tf32", "inputs with 10 bits of mantissa, as TF32's"),
        ("matmul.float32=bf16x1", "inputs with 7 bits of mantissa, as bfloat16's"),
        ("matmul.float32=12", "inputs with 12 bits of mantissa"),
        ("matmul.float32=bf16x3", "inputs that are sums of two bfloat16 numbers (bf16x3)"),
    ],
)
def test_inputs_with_fewer_bits_are_told_apart(
    arith: Set, tmp_path: Path, text: str, name: str
) -> None:
    _, found, words = told(arith, tmp_path, text, F32)
    assert (found.verdict, found.kind) == (PRECISION, name)
    assert words.startswith("aten.addmm.default: operator 1 is off by")
    assert f"its result is that of {name}, to " in words


@pytest.mark.parametrize(
    ("text", "dtype", "name"),
    [
        ("accumulate=fp16", F16, "sums in float16"),
        ("accumulate=bf16", BF16, "sums in bfloat16"),
        ("accumulate=fp16", BF16, "sums in float16"),
        ("accumulate=chunked:64", F16, "sums of 64 products in float16, and of these in float32"),
        (
            "accumulate=chunked:128:bf16",
            BF16,
            "sums of 128 products in bfloat16, and of these in float32",
        ),
    ],
)
def test_narrow_sums_are_named_to_the_bit(
    arith: Set, tmp_path: Path, text: str, dtype: torch.dtype, name: str
) -> None:
    a = recorded(tmp_path / "a.rec", dtype)
    arith(text)
    found: Named = bisect(a, recorded(tmp_path / "b.rec", dtype), 0, "0")
    assert (found.operator, found.arithmetic) == ("aten.addmm.default", name)
    assert f"its result is that of {name}, to the bit; the next, " in found.text


@pytest.mark.parametrize("text", ["accumulate=chunked:64", "accumulate=chunked:128"])
def test_narrow_sums_within_the_noise_floor_are_another_precision(
    arith: Set, tmp_path: Path, text: str
) -> None:
    plain, found, words = told(arith, tmp_path, text, BF16)
    assert plain.verdict == SAME
    assert found.verdict == PRECISION
    assert found.kind.startswith(f"sums of {text.rpartition(':')[2]} products in float16")
    assert found.place == Place(0, "0", "forward", "aten.addmm.default, within the noise floor")
    assert "to the bit" in words


def test_a_difference_in_no_module_stays_and_the_arithmetic_is_named(
    arith: Set, tmp_path: Path
) -> None:
    told(arith, tmp_path, "accumulate=chunked:64", BF16)
    paths = (tmp_path / "-1.rec", tmp_path / "b.rec", tmp_path / "1.rec")
    found = run.files(paths[0], paths[1], [paths[2]], 0.005)
    parted = replace(found.verdict, verdict=DIFFERENT, place=Place(1, "optimizer", "", "its step"))
    found, words = run.bisect(replace(found, verdict=parted), *paths[:2])
    assert found.verdict == parted
    assert words.startswith("the first difference is in no module's pass; within the noise, 0 diff")
    assert "its result is that of sums of 64 products in float16" in words


def test_noise_of_rounding_size_stays_the_same_model(tmp_path: Path) -> None:
    a, b, *noisy = (recorded(tmp_path / f"{n}.rec", F32, "*", n) for n in (-1, 2, 1, 3))
    plain = run.judged([a], [b], [[one] for one in noisy], 0.005)
    found, words = run.bisect(plain, a.path, b.path)
    assert plain.verdict.worst > 0
    assert found.verdict.verdict == SAME
    assert words.startswith("no module differs; replayed")


def test_modules_with_the_longest_sums_are_replayed_where_none_differs(tmp_path: Path) -> None:
    a, noisy = (recorded(tmp_path / f"{n}.rec", F32, "", n) for n in (-1, 1))
    found = run.judged([a], [noisy], [[noisy]], 0.005)
    assert found.verdict.verdict == SAME
    assert run.to_replay(found, a.path) == ("0,2", 0)
    found, words = run.bisect(found, a.path, noisy.path)
    assert found.verdict.verdict == SAME
    assert words.startswith("no module differs, and there is no module whose operators both")


def test_a_verdict_on_narrow_sums_names_them(arith: Set, tmp_path: Path) -> None:
    plain, found, _ = told(arith, tmp_path, "accumulate=bf16", BF16)
    assert plain.verdict == DIFFERENT  # sums of so many are too far off to look like a format
    assert (found.verdict, found.kind) == (PRECISION, "sums in bfloat16")


def test_subnormal_numbers_that_are_zeros_are_a_format(arith: Set, tmp_path: Path) -> None:
    plain, found, words = told(arith, tmp_path, "flush_to_zero=true", F16, module="3")
    assert plain.verdict == PRECISION
    assert plain.kind == "flush to zero in the second: it has no subnormal numbers"
    assert plain.place is not None
    assert (plain.place.step, plain.place.module, plain.place.pass_name) == (0, "3", "backward")
    assert found.kind == "no subnormal numbers (flush to zero)"
    assert "gives zeros for subnormal numbers in the second only; its result is that of" in words


def test_where_all_is_subnormal_it_is_no_fault_that_all_is_zero(arith: Set, tmp_path: Path) -> None:
    a, noisy = (recorded(tmp_path / f"{n}.rec", F32, perturb=n, scale=1e-40) for n in (-1, 1))
    arith("flush_to_zero=true")
    b = recorded(tmp_path / "b.rec", F32, scale=1e-40)
    found = run.judged([a], [b], [[noisy]], 0.005).verdict
    assert (found.verdict, found.is_chip) == (PRECISION, True)
    assert found.kind == "flush to zero in the second: it has no subnormal numbers"


def test_results_that_are_rounded_by_chance_are_named(arith: Set, tmp_path: Path) -> None:
    a = recorded(tmp_path / "a.rec", BF16)
    arith("rounding=stochastic")
    found = bisect(a, recorded(tmp_path / "b.rec", BF16), 0, "0")
    assert found.operator == "aten.addmm.default"
    assert found.arithmetic == "results rounded up or down as if by chance"


def test_exponentials_are_named_with_how_far_they_are_off(arith: Set, tmp_path: Path) -> None:
    _, found, words = told(arith, tmp_path, "exp_ulp=64", F32, module="3")
    assert found.verdict == DIFFERENT
    assert words.startswith("aten._softmax.default: operator 0 is off by")
    assert "no arithmetic that was tried gives it, up to " in words


def test_an_operator_without_sums_is_named_for_less(arith: Set, tmp_path: Path) -> None:
    a = recorded(tmp_path / "a.rec", F32, "1")
    arith("exp_ulp=16")
    found = bisect(a, recorded(tmp_path / "b.rec", F32, "1"), 0, "1")
    assert found.operator == "aten.tanh.default"
    assert max(found.errors[0][1:]) < 16 * torch.finfo(F32).eps  # in sums this may be another order


def test_another_order_of_sums_is_not_named(arith: Set, tmp_path: Path) -> None:
    a = recorded(tmp_path / "a.rec", F32)
    arith("split_k=8")
    found = bisect(a, recorded(tmp_path / "b.rec", F32), 0, "0")
    assert found.operator == ""
    assert max(x for _, *errors in found.errors for x in errors) > 0


def explained(a: Floats, b: Floats, result: Floats) -> Explained:
    """What is said of a float32 product with such a result."""
    arrays = {"0": a, "1": b, "2": result.astype(np.float32)}
    one, other, out = ({"<format>": "float32", "<tensor>": place} for place in range(3))
    told = {"name": "aten.mm.default", "args": [one, other], "kwargs": {}, "out": out}
    return explain(Frame("operators", {}, arrays), told)


def in_blocks(a: Floats, b: Floats, size: int) -> Floats:
    """Sums in float16, with so many products added at a time, as units that multiply tiles do."""
    total = np.zeros((len(a), b.shape[1]), np.float32)
    for start in range(0, a.shape[1], size):
        part = a[:, start : start + size].astype(np.float64) @ b[start : start + size]
        total = as_half(total + part.astype(np.float32))
    return total


def cut(x: Floats, bits: int) -> Floats:
    """The last bits of float32 set to zero."""
    return (x.view(np.uint32) >> (23 - bits) << (23 - bits)).view(np.float32)


def test_a_float32_layer_that_sums_in_float16_is_told_from_tf32() -> None:
    a, b = normal(48, 64), normal(64, 40, seed=4)
    exact = a.astype(np.float64) @ b
    narrow, blocks = summed(a, b, "fp16"), in_blocks(a, b, 8)
    tf32 = keep_bits(a, 10).astype(np.float64) @ keep_bits(b, 10)
    sizes = [np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in (narrow, blocks, tf32)]
    assert max(sizes) < 8 * min(sizes)  # the size of the error does not tell
    assert explained(a, b, narrow).arithmetic == "sums in float16"
    assert explained(a, b, blocks).arithmetic == "sums in float16, 8 products at a time"
    assert explained(a, b, tf32).arithmetic == "inputs with 10 bits of mantissa, as TF32's"
    cut_off = cut(a, 10).astype(np.float64) @ cut(b, 10)
    assert explained(a, b, cut_off).arithmetic == "inputs cut off after 10 bits of mantissa"
    half = as_half(as_half(a) @ as_half(b))
    assert explained(a, b, half).arithmetic == "a product in float16, inputs and result"


def test_what_is_not_told_apart_is_said_and_what_is_unknown_too() -> None:
    a, b = normal(48, 64), normal(64, 40, seed=4)
    b[8:] = 0  # of no more products than one block and one chunk have
    found = explained(a, b, summed(a, b, "fp16"))
    assert found.arithmetic.startswith("sums in float16 or sums of 16 products in float16, and")
    assert "sums of 8 products in float16, and of these in float32" in found.arithmetic
    assert found.text.endswith("which give the same here")
    noise = normal(48, 40, seed=9)
    found = explained(a, b, (a @ b) * (1 + 1e-3 * noise))
    assert found.arithmetic == ""
    assert "no arithmetic that was tried gives it" in found.text
