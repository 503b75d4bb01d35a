"""What a recording holds, and what a comparison found, as labelled lines."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.record.recording import Recording
from offramp.report.lines import Line, plural
from offramp.units import format_bytes

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
