"""Verdicts of `offramp compare` on planted faults and on identical programs in another order.

For three small programs (programs/small.py): each fault of programs/faults.py against the program
without it, with a floor from two recordings with noise; then pairs that differ in the order of
summation alone (programs/reordered.py), with other seeds than those that the threshold was chosen
on. Beside it what is usual: element-wise closeness of the weights at the end, and a band of 1 % and
of 2 % around the mean loss. `python bench/verdicts.py`; PAIRS=30 for fewer pairs.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent / "programs"))
from faults import Planted, planted
from reordered import reordered
from small import NAMES, STEPS, Fault, train

from offramp.compare.judge import TIMES, judge
from offramp.compare.verdict import SAME, Verdict
from offramp.record.part import Part
from offramp.record.recorder import Recorder
from offramp.record.recording import Recording, read

PAIRS = int(os.environ.get("PAIRS", "200"))
FIRST_SEED = int(os.environ.get("FIRST_SEED", "1000"))  # the threshold was chosen on seeds below
NOISE = (11, 12)


@dataclass(frozen=True)
class Ran:
    """A recorded run: the recording, its losses and its weights at the end."""

    recording: Recording
    losses: list[float]
    weights: list[torch.Tensor]


def run(
    folder: Path, name: str, seed: int, fault: Fault | None = None, order: int = -1, noise: int = -1
) -> Ran:
    path = folder / "one.rec"
    path.unlink(missing_ok=True)
    recorder = Recorder(Part(out=str(path), first=STEPS, perturb=noise))
    try:
        with reordered(order) if order >= 0 else contextlib.nullcontext():
            losses, model = train(name, seed, fault)
    finally:
        recorder.close()
    found = read(path)
    assert not found.notes, found.notes
    return Ran(found, losses, [p.detach().clone() for p in model.parameters()])


def usual(a: Ran, b: Ran) -> dict[str, bool]:
    """Whether each usual way calls the two runs different."""
    close = all(
        torch.allclose(x, y, rtol=1.3e-6, atol=1e-5)  # torch.testing's for float32
        for x, y in zip(a.weights, b.weights, strict=True)
    )
    mean_a, mean_b = np.mean(a.losses), np.mean(b.losses)
    apart = abs(mean_b - mean_a) / abs(mean_a)
    off = not np.isfinite(apart)
    return {
        "closeness": not close,
        "1 %": bool(off or apart > 0.01),
        "2 %": bool(off or apart > 0.02),
    }


def score(verdict: Verdict, case: Planted) -> dict[str, bool]:
    """Whether verdict, step and module are right."""
    place = verdict.place
    named = (place.module, *place.others) if place else ()
    return {
        "verdict": verdict.verdict in case.verdicts,
        "step": place is not None and place.step == case.step,
        "module": place is not None and (not case.modules or bool({*named} & {*case.modules})),
    }


def told(verdict: Verdict) -> str:
    place = verdict.place
    where = f"step {place.step}, {place.module}, {place.pass_name}" if place else "nowhere"
    return f"{verdict.verdict}: {verdict.kind} [{where}] {verdict.times:.3g} times"


def faults(folder: Path, rows: list[dict[str, Any]]) -> None:
    for name in NAMES:
        base = run(folder, name, 0)
        noisy = [run(folder, name, 0, noise=seed).recording for seed in NOISE]
        for case in planted(name):
            other = run(folder, name, 0, case.fault)
            verdict = judge(base.recording, other.recording, noisy)
            right = score(verdict, case)
            row = {"program": name, "fault": case.name, **right, **usual(base, other)}
            rows.append(row | {"found": verdict.verdict != SAME, "said": told(verdict)})
            mark = "ok   " if all(right.values()) else "WRONG"
            wrong = [k for k, v in right.items() if not v]
            print(f"{mark} {name:14} {case.name:32} {told(verdict)} {wrong or ''}", flush=True)


def identical(folder: Path, rows: list[dict[str, Any]]) -> None:
    for number in range(PAIRS):
        name, seed = NAMES[number % len(NAMES)], FIRST_SEED + number
        base = run(folder, name, seed)
        noisy = [run(folder, name, seed, noise=seed + n).recording for n in NOISE]
        other = run(folder, name, seed, order=seed)
        verdict = judge(base.recording, other.recording, noisy)
        alarm = verdict.verdict != SAME
        rows.append(
            {"program": name, "seed": seed, "alarm": alarm, "worst": verdict.worst}
            | usual(base, other)
        )
        if alarm:
            print(f"false alarm: {name}, seed {seed}: {told(verdict)}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    began = time.monotonic()
    planted_rows: list[dict[str, Any]] = []
    same_rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        faults(Path(folder), planted_rows)
        identical(Path(folder), same_rows)
    count, pairs = len(planted_rows), len(same_rows)
    print(f"\n{count} planted faults in {len(NAMES)} programs; threshold {TIMES:g}")
    for what in ("found", "verdict", "step", "module"):
        print(f"  {what:10} {sum(r[what] for r in planted_rows)} of {count}")
    whole = sum(r["verdict"] and r["step"] and r["module"] for r in planted_rows)
    print(f"  all three  {whole} of {count} ({whole / count:.1%})")
    for way in ("closeness", "1 %", "2 %"):
        hits, alarms = sum(r[way] for r in planted_rows), sum(r[way] for r in same_rows)
        print(f"  {way:10} finds {hits} of {count}; false alarms {alarms} of {pairs}")
    alarms = sum(r["alarm"] for r in same_rows)
    worst = sorted(r["worst"] for r in same_rows)
    print(f"{pairs} identical pairs in another order: {alarms} false alarms")
    if worst:
        middle = float(np.median(worst))
        print(f"  largest error over the floor: median {middle:.1f}, largest {worst[-1]:.1f}")
    print(f"{time.monotonic() - began:.0f} s")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps([planted_rows, same_rows], indent=1))


if __name__ == "__main__":
    main()
