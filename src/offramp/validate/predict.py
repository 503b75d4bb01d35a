"""A row's prediction: its job rehearsed on its cluster."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offramp.chips.catalogue import DATA
from offramp.launch import rehearse
from offramp.launch.record import write_json
from offramp.launch.warm import Warm
from offramp.tape.tape import Tape, write
from offramp.validate.mapping import Case

NOTES = "notes.json"
STEPS = rehearse.FEWEST_STEPS


@dataclass(frozen=True)
class Prediction:
    """Seconds of a step with their interval, and the most memory that a chip holds, in bytes.

    `shares` says where the step goes, each part as a share of it.
    """

    seconds: float
    low: float
    high: float
    allocated_bytes: float
    reserved_bytes: float
    fits: bool
    shares: dict[str, float]


class Predictor:
    """Rehearses cases; tapes of jobs that were played once are kept and priced again.

    tapes   a folder for them, one of its own for each job
    """

    def __init__(self, tapes: Path, warm: Warm, limit_s: float = 600.0) -> None:
        self._tapes, self._warm, self._limit_s = tapes, warm, limit_s

    def of(self, case: Case) -> Prediction:
        """The prediction. Raises OfframpError where the job cannot be rehearsed."""
        counts = played_counts(case)
        found = [self._summary(case, count) for count in counts]
        return extended(found, counts, case.micro_batches)

    def _summary(self, case: Case, micro_batches: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="offramp-validate-") as folder:
            plan = _plan(case, micro_batches, Path(folder), self._limit_s)
            kept = self._tapes / program_of(replace(case, micro_batches=micro_batches))
            if not (kept / NOTES).exists():
                found = rehearse.execute(plan, warm=self._warm)
                _keep(found, kept)
                return found.summary
            notes = json.loads((kept / NOTES).read_text())["notes"]
            tapes = [Tape.read(path) for path in sorted(kept.glob("*.tape"))]
            return rehearse.conclude(plan, tapes, notes).summary


def played_counts(case: Case) -> tuple[int, ...]:
    """How many micro-batches to play, once or twice.

    A step takes a + b m seconds in m micro-batches once the pipeline is full: two short steps tell
    a and b.
    """
    stages = case.job["layout.pp"]
    few, more = (stages, 2 * stages) if stages > 1 else (1, 2)
    return (case.micro_batches,) if case.micro_batches <= more else (few, more)


def extended(
    found: list[dict[str, Any]], counts: tuple[int, ...], micro_batches: int
) -> Prediction:
    """The line through one or two played steps, at the number of micro-batches that is asked."""
    last = found[-1]
    times = {name: float(last["step_s"][name]) for name in ("mid", "low", "high")}
    if len(counts) > 1:
        further = (micro_batches - counts[1]) / (counts[1] - counts[0])
        for name in times:
            times[name] += further * (times[name] - found[0]["step_s"][name])
    split, mid = last["split"], last["step_s"]["mid"]
    parts = dict(split["compute_s"])
    parts["communication"] = sum(split["exposed_communication_s"].values())
    parts |= {"bubble": split["bubble_s"], "host": split["host_s"], "idle": split["idle_s"]}
    return Prediction(
        times["mid"],
        times["low"],
        times["high"],
        last["memory"]["allocated_bytes"],
        last["memory"]["reserved_bytes"],
        last["fits"],
        {name: seconds / mid for name, seconds in parts.items()},
    )


def program_of(case: Case) -> str:
    """Equal for cases whose programs do the same: prices and networks are not in it."""
    same = [case.chip, case.row.chip_count, case.config, case.job, case.micro_batches]
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]


def _keep(found: rehearse.Rehearsal, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for tape in found.tapes:
        write(folder / f"rank-{tape.rank:05d}.tape", tape)
    write_json(folder / NOTES, {"notes": list(found.notes)})


def _plan(case: Case, micro_batches: int, folder: Path, limit_s: float) -> rehearse.Plan:
    config = folder / "config.json"
    config.write_text(json.dumps(case.config))
    cluster = folder / "cluster.toml"
    cluster.write_text(_cluster(case, folder))
    dp = case.job["layout.dp_replicate"] * case.job["layout.dp_shard"]
    keys = case.job | {
        "train.batch": dp * case.job["layout.micro_batch"] * micro_batches,
        "model.fresh": True,
        "model.vocabulary": case.config["vocab_size"],
        "data.boundaries": False,
        "tokenizer.kind": "byte",
        "sample.prompts": [],
    }
    command = ["offramp", "train", "--model", str(folder)]
    for name, value in keys.items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    plan = rehearse.plan(command, cluster=str(cluster), steps=STEPS, limit_s=limit_s)
    return replace(plan, most_ranks=max(plan.most_ranks, case.job["layout.pp"]))


def _cluster(case: Case, folder: Path) -> str:
    """The text of a cluster file."""
    chip = case.chip
    if case.facts:
        path = folder / f"{case.chip}.toml"  # the name by which its family is found
        path.write_text(_changed(case))
        chip = str(path)
    lines = [f'title = "{case.row.id}"', "[sources]", 'row = "the published row"']
    lines += ["[[nodes]]", f'chip = "{chip}"', f"count = {case.nodes}"]
    lines.append(f"chips_per_node = {case.per_node}")
    if case.network is not None:
        per, rails, gbit, name = case.network
        rate = f'{{ value = {gbit}, unit = "Gbit/s", tier = "press", source = "row" }}'
        counted = f", rails = {rails}" if per == "rail" else ""
        lines.append(f'network = {{ name = "{name}", per = "{per}"{counted}, bandwidth = {rate} }}')
    return "\n".join(lines) + "\n"


def _changed(case: Case) -> str:
    """The chip's file with the facts in which the published chip differs."""
    text = (DATA / f"{case.chip}.toml").read_text(encoding="utf-8")
    text = text.replace("[sources]", f"[sources]\nrow = {json.dumps(case.source)}", 1)
    for name, said in case.facts.items():
        number, unit = said.split()
        fact = f'{name} = {{ value = {number}, unit = "{unit}", tier = "press", source = "row" }}'
        text, count = re.subn(rf"(?m)^{name} = .*$", fact, text)
        assert count == 1, (case.chip, name)
    return text
