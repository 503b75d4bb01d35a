"""`offramp train`: its own step on a job that is set up as a run would be."""

from __future__ import annotations

from pathlib import Path

import torch

from contenders.gate import Gate, Task
from offramp.train import folder, loop, reading
from offramp.train.job import Job
from offramp.train.setup import set_up
from offramp.train.world import World


def train(task: Task, gate: Gate) -> None:
    """Train until the gate closes."""
    out = Path(task.scratch)
    job = reading.change(
        Job(),
        {
            "out": str(out / "run"),
            "chip.name": "cpu",
            "model.folder": task.folder,
            "data.source": [task.tokens],
            "data.format": "tokens",
            "data.cache": str(out / "cache"),
            "data.sequence": task.sequence,
            "data.shuffle": False,
            "data.boundaries": False,
            "data.held_out": 0.0,
            "tokenizer.kind": "byte",
            "train.steps": 1_000_000,
            "train.batch": task.batch,
            "train.precision": task.precision,
            "train.compile": task.compile,
            "train.clip": task.clip,
            "optimizer.lr": task.lr,
            "optimizer.beta1": task.betas[0],
            "optimizer.beta2": task.betas[1],
            "optimizer.eps": task.eps,
            "optimizer.weight_decay": task.weight_decay,
            "schedule.name": "constant",
            "schedule.warmup": 0,
            "layout.micro_batch": task.batch,
        },
    )
    here = World(0, 1, 0, torch.device("cpu"), None)
    run = set_up(job, folder.create(job), here, lambda event: None)
    gate.ready()
    try:
        while True:
            step = loop.take_step(run, job.train.steps)
            run.progress.step += 1
            gate.step(step["loss"])
    finally:
        run.feed.close()
        run.checkpoints.close()
