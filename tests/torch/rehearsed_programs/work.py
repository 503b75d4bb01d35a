"""Modules, phases, categories, streams and events: the tape tells what was at work."""

import json

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CUDA = torch.device("cuda")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(512, 1024, bias=False), nn.Linear(1024, 512, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(x)))
        return out


class Net(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList([Block() for _ in range(2)])
        self.head = nn.Linear(512, 64)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        out: Tensor = self.head(x)
        return out


def train(reentrant: bool | None) -> None:
    net = Net(reentrant).to(CUDA)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for _ in range(2):
        inputs = torch.randn(256, 512, device=CUDA, requires_grad=True)
        net(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()


for reentrant in (None, False, True):
    train(reentrant)

# Streams: what runs where, and who waits for whom.
large = torch.randn(1024, 1024, device=CUDA)
side, first, second = torch.cuda.Stream(), torch.cuda.Event(), torch.cuda.Event(enable_timing=True)
side.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(side):
    product = large @ large
    first.record()
    product.add_(1)
large.exp()
torch.cuda.current_stream().wait_event(first)
large.sin()
second.record(side)
second.synchronize()
side.synchronize()
torch.cuda.Event().synchronize()
torch.cuda.current_stream().wait_event(torch.cuda.Event())
product.sum().item()
first.record()
first.wait(side)
torch.cuda.synchronize()
print(json.dumps({"side": side.stream_id}))
