"""Every refused operator reaches the run's record with its own reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import torch

def refused(call):
    try:
        call()
    except NotImplementedError as error:
        print(error)

x = torch.ones(4, 4, device="cuda")
refused(lambda: x.double() + 1)
refused(lambda: x.double() + 1)
refused(lambda: torch.ops.aten._scaled_mm(x, x, x[0, 0], x[0, 0]))
library = torch.library.Library("shop", "DEF")
library.define("only_cuda(Tensor x) -> Tensor")
refused(lambda: torch.ops.shop.only_cuda(x))
"""


def test_each_has_its_reason(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run = [sys.executable, "-m", "offramp", "run", "--chip", "kunlun-p800", "--run-dir"]
    done = subprocess.run(
        [*run, str(tmp_path / "run"), "--", sys.executable, str(program)],
        capture_output=True,
        text=True,
        check=True,
    )
    double, _, scaled, custom = done.stdout.splitlines()
    assert "not implemented for 'Double': kunlun-p800 has no Double arithmetic" in double
    assert "aten::_scaled_mm does not exist on kunlun-p800: there are no float8" in scaled
    assert "Could not run 'shop::only_cuda' on kunlun-p800 (virtual)" in custom
    summary = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {(row["name"], row["reason"], row["count"]) for row in summary["refused"]} == {
        ("aten::add.Tensor", "kunlun-p800 has no Double arithmetic", 2),
        ("shop::only_cuda", "the operator has no CPU kernel to compute its values with", 1),
    }
    (missing,) = summary["missing_ops"]
    assert (missing["op"], missing["count"]) == ("aten::_scaled_mm", 1)
