"""What the memory of a rank holds over time and at its peak, as plain data to draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offramp.tape import kinds as k
from offramp.tape.memory import measure_memory
from offramp.tape.modules import pattern_of
from offramp.tape.play import Floats, Ints, Played
from offramp.tape.steps import step_ends


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of one rank's device over the host's time, in seconds of the clock.

    `by_category`: bytes at each of `at_s`; they sum to what is allocated. `reserved` is empty
    where the tape has no record of the allocator's own. `peak_modules`: bytes at the peak by
    module, numbers in its name taken together, and category, as (module, category, bytes).
    `steps_s`: when the host ended each step.
    """

    rank: int
    device: int
    at_s: Floats
    by_category: dict[str, Ints]
    reserved: Ints
    peak_s: float
    peak_bytes: int
    peak_modules: list[tuple[str, str, int]]
    steps_s: Floats


def measure_held(played: Played) -> Held:
    """The memory of the device with the highest peak, at most a few thousand points."""
    tape = played.tape
    memory = measure_memory(tape)
    blocks, points = memory.blocks, memory.curve_record
    by_category: dict[str, Ints] = {}
    for number, name in enumerate(k.CATEGORIES):
        mine = blocks.category == number
        if not mine.any():
            continue
        change = np.zeros(len(tape.records) + 1, np.int64)
        np.add.at(change, blocks.allocated[mine], blocks.bytes[mine])
        np.add.at(change, blocks.freed[mine], -blocks.bytes[mine])
        by_category[name] = np.cumsum(change)[points]
    alive = (blocks.allocated <= memory.peak_record) & (blocks.freed > memory.peak_record)
    sums: dict[tuple[str, str], int] = {}
    names = tape.names or [""]
    patterns: dict[int, str] = {}
    columns = (blocks.module[alive], blocks.category[alive], blocks.bytes[alive])
    for module, category, size in zip(*(column.tolist() for column in columns), strict=True):
        if module not in patterns:
            patterns[module] = pattern_of(names[module])
        key = (patterns[module], k.CATEGORIES[category])
        sums[key] = sums.get(key, 0) + size
    order = sorted(sums, key=lambda key: (-sums[key], key))
    peak_s, *ends = played.host_times(np.array([memory.peak_record, *step_ends(tape)])).tolist()
    return Held(
        tape.rank,
        memory.device,
        played.host_times(points),
        by_category,
        memory.curve_reserved if memory.reserved_peak_bytes is not None else np.zeros(0, np.int64),
        peak_s,
        memory.peak_bytes,
        [(module, category, sums[module, category]) for module, category in order],
        np.array(ends),
    )
