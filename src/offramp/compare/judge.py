"""The verdict: which tensor is the first to be further apart than rounding explains.

A tensor's error is measured against the noise floor of that same tensor in that same step. How far
above it is too far (`TIMES`, `JUMP`, `FAR`) was chosen on pairs that differ in the order of
summation alone, and is tested on others (bench/verdicts.py): orders of summation move a result by a
few units in the last place, and the floor by up to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from offramp.compare import curves, kinds, noise, placing, settings
from offramp.compare.assumed import Assumed
from offramp.compare.noise import Floor
from offramp.compare.pairing import Pair, is_forward, module_of, pairs
from offramp.compare.settings import Difference
from offramp.compare.verdict import (
    DIFFERENT,
    PRECISION,
    SAME,
    UNKNOWN,
    ModuleRow,
    Place,
    Verdict,
)
from offramp.record import rows
from offramp.record.recording import Recording

TIMES = 10.0
JUMP, FAR = 2.5, 5.0
_ENDLESS = 1e30
GROWTH = 5.0
MARGIN = 0.005
LOSS_EPS = 2.0**-21  # relative: a mean of many float32 numbers is not better


def judge(
    a: Recording, b: Recording, noisy: Sequence[Recording] = (), margin: float = MARGIN
) -> Verdict:
    """Compare two recordings of one rank.

    noisy    recordings of the first with noise of rounding size, for the floor
    margin   what is no difference between loss curves, relative to the loss
    """
    different = settings.differences(a, b)
    known = Verdict(
        UNKNOWN,
        differences=tuple(different),
        curves=curves.compare(a.losses, b.losses, margin),
        notes=tuple(_notes(a, b)),
        losses={"a": a.losses.tolist(), "b": b.losses.tolist()},
    )
    other = [d for d in different if d.what == "program"]
    if other:
        return replace(known, kind="recordings of different programs", missing=(other[0].text,))
    missing = _missing(a, b)
    paired = list(pairs(a, b))
    if missing or not paired:
        return replace(known, missing=tuple(missing) or ("a step that both have in detail",))
    floor = noise.measure(a, noisy) if noisy else Assumed(paired)
    times = [_times(pair, floor) for pair in paired]
    judged = [t[np.isfinite(t) | np.isposinf(t)] for t in times]
    known = replace(
        known,
        judged=sum(int((t >= 0).sum()) for t in times),
        steps=sum(bool((t >= 0).any()) for t in times),
        worst=float(max((t.max() for t in judged if t.size), default=0.0)),
        floor=floor.words,
        losses=dict(known.losses) | {"band": floor.losses.tolist()},
    )
    found = _first(paired, times, a)
    outside = _outside(a, b, floor)
    cause = _cause(different, found, outside)
    if cause is not None:
        return _not_the_chip(known, cause, paired, times, a)
    if found is None:
        return _nothing_found(known, outside, paired, times, a)
    return _located(known, found, outside, paired, times, a)


def _times(pair: Pair, floor: Floor | Assumed) -> np.ndarray:
    """Errors over the floor; nan where a row is not judged, inf where shapes differ."""
    over = floor.of(pair)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(pair.error == 0, 0.0, pair.error / over)
    times = np.where(np.isposinf(pair.error) & np.isfinite(over), np.inf, times)
    times = np.where(pair.reshaped, np.inf, times)
    return np.where(np.isposinf(over) & ~pair.reshaped, np.nan, times)


def _first(
    paired: Sequence[Pair], times: Sequence[np.ndarray], a: Recording
) -> tuple[int, int] | None:
    """The first tensor that differs, as places in `paired` and in its rows.

    Errors grow from step to step, in one run faster than in another: a tensor differs where it is
    `TIMES` above its floor and stands out from all before it in this step and in the one before, or
    is `FAR` times further.
    """
    highest, last = 0.0, -1
    for at, (pair, found) in enumerate(zip(paired, times, strict=True)):
        clean = np.nan_to_num(found, nan=0.0, posinf=_ENDLESS)
        before = np.maximum.accumulate(np.concatenate([[highest], clean[:-1]]))
        stands_out = clean > JUMP * before
        if pair.number > last + 1 and last >= 0:
            # Between steps that were not looked at, weights may have drifted apart.
            stands_out &= np.asarray([key[0] != rows.WEIGHT for key in pair.keys])
        above = np.flatnonzero((clean > TIMES) & (stands_out | (clean > FAR * TIMES)))
        if above.size:
            return at, int(above[0])
        highest, last = float(clean.max(initial=0.0)), pair.number
    return None


def _outside(a: Recording, b: Recording, floor: Floor | Assumed) -> int | None:
    """The first step whose loss or norm of gradients leaves the band of noise."""
    if not floor.count:
        return None
    for place, (one, other) in enumerate(zip(a.steps, b.steps, strict=False)):
        if place >= len(floor.losses):
            return None
        x, y = (np.mean(s.losses) if s.losses else np.nan for s in (one, other))
        room = max(float(floor.losses[place]), LOSS_EPS * abs(float(x)))
        if np.isfinite(x) != np.isfinite(y) or abs(float(y - x)) > TIMES * room:
            return one.number
        moved = noise.relative(one.gradient_norm, other.gradient_norm)
        if moved > TIMES * max(float(floor.norms[place]), LOSS_EPS):
            return one.number
    return None


def _cause(
    different: Sequence[Difference], found: tuple[int, int] | None, outside: int | None
) -> Difference | None:
    """What differs and is not the chip, where it explains what was found."""
    for difference in different:
        if not difference.excludes:
            continue
        if difference.what != "random numbers" or found is not None or outside is not None:
            return difference
    return None


def _not_the_chip(
    known: Verdict,
    cause: Difference,
    paired: Sequence[Pair],
    times: Sequence[np.ndarray],
    a: Recording,
) -> Verdict:
    step = max(cause.step, 0)
    found = _first(paired, times, a)
    if found is not None and paired[found[0]].number < step:
        return _located(known, found, None, paired, times, a)
    place = Place(step, cause.what, placing.START if cause.step < 0 else "forward", cause.text)
    at = found[0] if found is not None else 0
    return replace(
        known,
        verdict=DIFFERENT,
        kind=f"not the chip: {cause.what}",
        place=place,
        is_chip=False,
        modules=modules(paired[at], times[at], a),
    )


def _nothing_found(
    known: Verdict,
    outside: int | None,
    paired: Sequence[Pair],
    times: Sequence[np.ndarray],
    a: Recording,
) -> Verdict:
    known = replace(known, modules=modules(paired[-1], times[-1], a))
    odd = next((pair for pair in paired if pair.only != (0, 0)), None)
    if odd is not None:
        said = f"{odd.only[0]} tensors only in the first, {odd.only[1]} only in the second"
        where = Place(odd.number, "", "forward", said)
        return replace(known, verdict=DIFFERENT, kind="another path of the program", place=where)
    if outside is not None:
        where = Place(outside, "", "", "loss or norm of gradients")
        need = (f"details of step {outside}: record with --every 1",)
        return replace(
            known, verdict=DIFFERENT, kind="the curve leaves its noise", place=where, missing=need
        )
    curve = known.curves
    is_apart = curve is not None and not curve.within and curve.low * curve.high > 0
    if is_apart and curve is not None and abs(curve.mean) > curve.margin:
        return replace(known, verdict=DIFFERENT, kind="the curves' mean differs")
    return replace(known, verdict=SAME)


def _located(
    known: Verdict,
    found: tuple[int, int],
    outside: int | None,
    paired: Sequence[Pair],
    times: Sequence[np.ndarray],
    a: Recording,
) -> Verdict:
    at, row = found
    pair = paired[at]
    before = paired[at - 1] if at else None
    last = before.number if before is not None else -1
    where = placing.place(pair, row, times[at] > TIMES, a.names, last)
    missing: list[str] = []
    if pair.keys[row][0] == rows.WEIGHT and pair.number > last + 1 and pair.number > 0:
        grown = placing.by_growth(pair, times[at], a.names, GROWTH)
        first = outside if outside is not None and last < outside <= pair.number else last + 1
        if grown is not None:
            where, row = replace(grown[0], step=first), grown[1]
        else:
            where = Place(first, "", "", where.tensor)
        missing.append(f"details of steps {last + 1} to {pair.number - 1}: record with --every 1")
    module_kind = a.kinds.get(where.module, "")
    kind = kinds.kind_of(pair, row, before, module_kind)
    is_data = where.module == "data"
    # A format is a program's from its first step on.
    explains = kind.is_precision and (before is None or kind.by_pattern) and not is_data
    return replace(
        known,
        verdict=PRECISION if explains else DIFFERENT,
        kind="not the chip: data" if is_data else kind.text if explains else kind.plain,
        is_chip=not is_data,
        place=where,
        error=float(pair.error[row]),
        times=float(times[at][row]),
        missing=tuple(missing),
        modules=modules(pair, times[at], a),
    )


def modules(pair: Pair, times: np.ndarray, a: Recording) -> tuple[ModuleRow, ...]:
    """Each module of a step with its largest errors, in the order in which they ran."""
    found: dict[str, list[float]] = {}
    for row, key in enumerate(pair.keys):
        if key[0] in (rows.WEIGHT, rows.UPDATED, rows.LOSS) or np.isnan(times[row]):
            continue
        name = a.names[key[1]]
        if key[0] in (rows.WEIGHT_GRADIENT, rows.UNCLIPPED, rows.STEP_GRADIENT):
            name = module_of(name)
        sums = found.setdefault(name, [0.0, 0.0, 0.0, 0.0])
        side = 0 if is_forward(key[0]) else 2
        sums[side] = max(sums[side], float(pair.error[row]))
        sums[side + 1] = max(sums[side + 1], float(times[row]))
    return tuple(ModuleRow(name, a.kinds.get(name, ""), *sums) for name, sums in found.items())


def _missing(a: Recording, b: Recording) -> list[str]:
    found = []
    for title, one in (("first", a), ("second", b)):
        if not one.steps:
            found.append(f"a step in the {title}: it ended before its first was over")
        elif not any(step.losses for step in one.steps):
            found.append(f"a loss in the {title}: the program called `backward` on no number")
        elif not one.kinds:
            found.append(f"modules in the {title}: the program called none of PyTorch's")
    return found


def _notes(a: Recording, b: Recording) -> list[str]:
    found = []
    for title, one in (("first", a), ("second", b)):
        found += [f"{title}: {note}" for note in one.notes]
        if one.flaw:
            found.append(f"{title}: the file is {one.flaw}; {len(one.steps)} whole steps were read")
        elif not one.ended:
            found.append(f"{title}: the program did not come to its end")
        if one.steps and not one.optimizers:
            found.append(f"{title}: no optimizer made a step: all that was computed counts as one")
    if len(a.steps) != len(b.steps):
        both = min(len(a.steps), len(b.steps))
        found.append(f"{len(a.steps)} and {len(b.steps)} steps; compared are the {both} of both")
    return found
