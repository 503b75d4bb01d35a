"""Train the example on a virtual Zhenwu 810E: stop it, resume it, read what it writes.

    make demo

The training script knows CUDA and nothing else. No accelerator is needed: the virtual chip
computes on this machine's processor. Everything it leaves lies in demo-out/.
"""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
OUT_DIR = Path("demo-out")
STOP_STEP, STEPS = 300, 500
LOSS_GOAL = 2.6  # nats per byte; a guess among 256 bytes costs ln 256 = 5.5
MODEL = "--layers 4 --heads 4 --width 128 --context 128"
TRAINING = f"--batch-size 16 --steps {STEPS} --warmup 30 --eval-every {STEPS} --save-every {STEPS}"
BARS = "▁▂▃▄▅▆▇█"


def check(holds: bool, claim: str) -> None:
    if not holds:
        sys.exit(f"demo: failed: {claim}")
    print(f"  ok  {claim}")


def matmul_s(dtype: torch.dtype) -> float:
    """Seconds of a matrix product of the model's size on this processor: the best of a few."""
    left, right = torch.ones(2048, 128, dtype=dtype), torch.ones(128, 768, dtype=dtype)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return min(times)


def choose_dtype() -> str:
    """The script's default, bfloat16, unless this processor is slow at it."""
    if matmul_s(torch.bfloat16) <= 1.5 * matmul_s(torch.float32):
        return "bfloat16"
    print("This processor is slow at bfloat16: the demo trains in float32.\n")
    return "float32"


def run(command: str) -> list[str]:
    """Start a command as one would type it; show and return the lines it prints."""
    print(f"$ {command}", flush=True)
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    lines = []
    with subprocess.Popen(
        shlex.split(command),
        cwd=ROOT,
        env={**os.environ, "PATH": search},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            lines.append(line.rstrip("\n"))
    print()
    check(process.returncode == 0, f"the command ended with status {process.returncode}")
    return lines


def read_losses() -> dict[int, float]:
    records = map(json.loads, (ROOT / OUT_DIR / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def picture(losses: list[float]) -> str:
    low, high = min(losses), max(losses)
    heights = [(loss - low) / (high - low) * (len(BARS) - 1) for loss in losses]
    return "".join(BARS[round(height)] for height in heights)


def main() -> None:
    start = time.monotonic()
    shutil.rmtree(ROOT / OUT_DIR, ignore_errors=True)
    train = f"python examples/train_gpt.py {MODEL} {TRAINING} --dtype {choose_dtype()}"
    command = f"offramp run --chip zhenwu-810e -- {train} --out-dir {OUT_DIR}"

    lines = run(f"{command} --stop-step {STOP_STEP}")
    check(any("parameters on cuda" in line for line in lines), "the program saw a cuda device")
    saved = any(f"saved step {STOP_STEP} " in line for line in lines)
    check(saved, f"a checkpoint of step {STOP_STEP} was saved")
    before = read_losses()

    lines = run(f"{command} --resume")
    losses = read_losses()
    first_new = min(losses.keys() - before.keys())
    check(any(f"at step {STOP_STEP}" in line for line in lines), f"resumed at step {STOP_STEP}")
    check(
        first_new > STOP_STEP and losses[first_new] < before[STOP_STEP] + 0.5,
        f"went on from there: loss {before[STOP_STEP]:.2f}, then {losses[first_new]:.2f}",
    )
    first, last = losses[1], sum(list(losses.values())[-5:]) / 5
    check(abs(first - math.log(256)) < 0.5, f"the first loss is that of a guess: {first:.2f}")
    check(last < LOSS_GOAL, f"the loss fell below {LOSS_GOAL} nats per byte: {last:.2f}")
    sample = next(i for i, line in enumerate(lines) if line.startswith("def "))
    (ROOT / OUT_DIR / "sample.txt").write_text("\n".join(lines[sample:]) + "\n")

    print(f"\n  loss, step 1 to {STEPS}: {picture(list(losses.values()))}")
    print(f"  {OUT_DIR}/: checkpoint.pt, metrics.jsonl, sample.txt")
    print(f"  {time.monotonic() - start:.0f} s, no accelerator, no line of the script changed")


if __name__ == "__main__":
    main()
