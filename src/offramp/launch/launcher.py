"""What a command would start on each rank: launchers are read, not run."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from offramp.chips.cluster import Cluster
from offramp.errors import UsageError
from offramp.launch import accelerated

_TORCHRUN = "torch.distributed.run"
_LEGACY = "torch.distributed.launch"
_OTHERS = ("deepspeed", "mpirun", "mpiexec", "srun", "horovodrun", "colossalai")
_INSTEAD = "expected the same program by torchrun, such as: torchrun --nproc-per-node 8 train.py"


@dataclass(frozen=True)
class Program:
    """One rank's command.

    given      the whole command, as the user gave it
    own        what each rank runs
    launcher   what starts it; empty: nothing does
    nodes      nodes that the launcher names; None where it names none
    per_node   processes a node that it names; 0: as many as there are chips; None: it says nothing
    variables  what it sets for each rank, beside its place
    """

    given: tuple[str, ...]
    own: tuple[str, ...]
    launcher: str = ""
    nodes: int | None = None
    per_node: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, command: Sequence[str]) -> Program:
        """Read a command. Raises UsageError for one whose ranks cannot be told."""
        given = tuple(command)
        if not given:
            raise UsageError("no command given; expected: offramp rehearse --chip NAME -- COMMAND")
        module, before, after = _module(given)
        other = _foreign(given[0], module)
        if other:
            raise UsageError(f"{other} starts processes of its own; {_INSTEAD}")
        name = os.path.basename(given[0])
        if name == "torchrun":
            return _of_torchrun(given, [sys.executable, "-u"], list(given[1:]))
        if module in (_TORCHRUN, _LEGACY):
            words = list(after)
            if module == _LEGACY:
                words = [word for word in words if word not in ("--use-env", "--use_env")]
                if len(words) == len(after):
                    raise UsageError(f"{_LEGACY} without --use-env is deprecated; {_INSTEAD}")
            return _of_torchrun(given, list(before), words)
        launch = accelerated.words_of(name, module, after if module else given[1:])
        if launch is not None:
            return _of_accelerate(given, before or given[:1], launch)
        return cls(given, given)

    @property
    def is_train(self) -> bool:
        """Whether a rank runs `offramp train`."""
        return self._verb() > 0

    @property
    def train_words(self) -> list[str]:
        """What follows `offramp train` in a rank's command; empty for another program."""
        return list(self.own[self._verb() + 1 :]) if self.is_train else []

    def command(self, scratch: Path) -> list[str]:
        """What a rank runs; `offramp train` gets a run folder of its own under `scratch`."""
        verb = self._verb()
        if verb <= 0:
            return list(self.own)
        return [*self.own[: verb + 1], *_without_out(self.own[verb + 1 :]), "--out", str(scratch)]

    def env(self, rank: int, cluster: Cluster) -> dict[str, str]:
        """The variables by which a rank knows its place, as torchrun sets them."""
        return {
            "RANK": str(rank),
            "WORLD_SIZE": str(cluster.world_size),
            "LOCAL_RANK": str(cluster.local_rank(rank)),
            "LOCAL_WORLD_SIZE": str(cluster.group_of(rank).chips_per_node),
            "GROUP_RANK": str(cluster.node_of(rank)),
            "GROUP_WORLD_SIZE": str(cluster.node_count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29500",
            "TORCHELASTIC_RUN_ID": "rehearsal",
        }

    def _verb(self) -> int:
        """Where `train` of `offramp train` stands; 0 where the command is another."""
        for at in range(1, len(self.own)):
            is_ours = os.path.basename(self.own[at - 1]) == "offramp"
            if is_ours and self.own[at] == "train":
                return at if at == 1 or self.own[at - 2] in ("-m", "-um") else 0
        return 0


def _without_out(words: Sequence[str]) -> list[str]:
    """Arguments without `--out FOLDER`: a rehearsal leaves no run behind."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--out":
            next(rest, None)
        elif not word.startswith("--out="):
            kept.append(word)
    return kept


def _module(command: tuple[str, ...]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The module that `python -m MODULE` names, the words before `-m` and those after it."""
    if os.path.basename(command[0]).startswith("python"):
        for at, word in enumerate(command[1:-1], 1):
            if not word.startswith("-"):
                break
            if word.endswith("m") and not word.startswith("--"):
                flags = (word[:-1],) if len(word) > 2 else ()
                return command[at + 1], (*command[:at], *flags), command[at + 2 :]
    return "", (), ()


def _foreign(first: str, module: str) -> str:
    """The launcher that is not torch's, where a command begins with one."""
    name = os.path.basename(first)
    return next((one for one in _OTHERS if one in (name, module.split(".")[0])), "")


def _of_torchrun(given: tuple[str, ...], python: list[str], words: list[str]) -> Program:
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    parser.set_defaults(nnodes=None, nproc_per_node=None)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            options = parser.parse_args(words)
    except SystemExit as error:
        last = (said.getvalue().strip().splitlines() or [""])[-1].split("error: ")[-1]
        raise UsageError(f"torchrun cannot read '{' '.join(words)}': {last}") from error
    own = [options.training_script, *options.training_script_args]
    if options.module:
        own = ["-m", *own]
    if not options.no_python:
        own = [*python, *own]
    nodes = _count(options.nnodes, "nnodes")
    per_node = _count(options.nproc_per_node, "nproc-per-node")
    return Program(given, tuple(own), "torchrun", nodes, per_node)


def _of_accelerate(
    given: tuple[str, ...], python: tuple[str, ...], words: tuple[str, ...]
) -> Program:
    found = accelerated.read(python, words)
    own, variables = tuple(found["own"]), found["variables"]
    if found["nodes"] is None:  # one process, which is not told of a world
        return Program(given, own, variables=variables)
    nodes = found["nodes"] if found["nodes"] > 1 else None
    return Program(given, own, "accelerate", nodes, found["per_node"], variables)


def _count(text: str | None, option: str) -> int | None:
    """The number of a torchrun option: the larger of a range; 0 for 'auto', 'gpu' and the like."""
    if text is None:
        return None
    last = str(text).split(":")[-1]
    if option == "nproc-per-node" and last in ("auto", "gpu", "cuda"):
        return 0
    if not (last.isascii() and last.isdecimal() and int(last) > 0):
        raise UsageError(f"torchrun --{option} {text}: expected a positive number")
    return int(last)
