"""The paired test of loss curves: its interval covers the truth as often as it says."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.compare import curves


@pytest.mark.parametrize(
    ("freedom", "quantile"),  # tables of Student's t, 97.5 %
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (19, 2.093), (100, 1.984)],
)
def test_students_quantiles(freedom: int, quantile: float) -> None:
    assert curves.student(freedom) == pytest.approx(quantile, rel=6e-3)


def test_the_interval_covers_the_truth_where_steps_hang_together() -> None:
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(400):
        noise = np.zeros(400)
        for step in range(1, 400):
            noise[step] = 0.5 * noise[step - 1] + generator.standard_normal()
        found = curves.compare(np.full(400, 100.0), 100.0 + 0.25 + noise, 0.01)
        assert found is not None
        covered += found.low <= 0.25 <= found.high
    assert covered / 400 > 0.90  # of 95 %: blocks are nearly independent, not wholly


def test_equal_curves_are_within_any_margin() -> None:
    a = np.linspace(4, 2, 50)
    found = curves.compare(a, a, 1e-6)
    assert found is not None
    assert (found.mean, found.within, found.steps_needed) == (0, True, None)


def test_steps_needed_follow_the_root() -> None:
    generator = np.random.default_rng(1)
    a = np.full(100, 1.0)
    noise = generator.standard_normal(100)
    found = curves.compare(a, a + 0.1 * (noise - noise.mean()), 0.005)
    assert found is not None
    assert not found.within
    half = (found.high - found.low) / 2
    assert found.steps_needed == pytest.approx(100 * (half / 0.005) ** 2, rel=0.02)


def test_a_large_difference_is_settled() -> None:
    a = np.linspace(4, 2, 50)
    found = curves.compare(a, a + 0.5, 0.005)
    assert found is not None
    assert (found.within, found.steps_needed) == (False, None)
    assert found.low > 0.4


def test_few_steps_and_gaps_have_no_interval() -> None:
    assert curves.compare(np.ones(7), np.ones(7), 0.01) is None
    gaps = np.asarray([1.0, np.nan] * 8)
    found = curves.compare(gaps, np.ones(16), 0.01)
    assert found is not None
    assert found.steps == 8
