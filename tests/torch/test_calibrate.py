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
from offramp.calibrate import collectives, device
from offramp.calibrate.capture import operations
from offramp.calibrate.probe import Probe
from offramp.calibrate.probes import all_probes
from offramp.chips.cluster import Cluster
from offramp.costs import Costs, Operation, training
from offramp.costs.collective import Collective, Links
from offramp.costs.features import WHOLE, features
from offramp.costs.measured import COLLECTIVES_DTYPE, path_beside, read
from offramp.errors import OfframpError, UsageError

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

PARALLEL = """
import torch
import torch.distributed as dist
from torch import nn
device = "cuda" if torch.cuda.is_available() else "cpu"
dist.init_process_group("gloo")
model = nn.parallel.DistributedDataParallel(nn.Linear(64, 64).to(device))
optimizer = torch.optim.SGD(model.parameters())
for _ in range(4):
    model(torch.ones(32, 64, device=device)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
DYING = """
import os, pathlib, sys, time
place = pathlib.Path(os.environ["PIDS"])
own = os.environ["RANK"]
(place / own).write_text(str(os.getpid()))
while not (place / "0").exists() or not (place / "0").read_text():
    time.sleep(0.01)
if own == "1":
    sys.stderr.write("no memory")
    sys.exit(3)
time.sleep(600)
"""


def offramp(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "offramp", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    options = ("--device", "cpu", "--ranks", "2", "--out", "here.toml")
    done = offramp("calibrate", "--quick", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "all-reduce of 2 ranks" in done.stderr
    assert "--cluster here.cluster.toml" in done.stdout
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


def test_its_collectives_cost_what_was_measured(machine: Path) -> None:
    cluster = Cluster.read(machine.with_name("here.cluster.toml"))
    link = cluster.groups[0].link
    assert (cluster.world_size, link.name) == (2, "measured gloo")
    assert link.latency is not None
    assert link.bandwidth.tier == link.latency.tier == "measured"
    curves = read(path_beside(machine))[1]
    assert curves is not None
    for name in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"):
        curve = curves.curves[name, COLLECTIVES_DTYPE]
        collective = Collective(name, 1 << 16, peer=1 if name == "send" else -1)
        cost = Links(cluster, factors=training.factors()).cost(collective, (0, 1))
        assert cost.seconds == pytest.approx(curve.at({"ranks": 2, "bytes": 1 << 16}))


def test_data_parallel_training_is_rehearsed_on_its_cluster(machine: Path) -> None:
    program = machine.parent / "parallel.py"
    program.write_text(PARALLEL)
    launched = ("torchrun", "--nproc-per-node", "2", program.name)
    options = ("--cluster", "here.cluster.toml", "--json", "parallel.json")
    done = offramp("rehearse", *options, "--", *launched, cwd=machine.parent)
    assert done.returncode == 0, done.stderr
    found = json.loads((machine.parent / "parallel.json").read_text())
    (row,) = found["ranks"][0]["collectives"]
    cluster = Cluster.read(machine.with_name("here.cluster.toml"))
    cost = Links(cluster).cost(Collective("all_reduce", 4 * (64 * 64 + 64)), (0, 1))
    assert (row["name"], row["count"]) == ("all_reduce", 1)
    assert row["seconds"] == pytest.approx(cost.seconds, rel=1e-6)


@pytest.mark.parametrize("ranks", ["1", "-2"])
def test_fewer_than_two_ranks_are_refused(ranks: str, tmp_path: Path) -> None:
    done = offramp("calibrate", "--device", "cpu", "--ranks", ranks, cwd=tmp_path)
    assert done.returncode == 2
    assert f"--ranks {ranks}: expected at least 2" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_rank_that_dies_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("PIDS", str(tmp_path))
    monkeypatch.setattr(collectives, "_RANK", "dying")
    with pytest.raises(OfframpError, match=r"rank 1 of 2 ended with exit status 3.*\n.*no memory"):
        collectives.measure(CPU, 2, quick=True, told=lambda text: None)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "0").read_text()), 0)


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
