"""The result of one rehearsal as plain data: what a report prints and a file keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from offramp.tape.memory import measure_memory
from offramp.tape.modules import Breakdown, break_down
from offramp.tape.play import Floats, Played, play
from offramp.tape.prices import PICKS, PriceList, Prices
from offramp.tape.split import Split, split, synchronizations
from offramp.tape.steps import Steps, find_steps
from offramp.tape.tape import Tape, TapeError

SCHEMA = 1
TOP = 20
MFU_CONVENTION = "products and attention as executed, recompute included, over the peak rate"


def summarize(
    tapes: Sequence[Tape],
    prices: Prices | PriceList,
    *,
    peak_flops: float | None = None,
    capacity_bytes: int | Mapping[int, int] | None = None,
    stands_for: Sequence[float] | None = None,
    played: Sequence[Played] | None = None,
) -> dict[str, Any]:
    """Play `tapes` together and say how long a step is, what it goes to and what it holds.

    `peak_flops` is one chip's rate in FLOP/s, for MFU, the mean where chips differ;
    `capacity_bytes` its memory, or that of each rank, by default what the tapes say;
    `stands_for` how many ranks each tape stands for, where they are not as many. `played` saves a
    replay where it was done before with spans kept. Every figure is of one step, in seconds, bytes
    or flops; per rank in "ranks", else the mean of them.
    """
    if peak_flops is not None and not peak_flops > 0:
        raise TapeError(f"a peak rate is positive; got {peak_flops} FLOP/s")
    book = prices if isinstance(prices, PriceList) else PriceList(prices)
    steps = find_steps(tapes)
    kept = list(played) if played is not None else play(tapes, book)
    bounds = steps.bounds(kept)
    seconds = _interval(tapes, book, steps, bounds)
    ranks = [
        _rank(one, book.of(one.tape.rank), steps, place, bounds) for place, one in enumerate(kept)
    ]
    shares = _shares(stands_for, len(ranks))
    for rank, tape in zip(ranks, tapes, strict=True):
        own = tape.header.get("capacity_bytes")
        given = capacity_bytes
        said = given[tape.rank] if isinstance(given, Mapping) else given
        rank["memory"]["capacity_bytes"] = own if said is None else said
    flops = float(shares @ [rank["flops"] for rank in ranks])
    rate = flops / seconds["mid"] if seconds["mid"] else 0.0
    header = tapes[0].header
    return {
        "schema": SCHEMA,
        "chip": header.get("chip"),
        "world": header.get("world", len(tapes)),
        "torch": header.get("torch"),
        "is_truncated": any(tape.truncated for tape in tapes),
        "steps": {
            "found": steps.found,
            "measured": steps.measured,
            "warm_up": 0 if steps.is_whole else steps.first,
            "is_stable": steps.is_stable,
            "is_whole": steps.is_whole,
            "each_s": np.diff(bounds).tolist(),
        },
        "step_s": seconds,
        "split": _mean([rank["split"] for rank in ranks], shares.tolist()),
        "flops": flops,
        "mfu": None if peak_flops is None else rate / peak_flops,
        "mfu_convention": MFU_CONVENTION,
        "peak_flops": peak_flops,
        "memory": _fullest(ranks),
        "ranks": ranks,
    }


def step_seconds(tapes: Sequence[Tape], prices: Prices | PriceList) -> float:
    """The mean seconds of a step alone, which `summarize` has as `step_s.mid`."""
    book = prices if isinstance(prices, PriceList) else PriceList(prices)
    return _mean_step(find_steps(tapes).bounds(play(tapes, book, keep=False)))


def to_json(summary: dict[str, Any]) -> str:
    """The text of a summary: the same for the same tapes and prices."""
    return json.dumps(summary, sort_keys=True, indent=1, allow_nan=False) + "\n"


def _shares(stands_for: Sequence[float] | None, count: int) -> Floats:
    """The share of the world that each tape stands for."""
    weights = np.asarray([1] * count if stands_for is None else stands_for, np.float64)
    if len(weights) != count or not (weights > 0).all():
        raise TapeError(f"each of {count} tapes stands for some ranks; got {stands_for}")
    return weights / np.sum(weights)


def lacking_bytes(memory: Mapping[str, Any]) -> int:
    """What a rank's `memory` of a summary lacks of its chip's: of live tensors, or in one piece.

    Tensors that would fit can leave free only pieces of what was taken: the allocator then took
    more than the chip has although it gave back whatever it could. 0 where no capacity is known.
    """
    if not memory["capacity_bytes"]:
        return 0
    capacity = int(memory["capacity_bytes"])
    over = int(memory["allocated_bytes"]) - capacity
    return over if over > 0 else max(0, int(memory["reserved_bytes"] or 0) - capacity)


def _fullest(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The memory of the rank that lacks most, else has the least room; the first of several."""

    def filled(rank: dict[str, Any]) -> tuple[int, int]:
        memory = rank["memory"]
        return lacking_bytes(memory), int(memory["allocated_bytes"]) - int(
            memory["capacity_bytes"] or 0
        )

    rank = max(ranks, key=filled)
    return {"rank": rank["rank"], **rank["memory"]}


