"""Figures of merit, against what is counted by hand."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.report import validation
from offramp.report.lines import plain
from offramp.validate.score import (
    Scored,
    as_benchmarks_say,
    quantile,
    regret,
    repeated,
    summarize,
    within_sources,
)

ROW = Scored("a", "s", "chip", "model", ("job",), False, 10.0, 11.0, 9.0, 12.0, True, True)


def row(source: str, measured: float, predicted: float, **change: object) -> Scored:
    made = replace(ROW, source=source, measured=measured, predicted=predicted)
    return replace(made, low=predicted * 0.9, high=predicted * 1.1, **change)


def test_the_summary_of_four_rows_counted_by_hand() -> None:
    rows = [row("s", 10, 10), row("s", 10, 9.5), row("s", 10, 12), row("s", 10, 15)]
    found = summarize(rows)
    assert found is not None
    assert found.rows == 4
    assert found.median == pytest.approx(0.125)  # of 0, 0.05, 0.2, 0.5
    assert found.ninetieth == pytest.approx(0.5)
    assert found.near == 0.5
    assert found.ratio == pytest.approx(1.1)
    assert found.inside == 0.5
    assert summarize([]) is None


def test_benchmarks_alone_let_expect_what_is_plain() -> None:
    found = summarize(as_benchmarks_say([row("s", 10, 12, plain=6.0)]))
    assert found is not None
    assert found.ratio == pytest.approx(0.6)
    assert found.inside == 0.0  # from 5.4 to 6.6: the interval goes with it


def test_regret_is_how_much_slower_the_chosen_layout_was_measured() -> None:
    rows = [
        row("s", 10, 3, job=("j",)),  # predicted best
        row("s", 8, 4, job=("j",)),  # measured best
        row("s", 5, 5, job=("alone",)),
    ]
    found = regret(rows)
    assert found is not None
    assert (found.jobs, found.median, found.worst) == (1, 0.25, 0.25)
    assert regret(rows[2:]) is None


def test_within_sources_what_a_source_has_in_common_is_no_error() -> None:
    rows = [row("a", 10, 8), row("a", 10, 10), row("a", 10, 16), row("b", 1, 7)]
    ratios = {(r.source, round(r.predicted / r.measured, 9)) for r in within_sources(rows)}
    assert ratios == {("a", 0.8), ("a", 1.0), ("a", 1.6), ("b", 1.0)}
    assert within_sources([]) == []


def test_two_measurements_of_one_layout_are_compared() -> None:
    rows = [row("s", 10, 9), row("s", 12, 9), row("s", 10, 8), row("t", 20, 9)]
    assert repeated(rows) == pytest.approx([0.2])
    said = [line.text for line in validation.lines(rows, {}, {}) if line.label == "measured twice"]
    assert said == ["1 pair of rows: apart by 20.0% in the median, 90 % by at most 20.0%"]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_quantile_is_the_least_value_that_covers_its_share(
    values: list[float], share: float
) -> None:
    found = quantile(values, share)
    assert sum(v <= found for v in values) >= share * len(values) - 1e-9
    assert sum(v < found for v in values) < share * len(values) + 1e-9


def test_a_table_has_every_row_with_its_parts() -> None:
    rows = [
        row("b", 10, 11, shares={"matmul": 0.75, "host": 0.25}),
        row("a, b", 2e9, 1e9, is_memory=True, fits=False, counted=False, unknown=("network",)),
    ]
    first, last = csv.DictReader(io.StringIO(validation.table(rows)))
    assert (first["source"], first["of"], first["measured"]) == ("a, b", "memory", "2e+09")
    assert (first["error"], first["fits"], first["counted"]) == ("-0.500", "no", "no")
    assert (first["unknown"], first["share_matmul"]) == ("network", "")
    assert (last["predicted"], last["error"], last["counted"]) == ("11", "0.100", "yes")
    assert (last["share_host"], last["share_matmul"]) == ("0.250", "0.750")


def test_the_report_counts_only_what_was_stated() -> None:
    rows = [
        row("first", 10, 11),
        row("second", 10, 30, counted=False, unknown=("network",)),
        row("first", 2e9, 1e9, is_memory=True, fits=False),
    ]
    text = plain("t", validation.lines(rows, {"x": "failed\nbadly"}, {"y": "a mixture"}), 200)
    assert "step" in text
    assert "1 row: median error 10.0%" in text
    assert "1 run of 2 said not to fit, did" in text
    assert "network (1)" in text
    assert "badly (1)" in text
    assert "a mixture (1)" in text
    assert "second" not in text
    assert "+200.0%; not counted: network unknown" in plain(
        "t", [validation.row_line(rows[1])], 200
    )
