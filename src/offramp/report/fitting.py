"""What would make a job fit, in words: settings that were rehearsed, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from offramp.report.lines import Line, plural
from offramp.units import format_bytes, format_seconds


def hint(is_train: bool) -> Line:
    """What a user can ask for where a program does not fit."""
    if is_train:
        return Line("way out", "--fit rehearses other settings and names those that fit")
    said = "rehearses the command with each value of one of its flags"
    return Line("way out", f"--vary '--batch-size=16,8,4' {said}")


def lines(outcome: Mapping[str, Any]) -> Iterator[Line]:
    """A line for each setting that was rehearsed, those that fit first."""
    tried = outcome["tried"]
    good = [one for one in tried if one["fits"]]
    for one in good:
        yield Line("fits", f"{one['change']}: {_figures(one)}", "good")
    if not good:
        count = plural(len(tried), "other setting")
        none = f"nothing that was rehearsed ({count})"
        said = none if tried else "no setting of the job is left that could make it fit"
        yield Line("fits", said, "bad")
    for one in tried:
        if one["fits"]:
            continue
        if one["problem"]:
            yield Line("failed", f"{one['change']}: {_short(one['problem'])}", "warn")
        else:
            missing = format_bytes(one["shortfall_bytes"])
            yield Line("does not", f"{one['change']}: short by {missing}")
    if outcome["is_cut"]:
        count = plural(len(tried), "rehearsal")
        yield Line("search", f"ended after {count}; --most-tries allows more", "warn")


def _figures(one: Mapping[str, Any]) -> str:
    step = one["step_s"]
    span = f"{format_seconds(step['low'])} to {format_seconds(step['high'])}"
    peak = f"{format_bytes(one['peak_bytes'])} of {format_bytes(one['capacity_bytes'])} at peak"
    back = ", where cached memory is given back" if one["given_back"] else ""
    return f"{peak}{back}, step {format_seconds(step['mid'])} ({span})"


def _short(problem: str) -> str:
    """The first and the last line of what went wrong."""
    rows = [row.strip() for row in problem.strip().splitlines()] or [""]
    return rows[0] if len(rows) == 1 else f"{rows[0]} {rows[-1]}"
