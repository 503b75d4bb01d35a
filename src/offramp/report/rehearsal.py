"""A rehearsal in words. Computes nothing but shares of what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offramp.report.lines import Line, listed
from offramp.units import format_bytes, format_flops, format_seconds

TOP = 5


def title(summary: Mapping[str, Any]) -> str:
    """The heading."""
    return f"offramp rehearse: {summary['cluster']}, {summary['world']} ranks"


def fits(summary: Mapping[str, Any]) -> bool:
    """Whether every rank's memory holds what it allocated."""
    return all(_missing(rank["memory"]) <= 0 for rank in summary["ranks"])


def lines(summary: Mapping[str, Any]) -> list[Line]:
    """The result, the answers that a user asks for first."""
    step = summary["step_s"]
    mid = step["mid"]
    out = [
        _memory_line(summary),
        Line(
            "step",
            f"{format_seconds(mid)} ({format_seconds(step['low'])} to "
            f"{format_seconds(step['high'])}), over {summary['steps']['measured']} steps",
        ),
    ]
    if summary["mfu"] is not None:
        out.append(
            Line(
                "MFU",
                f"{summary['mfu']:.1%} of {format_flops(summary['peak_flops'])}: "
                f"{summary['mfu_convention']}",
            )
        )
    out.append(Line("time", _split(summary["split"], mid)))
    out += _tops(summary["ranks"][0], mid)
    if summary["declared"]:
        said = [f"{name} ({count})" for name, count in summary["declared"].items()]
        out.append(Line("declared", f"not computed, and answered plausibly: {listed(said, 6)}"))
    if not summary["steps"]["is_stable"]:
        out.append(Line("steps", "no two steps are alike; play more with --steps", "warn"))
    return out


def _missing(memory: Mapping[str, Any]) -> int:
    return int(memory["allocated_bytes"] - memory["capacity_bytes"])


def _memory_line(summary: Mapping[str, Any]) -> Line:
    worst = max((rank["memory"] for rank in summary["ranks"]), key=lambda m: m["allocated_bytes"])
    capacity, allocated = worst["capacity_bytes"], worst["allocated_bytes"]
    parts = sorted(worst["by_category"].items(), key=lambda item: -item[1])
    holds = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size)
    said = (
        f"{format_bytes(allocated)} allocated at peak ({holds}), "
        f"{format_bytes(worst['reserved_bytes'])} reserved, of {format_bytes(capacity)}"
    )
    if _missing(worst) > 0:
        return Line("memory", f"does not fit by {format_bytes(_missing(worst))}: {said}", "bad")
    if worst["reserved_bytes"] > capacity:
        return Line("memory", f"fits only where cached memory is given back: {said}", "warn")
    return Line("memory", f"fits: {said}", "good")


def _split(split: Mapping[str, Any], step_s: float) -> str:
    parts = {f"{kind}": seconds for kind, seconds in split["compute_s"].items()}
    exposed = sum(split["exposed_communication_s"].values())
    parts |= {
        "exposed communication": exposed,
        "bubble": split["bubble_s"],
        "host": split["host_s"],
        "idle": split["idle_s"],
    }
    shares = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {s / step_s:.1%}" for name, s in shares if s > 0.0005 * step_s)


def _tops(rank: Mapping[str, Any], step_s: float) -> list[Line]:
    collectives = sorted(rank["collectives"], key=lambda row: -row["seconds"])
    out = []
    for label, rows in (("operators", rank["operators"]), ("collectives", collectives)):
        shown = [f"{row['name']} {row['seconds'] / step_s:.1%}" for row in rows[:TOP]]
        if shown:
            out.append(Line(label, ", ".join(shown)))
    return out
