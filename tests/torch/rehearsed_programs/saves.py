"""A program that saves and loads checkpoints, in ways that people do: prints what it found."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

os.chdir(Path(sys.argv[1]).parent)
model = torch.nn.Linear(8, 8).cuda()
optimizer = torch.optim.AdamW(model.parameters())
for step in range(3):
    model(torch.ones(2, 8, device="cuda")).sum().backward()
    optimizer.step()
    before = torch.cuda.memory_allocated()
    kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(kept, "last.pt")
    torch.save(model, Path("whole.pt"))
    torch.save({name: value.cpu() for name, value in model.state_dict().items()}, "real.pt")
    torch.save({"tokens": torch.arange(4)}, "data.pt")
    save_file(model.state_dict(), "model.safetensors")
    dcp.save({"model": model.state_dict()}, checkpoint_id="sharded")
    dcp.async_save({"model": model.state_dict()}, checkpoint_id="sharded").result()
    held = torch.cuda.memory_allocated() - before
loaded = torch.load("last.pt", map_location="cuda")
model.load_state_dict(loaded["model"])
optimizer.load_state_dict(loaded["optimizer"])
model.load_state_dict(torch.load("real.pt"))
dcp.load({"model": model.state_dict()}, checkpoint_id="sharded")
found = {
    "held": held,
    "step": loaded["step"],
    "device": loaded["model"]["weight"].device.type,
    "whole": type(torch.load("whole.pt", weights_only=False)).__name__,
    "tokens": torch.load("data.pt")["tokens"].tolist(),
    "files": sorted(path.name for path in Path().iterdir() if path.suffix != ".tape"),
    "real": Path("real.pt").read_bytes()[:13].decode(errors="replace"),
}
print(json.dumps(found))
