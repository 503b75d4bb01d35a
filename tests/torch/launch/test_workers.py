"""Records of the processes that PyTorch starts: DataLoader workers, torchrun, mp.spawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import offramp

SOURCE = Path(offramp.__file__).parents[1]
PRELUDE = """
import os, sys, time
import torch
from offramp.launch import record
counts = {"aten::mm": 5}
record.SAVE_EVERY_S = 0.2
record.write_at_exit(lambda: {"ops": dict(counts)}, chip="cpu")
"""
Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def run(text: str, *launcher: str, **env: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "program.py"
        path.write_text(PRELUDE + text)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("OFFRAMP_")}
        return subprocess.run(
            [sys.executable, *launcher, str(path)],
            cwd=tmp_path,
            env={**kept, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", **env},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("processes/*.json")]


def test_loader_workers_leave_no_record(start: Start, tmp_path: Path) -> None:
    result = start(
        """
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        counts["aten::stack"] = index
        return index
for epoch in range(2):
    loader = torch.utils.data.DataLoader(Data(), num_workers=2, multiprocessing_context="fork")
    assert len(list(loader)) == 8
""",
        OFFRAMP_RUN_DIR=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    (record,) = records(tmp_path)
    assert record["ops"] == {"aten::mm": 5}
    assert record["torch"] == __import__("torch").__version__


def test_spawned_ranks_leave_one_record_each(start: Start, tmp_path: Path) -> None:
    result = start(
        """
import torch.distributed as dist
def work(rank):
    store = dist.FileStore("store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    counts["aten::mm"] = 10 + rank
    time.sleep(0.5)
    dist.destroy_process_group()
if __name__ == "__main__":
    torch.multiprocessing.spawn(work, nprocs=2)
""",
        OFFRAMP_RUN_DIR=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    found = {record["rank"]: record["ops"]["aten::mm"] for record in records(tmp_path)}
    assert {rank: found[rank] for rank in (0, 1)} == {0: 10, 1: 11}
    assert all(record["finished"] for record in records(tmp_path))


@pytest.mark.ranks
def test_a_rank_that_torchrun_ends_leaves_what_it_saved(start: Start, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    result = start(
        """
counts["aten::mm"] = 20
if os.environ["RANK"] == "1":
    time.sleep(1)
    sys.exit(3)
time.sleep(60)
""",
        *launcher,
        OFFRAMP_RUN_DIR=str(tmp_path),
    )
    assert result.returncode == 1
    found = {record["rank"]: record for record in records(tmp_path)}
    assert {rank: record["finished"] for rank, record in found.items()} == {0: False, 1: True}
    assert [found[rank]["ops"] for rank in (0, 1)] == [{"aten::mm": 20}] * 2


def test_import_torch_ends_in_one_line_when_the_chip_is_unknown(start: Start) -> None:
    result = start("", OFFRAMP_CHIP="cqu")
    assert result.returncode == 2
    expected = "offramp: OFFRAMP_CHIP=cqu: unknown chip 'cqu'; did you mean 'cpu'"
    assert result.stderr.startswith(expected)
    assert result.stderr.count("\n") == 1
