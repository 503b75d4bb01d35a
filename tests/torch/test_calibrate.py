"""A quick calibration of this machine's processor: a chip file that is read and rehearsed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from offramp import chips
from offramp.calibrate import device
from offramp.calibrate.capture import operations
from offramp.calibrate.probes import Probe, all_probes
from offramp.costs import Costs, Operation
from offramp.costs.features import WHOLE, features
from offramp.costs.measured import path_beside
from offramp.errors import UsageError

CPU = torch.device("cpu")
PROGRAM = """
import torch
from torch import nn
device = "cuda" if torch.cuda.is_available() else "cpu"
model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).to(device)
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
for _ in range(4):
    model(torch.ones(32, 64, device=device)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def offramp(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "offramp", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    done = offramp("calibrate", "--quick", "--device", "cpu", "--out", "here.toml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "matrix products, float32" in done.stderr
    return folder / "here.toml"


def test_the_file_is_a_chip_whose_facts_are_measured(machine: Path) -> None:
    chip = chips.load(str(machine))
    assert chip.is_synchronous
    assert {fact.tier for _, _, fact in chip.all_facts()} == {"measured"}
    source = chip.facts["memory_bandwidth"].source
    assert torch.__version__ in source
    assert "processor time" in source
    assert chip.costs_file == path_beside(machine)


def test_operators_cost_what_was_measured(machine: Path) -> None:
    costs = Costs(chips.load(str(machine)))
    x, weight = torch.ones(64, 64), torch.ones(64, 64)
    for op in operations(lambda: (x @ weight, torch.nn.functional.gelu(x), x.softmax(-1))):
        cost = costs.of(op)
        assert cost.basis.startswith("measured: "), (op.name, cost.basis)
        assert 0 < cost.low <= cost.seconds <= cost.high


def test_a_program_is_rehearsed_on_it(machine: Path) -> None:
    program = machine.parent / "train.py"
    program.write_text(PROGRAM)
    command = ["--json", "out.json", "--", sys.executable, "train.py"]
    done = offramp("rehearse", "--chip", machine.name, *command, cwd=machine.parent)
    assert done.returncode == 0, done.stderr
    found = json.loads((machine.parent / "out.json").read_text())
    assert 0 < found["step_s"]["low"] <= found["step_s"]["mid"] <= found["step_s"]["high"]
    assert found["split"]["idle_s"] == pytest.approx(0, abs=1e-9)  # one lane: always at work
    numbers = 64 * 256 * 2 + 256 + 64
    assert found["memory"]["by_category"]["parameters"] == 4 * numbers


def representative(probe: Probe) -> dict[str, int]:
    return {name: next((p for p in points if p >= 32), points[-1]) for name, points in probe.axes}


def test_every_probe_does_the_operator_of_its_curve_at_its_place() -> None:
    """What a tape would say of the measured call leads back to the curve and the place."""
    missed = []
    for _, probe in all_probes(CPU):
        place = representative(probe)
        if place.get("bytes", 0):
            place["bytes"] = 3 << 19
        call = probe.build(place)
        found = [part for op in operations(lambda c=call: c(0)) for part in parts_of(op)]
        if not any(fits(probe, place, names, dtype, at) for names, dtype, at in found):
            missed.append((probe.name, probe.dtype_name, place, found))
    assert not missed


def parts_of(op: Operation) -> list[tuple[tuple[str, ...], str, dict[str, float]]]:
    found = features(op)
    return [(p.names, p.dtype, dict(p.place)) for p in found.parts] if found else []


def fits(
    probe: Probe, place: dict[str, int], names: tuple[str, ...], dtype: str, at: dict[str, float]
) -> bool:
    if probe.name not in names or dtype != probe.dtype_name:
        return False
    for axis, wanted in place.items():
        # Whole rows are built, so that bytes come out nearly; lists have small tensors besides.
        least, most = (0.75, 1.35) if axis in ("bytes", "run", "row") else (0.999, 1.001)
        if axis == "run" and min(at["run"], wanted) >= WHOLE:
            continue
        if not least <= at[axis] / wanted <= most:
            return False
    return True


@pytest.mark.parametrize("name", ["nonsense", "cpu:1", "cuda:99", "xpu"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"no device '{name}' on this machine; PyTorch has cpu"):
        device.choose(name)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("nowhere/this.toml", "nowhere does not exist"),
        ("this.json", "expected a name that ends in .toml"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_at_once(
    out: str, message: str, tmp_path: Path
) -> None:
    done = offramp("calibrate", "--out", out, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
