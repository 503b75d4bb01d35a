"""Figures of merit, against what is counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.report import validation
from offramp.report.lines import plain
from offramp.validate.score import (
    Scored,
    fitted,
    quantile,
    regret,
    summarize,
    unseen_factors,
    unseen_fit,
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


def test_a_factor_never_saw_its_own_source() -> None:
    """Two sources are predicted at half, one at a tenth: its own error does not help it."""
    rows = [row("a", 10, 5), row("b", 20, 10), row("c", 10, 1), row("c", 20, 2)]
    factors = unseen_factors(rows)
    assert factors["c"] == pytest.approx(2.0)
    assert factors["a"] == pytest.approx((2 + 10) / 2)
    after = summarize([r for r in rows if r.source == "c"], factors)
    assert after is not None
    assert after.ratio == pytest.approx(0.2)
    assert unseen_factors([row("a", 10, 5)]) == {"a": 1.0}


def test_a_fit_finds_the_factors_that_rows_were_made_with() -> None:
    """Products take 1.5 of what was predicted, memory 0.8; many rows outweigh the prior."""
    truth = {"matmul": 1.5, "memory": 0.8}
    rows = []
    for number in range(200):
        share = (number % 20 + 0.5) / 20
        measured = 10 * (truth["matmul"] * share + truth["memory"] * (1 - share))
        shares = {"matmul": share, "memory": 1 - share}
        rows.append(row(f"s{number}", measured, 10.0, shares=shares))
    found = fitted(rows)
    assert found["matmul"] == pytest.approx(1.5, abs=0.01)
    assert found["memory"] == pytest.approx(0.8, abs=0.01)
    assert found["attention"] == 1.0  # nothing is told of it
    after = summarize(unseen_fit(rows))
    assert after is not None
    assert after.ninetieth < 0.01


def test_a_fit_that_leaves_a_source_out_does_not_know_it() -> None:
    only = {"matmul": 1.0}
    rows = [row("right", 10, 10, shares=only), row("wrong", 20, 10, shares=only)]
    wrong = next(r for r in unseen_fit(rows) if r.source == "wrong")
    assert wrong.predicted == pytest.approx(10.0)


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


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_quantile_is_the_least_value_that_covers_its_share(
    values: list[float], share: float
) -> None:
    found = quantile(values, share)
    assert sum(v <= found for v in values) >= share * len(values) - 1e-9
    assert sum(v < found for v in values) < share * len(values) + 1e-9


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
