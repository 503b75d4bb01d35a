"""What a job can change so that each chip holds less: ladders of changes, cheapest kind first.

The order is that of what a change costs: smaller micro-batches, activations computed again, other
ways to share out the same chips, more chips. The batch, and with it the training, stays the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.errors import UsageError
from offramp.launch.fit import Change, Ladder
from offramp.train.job import Job
from offramp.train.layout import RECOMPUTES
from offramp.train.models import presets
from offramp.train.reading import change

MOST_TIMES = 64  # as many chips


@dataclass(frozen=True)
class Placed:
    """A job with its command, and where it is played.

    room   chips that a node can have; 0 where no chips can be added
    """

    job: Job
    command: tuple[str, ...]
    nodes: int
    per_node: int
    room: int = 0

    def rungs(self, changes: Sequence[Mapping[str, Any]], times: int = 1) -> tuple[Change, ...]:
        """Those changes of the layout that give a job, as changes of the command."""
        return tuple(self._change(each, times) for each in changes if self._is_possible(each))

    def _is_possible(self, keys: Mapping[str, Any]) -> bool:
        try:
            layout = change(
                self.job, {f"layout.{key}": value for key, value in keys.items()}
            ).layout
            _check_model(self.job, layout.tp, layout.pp * layout.stages)
        except UsageError:
            return False
        return True

    def _change(self, keys: Mapping[str, Any], times: int) -> Change:
        words = [word for key, value in keys.items() for word in ("--set", f"layout.{key}={value}")]
        command = (*self.command, *words)
        if times == 1:
            return Change(command, " ".join(words))
        world = self.nodes * self.per_node * times
        per_node = min(world, max(self.room, self.per_node))
        where = [f"--nodes {world // per_node}"]
        if per_node != self.per_node:
            where.append(f"--per-node {per_node}")
        return Change(command, " ".join([*where, *words]), world // per_node, per_node)


def ladders(placed: Placed) -> tuple[Ladder, ...]:
    """The ladders of a job, in the order in which they are to be searched."""
    layout = placed.job.layout
    sizes = _micro_batches(placed.job)
    small: dict[str, Any] = {"micro_batch": 1} if layout.micro_batch > 1 else {}
    again = [{"recompute": each} for each in RECOMPUTES[RECOMPUTES.index(layout.recompute) + 1 :]]
    full: dict[str, Any] = again[-1] if again else {}
    found = [
        Ladder("smaller micro-batch", placed.rungs([{"micro_batch": size} for size in sizes])),
        Ladder("recompute", placed.rungs(again)),
    ]
    if full and small:
        both = [{**full, "micro_batch": size} for size in sizes]
        found.append(Ladder("both", placed.rungs(both), when="none"))
    found += _shared(placed, {}, "some")
    found += _shared(placed, {**small, **full}, "none")
    found.append(_more_chips(placed, {}, "always"))
    if small or full:
        found.append(_more_chips(placed, {**small, **full}, "none"))
    return tuple(ladder for ladder in found if ladder.rungs)


def _micro_batches(job: Job) -> list[int]:
    """Sizes below the job's into which a rank's share of the batch divides, the largest first."""
    mine = job.train.batch // job.layout.dp
    return [size for size in range(job.layout.micro_batch - 1, 0, -1) if mine % size == 0]


def _shared(placed: Placed, beside: Mapping[str, Any], when: str) -> Iterator[Ladder]:
    """The same chips in another layout, with the changes `beside`."""
    layout = placed.job.layout
    whole = {"dp_replicate": 1, "dp_shard": layout.dp_replicate * layout.dp_shard}
    sharded: dict[str, Any] = {}
    if layout.dp_replicate > 1:
        sharded = dict(whole)
    if layout.zero < 3 and layout.dp_replicate * layout.dp_shard > 1:
        sharded["zero"] = 3
    if sharded:
        yield Ladder("more sharding", placed.rungs([{**beside, **sharded}]), when=when)
    axes = {"tp": "tensor parallel", "cp": "context parallel"}
    if when == "none":
        axes["pp"] = "pipeline"
    for axis, title in axes.items():
        now, times, changes = getattr(layout, axis), 2, []
        most = placed.per_node // layout.tp if axis == "tp" else layout.dp_shard
        while times <= most:
            if layout.dp_shard % times == 0:
                split = {axis: now * times, "dp_shard": layout.dp_shard // times}
                changes.append({**beside, **split})
            times *= 2
        yield Ladder(title, placed.rungs(changes), when=when)


def _more_chips(placed: Placed, beside: Mapping[str, Any], when: str) -> Ladder:
    """Twice the chips, four times, ...: fully sharded over all that see other data."""
    layout, batch = placed.job.layout, placed.job.train.batch
    rungs: list[Change] = []
    times = 2
    while placed.room and times <= MOST_TIMES:
        keys: dict[str, Any] = {**beside, "dp_shard": layout.dp_shard * times}
        mine = batch // (layout.dp * times)
        if mine and mine < keys.get("micro_batch", layout.micro_batch):
            keys["micro_batch"] = mine
        if _spreads(placed, times):
            rungs += placed.rungs([keys], times)
        times *= 2
    return Ladder("more chips", tuple(rungs), when=when)


def _spreads(placed: Placed, times: int) -> bool:
    world = placed.nodes * placed.per_node * times
    return world % min(world, max(placed.room, placed.per_node)) == 0


def _check_model(job: Job, tp: int, stages: int) -> None:
    """Refuse degrees that the model is known not to divide by. Raises UsageError."""
    config = _config(job)
    heads = [config.get(key) for key in ("num_attention_heads", "num_key_value_heads", "n_head")]
    layers = config.get("num_hidden_layers") or config.get("n_layer")
    if any(isinstance(count, int) and count % tp for count in heads):
        raise UsageError(f"layout.tp is {tp}; expected a divisor of the heads")
    if isinstance(layers, int) and stages > layers:
        raise UsageError(f"{stages} stages are more than the {layers} layers")


def _config(job: Job) -> Mapping[str, Any]:
    """The model's configuration as published; empty where it cannot be read here."""
    if not job.model.folder:
        return presets.load(job.model.preset).config | job.model.config
    try:
        read = json.loads((Path(job.model.folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {**read, **job.model.config} if isinstance(read, dict) else {}
