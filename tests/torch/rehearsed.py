"""Rehearsals of small programs in processes of their own, and their tapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offramp.launch.player import Part
from offramp.tape import Tape
from offramp.tape.kinds import ALLOC, FREE, OP, SYNC_DEVICE

PROGRAMS = Path(__file__).parent / "rehearsed_programs"


@dataclass(frozen=True)
class Rehearsed:
    """What a program printed, its tape, and the player's note (None with values)."""

    said: Any
    tape: Tape
    note: dict[str, Any] | None


def perform(program: str, folder: Path, chip: str, part: Part | None = None) -> Rehearsed:
    """Run a program on `chip`: without values where a part is given, else with them."""
    path = Path(part.tape) if part else folder / f"{program}.tape"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OFFRAMP_")}
    if "OFFRAMP_CACHE" in os.environ:
        kept["OFFRAMP_CACHE"] = os.environ["OFFRAMP_CACHE"]
    kept |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "OFFRAMP_CHIP": chip}
    kept |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    if part is not None:
        kept |= part.env() | {"RANK": str(part.rank), "WORLD_SIZE": str(part.world)}
        kept |= {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / f"{program}.py"), str(path)],
        env=kept,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    note = json.loads(path.with_suffix(".json").read_text()) if part else None
    return Rehearsed(json.loads(done.stdout.splitlines()[-1]), Tape.read(path), note)


@dataclass
class Step:
    """An operator, and the sizes in bytes of the blocks that it left allocated."""

    name: str
    inputs: Any
    outputs: Any
    values: dict[str, Any]
    left: list[int]


@dataclass
class Stretch:
    """What a tape says between two synchronizations of the device.

    peak      most bytes that were allocated
    settled   the same after each operator: without what it takes and frees while it runs
    """

    steps: list[Step] = field(default_factory=list)
    peak: int = 0
    settled: int = 0


def stretches(tape: Tape) -> list[Stretch]:
    """The operators and the memory of a tape, apart at each synchronization of the device."""
    found = [Stretch()]
    alive: dict[int, int] = {}
    fresh: set[int] = set()  # blocks allocated since the last operator
    for record in tape.records:
        kind, block = int(record["kind"]), int(record["a"])
        if kind == ALLOC:
            alive[block] = int(record["b"])
            fresh.add(block)
            found[-1].peak = max(found[-1].peak, sum(alive.values()))
        elif kind == FREE:
            del alive[block]
            fresh.discard(block)
        elif kind == OP:
            text = json.loads(tape.signatures[int(record["what"])])
            left = sorted(alive[each] for each in fresh)
            found[-1].steps.append(Step(text["op"], text["in"], text["out"], text["values"], left))
            found[-1].settled = max(found[-1].settled, sum(alive.values()))
            fresh.clear()
        elif kind == SYNC_DEVICE:
            found.append(Stretch())
    return found[:-1]
