"""Starts a command with a recorder in it, on this machine's device or on a virtual chip."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from offramp import chips
from offramp.errors import UsageError
from offramp.launch import process
from offramp.launch.choice import choose
from offramp.launch.command import AUTOLOAD, Prepared, prepare
from offramp.launch.launcher import Program
from offramp.record.frames import is_recording
from offramp.record.part import Part


@dataclass(frozen=True)
class Plan:
    """A recording whose every part has been checked."""

    part: Part
    prepared: Prepared


def plan(
    part: Part, chip: str | None, memory: str | None = None, folder: Path | None = None
) -> Plan:
    """Check what can be checked, and make room for the file: an older recording is removed.

    part    with the command in it
    chip    NAME[:COUNT] of a virtual chip; None: the device that the program finds here
    folder  of a run of `offramp train` of its own; None: the one that the command names

    Raises UsageError: no command, an unknown chip, a file that is there and no recording.
    """
    from offramp.launch.files import check_writable

    out = Path(part.out)
    check_writable(out)
    old = [out, *out.parent.glob(f"{out.name}.rank*"), *out.parent.glob(f"{out.name}.process*")]
    for path in old:
        if path.exists() and not is_recording(path):
            raise UsageError(f"{path} is there and is no recording; choose another --out")
    if not part.command:
        raise UsageError("no command given; expected: offramp record --out FILE -- COMMAND...")
    training = _training(part.command)
    choice = choose(chip, memory) if chip and training is None else None
    command = part.command if training is None else _told(training, chip, memory, folder)
    prepared = prepare(command, os.environ)
    part = replace(part, out=str(out.resolve()), variables=variables())
    settings = {**part.env(), AUTOLOAD: "1"}
    if choice is not None:
        settings["OFFRAMP_CHIP"] = str(choice)
        if memory:
            settings["OFFRAMP_MEMORY"] = memory
    for path in old:
        path.unlink(missing_ok=True)
    return Plan(part, replace(prepared, env={**prepared.env, **settings}))


def _training(command: Sequence[str]) -> Program | None:
    """The command as `offramp train`, which opens its chip itself; None: it is another."""
    try:
        program = Program.of(command)
    except UsageError:  # a launcher that starts other programs
        return None
    return program if program.is_train else None


def _told(
    training: Program, chip: str | None, memory: str | None, folder: Path | None
) -> tuple[str, ...]:
    """`offramp train` told its chip, memory and run folder; what comes later goes before."""
    words = list(training.given if folder is None else training.command(folder))
    if chip:
        words += ["--chip", chip]
    if memory:
        words += ["--set", f"chip.memory={memory}"]
    return tuple(words)


def execute(plan: Plan) -> process.Ending:
    """Run the command to its end. Raises UsageError where it does not start."""
    try:
        return process.run(plan.prepared.command, plan.prepared.env)
    except process.CannotStartError as error:
        said = f"the command did not start: {error.strerror}: {error.filename}"
        raise UsageError(said) from error


def variables() -> tuple[str, ...]:
    """Every environment variable that a chip file names: values of them are kept."""
    found: set[str] = set()
    for name in chips.names():
        chip = chips.load(name)
        found |= set(chip.cluster.environment)
        found |= {sign.value for sign in chip.presentation.detect if sign.kind == "env"}
        if chip.presentation.visible_env:
            found.add(chip.presentation.visible_env)
    return tuple(sorted(found))


def read_steps(text: str) -> tuple[int, ...]:
    """Numbers of steps such as `0,10-12`. Raises UsageError."""
    found: list[int] = []
    for word in filter(None, text.split(",")):
        first, dash, last = word.strip().partition("-")
        ends = [first, last] if dash else [first, first]
        if not all(end.isascii() and end.isdecimal() for end in ends) or int(ends[0]) > int(
            ends[1]
        ):
            raise UsageError(f"--steps {text!r}: expected numbers and ranges such as 0,10-12")
        found += range(int(ends[0]), int(ends[1]) + 1)
    return tuple(found)