def _interval(
    tapes: Sequence[Tape], book: PriceList, steps: Steps, bounds: Floats
) -> dict[str, float]:
    """Mean seconds of a step: as priced, with every price low, with every price high.

    A schedule may shorten a step where an operator gets longer: the interval holds the middle.
    """
    found = {"mid": _mean_step(bounds)}
    for name in PICKS[1:]:
        found[name] = _mean_step(steps.bounds(play(tapes, book, name, keep=False)))
    found["low"] = min(found["low"], found["mid"])
    found["high"] = max(found["high"], found["mid"])
    return found


def _mean_step(bounds: Floats) -> float:
    return float(bounds[-1] - bounds[0]) / (len(bounds) - 1)


def _rank(
    played: Played, book: PriceList, steps: Steps, place: int, bounds: Floats
) -> dict[str, Any]:
    begin, end = steps.records(place)
    count = steps.measured
    parts = split(played, book, bounds)
    spent = break_down(played, book, begin, end)
    counts = synchronizations(played, begin, end)
    return {
        "rank": played.tape.rank,
        "chip": played.tape.header.get("chip"),
        "split": _split(parts),
        "flops": spent.flops / count,
        "phases": {name: spent_s / count for name, spent_s in spent.phases.items()},
        "modules": _top(spent, count)["modules"],
        "operators": _top(spent, count)["operators"],
        "collectives": _collectives(played, parts, begin, end, count),
        "host_synchronizations": {reason: number / count for reason, number in counts.items()},
        "memory": _memory(played.tape),
    }


def _split(parts: Split) -> dict[str, Any]:
    exposed: dict[str, float] = {}
    for (group, _), seconds in parts.exposed.items():
        exposed[group] = exposed.get(group, 0.0) + float(seconds.mean())
    return {
        "compute_s": {kind: float(seconds.mean()) for kind, seconds in parts.compute.items()},
        "exposed_communication_s": exposed,
        "bubble_s": float(parts.bubble.mean()),
        "host_s": float(parts.host.mean()),
        "idle_s": float(parts.idle.mean()),
    }


def _mean(splits: list[dict[str, Any]], shares: list[float]) -> dict[str, Any]:
    """The mean of the ranks' splits, name by name; a name that a rank lacks counts as zero."""
    parts = list(zip(splits, shares, strict=True))
    result: dict[str, Any] = {}
    for key, value in splits[0].items():
        if isinstance(value, dict):
            names = sorted({name for each in splits for name in each[key]})
            result[key] = {
                name: sum(each[key].get(name, 0.0) * share for each, share in parts)
                for name in names
            }
        else:
            result[key] = sum(each[key] * share for each, share in parts)
    return result


def _top(spent: Breakdown, count: int) -> dict[str, list[dict[str, Any]]]:
    """The longest modules and operators, per step."""
    per_step = ("calls", "self_s", "total_s", "count", "seconds", "flops", "bytes")
    modules = [asdict(row) for row in spent.modules[:TOP]]
    operators = [asdict(row) for row in spent.operators[:TOP]]
    return {
        name: [
            {key: value / count if key in per_step else value for key, value in row.items()}
            for row in rows
        ]
        for name, rows in (("modules", modules), ("operators", operators))
    }


def _collectives(
    played: Played, parts: Split, begin: int, end: int | None, count: int
) -> list[dict[str, Any]]:
    """By group and name: calls, bytes, seconds under way, and those with no compute beside."""
    rows: dict[tuple[str, str], list[float]] = {}
    last = len(played.tape.records) if end is None else end
    for unit in played.units:
        if not begin <= unit.parts[0].record < last:
            continue
        row = rows.setdefault((unit.parts[0].group.label, unit.name), [0.0, 0.0, 0.0])
        row[0] += len(unit.parts)
        row[1] += sum(part.call.bytes for part in unit.parts)
        row[2] += unit.end - unit.start
    return [
        {
            "group": group,
            "name": name,
            "count": calls / count,
            "bytes": moved / count,
            "seconds": seconds / count,
            "exposed_s": float(exposed.mean()) if exposed is not None else 0.0,
        }
        for (group, name), (calls, moved, seconds) in sorted(rows.items())
        for exposed in (parts.exposed.get((group, name)),)
    ]


def _memory(tape: Tape) -> dict[str, Any]:
    memory = measure_memory(tape)
    top = dict(list(memory.by_module.items())[:TOP])
    return {
        "device": memory.device,
        "allocated_bytes": memory.peak_bytes,
        "reserved_bytes": memory.reserved_peak_bytes,
        "forced": memory.forced,
        "by_category": memory.by_category,
        "by_module": top,
        "unknown_frees": memory.unknown_frees,
    }
