"""What a recording holds, and what a comparison found, as labelled lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from offramp.compare.run import Compared
from offramp.compare.verdict import DIFFERENT, PRECISION, SAME, UNKNOWN, Verdict
from offramp.record.recording import Recording
from offramp.report.lines import Line, Tone, plural
from offramp.units import format_bytes

TONES: Mapping[str, Tone] = {SAME: "good", PRECISION: "warn", DIFFERENT: "bad", UNKNOWN: "warn"}

NOTHING = (
    "nothing was recorded: no process called a module, `backward` or an optimizer of PyTorch "
    "(or none that has both torch and offramp); see: offramp doctor"
)


def recorded_lines(ranks: Sequence[Recording]) -> list[Line]:
    """What one run left, of all its ranks."""
    first = ranks[0]
    size = sum(rank.path.stat().st_size for rank in ranks)
    losses = [loss for loss in first.losses.tolist() if loss == loss]
    told = f"{plural(len(first.steps), 'step')}, {len(first.detailed)} of them in detail"
    files = f"{plural(len(ranks), 'file')}, {format_bytes(size)}"
    lines = [
        Line("device", str(first.config["machine"]["device"])),
        Line("steps", f"{told}; {plural(len(first.kinds), 'module')}"),
    ]
    if losses:
        lines.append(
            Line("loss", f"{losses[0]:.6g} in the first step, {losses[-1]:.6g} in the last")
        )
    else:
        lines.append(Line("loss", "none: the program called no `backward`", "warn"))
    lines.append(Line("size", files))
    lines += [Line("note", note, "warn") for rank in ranks for note in rank.notes]
    lines += [Line("flaw", f"{r.path.name} is {r.flaw}", "warn") for r in ranks if r.flaw]
    return lines


def title(found: Compared) -> str:
    """What was compared."""
    return f"offramp compare: {found.devices[0]} and {found.devices[1]}"


def lines(found: Compared) -> list[Line]:
    """The verdict, where the runs part, and what both rest on."""
    verdict = found.verdict
    said = verdict.verdict + (f": {verdict.kind}" if verdict.kind else "")
    told = [Line("verdict", said, TONES[verdict.verdict])]
    place = verdict.place
    if place is not None:
        told.append(Line("where", where(verdict)))
    if found.ranks > 1:
        told.append(Line("rank", f"{found.rank}, of {found.ranks} that were judged"))
    told += [Line("missing", text, "warn") for text in verdict.missing]
    if verdict.judged:
        worst = f"; largest error {times(verdict.worst)} its floor" if verdict.worst else ""
        of = f"{plural(verdict.judged, 'tensor')} in {plural(verdict.steps, 'step')}"
        told.append(Line("judged", of + (worst or "; all are equal to the bit")))
        told.append(Line("floor", verdict.floor))
    told.append(Line("loss", curve(verdict)))
    labels = ["not the chip", *[""] * len(verdict.differences)]
    for label, difference in zip(labels, verdict.differences, strict=False):
        since = f", from step {difference.step} on" if difference.step >= 0 else ""
        tone: Tone = "warn" if difference.excludes else "plain"
        told.append(Line(label, f"{difference.what}: {difference.text}{since}", tone))
    told += [Line("note", note, "warn") for note in verdict.notes]
    return told


def where(verdict: Verdict) -> str:
    """Step, module and pass, and how far apart the tensor is."""
    place = verdict.place
    if place is None:
        return "nowhere"
    kinds = {row.name: row.kind for row in verdict.modules}
    kind = f" ({kinds[place.module]})" if kinds.get(place.module) else ""
    words = [f"step {place.step}"]
    if place.module:
        words.append(f"{place.module}{kind}")
    if place.pass_name:
        words.append(place.pass_name)
    said = f"{', '.join(words)}: {place.tensor}"
    if place.others:
        said += f"; it may as well be {' or '.join(place.others)}"
    if verdict.times:
        said += f"; {verdict.error:.2g} of its size, {times(verdict.times)} the noise floor"
    return said


def times(value: float) -> str:
    """`1,230 times`."""
    if math.isinf(value):
        return "infinitely many times"
    return f"{value:.1f} times" if value < 100 else f"{value:,.0f} times"


def curve(verdict: Verdict) -> str:
    """The paired difference of the loss curves in words."""
    curves = verdict.curves
    if curves is None:
        return "fewer than 8 steps have a finite loss in both: no interval"
    said = (
        f"second less first {curves.mean:+.3g} ({curves.low:+.3g} to {curves.high:+.3g} at 95 %) "
        f"over {plural(curves.steps, 'step')}, {curves.relative:+.2%} of the loss"
    )
    if curves.within:
        return f"{said}; within the margin of {curves.margin:.3g}"
    if curves.steps_needed is not None:
        return (
            f"{said}; about {plural(curves.steps_needed, 'step')} would settle whether it is "
            + (f"within the margin of {curves.margin:.3g}")
        )
    return f"{said}; beyond the margin of {curves.margin:.3g}"
