"""What a command would start on each rank: launchers are read, not run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from offramp.errors import UsageError

_MODULES = ("torch.distributed.run", "torch.distributed.launch")


@dataclass(frozen=True)
class Program:
    """One rank's command.

    given      the whole command, as the user gave it
    own        what each rank runs
    nodes      nodes that the launcher names; 1 where there is none
    per_node   processes a node that it names; 0 where it leaves that open
    """

    given: tuple[str, ...]
    own: tuple[str, ...]
    nodes: int = 1
    per_node: int = 0

    @classmethod
    def of(cls, command: Sequence[str]) -> Program:
        """Read a command. Raises UsageError for one whose ranks cannot be told."""
        given = tuple(command)
        if not given:
            raise UsageError("no command given; expected: offramp rehearse --chip NAME -- COMMAND")
        rest = _after_torchrun(given)
        if rest is not None:
            return _of_torchrun(given, rest)
        if os.path.basename(given[0]) in ("accelerate", "deepspeed"):
            raise UsageError(
                f"{given[0]} starts processes of its own; expected the same program by torchrun, "
                "such as: torchrun --nproc-per-node 8 train.py"
            )
        return cls(given, given)

    def command(self, scratch: Path) -> list[str]:
        """What a rank runs; `offramp train` gets a run folder of its own under `scratch`."""
        own = list(self.own)
        verb = own.index("train") if "train" in own[:4] else -1
        is_ours = verb > 0 and (os.path.basename(own[verb - 1]) == "offramp")
        if is_ours and not any(word.split("=")[0] == "--out" for word in own):
            own += ["--out", str(scratch)]
        return own

    def env(self, rank: int, world: int, local_world: int) -> dict[str, str]:
        """The variables by which a rank knows its place, as torchrun sets them."""
        is_ours = "train" in self.own[:4] and "offramp" in " ".join(self.own[:3])
        if world == 1 and self.own == self.given and not is_ours:
            return {}
        return {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(rank % local_world),
            "LOCAL_WORLD_SIZE": str(local_world),
            "GROUP_RANK": str(rank // local_world),
            "GROUP_WORLD_SIZE": str(-(-world // local_world)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29500",
            "TORCHELASTIC_RUN_ID": "rehearsal",
        }


def _after_torchrun(command: tuple[str, ...]) -> list[str] | None:
    """The words after `torchrun`, or None where it is not the command."""
    if os.path.basename(command[0]) == "torchrun":
        return list(command[1:])
    for at, word in enumerate(command[:-1]):
        if word == "-m" and command[at + 1] in _MODULES:
            return list(command[at + 2 :])
    return None


def _of_torchrun(given: tuple[str, ...], words: list[str]) -> Program:
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    try:
        options = parser.parse_args(words)
    except SystemExit as error:
        raise UsageError(f"torchrun cannot read: {' '.join(words)}") from error
    own = [options.training_script, *options.training_script_args]
    if options.module:
        own = ["-m", *own]
    if not options.no_python:
        own = [sys.executable, "-u", *own]
    return Program(given, tuple(own), _count(options.nnodes), _count(options.nproc_per_node))


def _count(text: object) -> int:
    """The number of a torchrun option; the larger of a range, 0 for 'auto', 'gpu' and the like."""
    last = str(text).split(":")[-1]
    return int(last) if last.isdecimal() else 0
