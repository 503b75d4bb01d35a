"""`offramp train` as a user starts it: chips, layouts, signals, damage and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.programs, pytest.mark.timeout(600)]
CHIPS = ("zhenwu-810e", "kunlun-p800", "nvidia-h100", "ascend-910b")
MODELS = ("qwen3-nano", "ernie-4.5-moe-nano")
STOPPED = 75
SMALL = (
    *("--batch", "8", "--sequence", "64", "--precision", "fp32"),
    *("--set", "sample.prompts=[]", "--set", "metrics.tensorboard=false"),
)
LAYOUTS = {
    "dp_replicate=2": MODELS,
    "dp_shard=2": MODELS,
    "tp=2": MODELS[:1],
    "pp=2": MODELS,
    "cp=2": MODELS[:1],
    "dp_shard=2,ep=2": MODELS[1:],
    "dp_shard=2,tp=2": MODELS[:1],
}


def train(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "offramp", "train", *arguments],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def layout(text: str, micro: int) -> list[str]:
    keys = [*text.split(","), f"micro_batch={micro}"]
    return [part for key in keys for part in ("--set", f"layout.{key}")]


def losses(out: Path) -> list[float]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records]


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Losses of a model in one process on the plain CPU."""

    @cache
    def run(model: str) -> list[float]:
        folder = tmp_path_factory.mktemp(model)
        done = train(
            *SMALL, "--chip", "cpu", "--preset", model, "--steps", "6", "--out", "run", cwd=folder
        )
        assert done.returncode == 0, done.stderr
        return losses(folder / "run")

    return run


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("chip", CHIPS)
def test_every_chip_trains_with_the_losses_of_the_cpu(
    tmp_path: Path, on_the_cpu: Any, chip: str, model: str
) -> None:
    done = train(
        *SMALL, "--chip", chip, "--preset", model, "--steps", "6", "--out", "run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    # Grouped heads in float32 take products on the chip, as on CUDA; the CPU has them fused.
    assert losses(tmp_path / "run") == pytest.approx(on_the_cpu(model), rel=2e-6)
    device = "npu" if chip.startswith("ascend") else "cuda"
    assert f"virtual, as {device}" in done.stdout


@pytest.mark.parametrize(
    ("spread", "model"), [(spread, model) for spread in LAYOUTS for model in LAYOUTS[spread]]
)
def test_every_layout_trains_with_the_losses_of_one_process(
    tmp_path: Path, on_the_cpu: Any, spread: str, model: str
) -> None:
    common = (*SMALL, "--preset", model, "--steps", "6", "--out", "run")
    done = train(*common, *layout(spread, 2), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(on_the_cpu(model), rel=2e-5)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_a_run_goes_on_over_other_chips_and_layouts(tmp_path: Path, on_the_cpu: Any) -> None:
    """Two steps each: one chip; four of another kind, sharded and tensor parallel; a pipeline."""
    model = "qwen3-nano"
    ways = [
        (2, "--chip", "zhenwu-810e"),
        (4, "--chip", "kunlun-p800", *layout("dp_shard=2,tp=2", 2)),
        (6, "--chip", "ascend-910b", *layout("pp=2", 2)),
    ]
    (tmp_path / "job.toml").write_text('[schedule]\nname = "constant"\n')
    exact = train(
        *SMALL, "job.toml", "--chip", "cpu", "--preset", model, "--steps", "6", "--out", "exact",
        cwd=tmp_path,
    )  # fmt: skip
    assert exact.returncode == 0, exact.stderr
    for steps, *way in ways:
        done = train(
            *SMALL, "job.toml", *way, "--preset", model, "--steps", str(steps), "--out", "run",
            "--set", "metrics.every=1", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert steps == 2 or f"going on from step {steps - 2}" in done.stdout
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    last = [r for r in records if r["step"] == 6]
    assert [r["loss"] for r in last] == pytest.approx(losses(tmp_path / "exact")[-2:], rel=2e-5)


@pytest.mark.parametrize("spread", ["dp_shard=2", "tp=2", "pp=2"])
def test_several_processes_go_on_to_the_same_weights(tmp_path: Path, spread: str) -> None:
    """Four steps without a break, and two and two, over one layout: equal to the bit."""
    (tmp_path / "job.toml").write_text('[schedule]\nname = "constant"\n')
    common = (*SMALL, "job.toml", *layout(spread, 2))
    for out, ends in (("straight", (4,)), ("broken", (2, 4))):
        for steps in ends:
            done = train(*common, "--steps", str(steps), "--out", out, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
    one, other = (
        (tmp_path / out / "model" / "model.safetensors").read_bytes()
        for out in ("straight", "broken")
    )
    assert one == other


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "offramp", "train", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("  step 1"):
            break
    return process


@pytest.mark.parametrize("spread", ["dp_shard=1", "dp_shard=2"])
def test_a_termination_saves_and_has_its_own_status(tmp_path: Path, spread: str) -> None:
    common = (*SMALL, *layout(spread, 4), "--steps", "100000", "--out", "run")
    process = start(*common, "--set", "checkpoint.every=0", cwd=tmp_path)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == STOPPED, said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["ended"], summary["signal"]) in {
        ("stopped", "SIGTERM"),
        ("stopped", "another process"),
    }
    saved = tmp_path / "run" / "checkpoints" / f"step-{summary['step']:08d}"
    assert (saved / "manifest.json").exists()
    assert "offramp train --resume run" in said


def test_a_lost_worker_ends_the_run_with_one_line(tmp_path: Path) -> None:
    common = (*SMALL, *layout("dp_shard=2", 4), "--steps", "100000", "--out", "run")
    process = start(*common, "--set", "checkpoint.every=5", cwd=tmp_path)
    time.sleep(2)
    table = subprocess.run(
        ["ps", "-eo", "pid,sid,args"], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(maxsplit=2) for line in table.splitlines()[1:]]
    workers = [
        int(pid)
        for pid, session, command in rows
        if int(session) == process.pid or "offramp train --resume run" in command
        if "--processes" not in command and "--resume run" in command
    ]
    os.kill(workers[-1], signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGKILL, said
    told = [line for line in said.splitlines() if line.startswith("offramp: ")]
    assert len(told) == 1, said
    assert "was lost: killed by signal 9; go on from the last checkpoint with" in told[0]
    assert "Traceback" not in said


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    common = (*SMALL, "--chip", "cpu", "--out", "run", "--set", "checkpoint.every=2")
    first = train(*common, "--steps", "4", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    path = tmp_path / "run" / "checkpoints" / "step-00000004" / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[1000] ^= 255
    path.write_bytes(data)
    again = train(*common, "--steps", "5", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "step-00000004 is damaged: __0_0.distcp does not have the checksum" in again.stdout
    assert "going on from step 2" in again.stdout


BAD = {
    "an empty file": (("--data", "empty.txt"), "empty"),
    "no such file": (("--data", "nothing.txt"), "nothing.txt"),
    "not text": (("--data", "image.txt"), "image.txt"),
    "a sequence too long": (("--sequence", "4096"), "takes at most 1024 tokens"),
    "an unknown preset": (("--preset", "qwen3-nona"), "did you mean 'qwen3-nano'"),
    "an unknown chip": (("--chip", "zhenwu"), "did you mean"),
    "a layout that does not divide": (("--set", "layout.tp=4", "--batch", "8"), "divisor of"),
    "a folder that is none": (("--model", "nowhere"), "nowhere"),
    "no fp8": (("--chip", "zhenwu-810e", "--set", "train.fp8=true"), "fp8 = false"),
    "a run of nothing": (("--resume", "nowhere"), "is no run folder"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_is_one_clear_line(tmp_path: Path, case: str) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "image.txt").write_bytes(bytes(range(256)) * 40)
    arguments, said = BAD[case]
    rest = () if "--resume" in arguments else ("--steps", "2", "--out", "run")
    if "--chip" not in arguments and rest:
        rest = (*rest, "--chip", "cpu")
    done = train(*arguments, *rest, cwd=tmp_path, WORLD_SIZE="1")
    told = done.stderr.splitlines()
    assert done.returncode in (1, 2)
    assert len(told) == 1, done.stderr
    assert told[0].startswith("offramp: ")
    assert said in told[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o500)
    done = train("--steps", "1", "--chip", "cpu", cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot write the run folder" in done.stderr


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    done = train("--steps", "1", "--chip", "cpu", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "cannot write the run folder" in done.stderr
