"""The words and the picture of a training run."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.report import training

SUMMARY: dict[str, Any] = {
    "ended": "done",
    "signal": None,
    "step": 50,
    "total": 50,
    "loss": 1.5,
    "held_out_loss": 2.0,
    "tokens_per_s": 1234.5,
    "mfu": None,
    "mfu_because": "nothing is known",
    "memory_bytes": 2**30,
    "wall_s": 75.0,
    "folder": "runs/a",
    "checkpoint": "runs/a/checkpoints/step-00000050",
    "model": "runs/a/model",
    "repeat": "repeat it",
    "resume": "resume it",
}


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=200), st.integers(1, 80))
def test_a_sparkline_fits_and_has_its_extremes(values: list[float], width: int) -> None:
    bars = training.sparkline(values, width)
    finite = [v for v in values if abs(v) < float("inf")]
    assert len(bars) == min(width, len(finite))
    assert set(bars) <= set(training.BARS)


def test_bars_rise_with_the_values() -> None:
    assert training.sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == training.BARS
    assert training.sparkline([0.0, 0.0, 8.0, 8.0], 2) == "▁█"
    assert training.sparkline([], 10) == ""


def test_a_summary_says_what_is_not_known() -> None:
    said = {line.label: line.text for line in training.lines(SUMMARY, [3.0, 2.0, 1.5])}
    assert said["ended"] == "after step 50 of 50, 1 min 15 s"
    assert "perplexity 7.39" in said["loss"]
    assert said["speed"] == "1,234 tokens/s; MFU unknown: nothing is known"
    assert said["memory"] == "1.00 GiB at peak"
    assert said["next"] == "repeat it"
    known = training.lines({**SUMMARY, "mfu": 0.412, "mfu_because": "vendor: a"}, [])
    assert any(line.text.endswith("MFU 41.2%: vendor: a") for line in known)


def test_a_stopped_run_says_how_to_go_on() -> None:
    stopped = {**SUMMARY, "ended": "stopped", "signal": "SIGTERM", "total": None, "model": None}
    said = {line.label: line.text for line in training.lines(stopped, [])}
    assert said["ended"] == "stopped by SIGTERM after step 50, 1 min 15 s; saved"
    assert said["next"] == "resume it"
    assert "model" not in said


def test_the_picture_has_a_line_a_kind(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    records = [{"kind": "step", "step": s, "loss": 5.0 / s} for s in (1, 2, 3)]
    records += [{"kind": "evaluation", "step": 3, "loss": 2.0}, {"kind": "sample", "step": 3}]
    records += [{"kind": "step", "step": 4, "loss": None}]
    assert training.draw(tmp_path / "loss.svg", records, "a run")
    root = ElementTree.parse(tmp_path / "loss.svg").getroot()
    assert root.tag.endswith("svg")
    text = (tmp_path / "loss.svg").read_text()
    assert "a run" in text
    assert [path.name for path in tmp_path.iterdir()] == ["loss.svg"]
