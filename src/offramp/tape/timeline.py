"""The lanes of one stretch of time as spans to draw: few enough for a page, each with its words.

What is too short to be seen is merged with what stands beside it; a span says what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from offramp.tape import kinds as k
from offramp.tape.meeting import Unit, describe
from offramp.tape.play import Floats, Ints, Played
from offramp.tape.prices import KINDS, PriceList, operator_name, short_name
from offramp.units import format_bytes, format_seconds

# What a span is of, which decides its colour.
WAIT, PROGRAM = "host waits", "host's own work"
COMMUNICATION, BUBBLE = "communication", "waits for a peer"
CLASSES = (*KINDS, COMMUNICATION, BUBBLE, *k.PHASES, PROGRAM, WAIT)
_NUMBER = {name: number for number, name in enumerate(CLASSES)}
_FIRST_PHASE = _NUMBER[k.PHASES[0]]
_WAITING = (k.SYNC_EVENT, k.SYNC_STREAM, k.SYNC_DEVICE, k.WORK_WAIT, k.READBACK)
MOST_SPANS = 10_000
_GAPS = 1000  # a stream's pause of more than this part of the stretch is left open
# Pieces of the stretch, finest first, within which short spans are merged; 0: nothing is.
_PIECES = (0, 16_000, 8_000, 4_000, 2_000, 1_000, 500, 250, 125, 60, 30)
Tell = Callable[[int, int], str]  # words for the spans [first, last)


@dataclass(frozen=True, slots=True)
class Lane:
    """Spans of one lane in order: seconds since the stretch's begin, class and words of each.

    `merged` is how many there were before short ones were merged.
    """

    rank: int
    name: str
    start: Floats
    end: Floats
    classes: list[str]
    words: list[str]
    merged: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """The lanes of all ranks between two times, and within what short spans were merged.

    `resolution_s` is 0 where nothing was merged.
    """

    lanes: list[Lane]
    begin_s: float
    end_s: float
    resolution_s: float


@dataclass(slots=True)
class _Raw:
    """A lane before it is merged."""

    rank: int
    name: str
    start: Floats
    end: Floats
    classes: Ints
    tell: Tell
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.start)


def draw_timeline(
    played: Sequence[Played],
    prices: PriceList,
    begin_s: float,
    end_s: float,
    most: int = MOST_SPANS,
) -> Timeline:
    """The lanes of `played` in [begin_s, end_s], of at most about `most` spans together."""
    raw = [lane for one in played for lane in _lanes(one, prices.of(one.tape.rank), begin_s, end_s)]
    raw = [lane for lane in raw if lane.count]
    length = end_s - begin_s
    resolution = 0.0
    for pieces in _PIECES:
        resolution = length / pieces if pieces else 0.0
        if sum(len(_groups(lane, begin_s, resolution)) for lane in raw) <= most:
            break
    lanes = [_merge(lane, begin_s, resolution) for lane in raw]
    if all(len(lane.start) == lane.merged for lane in lanes):
        resolution = 0.0
    return Timeline(lanes, begin_s, end_s, resolution)


def layer_of(module: str) -> str:
    """A module's layer: its path up to the first number, else its first two parts."""
    parts = module.split(".")
    numbered = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[0] + 1 if numbered else 2])


def _groups(lane: _Raw, begin_s: float, resolution: float) -> Ints:
    """Where each drawn span begins among the lane's."""
    if not resolution:
        return np.arange(lane.count)
    short = lane.end - lane.start < resolution
    piece = np.floor((lane.start - begin_s) / resolution)
    joins = short[1:] & short[:-1] & (piece[1:] == piece[:-1])
    return np.flatnonzero(np.concatenate(([True], ~joins)))


def _merge(lane: _Raw, begin_s: float, resolution: float) -> Lane:
    first = _groups(lane, begin_s, resolution)
    last = np.append(first[1:], lane.count)
    group = np.repeat(np.arange(len(first)), last - first)
    places = group * len(CLASSES) + lane.classes
    shares = np.bincount(places, lane.end - lane.start, minlength=len(first) * len(CLASSES))
    longest = shares.reshape(len(first), len(CLASSES)).argmax(axis=1)
    chosen = np.where(last - first == 1, lane.classes[first], longest)
    return Lane(
        lane.rank,
        lane.name,
        lane.start[first] - begin_s,
        np.maximum.reduceat(lane.end, first) - begin_s,
        [CLASSES[number] for number in chosen.tolist()],
        [lane.tell(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True)],
        lane.count,
    )


