"""`offramp run` from end to end, with programs that record what they are told to."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launching import BARE_CHIP, arguments, environment, records

Offramp = Callable[..., "subprocess.CompletedProcess[str]"]
Write = Callable[[str, str], Path]
GIB = 2**30
RECORDING = f"""
import os, signal, sys
from offramp.launch import record
device = {{"index": 0, "capacity_bytes": {GIB}, "peak_allocated_bytes": {GIB // 4},
          "peak_reserved_bytes": {GIB // 2}, "allocated_bytes": 0}}
record.write_at_exit(lambda: {{"devices": [device], "ops": {{"aten::mm": 3}}}})
"""


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize(
    ("end", "status", "killer"),
    [
        ("", 0, None),
        ("sys.exit(5)", 5, None),
        ("1 / 0", 1, None),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "SIGINT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "SIGKILL"),
    ],
)
def test_every_run_ends_with_its_summary(
    offramp: Offramp, write: Write, tmp_path: Path, end: str, status: int, killer: str | None
) -> None:
    write("train.py", RECORDING + end)
    words = ("run", "--chip", BARE_CHIP, "--run-dir", "out", "--", "python", "train.py", "--lr=1")
    result = offramp(*words)
    summary = summary_of(tmp_path / "out")
    assert result.returncode == summary["exit_status"] == status
    assert summary["signal"] == killer
    assert summary["command"] == ["python", "train.py", "--lr=1"]
    assert summary["chip"]["name"] == BARE_CHIP
    assert summary["devices"][0]["peak_allocated_bytes"] == GIB // 4
    assert summary["ops"] == {"aten::mm": 3}
    (process,) = summary["processes"]
    assert process["finished"] is (killer != "SIGKILL")
    assert bool(summary["problems"]) is (killer == "SIGKILL")
    assert f"exit status {status}" in result.stderr
    assert "256.00 MiB of 1.00 GiB" in result.stderr


def test_the_command_gets_the_chip_in_its_environment(offramp: Offramp, tmp_path: Path) -> None:
    show = "import os; print(*(os.environ.get(k) for k in ('OFFRAMP_CHIP', 'OFFRAMP_MEMORY')))"
    chip = ("run", "--chip", f"{BARE_CHIP}:3")
    result = offramp(*chip, "--memory", "64MiB", "--", "python", "-c", show)
    assert result.stdout.split() == [f"{BARE_CHIP}:3", "64MiB"]
    result = offramp(*chip, "--", "python", "-c", show, OFFRAMP_MEMORY="1GiB")
    assert result.stdout.split() == [f"{BARE_CHIP}:3", "None"]
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_runs_at_the_same_time_get_folders_of_their_own(tmp_path: Path) -> None:
    words = arguments("run", "--chip", BARE_CHIP, "--", "true")
    runs = [
        subprocess.Popen(words, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
        for _ in range(3)
    ]
    assert [run.wait(timeout=60) for run in runs] == [0, 0, 0]
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 3
    form = rf"\d{{8}}T\d{{6}}Z-{BARE_CHIP}(-\d+)?"
    assert all(re.fullmatch(form, folder.name) for folder in folders)
    assert all(summary_of(folder)["command"] == ["true"] for folder in folders)


def test_a_program_that_moves_its_folder_is_still_recorded(
    offramp: Offramp, write: Write, tmp_path: Path
) -> None:
    write("train.py", RECORDING + "os.chdir('/')")
    offramp("run", "--chip", BARE_CHIP, "--run-dir", "out", "--", "python", "train.py")
    assert len(records(tmp_path / "out")) == len(summary_of(tmp_path / "out")["processes"]) == 1


def test_a_command_that_never_meets_the_chip_is_told(offramp: Offramp) -> None:
    result = offramp("run", "--chip", BARE_CHIP, "--", "true")
    assert result.returncode == 0
    assert "no process met the chip" in result.stderr


def test_everything_after_the_dashes_is_the_commands(offramp: Offramp) -> None:
    words = ("--chip", "x", "--", "-h", "--version")
    show = "import sys; print(sys.argv[1:])"
    result = offramp("run", "--chip", BARE_CHIP, "--", "python", "-c", show, *words)
    assert result.stdout.strip() == str(list(words))


def test_quiet_leaves_stderr_to_the_command(offramp: Offramp, tmp_path: Path) -> None:
    command = ("sh", "-c", "echo mine >&2")
    result = offramp("run", "--chip", BARE_CHIP, "--quiet", "--run-dir", "out", "--", *command)
    assert result.stderr == "mine\n"
    assert summary_of(tmp_path / "out")["exit_status"] == 0


def test_a_file_that_cannot_be_executed_is_told(offramp: Offramp, write: Write) -> None:
    write("broken", "no interpreter line").chmod(0o755)
    result = offramp("run", "--chip", BARE_CHIP, "--", "./broken")
    assert result.returncode == 126
    assert "Exec format error" in result.stderr


CHIP_FILE = 'title = "X"\nvendor = "Y"\ncolour = "red"\n'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--chip", "cqu", "--", "true"], "unknown chip 'cqu'; did you mean 'cpu'"),
        (["--chip", "", "--", "true"], "expected NAME or NAME:COUNT"),
        (["--chip", f"{BARE_CHIP}:0", "--", "true"], "at least 1"),
        (["--chip", f"{BARE_CHIP}:two", "--", "true"], "NAME:COUNT"),
        (["--chip", f"{BARE_CHIP}:²", "--", "true"], "NAME:COUNT"),
        (["--chip", BARE_CHIP], "no command given"),
        (["--chip", BARE_CHIP, "--"], "no command given"),
        (["--", "true"], "required: --chip"),
        (["--chip", BARE_CHIP, "--memory", "1 EB", "--", "true"], "above the"),
        (["--chip", BARE_CHIP, "--memory", "2", "--", "true"], "no unit"),
        (["--chip", BARE_CHIP, "--memory", "much", "--", "true"], "cannot read 'much'"),
        (["--chip", BARE_CHIP, "--", "python", "nosuch.py"], "script not found"),
        (["--chip", BARE_CHIP, "--", "torchrun", "nosuch.py"], "script not found"),
        (["--chip", BARE_CHIP, "--", "nosuch"], "command not found"),
        (["--chip", BARE_CHIP, "--run-dir", "file", "--", "true"], "cannot make the run folder"),
        (["--chip", BARE_CHIP, "--run-dir", "old", "--", "true"], "holds an earlier run"),
        (["--chip", "mine.toml", "--", "true"], "mine.toml"),
        (["--chip", "none.toml", "--", "true"], "none.toml"),
    ],
)
def test_bad_input_ends_in_one_line_and_status_2(
    offramp: Offramp, write: Write, tmp_path: Path, words: list[str], message: str
) -> None:
    write("file", "")
    write("mine.toml", CHIP_FILE)
    (tmp_path / "old" / "processes").mkdir(parents=True)
    result = offramp("run", *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("offramp: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "runs").exists(), "nothing is made before everything is checked"


def test_a_count_beyond_the_node_is_told(offramp: Offramp) -> None:
    from offramp import chips

    bounded = next(c for c in map(chips.load, chips.names()) if c.chips_per_node is not None)
    most = bounded.chips_per_node or 0
    fits = offramp("run", "--chip", f"{bounded.name}:{most}", "--", "true")
    beyond = offramp("run", "--chip", f"{bounded.name}:{most + 1}", "--", "true")
    assert (fits.returncode, beyond.returncode) == (0, 2)
    assert f"at most {most}" in beyond.stderr
    assert beyond.stderr.count("\n") == 1
