"""A rehearsal in words. Computes nothing but sums and shares of what was found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from offramp.report import spending
from offramp.report.lines import Line, listed, plural
from offramp.tape.prices import short_name
from offramp.units import format_bytes, format_flops, format_seconds

TOP = 5
SMALLEST = 0.0005  # of a step: what is less is not worth a word


def title(summary: Mapping[str, Any]) -> str:
    """The heading."""
    return f"offramp rehearse: {summary['cluster']}, {plural(summary['world'], 'rank')}"


def lines(summary: Mapping[str, Any]) -> list[Line]:
    """The result, the answers that a user asks for first."""
    mid = summary["step_s"]["mid"]
    longest = summary["ranks"][0]
    out = [_memory(summary), _step(summary), *_mfu(summary), *spending.lines(summary)]
    out.append(Line("time", _split(summary["split"], mid)))
    out += _by_chip(summary)
    for label, rows in (
        ("operators", _operators(longest["operators"])),
        ("collectives", _collectives(longest["collectives"])),
    ):
        shown = [
            f"{name} {seconds / mid:.1%}" for name, seconds in rows if seconds > SMALLEST * mid
        ]
        if shown:
            out.append(Line(label, listed(shown, TOP)))
    return out + list(_notes(summary))


def in_pieces(memory: Mapping[str, Any]) -> str:
    """Why what does not fit does not, where it is less than the chip has."""
    if memory["allocated_bytes"] > memory["capacity_bytes"]:
        return ""
    return "; what is free of it lies in pieces that are too small"


def _memory(summary: Mapping[str, Any]) -> Line:
    worst = summary["memory"]
    capacity, allocated = worst["capacity_bytes"], worst["allocated_bytes"]
    parts = sorted(worst["by_category"].items(), key=lambda item: (-item[1], item[0]))
    holds = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size)
    where = f" on rank {worst['rank']}" if len(summary["ranks"]) > 1 else ""
    said = (
        f"{format_bytes(allocated)} allocated at peak{where} ({holds}), "
        f"{format_bytes(worst['reserved_bytes'])} reserved, of {format_bytes(capacity)}"
    )
    if not summary["fits"]:
        missing = format_bytes(summary["shortfall_bytes"])
        return Line("memory", f"does not fit by {missing}: {said}{in_pieces(worst)}", "bad")
    if times := summary["given_back"]:
        back = f"given back {plural(times, 'time')} in {plural(summary['steps_played'], 'step')}"
        return Line("memory", f"fits, with cached memory {back}: {said}", "warn")
    return Line("memory", f"fits: {said}", "good")


def _step(summary: Mapping[str, Any]) -> Line:
    step, steps = summary["step_s"], summary["steps"]
    span = f"{format_seconds(step['low'])} to {format_seconds(step['high'])}"
    over = (
        "the whole program, in which there is one step"
        if steps["is_whole"]
        else f"mean of {plural(steps['measured'], 'step')} after {steps['warm_up']} to warm up"
    )
    return Line("step", f"{format_seconds(step['mid'])} ({span}), {over}")


def _mfu(summary: Mapping[str, Any]) -> Iterator[Line]:
    if summary["mfu"] is None:
        return
    peak = format_flops(summary["peak_flops"])
    yield Line("MFU", f"{summary['mfu']:.1%} of {peak}: {summary['mfu_convention']}")


def _split(split: Mapping[str, Any], step_s: float) -> str:
    parts = dict(split["compute_s"])
    parts |= {
        "exposed communication": sum(split["exposed_communication_s"].values()),
        "bubble": split["bubble_s"],
        "host": split["host_s"],
        "idle": split["idle_s"],
    }
    shares = sorted(parts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {s / step_s:.1%}" for name, s in shares if s > SMALLEST * step_s)


def _by_chip(summary: Mapping[str, Any]) -> Iterator[Line]:
    """Where chips differ: where the step goes on the first rank of each."""
    first: dict[str, Mapping[str, Any]] = {}
    for rank in summary["ranks"]:
        first.setdefault(str(rank["chip"]), rank)
    for chip, rank in first.items() if len(first) > 1 else ():
        said = _split(rank["split"], summary["step_s"]["mid"])
        memory = rank["memory"]
        held = (
            f"{format_bytes(memory['allocated_bytes'])} of {format_bytes(memory['capacity_bytes'])}"
        )
        yield Line("on", f"{chip} (rank {rank['rank']}): {said}; {held}")


def _operators(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """Seconds by short name, longest first."""
    return _summed((short_name(row["name"]), row["seconds"]) for row in rows)


def _collectives(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """Seconds under way by name and size of the group, longest first."""
    return _summed(
        (
            row["name"]
            if row["name"] in ("send", "recv")
            else f"{row['name']} over {row['ranks']}",
            row["seconds"],
        )
        for row in rows
    )


def _summed(rows: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    totals: dict[str, float] = {}
    for name, seconds in rows:
        totals[name] = totals.get(name, 0.0) + seconds
    return sorted(totals.items(), key=lambda item: (-item[1], item[0]))


def _notes(summary: Mapping[str, Any]) -> Iterator[Line]:
    """What the figures rest on, where there is something to say."""
    played = [str(rank["rank"]) for rank in summary["ranks"]]
    if summary["world"] > len(played):
        yield Line("played", f"{_ranks(played)}; every other rank does as one of them")
    if summary["declared"]:
        said = [f"{name} ({count:,})" for name, count in summary["declared"].items()]
        yield Line("declared", f"not computed, and answered plausibly: {listed(said, 6)}")
    if summary["refused"]:
        said = [f"{short_name(name)}: {why}" for name, why in summary["refused"].items()]
        yield Line("refused", listed(said, 3), "warn")
    steps = summary["steps"]
    if steps["is_whole"]:
        yield Line("steps", "the program made one step; warm-up is not left out", "warn")
    elif not steps["is_stable"]:
        yield Line("steps", "no two steps are alike; play more with --steps", "warn")
    if summary["is_truncated"]:
        yield Line("tape", "the end of a tape is missing", "warn")


def _ranks(played: Sequence[str]) -> str:
    return f"rank {played[0]}" if len(played) == 1 else f"ranks {listed(played, 8)}"
