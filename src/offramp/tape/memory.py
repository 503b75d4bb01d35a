"""Memory of one device over a tape: allocated and reserved bytes, and what held them at the peak.

A block's category is what its last CATEGORY record says. Where none does, the phase in which it was
allocated and how long it lives decide; `docs/tape.md` has the rule. What a collective takes is
communication only where it is nothing that stays: a gathered input that is kept for the backward
pass is an activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from offramp.tape import kinds as k
from offramp.tape.tape import Records, Tape, TapeError

Ints = npt.NDArray[np.int64]
CURVE_POINTS = 2000
_NAME = {name: number for number, name in enumerate(k.CATEGORIES)}
_MOVED = _NAME["communication"]
_PASSING = (_NAME["other"], _NAME["temporary"], _MOVED)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Every block that the device's allocator gave out: records of its begin and end, its bytes.

    `freed` is the tape's length where a block outlives it.
    """

    ids: Ints
    allocated: Ints
    freed: Ints
    bytes: Ints
    module: Ints
    phase: Ints
    category: Ints  # numbers of kinds.CATEGORIES


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes over the tape; `curve_*` have at most CURVE_POINTS entries and keep every peak.

    `reserved_peak_bytes` is None where the tape has no record of the allocator's own.
    `forced` counts how often cached memory had to be given back before more could be taken.
    `unknown_frees` counts blocks given back that the tape did not see given out.
    """

    device: int
    peak_bytes: int
    peak_record: int
    end_bytes: int
    reserved_peak_bytes: int | None
    forced: int
    by_category: dict[str, int]
    by_module: dict[str, int]
    unknown_frees: int
    curve_record: Ints
    curve_bytes: Ints
    curve_reserved: Ints
    blocks: Blocks


def measure_memory(tape: Tape, device: int | None = None) -> Memory:
    """The memory of `device`; of the one with the highest peak where it is not given."""
    kind = tape.records["kind"]
    touched = np.unique(tape.records["device"][np.isin(kind, k.MEMORY_KINDS)]).tolist()
    if device is not None or len(touched) < 2:
        return _measure(tape, touched[0] if device is None and touched else device or 0)
    each = [_measure(tape, one) for one in touched]
    return max(each, key=lambda memory: (memory.peak_bytes, -memory.device))


def _measure(tape: Tape, device: int) -> Memory:
    records = tape.records
    mine = (records["device"] == device) & np.isin(records["kind"], k.MEMORY_KINDS)
    at = np.flatnonzero(mine)
    blocks, unknown = _blocks(records, at)
    known_free = blocks.freed[blocks.freed < len(records)]
    change = np.zeros(len(records) + 1, np.int64)
    change[blocks.allocated] += blocks.bytes
    change[known_free] -= blocks.bytes[blocks.freed < len(records)]
    allocated = np.cumsum(change)[:-1][at]
    kind, size = records["kind"][at], records["a"][at].astype(np.int64)
    taken = np.where(kind == k.RESERVE, size, 0) - np.where(kind == k.UNRESERVE, size, 0)
    reserved = np.cumsum(taken)
    peak = int(np.argmax(allocated)) if len(at) else 0
    record = int(at[peak]) if len(at) else 0
    alive = (blocks.allocated <= record) & (blocks.freed > record)
    chosen = _downsample(allocated, reserved)
    return Memory(
        device,
        int(allocated[peak]) if len(at) else 0,
        record,
        int(allocated[-1]) if len(at) else 0,
        int(reserved.max()) if (taken != 0).any() else None,
        _forced(records, at),
        _summed(blocks.category[alive], blocks.bytes[alive], list(k.CATEGORIES)),
        _summed(blocks.module[alive], blocks.bytes[alive], tape.names or [""]),
        unknown,
        at[chosen],
        allocated[chosen],
        reserved[chosen],
        blocks,
    )


def _forced(records: Records, at: Ints) -> int:
    """Turns of the allocator in which it gave back what it had cached, for want of other memory."""
    given = at[(records["kind"][at] == k.UNRESERVE) & (records["b"][at] == 1)]
    return int(np.count_nonzero(np.diff(given, prepend=-2) > 1))


def _summed(numbers: Ints, sizes: Ints, names: list[str]) -> dict[str, int]:
    """Bytes by name, the largest first."""
    sums = np.zeros(len(names), np.int64)
    np.add.at(sums, numbers, sizes)
    order = sorted(np.flatnonzero(sums).tolist(), key=lambda number: (-sums[number], number))
    return {names[number]: int(sums[number]) for number in order}


def _blocks(records: Records, at: Ints) -> tuple[Blocks, int]:
    """The blocks of one device, and how many frees are of none of them."""
    kind = records["kind"][at]
    begins, ends, told = (at[kind == one] for one in (k.ALLOC, k.FREE, k.CATEGORY))
    ids = records["a"][begins].astype(np.int64)
    place = {block: number for number, block in enumerate(ids.tolist())}
    if len(place) != len(ids):
        raise TapeError("a block is given out twice; block ids are unique for a tape's life")
    freed = np.full(len(ids), len(records), np.int64)
    unknown = 0
    for record, block in zip(ends.tolist(), records["a"][ends].tolist(), strict=True):
        number = place.get(block)
        if number is None:
            unknown += 1
        elif freed[number] < len(records) or record < begins[number]:
            raise TapeError(f"record {record} gives back block {block}, which is not given out")
        else:
            freed[number] = record
    phase = records["phase"][begins].astype(np.int64)
    category = _by_life(records, begins, freed, phase)
    for record in told.tolist():
        number, value = place.get(int(records["a"][record])), int(records["what"][record])
        if not 0 < value < len(k.CATEGORIES):
            raise TapeError(f"record {record} names category {value}; there are 1 to 6")
        if number is not None and (value != _MOVED or category[number] in _PASSING):
            category[number] = value
    sizes = records["b"][begins].astype(np.int64)
    module = records["module"][begins].astype(np.int64)
    return Blocks(ids, begins, freed, sizes, module, phase, category), unknown


def _by_life(records: Records, begins: Ints, freed: Ints, phase: Ints) -> Ints:
    """Categories of blocks by the phase that asked for them and by what they outlive."""
    now = records["phase"]
    before = np.concatenate(([k.OTHER], now[:-1])) if len(now) else now
    backward = np.flatnonzero((now == k.BACKWARD) & (before != k.BACKWARD))
    optimizer = np.flatnonzero((now == k.OPTIMIZER) & (before != k.OPTIMIZER))
    optimized = np.flatnonzero((now != k.OPTIMIZER) & (before == k.OPTIMIZER))
    optimized = np.append(optimized, len(records) - 1)
    category = np.full(len(begins), _NAME["other"], np.int64)
    for phases, turns, kept in (
        ((k.FORWARD, k.RECOMPUTE), backward, "activations"),
        ((k.BACKWARD,), optimizer, "gradients"),
        ((k.OPTIMIZER,), optimized, "optimizer"),
    ):
        mine = np.isin(phase, phases)
        turn = np.append(turns, len(records))[np.searchsorted(turns, begins, side="right")]
        outlives = (turn < len(records)) & (freed > turn)
        category[mine] = np.where(outlives[mine], _NAME[kept], _NAME["temporary"])
    return category


def _downsample(*columns: Ints) -> Ints:
    """Places of at most CURVE_POINTS entries: of each stretch its end and each column's largest."""
    count = len(columns[0])
    if count <= CURVE_POINTS:
        return np.arange(count)
    edges = np.linspace(0, count, CURVE_POINTS // (len(columns) + 1) + 1).astype(np.int64)
    tops = [a + np.argmax(column[a:b]) for column in columns for a, b in pairwise(edges.tolist())]
    return np.unique(np.concatenate((edges[1:] - 1, np.array(tops, np.int64))))