def _lanes(played: Played, prices: PriceList, begin_s: float, end_s: float) -> list[_Raw]:
    found = [_host(played, prices, begin_s, end_s)]
    near = (played.ops_end > begin_s) & (played.ops_start < end_s)
    records = played.tape.records[played.ops_record]
    keys = records["device"].astype(np.int64) << 32 | records["stream"]
    streams = np.unique(keys[near]).tolist()
    busy = {
        key: float((played.ops_end - played.ops_start)[near & (keys == key)].sum())
        for key in streams
    }
    devices = {key >> 32 for key in streams}
    if streams:
        main = max(streams, key=lambda key: (busy[key], -key))
        found.append(_layers(played, near & (keys == main), (end_s - begin_s) / _GAPS))
    for key in streams:
        place = f"device {key >> 32} " if len(devices) > 1 else ""
        name = f"{place}stream {key & 0xFFFFFFFF}"
        found.append(_stream(played, prices, near & (keys == key), name))
    return found + _calls(played, begin_s, end_s)


def _stream(played: Played, prices: PriceList, mine: npt.NDArray[np.bool_], name: str) -> _Raw:
    """The operators of one stream, by kind."""
    tape = played.tape
    records = tape.records[played.ops_record[mine]]
    start, end = played.ops_start[mine], played.ops_end[mine]
    whats = records["what"].astype(np.int64)
    known = np.unique(whats).tolist()
    texts = {what: short_name(operator_name(tape.signatures[what])) for what in known}
    kinds = {what: prices.operator(tape.signatures[what]).kind for what in known}
    table = np.zeros(max(known, default=0) + 1, np.int64)
    for what, kind in kinds.items():
        table[what] = _NUMBER[kind if kind in KINDS else "memory"]
    classes = table[whats]
    modules, phases = records["module"], records["phase"]

    def tell(a: int, b: int) -> str:
        lasts = format_seconds(float(end[a:b].max() - start[a]))
        where = tape.names[modules[a]] if tape.names else ""
        place = "\n".join(filter(None, (k.PHASES[phases[a]], where)))
        if b - a == 1:
            return f"{texts[whats[a]]}\n{lasts}, {CLASSES[classes[a]]}\n{place}"
        spent = end[a:b] - start[a:b]
        busy = f"{spent.sum() / max(float(end[a:b].max() - start[a]), 1e-30):.0%} busy"
        names = _longest([texts[what] for what in whats[a:b].tolist()], spent)
        return f"{b - a} operators, {busy}: {names}\n{lasts}\n{place}"

    return _Raw(tape.rank, name, start, end, classes, tell)


def _longest(names: Sequence[str], spent: Floats, most: int = 3) -> str:
    sums: dict[str, float] = {}
    for name, seconds in zip(names, spent.tolist(), strict=True):
        sums[name] = sums.get(name, 0.0) + seconds
    order = sorted(sums, key=lambda name: (-sums[name], name))
    return ", ".join(order[:most]) + (", ..." if len(order) > most else "")


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _layers(played: Played, mine: npt.NDArray[np.bool_], gap_s: float) -> _Raw:
    """The same stream by layer and phase: consecutive operators of one layer are one span.

    Where the stream stands still for more than `gap_s` another span begins.
    """
    tape = played.tape
    records = tape.records[played.ops_record[mine]]
    names = [layer_of(name) for name in tape.names] or [""]
    known = {name: number for number, name in enumerate(dict.fromkeys(names))}
    layers = np.array([known[name] for name in names], np.int64)[records["module"]]
    classes = records["phase"].astype(np.int64) + _FIRST_PHASE
    labels = list(known)
    start, end = played.ops_start[mine], played.ops_end[mine]
    stops = np.concatenate((np.zeros(1), np.cumsum(start[1:] - end[:-1] > gap_s)))[: len(start)]
    return _runs(
        tape.rank,
        "layers",
        (start, end),
        (classes, layers, stops.astype(np.int64)),
        lambda layer, count: f"{labels[layer] or 'no module'}\n{_plural(count, 'operator')}",
    )


