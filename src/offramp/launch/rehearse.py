"""One rehearsal: a command played as one rank of a cluster, and what its tapes tell."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from offramp import chips
from offramp.chips.cluster import Cluster
from offramp.costs.training import Factors
from offramp.errors import OfframpError, UsageError
from offramp.launch.command import AUTOLOAD, Prepared, prepare
from offramp.launch.fleet import Fleet
from offramp.launch.launcher import Program
from offramp.launch.letters import Letters
from offramp.launch.player import Part
from offramp.launch.playing import Ended, run_all
from offramp.launch.prices import ClusterPrices
from offramp.launch.spending import Terms, spend
from offramp.launch.warm import Warm
from offramp.tape.play import play
from offramp.tape.prices import PriceList, RankPrices, parse_call
from offramp.tape.summary import lacking_bytes, summarize
from offramp.tape.tape import Tape
from offramp.tape.trace import write_trace

TAIL_LINES = 12
DEFAULT_STEPS = 4
FEWEST_STEPS = 3


class RehearsalError(OfframpError):
    """The program could not be rehearsed; the message has what it said last."""


@dataclass(frozen=True)
class Plan:
    """A rehearsal whose every part has been checked.

    chip          of rank 0, and of every other where the cluster is not mixed
    chip_name     as `OFFRAMP_CHIP` takes it: in the catalogue, or the path of a chip file
    sets_ranks    whether a process is told its place, as a launcher does
    steps         optimizer steps to play, the first of them to warm up
    limit_s       seconds of this machine for each rank that is played
    most_ranks    how many ranks may be played
    kept          the share of elements that a mask of unknown values keeps
    leads_time    whether the program's own `time` reads the chip's clock
    cluster_file  where the cluster was read from; empty: it is of one chip of the catalogue
    terms         tokens of a step, steps of the run and the price of a chip, as far as known
    note          what the user should know of the Python that is used
    factors       of costs in training; None: those of all published runs
    partners      ranks that are known to exchange messages with rank 0 and with each other; they
                  are played beside it, others once a tape names them
    """

    chip: chips.Chip
    chip_name: str
    cluster: Cluster
    program: Program
    sets_ranks: bool
    steps: int = DEFAULT_STEPS
    limit_s: float = 600.0
    most_ranks: int = 64
    kept: float = 1.0
    leads_time: bool = False
    cluster_file: str = ""
    terms: Terms = Terms()
    note: str = ""
    factors: Factors | None = None
    partners: tuple[int, ...] = ()

    @property
    def world(self) -> int:
        return self.cluster.world_size

    @property
    def per_node(self) -> int:
        return self.cluster.groups[0].chips_per_node

    @cached_property
    def fleet(self) -> Fleet:
        """Which rank has which chip."""
        return Fleet.of(self.cluster, self.chip, self.chip_name)


@dataclass(frozen=True)
class Rehearsal:
    """What was found: plain data, and the tapes and notes of players that it was found from."""

    summary: dict[str, Any]
    tapes: list[Tape]
    notes: Sequence[Mapping[str, Any]]
    prices: PriceList

    def write_trace(self, path: Path) -> None:
        """The timeline as a trace that Perfetto and Chrome open. Raises UsageError."""
        try:
            write_trace(path, play(self.tapes, self.prices), self.prices)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error


def plan(
    command: Sequence[str],
    *,
    chip: str = "",
    nodes: int | None = None,
    per_node: int | None = None,
    cluster: str = "",
    **settings: Any,
) -> Plan:
    """Check everything that can be checked before the command starts. Raises UsageError.

    chip, nodes, per_node   a cluster of one kind; without the latter two and a launcher, one chip
    cluster                 or the path of a cluster file, which may mix kinds
    """
    program = Program.of(command)
    if bool(chip) == bool(cluster):
        raise UsageError("expected --chip NAME or --cluster FILE, and not both")
    _check(**settings)
    if cluster:
        if nodes is not None or per_node is not None:
            raise UsageError("a cluster file has its nodes; expected no --nodes and no --per-node")
        settings["cluster_file"] = os.path.abspath(cluster)
        whole = _of_file(Path(cluster), program)
        name = whole.groups[0].chip_file or whole.groups[0].chip
        found = chips.load(name)
    else:
        found = _chip(chip)
        name = os.path.abspath(chip) if chip.endswith(".toml") else found.name
        whole = _of_chip(chip, nodes, per_node, program)
    note = prepare(program.command(Path(os.devnull)), {**os.environ, AUTOLOAD: "1"}).note or ""
    said = cluster or program.launcher or program.is_train or (nodes, per_node) != (None, None)
    return Plan(found, name, whole, program, bool(said), note=note, **settings)


def _check(steps: int = FEWEST_STEPS, limit_s: float = 1, kept: float = 1, **others: Any) -> None:
    if steps < FEWEST_STEPS:
        raise UsageError(
            f"--steps {steps}: expected at least {FEWEST_STEPS}: the first step warms up, "
            "two more show whether steps are alike"
        )
    if not limit_s > 0 or math.isinf(limit_s):
        raise UsageError(f"--limit {limit_s:g}: expected a positive number of seconds")
    if not 0 <= kept <= 1:
        raise UsageError(f"--mask-keeps {kept:g}: expected a share from 0 to 1")
    if others.get("most_ranks", 1) < 1:
        raise UsageError(f"--most-ranks {others['most_ranks']}: expected at least 1")


def _chip(name: str) -> chips.Chip:
    _name, colon, count = name.partition(":")
    if colon and count.isdecimal():
        raise UsageError(f"--chip {name}: how many is said by --nodes and --per-node")
    return chips.load(name)


def _of_file(path: Path, program: Program) -> Cluster:
    cluster = Cluster.read(path)
    _agree(program, "nodes", cluster.node_count, str(path))
    for group in cluster.groups:
        _agree(program, "processes a node", group.chips_per_node, str(path))
    return cluster


def _of_chip(chip: str, nodes: int | None, per_node: int | None, program: Program) -> Cluster:
    """The nodes that the flags name, else those of the launcher, else one chip."""
    _agree(program, "nodes", nodes, "--nodes")
    _agree(program, "processes a node", per_node, "--per-node")
    if nodes is None and per_node is None and not program.per_node:
        fills = program.per_node == 0  # a launcher's own default is one process a node
        return Cluster.of(chip, program.nodes or 1, None if fills else 1)
    count = nodes if nodes is not None else program.nodes
    local = per_node if per_node is not None else program.per_node or None
    return Cluster.of(chip, 1 if count is None else count, local)


def _agree(program: Program, what: str, said: int | None, where: str) -> None:
    starts = program.nodes if what == "nodes" else program.per_node
    if starts and said is not None and said != starts:
        raise UsageError(f"{program.launcher} starts {starts} {what}, and {where} says {said}")


def execute(
    plan: Plan, told: Callable[[str], None] = lambda text: None, warm: Warm | None = None
) -> Rehearsal:
    """Play the ranks that differ, and put them on one clock.

    told   hears, in one line, which rank is played
    warm   forks for the ranks of `offramp train`, where several rehearsals share one

    Raises RehearsalError where the program fails, or none of its steps is found.
    """
    with tempfile.TemporaryDirectory(
        prefix="offramp-rehearsal-", ignore_cleanup_errors=True
    ) as folder:
        tapes, notes = _play_all(plan, Path(folder), told, warm)
    told("replaying")
    return conclude(plan, tapes, notes)


def conclude(plan: Plan, tapes: list[Tape], notes: Sequence[Mapping[str, Any]]) -> Rehearsal:
    """What tapes that are there already tell, at the prices of the plan's chips and cluster.

    notes   what each player said beside its tape: steps played, answers declared, refusals
    """
    fleet, ranks = plan.fleet, [tape.rank for tape in tapes]
    prices = _prices(plan, ranks)
    summary = summarize(
        tapes,
        prices,
        peak_flops=fleet.peak_flops(),
        capacity_bytes={rank: fleet.kind(rank).chip.memory_bytes for rank in ranks},
        stands_for=fleet.stands_for(ranks),
    )
    _add_sizes(summary, tapes)
    summary |= spend(summary["step_s"], plan.world, fleet.power(), plan.terms)
    summary["command"] = list(plan.program.given)
    summary["cluster"] = plan.cluster.title
    summary["declared"] = _added([note["declared"] for note in notes])
    refused = {name: said for note in notes for name, said in note.get("refused", {}).items()}
    summary["refused"] = {name: refused[name]["reason"] for name in sorted(refused)}
    summary["steps_played"] = notes[0]["steps"]
    summary["shortfall_bytes"] = lacking_bytes(summary["memory"])
    summary["fits"] = summary["shortfall_bytes"] == 0
    summary["given_back"] = max(rank["memory"]["forced"] for rank in summary["ranks"])
    return Rehearsal(summary, tapes, notes, prices)


def _prices(plan: Plan, ranks: Sequence[int]) -> PriceList:
    """What calls of the ranks cost, each on the chip that it has."""
    fleet, whole = plan.fleet, plan.cluster
    lists = [PriceList(ClusterPrices(kind.chip, whole, plan.factors)) for kind in fleet.kinds]
    return RankPrices({rank: lists[fleet.place(rank)] for rank in ranks})


def _add_sizes(summary: dict[str, Any], tapes: Sequence[Tape]) -> None:
    """Say with each collective how many ranks its group has."""
    for rank, tape in zip(summary["ranks"], tapes, strict=True):
        sizes = {group.label: len(group.ranks) for group in tape.groups}
        for row in rank["collectives"]:
            row["ranks"] = sizes[row["group"]]


def _play_all(
    plan: Plan, folder: Path, told: Callable[[str], None], warm: Warm | None
) -> tuple[list[Tape], list[dict[str, Any]]]:
    """Rank 0, then every rank that it exchanges messages with, and theirs: the pipeline.

    Where chips differ, the first rank of each kind too, and those of other kinds that they meet.
    """
    tapes: dict[int, Tape] = {}
    notes: dict[int, dict[str, Any]] = {}

    def prepared(rank: int) -> Prepared:
        told(f"playing rank {rank} of {plan.world}")
        return _prepare(plan, folder, rank, letters)

    def heard(ended: Ended) -> None:
        tapes[ended.key], notes[ended.key] = _read(plan, folder, ended)

    def check(ranks: int) -> None:
        if ranks > plan.most_ranks:
            raise RehearsalError(
                f"more than {plan.most_ranks} ranks exchange messages with one another; "
                "raise --most-ranks"
            )

    def wanted() -> set[int]:
        found = letters.wanted() - set(tapes)
        check(len(tapes) + len(found))
        return found

    letters = Letters(folder / "letters")
    starts = plan.fleet.firsts()
    waiting = sorted(starts | set(plan.partners))
    with contextlib.ExitStack() as stack:
        while waiting:
            check(len(tapes) + len(waiting))
            if plan.program.is_train and warm is None and len(waiting) > 1:
                warm = stack.enter_context(Warm())
            start = None if warm is None else warm.start_or_spawn
            run_all(waiting, prepared, folder, plan.limit_s, heard, start=start, wanted=wanted)
            waiting = sorted(_met(tapes, plan.fleet) - set(tapes))
    order = sorted(_met(tapes, plan.fleet))
    return [tapes[rank] for rank in order], [notes[rank] for rank in order]


def _met(tapes: Mapping[int, Tape], fleet: Fleet) -> set[int]:
    """The first of each kind, and whom calls lead to as far as tapes tell: no other counts."""
    met = new = fleet.firsts()
    while new:
        new = {peer for rank in new & set(tapes) for peer in _peers(tapes[rank], fleet)} - met
        met = met | new
    return met


def _peers(tape: Tape, fleet: Fleet) -> set[int]:
    """The ranks that a tape's messages go to or come from, and others' kinds in its groups."""
    calls = [parse_call(text) for text in tape.signatures if text.startswith('{"collective"')]
    calls = [call for call in calls if not call.on_host]
    groups = {call.group for call in calls if not call.is_transfer}
    met = fleet.companions(tape.rank, [tape.groups[group].ranks for group in groups])
    return met | {call.peer for call in calls if call.is_transfer}


def _tape_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.tape"


def _prepare(plan: Plan, folder: Path, rank: int, letters: Letters) -> Prepared:
    """What plays a rank."""
    kind = plan.fleet.kind(rank)
    part = Part(
        rank,
        plan.world,
        str(_tape_path(folder, rank)),
        steps=plan.steps,
        kept=plan.kept,
        nodes=plan.cluster.groups[0].count,
        per_node=kind.per_node,
        cluster=plan.cluster_file,
        leads_time=plan.leads_time,
        # The stages of `offramp train` know their shapes: none need wait for another.
        letters="" if plan.program.is_train else str(letters),
    )
    env = {
        **os.environ,
        **plan.program.variables,
        **(plan.program.env(rank, plan.cluster) if plan.sets_ranks else {}),
        **part.env(),
        AUTOLOAD: "1",
        "OFFRAMP_CHIP": f"{kind.chip_name}:{kind.per_node}",
        "OMP_NUM_THREADS": "1",
        "OFFRAMP_RUN_DIR": str(folder / f"records-{rank}"),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    return prepare(plan.program.command(folder / f"run-{rank}"), env)


def _read(plan: Plan, folder: Path, ended: Ended) -> tuple[Tape, dict[str, Any]]:
    """The tape of a rank that was played, and its note. Raises RehearsalError."""
    path = _tape_path(folder, ended.key)
    note_path = path.with_suffix(".json")
    note = json.loads(note_path.read_text()) if note_path.exists() else {"steps": 0}
    steps = int(note["steps"])
    if ended.status is None:
        raise RehearsalError(
            f"rank {ended.key} took longer than {plan.limit_s:g} s (--limit) for {plan.steps} "
            f"optimizer steps; it said last:\n{_tail(ended.said)}"
        )
    if steps < plan.steps and (ended.status or not steps):
        before = f"after {steps} optimizer steps" if steps else "before its first optimizer step"
        raise RehearsalError(
            f"rank {ended.key} {_ending(ended)} {before}; it said last:\n{_tail(ended.said)}"
        )
    return Tape.read(path), note


def _ending(ended: Ended) -> str:
    status = ended.status or 0
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    if "EOFError" in ended.said[-2000:]:
        return "waited for input, which a rehearsal does not give, and ended"
    return f"ended with status {status}" if status else "ended by itself"


def _tail(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-TAIL_LINES:]) or "  nothing"


def _added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = sorted({name for each in counts for name in each})
    return {name: sum(each.get(name, 0) for each in counts) for name in names}
