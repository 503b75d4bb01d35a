"""Weights that two modules share, before and after they move to the device."""

import json
import sys

import torch
from torch import nn

device = sys.argv[1]
model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
model[1].weight = model[0].weight
before = model[0].weight
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)  # made before the move, as some programs do
model.to(device)
start = model[0].weight.detach().cpu().clone()
model(torch.arange(3, device=device)).square().sum().backward()
optimizer.step()
moved = not torch.equal(model[0].weight.detach().cpu(), start)
model.half().cpu()
found = {
    "one": model[1].weight is model[0].weight is before,
    "parameters": len(list(model.parameters())),
    "moved": moved,
    "back": [str(before.device), str(before.dtype)],
}
print(json.dumps(found))
