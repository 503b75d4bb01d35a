"""What settings of a chip's arithmetic cost: one product and one training step with each.

Every time is the median of a few; a busy machine shows in the load. `python bench/arithmetic.py`.
"""

from __future__ import annotations

import os
import statistics

import torch
from overhead import Trainer, seconds

import offramp
from offramp.chips.arithmetic import resolve

CHIP = "kunlun-p800"  # without settings of its own
ROUNDS = int(os.environ.get("ROUNDS", "5"))
SIZE = 512
SETTINGS = (
    *("", "matmul.float32=tf32", "matmul.float32=bf16x3", "split_k=4", "accumulate=fp16"),
    *("accumulate=bf16", "accumulate=chunked:128", "flush_to_zero=true", "rounding=stochastic"),
    "exp_ulp=2",
)


def median_ms(action: object) -> float:
    assert callable(action)
    action()
    return statistics.median(seconds(action) for _ in range(ROUNDS)) * 1e3


def main() -> None:
    device = offramp.use(CHIP).device
    print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}, chip {CHIP}")
    print(f"{torch.get_num_threads()} threads; a product of {SIZE}^3 and a step, ms")
    wide = torch.randn(SIZE, SIZE, device="cuda")
    narrow = wide.bfloat16()
    trainer = Trainer("cuda", layers=2, width=224)
    for setting in SETTINGS:
        device.set_arithmetic(resolve((), [setting] if setting else []))
        float32_ms, bfloat16_ms = median_ms(lambda: wide @ wide), median_ms(lambda: narrow @ narrow)
        step_ms = median_ms(trainer.step)
        print(
            f"{setting or 'the host':26} float32 {float32_ms:8.1f}  bfloat16 {bfloat16_ms:8.1f}  "
            f"float32 step {step_ms:8.1f}"
        )


if __name__ == "__main__":
    main()
