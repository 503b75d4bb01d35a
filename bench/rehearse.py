"""Seconds that a rehearsed step takes on this machine: Llama 3.1 70B on 4,096 chips.

Fully sharded over 512 ranks, tensor parallel over 8, by `offramp train` itself. The bar is 3 s a
step on two cores and 1 GiB of memory. Run it on an idle machine:

    python bench/rehearse.py
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from offramp.launch.player import Part
from offramp.tape.tape import Tape

JOB = """\
[model]
preset = "llama-3.1-70b"
[data]
sequence = 8192
[train]
steps = 100
batch = 512
[layout]
dp_shard = 512
tp = 8
micro_batch = 1
[metrics]
every = 1
[checkpoint]
every = 0
export = false
[sample]
prompts = []
"""
WORLD = 4096


def main() -> None:
    """Play rank 0 a few times over and print what each step took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chip", default="nvidia-h100")
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        job, tape = Path(folder) / "job.toml", Path(folder) / "0.tape"
        job.write_text(JOB)
        part = Part(0, WORLD, str(tape), steps=arguments.steps, nodes=WORLD // 8, per_node=8)
        env = {
            **os.environ,
            **part.env(),
            "OFFRAMP_CHIP": f"{arguments.chip}:8",
            "OMP_NUM_THREADS": "1",
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(WORLD),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29500",
        }
        command = [sys.executable, "-m", "offramp", "train", str(job), "--out", f"{folder}/run"]
        began_s = time.monotonic()
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        whole_s = time.monotonic() - began_s
        metrics = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        steps = [row["step_s"] for row in map(json.loads, metrics) if row["kind"] == "step"]
        records = len(Tape.read(tape).records)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"whole: {whole_s:.1f} s, {records:,} records, {peak:,.0f} MiB at peak")
    print(f"first step {steps[0]:.2f} s, later ones {statistics.median(steps[1:]):.2f} s (median)")


if __name__ == "__main__":
    main()
