"""A training run in words and pictures. Computes nothing but where marks go."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp import units
from offramp.report.lines import Line

BARS = "▁▂▃▄▅▆▇█"


def step_line(step: int, total: int | None, values: Mapping[str, float]) -> str:
    """One step in one line."""
    of = f"/{total}" if total else ""
    return (
        f"step {step}{of}  loss {values['loss']:.4f}  gradient norm {values['gradient_norm']:.2f}  "
        f"lr {values['learning_rate']:.2e}  {values['tokens_per_s']:,.0f} tokens/s"
    )


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as a row of bars, means of as many as share a column; empty for none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    largest = max(abs(value) for value in finite) or 1.0
    finite = [value / largest for value in finite]  # so that no sum overflows
    width = min(width, len(finite))
    edges = [round(column * len(finite) / width) for column in range(width + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(BARS[min(7, int(8 * (mean - low) / span))] for mean in means)


def title(summary: Mapping[str, Any]) -> str:
    """The heading of a run's summary."""
    return f"offramp train: {summary['folder']}"


def lines(summary: Mapping[str, Any], losses: Sequence[float]) -> list[Line]:
    """The closing summary; `losses` are those of the steps on record, in order."""
    stopped = summary["ended"] == "stopped"
    of = f" of {summary['total']}" if summary["total"] else ""
    ended = f"after step {summary['step']}{of}, {units.format_seconds(summary['wall_s'])}"
    if stopped:
        ended = f"stopped by {summary['signal']} {ended}; saved"
    out = [Line("ended", ended, "warn" if stopped else "good")]
    if summary["loss"] is not None:
        held_out = summary["held_out_loss"]
        said = f"{summary['loss']:.4f} nats a token over the last steps"
        if held_out is not None:
            said += f"; {held_out:.4f} on held-out text (perplexity {math.exp(held_out):.2f})"
        out.append(Line("loss", said))
        out.append(Line("", sparkline(losses, 60)))
    if summary["tokens_per_s"]:
        mfu = summary["mfu"]
        use = f"MFU {mfu:.1%}" if mfu is not None else "MFU unknown"
        out.append(
            Line(
                "speed", f"{summary['tokens_per_s']:,.0f} tokens/s; {use}: {summary['mfu_because']}"
            )
        )
    out.append(Line("memory", f"{units.format_bytes(summary['memory_bytes'])} at peak"))
    out.append(Line("saved", f"{summary['checkpoint']}"))
    if summary["model"]:
        out.append(Line("model", f"{summary['model']}, a Hugging Face folder"))
    out.append(Line("next", summary["resume"] if stopped else summary["repeat"]))
    return out


def draw(path: Path, records: Sequence[Mapping[str, Any]], caption: str) -> bool:
    """The loss and the held-out loss over the steps, as an SVG file; whether it could be drawn.

    records   lines of metrics.jsonl
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    styles: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("step", "training", {"linewidth": 1.0, "color": "#4c78a8"}),
        ("evaluation", "held out", {"linewidth": 1.5, "marker": "o", "color": "#f58518"}),
    )
    for kind, label, style in styles:
        points = [
            (r["step"], r["loss"])
            for r in records
            if r["kind"] == kind and r.get("loss") is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.set_title(caption)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    scratch = path.with_name(f".{path.name}.tmp")
    figure.savefig(scratch, format="svg")
    scratch.replace(path)
    return True
