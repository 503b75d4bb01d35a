"""What played ranks tell each other: numbers by which programs steer arrive, as between chips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from started import rehearse

pytestmark = [pytest.mark.programs, pytest.mark.timeout(180)]

# Its stages learn from one another which shapes they get, and that of the middle one is wider.
PIPELINE = """
import os
import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

dist.init_process_group("nccl")
rank, world = dist.get_rank(), dist.get_world_size()
torch.cuda.set_device(rank)
widths = {0: (64, 64), 1: (64, 192), 2: (192, 64)}

class Part(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.product = torch.nn.Linear(*widths[rank])
    def forward(self, x):
        assert x.shape[1] == widths[rank][0], x.shape
        return self.product(x).relu()

model = Part().cuda()
stage = PipelineStage(model, rank, world, torch.device("cuda", rank))
schedule = Schedule1F1B(stage, 4, loss_fn=lambda y, t: (y - t).square().mean())
optimizer = torch.optim.AdamW(model.parameters())
while True:
    x = torch.randn(32, 64, device="cuda")
    schedule.step(*[x] * (rank == 0), **({"target": x} if rank == world - 1 else {}))
    optimizer.step()
"""

# Every rank has a number, hands it on in a ring, and asks the ring for it.
RING = """
import os
import torch
import torch.distributed as dist

dist.init_process_group("nccl")
rank, world = dist.get_rank(), dist.get_world_size()
torch.cuda.set_device(rank)
after, before = (rank + 1) % world, (rank - 1) % world
model = torch.nn.Linear(2048, 2048, device="cuda")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
while True:
    mine, theirs = (torch.full((1,), n, device="cuda", dtype=torch.int64) for n in (7 * rank, -1))
    waits = [dist.P2POp(dist.irecv, theirs, before), dist.P2POp(dist.isend, mine, after)]
    for wait in dist.batch_isend_irecv(waits):
        wait.wait()
    assert theirs.item() == 7 * before, theirs.item()
    names = [None]
    if rank % 2:
        dist.recv_object_list(names, before, device="cuda")
        assert names == [f"rank {before}"], names
    else:
        dist.send_object_list([f"rank {rank}"], after, device="cuda")
    model(torch.randn(512, 2048, device="cuda")).square().mean().backward()
    optimizer.step()
"""

# What rank 1 tells was not computed.
UNKNOWN = """
import torch
import torch.distributed as dist

dist.init_process_group("nccl")
rank = dist.get_rank()
torch.cuda.set_device(rank)
model = torch.nn.Linear(2048, 2048, device="cuda")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(4):
    y = model(torch.randn(512, 2048, device="cuda"))
    best = y.sum().to(torch.int64).reshape(1)
    y.square().mean().backward()
    optimizer.step()
    if rank == 1 and step < 2:
        dist.send(best, 0)
    if rank == 0 and step < 2:
        dist.recv(best, 1)
        best.item()
"""


def played(program: str, ranks: int, folder: Path, status: int = 0) -> str:
    """What is said on standard error; the result is in out.json."""
    (folder / "train.py").write_text(program)
    options = ("--chip", "nvidia-h100", "--nodes", "1", "--steps", "3", "--json", "out.json")
    launcher = ("torchrun", f"--nproc_per_node={ranks}", "train.py")
    return rehearse(*options, "--", *launcher, cwd=folder, status=status)[1]


def result(program: str, ranks: int, folder: Path) -> dict[str, Any]:
    played(program, ranks, folder)
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    assert [rank["rank"] for rank in found["ranks"]] == list(range(ranks))
    return found


def test_stages_tell_each_other_the_shapes_they_pass_on(tmp_path: Path) -> None:
    assert result(PIPELINE, 3, tmp_path)["split"]["bubble_s"] > 0


def test_numbers_and_objects_go_round_a_ring(tmp_path: Path) -> None:
    assert result(RING, 4, tmp_path)["declared"] == {}


def test_what_the_sender_does_not_know_is_declared(tmp_path: Path) -> None:
    assert result(UNKNOWN, 2, tmp_path)["declared"]["values read by the host"] == 2


def test_what_is_never_sent_is_not_waited_for_beyond_the_senders_end(tmp_path: Path) -> None:
    said = played(UNKNOWN.replace("rank == 1 and step < 2", "False"), 2, tmp_path, status=1)
    assert "wait for each other and nobody can go on: rank 0 in recv from rank 1" in said
