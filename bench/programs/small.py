"""Three small programs that faults are planted in: a transformer, a convolutional net, and a net of
linear layers with accumulated gradients. Each trains in a fraction of a second on a CPU.

Shapes: B batch, T time, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NAMES = ("transformer", "convolutional", "linear")
STEPS = 8
WIDTH, KINDS = 32, 29


class Attention(nn.Module):
    """Causal attention of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.shift, self.scale = 0, 1.0

    def forward(self, x_BTC: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        q, k, v = (f(x_BTC).view(B, T, 2, C // 2).transpose(1, 2) for f in (self.q, self.k, self.v))
        mask = torch.ones(T, T, dtype=torch.bool).tril(self.shift)
        y = F.scaled_dot_product_attention(q, k, v, mask, scale=self.scale / (C // 2) ** 0.5)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """A block of a transformer, normalized before."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.between, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH)
        self.act, self.down = nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        self.drop = nn.Dropout(0.1)
        self.keeps = 1.0  # of the way around

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTC = x_BTC + self.attention(self.before(x_BTC))
        way = self.down(self.act(self.up(self.between(x_BTC))))
        return self.keeps * x_BTC + self.drop(way)


class Transformer(nn.Module):
    """Two blocks over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(KINDS, WIDTH), nn.Embedding(16, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, KINDS)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTC = self.tokens(ids_BT) + self.places(torch.arange(ids_BT.shape[1]))
        for block in self.blocks:
            x_BTC = block(x_BTC)
        return self.head(self.norm(x_BTC)).flatten(0, 1)


class Stage(nn.Module):
    """Two convolutions with a way around."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.act, self.mix = nn.ReLU(), nn.Conv2d(channels, channels, 1)
        self.keeps, self.shift, self.scale = 1.0, 0, 1.0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.act(self.norm(self.conv(x_BCHW)))
        y_BCHW = self.scale * torch.roll(y_BCHW, self.shift, -1)
        return self.keeps * x_BCHW + self.mix(y_BCHW)


class Convolutional(nn.Module):
    """Two stages over images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(Stage(16) for _ in range(2))
        self.norm, self.drop = nn.BatchNorm2d(16), nn.Dropout(0.1)
        self.head = nn.Linear(16, 10)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.stem(x_BCHW)
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        return self.head(self.drop(self.norm(x_BCHW).mean((2, 3))))


class Gate(nn.Module):
    """A gated linear unit with a way around."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(48), nn.Linear(48, 48)
        self.act, self.gate, self.down = nn.SiLU(), nn.Linear(48, 48), nn.Linear(48, 48)
        self.keeps, self.shift, self.scale = 1.0, 0, 1.0

    def forward(self, x_BC: Tensor) -> Tensor:
        y_BC = self.norm(x_BC)
        product_BC = self.scale * torch.roll(
            self.act(self.up(y_BC)) * self.gate(y_BC), self.shift, -1
        )
        return self.keeps * x_BC + self.down(product_BC)


class Linear(nn.Module):
    """Gated blocks over vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(20, 48)
        self.blocks = nn.ModuleList(Gate() for _ in range(3))
        self.norm, self.drop, self.head = nn.LayerNorm(48), nn.Dropout(0.1), nn.Linear(48, 10)

    def forward(self, x_BC: Tensor) -> Tensor:
        x_BC = self.stem(x_BC)
        for block in self.blocks:
            x_BC = block(x_BC)
        return self.head(self.drop(self.norm(x_BC)))


@dataclass
class Fault:
    """What is done to a program; each field that is set is one intervention.

    prepare   told the model before the first step
    seed      added to the seed of random numbers after the weights are made
    batches   changes the list of batches
    loss      in place of cross entropy
    between   told step and model, between backward and optimizer
    after     told step, model and the weights before the optimizer's step
    keeps_gradients   steps before which gradients are not set to zero
    settings  of the optimizer
    """

    prepare: Callable[[nn.Module], Any] | None = None
    seed: int = 0
    batches: Callable[[list[Any]], list[Any]] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    between: Callable[[int, nn.Module], None] | None = None
    after: Callable[[int, nn.Module, dict[str, Tensor]], None] | None = None
    keeps_gradients: tuple[int, ...] = ()
    clips: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


def batches(name: str, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets of `STEPS` steps; of the linear net two a step."""
    generator = torch.Generator().manual_seed(1000 + seed)
    found = []
    for _ in range(2 * STEPS if name == "linear" else STEPS):
        if name == "transformer":
            x = torch.randint(0, KINDS, (8, 16), generator=generator)
            y = ((x * 3 + 1) % KINDS).flatten()
        else:
            shape = (16, 20) if name == "linear" else (8, 3, 10, 10)
            x = torch.randn(shape, generator=generator)
            y = (x.flatten(1)[:, :10] + 0.1).argmax(1)
        found.append((x, y))
    return found


def train(
    name: str,
    seed: int = 0,
    fault: Fault | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[list[float], nn.Module]:
    """Train one of the programs, with a fault; its losses and the model."""
    fault = fault or Fault()
    torch.manual_seed(seed)
    kinds = {"transformer": Transformer, "convolutional": Convolutional, "linear": Linear}
    model = kinds[name]().to(dtype).to(device)
    if fault.prepare:
        fault.prepare(model)
    settings: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.1} | fault.settings
    if name == "convolutional":
        optimizer: Any = torch.optim.SGD(model.parameters(), momentum=0.9, **settings)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), **settings)
    data = batches(name, seed)
    data = fault.batches(data) if fault.batches else data
    torch.manual_seed(seed + 77 + fault.seed)
    parts = 2 if name == "linear" else 1
    losses = []
    for step in range(STEPS):
        if step not in fault.keeps_gradients:
            optimizer.zero_grad()
        total = 0.0
        for x, y in data[step * parts : (step + 1) * parts]:
            given = (x.to(dtype) if x.is_floating_point() else x).to(device)
            with torch.device(device) if device != "cpu" else nullcontext():
                loss = fault.loss(model(given), y.to(device)) / parts
            loss.backward()
            total += float(loss.detach())
        if fault.between:
            fault.between(step, model)
        if fault.clips:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        before = {n: p.detach().clone() for n, p in model.named_parameters()} if fault.after else {}
        optimizer.step()
        if fault.after:
            with torch.no_grad():
                fault.after(step, model, before)
        losses.append(total)
    return losses, model
