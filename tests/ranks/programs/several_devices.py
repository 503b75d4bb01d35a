"""One process with four devices, as programs used them before DistributedDataParallel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from torch.nn.parallel import comm


class Noted(nn.Module):
    """Remembers on which devices it ran."""

    def __init__(self, seen: set[str]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        self.seen = seen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add(str(x.device))
        return self.body(x)


def data_parallel(place: Any) -> dict[str, Any]:
    """Trained over four devices, and on one."""
    results: dict[str, Any] = {}
    for name, spread in (("one", False), ("four", True)):
        torch.manual_seed(6)
        seen: set[str] = set()
        model: nn.Module = Noted(seen).cuda()
        if spread:
            model = nn.DataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses = []
        for step in range(3):
            made = torch.Generator().manual_seed(step)
            x, y = torch.randn(10, 8, generator=made), torch.randn(10, 4, generator=made)
            loss = nn.functional.mse_loss(model(x.cuda()), y.cuda())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss)
        results[name] = losses, list(model.parameters())
        results["devices"] = sorted(seen)
    return results


def copies(place: Any) -> dict[str, Any]:
    """`torch.nn.parallel.comm` and `torch.cuda.nccl` against what they are defined to do."""
    x = torch.arange(24.0).view(6, 4)
    on = [x.cuda(i) * (i + 1) for i in range(4)]
    found: list[Any] = [
        comm.broadcast(x.cuda(0), [0, 1, 2]),
        comm.broadcast_coalesced([x.cuda(0), x.cuda(0) + 1], [0, 3]),
        comm.scatter(x.cuda(0), [0, 1, 2], [1, 2, 3]),
        comm.gather(comm.scatter(x, [0, 1, 2, 3], dim=1), dim=1, destination=2),
        comm.reduce_add([t.clone() for t in on], 1),
    ]
    expected: list[Any] = [
        [x, x, x],
        [[x, x + 1], [x, x + 1]],
        list(x.split([1, 2, 3])),
        x,
        x * 10,
    ]
    sums = [t.clone() for t in on]
    torch.cuda.nccl.all_reduce(sums)
    gathered = [torch.zeros(24, 4, device=t.device) for t in on]
    torch.cuda.nccl.all_gather(on, gathered)
    parts = [torch.zeros(2, 4, device=t.device) for t in on[:3]]
    torch.cuda.nccl.reduce_scatter(on[:3], parts)
    found += [sums, gathered, parts]
    whole = torch.cat([x * (i + 1) for i in range(4)])
    expected += [[x * 10] * 4, [whole] * 4, list((x * 6).chunk(3))]
    found.append([str(t.device) for t in sums])
    expected.append([f"cuda:{i}" for i in range(4)])
    return {"found": found, "expected": expected}
