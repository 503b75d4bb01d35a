"""Which arithmetic a chip has by its file, by its switches and by hand; a process for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# What one product and one convolution of a number that tf32 does not have come to.
PROGRAM = """
import json, torch
x = torch.full((1, 1, 1, 1), 1 + 2.0**-12, device="cuda")
one = torch.ones_like(x)
def told():
    matmul = (x[0, 0] @ one[0, 0]).item() != 1
    return [matmul, torch.nn.functional.conv2d(x, one).item() != 1]
found = {"default": told()}
torch.backends.cuda.matmul.allow_tf32 = True
torch.backends.cudnn.allow_tf32 = False
found["swapped"] = told()
torch.set_float32_matmul_precision("highest")
torch.backends.cudnn.allow_tf32 = True
found["restored"] = told()
print(json.dumps(found))
"""
IEEE_NOW, REDUCED_NOW = True, False  # whether the number came through whole


def run(program: str, *arguments: str, cwd: Path, **env: str) -> Any:
    plain = {k: v for k, v in os.environ.items() if k != "PPU_FP32_TENSOR_OVERRIDE"}
    return subprocess.run(
        [sys.executable, *arguments, "-c", program],
        cwd=cwd,
        env={**plain, "OFFRAMP_CHIP": "zhenwu-810e", **env},
        capture_output=True,
        text=True,
        check=False,
    )


def found(cwd: Path, **env: str) -> Any:
    done = run(PROGRAM, cwd=cwd, **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_tensor_cells_that_pytorch_must_allow(tmp_path: Path) -> None:
    """PyTorch's switches: float32 products off by default, convolutions on (its documentation)."""
    assert found(tmp_path, OFFRAMP_CHIP="nvidia-h100") == {
        "default": [IEEE_NOW, REDUCED_NOW],
        "swapped": [REDUCED_NOW, IEEE_NOW],
        "restored": [IEEE_NOW, REDUCED_NOW],
    }


def test_tensor_cells_that_are_on_unless_a_variable_says_so(tmp_path: Path) -> None:
    on, off = [REDUCED_NOW, IEEE_NOW], [IEEE_NOW, IEEE_NOW]
    assert set(map(tuple, found(tmp_path).values())) == {tuple(on)}
    switched = found(tmp_path, PPU_FP32_TENSOR_OVERRIDE="0")
    assert set(map(tuple, switched.values())) == {tuple(off)}
    late = f"import os\nos.environ['PPU_FP32_TENSOR_OVERRIDE'] = '0'\n{PROGRAM}"
    assert json.loads(run(late, cwd=tmp_path).stdout)["default"] == off


def test_a_hand_is_above_file_and_switches(tmp_path: Path) -> None:
    by_hand = found(tmp_path, OFFRAMP_ARITH="matmul.float32=ieee,convolution.float32=tf32")
    assert set(map(tuple, by_hand.values())) == {(IEEE_NOW, REDUCED_NOW)}
    other = found(tmp_path, OFFRAMP_CHIP="kunlun-p800", OFFRAMP_ARITH="matmul.float32=bf16x1")
    assert set(map(tuple, other.values())) == {(REDUCED_NOW, IEEE_NOW)}


def test_float64_can_be_refused_and_allowed(tmp_path: Path) -> None:
    program = "import torch\nx = torch.ones(2, device='cuda', dtype=torch.float64)\nprint(x + x)"
    refused = run(program, cwd=tmp_path, OFFRAMP_ARITH="float64=refused")
    assert "has no Double arithmetic" in refused.stderr
    allowed = run(program, cwd=tmp_path, OFFRAMP_CHIP="kunlun-p800", OFFRAMP_ARITH="float64=host")
    assert allowed.stdout.startswith("tensor([2., 2.]"), allowed.stderr
    lacking = run(program, cwd=tmp_path, OFFRAMP_CHIP="kunlun-p800")
    assert "has no Double arithmetic" in lacking.stderr


def test_scaled_products_of_8_bit_numbers(tmp_path: Path) -> None:
    """On a chip that has them: sums of whole numbers in float16 lose what is above 2,048."""
    program = """import torch
a = torch.full((16, 64), 8.0).to(torch.float8_e4m3fn).cuda()
half = torch.tensor(0.5, device="cuda")
call = dict(scale_a=half, scale_b=half, out_dtype=torch.float32)
print(torch._scaled_mm(a, a.t(), **call)[0, 0].item())
a[:, -1] = 1
print(torch._scaled_mm(a, a.t(), **call)[0, 0].item())
"""
    chip = {"OFFRAMP_CHIP": "nvidia-h100"}
    plain = run(program, cwd=tmp_path, **chip)
    narrow = run(program, cwd=tmp_path, **chip, OFFRAMP_ARITH="accumulate=fp16")
    assert plain.stdout.split() == ["1024.0", "1008.25"], plain.stderr
    assert narrow.stdout.split() == ["1024.0", "1008.0"], narrow.stderr


def test_a_run_says_what_was_changed(tmp_path: Path) -> None:
    program = "import torch\nx = torch.ones(4, 4, device='cuda')\nx @ x\nx.half() @ x.half()\n"
    program += "torch.nn.functional.conv2d(x[None, None], x[None, None])\n"
    (tmp_path / "train.py").write_text(program)
    command = ["run", "--chip", "zhenwu-810e", "--arith", "accumulate=fp16", "--run-dir", "out"]
    env = {**os.environ, "PPU_FP32_TENSOR_OVERRIDE": "1", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", "offramp", *command, "--", sys.executable, "train.py"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "matmul.float32=tf32 (of the chip, assumed): 1 call computed so" in said
    assert "accumulate=fp16 (set by hand): 1 call computed so" in said
    assert "accumulate is not covered in convolution: 1 call as the host" in said
    summary = json.loads((tmp_path / "out" / "run.json").read_text())
    stated = {row["key"]: row for row in summary["chip"]["arithmetic"]}
    assert stated["accumulate"]["by_hand"]
    assert stated["matmul.float32"]["unless"] == "PPU_FP32_TENSOR_OVERRIDE=0"
    met = {
        (row["setting"], row["op"], row["applied"]): row["count"] for row in summary["arithmetic"]
    }
    assert met == {
        ("matmul.float32", "aten::mm", True): 1,
        ("accumulate", "aten::mm", True): 1,
        ("accumulate", "aten::convolution", False): 1,
    }


@pytest.mark.parametrize("text", ["accumulate=fp8", "acumulate=fp16"])
def test_wrong_arithmetic_ends_in_one_line(tmp_path: Path, text: str) -> None:
    done = run("import torch", cwd=tmp_path, OFFRAMP_ARITH=text)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "OFFRAMP_ARITH" in done.stderr
