"""`offramp rehearse --fit` and `--vary` as a user starts them; what the presets' table rests on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from offramp.chips.catalogue import DATA
from offramp.launch import rehearse
from offramp.tape.kinds import FREE

pytestmark = [pytest.mark.programs, pytest.mark.timeout(300)]
CHIP = "nvidia-h100"
KEPT = """
import sys, torch
count = int(sys.argv[-1].split("=")[1])
weight = torch.nn.Parameter(torch.zeros(256, device="cuda"))
optimizer = torch.optim.SGD([weight], lr=0.1)
while True:
    held = [torch.empty(1 << 20, device="cuda") for _ in range(count)]  # 4 MiB each
    weight.square().sum().backward()
    optimizer.step()
    del held
"""
HELD = """
import sys, torch
weight = torch.nn.Parameter(torch.zeros(256, device="cuda"))
optimizer = torch.optim.SGD([weight], lr=0.1)
for step in range(4):
    held = {}
    for word in sys.argv[1].split(","):
        name, _, size = word.partition("=")
        held[name] = torch.empty(int(size) << 20, dtype=torch.uint8, device="cuda") if size else 0
    weight.square().sum().backward()
    optimizer.step()
    del held
"""
TRAIN = (
    *("offramp", "train", "--preset", "qwen3-nano", "--batch", "16", "--sequence", "256"),
    *("--set", "sample.prompts=[]", "--set", "data.boundaries=false", "--steps", "9"),
)


def small(folder: Path, memory: str) -> str:
    """The path of a chip like CHIP with less memory."""
    text = (DATA / f"{CHIP}.toml").read_text()
    fact = f'memory = {{ value = {memory}, unit = "MiB", tier = "vendor", source = "maker" }}'
    text = re.sub(r"^memory = .*", fact, text, flags=re.M)
    (folder / "small.toml").write_text(re.sub(r"^usable_memory = .*\n", "", text, flags=re.M))
    return str(folder / "small.toml")


def start(*arguments: str, cwd: Path, status: int) -> tuple[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "offramp", "rehearse", *arguments],
        cwd=cwd,
        env={**os.environ, "PATH": path, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done
    return " ".join(done.stdout.split()), done.stderr


@pytest.mark.parametrize(
    ("held", "reserved", "given_back", "short"),
    [
        ("a=60,b=60", 120, 0, 0),
        ("a=80,a,b=100", 100, 1, 0),  # the chip has room for b once the first is given back
        ("a=100,a,b=60,c=80", 180, 0, 32),  # b keeps part of what held a, so that none goes back
    ],
)
def test_memory_that_fits_in_no_piece_does_not_fit(
    tmp_path: Path, held: str, reserved: int, given_back: int, short: int
) -> None:
    """150 MiB, of which what is small takes 2: as far as the chip itself, with values, goes."""
    chip, mib = small(tmp_path, "150"), 1 << 20
    (tmp_path / "held.py").write_text(HELD)
    command = ("--", "python", "held.py", held)
    start("--chip", chip, "--json", "out.json", *command, cwd=tmp_path, status=short > 0)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["memory"]["reserved_bytes"] == (reserved + 2) * mib
    assert (found["given_back"], found["shortfall_bytes"]) == (given_back, short * mib)
    assert found["memory"]["allocated_bytes"] < 150 * mib
    run = [sys.executable, "-m", "offramp", "run", "--chip", chip, "--", sys.executable]
    done = subprocess.run([*run, "held.py", held], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode != 0, b"out of memory" in done.stderr) == (short > 0, short > 0)


def test_a_flag_is_varied_and_memory_is_in_closed_form(tmp_path: Path) -> None:
    """Each value holds 4 MiB, five a segment; 102 MiB hold 25 with what is beside, and not 26."""
    chip = small(tmp_path, "102")
    (tmp_path / "kept.py").write_text(KEPT)
    options = ("--chip", chip, "--steps", "3", "--json", "out.json")
    command = ("--", "python", "kept.py")
    out, err = start(*options, "--vary", "--count=26,25,8", *command, cwd=tmp_path, status=0)
    assert "fits --count=25: 100.0" in out
    assert "does not --count=26: short by" in out
    assert "trying --count=25 (2 of at most 12)" in err
    tried = json.loads((tmp_path / "out.json").read_text())["tried"]
    assert [one["fits"] for one in tried] == [False, True, True]
    first, second, third = (one["peak_bytes"] for one in tried)
    assert (first - second, second - third) == (4 << 20, 68 << 20)
    assert tried[0]["shortfall_bytes"] == first - (102 << 20)
    out, _ = start(*options, "--vary", "--count=30,26", *command, cwd=tmp_path, status=1)
    assert "nothing that was rehearsed (2 other settings)" in out
    out, _ = start(*options, *command, "--count=26", cwd=tmp_path, status=1)
    assert "way out --vary '--batch-size=16,8,4'" in out


def test_a_job_that_does_not_fit_is_told_what_fits(tmp_path: Path) -> None:
    """The job as given is short; what is said to fit does, when it is rehearsed by itself."""
    chip = small(tmp_path, "250")
    given = ("--chip", chip, "--steps", "3")
    command = ("--", *TRAIN, "--set", "layout.micro_batch=16")
    out, _ = start(*given, *command, cwd=tmp_path, status=1)
    assert "way out --fit" in out
    options = ("--json", "out.json", "--fit", "--most-tries", "3")
    out, _ = start(*given, *options, *command, cwd=tmp_path, status=1)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["shortfall_bytes"] > 0
    assert found["fit"]["is_cut"]
    fitting = [one for one in found["fit"]["tried"] if one["fits"]]
    first = fitting[0]
    assert first["change"] == "--set layout.micro_batch=8"
    assert f"fits {first['change']}: " in out
    start(*given, "--json", "again.json", "--", *first["command"], cwd=tmp_path, status=0)
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["memory"]["allocated_bytes"] == first["peak_bytes"]
    assert again["step_s"] == first["step_s"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--fit", "--", "python", "a.py"), "--vary '--batch-size=16,8,4'"),
        (("--vary", "x", "--", "python", "a.py"), "expected FLAG=VALUE,VALUE"),
        (("--vary", "x=1", "--trace", "t.json", "--", "python", "a.py"), "of one rehearsal"),
        (("--most-tries", "0", "--", "python", "a.py"), "expected at least 1"),
        (("--fit", "--vary", "x=1", "--", "python", "a.py"), "not allowed with"),
    ],
)
def test_misuse_is_told_before_anything_starts(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    (tmp_path / "a.py").write_text("open('started', 'w')")
    assert says in start("--chip", CHIP, *arguments, cwd=tmp_path, status=2)[1]
    assert not (tmp_path / "started").exists()


def test_tapes_of_chips_that_training_treats_alike_are_equal() -> None:
    """`bench/presets.py` plays one of them and prices it for each.

    Only when memory of the set-up is given back may differ: Python's collector decides it.
    """

    def played(chip: str) -> Any:
        words = (*TRAIN, "--chip", chip, "--set", "layout.dp_shard=2")
        return rehearse.execute(rehearse.plan(words, chip=chip, nodes=1, per_node=2, steps=3))

    one, other = played("zhenwu-810e").tapes[0], played("ascend-910b").tapes[0]
    assert one.signatures == other.signatures
    assert len(one.records) == len(other.records) > 1000
    assert sorted(one.records.tolist()) == sorted(other.records.tolist())
    held, also = (each.records[each.records["kind"] != FREE] for each in (one, other))
    assert (held == also).all()
