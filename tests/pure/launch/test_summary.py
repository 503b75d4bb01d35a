"""Records are added up, and what is wrong with them is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offramp.launch.summary import merge, read_records

RUN: dict[str, Any] = {"problems": []}


def record(pid: int = 1, **changes: Any) -> dict[str, Any]:
    """A complete record, as the schema of the launch layer describes it."""
    base = {
        "schema": 1,
        "pid": pid,
        "rank": None,
        "argv": ["train.py"],
        "chip": "cpu",
        "torch": "2.13.0+cpu",
        "started_unix_s": 100.0 + pid,
        "saved_unix_s": 200.0,
        "wall_s": 1.5,
        "finished": True,
        "problem": None,
        "devices": [],
        "ops": {},
        "dtypes": {},
        "names": [],
        "refused": [],
        "defaults": [],
        "compiled": [],
        "missing_ops": [],
        "arithmetic": [],
        "unknown_formats": [],
    }
    return {**base, **changes}


def device(index: int, allocated: int, reserved: int) -> dict[str, int]:
    return {
        "index": index,
        "capacity_bytes": 100,
        "peak_allocated_bytes": allocated,
        "peak_reserved_bytes": reserved,
        "allocated_bytes": 0,
    }


def save(folder: Path, *rows: dict[str, Any]) -> None:
    (folder / "processes").mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        (folder / "processes" / f"{row['pid']}-{number}.json").write_text(json.dumps(row))


def test_records_come_in_the_order_of_their_start(tmp_path: Path) -> None:
    save(tmp_path, record(3), record(1), record(2))
    (tmp_path / "processes" / ".9-9.json.9.tmp").write_text("half a fi")
    found, problems = read_records(tmp_path)
    assert [row["pid"] for row in found] == [1, 2, 3]
    assert problems == []


def test_no_folder_is_no_record(tmp_path: Path) -> None:
    assert read_records(tmp_path) == ([], [])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 300))
def test_a_record_that_is_cut_short_is_left_out_and_told(tmp_path: Path, length: int) -> None:
    whole = json.dumps(record(1))
    assert length < len(whole)
    save(tmp_path, record(2))
    (tmp_path / "processes" / "1-7.json").write_text(whole[:length])
    found, (problem,) = read_records(tmp_path)
    assert [row["pid"] for row in found] == [2]
    assert "1-7.json" in problem


@pytest.mark.parametrize(
    ("flaw", "word"),
    [
        ({"schema": 2}, "schema"),
        ({"ops": []}, "ops"),
        ({"devices": None}, "devices"),
        ({"wall_s": "long"}, "wall_s"),
    ],
)
def test_a_record_of_another_form_is_left_out_and_told(
    tmp_path: Path, flaw: dict[str, Any], word: str
) -> None:
    save(tmp_path, record(1, **flaw))
    found, (problem,) = read_records(tmp_path)
    assert found == []
    assert word in problem


def test_processes_that_never_finished_are_told_in_one_line(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    save(
        tmp_path,
        record(os.getpid(), finished=False),
        record(child.pid, finished=False, rank=1),
        record(1, problem="counting failed: KeyError: 'x'"),
    )
    _, problems = read_records(tmp_path)
    assert problems[0] == "process 1: counting failed: KeyError: 'x'"
    assert problems[1].startswith(f"still running: process {os.getpid()};")
    assert problems[2].startswith(f"killed before its last record: process {child.pid} (rank 1);")


COUNTS = st.dictionaries(st.sampled_from(["aten::mm", "aten::add", "aten::mul"]), st.integers(1, 9))


@given(st.lists(COUNTS, max_size=5))
def test_counts_are_summed(counts: list[dict[str, int]]) -> None:
    rows = [
        record(
            n,
            ops=ops,
            dtypes=ops,
            names=[{"name": k, "class": "same", "count": v} for k, v in ops.items()],
        )
        for n, ops in enumerate(counts)
    ]
    total: Counter[str] = Counter()
    for ops in counts:
        total.update(ops)
    summary = merge(rows, RUN)  # type: ignore[arg-type]
    assert summary["ops"] == summary["dtypes"] == dict(total)
    assert {row["name"]: row["count"] for row in summary["names"]} == dict(total)
    assert list(summary["ops"].values()) == sorted(total.values(), reverse=True)
    assert [row["ops"] for row in summary["processes"]] == [sum(ops.values()) for ops in counts]


def test_rows_that_differ_in_reason_stay_apart() -> None:
    refused = [{"name": "f", "reason": why, "count": 1} for why in "aab"]
    summary = merge([record(refused=refused)], RUN)  # type: ignore[list-item]
    assert [(row["reason"], row["count"]) for row in summary["refused"]] == [("a", 2), ("b", 1)]


def test_peaks_are_those_of_the_fullest_process() -> None:
    rows = [
        record(1, devices=[device(0, 60, 70), device(1, 0, 0)]),
        record(2, devices=[device(0, 50, 90), device(1, 0, 0)]),
        record(3),
    ]
    zero, one = merge(rows, RUN)["devices"]  # type: ignore[arg-type]
    assert zero == {
        "index": 0,
        "capacity_bytes": 100,
        "peak_allocated_bytes": 60,
        "peak_reserved_bytes": 90,
        "processes": 2,
        "together_bytes": 110,
    }
    assert (one["processes"], one["peak_allocated_bytes"]) == (0, 0)


def test_formats_and_versions_are_sets() -> None:
    rows = [
        record(1, unknown_formats=["float64", "int4"], torch=None),
        record(2, unknown_formats=["float64"]),
    ]
    summary = merge(rows, RUN)  # type: ignore[arg-type]
    assert summary["unknown_formats"] == ["float64", "int4"]
    assert summary["torch"] == ["2.13.0+cpu"]