def _runs(
    rank: int,
    name: str,
    times: tuple[Floats, Floats],
    keys: tuple[Ints, ...],
    words: Callable[[int, int], str],
) -> _Raw:
    """Spans of one class and one thing, one after another, as one."""
    (start, end), (classes, things, *_) = times, keys
    differs = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    first = np.flatnonzero(np.concatenate(([True], differs))) if len(start) else np.arange(0)
    counts = np.diff(np.append(first, len(start)))
    ends = np.maximum.reduceat(end, first) if len(start) else end
    starts, own, what = start[first], classes[first], things[first]

    def tell(a: int, b: int) -> str:
        lasts = format_seconds(float(ends[b - 1] - starts[a]))
        said = words(int(what[a]), int(counts[a]))
        more = f"\nand {b - a - 1:,} more" if b - a > 1 else ""
        return f"{said}\n{lasts}, {CLASSES[own[a]]}{more}"

    return _Raw(rank, name, starts, ends, own, tell)


def _host(played: Played, prices: PriceList, begin_s: float, end_s: float) -> _Raw:
    """What the host does: it launches, by phase; it is busy with the program's own; it waits."""
    tape = played.tape
    end = played.host_at
    start = np.concatenate((np.zeros(1), end[:-1])) if len(end) else end
    near = (end > begin_s) & (start < end_s) & (end > start)
    start, end, records = start[near], end[near], tape.records[played.host_record[near]]
    kind, what = records["kind"], records["what"].astype(np.int64)
    is_op = kind == k.OP
    launches = np.zeros(int(what[is_op].max(initial=0)) + 1)
    for number in np.unique(what[is_op]).tolist():
        launches[number] = prices.launch_s(tape.signatures[number], "seconds")
    called = np.minimum(end, start + launches[np.where(is_op, what, 0)])
    called = np.where(is_op, called, end)
    classes = records["phase"].astype(np.int64) + _FIRST_PHASE
    classes = np.where(kind == k.HOST, _NUMBER[PROGRAM], classes)
    classes = np.where(np.isin(kind, _WAITING), _NUMBER[WAIT], classes)
    # A launch whose queue is full waits after it: a span of its own, where one can see it.
    late = np.flatnonzero(end - called > 1e-3 * np.maximum(called - start, 1e-12))
    starts = np.concatenate((start, called[late]))
    ends = np.concatenate((called, end[late]))
    both = np.concatenate((classes, np.full(len(late), _NUMBER[WAIT])))
    order = np.argsort(starts, kind="stable")
    starts, ends, both = starts[order], ends[order], both[order]
    said = {_NUMBER[WAIT]: "waits for the chip", _NUMBER[PROGRAM]: "the program's own work"}
    return _runs(
        tape.rank,
        "host",
        (starts, ends),
        (both, both),
        lambda one, count: said.get(one) or _plural(count, "call"),
    )


def _calls(played: Played, begin_s: float, end_s: float) -> list[_Raw]:
    """The collectives of each lane, and the times that they wait for a peer."""
    rows: dict[tuple[int, str], list[tuple[float, float, int, Unit]]] = {}
    for unit in played.units:
        if unit.end <= begin_s or unit.ready >= end_s:
            continue
        lane = rows.setdefault((unit.device, unit.lane), [])
        if unit.start > unit.ready:
            lane.append((unit.ready, unit.start, _NUMBER[BUBBLE], unit))
        lane.append((unit.start, unit.end, _NUMBER[COMMUNICATION], unit))
    many = len({device for device, _ in rows}) > 1
    return [
        _call_lane(
            played.tape.rank, f"device {device} {name}" if many else name, rows[device, name]
        )
        for device, name in sorted(rows)
    ]


def _call_lane(rank: int, name: str, spans: list[tuple[float, float, int, Unit]]) -> _Raw:
    spans.sort(key=lambda span: span[:3])
    start, end = np.array([s[0] for s in spans]), np.array([s[1] for s in spans])

    def tell(a: int, b: int) -> str:
        lasts = format_seconds(float(end[a:b].max() - start[a]))
        units = [span[3] for span in spans[a:b]]
        moved = format_bytes(sum(part.call.bytes for part in units[0].parts))
        calls = [describe(part) for part in units[0].parts]
        said = calls[0] + (f" and {len(calls) - 1} more" if len(calls) > 1 else "")
        if b - a > 1:
            said = _longest([unit.name for unit in units], end[a:b] - start[a:b])
            return f"{b - a} calls: {said}\n{lasts}"
        return f"{said}\n{lasts}, {moved}, {CLASSES[spans[a][2]]}"

    return _Raw(rank, name, start, end, np.array([s[2] for s in spans], np.int64), tell)
