"""Whether `compare` and `--bisect` name the arithmetic of a chip in three small training programs.

Each program (programs/small.py) runs on a virtual chip with one setting of its arithmetic, as
`--arith` sets it, and without, in a format that the setting is about. The verdict is judged with a
floor from one recording with noise; then what `--bisect` replays is recorded and replayed: the
module that the verdict names, or, where it names none, those with the longest
sums. `python bench/formats.py`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "programs"))
from small import NAMES, STEPS, Fault, train

import offramp
from offramp.chips.arithmetic import resolve
from offramp.compare import run
from offramp.compare.verdict import PRECISION
from offramp.record.part import Part
from offramp.record.recorder import Recorder
from offramp.record.recording import read

CHIP = "nvidia-h100"  # without arithmetic of its own that is not asked for


@dataclass(frozen=True)
class Case:
    """A setting of arithmetic, the format of the program, and words that name it."""

    name: str
    texts: tuple[str, ...]
    dtype: torch.dtype
    words: str


CASES = (
    Case(
        "TF32",
        ("matmul.float32=tf32", "convolution.float32=tf32"),
        torch.float32,
        "inputs with 10 bits of mantissa",
    ),
    Case("fp16 sums", ("accumulate=fp16",), torch.float16, "sums in float16"),
    Case(
        "bf16 sums of 8",
        ("accumulate=chunked:8:bf16",),
        torch.bfloat16,
        "sums of 8 products in bfloat16",
    ),
    Case("flush to zero", ("flush_to_zero=true",), torch.float16, "no subnormal numbers"),
    Case("fast exponentials", ("exp_ulp=64",), torch.float32, "units in the last place off"),
    Case("stochastic rounding", ("rounding=stochastic",), torch.bfloat16, "as if by chance"),
)


class Bench:
    """Records programs on one chip."""

    def __init__(self, device: offramp.device.VirtualDevice, folder: Path) -> None:
        self._device, self._folder = device, folder

    def record(self, program: str, case: Case, name: str, module: str = "", step: int = 0) -> Path:
        """One run; `name`: a as it is, b with the setting, n with noise."""
        path = self._folder / f"{name}.rec"
        path.unlink(missing_ok=True)
        self._device.set_arithmetic(resolve((), case.texts if name == "b" else ()))
        noise = 1 if name == "n" else -1
        part = Part(out=str(path), first=STEPS, perturb=noise, tensors=module, steps=(step,))
        # What AdamW adds to a denominator is zero in float16 unless it is larger than usual.
        settings = {} if program == "convolutional" else {"eps": 1e-4}
        recorder = Recorder(part)
        try:
            train(program, fault=Fault(settings=settings), device="cuda", dtype=case.dtype)
        finally:
            recorder.close()
        notes = read(path).notes
        assert not notes, notes
        return path

    def named(self, program: str, case: Case) -> tuple[str, str]:
        """The verdict's words, and those of the operator."""
        a, b, noisy = (self.record(program, case, name) for name in "abn")
        found = run.files(a, b, [noisy], 0.005)
        plain = f"{found.verdict.verdict}: {found.verdict.kind}"
        reason = run.not_replayed(found)
        if reason:
            return plain, reason
        modules, step = run.to_replay(found, a)
        a, b = (self.record(program, case, n, modules, step) for n in "ab")
        return plain, run.bisect(found, a, b)[1]


def main() -> None:
    torch.set_num_threads(1)
    began = time.monotonic()
    counts = {"plain": 0, "named": 0, "all": 0}
    with tempfile.TemporaryDirectory() as folder, offramp.use(CHIP) as session:
        bench = Bench(session.device, Path(folder))
        for case in CASES:
            for program in NAMES:
                plain, operator = bench.named(program, case)
                counts["all"] += 1
                counts["plain"] += plain.startswith(PRECISION)
                counts["named"] += case.words in operator
                mark = "named" if case.words in operator else "     "
                print(f"{mark} {case.name:20} {program:14} {plain}\n      {operator}", flush=True)
    print(f"\n{counts['all']} programs with another arithmetic")
    print(f"  {PRECISION}, without --bisect: {counts['plain']}")
    print(f"  the arithmetic named by replaying operators: {counts['named']}")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
