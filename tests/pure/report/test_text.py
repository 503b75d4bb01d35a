"""The summary of a run as users read it."""

from __future__ import annotations

import io
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.launch.schema import Summary
from offramp.report import text
from offramp.report.lines import Line, plain, plural, styled

GIB = 2**30


def device(index: int, peak: int, **changes: int) -> dict[str, int]:
    base = {
        "index": index,
        "capacity_bytes": 8 * GIB,
        "peak_allocated_bytes": peak,
        "peak_reserved_bytes": peak,
        "processes": 1 if peak else 0,
        "together_bytes": peak,
    }
    return {**base, **changes}


def process(**changes: Any) -> dict[str, Any]:
    base = {"pid": 1, "rank": None, "argv": [], "wall_s": 1.0, "ops": 1, "finished": True}
    return {**base, **changes}


def summary(**changes: Any) -> Summary:
    """A healthy run of one process."""
    base = {
        "schema": 1,
        "run_dir": "runs/one",
        "command": ["python", "train.py", "--name", "two words"],
        "chip": {
            "name": "x1",
            "title": "Maker X1",
            "device_type": "cuda",
            "count": 1,
            "memory_bytes": 8 * GIB,
        },
        "started_unix_s": 0.0,
        "wall_s": 83.2,
        "exit_status": 0,
        "signal": None,
        "torch": ["2.13.0+cpu"],
        "processes": [process()],
        "devices": [device(0, 2 * GIB, peak_reserved_bytes=3 * GIB)],
        "ops": {"aten::add": 250, "aten::mm": 1000, "aten::mul": 30, "aten::relu": 20},
        "dtypes": {"int64": 13, "float32": 1287},
        "names": [
            {"name": "torch.cuda.synchronize", "class": "same", "count": 40},
            {"name": "torch.cuda.is_available", "class": "emulated", "count": 2},
            {"name": "torch.Tensor.cuda", "class": "same", "count": 9},
        ],
        "refused": [],
        "defaults": [],
        "compiled": [],
        "missing_ops": [],
        "unknown_formats": [],
        "problems": [],
    }
    return {**base, **changes}  # type: ignore[typeddict-item, return-value]


HEALTHY = """\
offramp run: python train.py --name 'two words'
  chip     x1 (Maker X1), virtual chip with 8.00 GiB
  ended    exit status 0 after 1 min 23 s; 1 process
  ops      1,300 of 4 kinds: mm 1,000, add 250, mul 30 and 1 more
  formats  float32 99.0 %, int64 1.0 %
  memory   cuda:0: 2.00 GiB of 8.00 GiB allocated at peak (25 %), 3.00 GiB reserved
  names    3 CUDA names, used 51 times: 2 same, 1 emulated
           most used: torch.cuda.synchronize 40, torch.Tensor.cuda 9, torch.cuda.is_available 2
  limits   no call refused, no missing op, no format of unknown support
  details  runs/one/run.json"""


def said(run: Summary) -> str:
    return plain(text.title(run), text.lines(run))


def one(run: Summary, label: str) -> Line:
    return next(line for line in text.lines(run) if line.label == label)


def test_a_healthy_run_in_full() -> None:
    assert said(summary()) == HEALTHY


def test_a_failing_run_is_loud() -> None:
    failed = one(summary(exit_status=143, signal="SIGTERM"), "ended")
    assert failed.text.startswith("killed by SIGTERM, exit status 143 after")
    assert failed.tone == "bad"


def test_ranks_are_counted_apart_from_other_processes() -> None:
    rows = [process(), process(rank=0), process(rank=1)]
    assert one(summary(processes=rows), "ended").text.endswith("3 processes, 2 ranks")


