"""What the virtual chip costs over the plain CPU, measured in one process, interleaved.

Four figures: a training step of a transformer, one small operator, one call of an intercepted
name, and `import torch` with the variable unset. Ratios are of medians; the spread is printed so
that a busy machine shows. Run it on an idle machine: `python bench/overhead.py`.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import offramp

CHIP = "zhenwu-810e"
os.environ["PPU_FP32_TENSOR_OVERRIDE"] = "0"  # its tensor cells: bench/arithmetic.py
ROUNDS = int(os.environ.get("ROUNDS", "15"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_btd: torch.Tensor) -> torch.Tensor:
        batch, time_, width = x_btd.shape
        qkv = self.qkv(self.norm_1(x_btd)).view(batch, time_, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_btd = x_btd + self.out(mixed.transpose(1, 2).reshape(batch, time_, width))
        return x_btd + self.down(F.gelu(self.up(self.norm_2(x_btd))))


class Trainer:
    """One model with its optimizer on one device."""

    def __init__(self, device: str, layers: int = 4, width: int = 448, vocabulary: int = 1024):
        torch.manual_seed(0)
        blocks = [Block(width, 7) for _ in range(layers)]
        self.model = nn.Sequential(
            nn.Embedding(vocabulary, width), *blocks, nn.Linear(width, vocabulary)
        ).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(vocabulary, (4, 257), generator=generator).to(device)
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def step(self) -> float:
        logits = self.model(self.tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), self.tokens[:, 1:].flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def interleaved(a: Callable[[], object], b: Callable[[], object], rounds: int) -> list[float]:
    """Median seconds of each, and the relative spread (half the middle 80 %) of the first."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        order = ((0, a), (1, b)) if turn % 2 == 0 else ((1, b), (0, a))
        for place, action in order:
            times[place].append(seconds(action))
    tenths = statistics.quantiles(times[0], n=10)
    spread = (tenths[-1] - tenths[0]) / 2 / statistics.median(times[0])
    return [statistics.median(times[0]), statistics.median(times[1]), spread]


def training() -> None:
    plain, chip = Trainer("cpu"), Trainer("cuda")
    for _ in range(3):
        difference = abs(plain.step() - chip.step())
    cpu_s, chip_s, spread = interleaved(plain.step, chip.step, ROUNDS)
    print(
        f"training step, {plain.parameters / 1e6:.1f} M parameters, fp32: CPU {cpu_s * 1e3:.1f} "
        f"ms, chip {chip_s * 1e3:.1f} ms, ratio {chip_s / cpu_s:.3f} (spread of the CPU's "
        f"{spread:.0%}); losses differ by {difference:.1e}"
    )


def repeated(call: Callable[[], object], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            call()

    return run


def operators() -> None:
    weight = {"cpu": torch.ones(16, 16), "cuda": torch.ones(16, 16, device="cuda")}
    cases: dict[str, Callable[[torch.Tensor], object]] = {
        "x.add_(1)": lambda x: x.add_(1),
        "x + x": lambda x: x + x,
        "F.linear(x, w)": lambda x: F.linear(x, weight[x.device.type]),
        "x.view(4, 4)": lambda x: x.view(4, 4),
        "torch.empty(16)": lambda x: torch.empty(16, device=x.device),
    }
    for name, call in cases.items():
        with torch.no_grad():
            host = repeated(partial(call, torch.ones(16)), 2000)
            chip = repeated(partial(call, torch.ones(16, device="cuda")), 2000)
            host_s, chip_s, spread = interleaved(host, chip, ROUNDS)
        print(
            f"operator {name}: CPU {host_s / 2e-3:.2f} us, chip {chip_s / 2e-3:.2f} us, "
            f"difference {(chip_s - host_s) / 2e-3:.2f} us (spread {spread:.0%})"
        )


def names() -> None:
    tensor = torch.ones(2, device="cuda")
    cases: dict[str, Callable[[], object]] = {
        "tensor.device": lambda: tensor.device,
        "tensor.is_cuda": lambda: tensor.is_cuda,
        "torch.cuda.is_available()": torch.cuda.is_available,
        "torch.cuda.current_stream()": torch.cuda.current_stream,
        "torch.cuda.memory_allocated()": torch.cuda.memory_allocated,
    }
    for name, call in cases.items():
        call()
        each = statistics.median(seconds(repeated(call, 500)) for _ in range(9)) / 500
        print(f"name {name}: {each * 1e6:.2f} us a call")


def importing() -> None:
    def start(autoload: str) -> Callable[[], object]:
        environment = {k: v for k, v in os.environ.items() if k != "OFFRAMP_CHIP"}
        environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = autoload
        command = [sys.executable, "-c", "import torch"]
        return lambda: subprocess.run(command, env=environment, check=True)

    without, with_hook, spread = interleaved(start("0"), start("1"), ROUNDS)
    print(
        f"import torch, variable unset: {without:.3f} s without the hook, {with_hook:.3f} s with "
        f"it, difference {(with_hook - without) * 1e3:.1f} ms (spread {spread:.0%})"
    )


def main() -> None:
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, chip {CHIP}"
    )
    importing()
    offramp.use(CHIP)
    training()
    operators()
    names()


if __name__ == "__main__":
    main()
