"""A row's prediction: its job rehearsed on its cluster."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offramp.chips.catalogue import DATA
from offramp.costs import Span, training
from offramp.costs.training import Factors
from offramp.launch import rehearse
from offramp.launch.prices import ClusterPrices
from offramp.launch.record import write_json
from offramp.launch.warm import Warm
from offramp.tape.summary import step_seconds
from offramp.tape.tape import Tape, write
from offramp.train.layout import Layout
from offramp.validate.fit import PRIORS, STEP, Seen
from offramp.validate.mapping import Case

NOTES = "notes.json"
PLAYED_STEPS = rehearse.FEWEST_STEPS


@dataclass(frozen=True)
class Prediction:
    """Seconds of a step with their interval, and the most memory that a chip holds, in bytes.

    `shares` says where the step goes, each part as a share of it. `plain_s` is the step as
    benchmarks of its parts alone let expect.
    """

    seconds: float
    plain_s: float
    low: float
    high: float
    allocated_bytes: float
    reserved_bytes: float
    fits: bool
    shares: dict[str, float]


@dataclass(frozen=True)
class Played:
    """A step of so many micro-batches that was played, and what it was played for."""

    plan: rehearse.Plan
    tapes: list[Tape]
    notes: list[dict[str, Any]]

    def seconds(self, factors: Factors) -> float:
        """The step's, without an interval."""
        prices = ClusterPrices(self.plan.chip, self.plan.cluster, factors)
        return step_seconds(self.tapes, prices)

    def summary(self, factors: Factors) -> dict[str, Any]:
        """All that the tapes tell."""
        plan = replace(self.plan, factors=factors)
        return rehearse.conclude(plan, self.tapes, self.notes).summary


class Predictor:
    """Rehearses cases; tapes of jobs that were played once are kept and priced again.

    tapes   a folder for them, one of its own for each job
    warm    what plays those that are not there; without it there are none
    """

    def __init__(self, tapes: Path, warm: Warm | None, limit_s: float = 600.0) -> None:
        self._tapes, self._warm, self._limit_s = tapes, warm, limit_s

    def of(self, case: Case) -> Prediction:
        """The prediction, by factors that the row's source had no part in.

        Raises OfframpError where the job cannot be rehearsed.
        """
        counts = played_counts(case)
        played = [self.play(case, count) for count in counts]
        factors = _with_host(training.factors(unseen=case.row.source_title), case)
        none = _with_host(training.NONE, case)
        found = [one.summary(factors) for one in played]
        plain = [one.seconds(none) for one in played]
        return extended(found, plain, counts, case.micro_batches)

    def seen(self, case: Case, at: Mapping[str, float]) -> Seen | None:
        """What a fit sees of a case, near the factors `at` (logarithms); None: it is not played."""
        row, counts = case.row, played_counts(case)
        if row.step_s is None or not self.has(case):
            return None
        played = [self.play(case, count) for count in counts]

        def seconds(more: str = "") -> float:
            logs = {name: at.get(name, 0.0) + STEP * (name == more) for name in PRIORS}
            factors = {name: Span.exact(math.exp(log)) for name, log in logs.items()}
            times = [one.seconds(_with_host(factors, case)) for one in played]
            return on_line(times, counts, case.micro_batches)

        here = seconds()
        slopes = {name: math.log(seconds(name) / here) / STEP for name in PRIORS}
        return Seen(row.id, row.source_title, row.step_s, here, slopes)

    def has(self, case: Case) -> bool:
        """Whether the case need not be played any more."""
        kept = (self._kept(case, count) for count in played_counts(case))
        return all((folder / NOTES).exists() for folder in kept)

    def play(self, case: Case, micro_batches: int) -> Played:
        """The case's step with so many micro-batches, from the folder of tapes or played now."""
        kept = self._kept(case, micro_batches)
        with tempfile.TemporaryDirectory(prefix="offramp-validate-") as folder:
            plan = rehearsal_of(case, micro_batches, Path(folder), self._limit_s)
            if not (kept / NOTES).exists():
                found = rehearse.execute(plan, warm=self._warm)
                _keep(found, kept)
                return Played(plan, found.tapes, [dict(note) for note in found.notes])
        notes = json.loads((kept / NOTES).read_text())["notes"]
        return Played(plan, [Tape.read(path) for path in sorted(kept.glob("*.tape"))], notes)

    def _kept(self, case: Case, micro_batches: int) -> Path:
        return self._tapes / program_of(replace(case, micro_batches=micro_batches))


def _with_host(factors: Factors, case: Case) -> Factors:
    """The factors, with what the row's framework takes the host beyond the job for it."""
    return {**factors, "host": factors.get("host", Span.exact(1)) * case.host}


def played_counts(case: Case) -> tuple[int, ...]:
    """How many micro-batches to play, once or twice.

    A step takes a + b m seconds in m micro-batches once the pipeline is full: two short steps tell
    a and b.
    """
    stages = case.job["layout.pp"]
    few, more = (stages, 2 * stages) if stages > 1 else (1, 2)
    return (case.micro_batches,) if case.micro_batches <= more else (few, more)


def on_line(seconds: Sequence[float], counts: Sequence[int], micro_batches: int) -> float:
    """What one or two played steps of `counts` micro-batches let expect of another number."""
    last = seconds[-1]
    if len(counts) == 1:
        return last
    further = (micro_batches - counts[1]) / (counts[1] - counts[0])
    return last + further * (last - seconds[0])


def extended(
    found: Sequence[dict[str, Any]],
    plain: Sequence[float],
    counts: tuple[int, ...],
    micro_batches: int,
) -> Prediction:
    """The line through one or two played steps, at the number of micro-batches that is asked.

    found, plain   the steps' summaries, and their seconds without factors
    """
    last = found[-1]
    times = {
        name: on_line([float(one["step_s"][name]) for one in found], counts, micro_batches)
        for name in ("mid", "low", "high")
    }
    split, mid = last["split"], last["step_s"]["mid"]
    parts = dict(split["compute_s"])
    parts["communication"] = sum(split["exposed_communication_s"].values())
    parts |= {"bubble": split["bubble_s"], "host": split["host_s"], "idle": split["idle_s"]}
    return Prediction(
        times["mid"],
        on_line(plain, counts, micro_batches),
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


def rehearsal_of(case: Case, micro_batches: int, folder: Path, limit_s: float) -> rehearse.Plan:
    """What is rehearsed for a case, with so many micro-batches; its files are put in `folder`."""
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
    plan = rehearse.plan(command, cluster=str(cluster), steps=PLAYED_STEPS, limit_s=limit_s)
    keys = {name.partition(".")[2]: case.job[name] for name in case.job if "layout." in name}
    partners = tuple(Layout(**keys).pipeline_ranks)
    return replace(plan, most_ranks=max(plan.most_ranks, len(partners)), partners=partners)


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
        fact = f'{name} = {{ {_stated(said)}, tier = "press", source = "row" }}'
        text, count = re.subn(rf"(?m)^{name} = .*$", fact, text)
        assert count == 1, (case.chip, name)
    return text


def _stated(said: str) -> str:
    """A fact's value as a chip file has it: a number with its unit or without, or else a text."""
    found = re.fullmatch(r"([\d.]+)(?: (\S+))?", said)
    if found is None:
        return f"value = {json.dumps(said)}"
    number, unit = found.groups()
    return f"value = {number}" + (f', unit = "{unit}"' if unit else "")
