"""Signatures of operator calls for the tests, and a chip made by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from offramp import chips
from offramp.costs import Operation, Tensor

CHIP = """
title = "Round numbers"
vendor = "nobody"

[sources]
made = "made up"

[facts]
memory = { value = 64, unit = "GB", tier = "vendor", source = "made" }
memory_bandwidth = { value = 1000, unit = "GB/s", tier = "vendor", source = "made" }
host_bandwidth = { value = 64, unit = "GB/s", tier = "vendor", source = "made" }
link_bandwidth = { value = 400, unit = "GB/s", tier = "vendor", source = "made" }
COUNT

[rates.matrix]
bfloat16 = { value = 100, unit = "TFLOP/s", tier = "vendor", source = "made" }
RATES

[presentation]
device_type = { value = "cuda", tier = "vendor", source = "made" }
device_name = { value = "Round", tier = "vendor", source = "made" }
collectives = { value = "nccl", tier = "vendor", source = "made" }
"""


def chip(folder: Path, cores: int | None = 10, rates: str = "") -> chips.Chip:
    """100 TFLOP/s, 1 TB/s, and so many multiprocessors."""
    fact = f'multiprocessors = {{ value = {cores}, tier = "vendor", source = "made" }}'
    path = folder / f"round-{cores}.toml"
    path.write_text(CHIP.replace("COUNT", fact if cores else "").replace("RATES", rates))
    return chips.read(path)


def tensor(*sizes: int, dtype: str = "bfloat16") -> Tensor:
    """A contiguous tensor."""
    return Tensor(dtype, sizes, tuple(math.prod(sizes[i + 1 :]) for i in range(len(sizes))))


def mm(m: int, n: int, k: int, dtype: str = "bfloat16", **values: Any) -> Operation:
    a, b, out = tensor(m, k, dtype=dtype), tensor(k, n, dtype=dtype), tensor(m, n, dtype=dtype)
    return Operation("aten::mm", (a, b), (out,), values)


def add(*sizes: int, dtype: str = "bfloat16") -> Operation:
    x = tensor(*sizes, dtype=dtype)
    return Operation("aten::add.Tensor", (x, x), (x,), {"alpha": 1})


def flash(
    batch: int, heads: int, length: int, width: int, *, causal: bool = True, backward: bool = False
) -> Operation:
    x, row = tensor(batch, heads, length, width), tensor(batch, heads, length, dtype="float32")
    name = "aten::_scaled_dot_product_flash_attention"
    if backward:
        ins = (x, x, x, x, x, row)
        return Operation(f"{name}_backward", ins, (x, x, x), {"is_causal": causal})
    return Operation(name, (x, x, x), (x, row), {"is_causal": causal})
