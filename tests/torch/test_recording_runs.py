"""`offramp record`: any command, on the CPU, on a virtual chip, on several ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from offramp.record.recording import read, read_ranks

PROGRAM = """
import os, sys, torch
from torch import nn
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).to(device)
if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(model)
    torch.manual_seed(torch.distributed.get_rank())
optimizer = torch.optim.AdamW(model.parameters())
for step in range(5):
    x = torch.randn(4, 6).to(device)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
if "fail" in sys.argv:
    sys.exit(3)
if "RANK" in os.environ:
    torch.distributed.destroy_process_group()
"""


def offramp(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "train.py").write_text(PROGRAM)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "offramp", *words],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_on_the_cpu_and_on_a_virtual_chip(tmp_path: Path) -> None:
    done = offramp("record", "--out", "a.rec", "--", "python", "train.py", "fail", folder=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "5 steps, 4 of them in detail; 4 modules" in done.stderr
    words = ("record", "--out", "b.rec", "--chip", "zhenwu-810e", "--", "python", "train.py")
    assert offramp(*words, folder=tmp_path).returncode == 0
    a, b = read(tmp_path / "a.rec"), read(tmp_path / "b.rec")
    assert b.config["chip"] == "zhenwu-810e"
    assert b.config["machine"]["kind"] == "cuda"
    assert a.losses.tolist() == pytest.approx(b.losses.tolist(), rel=1e-6)
    assert [s.data for s in a.steps] == [s.data for s in b.steps]
    assert {n: w["checksum"] for n, w in a.weights.items()} == {
        n: w["checksum"] for n, w in b.weights.items()
    }


@pytest.mark.ranks
def test_each_rank_has_a_file(tmp_path: Path) -> None:
    launch = ("torchrun", "--standalone", "--nproc-per-node", "2", "train.py")
    done = offramp("record", "--out", "a.rec", "--", *launch, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    ranks = read_ranks(tmp_path / "a.rec")
    assert [rank.rank for rank in ranks] == [0, 1]
    norms = [[step.gradient_norm for step in rank.steps] for rank in ranks]
    assert norms[0] == norms[1]  # after DDP's all-reduce
    assert ranks[0].losses.tolist() != ranks[1].losses.tolist()


REDUCING = """
import os, torch
import torch.distributed as dist
from torch import nn
on_chip = torch.cuda.is_available()
dist.init_process_group("nccl" if on_chip else "gloo")
rank, device = dist.get_rank(), "cpu"
if on_chip:
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8)).to(device)
optimizer = torch.optim.SGD(model.parameters(), 0.05)
torch.manual_seed(100 + rank)
fault = os.environ.get("FAULT", "")
for step in range(3):
    x = torch.randn(8, 16).to(device)
    optimizer.zero_grad()
    (model(x) - x[:, :8]).square().mean().backward()
    for name, parameter in model.named_parameters():
        own = parameter.grad.clone()
        dist.all_reduce(parameter.grad)
        if name != "2.weight" or fault != "sum":
            parameter.grad /= dist.get_world_size()
        if name == "2.weight" and fault == "skip" and rank == 1:
            parameter.grad.copy_(own)
    optimizer.step()
dist.destroy_process_group()
"""


@pytest.mark.ranks
def test_a_fault_of_one_collective_is_found_on_its_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reduce.py").write_text(REDUCING)
    launch = ("torchrun", "--standalone", "--nproc-per-node", "2", "reduce.py")
    where = "step 0, 2 (Linear), between backward and optimizer: gradient at the optimizer of"
    done = offramp("record", "--out", "a.rec", "--", *launch, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for fault, verdict in (("sum", "different: scaled by 2"), ("skip", "different: values")):
        monkeypatch.setenv("FAULT", fault)
        chip = ("--chip", "nvidia-h100:2")
        done = offramp("record", "--out", f"{fault}.rec", *chip, "--", *launch, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        done = offramp("compare", "a.rec", f"{fault}.rec", folder=tmp_path)
        said = " ".join(done.stdout.split())
        assert done.returncode == 1, done.stderr
        assert verdict in said
        assert where in said
        assert f"rank {int(fault == 'skip')}, of 2 that were judged" in said


def test_what_cannot_be_recorded_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.rec").write_text("mine")
    done = offramp("record", "--out", "a.rec", "--", "python", "train.py", folder=tmp_path)
    assert (done.returncode, "is there and is no recording" in done.stderr) == (2, True)
    assert (tmp_path / "a.rec").read_text() == "mine"
    nothing = ("record", "--out", "b.rec", "--", "python", "-c", "import torch")
    done = offramp(*nothing, folder=tmp_path)
    assert (done.returncode, "nothing was recorded" in done.stderr) == (1, True)
    for flags, said in (
        (("--every", "0"), "--every 0: expected a number of at least 1"),
        (("--steps", "3"), "say of which: --tensors GLOB"),
        (("--tensors", "*", "--steps", "3-1"), "expected numbers and ranges such as 0,10-12"),
    ):
        done = offramp("record", "--out", "b.rec", *flags, "--", "python", "x", folder=tmp_path)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
