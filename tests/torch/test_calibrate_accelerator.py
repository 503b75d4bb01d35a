"""Calibration of an accelerator, on a virtual one in its own time: events, streams, queues.

The nearest to hardware that every machine has. What the timer reads must be what the chip's costs
say of the same calls; neither knows of the other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from offramp.calibrate.capture import operations
from offramp.chips import load
from offramp.costs import Costs, training
from offramp.launch.player import Part

CHIP = "nvidia-h100"
PROGRAM = """
import json, torch
from offramp.calibrate.timing import Timer

timer = Timer(torch.device("cuda"))
a = torch.ones(2048, 1024, device="cuda", dtype=torch.bfloat16)
square = torch.ones(1024, 1024, device="cuda")
calls = {
    "mm": lambda index: a @ a.t(),
    "mm in float32": lambda index: square @ square,
    "mul": lambda index: a * 1.5,
    "_softmax": lambda index: a.softmax(-1),
}
seconds = {name: timer.of(call).seconds for name, call in calls.items()}
timer.host_seconds(calls["mul"], 10)
seconds["launch"] = timer.host_seconds(calls["mul"], 100) / 100
print(json.dumps([timer.clock, seconds]))
"""


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, float]:
    """Seconds by call, as the timer reads them on the chip."""
    tape = tmp_path_factory.mktemp("tape") / "0.tape"
    part = Part(0, 1, str(tape), leads_time=True)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **part.env(), "OFFRAMP_CHIP": CHIP, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    clock, seconds = json.loads(done.stdout.splitlines()[-1])
    assert clock == "events of the device"
    return dict(seconds)


def test_operators_take_what_the_chip_is_said_to_take(timed: Mapping[str, float]) -> None:
    costs = Costs(load(CHIP), factors=training.factors())
    a, square = torch.ones(2048, 1024, dtype=torch.bfloat16), torch.ones(1024, 1024)
    calls = {
        "mm": lambda: a @ a.t(),
        "mm in float32": lambda: square @ square,
        "mul": lambda: a * 1.5,
        "_softmax": lambda: a.softmax(-1),
    }
    for name, call in calls.items():
        expected = sum(costs.of(op).seconds for op in operations(call))
        assert timed[name] == pytest.approx(expected, rel=1e-3), name


def test_a_launch_takes_what_the_host_is_said_to_take(timed: Mapping[str, float]) -> None:
    launch = Costs(load(CHIP), factors=training.factors()).host.operator.value
    assert timed["launch"] == pytest.approx(launch, rel=0.01)


def test_the_command_finds_a_virtual_accelerator(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "offramp", "calibrate", "--device", "nonsense"]
    env = {**os.environ, "OFFRAMP_CHIP": CHIP}
    done = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "PyTorch has cpu, cuda here" in done.stderr
