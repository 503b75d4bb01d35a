"""What a process is to record, as one environment variable carries it to every process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "OFFRAMP_RECORD"
FIRST, EVERY, SAMPLE, MOST_MIB = 4, 25, 4096, 256


@dataclass(frozen=True)
class Part:
    """What one run records.

    out         the file of rank 0; the others' have `.rank<n>` added
    first       steps from the beginning that are recorded in detail, each of them
    every       then each step whose number it divides is recorded in detail; 0: each 25th, fewer
                as the run goes on
    sample      elements of a tensor that are looked at, evenly spread; 0: all
    tensors     globs, with commas between, of modules whose tensors are kept whole
    steps       in which steps (detailed all), as numbers
    perturb     the seed of a perturbation of rounding size; none where it is negative
    most_bytes  size of a file from which on no more details are written
    variables   environment variables whose values are kept
    command     what is recorded, as the user gave it
    """

    out: str
    first: int = FIRST
    every: int = 0
    sample: int = SAMPLE
    tensors: str = ""
    steps: tuple[int, ...] = ()
    perturb: int = -1
    most_bytes: int = MOST_MIB << 20
    variables: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    def env(self) -> dict[str, str]:
        """The variable that makes a process record."""
        return {VARIABLE: json.dumps(asdict(self))}

    def is_detailed(self, step: int) -> bool:
        """Whether a step, counted from 0, is recorded in detail."""
        # 8 to 16 between any number and twice that: each 25th to step 400, each 50th to 800, ...
        every = self.every or EVERY << max(0, (step // (8 * EVERY)).bit_length() - 1)
        return step < self.first or step % every == 0 or step in self.steps


def given(env: Mapping[str, str]) -> Part | None:
    """The part that the environment gives to this process, if any."""
    text = env.get(VARIABLE)
    if not text:
        return None
    read = json.loads(text)
    for name in ("steps", "variables", "command"):
        read[name] = tuple(read[name])
    return Part(**read)


def path_of_rank(out: str, rank: int) -> Path:
    """The file of a rank."""
    return Path(out if rank == 0 else f"{out}.rank{rank}")
