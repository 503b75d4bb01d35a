"""What recording costs a training program at the defaults: steps without details, steps with, runs.

Time is the process's own on the processor, with one thread, so that a busy machine disturbs little;
runs with and without a recorder are interleaved, and a figure is the median of the rounds'. Of each
run the first two steps are left out. `python bench/recording.py [PROGRAM...]`
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.record.part import Part
from offramp.record.recorder import Recorder

WARM = 2
LONG = 1000  # steps of a run, for its mean cost


def transformer(width: int, layers: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True)
    body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(256, width), body, nn.Linear(width, 256))


class Residual(nn.Module):
    """A block of small modules."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear, self.act = nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.linear(self.norm(x)))


def many_modules(width: int, blocks: int) -> nn.Module:
    body = [Residual(width) for _ in range(blocks)]
    return nn.Sequential(nn.Embedding(256, width), *body, nn.Linear(width, 256))


@dataclass(frozen=True)
class Program:
    """What is trained: batch and length of its sequences, steps of a run, and rounds of runs."""

    build: Callable[[], nn.Module]
    batch: int
    length: int
    steps: int
    rounds: int


PROGRAMS = {
    "4 layers of 128, 8 x 64": Program(lambda: transformer(128, 4), 8, 64, 100, 5),
    "4 layers of 384, 8 x 128": Program(lambda: transformer(384, 4), 8, 128, 50, 3),
    "60 blocks of 3 modules of 64, 8 x 64": Program(lambda: many_modules(64, 60), 8, 64, 50, 3),
}


def train(program: Program, part: Part | None) -> list[float]:
    """Seconds of the processor for each step; what ends a step's record counts to that step."""
    torch.manual_seed(0)
    model = program.build()
    optimizer = torch.optim.AdamW(model.parameters())
    recorder = Recorder(part) if part else None
    began = []
    for _ in range(WARM + program.steps + 1):
        ids_BT = torch.randint(0, 256, (program.batch, program.length))
        logits = model(ids_BT)  # the recorder ends a step where the next one's forward pass begins
        began.append(time.process_time())
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), ids_BT.flatten()).backward()
        optimizer.step()
    if recorder:
        recorder.close()
    return [after - before for before, after in itertools.pairwise(began)][WARM:]


def measure(program: Program) -> str:
    """One round's figures as ratios to the plain step, medians with their ranges."""
    defaults = Part(out="")
    rounds = []
    for _ in range(program.rounds):
        with tempfile.TemporaryDirectory() as folder:
            plain = train(program, None)
            recorded = train(program, Part(out=str(Path(folder) / "a.rec")))
            size = (Path(folder) / "a.rec").stat().st_size
        own = statistics.median(plain)
        # A step's forward pass lies before its mark: details fall on the step before as well.
        beside = [
            defaults.is_detailed(WARM + n) or defaults.is_detailed(WARM + n + 1)
            for n in range(program.steps)
        ]
        ordinary = statistics.median(
            s for s, near in zip(recorded, beside, strict=True) if not near
        )
        extra = sum(s - ordinary for s, near in zip(recorded, beside, strict=True) if near)
        detailed = sum(defaults.is_detailed(WARM + n) for n in range(program.steps))
        one = extra / detailed
        share = sum(map(defaults.is_detailed, range(LONG))) / LONG
        rounds.append(
            (
                own * 1e3,
                ordinary / own,
                (ordinary + one) / own,
                (ordinary + one * share) / own,
                sum(recorded) / sum(plain),
            )
        )
    words = ("ms a step", "x ordinary", "x in detail", f"x in {LONG} steps", "x this run")
    told = [
        f"{statistics.median(each):.3f} {word} ({min(each):.3f} to {max(each):.3f})"
        for word, each in zip(words, zip(*rounds, strict=True), strict=True)
    ]
    return f"{'; '.join(told)}; {size / 1024:.0f} KiB"


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    for title, program in PROGRAMS.items():
        if not wanted or any(word in title for word in wanted):
            print(f"{title}: {measure(program)}", flush=True)


if __name__ == "__main__":
    main()