def test_a_device_that_is_nearly_full_is_marked() -> None:
    assert one(summary(devices=[device(0, 7 * GIB)]), "memory").tone == "plain"
    assert one(summary(devices=[device(0, 15 * GIB // 2)]), "memory").tone == "warn"


def test_many_devices_take_few_lines() -> None:
    rows = [device(index, (index + 1) * GIB // 2) for index in range(8)]
    chip = {**summary()["chip"], "count": 8, "device_type": "npu"}
    run = summary(devices=rows, chip=chip)
    assert one(run, "memory").text.startswith("npu:7 (the fullest): 4.00 GiB of 8.00 GiB")
    assert "7 other devices: from 512.00 MiB allocated at peak" in said(run)
    assert len(text.lines(run)) <= 15


def test_unused_devices_are_named() -> None:
    run = summary(devices=[device(0, GIB), device(1, 0), device(2, 0)])
    assert "unused: cuda:1, cuda:2" in said(run)
    assert one(summary(devices=[device(0, 0)]), "memory").text == "unused: cuda:0"


def test_processes_that_overfill_a_shared_chip_are_told() -> None:
    fits = device(0, 4 * GIB, processes=2, together_bytes=8 * GIB)
    assert "shared" not in said(summary(devices=[fits]))
    over = device(0, 5 * GIB, processes=2, together_bytes=9 * GIB)
    assert "2 processes shared cuda:0: up to 9.00 GiB together" in said(summary(devices=[over]))


def test_what_the_chip_lacks_is_told_with_reasons() -> None:
    run = summary(
        refused=[{"name": "torch.cuda.graph", "reason": "no graphs", "count": 2}],
        missing_ops=[{"op": "aten::_scaled_mm", "reason": "no float8", "count": 1}],
        unknown_formats=["float64"],
        defaults=[{"name": "clock_rate", "answer": "0", "why": "not public", "count": 1}],
        compiled=[{"requested": "inductor", "did": "eager", "why": "no Triton", "count": 3}],
    )
    assert one(run, "refused").text == "torch.cuda.graph, 2 times: no graphs"
    assert one(run, "lacking").text == "_scaled_mm: no float8"
    assert one(run, "unknown").text.endswith("whether the chip has float64")
    assert one(run, "assumed").text == "clock_rate was answered 0 by default: not public"
    compiled = "inductor was asked for, eager was done, 3 times: no Triton"
    assert one(run, "compile").text == compiled
    assert "no call refused" not in said(run)


def test_long_lists_are_cut_and_counted() -> None:
    rows = [{"name": f"f{n}", "reason": "why", "count": 1} for n in range(9)]
    assert "and 6 more in run.json" in said(summary(refused=rows))
    assert "f3" not in said(summary(refused=rows))


def test_a_run_without_work_says_so() -> None:
    assert one(summary(ops={}, dtypes={}), "ops").text == "none ran on the chip"
    empty = summary(processes=[], ops={}, dtypes={}, names=[], devices=[], problems=["none met"])
    assert one(empty, "note").text == "none met"
    assert "ops" not in [line.label for line in text.lines(empty)]


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [
        (1, 3, "33 %"),
        (1, 100, "1.0 %"),
        (1, 10**6, "<0.1 %"),
        (1, 1000, "0.1 %"),
        (0, 5, "0 %"),
        (5, 5, "100 %"),
        (999, 1000, "99.9 %"),
    ],
)
def test_percentages(part: int, whole: int, shown: str) -> None:
    assert text._percent(part, whole) == shown


def test_plural() -> None:
    assert [plural(n, "process") for n in (0, 1, 2)] == ["0 processes", "1 process", "2 processes"]
    assert plural(1234, "op") == "1,234 ops"


WORDS = st.text(string.ascii_letters + "_.: ", max_size=30)
NUMBER = st.integers(0, 10**15)


@given(
    st.fixed_dictionaries(
        {
            "command": st.lists(WORDS, min_size=1),
            "wall_s": st.floats(0, 1e7),
            "exit_status": st.integers(0, 255),
            "ops": st.dictionaries(WORDS, st.integers(1, 10**12)),
            "dtypes": st.dictionaries(WORDS, st.integers(1, 10**12)),
            "devices": st.lists(st.builds(device, st.integers(0, 15), NUMBER), max_size=16),
            "names": st.lists(
                st.fixed_dictionaries({"name": WORDS, "class": WORDS, "count": NUMBER})
            ),
            "refused": st.lists(
                st.fixed_dictionaries({"name": WORDS, "reason": WORDS, "count": NUMBER})
            ),
            "unknown_formats": st.lists(WORDS),
            "problems": st.lists(WORDS),
        }
    ),
    st.integers(60, 120),
)
def test_any_run_fits_its_width(changes: dict[str, Any], width: int) -> None:
    run = summary(**changes)
    shown = plain(text.title(run), text.lines(run), width).splitlines()
    assert all(len(line) <= width for line in shown)


def test_the_terminal_shows_the_same_words() -> None:
    from rich.console import Console

    stream = io.StringIO()
    run = summary()
    Console(file=stream, width=100, highlight=False).print(styled(text.title(run), text.lines(run)))
    assert stream.getvalue().split() == HEALTHY.split()
