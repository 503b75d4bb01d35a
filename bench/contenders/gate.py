"""How a contender meets the bench: it trains as many steps as it is told, and tells what it saw.

Commands come as lines on the standard input: {"steps": n, "reset": true} or nothing more, which
ends the contender. Each is answered by one line of JSON on the standard output. Between commands
the contender waits inside its own training loop, so that programs that own their loop fit as well.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """What every contender trains.

    folder     a Hugging Face folder: configuration and first weights (float32)
    tokens     a file of numbers, uint16; step s of batch B takes sequences sB to sB + B, in order
    precision  of the products: "bf16" or "fp32"; weights and AdamW's state are float32
    option     what tells two rows of one contender apart
    """

    folder: str
    tokens: str
    scratch: str
    batch: int
    sequence: int
    precision: str
    compile: bool = False
    option: str = ""
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0

    def stream(self) -> np.ndarray[Any, np.dtype[np.uint16]]:
        """The tokens."""
        return np.fromfile(self.tokens, dtype=np.uint16)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of each step, (batch, sequence) int64, over and over."""
        stream = self.stream()
        count, place = (len(stream) - 1) // self.sequence, 0
        while True:
            rows = []
            for _ in range(self.batch):
                start = place % count * self.sequence
                rows.append(stream[start : start + self.sequence + 1].astype(np.int64))
                place += 1
            both = torch.from_numpy(np.stack(rows))
            yield both[:, :-1].contiguous(), both[:, 1:].contiguous()


class Ended(BaseException):
    """The bench has seen enough; leaves any training loop."""


class Gate:
    """Counts steps and answers the bench."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what libraries print must not be taken for an answer
        self._left = 0
        self._began_s = 0.0
        self._losses: list[Tensor | float] = []

    def ready(self) -> None:
        """Everything is set up: wait for the first command."""
        self._answer({"ready": True, "base_bytes": _status_bytes("VmRSS")})
        self._next()

    def step(self, loss: Tensor | float) -> None:
        """A step is done. Raises Ended when it was the last."""
        self._losses.append(loss)
        self._left -= 1
        if self._left:
            return
        took_s = time.perf_counter() - self._began_s
        losses = [float(loss) for loss in self._losses]
        peak = _status_bytes("VmHWM")
        self._answer({"seconds": took_s, "losses": losses, "peak_bytes": peak})
        self._next()

    def _answer(self, what: dict[str, Any]) -> None:
        self._out.write(json.dumps(what) + "\n")

    def _next(self) -> None:
        line = sys.stdin.readline()
        if not line.strip():
            raise Ended
        command = json.loads(line)
        if command.get("reset"):
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the kernel's code for: forget the peak
        self._losses, self._left = [], command["steps"]
        self._began_s = time.perf_counter()


def _status_bytes(name: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0
