"""What a CUDA build of PyTorch brings of NVIDIA's own never answers for the chip.

These hold on a build without CUDA as well, whose answers are the measure for the other.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp.errors import MissingPackageError

KEYS = ("CUDA", "SparseCUDA", "SparseCsrCUDA", "NestedTensorCUDA", "QuantizedCUDA")
OF_ANY_DEVICE = "c10d::"  # PyTorch has these kernels at the key in every build


def run(code: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FOREIGN = f"""
import torch
def kernel(name, key):
    lines = torch._C._dispatch_dump(name).splitlines()
    return next(line for line in lines if line.startswith(key + ": "))
for key in {KEYS}:
    for name in torch._C._dispatch_get_registrations_for_dispatch_key(key):
        if not name.startswith({OF_ANY_DEVICE!r}) and "offramp" not in kernel(name, key):
            print(kernel(name, key))
"""


@pytest.mark.parametrize("by", ["use", "run"])
def test_every_kernel_at_the_chips_keys_is_ours(by: str) -> None:
    opened = "import torch, offramp; offramp.use('zhenwu-810e')\n" if by == "use" else ""
    chip = {} if by == "use" else {"OFFRAMP_CHIP": "zhenwu-810e"}
    assert run(opened + FOREIGN, **chip) == ""


def test_no_function_of_the_cuda_runtime_is_left(chip: Any) -> None:
    real = {
        name
        for name, value in vars(torch._C).items()
        if name.startswith(("_cuda_", "_nccl_", "_cudnn_", "_gds_"))
        and type(value).__name__ == "builtin_function_or_method"
    }
    assert not real


def test_names_of_the_build_come_back() -> None:
    code = (
        "import torch, offramp\n"
        "def names():\n"
        "    parts = (torch._C, torch.cuda, torch.backends.cudnn, torch.UntypedStorage)\n"
        "    found = {(p.__name__, k): id(v) for p in parts for k, v in vars(p).items()}\n"
        "    return found | {('jit', 'fuse'): torch._C._jit_can_fuse_on_gpu()}\n"
        "with offramp.use('zhenwu-810e'): pass\n"  # what PyTorch loads late is loaded now
        "before = names()\n"
        "with offramp.use('zhenwu-810e'): torch.ones(1, device='cuda')\n"
        "after = names()\n"
        "print(sorted(k for k in before | after if before.get(k) != after.get(k)))\n"
    )
    assert run(code) == "[]\n"


def test_libraries_of_nvidia_are_absent(chip: Any) -> None:
    assert not torch.backends.cudnn.is_available()
    assert torch.backends.cudnn.version() is None
    assert torch.backends.cusparselt.version() is None
    assert not torch.backends.cuda.is_flash_attention_available()
    query = torch.ones(1, 1, 2, 8, device="cuda")
    given = torch.backends.cuda.SDPAParams(query, query, query, None, 0.0, False, False)
    assert not torch.backends.cuda.can_use_flash_attention(given)
    assert not torch.backends.cuda.can_use_efficient_attention(given)


def test_packages_find_the_toolkit_version_of_the_build() -> None:
    code = "import torch, offramp\nbuilt = torch.version.cuda\nofframp.use('zhenwu-810e')\n"
    assert run(f"{code}print(torch.version.cuda == (built or '12.8'))") == "True\n"


@pytest.mark.filterwarnings("ignore:.torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.*:FutureWarning")
def test_torchscript_runs_operator_by_operator(chip: Any) -> None:
    x = torch.ones(2, device="cuda")
    traced = torch.jit.trace(lambda x: (x * x + 1).sigmoid(), x)
    for _ in range(3):  # it would be fused at the second call
        assert torch.equal(traced(x), (x * x + 1).sigmoid())


def test_root_mean_square_norm_has_the_cpus_gradients(chip: Any) -> None:
    def gradients(device: str) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(0)
        x = torch.randn(3, 5, dtype=torch.float64).to(device).requires_grad_()
        weight = torch.randn(5, dtype=torch.float64).to(device).requires_grad_()
        torch.nn.functional.rms_norm(x, (5,), weight).sin().sum().backward()
        assert x.grad is not None
        assert weight.grad is not None
        return x.grad.cpu(), weight.grad.cpu()

    for ours, expected in zip(gradients("cuda"), gradients("cpu"), strict=True):
        torch.testing.assert_close(ours, expected)


def test_kernels_of_a_library_loaded_later_give_way_to_its_cpu_kernels(chip: Any) -> None:
    library = torch.library.Library("offramp_late", "DEF")

    def load() -> None:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x + x, "CPU")
        library.impl("twice", lambda x: pytest.fail("NVIDIA's kernel ran"), "CUDA")

    chip.native.cover_library(load)
    result = torch.ops.offramp_late.twice(torch.ones(2, device="cuda"))
    assert result.is_cuda
    assert result.tolist() == [2.0, 2.0]


def test_a_kernel_of_the_program_itself_is_kept(chip: Any) -> None:
    library = torch.library.Library("offramp_own", "DEF")
    library.define("thrice(Tensor x) -> Tensor")
    library.impl("thrice", lambda x: 3 * x, "CUDA")
    chip.native.cover_library(lambda: None)
    assert torch.ops.offramp_own.thrice(torch.ones(1, device="cuda")).tolist() == [3.0]


@pytest.mark.parametrize("imported_before", [False, True])
def test_an_installed_package_of_cuda_kernels_is_absent_too(
    tmp_path: Path, imported_before: bool
) -> None:
    (tmp_path / "flash_attn.py").write_text("kernel = 1\n")
    code = (
        f"{'import flash_attn' if imported_before else ''}\n"
        "import importlib.util, torch, offramp\n"
        "with offramp.use('zhenwu-810e'):\n"
        "    print(importlib.util.find_spec('flash_attn'))\n"
        "    try: import flash_attn\n"
        "    except ImportError as error: print(type(error).__name__)\n"
        "import flash_attn\n"
        "print(flash_attn.kernel)\n"
    )
    assert run(code, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}") == (
        f"None\n{MissingPackageError.__name__}\n1\n"
    )
