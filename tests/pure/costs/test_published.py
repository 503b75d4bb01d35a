"""Rates that others measured, on the shapes they measured: near the estimate, in the interval.

The constants of a chip's family come partly from the same sources; a family has one constant
where a source has many shapes.
"""

from __future__ import annotations

import pytest
from signatures import flash, mm

from offramp import chips
from offramp.costs import Costs, Operation

# stas00/ml-engineering, maximum achievable matmul FLOPS: the best shape (M, N, K), TFLOP/s.
BEST = [
    ("nvidia-a100", 1024, 10240, 5120, "bfloat16", 271.2),
    ("nvidia-h100", 2048, 2048, 13312, "bfloat16", 794.5),
    ("nvidia-b200", 1792, 16128, 3072, "bfloat16", 1745.0),
    ("nvidia-b300", 12288, 18432, 1024, "bfloat16", 1769.0),
    ("amd-mi300x", 10240, 15360, 8192, "bfloat16", 668.4),
    ("amd-mi325x", 13312, 10240, 8192, "bfloat16", 784.9),
    ("amd-mi355x", 12288, 8192, 8192, "bfloat16", 1565.0),
    ("intel-gaudi-2", 14336, 15360, 2048, "bfloat16", 418.7),
    ("intel-gaudi-3", 16384, 4096, 768, "bfloat16", 1243.0),
    ("nvidia-h100", 1024, 9216, 14336, "float8_e4m3fn", 1402.6),
    ("nvidia-h200", 1280, 4096, 12032, "float8_e4m3fn", 1453.4),
    ("nvidia-b200", 15360, 4096, 3072, "float8_e4m3fn", 3432.5),
    ("nvidia-b300", 3072, 6144, 7168, "float8_e4m3fn", 3353.3),
    ("intel-gaudi-2", 6144, 11264, 5120, "float8_e4m3fn", 826.5),
    ("intel-gaudi-3", 16640, 1536, 3072, "float8_e4m3fn", 1289.5),
    # FlagGems pull request 5972; three more of its shapes exceed the rated peak or nearly so
    ("zhenwu-810e", 256, 4096, 14336, "bfloat16", 108.4),
    ("zhenwu-810e", 4096, 4096, 4096, "int8", 235.4),
]
# batch, heads, length at head size 128, causal, kernel, TFLOP/s
ATTENTION = [
    # liangan1/GPU_travel performance/flash-attn
    ("nvidia-a100", 16, 32, 1024, False, "flash", 177.7),
    ("nvidia-a100", 1, 32, 4096, False, "flash", 185.6),
    ("nvidia-a100", 16, 32, 1024, True, "flash", 143.7),
    ("nvidia-a100", 1, 32, 4096, True, "flash", 156.3),
    # pytorch/benchmark pull request 2391, FlashAttention-3
    ("nvidia-h100", 32, 16, 512, False, "cudnn", 430.3),
    ("nvidia-h100", 16, 16, 1024, False, "cudnn", 517.1),
    ("nvidia-h100", 8, 16, 2048, False, "cudnn", 565.5),
    ("nvidia-h100", 4, 16, 4096, False, "cudnn", 590.2),
    ("nvidia-h100", 2, 16, 8192, False, "cudnn", 614.2),
    ("nvidia-h100", 1, 16, 16384, False, "cudnn", 620.7),
]


def compare(name: str, op: Operation, measured: float, near: float) -> None:
    cost = Costs(chips.load(name)).of(op)
    rates = [cost.flops / seconds / 1e12 for seconds in (cost.high, cost.seconds, cost.low)]
    assert rates[0] <= measured <= rates[2]
    assert rates[1] == pytest.approx(measured, rel=near)


@pytest.mark.parametrize(("name", "m", "n", "k", "dtype", "measured"), BEST)
def test_the_best_products(name: str, m: int, n: int, k: int, dtype: str, measured: float) -> None:
    compare(name, mm(m, n, k, dtype), measured, near=0.2)


@pytest.mark.parametrize(
    ("name", "batch", "heads", "length", "causal", "kernel", "measured"), ATTENTION
)
def test_flash_attention(
    name: str, batch: int, heads: int, length: int, causal: bool, kernel: str, measured: float
) -> None:
    op = flash(batch, heads, length, 128, causal=causal)
    named = Operation(op.name.replace("flash", kernel), op.inputs, op.outputs, op.values)
    compare(name, named, measured, near=0.06)
