"""A run from its folder to its summary, in this process; the other processes do the same."""

from __future__ import annotations

import errno
import logging
import statistics
import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from offramp.errors import OfframpError
from offramp.launch.record import write_json
from offramp.train import export, loop
from offramp.train.events import Began, Ended, Event, Tell
from offramp.train.folder import RunFolder
from offramp.train.job import Job
from offramp.train.loop import Outcome, StopSignals
from offramp.train.metrics import Metrics
from offramp.train.models.build import flops_per_token
from offramp.train.setup import Run, set_up
from offramp.train.workers import LostContactError
from offramp.train.world import join

STOPPED = 75  # the exit status of a run that a signal ended: start it again to go on
FINE = 0
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def train(job: Job, folder: RunFolder, tell: Tell) -> int:
    """Train the job in `folder`, from its last checkpoint if it has one; the exit status.

    tell   hears what happens, in the first process only

    Raises OfframpError with one clear line.
    """
    began_s = time.monotonic()
    _quiet()
    world = join(job.layout, job.chip.name)
    lock = folder.lock() if world.is_main else None
    metrics: Metrics | None = None
    signals = StopSignals()
    try:
        run = set_up(job, folder, world, tell if world.is_main else _silent)
        if world.is_main:
            board = folder.path / "tensorboard" if job.metrics.tensorboard else None
            metrics = Metrics(folder.metrics, first_step=run.progress.step, tensorboard=board)
            folder.note_versions(_chip_facts(run))
        run.tell(Began(_facts(run), run.progress.step))
        # Until the process ends: a signal may come twice, the second while the model is exported.
        with signals.installed():
            outcome = _train(run, metrics, signals)
            stopped = outcome.stopped_by is not None
            if not stopped and job.checkpoint.export:
                export.write(run)
            if world.is_main:
                summary = _summary(run, outcome, time.monotonic() - began_s)
                write_json(folder.summary, summary)
                run.tell(Ended(summary))
            run.feed.close()
            run.checkpoints.close()
        return STOPPED if stopped else FINE
    except OSError as error:
        if error.errno not in STORAGE:
            raise
        raise OfframpError(
            f"{error.filename or folder.path}: {error.strerror}; what is saved is in "
            f"{folder.checkpoints}; go on with: offramp train --resume {folder.path}"
        ) from error
    except RuntimeError as error:
        if world.size > 1 and _is_lost_contact(error):
            raise LostContactError(
                f"process {world.rank} of {world.size} lost contact with the others: "
                f"{str(error).splitlines()[0]}"
            ) from error
        raise
    finally:
        if metrics is not None:
            metrics.close()
        if lock is not None:
            lock.close()
        world.close()


def _train(run: Run, metrics: Metrics | None, signals: StopSignals) -> Outcome:
    if run.progress.step == 0:
        loop.note_samples(run, metrics)
    outcome = loop.train(run, metrics, signals)
    if outcome.stopped_by is None:
        loop.note_evaluation(run, metrics, outcome)
        loop.note_samples(run, metrics)
    return outcome


def _is_lost_contact(error: RuntimeError) -> bool:
    """Whether a collective failed; Gloo raises plain errors, known by their words."""
    words = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "gloo")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def _quiet() -> None:
    """What libraries say of ordinary things here; progress is told by events."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _silent(event: Event) -> None:
    """The other processes say nothing."""


def _chip_facts(run: Run) -> dict[str, Any]:
    return {
        "name": run.ground.chip.name if run.ground.chip else None,
        "virtual": run.ground.virtual,
        "device": run.world.device.type,
        "count": run.world.size,
        "threads": torch.get_num_threads(),
        "arithmetic": list(run.job.chip.arith),
    }


def _facts(run: Run) -> tuple[tuple[str, str], ...]:
    """What a reader wants to know before the first step."""
    job, shape = run.job, run.shape
    count = f"{run.world.size} x " if run.world.size > 1 else ""
    active = f", {_short(shape.active)} active a token" if shape.active != shape.parameters else ""
    name = job.model.folder or job.model.preset
    held_out = len(run.corpora.held_out.tokens) if run.corpora.held_out else 0
    facts = [
        ("chip", count + run.ground.title),
        ("model", f"{name}: {_short(shape.parameters)} parameters{active}, {shape.layers} layers"),
        (
            "data",
            f"{_short(len(run.corpora.train.tokens))} tokens in {run.corpora.train.documents:,} "
            f"documents, {_short(held_out)} held out; "
            f"{run.tokenizer.vocabulary:,} kinds of token",
        ),
        (
            "step",
            f"{job.train.batch} sequences of {job.data.sequence} tokens, "
            f"{job.train.precision}, {job.optimizer.name}",
        ),
        ("folder", str(run.folder.path)),
    ]
    if job.chip.arith:
        facts.insert(1, ("arithmetic", f"{', '.join(job.chip.arith)}, set by hand"))
    if run.world.size > 1:
        degrees = {
            axis: getattr(job.layout, axis)
            for axis in ("pp", "dp_replicate", "dp_shard", "cp", "tp", "ep")
        }
        facts.insert(-1, ("layout", ", ".join(f"{a} {n}" for a, n in degrees.items() if n > 1)))
    return tuple(facts)


def _short(count: int) -> str:
    """3,456,789 as 3.46 M."""
    for power, letter in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {letter}"
    return str(count)


def _summary(run: Run, outcome: Outcome, wall_s: float) -> Mapping[str, Any]:
    peak, why = run.ground.peak_flops(run.job.train.precision)
    steps = len(outcome.losses)
    tokens_per_step = run.job.train.batch * run.job.data.sequence
    speed = steps * tokens_per_step / outcome.train_s if steps else None
    flops = flops_per_token(run.shape, run.job.data.sequence)
    mfu = speed * flops / (peak * run.world.size) if peak and speed else None
    return {
        "ended": "stopped" if outcome.stopped_by else "done",
        "signal": outcome.stopped_by,
        "step": run.progress.step,
        "steps_here": steps,
        "total": run.progress.total,
        "tokens": run.progress.tokens,
        "loss": statistics.fmean(outcome.losses[-10:]) if steps else None,
        "held_out_loss": outcome.held_out[-1][1] if outcome.held_out else None,
        "tokens_per_s": speed,
        "mfu": mfu,
        "mfu_because": why,
        "memory_bytes": loop.memory_bytes(run),
        "wall_s": wall_s,
        "folder": str(run.folder.path),
        "checkpoint": f"{run.folder.checkpoints}/step-{run.progress.step:08d}",
        "model": str(run.folder.model) if run.folder.model.exists() else None,
        "repeat": f"offramp train {run.folder.job} --out NEW",
        "resume": f"offramp train --resume {run.folder.path}",
    }
