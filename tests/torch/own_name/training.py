"""A training program as people write them for CUDA; prints its losses and what it saw.

`--device` names the device; everything else follows from it. `--mixed` turns mixed precision on.
"""

from __future__ import annotations

import argparse
import copy
import io
import json

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cuda")
parser.add_argument("--mixed", action="store_true")
args = parser.parse_args()
device = torch.device(args.device)
torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.blocks = nn.ModuleList(Block(16) for _ in range(2))
        self.head = nn.Linear(16, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)


def data() -> TensorDataset:
    start = torch.randint(0, 11, (64, 1), generator=torch.Generator().manual_seed(1))
    tokens = (start + torch.arange(9)) % 11
    return TensorDataset(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


losses: list[float] = []


def train(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    scaler = torch.amp.GradScaler(device.type, enabled=args.mixed)
    average = copy.deepcopy(model)
    loader = DataLoader(data(), batch_size=16, pin_memory=device.type != "cpu")
    for tokens, targets in (batch for _ in range(epochs) for batch in loader):
        tokens = tokens.to(device, non_blocking=True)
        targets = targets.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.mixed):
            loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 0.1)
        losses.append(loss.item())


def make() -> tuple[Net, torch.optim.Optimizer]:
    model = Net().to(device)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)


model, optimizer = make()
train(model, optimizer, 3)
saved = io.BytesIO()
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, saved)
saved.seek(0)
state = torch.load(saved, map_location=device)
model, optimizer = make()
model.load_state_dict(state["model"])
optimizer.load_state_dict(state["optimizer"])
train(model, optimizer, 1)

tensors = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
tensors += [v for slot in optimizer.state.values() for v in slot.values() if v.dim()]
print(json.dumps({"losses": losses, "seen": sorted({str(t.device) for t in tensors})}))
