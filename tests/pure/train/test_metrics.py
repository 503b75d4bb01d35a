"""Metrics on disk, the pace of a run by the clock, and folders of runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from offramp.errors import UsageError
from offramp.train import folder, pace, reading
from offramp.train.job import Job
from offramp.train.metrics import Metrics, read_lines


def test_a_resumed_run_drops_what_came_after(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = Metrics(path, first_step=0)
    for step in range(1, 6):
        first.write("step", step, {"loss": float(step)})
    first.close()
    with open(path, "a") as file:
        file.write('{"kind": "step", "st')  # the line that a kill cut off
    second = Metrics(path, first_step=3)
    second.write("step", 4, {"loss": 40.0})
    second.close()
    assert [(r["step"], r["loss"]) for r in read_lines(path)] == [
        (1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0),
    ]  # fmt: skip


def test_what_is_not_finite_is_null_in_json(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", first_step=0)
    metrics.write("step", 1, {"loss": math.nan, "gradient_norm": math.inf, "lr": 0.5})
    metrics.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line, parse_constant=lambda text: pytest.fail(text))
    assert record == {"kind": "step", "step": 1, "loss": None, "gradient_norm": None, "lr": 0.5}


def test_a_run_by_the_clock_ends_at_about_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of half a second after a slow first one, in a time that the test moves."""
    now_s = 100.0
    monkeypatch.setattr(pace.time, "monotonic", lambda: now_s)
    run = pace.Pace(60.0, reserve_share=0.0)
    step, total = 0, None
    while total is None:
        now_s += 5.0 if step == 0 else 0.5
        step += 1
        total = run.settle(step)
    assert step == pace.MEASURED_STEPS
    assert 5.0 + 0.5 * (total - 1) == pytest.approx(60.0, abs=0.5)


def test_a_limit_shorter_than_a_step_ends_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(pace.time, "monotonic", lambda: now_s)
    run = pace.Pace(1.0)
    now_s = 30.0
    assert run.settle(1) == 1


def test_new_runs_have_new_folders(tmp_path: Path) -> None:
    made = [folder.create(Job(), parent=tmp_path) for _ in range(3)]
    assert len({one.path for one in made}) == 3
    for one in made:
        opened, job = folder.open_folder(one.path)
        assert (opened, job.out) == (one, str(one.path))


def test_what_decides_the_weights_may_not_change(tmp_path: Path) -> None:
    job = reading.change(Job(), {"out": str(tmp_path / "run")})
    folder.create(job)
    free = {"chip.name": "cpu", "train.minutes": 5.0, "layout.micro_batch": 4, "watch.spike": 3.0}
    folder.create(reading.change(job, free))
    with pytest.raises(UsageError, match=r"data\.sequence was 256, is 128; give another --out"):
        folder.create(reading.change(job, {"data.sequence": 128}))


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    made = folder.create(Job(), parent=tmp_path)
    with made.lock(), pytest.raises(UsageError, match="another process trains in"):
        made.lock()
    made.lock().close()
