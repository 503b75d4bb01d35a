"""What happens at `import torch`, without torch: the layers below are replaced by stand-ins."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import BARE_CHIP, environment, records

# Stands in for the device and identity layers; `REFUSE` makes opening the device fail.
STAND_INS = """
import os, sys, types
from offramp.errors import OfframpError
class Device:
    count, memory_bytes = 2, 8
    class chip:
        name = "x1"
        unknown_formats = {"float64", "int4"}
        missing_ops = {"aten::fft": types.SimpleNamespace(value="no FFT library")}
    operator_counts = lambda self: {"aten::mm": 7, "aten::add.Tensor": 4}
    operators_refused = lambda self: {
        "aten::fft.out": ("no FFT library", 2), "aten::add.Tensor": ("x1 has no float64", 1)
    }
    arithmetic_met = lambda self: [("split_k", "aten::mm", True, 3)]
    formats_used = lambda self: {"float32": 9, "float64": 2}
    memory_stats = lambda self, index: {
        "allocated_bytes": {"all": {"peak": 5 + index, "current": 1}},
        "reserved_bytes": {"all": {"peak": 7}},
    }
class Identity:
    record = lambda self: {"names": [], "refused": [{"name": "b", "reason": "r", "count": 1}]}
def open_device(chip, *, count, memory_bytes, arithmetic, announce):
    if os.environ.get("REFUSE") == "explained":
        raise OfframpError("no C++ compiler; install g++")
    if os.environ.get("REFUSE") == "defect":
        raise KeyError("internal")
    announce("compiling")
    print(chip.name, count, memory_bytes)
    return Device()
device = types.SimpleNamespace(open_device=open_device, VirtualDevice=Device)
identity = types.SimpleNamespace(install=lambda device: Identity(), Identity=Identity)
sys.modules["offramp.device"], sys.modules["offramp.identity"] = device, identity
"""
CALL = "from offramp.launch.autoload import autoload\nautoload()\n"
Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment(**env),
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize("env", [{}, {"OFFRAMP_CHIP": ""}])
def test_without_the_variable_nothing_is_imported(start: Start, env: dict[str, str]) -> None:
    before = "import sys, typing, __future__; before = set(sys.modules)"  # torch has these
    code = f"{before}\n{CALL}print(*sorted(set(sys.modules) - before))"
    loaded = set(start(code, **env).stdout.split())
    assert loaded == {"offramp", "offramp.launch", "offramp.launch.autoload"}


def test_the_chip_is_opened_and_a_record_left(start: Start, tmp_path: Path) -> None:
    chip = {"OFFRAMP_CHIP": f"{BARE_CHIP}:3", "OFFRAMP_MEMORY": "2MiB"}
    result = start(STAND_INS + CALL, **chip, OFFRAMP_RUN_DIR=str(tmp_path))
    assert (result.returncode, result.stderr) == (0, "offramp: compiling\n")
    assert result.stdout.split() == [BARE_CHIP, "3", str(2 * 2**20)]
    (record,) = records(tmp_path)
    assert record["chip"] == BARE_CHIP
    assert record["ops"] == {"aten::mm": 7, "aten::add.Tensor": 4}
    assert record["dtypes"] == {"float32": 9, "float64": 2}
    assert record["unknown_formats"] == ["float64"]
    missing = {"op": "aten::fft.out", "reason": "no FFT library", "count": 2}
    assert record["missing_ops"] == [missing]
    met = {"setting": "split_k", "op": "aten::mm", "applied": True, "count": 3}
    assert record["arithmetic"] == [met]
    assert record["refused"] == [
        {"name": "aten::add.Tensor", "reason": "x1 has no float64", "count": 1},
        {"name": "b", "reason": "r", "count": 1},
    ]
    assert [row["peak_allocated_bytes"] for row in record["devices"]] == [5, 6]
    assert {row["capacity_bytes"] for row in record["devices"]} == {8}


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"OFFRAMP_CHIP": "cqu"}, "OFFRAMP_CHIP=cqu: unknown chip 'cqu'; did you mean 'cpu'"),
        ({"OFFRAMP_CHIP": f"{BARE_CHIP}:0"}, f"OFFRAMP_CHIP={BARE_CHIP}:0: "),
        (
            {"OFFRAMP_CHIP": BARE_CHIP, "OFFRAMP_MEMORY": "lots"},
            f"OFFRAMP_CHIP={BARE_CHIP} OFFRAMP_MEMORY=lots: cannot read 'lots'",
        ),
    ],
)
def test_a_wrong_variable_ends_in_one_line_and_status_2(
    start: Start, env: dict[str, str], line: str
) -> None:
    # PyTorch wraps what derives from Exception; this must pass through its hands.
    wrapped = f"try:\n    {CALL.replace(chr(10), '; ')}\nexcept Exception: raise RuntimeError"
    result = start(wrapped, **env)
    assert result.returncode == 2
    assert result.stderr.startswith(f"offramp: {line}")
    assert result.stderr.count("\n") == 1


def test_a_chip_that_cannot_open_ends_in_one_line_and_status_1(start: Start) -> None:
    result = start(STAND_INS + CALL, OFFRAMP_CHIP=BARE_CHIP, REFUSE="explained")
    assert result.returncode == 1
    expected = f"offramp: OFFRAMP_CHIP={BARE_CHIP}: no C++ compiler; install g++\n"
    assert result.stderr == expected


def test_a_defect_keeps_its_stack(start: Start) -> None:
    result = start(STAND_INS + CALL, OFFRAMP_CHIP=BARE_CHIP, REFUSE="defect")
    assert "KeyError: 'internal'" in result.stderr
    assert "Traceback" in result.stderr
