"""Predictions against measurements, in words."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from offramp.report.lines import Line, listed, plural
from offramp.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from offramp.validate.mapping import Case
    from offramp.validate.score import Scored, Summary

REASONS = 8
MEMORY = "memory"  # it has no interval


def lines(
    rows: Sequence[Scored], failed: Mapping[str, str], left_out: Mapping[str, str]
) -> list[Line]:
    """All that was compared: in sum, by source, by chip, memory, choices, and what is missing."""
    from offramp.validate import score

    counted = [row for row in rows if row.counted]
    times = [row for row in counted if not row.is_memory]
    out = [_line("step", score.summarize(times))]
    if times:
        out.append(Line("", "each by factors of training found without all runs of its makers"))
        out.append(_line("without factors", score.summarize(score.as_benchmarks_say(times))))
        out.append(_line("within sources", score.summarize(score.within_sources(times))))
    if apart := score.repeated(times):
        most = f"90 % by at most {score.quantile(apart, 0.9):.1%}"
        said = f"{plural(len(apart), 'pair')} of rows: apart by {median(apart):.1%} in the median"
        out.append(Line("measured twice", f"{said}, {most}"))
    for label, name in (("source", "source"), ("chip", "chip")):
        for value in sorted({getattr(row, name) for row in times}):
            several = [row for row in times if getattr(row, name) == value]
            out.append(_line(f"{label} {value[:38]}", score.summarize(several)))
    out.append(_line(MEMORY, score.summarize([row for row in counted if row.is_memory])))
    refused = sum(not row.fits for row in counted)
    out.append(Line("fits", f"{plural(refused, 'run')} of {len(counted):,} said not to fit, did"))
    if lost := score.regret(times):
        said = f"median {lost.median:.1%}, at worst {lost.worst:.1%} slower than the best measured"
        out.append(Line("choice", f"the layout predicted best, of {lost.jobs:,} jobs: {said}"))
    uncounted = Counter(what for row in rows if not row.counted for what in row.unknown)
    if uncounted:
        out.append(Line("not counted", _reasons(uncounted, len(rows) - len(counted)), "warn"))
    if failed:
        words = Counter(error.splitlines()[-1].strip()[:90] for error in failed.values())
        out.append(Line("failed", _reasons(words, len(failed)), "warn"))
    out.append(Line("left out", _reasons(Counter(left_out.values()), len(left_out))))
    return out


def row_line(row: Scored) -> Line:
    """One row: measured, predicted, error."""
    form = format_bytes if row.is_memory else format_seconds
    mark = "" if row.counted else f"; not counted: {', '.join(row.unknown)} unknown"
    said = f"{form(row.predicted)} for {form(row.measured)} measured, {row.error:+.1%}{mark}"
    return Line(row.id, said if row.fits else f"{said}; said not to fit")


def table(rows: Sequence[Scored]) -> str:
    """Every row as CSV: seconds of a step or bytes, and each part of a step as a share of it."""
    parts = sorted({part for row in rows for part in row.shares})
    names = "id source chip model of measured predicted low high without_factors error counted"
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow([*names.split(), "unknown", "fits", *(f"share_{part}" for part in parts)])
    for row in sorted(rows, key=lambda row: (row.source, row.id)):
        spans = (row.measured, row.predicted, row.low, row.high, row.plain)
        out.writerow(
            [
                *(row.id, row.source, row.chip, row.model, MEMORY if row.is_memory else "step"),
                *(f"{value:.4g}" for value in spans),
                *(f"{row.error:.3f}", _yes(row.counted), "; ".join(row.unknown), _yes(row.fits)),
                *(f"{row.shares[part]:.3f}" if part in row.shares else "" for part in parts),
            ]
        )
    return text.getvalue()


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def listed_lines(cases: Sequence[Case], left_out: Mapping[str, str]) -> list[Line]:
    """Which rows have a job."""
    per_source = Counter(case.row.source_title for case in cases)
    out = [Line(plural(count, "row"), source) for source, count in per_source.most_common()]
    return [*out, Line("left out", _reasons(Counter(left_out.values()), len(left_out)))]


def _line(label: str, found: Summary | None) -> Line:
    if found is None:
        return Line(label, "nothing to compare")
    said = (
        f"{plural(found.rows, 'row')}: median error {found.median:.1%}, 90 % within "
        f"{found.ninetieth:.1%}, {found.near:.0%} within 10 %; predicted over measured "
        f"{found.ratio:.2f}"
    )
    inside = f"; {found.inside:.0%} inside the interval" if label != MEMORY else ""
    return Line(label, said + inside)


def _reasons(words: Mapping[str, int], total: int) -> str:
    ordered = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    return f"{plural(total, 'row')}: " + listed([f"{w} ({n})" for w, n in ordered], REASONS)
