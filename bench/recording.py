"""What recording costs a training program, at the defaults and with every step in detail.

Time is the process's own on the processor, with one thread, so that a busy machine disturbs little;
runs are interleaved. Two sizes: modules of 128 numbers, whose steps are short, and of 256.
`python bench/recording.py`
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from offramp.record.part import Part
from offramp.record.recorder import Recorder

STEPS, ROUNDS = 100, 3
SHAPES = {"4 layers of 128, 8 x 64": (128, 8, 64), "4 layers of 256, 8 x 64": (256, 8, 64)}
WAYS = {"plain": None, "recorded": {}, "every step in detail": {"first": STEPS}}


def train_s(width: int, batch: int, length: int, part: Part | None) -> float:
    """Seconds of the processor for `STEPS` steps, the first two left out."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True)
    body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    model = nn.Sequential(nn.Embedding(256, width), body, nn.Linear(width, 256))
    optimizer = torch.optim.AdamW(model.parameters())
    recorder = Recorder(part) if part else None
    began = 0.0
    for step in range(STEPS + 2):
        if step == 2:
            began = time.process_time()
        ids_BT = torch.randint(0, 256, (batch, length))
        optimizer.zero_grad()
        F.cross_entropy(model(ids_BT).flatten(0, 1), ids_BT.flatten()).backward()
        optimizer.step()
    spent = time.process_time() - began
    if recorder:
        recorder.close()
    return spent


def main() -> None:
    torch.set_num_threads(1)
    for title, shape in SHAPES.items():
        spent: dict[str, list[float]] = {way: [] for way in WAYS}
        sizes = {}
        with tempfile.TemporaryDirectory() as folder:
            for number in range(ROUNDS):
                for way, settings in WAYS.items():
                    path = Path(folder) / f"{number}-{way}.rec"
                    part = None if settings is None else Part(out=str(path), **settings)
                    spent[way].append(train_s(*shape, part))
                    sizes[way] = path.stat().st_size if part else 0
        plain = statistics.median(spent["plain"])
        for way, seconds in spent.items():
            middle = statistics.median(seconds)
            spread = (max(seconds) - min(seconds)) / middle
            print(
                f"{title}: {way}: {middle / STEPS * 1e3:.1f} ms a step, {middle / plain:.3f} x, "
                f"spread {spread:.0%}, {sizes[way] / 1024:.0f} KiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
