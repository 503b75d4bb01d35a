"""A run that is killed twenty times ends at the weights of a run that never was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

pytestmark = [
    pytest.mark.programs,
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.timeout(1500),
]
KILLS = 20
STEPS = 1200
JOB = f"""
[chip]
name = "cpu"
[model]
config = {{hidden_size = 32, num_hidden_layers = 2, intermediate_size = 48}}
[data]
sequence = 32
[train]
steps = {STEPS}
batch = 4
[layout]
micro_batch = 4
[evaluate]
every = 0
[sample]
prompts = []
[checkpoint]
every = 7
export = false
[metrics]
tensorboard = false
"""


def start(folder: Path, out: Path) -> subprocess.Popen[str]:
    """One life of the run, in a process group of its own."""
    (folder / "job.toml").write_text(JOB)
    command = [
        sys.executable,
        "-m",
        "offramp",
        "train",
        str(folder / "job.toml"),
        "--out",
        str(out),
    ]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_the_first_step(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("  folder"):
            return


def weights(out: Path) -> dict[str, torch.Tensor]:
    reader = FileSystemReader(out / "checkpoints" / f"step-{STEPS:08d}")
    metadata = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def test_twenty_kills_leave_no_trace(tmp_path: Path) -> None:
    moments = random.Random(7)
    began_s = time.monotonic()
    straight = start(tmp_path, tmp_path / "straight")
    wait_for_the_first_step(straight)
    setup_s = time.monotonic() - began_s
    said, _ = straight.communicate()
    assert straight.returncode == 0, said
    training_s = time.monotonic() - began_s - setup_s
    for kill in range(KILLS):
        process = start(tmp_path, tmp_path / "killed")
        if kill % 5 == 4:  # while it reads its data or its checkpoint
            time.sleep(moments.uniform(0.5, 1.0) * setup_s)
        else:
            wait_for_the_first_step(process)
            time.sleep(moments.uniform(0, 1.6) * training_s / KILLS)
        assert process.poll() is None, "it ended before the last kill"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(tmp_path, tmp_path / "killed")
    said, _ = process.communicate()
    assert process.returncode == 0, said
    one, other = weights(tmp_path / "straight"), weights(tmp_path / "killed")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    steps = [line for line in said.splitlines() if "going on from step" in line]
    assert steps, "the last life began at the beginning"
