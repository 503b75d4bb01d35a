"""`offramp train`: train a language model on any chip, from text to checkpoint."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.cli import Parser
from offramp.errors import UsageError

if TYPE_CHECKING:
    from offramp.train.folder import RunFolder
    from offramp.train.job import Job

HELP = "train a language model, from text to checkpoint"
EPILOG = """\
Without arguments it trains a small Qwen3 on a virtual chip on Python's own source for two minutes.
  offramp train --preset ernie-4.5-moe-nano --data notes/ --minutes 10
  offramp train job.toml --set layout.dp_shard=4
  offramp train --resume runs/20260101T120000Z-qwen3-nano
Exit status: 0 trained to the end, 75 stopped by a signal after saving, 76 no step came, 1 and 2
errors."""
# Short flags: the key of the job file that each one changes.
FLAGS = {
    "chip": ("chip.name", "NAME", "a chip of the catalogue, 'cpu', or 'here'"),
    "arith": ("chip.arith", "KEY=VALUE", "change how the chip computes; may be given again"),
    "preset": ("model.preset", "NAME", "the model; see --list-presets"),
    "model": ("model.folder", "FOLDER", "a local Hugging Face folder, to train on"),
    "data": ("data.source", "PATH", "files or folders of text; may be given again"),
    "minutes": ("train.minutes", "N", "how long"),
    "steps": ("train.steps", "N", "how many steps, instead of minutes"),
    "batch": ("train.batch", "N", "sequences in a step"),
    "sequence": ("data.sequence", "N", "tokens in a sequence"),
    "lr": ("optimizer.lr", "RATE", "highest learning rate"),
    "precision": ("train.precision", "FORMAT", "bf16, fp16 or fp32"),
    "seed": ("train.seed", "N", "of weights and data order"),
    "out": ("out", "FOLDER", "the run's folder; one that holds this job's run goes on"),
}
REPEATED = ("data", "arith")
STOPPED = 75
WORKER_VARIABLES = ("RANK", "OFFRAMP_CHIP")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("job", nargs="?", metavar="JOB", help="a job file (TOML)")
    for flag, (_, metavar, text) in FLAGS.items():
        action = "append" if flag in REPEATED else "store"
        parser.add_argument(f"--{flag}", metavar=metavar, help=text, action=action)
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change any key of the job"
    )
    parser.add_argument("--resume", metavar="FOLDER", help="go on with the run in that folder")
    parser.add_argument("--processes", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--print-job", action="store_true", help="write the complete job and stop")
    parser.add_argument("--list-presets", action="store_true", help="write the presets and stop")
    parser.add_argument(
        "--submit", choices=("slurm", "kubernetes"), help="write the files to submit the job with"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="with --submit: write them to the output only"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Print, submit or train; the exit status."""
    from offramp.train import folder, reading

    if arguments.list_presets:
        return _list_presets()
    if arguments.resume:
        if arguments.job or _changes(arguments):
            raise UsageError("--resume takes the job of its folder; expected no job and no changes")
        if arguments.processes:
            return _start_processes(arguments.processes, arguments.resume)
        run_folder, job = folder.open_folder(Path(arguments.resume))
        return _train(job, run_folder)
    job = _job(arguments)
    _check_arithmetic(job)
    if arguments.print_job:
        print(reading.write(job), end="")
        return 0
    if arguments.submit:
        return _submit(job, arguments)
    launched = "RANK" in os.environ
    return _train(job, _shared_folder(job) if launched else folder.create(job))


def read_job(words: Sequence[str]) -> Job:
    """The job that `offramp train WORDS` would train. Raises UsageError."""
    parser = Parser(prog="offramp train", allow_abbrev=False)
    configure(parser)
    return _job(parser.parse_args(words))


