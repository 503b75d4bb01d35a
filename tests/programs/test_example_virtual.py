"""The example on a virtual chip, started as a user would, against the same program on the CPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from offramp import chips

CHIP = "zhenwu-810e"
SCRIPT = Path(__file__).parents[2] / "examples" / "train_gpt.py"
SMALL = ("--layers=2", "--heads=2", "--width=64", "--context=64", "--batch-size=4")
EXACT = (*SMALL, "--no-compile", "--dtype=float32")
BRIEF = ("--steps=8", "--warmup=2", "--log-every=1", "--eval-batches=2", "--sample=0")
PYTHON = (sys.executable, str(SCRIPT))
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

PROBE = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(sys.argv.pop(1)).parent))
import torch
import train_gpt

args = train_gpt.parse_args()
training = train_gpt.prepare(args, train_gpt.connect(args.device), train_gpt.read_corpus()[0])
loss = train_gpt.train_step(training)
seen = [*training.loader.next_batch(), training.loader.ahead_BS, loss, *training.model.buffers()]
for parameter in training.model.parameters():
    training.optimizer.zero_grad()
    state = training.optimizer.state[parameter]
    seen += [parameter, state["exp_avg"], state["exp_avg_sq"], state["step"]]
assert all(tensor.is_cuda for tensor in seen)
assert loss.to("cpu").is_cpu and isinstance(loss.device, torch.device)
print({(tensor.device.type, str(tensor.device), tensor.type()[:11]) for tensor in seen})
"""

pytestmark = pytest.mark.programs


def start(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def offramp(*command: str, chip: str = CHIP, flags: tuple[str, ...] = ()) -> str:
    done = start(sys.executable, "-m", "offramp", "run", "--chip", chip, *flags, "--", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(out_dir: Path) -> dict[int, float]:
    records = map(json.loads, (out_dir / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def course(out_dir: Path) -> list[float]:
    return [loss for _, loss in sorted(losses(out_dir).items())]


def weights(out_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(out_dir / "checkpoint.pt", map_location="cpu")["model"]


def process_records(run_dir: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in (run_dir / "processes").glob("*.json")]


def test_the_program_sees_cuda_throughout(tmp_path: Path) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(PROBE)
    text = offramp(sys.executable, str(probe), str(SCRIPT), *EXACT, "--steps=2")
    assert text.splitlines()[-1] == "{('cuda', 'cuda:0', 'torch.cuda.')}"
    text = offramp(*PYTHON, *EXACT, *BRIEF, f"--out-dir={tmp_path}")
    name = chips.load(CHIP).presentation.device_name
    memory_gib = chips.load(CHIP).memory_bytes / 2**30
    assert f"parameters on cuda: {name}, {memory_gib:.1f} GiB" in text
    assert "peak memory" in text
    tags: set[str] = set()
    torch.load(
        tmp_path / "checkpoint.pt", map_location=lambda storage, tag: tags.add(tag) or storage
    )
    assert tags == {"cuda:0", "cpu"}  # as a card saves them


def test_float32_losses_and_weights_equal_the_cpu_to_rounding(tmp_path: Path) -> None:
    offramp(*PYTHON, *EXACT, *BRIEF, f"--out-dir={tmp_path / 'virtual'}")
    plain = start(*PYTHON, *EXACT, *BRIEF, "--device=cpu", f"--out-dir={tmp_path / 'cpu'}")
    assert plain.returncode == 0, plain.stderr
    assert course(tmp_path / "cpu")[0] == pytest.approx(math.log(256), abs=0.3)
    assert course(tmp_path / "virtual") == pytest.approx(course(tmp_path / "cpu"), rel=1e-5)
    torch.testing.assert_close(
        weights(tmp_path / "virtual"), weights(tmp_path / "cpu"), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_trains_within_its_rounding_of_float32(dtype: str, tmp_path: Path) -> None:
    offramp(*PYTHON, *EXACT, *BRIEF, f"--out-dir={tmp_path / 'exact'}")
    offramp(*PYTHON, *EXACT, *BRIEF, f"--dtype={dtype}", f"--out-dir={tmp_path / dtype}")
    assert course(tmp_path / dtype) != course(tmp_path / "exact")
    assert course(tmp_path / dtype) == pytest.approx(course(tmp_path / "exact"), rel=2e-2)


def test_resume_gives_the_run_without_a_break_bit_for_bit(tmp_path: Path) -> None:
    flags = (*EXACT, *BRIEF, "--dropout=0.1", "--sample=20")
    whole = offramp(*PYTHON, *flags, f"--out-dir={tmp_path / 'whole'}")
    offramp(*PYTHON, *flags, "--stop-step=5", f"--out-dir={tmp_path / 'broken'}")
    rest = offramp(*PYTHON, *flags, "--resume", f"--out-dir={tmp_path / 'broken'}")
    assert "at step 5" in rest
    assert whole.splitlines()[-1] == rest.splitlines()[-1]
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
    torch.testing.assert_close(
        weights(tmp_path / "whole"), weights(tmp_path / "broken"), rtol=0, atol=0
    )


def test_little_memory_ends_in_the_error_that_cuda_programs_catch(tmp_path: Path) -> None:
    command = (*PYTHON, *EXACT, *BRIEF, "--batch-size=256", f"--out-dir={tmp_path}")
    run = (sys.executable, "-m", "offramp", "run", "--chip", CHIP)
    done = start(*run, "--memory=64MiB", "--", *command)
    assert done.returncode == 1
    assert "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate" in done.stderr
    assert start(*run, "--memory=4GiB", "--", *command).returncode == 0


def test_compile_runs_and_the_report_says_what_it_did(tmp_path: Path) -> None:
    flags = (*SMALL, *BRIEF, "--dtype=float32")
    offramp(*PYTHON, *flags, "--no-compile", f"--out-dir={tmp_path / 'eager'}")
    asked = ("--run-dir", str(tmp_path / "run"))
    offramp(*PYTHON, *flags, f"--out-dir={tmp_path / 'compiled'}", flags=asked)
    assert course(tmp_path / "compiled") == pytest.approx(course(tmp_path / "eager"), rel=1e-4)
    done = [entry for record in process_records(tmp_path / "run") for entry in record["compiled"]]
    assert done
    assert all(entry["did"] and entry["why"] for entry in done)


@pytest.mark.ranks
def test_two_virtual_chips_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    flags = (*EXACT, *BRIEF, "--accumulate=2")
    offramp(*PYTHON, *flags, "--batch-size=8", f"--out-dir={tmp_path / 'one'}")
    ranks = (*TORCHRUN, str(SCRIPT), *flags, "--batch-size=4", f"--out-dir={tmp_path / 'two'}")
    asked = ("--run-dir", str(tmp_path / "run"))
    text = offramp(*ranks, chip=f"{CHIP}:2", flags=asked)
    assert text.count("parameters on cuda:0") == 1  # rank 0 alone speaks
    assert course(tmp_path / "two") == pytest.approx(course(tmp_path / "one"), rel=1e-5)
    torch.testing.assert_close(
        weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=1e-3, atol=1e-4
    )
    used = [record for record in process_records(tmp_path / "run") if record["ops"]]
    assert sorted(record["rank"] for record in used) == [0, 1]
