"""Runs a program on this machine as it is, and writes what its steps took and held.

    python bench/programs/watched.py OUT.json STEPS time|memory SCRIPT ARGUMENTS...

time     wall and processor seconds between the ends of optimizer steps
memory   the most bytes of tensors alive at once, from the allocations and releases that PyTorch's
         own allocator reports to torch.profiler, counted from the program's begin
"""

from __future__ import annotations

import itertools
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile


def main() -> None:
    """Run the script until it has made its steps."""
    out, steps, what, script, *arguments = sys.argv[1:]
    ends: list[tuple[float, float]] = []

    def stepped(*_: Any) -> None:
        ends.append((time.perf_counter(), time.process_time()))
        if len(ends) > int(steps):
            raise SystemExit(0)

    register_optimizer_step_post_hook(stepped)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    if what == "memory":
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            run(script)
        found["peak_bytes"] = peak_bytes(watched)
    else:
        run(script)
        pairs = list(itertools.pairwise(ends))
        found["wall_s"] = [after[0] - before[0] for before, after in pairs]
        found["processor_s"] = [after[1] - before[1] for before, after in pairs]
    Path(out).write_text(json.dumps(found))


def run(script: str) -> None:
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ending:
        if ending.code:
            raise


def peak_bytes(watched: Any) -> int:
    """The highest sum of what was allocated and released so far."""
    events = watched.profiler.kineto_results.events()
    moves = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    alive = most = 0
    for _, size in sorted(moves, key=lambda move: move[0]):
        alive += size
        most = max(most, alive)
    return most


if __name__ == "__main__":
    main()
