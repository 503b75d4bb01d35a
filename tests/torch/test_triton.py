"""Triton may be imported and kernels defined; a launch ends in an explanation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# The part of Triton that a launch goes through, and no more: the package itself is not installed.
STAND_IN = """
class KernelInterface:
    def __getitem__(self, grid):
        return lambda *args: print("launched")
class JITFunction(KernelInterface):
    def __init__(self, fn):
        self.fn = fn
"""
PROGRAM = """
{before}
import offramp
with offramp.use("zhenwu-810e") as session:
    import importlib.util, triton, torch
    from offramp.errors import OfframpError
    print(importlib.util.find_spec("triton"))
    kernel = triton.jit(lambda: None)
    kernel.fn.__name__ = "fused_norm"
    try:
        kernel[(1,)](torch.ones(1, device="cuda"))
    except OfframpError as error:
        print(error)
    print(session.identity.record()["refused"][0]["name"])
kernel[(1,)]()
"""


@pytest.mark.parametrize("before", ["", "import triton"])
def test_a_launch_is_refused_by_the_name_of_the_kernel(tmp_path: Path, before: str) -> None:
    runtime = tmp_path / "triton" / "runtime"
    runtime.mkdir(parents=True)
    (runtime / "__init__.py").touch()
    (runtime / "jit.py").write_text(STAND_IN)
    (runtime.parent / "__init__.py").write_text("from triton.runtime.jit import JITFunction as jit")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(before=before))
    command = [sys.executable, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    looked_up, refused, counted, after = done.stdout.splitlines()
    assert looked_up == "None"
    assert refused.startswith("the Triton kernel fused_norm cannot run on zhenwu-810e: ")
    assert counted == "the Triton kernel fused_norm"
    assert after == "launched"
