"""A rehearsal in words: the answers first, names short, collectives of one kind together."""

from __future__ import annotations

from typing import Any

import pytest

from offramp.report.lines import plain
from offramp.report.rehearsal import lines, short_name, title

GIB = 1 << 30


def found(**changes: Any) -> dict[str, Any]:
    memory = {
        "rank": 0,
        "allocated_bytes": 10 * GIB,
        "reserved_bytes": 12 * GIB,
        "capacity_bytes": 16 * GIB,
        "by_category": {"gradients": 2 * GIB, "parameters": 8 * GIB, "optimizer": 0},
    }
    rank = {
        "rank": 0,
        "chip": "chip",
        "memory": memory,
        "operators": [
            {"name": "aten::mm", "seconds": 0.4},
            {"name": "aten::add.Tensor", "seconds": 0.1},
            {"name": "aten::add.Scalar", "seconds": 0.1},
            {"name": "aten::relu", "seconds": 0.0001},
        ],
        "collectives": [
            {"name": "all_gather", "group": "a", "ranks": 512, "seconds": 0.1},
            {"name": "all_gather", "group": "b", "ranks": 512, "seconds": 0.1},
            {"name": "all_gather", "group": "c", "ranks": 8, "seconds": 0.05},
            {"name": "send", "group": "c", "ranks": 8, "seconds": 0.01},
        ],
    }
    return {
        "cluster": "64 nodes of 8 Chip",
        "world": 512,
        "step_s": {"low": 0.5, "mid": 1.0, "high": 2.0},
        "steps": {"is_whole": False, "is_stable": True, "measured": 2, "warm_up": 1},
        "mfu": 0.25,
        "mfu_convention": "as executed",
        "peak_flops": 1e15,
        "split": {
            "compute_s": {"matmul": 0.4, "memory": 0.2, "copy": 0.0},
            "exposed_communication_s": {"a": 0.1, "b": 0.1},
            "bubble_s": 0.0,
            "host_s": 0.2,
            "idle_s": 0.0,
        },
        "memory": memory,
        "ranks": [rank],
        "fits": True,
        "shortfall_bytes": 0,
        "given_back": 0,
        "steps_played": 4,
        "declared": {"values read by the host": 1200},
        "refused": {},
        "is_truncated": False,
        "tokens": None,
        "energy": None,
        "money": None,
        "run": None,
        **changes,
    }


def text(summary: dict[str, Any]) -> dict[str, str]:
    return {line.label: line.text for line in lines(summary)}


def test_the_answers() -> None:
    said = text(found())
    assert title(found()) == "offramp rehearse: 64 nodes of 8 Chip, 512 ranks"
    assert said["memory"] == (
        "fits: 10.00 GiB allocated at peak (parameters 8.00 GiB, gradients 2.00 GiB), "
        "12.00 GiB reserved, of 16.00 GiB"
    )
    assert said["step"] == "1 s (500 ms to 2 s), mean of 2 steps after 1 to warm up"
    assert said["MFU"] == "25.0% of 1,000 TFLOP/s: as executed"
    assert said["time"] == "matmul 40.0%, exposed communication 20.0%, host 20.0%, memory 20.0%"
    assert said["operators"] == "mm 40.0%, add 20.0%"
    assert said["collectives"] == "all_gather over 512 20.0%, all_gather over 8 5.0%, send 1.0%"
    assert said["played"] == "rank 0; every other rank does as one of them"
    assert said["declared"].endswith("values read by the host (1,200)")
    assert "steps" not in said
    assert max(map(len, plain(title(found()), lines(found())).splitlines())) <= 100


def test_what_does_not_fit_comes_with_the_shortfall() -> None:
    short = found(fits=False, shortfall_bytes=3 * GIB)
    assert lines(short)[0].tone == "bad"
    assert text(short)["memory"].startswith("does not fit by 3.00 GiB: ")
    tight = found(given_back=3)
    assert lines(tight)[0].tone == "warn"
    assert text(tight)["memory"].startswith("fits, with cached memory given back 3 times in 4 ")
    pieces = found(fits=False, shortfall_bytes=GIB)
    assert text(pieces)["memory"].endswith(
        "of 16.00 GiB; what is free of it lies in pieces that are too small"
    )


def test_doubts_are_told() -> None:
    shaky = found(steps={"is_whole": False, "is_stable": False, "measured": 2, "warm_up": 1})
    assert "no two steps are alike" in text(shaky)["steps"]
    whole = found(steps={"is_whole": True, "is_stable": False, "measured": 1, "warm_up": 0})
    assert "there is one step" in text(whole)["step"]
    assert "made one step" in text(whole)["steps"]
    assert text(found(refused={"aten::x.y": "no reason"}))["refused"] == "x: no reason"
    assert "end of a tape" in text(found(is_truncated=True))["tape"]
    quiet = text(found(mfu=None, declared={}, world=1))
    assert not {"MFU", "declared", "played"} & set(quiet)


@pytest.mark.parametrize(
    ("operator", "short"),
    [
        ("aten::mm", "mm"),
        ("aten::_foreach_add_.List", "_foreach_add_"),
        ("own.lib::f.out", "f"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "sdpa_flash_attention"),
        ("plain", "plain"),
    ],
)
def test_operators_have_short_names(operator: str, short: str) -> None:
    assert short_name(operator) == short


def test_chips_that_differ_are_told_one_by_one() -> None:
    summary = found()
    split = summary["split"]
    first = summary["ranks"][0] | {"split": split}
    other = first | {"rank": 9, "chip": "other", "split": split | {"bubble_s": 0.25}}
    said = [line.text for line in lines(summary | {"ranks": [first, other]}) if line.label == "on"]
    assert [text.split(":")[0] for text in said] == ["chip (rank 0)", "other (rank 9)"]
    assert f"bubble {0.25 / summary['step_s']['mid']:.1%}" in said[1]
    assert not [line for line in lines(summary) if line.label == "on"]