def _job(arguments: argparse.Namespace) -> Job:
    from offramp.train import reading
    from offramp.train.job import Job

    job = reading.read(Job, Path(arguments.job)) if arguments.job else Job()
    return reading.change(job, _changes(arguments))


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, by key of the job."""
    from offramp.train.job import Job
    from offramp.train.reading import parse

    changes: dict[str, Any] = {}
    for flag, (key, _, _) in FLAGS.items():
        value = getattr(arguments, flag)
        if value is not None:
            changes[key] = value if flag in REPEATED else parse(Job, key, value)
    if "train.steps" in changes and "train.minutes" not in changes:
        changes["train.minutes"] = 0.0
    if "train.minutes" in changes and "train.steps" not in changes:
        changes["train.steps"] = 0
    for text in arguments.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r}: expected KEY=VALUE, such as train.batch=16")
        changes[key.strip()] = parse(Job, key.strip(), value.strip())
    return changes


def _check_arithmetic(job: Job) -> None:
    """Refuse changed arithmetic that cannot be meant, before anything is made of the job."""
    from offramp.chips.arithmetic import resolve

    if job.chip.arith and job.chip.name in ("cpu", "here"):
        raise UsageError(
            f"chip.arith changes a virtual chip, and chip.name is {job.chip.name!r}; give a chip "
            "of the catalogue, or no --arith"
        )
    resolve((), job.chip.arith)


def _train(job: Job, folder: RunFolder) -> int:
    """Train here if this process has its chip and its place; else start processes that have."""
    if any(name in os.environ for name in WORKER_VARIABLES):
        return _train_here(job, folder)
    host = job.chip.name in ("cpu", "here")
    if host and job.layout.world == 1:
        return _train_here(job, folder)
    started_s = time.time()
    status = _start(job, folder, virtual=not host)
    if folder.summary.exists() and folder.summary.stat().st_mtime >= started_s:
        import json

        if json.loads(folder.summary.read_text())["ended"] == "stopped":
            return STOPPED
    return status


def _shared_folder(job: Job) -> RunFolder:
    """The run's folder, for one of several processes that a launcher started: the first makes it.

    Raises UsageError where the job leaves it to each process to choose one.
    """
    from offramp.train import folder

    if not job.out:
        raise UsageError("several processes need one run folder; expected --out FOLDER")
    if os.environ["RANK"] == "0":
        return folder.create(job)
    return folder.RunFolder(Path(job.out))


def _start(job: Job, folder: RunFolder, *, virtual: bool) -> int:
    from offramp.launch import process, run

    world, path = job.layout.world, str(folder.path)
    command = [sys.executable, "-m", "offramp", "train", "--resume", path]
    if world > 1:
        command += ["--processes", str(world)]
    # Gloo logs ordinary things; what goes wrong is told by the run itself.
    env = {"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ}
    if world > 1:
        env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // world)))
    if not virtual:
        return process.run(command, env).exit_status
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    chip = f"{job.chip.name}:{world}" if world > 1 else job.chip.name
    plan = run.plan(
        chip,
        command,
        memory=job.chip.memory or None,
        arith=job.chip.arith,
        run_dir=str(folder.launches / name),
        env=env,
    )
    result = run.execute(plan)
    for problem in result["problems"] if result["exit_status"] == 0 else ():
        print(f"offramp: {problem}", file=sys.stderr)
    return result["exit_status"]


def _start_processes(count: int, path: str) -> int:
    from offramp.train import workers

    status, said = workers.run(count, path)
    for line in said:
        print(f"offramp: {line}", file=sys.stderr)
    return status


def _train_here(job: Job, folder: RunFolder) -> int:
    from offramp.cli._training import Display
    from offramp.errors import OfframpError
    from offramp.train import workers
    from offramp.train.run import train

    try:
        with Display(sys.stdout, folder) as display:
            return train(job, folder, display.show)
    except OfframpError as error:
        if workers.leave(error):
            return 2 if isinstance(error, UsageError) else 1
        raise


def _list_presets() -> int:
    from offramp import units
    from offramp.cli import _output
    from offramp.report.lines import Line
    from offramp.train.models import presets

    found = [presets.load(name) for name in presets.names()]
    lines = [
        Line(p.name, f"{units.format_count(p.parameters)} parameters" if p.parameters else p.title)
        for p in found
    ]
    _output.show("Presets for model.preset", lines, sys.stdout)
    return 0


def _submit(job: Job, arguments: argparse.Namespace) -> int:
    from offramp.train import submit

    files = submit.files(job, arguments.submit)
    if arguments.dry_run:
        for name, text in files.items():
            print(f"# ---- {name}\n{text}", end="")
        return 0
    raise UsageError("--submit writes files and submits nothing itself: add --dry-run")
