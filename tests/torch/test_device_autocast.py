"""Mixed precision: CUDA's lists of operators, on `cuda` and on own-name chips."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from offramp.device.build import SOURCES

HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
LISTS = {
    "kLower": "AT_FORALL_LOWER_PRECISION_FP",
    "kFloat32": "AT_FORALL_FP32",
    "kFloat32Result": "AT_FORALL_FP32_SET_OPT_DTYPE",
    "kWidest": "AT_FORALL_PROMOTE",
}


@pytest.mark.parametrize("ours", LISTS)
def test_own_name_chips_have_the_lists_of_this_torch(ours: str) -> None:
    header = HEADER.read_text().replace("\\\n", " ")
    line = re.search(rf"#define {LISTS[ours]}\(_\)(.*)", header)
    assert line is not None
    expected = {
        ".".join(part.strip() for part in entry.split(","))
        for entry in re.findall(r"_\(([^)]*)\)", line[1])
    }
    text = (SOURCES / "autocast.cpp").read_text()
    block = re.search(rf"const Listed {ours}{{([^}}]*)}}", text)
    assert block is not None
    assert set(re.findall(r'"([^"]+)"', block[1])) == expected


PROGRAM = """
import sys, torch, torch.nn.functional as F
kind, dtype = sys.argv[1], getattr(torch, sys.argv[2])
from offramp import chips, device
device.open_device(chips.load(sys.argv[3]), count=1)
torch.cuda._lazy_init = lambda: None
torch.cuda.is_available = lambda: True
torch.cuda.is_bf16_supported = lambda *a, **k: True
if kind != "cuda":
    module = type(torch)(kind)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    torch._register_device_module(kind, module)
x = torch.randn(4, 4, device=kind)
half = x.to(dtype)
single = torch.float32
with torch.autocast(kind, dtype=dtype):
    found = {
        "mm": (x @ x).dtype, "linear": F.linear(x, x).dtype, "bmm": (x[None] @ x[None]).dtype,
        "conv": F.conv1d(x, x[:, :, None].contiguous()[:, :, :1].expand(4, 4, 1), None).dtype,
        "softmax": half.softmax(-1).dtype, "exp": half.exp().dtype, "sum": half.sum().dtype,
        "layer_norm": F.layer_norm(half, (4,)).dtype, "norm": half.norm(2).dtype,
        "norm_dim": half.norm(2, [0]).dtype, "mse": F.mse_loss(half, x).dtype,
        "cumsum": half.cumsum(0).dtype, "add": (half + x).dtype, "relu": half.relu().dtype,
        "addcmul": torch.addcmul(half, half, x).dtype, "dot": torch.dot(half[0], half[0]).dtype,
        "ints": x.long().sum().dtype,
        "sdpa": F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]).dtype,
    }
    if kind == "cuda":
        assert (x.double() @ x.double()).dtype == torch.float64
    try:
        F.binary_cross_entropy(half.sigmoid(), half.sigmoid())
    except RuntimeError as error:
        assert "unsafe to autocast" in str(error)
    else:
        raise SystemExit("binary_cross_entropy passed")
for name, got in found.items():
    low = {"mm", "linear", "bmm", "conv", "relu", "dot", "sdpa"}
    other = {"ints": torch.int64}
    want = dtype if name in low else other.get(name, single)
    assert got == want, (name, got, want)
assert (x @ x).dtype == single
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("kind", "name"), [("cuda", "zhenwu-810e"), ("npu", "ascend-910b")])
def test_formats_under_autocast(kind: str, name: str, dtype: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, dtype, name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("chip")
def test_gradient_scaler_skips_steps_that_overflow() -> None:
    weight = torch.ones(3, device="cuda", requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0, growth_interval=1)
    scaler.scale((weight * 0.5).sum()).backward()
    assert weight.grad.tolist() == [2, 2, 2]
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [0.5, 0.5, 0.5]
    assert scaler.get_scale() == 8
    optimizer.zero_grad()
    scaler.scale((weight * float("inf")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [0.5, 0.5, 0.5]
    assert scaler.get_scale() == 4


@pytest.mark.usefixtures("chip")
@pytest.mark.parametrize("fused", [False, True])
def test_gradient_scaler_with_fused_optimizers_is_that_of_the_cpu(fused: bool) -> None:
    def train(device: str) -> list[float]:
        weight = torch.linspace(-1, 1, 5).to(device).requires_grad_()
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler(device, init_scale=1024.0)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(weight.square().sum()).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_([weight], 0.5)
            scaler.step(optimizer)
            scaler.update()
        return weight.tolist()

    assert train("cuda") == train("cpu")
