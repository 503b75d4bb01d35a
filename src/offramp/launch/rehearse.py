"""One rehearsal: a command played as one rank of a cluster, and what its tapes tell."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp import chips
from offramp.chips.cluster import Cluster
from offramp.errors import OfframpError, UsageError
from offramp.launch.command import AUTOLOAD, prepare
from offramp.launch.launcher import Program
from offramp.launch.player import Part
from offramp.launch.prices import ClusterPrices
from offramp.tape.play import play
from offramp.tape.prices import PriceList, parse_call
from offramp.tape.summary import summarize
from offramp.tape.tape import Tape
from offramp.tape.trace import write_trace

TAIL_LINES = 12


class RehearsalError(OfframpError):
    """The program could not be rehearsed; the message has what it said last."""


@dataclass(frozen=True)
class Plan:
    """A rehearsal whose every part has been checked.

    world     ranks, on the cluster's chips from the first on
    steps     optimizer steps to play, the first of them to warm up
    limit_s   seconds of this machine for each rank that is played
    """

    chip: chips.Chip
    cluster: Cluster
    program: Program
    world: int
    steps: int = 3
    limit_s: float = 600.0
    most_ranks: int = 64
    kept: float = 1.0
    leads_time: bool = False
    cluster_file: str = ""


@dataclass(frozen=True)
class Rehearsal:
    """What was found: plain data, and the tapes that it was found from."""

    summary: dict[str, Any]
    tapes: list[Tape]
    prices: PriceList

    def write_trace(self, path: Path) -> None:
        """The timeline as a trace that Perfetto and Chrome open."""
        write_trace(path, play(self.tapes, self.prices), self.prices)


def plan(
    command: Sequence[str],
    *,
    chip: str = "",
    nodes: int = 0,
    per_node: int | None = None,
    cluster: str = "",
    **settings: Any,
) -> Plan:
    """Check everything that can be checked before the command starts. Raises UsageError.

    chip, nodes, per_node   a cluster of one kind; or:
    cluster                 the path of a cluster file
    """
    if bool(chip) == bool(cluster):
        raise UsageError("expected --chip NAME or --cluster FILE, and not both")
    program = Program.of(command)
    if cluster:
        whole = Cluster.read(Path(cluster))
        settings["cluster_file"] = os.path.abspath(cluster)
        return _plan(whole, program, whole.world_size, settings)
    local = per_node or program.per_node or None
    if nodes == 0 and program.nodes * (program.per_node or 1) == 1:
        return _plan(Cluster.of(chip, 1, 1), program, 1, settings)
    whole = Cluster.of(chip, nodes or program.nodes, local)
    return _plan(whole, program, whole.world_size, settings)


def _plan(cluster: Cluster, program: Program, world: int, settings: Mapping[str, Any]) -> Plan:
    names = {group.chip for group in cluster.groups}
    if len(names) > 1:
        raise UsageError(
            f"the cluster mixes {', '.join(sorted(names))}; a rehearsal plays one kind of chip"
        )
    return Plan(chips.load(cluster.groups[0].chip), cluster, program, world, **settings)


def execute(plan: Plan, told: Callable[[str], None] = lambda text: None) -> Rehearsal:
    """Play the ranks that differ, and put them on one clock.

    told   hears, in one line, which rank is played

    Raises RehearsalError where the program fails, or none of its steps is found.
    """
    with tempfile.TemporaryDirectory(prefix="offramp-rehearsal-") as folder:
        tapes, notes = _play_all(plan, Path(folder), told)
    prices = PriceList(ClusterPrices(plan.chip, plan.cluster))
    rate = plan.chip.matrix_rates.get("bfloat16") or plan.chip.matrix_rates.get("float16")
    peak = rate.value if rate is not None and isinstance(rate.value, int | float) else None
    summary = summarize(tapes, prices, peak_flops=peak, capacity_bytes=plan.chip.memory_bytes)
    summary["command"] = list(plan.program.given)
    summary["cluster"] = plan.cluster.title
    summary["declared"] = _added([note["declared"] for note in notes])
    summary["steps_played"] = notes[0]["steps"]
    return Rehearsal(summary, tapes, prices)


def _play_all(
    plan: Plan, folder: Path, told: Callable[[str], None]
) -> tuple[list[Tape], list[dict[str, Any]]]:
    """Rank 0, then every rank that it exchanges messages with, and theirs: the pipeline."""
    tapes: dict[int, Tape] = {}
    notes: list[dict[str, Any]] = []
    waiting = [0]
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as crew:
        while waiting:
            for rank in waiting:
                told(f"playing rank {rank} of {plan.world}")
            for rank, (tape, note) in zip(
                waiting, crew.map(lambda rank: _play(plan, folder, rank), waiting), strict=True
            ):
                tapes[rank] = tape
                notes.append(note)
            found = {peer for rank in waiting for peer in _peers(tapes[rank])}
            waiting = sorted(found - set(tapes))
            if len(tapes) + len(waiting) > plan.most_ranks:
                raise RehearsalError(
                    f"more than {plan.most_ranks} ranks exchange messages with one another; "
                    "raise --most-ranks"
                )
    return [tapes[rank] for rank in sorted(tapes)], notes


def _peers(tape: Tape) -> set[int]:
    """The ranks that a tape's messages go to or come from."""
    calls = [parse_call(text) for text in tape.signatures if text.startswith('{"collective"')]
    return {call.peer for call in calls if call.is_transfer and not call.on_host}


def _play(plan: Plan, folder: Path, rank: int) -> tuple[Tape, dict[str, Any]]:
    path = folder / f"rank-{rank:05d}.tape"
    group = plan.cluster.groups[0]
    local_world = group.chips_per_node
    part = Part(
        rank,
        plan.world,
        str(path),
        steps=plan.steps,
        kept=plan.kept,
        nodes=group.count,
        per_node=local_world,
        cluster=plan.cluster_file,
        leads_time=plan.leads_time,
    )
    env = {
        **os.environ,
        **plan.program.env(rank, plan.world, min(local_world, plan.world)),
        **part.env(),
        AUTOLOAD: "1",
        "OFFRAMP_CHIP": f"{plan.chip.name}:{min(local_world, plan.world)}",
        "OMP_NUM_THREADS": "1",
        "OFFRAMP_RUN_DIR": str(folder / f"records-{rank}"),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    prepared = prepare(plan.program.command(folder / f"run-{rank}"), env)
    try:
        done = subprocess.run(
            prepared.command,
            env=dict(prepared.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=plan.limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace")
        raise RehearsalError(
            f"rank {rank} took longer than {plan.limit_s:g} s (--limit); it said last:\n"
            f"{_tail(said)}"
        ) from error
    note_path = path.with_suffix(".json")
    note = json.loads(note_path.read_text()) if note_path.exists() else {"steps": 0}
    if not note["steps"]:
        ended = f"with status {done.returncode}" if done.returncode else "by itself"
        raise RehearsalError(
            f"rank {rank} ended {ended} before its first optimizer step; it said last:\n"
            f"{_tail(done.stdout)}"
        )
    return Tape.read(path), note


def _tail(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-TAIL_LINES:]) or "  nothing"


def _added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = sorted({name for each in counts for name in each})
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises UsageError where it cannot be written."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
