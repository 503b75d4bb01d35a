"""Rehearsed against real, on this machine: seconds of a step and peak memory of three programs.

Calibrates this machine's processor (or takes `--chip FILE`), rehearses each program on that chip
and runs the same program, eager, on the processor. The bar: a step within 5 %, peak memory within
2 %. With one thread times are processor time, of the calibration and of the run alike, so that
other programs on the machine disturb less; wall time is printed beside it.

    OMP_NUM_THREADS=1 python bench/this_machine.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GPT = [str(ROOT / "examples" / "train_gpt.py"), "--no-compile", "--dtype", "float32"]
PLAIN = str(ROOT / "bench" / "programs" / "transformer.py")
WIDE = "--width 512 --layers 2 --heads 8 --context 256 --batch 4 --vocabulary 8192"
DEEP = "--width 160 --layers 10 --heads 5 --context 96 --batch 16 --vocabulary 640"
# Title, the program as it is rehearsed, what the real run has besides.
PROGRAMS = (
    ("train_gpt.py, 1.8 M", GPT, ["--device", "cpu"]),
    ("wide, fused attention", [PLAIN, *WIDE.split()], []),
    ("deep, attention by products", [PLAIN, *DEEP.split(), "--attention", "whole"], []),
)
WARM = 3


def main() -> None:
    """Calibrate, rehearse, run, compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chip", help="a chip file that `offramp calibrate` wrote here")
    parser.add_argument("--steps", type=int, default=20, help="real steps a turn")
    parser.add_argument("--turns", type=int, default=3, help="real runs of each program")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chip = args.chip or str(folder / "this.toml")
        if not args.chip:
            offramp("calibrate", "--device", "cpu", "--out", chip)
        print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print("program | rehearsed step | real step | error | wall | rehearsed peak | real | error")
        for title, command, further in PROGRAMS:
            rehearsed = rehearse(chip, command, folder)
            real = [
                watch("time", args.steps + WARM, [*command, *further], folder)
                for _ in range(args.turns)
            ]
            memory = watch("memory", 4, [*command, *further], folder)["peak_bytes"]
            print(row(title, rehearsed, real, memory), flush=True)
        print(f"load after: {os.getloadavg()[0]:.1f}")


def row(title: str, rehearsed: dict[str, Any], real: list[dict[str, Any]], memory: int) -> str:
    """One line of the table."""
    predicted = float(rehearsed["step_s"]["mid"])
    which = "processor_s" if real[0]["threads"] == 1 else "wall_s"
    turns = [statistics.median(one[which][WARM:]) for one in real]
    measured = statistics.median(turns)
    wall = statistics.median(s for one in real for s in one["wall_s"][WARM:])
    peak = rehearsed["memory"]["allocated_bytes"]
    return (
        f"{title} | {predicted * 1e3:.1f} ms | {measured * 1e3:.1f} ms "
        f"({min(turns) * 1e3:.1f} to {max(turns) * 1e3:.1f}) | {predicted / measured - 1:+.1%} | "
        f"{wall * 1e3:.1f} ms | {peak / 2**20:.1f} MiB | {memory / 2**20:.1f} MiB | "
        f"{peak / memory - 1:+.1%}"
    )


def rehearse(chip: str, command: list[str], folder: Path) -> dict[str, Any]:
    """The rehearsal's result."""
    out = folder / "rehearsed.json"
    offramp("rehearse", "--chip", chip, "--json", str(out), "--", sys.executable, *command)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def watch(what: str, steps: int, command: list[str], folder: Path) -> dict[str, Any]:
    """What the real run's steps took or held."""
    out = folder / "real.json"
    watcher = str(ROOT / "bench" / "programs" / "watched.py")
    subprocess.run(
        [sys.executable, watcher, str(out), str(steps), what, *command],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def offramp(*arguments: str) -> None:
    """Run a verb, its progress on stderr."""
    subprocess.run(
        [sys.executable, "-m", "offramp", *arguments], check=True, stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    main()
