"""What a device's time went to: every instant belongs to one part, so the parts sum to the step.

An instant counts as compute where any stream works (the heaviest kind where several do), else as
communication where a collective or transfer is under way, else as bubble where one waits for a
peer, else as host where this rank launches more later on, else as idle.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from offramp.tape import kinds as k
from offramp.tape.play import Floats, Played
from offramp.tape.prices import KINDS, PriceList

Named = tuple[str, str]  # a group's label and the name of a collective
Spans = tuple[Floats, Floats]  # begins and ends


@dataclass(frozen=True, slots=True)
class Split:
    """Seconds of each window by what they went to."""

    compute: dict[str, Floats]  # by kind
    exposed: dict[Named, Floats]  # communication with no compute beside it
    bubble: Floats
    host: Floats
    idle: Floats

    def total(self) -> Floats:
        """All parts together: the windows' lengths."""
        parts = [*self.compute.values(), *self.exposed.values(), self.bubble, self.host, self.idle]
        total: Floats = np.array(parts).sum(axis=0)
        return total


def split(played: Played, prices: PriceList, bounds: Floats) -> Split:
    """Split the windows between `bounds` (seconds, ascending) of one rank."""
    compute = _compute(played, prices)
    named: dict[Named, list[tuple[float, float]]] = {}
    waits = []
    last = float(played.ops_start.max(initial=0.0))
    for unit in played.units:
        key = (unit.parts[0].group.label, unit.name)
        named.setdefault(key, []).append((unit.start, unit.end))
        waits.append((unit.ready, unit.start))
        last = max(last, unit.start)
    order = sorted(named)
    classes = [*(compute[kind] for kind in KINDS), *(_columns(named[name]) for name in order)]
    parts = _sweep([*classes, _columns(waits), (np.zeros(1), np.array([last]))], bounds)
    count = len(KINDS)
    return Split(
        dict(zip(KINDS, parts[:count], strict=True)),
        dict(zip(order, parts[count : count + len(order)], strict=True)),
        bubble=parts[-3],
        host=parts[-2],
        idle=parts[-1],
    )


def kind_numbers(played: Played, prices: PriceList) -> dict[int, str]:
    """The kind of each signature that ran as an operator on the chip."""
    whats = np.unique(played.tape.records["what"][played.ops_record])
    return {what: prices.operator(played.tape.signatures[what]).kind for what in whats.tolist()}


def _compute(played: Played, prices: PriceList) -> dict[str, Spans]:
    whats = played.tape.records["what"][played.ops_record]
    spans = {}
    kinds = kind_numbers(played, prices)
    for kind in KINDS:
        # A kind that is none of these works on memory.
        of = [w for w, name in kinds.items() if (name if name in KINDS else "memory") == kind]
        mask = np.isin(whats, of)
        spans[kind] = (played.ops_start[mask], played.ops_end[mask])
    return spans


def _columns(pairs: Iterable[tuple[float, float]]) -> Spans:
    table = np.array(list(pairs), np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _sweep(classes: list[Spans], bounds: Floats) -> list[Floats]:
    """Seconds of each window that belong to each class, the first that covers an instant; the
    last list is of instants that none covers."""
    low, high = bounds[0], bounds[-1]
    clipped = [(np.clip(s, low, high), np.clip(e, low, high)) for s, e in classes]
    edges = np.unique(np.concatenate([bounds, *(side for spans in clipped for side in spans)]))
    count = len(edges)
    owner = np.full(max(0, count - 1), len(classes), np.int64)
    for number, (starts, ends) in reversed(list(enumerate(clipped))):
        opened = np.bincount(np.searchsorted(edges, starts), minlength=count)
        closed = np.bincount(np.searchsorted(edges, ends), minlength=count)
        owner[np.cumsum(opened - closed)[:-1] > 0] = number
    windows = len(bounds) - 1
    window = np.searchsorted(bounds, edges[:-1], side="right") - 1
    place = owner * windows + np.clip(window, 0, max(0, windows - 1))
    sums = np.bincount(place, np.diff(edges), minlength=(len(classes) + 1) * windows)
    return list(sums.reshape(len(classes) + 1, windows))


def synchronizations(played: Played, begin: int, end: int | None) -> dict[str, int]:
    """How often the host waited for the device in records [begin, end), by reason."""
    records = played.tape.records[begin:end]
    kind = records["kind"]
    counts = {
        "event": int((kind == k.SYNC_EVENT).sum()),
        "stream": int((kind == k.SYNC_STREAM).sum()),
        "device": int((kind == k.SYNC_DEVICE).sum()),
        "collective": int(((kind == k.WORK_WAIT) & (records["b"] == 1)).sum()),
    }
    for what in records["what"][kind == k.READBACK].tolist():
        reason = (played.tape.names[what] if played.tape.names else "") or "readback"
        counts[reason] = counts.get(reason, 0) + 1
    return {reason: count for reason, count in sorted(counts.items()) if count}
