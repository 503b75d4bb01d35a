"""One run: a command with a chip, from its checks to the summary in its run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from offramp.errors import UsageError
from offramp.launch import process, summary
from offramp.launch.choice import Choice, choose
from offramp.launch.command import AUTOLOAD, Prepared, prepare
from offramp.launch.record import write_json
from offramp.launch.schema import RECORDS_FOLDER, SUMMARY_FILE, Summary

NOT_STARTED = 126  # the status that shells give to a command that is found but cannot run
NOBODY = (
    "no process met the chip: the command started no Python that has both torch and offramp, "
    "or none that imports torch; see: offramp doctor"
)


@dataclass(frozen=True)
class Plan:
    """A run whose every part has been checked; `command` is what the user gave."""

    choice: Choice
    command: tuple[str, ...]
    prepared: Prepared
    run_dir: Path


def plan(
    chip: str,
    command: Sequence[str],
    *,
    memory: str | None = None,
    arith: Sequence[str] = (),
    run_dir: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Plan:
    """Check everything that can be checked before the command starts, then make its folder.

    chip      NAME[:COUNT]
    memory    a size such as `2GiB`, for each chip
    arith     changes of the chip's arithmetic, each KEY=VALUE
    run_dir   the run's folder; by default a new one under `runs`
    env       the environment to start from; by default this process's

    Raises UsageError with one line that tells what to give instead.
    """
    choice = choose(chip, memory, arith)
    prepared = prepare(command, os.environ if env is None else env)
    folder = _chosen_folder(run_dir) if run_dir else _new_folder(Path("runs"), choice.chip.name)
    (folder / RECORDS_FOLDER).mkdir(exist_ok=True)
    settings = {
        "OFFRAMP_CHIP": str(choice),
        "OFFRAMP_RUN_DIR": str(folder.resolve()),
        AUTOLOAD: "1",
    }
    own = ("OFFRAMP_MEMORY", "OFFRAMP_ARITH")
    inherited = {k: v for k, v in prepared.env.items() if k not in own}
    if memory:
        settings["OFFRAMP_MEMORY"] = memory
    if choice.arithmetic.by_hand:
        settings["OFFRAMP_ARITH"] = ",".join(choice.arithmetic.by_hand)
    prepared = replace(prepared, env={**inherited, **settings})
    return Plan(choice, tuple(command), prepared, folder)


def execute(plan: Plan) -> Summary:
    """Run the command in the foreground and sum up what its processes recorded.

    The summary is also written to `run.json` in the run folder. Its `exit_status` is that of the
    command, 128 + n when signal n killed it.
    """
    started_unix_s = time.time()
    problems = []
    try:
        ending = process.run(plan.prepared.command, plan.prepared.env)
    except process.CannotStartError as error:
        ending = process.Ending(NOT_STARTED, None, 0.0)
        problems.append(f"the command did not start: {error.strerror}: {error.filename}")
    records, flaws = summary.read_records(plan.run_dir)
    if not records and not flaws and not problems:
        problems.append(NOBODY)
    chip = plan.choice.chip
    result = summary.merge(
        records,
        {
            "run_dir": str(plan.run_dir),
            "command": list(plan.command),
            "chip": {
                "name": chip.name,
                "title": chip.title,
                "device_type": chip.presentation.device_type,
                "count": plan.choice.count,
                "memory_bytes": plan.choice.memory_bytes,
                "arithmetic": plan.choice.arithmetic.rows(),
            },
            "started_unix_s": started_unix_s,
            "wall_s": ending.wall_s,
            "exit_status": ending.exit_status,
            "signal": ending.signal,
            "problems": problems + flaws,
        },
    )
    try:
        write_json(plan.run_dir / SUMMARY_FILE, result)
    except OSError as error:
        result["problems"].append(f"{SUMMARY_FILE} could not be written: {error.strerror}")
    return result


def _chosen_folder(name: str) -> Path:
    folder = Path(name)
    if (folder / SUMMARY_FILE).exists() or (folder / RECORDS_FOLDER).exists():
        raise UsageError(f"--run-dir {name} holds an earlier run; choose another or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORDS_FOLDER).mkdir()
    except OSError as error:
        raise UsageError(f"cannot make the run folder {name}: {error.strerror}") from error
    return folder


def _new_folder(parent: Path, chip: str) -> Path:
    """A folder that no other run has: making it is the test."""
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{chip}"
    number = 1
    while True:
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except FileExistsError as error:
            if not parent.is_dir():
                raise UsageError(_cannot(parent, error)) from error
            number += 1
        except OSError as error:
            raise UsageError(_cannot(parent, error)) from error
        else:
            return folder


def _cannot(parent: Path, error: OSError) -> str:
    return (
        f"cannot make a run folder in {parent.resolve()}: {error.strerror}; choose one: --run-dir"
    )
